// Linear layers over weights in blocks of 32 (decompose::linear).
#include "linear_many_32.cuh"

#define LINEAR(name, K)                                        \
    LINEAR_FEW(linear_##name##_1, K, 1)                        \
    LINEAR_FEW(linear_##name##_8, K, 8)                        \
    LINEAR_MANY(linear_##name##_many, Tile32, K, Int8Dots)

LINEAR(q4_0, Q4_0)
LINEAR(q4_1, Q4_1)
LINEAR(q5_0, Q5_0)
LINEAR(q5_1, Q5_1)
LINEAR(q8_0, Q8_0)
LINEAR(iq4_nl, Iq4Nl)
LINEAR(mxfp4, Mxfp4)

// Pairs of a token's scale and the sum of its integers, for each of `count` blocks: what minima and dots of bf16 take.
extern "C" __global__ void linear_sums_32(float2* out, const i8* xq, const float* xd, u32 count) {
    for (u64 block = first_index(); block < count; block += index_stride()) {
        out[block] = {xd[block], (float)sum_of<UNIT>(Integers(xq + block * UNIT), 0)};
    }
}
