// Linear layers of many tokens by products of bf16 (Bf16Dots).
#include "linear_many_256.cuh"
#include "linear_many_32.cuh"

LINEAR_MANY(linear_q4_0_bf16, Tile32, Q4_0, Bf16Dots)
LINEAR_MANY(linear_q4_1_bf16, Tile32, Q4_1, Bf16Dots)
LINEAR_MANY(linear_q5_0_bf16, Tile32, Q5_0, Bf16Dots)
LINEAR_MANY(linear_q5_1_bf16, Tile32, Q5_1, Bf16Dots)
LINEAR_MANY(linear_q8_0_bf16, Tile32, Q8_0, Bf16Dots)
LINEAR_MANY(linear_iq4_nl_bf16, Tile32, Iq4Nl, Bf16Dots)
LINEAR_MANY(linear_mxfp4_bf16, Tile32, Mxfp4, Bf16Dots)
LINEAR_MANY(linear_q2_k_bf16, Tile256, Q2K, Bf16Dots)
LINEAR_MANY(linear_q3_k_bf16, Tile256, Q3K, Bf16Dots)
LINEAR_MANY(linear_q4_k_bf16, Tile256, Q4K, Bf16Dots)
LINEAR_MANY(linear_q5_k_bf16, Tile256, Q5K, Bf16Dots)
LINEAR_MANY(linear_q6_k_bf16, Tile256, Q6K, Bf16Dots)

// A token's integers as bf16, where lanes look for them: the pair `2 t` of matrix `i` of a unit has columns
// 16 (i / 2) + 4 t + i % 2 and two more. A thread for each of `count` pairs.
extern "C" __global__ void linear_bf16(u32* out, const i8* xq, u32 count) {
    for (u64 pair = first_index(); pair < count; pair += index_stride()) {
        u32 i = pair / 4 % 4, t = pair % 4;
        const i8* from = xq + pair / 16 * UNIT + 16 * (i / 2) + 4 * t + i % 2;
        out[pair] = bf16_of_f32(from[0]) | (u32)bf16_of_f32(from[2]) << 16;
    }
}

// Sums of a token's integers for each sub-block of `count` units.
template <u32 SUB>
__device__ __forceinline__ void totals(float* __restrict__ out, const i8* __restrict__ xq, u32 count) {
    for (u64 unit = first_index(); unit < count; unit += index_stride()) {
        Integers x(xq + unit * UNIT);
#pragma unroll
        for (u32 part = 0; part < UNIT / SUB; part++) out[unit * (UNIT / SUB) + part] = sum_of<SUB>(x, part);
    }
}

extern "C" __global__ void linear_totals_16(float* out, const i8* xq, u32 count) { totals<16>(out, xq, count); }
extern "C" __global__ void linear_totals_32(float* out, const i8* xq, u32 count) { totals<32>(out, xq, count); }
