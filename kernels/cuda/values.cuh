// Values of packed weights.
#pragma once
#include "weights.cuh"

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

// Calls `f` with the values of each four columns of a row and the first of these columns: a thread of the block has eight
// columns at a time, of one unit.
template <class K, class F>
__device__ __forceinline__ void for_each_word(const Weights& weights, u64 row, u32 columns, F f) {
    using Codes = typename K::Codes;
    Values<K> values = {weights, row, columns};
    for (u32 i = threadIdx.x; i < columns / 8; i += blockDim.x) {
        u32 t = i % 4, column = i / 4 * UNIT + 4 * t, a, b;
        u64 unit = row * padded(columns / UNIT) + i / 4;
        Codes::unpack(
            weights.upper + unit * Codes::UPPER_WORDS, weights.lower + unit * Codes::LOWER_WORDS, t, a, b);
        f(values.of_word(a, column), column);
        f(values.of_word(b, column + 16), column + 16);
    }
}
