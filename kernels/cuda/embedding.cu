// Rows of weights as f32 (decompose::embedding): a block for each token.
#include "values.cuh"

template <class T, class F>
__device__ __forceinline__ void dense(
    float* __restrict__ out, const int* __restrict__ ids, const T* __restrict__ weight, u32 rows, u32 columns,
    u32 op, Fault* fault, F value) {
    int id = ids[blockIdx.x];
    bool known = is_row(id, rows, op, fault);
    out += (u64)blockIdx.x * columns;
    weight += known ? (u64)id * columns : 0;
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) out[i] = known ? value(weight[i]) : 0.0f;
}

#define DENSE(name, T, expression)                                                                                \
    extern "C" __global__ void name(                                                                              \
        float* out, const int* ids, const T* weight, u32 rows, u32 columns, u32 op, Fault* fault) {               \
        dense(out, ids, weight, rows, columns, op, fault, [](T x) { return expression; });                        \
    }

DENSE(embedding_f32, float, x)
DENSE(embedding_f16, u16, f32_of_f16(x))
DENSE(embedding_bf16, u16, f32_of_bf16(x))

// Eight columns a thread, of one unit.
template <class K>
__device__ __forceinline__ void blocks(
    float* __restrict__ out, const int* __restrict__ ids, const Weights& weights, u32 rows, u32 columns, u32 op,
    Fault* fault) {
    int id = ids[blockIdx.x];
    bool known = is_row(id, rows, op, fault);
    out += (u64)blockIdx.x * columns;
    float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
    for_each_word<K>(weights, known ? (u64)id : 0, columns, [&](float4 values, u32 column) {
        *(float4*)(out + column) = known ? values : zero;
    });
}

#define BLOCKS(name, K)                                                                                           \
    extern "C" __global__ void embedding_##name(                                                                  \
        float* out, const int* ids, const u32* upper, const u32* lower, const u16* scale, const u8* sub_scale,    \
        const u8* sub_min, u32 rows, u32 columns, u32 op, Fault* fault) {                                         \
        blocks<K>(out, ids, Weights{upper, lower, scale, sub_scale, sub_min}, rows, columns, op, fault);          \
    }

BLOCKS(q4_0, Q4_0)
BLOCKS(q4_1, Q4_1)
BLOCKS(q5_0, Q5_0)
BLOCKS(q5_1, Q5_1)
BLOCKS(q8_0, Q8_0)
BLOCKS(iq4_nl, Iq4Nl)
BLOCKS(mxfp4, Mxfp4)
BLOCKS(q2_k, Q2K)
BLOCKS(q3_k, Q3K)
BLOCKS(q4_k, Q4K)
BLOCKS(q5_k, Q5K)
BLOCKS(q6_k, Q6K)
