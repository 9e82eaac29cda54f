// Linear layers over weights in blocks of 256 (decompose::linear).
#include "linear_many_256.cuh"

#define LINEAR(name, K)                                        \
    LINEAR_FEW(linear_##name##_1, K, 1)                        \
    LINEAR_FEW(linear_##name##_8, K, 8)                        \
    LINEAR_MANY(linear_##name##_many, Tile256, K, Int8Dots)

LINEAR(q2_k, Q2K)
LINEAR(q3_k, Q3K)
LINEAR(q4_k, Q4K)
LINEAR(q5_k, Q5K)
LINEAR(q6_k, Q6K)

// Sums of a token's integers for each sub-block of `count` units, as operands of the matrix instructions that minima take: 128
// times the first part plus the second is a sum. A block of 256 has all first parts, then all second.
template <u32 SUB>
__device__ __forceinline__ void sums(i8* __restrict__ out, const i8* __restrict__ xq, u32 count) {
    constexpr u32 SUBS = UNIT / SUB, SUBS_OF_BLOCK = 256 / SUB;
    for (u64 unit = first_index(); unit < count; unit += index_stride()) {
        Integers x(xq + unit * UNIT);
        i8* to = out + unit / 8 * 2 * SUBS_OF_BLOCK + unit % 8 * SUBS;
#pragma unroll
        for (u32 part = 0; part < SUBS; part++) {
            int sum = sum_of<SUB>(x, part), first = (sum + 64) >> 7;
            to[part] = (i8)first;
            to[SUBS_OF_BLOCK + part] = (i8)(sum - 128 * first);
        }
    }
}

extern "C" __global__ void linear_sums_256_16(i8* out, const i8* xq, u32 count) { sums<16>(out, xq, count); }
extern "C" __global__ void linear_sums_256_32(i8* out, const i8* xq, u32 count) { sums<32>(out, xq, count); }
