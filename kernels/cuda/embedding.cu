// Rows of weights as f32 (decompose::embedding): a block for each token.
#include "weights.cuh"

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

// The value of an integer, given as the byte that holds it, in sub-block `sub` of a row.
template <class K>
struct Values {
    const Weights& weights;
    u64 row;
    u32 columns;

    __device__ __forceinline__ float of(u32 byte, u32 column) const {
        u64 block = row * padded(columns / K::BLOCK) + column / K::BLOCK;
        float q = K::MIN ? (float)(u8)byte : (float)(i8)byte, min = 0.0f;
        float scale = scale_of<K>(weights.scale[K::MIN ? 2 * block : block]);
        if (K::MIN) min = f32_of_f16(weights.scale[2 * block + 1]);
        if constexpr (K::BLOCK == 256) {
            u64 sub = row * (columns / K::SUB) + column / K::SUB;
            scale = scale * (float)(i8)sub_scales_of<K>(weights.sub_scale[sub]);
            if (K::MIN) min = min * (float)sub_mins_of<K>((K::HALVES ? weights.sub_scale : weights.sub_min)[sub]);
        }
        float value = q * scale;
        if (!K::MIN) return value;
        return K::BLOCK == 256 ? value - min : value + min;
    }

    // Four columns.
    __device__ __forceinline__ float4 of_word(u32 word, u32 column) const {
        return {
            of(word & 255, column), of(word >> 8 & 255, column), of(word >> 16 & 255, column), of(word >> 24, column)};
    }
};

// Eight columns a thread, of one unit.
template <class K>
__device__ __forceinline__ void blocks(
    float* __restrict__ out, const int* __restrict__ ids, const Weights& weights, u32 rows, u32 columns, u32 op,
    Fault* fault) {
    using Codes = typename K::Codes;
    int id = ids[blockIdx.x];
    bool known = is_row(id, rows, op, fault);
    Values<K> values = {weights, known ? (u64)id : 0, columns};
    out += (u64)blockIdx.x * columns;
    for (u32 i = threadIdx.x; i < columns / 8; i += blockDim.x) {
        u32 t = i % 4, column = i / 4 * UNIT + 4 * t, a, b;
        u64 unit = values.row * padded(columns / UNIT) + i / 4;
        Codes::unpack(
            weights.upper + unit * Codes::UPPER_WORDS, weights.lower + unit * Codes::LOWER_WORDS, t, a, b);
        float4 zero = {0.0f, 0.0f, 0.0f, 0.0f};
        *(float4*)(out + column) = known ? values.of_word(a, column) : zero;
        *(float4*)(out + column + 16) = known ? values.of_word(b, column + 16) : zero;
    }
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
