// Linear layers of many tokens: matrix instructions on tiles of 64 rows, of which each warp has 16, by 64 tokens. Operands are
// copied to shared memory as they are packed, STEP columns at a time, the next while these are multiplied.
#pragma once
#include "linear_few.cuh"
#include "matrix.cuh"

constexpr u32 STEP = 128;
constexpr u32 STEP_UNITS = STEP / UNIT;
constexpr u32 STEPS_OF_SPAN = SPAN / STEP;
constexpr u32 ROWS = 64;
constexpr u32 TOKENS = 64;
constexpr u32 TILES = TOKENS / 8;
// Bytes of a row in shared memory, a multiple of 32, to the next: so that eight rows' same words are in banks of their own.
__device__ constexpr u32 pitch_of(u32 bytes) { return bytes + 16; }

// Keep the compiler from computing a number anew wherever it is used.
__device__ __forceinline__ u32 kept(u32 x) {
    asm("" : "+r"(x));
    return x;
}

__device__ __forceinline__ const u8* kept(const u8* x) {
    asm("" : "+l"(x));
    return x;
}

// How threads copy BYTES of each of N rows to rows PITCH bytes apart in shared memory.
template <u32 N, u32 BYTES, u32 PITCH>
struct Copies {
    static constexpr u32 EACH = BYTES < 16 ? BYTES : 16, ACROSS = BYTES / EACH, COPIES = N * ACROSS;
    const u8* from;
    u32 offsets[(COPIES + THREADS - 1) / THREADS], to_offset;

    // Of a matrix [rows, row_bytes] from row `first` on. The last row takes the place of those after it.
    __device__ __forceinline__ Copies(const void* matrix, u32 first, u32 rows, u32 row_bytes)
        : from((const u8*)matrix + (u64)first * row_bytes), to_offset(row() * PITCH + byte()) {
#pragma unroll
        for (u32 i = 0; i < COPIES; i += THREADS) {
            u32 row = i / ACROSS + this->row();
            offsets[i / THREADS] = min(row, rows - 1 - first) * row_bytes + byte();
            if (COPIES > THREADS) offsets[i / THREADS] = kept(offsets[i / THREADS]);
        }
    }

    static __device__ __forceinline__ u32 row() { return threadIdx.x / ACROSS; }
    static __device__ __forceinline__ u32 byte() { return threadIdx.x % ACROSS * EACH; }

    // Copies piece `index` of rows, of which `left` bytes are there; others come in place of the rest.
    __device__ __forceinline__ void copy(void* to, u32 index, u32 left = BYTES) const {
        u32 back = byte() < left ? 0 : byte() + EACH - left;
        const u8* piece = kept(from + (u64)index * BYTES - back);
        u32 first = kept(shared_address(to) + to_offset);
#pragma unroll
        for (u32 i = 0; i < COPIES; i += THREADS) {
            if (COPIES % THREADS != 0 && i / ACROSS + row() >= N) break;
            copy_later<EACH>(first + i / ACROSS * PITCH, piece + offsets[i / THREADS], true);
        }
    }
};

template <class K, bool IS_256 = K::BLOCK == 256>
struct Stage;

// The codes of rows, and tokens.
template <class K>
struct Operands {
    static constexpr u32 UPPER = K::Codes::UPPER_WORDS * STEP_UNITS * 4, LOWER = K::Codes::LOWER_WORDS * STEP_UNITS * 4;
    alignas(16) u8 upper[ROWS][pitch_of(UPPER)];
    alignas(16) u8 lower[ROWS][LOWER > 16 ? pitch_of(LOWER) : 16];
    alignas(16) u8 x[TOKENS][pitch_of(STEP)];

    using CopyUpper = Copies<ROWS, UPPER, pitch_of(UPPER)>;
    using CopyLower = Copies<ROWS, (LOWER > 0 ? LOWER : 16), sizeof(lower) / ROWS>;
    using CopyX = Copies<TOKENS, STEP, pitch_of(STEP)>;
};

template <class K>
struct Stage<K, false> : Operands<K> {
    // Of each unit, 16 bits or two of them; by pairs of units, a token's scale, or also its sum.
    static constexpr u32 VALUES = K::MIN ? 2 : 1;
    alignas(16) u16 scale[ROWS][STEP_UNITS * VALUES];
    alignas(16) float d[STEP_UNITS / 2][TOKENS][2][VALUES];
};

template <class K>
struct Stage<K, true> : Operands<K> {
    static constexpr u32 SUBS = STEP / K::SUB, SUBS_OF_BLOCK = 256 / K::SUB;
    alignas(16) u8 sub_scale[ROWS][SUBS];
    // Of the block that ends with this step. The tokens' sums are in two parts, of which the first counts 128 times.
    alignas(16) u16 scale[ROWS][2];
    alignas(16) float d[TOKENS];
    alignas(16) u8 sub_min[K::MIN ? ROWS : 1][SUBS_OF_BLOCK];
    alignas(16) u8 sums[K::MIN ? TOKENS : 1][2 * SUBS_OF_BLOCK];
};

// What all kinds share.
template <class K>
struct Tile {
    using Codes = typename K::Codes;

    u32 m, n, k, first_row, first_token;
    // Place of this lane in the matrices of an instruction: rows `g` and `g + 8` of its warp's weights, tokens `2 t` and `2 t + 1`.
    u32 warp, lane, g, t;
    float acc[TILES][4], total[TILES][4];
    typename Operands<K>::CopyUpper upper;
    typename Operands<K>::CopyLower lower;
    typename Operands<K>::CopyX x;

    __device__ __forceinline__ Tile(const Weights& weights, const i8* xq, u32 m, u32 n, u32 k)
        : m(m), n(n), k(k), first_row(blockIdx.x * ROWS), first_token(blockIdx.y * TOKENS),
          warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), g(lane / 4), t(lane % 4),
          upper(weights.upper, first_row, n, steps() * Operands<K>::UPPER),
          lower(weights.lower, first_row, n, steps() * Operands<K>::LOWER), x(xq, first_token, m, k) {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < TILES; j++) total[j][0] = total[j][1] = total[j][2] = total[j][3] = 0.0f;
    }

    __device__ __forceinline__ u32 steps() const { return padded(k / UNIT) / STEP_UNITS; }

    // Whether a tile of eight tokens has any.
    __device__ __forceinline__ bool has(u32 j) const { return first_token + 8 * j < m; }

    __device__ __forceinline__ void load(Operands<K>& to, u32 step) const {
        upper.copy(to.upper, step);
        if constexpr (Operands<K>::LOWER > 0) lower.copy(to.lower, step);
        x.copy(to.x, step, k - step * STEP);
    }

    // The weights of a unit, of both rows.
    __device__ __forceinline__ void weights_of(const Operands<K>& from, u32 unit, u32 (&a)[4]) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 row = warp * 16 + g + 8 * i;
            const u32* upper = (const u32*)from.upper[row] + unit * Codes::UPPER_WORDS;
            const u32* lower = (const u32*)from.lower[row] + unit * Codes::LOWER_WORDS;
            Codes::unpack(upper, lower, t, a[i], a[2 + i]);
        }
    }

    __device__ __forceinline__ void end_span() {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                total[j][i] = total[j][i] + acc[j][i];
                acc[j][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void store(float* __restrict__ out) const {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 row = first_row + warp * 16 + g + i / 2 * 8, token = first_token + 8 * j + 2 * t + i % 2;
                if (row < n && token < m) out[(u64)token * n + row] = total[j][i];
            }
        }
    }
};

// Of blocks of 32. `d` has the tokens' scales, or pairs of a scale and a sum.
template <class K, bool IS_256 = K::BLOCK == 256>
struct KindTile : Tile<K> {
    using Staged = Stage<K>;
    static constexpr u32 VALUES = Staged::VALUES;
    static constexpr u32 SCALE_BYTES = STEP_UNITS * VALUES * 2, EACH = THREADS / STEP_UNITS;
    Copies<ROWS, SCALE_BYTES, SCALE_BYTES> scales;
    const float* d;
    u32 offsets[TOKENS / EACH];

    __device__ __forceinline__ KindTile(
        const Weights& weights, const i8* xq, const float* d, const i8*, u32 m, u32 n, u32 k)
        : Tile<K>(weights, xq, m, n, k), scales(weights.scale, this->first_row, n, this->steps() * SCALE_BYTES),
          d(d + (u64)this->first_token * (k / UNIT) * VALUES) {
#pragma unroll
        for (u32 i = 0; i < TOKENS / EACH; i++) {
            u32 token = min(i * EACH + threadIdx.x / STEP_UNITS, m - 1 - this->first_token);
            offsets[i] = kept(token * (k / UNIT) * VALUES * 4);
        }
    }

    __device__ __forceinline__ void load(Staged& to, u32 step) const {
        Tile<K>::load(to, step);
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
    struct Scales {
        BlockScale scale[2];
        float min[2];

        __device__ __forceinline__ explicit Scales(const u16* from) {
#pragma unroll
            for (u32 u = 0; u < 2; u++) {
                scale[u] = BlockScale::of<K>(from[u * VALUES]);
                min[u] = K::MIN ? f32_of_f16(from[u * VALUES + 1]) : 0.0f;
            }
        }
    };

    __device__ __forceinline__ void multiply_pair(const Staged& from, u32 pair) {
        u32 a[2][4], row = this->warp * 16 + this->g;
        this->weights_of(from, 2 * pair, a[0]);
        this->weights_of(from, 2 * pair + 1, a[1]);
        Scales scales[2] = {
            Scales(from.scale[row] + pair * 2 * VALUES), Scales(from.scale[row + 8] + pair * 2 * VALUES)};
#pragma unroll
        for (u32 j = 0; j < TILES; j += 2) {
            if (!this->has(j)) break;
            multiply_tile(from, pair, j, a, scales);
            multiply_tile(from, pair, j + 1, a, scales);
        }
    }

    __device__ __forceinline__ void multiply_tile(
        const Staged& from, u32 pair, u32 j, const u32 (&a)[2][4], const Scales (&scales)[2]) {
        u32 b[4], token = 8 * j + 2 * this->t;
        load_matrices(b, &from.x[8 * j + this->lane % 8][pair * 2 * UNIT + this->lane / 8 * 16]);
        float values[2][2][VALUES];
        const float4* d = (const float4*)from.d[pair][token];
#pragma unroll
        for (u32 v = 0; v < VALUES; v++) ((float4*)values)[v] = d[v];
#pragma unroll
        for (u32 u = 0; u < 2; u++) {
            int c[4];
            multiply<!K::MIN>(c, a[u], b[2 * u], b[2 * u + 1], {BIASED, BIASED, BIASED, BIASED});
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const Scales& of = scales[i / 2];
                const float(&x)[VALUES] = values[i % 2][u];
                float term = term_of_32<K>(of.scale[u], c[i], of.min[u], x[VALUES - 1], x[0]);
                this->acc[j][i] = this->acc[j][i] + term;
            }
        }
    }
};

// Of blocks of 256. `sums` has, for each token and block, the sums of its sub-blocks: see linear_256.cu.
template <class K>
struct KindTile<K, true> : Tile<K> {
    using Staged = Stage<K>;
    static constexpr u32 SUBS = Staged::SUBS, SUBS_OF_BLOCK = Staged::SUBS_OF_BLOCK, SUBS_OF_UNIT = UNIT / K::SUB;
    // Scales alone come in pairs, since the least that is copied is four bytes.
    static constexpr u32 BLOCKS = K::MIN ? 1 : 2;
    Copies<ROWS, SUBS, SUBS> sub_scales;
    Copies<ROWS, 4, 4> scales;
    Copies<TOKENS, 4, 4> ds;
    Copies<ROWS, SUBS_OF_BLOCK, SUBS_OF_BLOCK> sub_mins;
    Copies<TOKENS, 2 * SUBS_OF_BLOCK, 2 * SUBS_OF_BLOCK> sums;
    int isum[TILES][4];

    __device__ __forceinline__ KindTile(
        const Weights& weights, const i8* xq, const float* d, const i8* sums, u32 m, u32 n, u32 k)
        : Tile<K>(weights, xq, m, n, k), sub_scales(weights.sub_scale, this->first_row, n, k / K::SUB),
          scales(weights.scale, this->first_row, n, padded(k / 256) / BLOCKS * 4),
          ds(d, this->first_token, m, k / 256 * 4),
          sub_mins(K::HALVES ? weights.sub_scale : weights.sub_min, this->first_row, n, k / K::SUB),
          sums(sums, this->first_token, m, k / 256 * 2 * SUBS_OF_BLOCK) {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) isum[j][0] = isum[j][1] = isum[j][2] = isum[j][3] = 0;
    }

    __device__ __forceinline__ void load(Staged& to, u32 step) const {
        Tile<K>::load(to, step);
        sub_scales.copy(to.sub_scale, step);
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
        u32 a[4];
        this->weights_of(from, unit, a);
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
            u32 b[4];
            load_matrices(b, &from.x[8 * j + this->lane / 16 * 8 + this->lane % 8][unit * UNIT + this->lane / 8 % 2 * 16]);
            multiply_tile(j, a, b[0], b[1], scale);
            multiply_tile(j + 1, a, b[2], b[3], scale);
        }
    }

    __device__ __forceinline__ void multiply_tile(
        u32 j, const u32 (&a)[4], u32 b0, u32 b1, const int (&scale)[2][SUBS_OF_UNIT]) {
#pragma unroll
        for (u32 s = 0; s < SUBS_OF_UNIT; s++) {
            int c[4];
            if constexpr (SUBS_OF_UNIT == 1) {
                multiply<!K::MIN>(c, a, b0, b1, {0, 0, 0, 0});
            } else {
                multiply<!K::MIN>(c, a[2 * s], a[2 * s + 1], s == 0 ? b0 : b1, {0, 0, 0, 0});
            }
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

template <class K>
__device__ __forceinline__ void many(
    float* __restrict__ out, const i8* __restrict__ xq, const float* __restrict__ d, const i8* __restrict__ sums,
    const Weights& weights, u32 m, u32 n, u32 k) {
    __shared__ Stage<K> stages[2];
    KindTile<K> tile(weights, xq, d, sums, m, n, k);
    u32 steps = tile.steps();
    for (u32 next = 0; next <= steps; next++) {
        wait_groups<0>();
        __syncthreads();
        if (next < steps) tile.load(stages[next % 2], next);
        end_group();
        if (next == 0) continue;
        // Columns past the end are zeros, whose terms are too, and add nothing.
        tile.multiply_step(stages[(next - 1) % 2], next - 1);
        if (next % STEPS_OF_SPAN == 0 || next == steps) tile.end_span();
    }
    tile.store(out);
}

#define LINEAR_FEW(name, K, M)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) name(                                                       \
        float* out, const i8* xq, const float* xd, const u32* upper, const u32* lower, const u16* scale,              \
        const u8* sub_scale, const u8* sub_min, u32 m, u32 n, u32 k) {                                                \
        few<K, M>(out, xq, xd, Weights{upper, lower, scale, sub_scale, sub_min}, m, n, k);                            \
    }
#define LINEAR_MANY(name, K)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) name(                                                       \
        float* out, const i8* xq, const float* d, const i8* sums, const u32* upper, const u32* lower,                 \
        const u16* scale, const u8* sub_scale, const u8* sub_min, u32 m, u32 n, u32 k) {                              \
        many<K>(out, xq, d, sums, Weights{upper, lower, scale, sub_scale, sub_min}, m, n, k);                         \
    }
#define LINEAR(name, K)                                                                                               \
    LINEAR_FEW(linear_##name##_1, K, 1)                                                                               \
    LINEAR_FEW(linear_##name##_8, K, 8)                                                                               \
    LINEAR_MANY(linear_##name##_many, K)
