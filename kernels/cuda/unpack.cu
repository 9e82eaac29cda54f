// Rows of weights as bf16, for products that are not exact: a block of threads for each row.
#include "values.cuh"

template <class K>
__device__ __forceinline__ void unpack(
    u16* __restrict__ out, const Weights& weights, u32 first_row, u32 columns) {
    out += (u64)blockIdx.x * columns;
    for_each_word<K>(weights, first_row + blockIdx.x, columns, [&](float4 values, u32 column) {
        u32 low = bf16_of_f32(values.x) | (u32)bf16_of_f32(values.y) << 16;
        u32 high = bf16_of_f32(values.z) | (u32)bf16_of_f32(values.w) << 16;
        *(uint2*)(out + column) = {low, high};
    });
}

#define UNPACK(name, K)                                                                                            \
    extern "C" __global__ void unpack_##name(                                                                     \
        u16* out, const u32* upper, const u32* lower, const u16* scale, const u8* sub_scale, const u8* sub_min,   \
        u32 first_row, u32 columns) {                                                                             \
        unpack<K>(out, Weights{upper, lower, scale, sub_scale, sub_min}, first_row, columns);                     \
    }

UNPACK(q4_0, Q4_0)
UNPACK(q4_1, Q4_1)
UNPACK(q5_0, Q5_0)
UNPACK(q5_1, Q5_1)
UNPACK(q8_0, Q8_0)
UNPACK(iq4_nl, Iq4Nl)
UNPACK(mxfp4, Mxfp4)
UNPACK(q2_k, Q2K)
UNPACK(q3_k, Q3K)
UNPACK(q4_k, Q4K)
UNPACK(q5_k, Q5K)
UNPACK(q6_k, Q6K)
