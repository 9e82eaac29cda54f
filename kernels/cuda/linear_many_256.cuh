// Tiles of many tokens and weights in blocks of 256.
#pragma once
#include "linear_many.cuh"

template <class K, class X>
struct Stage256 : Operands<K, X> {
    static constexpr u32 SUBS = STEP / K::SUB, SUBS_OF_BLOCK = 256 / K::SUB;
    alignas(16) u8 sub_scale[ROWS][SUBS];
    alignas(16) float totals[X::HAS_SUMS ? X::TOKENS : 1][SUBS];
    // Of the block that ends with this step. The tokens' sums are in two parts, of which the first counts 128 times.
    alignas(16) u16 scale[ROWS][2];
    alignas(16) float d[X::TOKENS];
    alignas(16) u8 sub_min[K::MIN ? ROWS : 1][SUBS_OF_BLOCK];
    alignas(16) u8 sums[K::MIN ? X::TOKENS : 1][2 * SUBS_OF_BLOCK];
};

// A tile of weights in blocks of 256. `totals` and `sums` have the sums of the tokens' sub-blocks: see linear_256.cu.
template <class K, class X>
struct Tile256 : Tile<K, X> {
    using Staged = Stage256<K, X>;
    using Tile<K, X>::TOKENS;
    using Tile<K, X>::TILES;
    static constexpr u32 SUBS = Staged::SUBS, SUBS_OF_BLOCK = Staged::SUBS_OF_BLOCK, SUBS_OF_UNIT = UNIT / K::SUB;
    // Scales alone come in pairs, since the least that is copied is four bytes.
    static constexpr u32 BLOCKS = K::MIN ? 1 : 2;
    Copies<ROWS, SUBS, SUBS> sub_scales;
    Copies<ROWS, 4, 4> scales;
    Copies<TOKENS, 4, 4> ds;
    Copies<TOKENS, SUBS * 4, SUBS * 4> totals;
    Copies<ROWS, SUBS_OF_BLOCK, SUBS_OF_BLOCK> sub_mins;
    Copies<TOKENS, 2 * SUBS_OF_BLOCK, 2 * SUBS_OF_BLOCK> sums;
    int isum[TILES][4];

    __device__ __forceinline__ Tile256(
        const Weights& weights, const void* x, const float* d, const float* totals, const i8* sums, u32 first_token,
        u32 m, u32 n, u32 k)
        : Tile<K, X>(weights, x, first_token, m, n, k), sub_scales(weights.sub_scale, this->first_row, n, k / K::SUB),
          scales(weights.scale, this->first_row, n, padded(k / 256) / BLOCKS * 4),
          ds(d, this->first_token, m, k / 256 * 4), totals(totals, this->first_token, m, k / K::SUB * 4),
          sub_mins(K::HALVES ? weights.sub_scale : weights.sub_min, this->first_row, n, k / K::SUB),
          sums(sums, this->first_token, m, k / 256 * 2 * SUBS_OF_BLOCK) {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) isum[j][0] = isum[j][1] = isum[j][2] = isum[j][3] = 0;
    }

    __device__ __forceinline__ void load(Staged& to, u32 step) const {
        Tile<K, X>::load(to, step);
        sub_scales.copy(to.sub_scale, step);
        if constexpr (X::HAS_SUMS) totals.copy(to.totals, step);
        if (step % 2 == 0) return;
        u32 block = step / 2;
        scales.copy(to.scale, block / BLOCKS);
        ds.copy(to.d, block);
        if constexpr (K::MIN) {
            sub_mins.copy(to.sub_min, block);
            sums.copy(to.sums, block);
        }
    }

    __device__ __forceinline__ void multiply_step(const Staged& from, u32 step) {
#pragma unroll 1
        for (u32 unit = 0; unit < STEP_UNITS; unit++) multiply_unit(from, unit);
        if (step % 2 == 1) end_block(from, step / 2);
    }

    __device__ __forceinline__ void multiply_unit(const Staged& from, u32 unit) {
        typename X::Rows a = this->weights_of(from, unit);
        int scale[2][SUBS_OF_UNIT];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u8* of = from.sub_scale[this->warp * 16 + this->g + 8 * i] + unit * SUBS_OF_UNIT;
#pragma unroll
            for (u32 s = 0; s < SUBS_OF_UNIT; s++) scale[i][s] = (i8)sub_scales_of<K>(of[s]);
        }
#pragma unroll
        for (u32 j = 0; j < TILES; j += 2) {
            if (!this->has(j)) break;
            typename X::Columns b[2];
            X::load_tiles(b, from.x + 8 * j, unit, this->lane);
            multiply_tile(from, unit, j, a, b[0], scale);
            multiply_tile(from, unit, j + 1, a, b[1], scale);
        }
    }

    __device__ __forceinline__ void multiply_tile(
        const Staged& from, u32 unit, u32 j, const typename X::Rows& a, const typename X::Columns& b,
        const int (&scale)[2][SUBS_OF_UNIT]) {
        u32 token = 8 * j + 2 * this->t;
#pragma unroll
        for (u32 s = 0; s < SUBS_OF_UNIT; s++) {
            float xsum[2] = {0.0f, 0.0f};
            if constexpr (X::HAS_SUMS) {
                u32 sub = unit * SUBS_OF_UNIT + s;
                xsum[0] = from.totals[token][sub], xsum[1] = from.totals[token + 1][sub];
            }
            int c[4];
            X::template dot<K, 0>(c, a, b, s, xsum);
#pragma unroll
            for (u32 i = 0; i < 4; i++) isum[j][i] += scale[i / 2][s] * c[i];
        }
    }

    // Minima of a block, as a matrix: of both rows, the columns of this lane.
    __device__ __forceinline__ void mins_of(const Staged& from, u32 (&a)[2]) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            bool there = 4 * this->t < SUBS_OF_BLOCK;
            const u32* row = (const u32*)from.sub_min[this->warp * 16 + this->g + 8 * i];
            a[i] = there ? sub_mins_of<K>(row[this->t % (SUBS_OF_BLOCK / 4)]) : 0;
        }
    }

    __device__ __forceinline__ void min_sums(const Staged& from, u32 j, const u32 (&a)[2], int (&msum)[4]) const {
        const u32* row = (const u32*)from.sums[8 * j + this->g] + this->t % (SUBS_OF_BLOCK / 4);
        multiply<true>(msum, a[0], a[1], row[0], {0, 0, 0, 0});
        int start[4] = {msum[0] * 128, msum[1] * 128, msum[2] * 128, msum[3] * 128};
        multiply<true>(msum, a[0], a[1], row[SUBS_OF_BLOCK / 4], start);
    }

    __device__ __forceinline__ void end_block(const Staged& from, u32 block) {
        float scale[2], min_scale[2];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u16* of = from.scale[this->warp * 16 + this->g + 8 * i];
            scale[i] = scale_of<K>(K::MIN ? of[0] : of[block % 2]);
            min_scale[i] = K::MIN ? f32_of_f16(of[1]) : 0.0f;
        }
        u32 a[2];
        if constexpr (K::MIN) mins_of(from, a);
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
            if (!this->has(j)) continue;
            int msum[4] = {0, 0, 0, 0};
            if constexpr (K::MIN) min_sums(from, j, a, msum);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float x = from.d[8 * j + 2 * this->t + i % 2];
                float term = term_of_256<K>(scale[i / 2], isum[j][i], min_scale[i / 2], msum[i], x);
                this->acc[j][i] = this->acc[j][i] + term;
                isum[j][i] = 0;
            }
        }
    }
};
