// Tiles of many tokens and weights in blocks of 32.
#pragma once
#include "linear_many.cuh"

template <class K, class X>
struct Stage32 : Operands<K, X> {
    // Of each unit, 16 bits or two of them; by pairs of units, a token's scale, or also its sum.
    static constexpr u32 SCALES = K::MIN ? 2 : 1, VALUES = K::MIN || X::HAS_SUMS ? 2 : 1;
    alignas(16) u16 scale[ROWS][STEP_UNITS * SCALES];
    alignas(16) float d[STEP_UNITS / 2][X::TOKENS][2][VALUES];
};

// A tile of weights in blocks of 32. `d` has the tokens' scales, or pairs of a scale and a sum.
template <class K, class X>
struct Tile32 : Tile<K, X> {
    using Staged = Stage32<K, X>;
    using Tile<K, X>::TOKENS;
    using Tile<K, X>::TILES;
    static constexpr u32 SCALES = Staged::SCALES, VALUES = Staged::VALUES;
    static constexpr u32 SCALE_BYTES = STEP_UNITS * SCALES * 2, EACH = THREADS / STEP_UNITS;
    Copies<ROWS, SCALE_BYTES, SCALE_BYTES> scales;
    const float* d;
    u32 offsets[TOKENS / EACH];

    __device__ __forceinline__ Tile32(
        const Weights& weights, const void* x, const float* d, const float*, const i8*, u32 first_token, u32 m, u32 n,
        u32 k)
        : Tile<K, X>(weights, x, first_token, m, n, k), scales(weights.scale, this->first_row, n, this->steps() * SCALE_BYTES),
          d(d + (u64)this->first_token * (k / UNIT) * VALUES) {
#pragma unroll
        for (u32 i = 0; i < TOKENS / EACH; i++) {
            u32 token = min(i * EACH + threadIdx.x / STEP_UNITS, m - 1 - this->first_token);
            offsets[i] = kept(token * (k / UNIT) * VALUES * 4);
        }
    }

    __device__ __forceinline__ void load(Staged& to, u32 step) const {
        Tile<K, X>::load(to, step);
        scales.copy(to.scale, step);
        // Of the tokens, with zeros past the ends of rows, where terms are zeros in turn.
        u32 unit = threadIdx.x % STEP_UNITS, left = this->k / UNIT - step * STEP_UNITS;
        const u8* from = kept((const u8*)(d + (u64)(step * STEP_UNITS + min(unit, left - 1)) * VALUES));
        u32 first = kept(shared_address(to.d[unit / 2][threadIdx.x / STEP_UNITS][unit % 2]));
#pragma unroll
        for (u32 i = 0; i < TOKENS / EACH; i++) {
            copy_later<VALUES * 4>(first + i * EACH * (u32)sizeof(to.d[0][0]), from + offsets[i], unit < left);
        }
    }

    __device__ __forceinline__ void multiply_step(const Staged& from, u32) {
#pragma unroll 1
        for (u32 pair = 0; pair < STEP_UNITS / 2; pair++) multiply_pair(from, pair);
    }

    // The scales and minima of a pair of units of a row.
    struct RowScales {
        BlockScale scale[2];
        float min[2];

        __device__ __forceinline__ explicit RowScales(const u16* from) {
#pragma unroll
            for (u32 u = 0; u < 2; u++) {
                scale[u] = BlockScale::of<K>(from[u * SCALES]);
                min[u] = K::MIN ? f32_of_f16(from[u * SCALES + 1]) : 0.0f;
            }
        }
    };

    __device__ __forceinline__ void multiply_pair(const Staged& from, u32 pair) {
        u32 row = this->warp * 16 + this->g;
        typename X::Rows a[2] = {this->weights_of(from, 2 * pair), this->weights_of(from, 2 * pair + 1)};
        RowScales scales[2] = {
            RowScales(from.scale[row] + pair * 2 * SCALES), RowScales(from.scale[row + 8] + pair * 2 * SCALES)};
#pragma unroll
        for (u32 j = 0; j < TILES; j += 2) {
            if (!this->has(j)) break;
            multiply_tile(from, pair, j, a, scales);
            multiply_tile(from, pair, j + 1, a, scales);
        }
    }

    __device__ __forceinline__ void multiply_tile(
        const Staged& from, u32 pair, u32 j, const typename X::Rows (&a)[2], const RowScales (&scales)[2]) {
        u32 token = 8 * j + 2 * this->t;
        typename X::Columns b[2];
        X::load_units(b, from.x + 8 * j, 2 * pair, this->lane);
        float values[2][2][VALUES];
        const float4* d = (const float4*)from.d[pair][token];
#pragma unroll
        for (u32 v = 0; v < VALUES; v++) ((float4*)values)[v] = d[v];
#pragma unroll
        for (u32 u = 0; u < 2; u++) {
            int c[4];
            X::template dot<K, BIASED>(c, a[u], b[u], 0, {values[0][u][VALUES - 1], values[1][u][VALUES - 1]});
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const RowScales& of = scales[i / 2];
                const float(&x)[VALUES] = values[i % 2][u];
                float term = term_of_32<K>(of.scale[u], c[i], of.min[u], x[VALUES - 1], x[0]);
                this->acc[j][i] = this->acc[j][i] + term;
            }
        }
    }
};
