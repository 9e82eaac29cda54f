// Linear layers of many tokens: matrix instructions on tiles of 64 rows, of which each warp has 16, by 64 tokens or fewer.
// Operands are copied to shared memory as they are packed, STEP columns at a time, the next while these are multiplied.
#pragma once
#include "linear_few.cuh"
#include "dots.cuh"

constexpr u32 STEP_UNITS = STEP / UNIT;
constexpr u32 STEPS_OF_SPAN = SPAN / STEP;
constexpr u32 ROWS = 64;
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

// The codes of rows, and tokens.
template <class K, class X>
struct Operands {
    static constexpr u32 UPPER = K::Codes::UPPER_WORDS * STEP_UNITS * 4, LOWER = K::Codes::LOWER_WORDS * STEP_UNITS * 4;
    alignas(16) u8 upper[ROWS][pitch_of(UPPER)];
    alignas(16) u8 lower[ROWS][LOWER > 16 ? pitch_of(LOWER) : 16];
    alignas(16) u8 x[X::TOKENS][X::PITCH];

    using CopyUpper = Copies<ROWS, UPPER, pitch_of(UPPER)>;
    using CopyLower = Copies<ROWS, (LOWER > 0 ? LOWER : 16), sizeof(lower) / ROWS>;
    using CopyX = Copies<X::TOKENS, X::BYTES, X::PITCH>;
};

// What all kinds share.
template <class K, class X>
struct Tile {
    using Codes = typename K::Codes;
    static constexpr u32 TOKENS = X::TOKENS, TILES = TOKENS / 8;

    u32 m, n, k, first_row, first_token;
    // Place of this lane in the matrices of an instruction: rows `g` and `g + 8` of its warp's weights, tokens `2 t` and `2 t + 1`.
    u32 warp, lane, g, t;
    float acc[TILES][4], total[TILES][4];
    typename Operands<K, X>::CopyUpper upper;
    typename Operands<K, X>::CopyLower lower;
    typename Operands<K, X>::CopyX x;

    // Tokens from `first_token` on, before `m`.
    __device__ __forceinline__ Tile(const Weights& weights, const void* x, u32 first_token, u32 m, u32 n, u32 k)
        : m(m), n(n), k(k), first_row(blockIdx.x * ROWS), first_token(first_token),
          warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), g(lane / 4), t(lane % 4),
          upper(weights.upper, first_row, n, steps() * Operands<K, X>::UPPER),
          lower(weights.lower, first_row, n, steps() * Operands<K, X>::LOWER), x(x, first_token, m, k * (X::BYTES / STEP)) {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < TILES; j++) total[j][0] = total[j][1] = total[j][2] = total[j][3] = 0.0f;
    }

    __device__ __forceinline__ u32 steps() const { return padded(k / UNIT) / STEP_UNITS; }

    // Whether a tile of eight tokens has any.
    __device__ __forceinline__ bool has(u32 j) const { return first_token + 8 * j < m; }

    __device__ __forceinline__ void load(Operands<K, X>& to, u32 step) const {
        upper.copy(to.upper, step);
        if constexpr (Operands<K, X>::LOWER > 0) lower.copy(to.lower, step);
        x.copy(to.x, step, (k - step * STEP) * (X::BYTES / STEP));
    }

    // The weights of a unit, of both rows.
    __device__ __forceinline__ typename X::Rows weights_of(const Operands<K, X>& from, u32 unit) const {
        u32 a[4];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 row = warp * 16 + g + 8 * i;
            const u32* upper = (const u32*)from.upper[row] + unit * Codes::UPPER_WORDS;
            const u32* lower = (const u32*)from.lower[row] + unit * Codes::LOWER_WORDS;
            Codes::unpack(upper, lower, t, a[i], a[2 + i]);
        }
        return X::template rows<K>(a);
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

template <class T>
__device__ __forceinline__ void many(float* __restrict__ out, T tile) {
    __shared__ typename T::Staged stages[2];
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
        u32 first = blockIdx.y * M;                                                                                   \
        Weights weights = {upper, lower, scale, sub_scale, sub_min};                                                  \
        few<K, M>(out, xq, xd, weights, first, first, min(m - first, M), n, k);                                       \
    }
#define LINEAR_MANY(name, TILE, K, X)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) name(                                                    \
        float* out, const void* x, const float* d, const float* totals, const i8* sums, const u32* upper,             \
        const u32* lower, const u16* scale, const u8* sub_scale, const u8* sub_min, u32 m, u32 n, u32 k) {            \
        Weights weights = {upper, lower, scale, sub_scale, sub_min};                                                  \
        many(out, TILE<K, X>(weights, x, d, totals, sums, blockIdx.y * X::TOKENS, m, n, k));                          \
    }
