// The greatest of each row: decompose::top_k. A block finds those of a span of a row, another those of all spans' results.
#include "contract.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 VALUES = 16;
constexpr u32 SPAN = THREADS * VALUES;

// Keys order values, and equal values by their columns: the value's place among all in the upper half, and the column,
// inverted, in the lower. No value's key is 0.
__device__ __forceinline__ u64 key_of(float value, u32 column) {
    u32 bits = __float_as_uint(value);
    u32 order = (int)bits < 0 ? 0u - bits : bits | 0x80000000u;
    if (!(value < __uint_as_float(INFINITY_BITS))) order = 0xffffffffu;
    return (u64)order << 32 | (0xffffffffu - column);
}

struct Values {
    const float* of;
    __device__ __forceinline__ u64 key(u64 row, u32 columns, u32 column) const {
        return key_of(of[row * columns + column], column);
    }
};

struct Keys {
    const u64* of;
    __device__ __forceinline__ u64 key(u64 row, u32 columns, u32 column) const { return of[row * columns + column]; }
};

__device__ __forceinline__ u64 warp_greatest(u64 key) {
    u32 upper = __reduce_max_sync(ALL_LANES, (u32)(key >> 32));
    u32 lower = __reduce_max_sync(ALL_LANES, (u32)(key >> 32) == upper ? (u32)key : 0u);
    return (u64)upper << 32 | lower;
}

__device__ __forceinline__ u64 greatest_of(const u64 (&keys)[VALUES]) {
    u64 greatest = 0;
#pragma unroll
    for (u32 i = 0; i < VALUES; i++) greatest = keys[i] > greatest ? keys[i] : greatest;
    return greatest;
}

// The k greatest keys of each span of a row, descending, 0 where it has fewer: `keys [rows, spans, k]`. Where a row is one
// span, their columns and values: `out [rows, 2, k]`, for which `x [rows, width]` has the values.
template <class Source>
__device__ __forceinline__ void top_k(
    u64* __restrict__ keys, u32* __restrict__ out, Source source, const u32* __restrict__ x, u32 columns, u32 width,
    u32 spans, u32 k) {
    __shared__ u64 of_warps[2][WARPS];
    u32 row = blockIdx.x / spans, first = blockIdx.x % spans * SPAN;
    u64 own[VALUES];
#pragma unroll
    for (u32 i = 0; i < VALUES; i++) {
        u32 column = first + i * THREADS + threadIdx.x;
        own[i] = column < columns ? source.key(row, columns, column) : 0;
    }
    u64 mine = greatest_of(own);
    for (u32 place = 0; place < k; place++) {
        u64 greatest = warp_greatest(mine);
        if (threadIdx.x % WARP == 0) of_warps[place % 2][threadIdx.x / WARP] = greatest;
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) greatest = max(greatest, of_warps[place % 2][i]);
        if (spans > 1) {
            if (threadIdx.x == 0) keys[(u64)blockIdx.x * k + place] = greatest;
        }
        if (mine != greatest || greatest == 0) continue;
        if (spans == 1) {
            u32 column = 0xffffffffu - (u32)mine;
            out[(u64)row * 2 * k + place] = column;
            out[((u64)row * 2 + 1) * k + place] = x[(u64)row * width + column];
        }
#pragma unroll
        for (u32 i = 0; i < VALUES; i++) own[i] = own[i] == mine ? 0 : own[i];
        mine = greatest_of(own);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) top_k_values(
    u64* keys, u32* out, const float* values, const u32* x, u32 columns, u32 width, u32 spans, u32 k) {
    top_k(keys, out, Values{values}, x, columns, width, spans, k);
}

extern "C" __global__ void __launch_bounds__(THREADS) top_k_keys(
    u64* keys, u32* out, const u64* values, const u32* x, u32 columns, u32 width, u32 spans, u32 k) {
    top_k(keys, out, Keys{values}, x, columns, width, spans, k);
}
