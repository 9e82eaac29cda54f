// Rows of weights as f32 (decompose::embedding): a block for each token.
#include "contract.cuh"

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

// Four columns a thread: `value` is given the column and the integers of one row.
template <class F>
__device__ __forceinline__ void blocks(
    float* __restrict__ out, const int* __restrict__ ids, const i8* __restrict__ q, u32 rows, u32 columns, u32 op,
    Fault* fault, F value) {
    int id = ids[blockIdx.x];
    bool known = is_row(id, rows, op, fault);
    u64 row = known ? id : 0;
    const char4* integers = (const char4*)(q + row * columns);
    float4* to = (float4*)(out + (u64)blockIdx.x * columns);
    for (u32 i = threadIdx.x; i < columns / 4; i += blockDim.x) {
        char4 x = integers[i];
        float4 y = {value(row, 4 * i, x.x), value(row, 4 * i, x.y), value(row, 4 * i, x.z), value(row, 4 * i, x.w)};
        to[i] = known ? y : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
}

extern "C" __global__ void embedding_blocks32(
    float* out, const int* ids, const i8* q, const float* __restrict__ scales, u32 rows, u32 columns, u32 op,
    Fault* fault) {
    blocks(out, ids, q, rows, columns, op, fault, [=](u64 row, u32 column, i8 q) {
        return (float)q * scales[row * (columns / 32) + column / 32];
    });
}

extern "C" __global__ void embedding_blocks32_min(
    float* out, const int* ids, const i8* q, const float* __restrict__ scales, const float* __restrict__ mins,
    u32 rows, u32 columns, u32 op, Fault* fault) {
    blocks(out, ids, q, rows, columns, op, fault, [=](u64 row, u32 column, i8 q) {
        u64 block = row * (columns / 32) + column / 32;
        return (float)q * scales[block] + mins[block];
    });
}

extern "C" __global__ void embedding_blocks256(
    float* out, const int* ids, const i8* q, const float* __restrict__ scales, const i8* __restrict__ sub_scales,
    u32 rows, u32 columns, u32 sub_len, u32 op, Fault* fault) {
    blocks(out, ids, q, rows, columns, op, fault, [=](u64 row, u32 column, i8 q) {
        float sub_scale = sub_scales[row * (columns / sub_len) + column / sub_len];
        return (float)q * (scales[row * (columns / 256) + column / 256] * sub_scale);
    });
}

extern "C" __global__ void embedding_blocks256_min(
    float* out, const int* ids, const i8* q, const float* __restrict__ scales, const i8* __restrict__ sub_scales,
    const float* __restrict__ mins, const u8* __restrict__ sub_mins, u32 rows, u32 columns, u32 sub_len, u32 op,
    Fault* fault) {
    blocks(out, ids, q, rows, columns, op, fault, [=](u64 row, u32 column, i8 q) {
        u64 block = row * (columns / 256) + column / 256, sub = row * (columns / sub_len) + column / sub_len;
        float value = (float)q * (scales[block] * (float)sub_scales[sub]);
        return value - mins[block] * (float)sub_mins[sub];
    });
}
