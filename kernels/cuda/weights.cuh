// Weights in blocks as the device holds them: the layout that crates/cuda/src/weight.rs packs.
#pragma once
#include "contract.cuh"

// Columns whose integers lie together.
constexpr u32 UNIT = 32;
// Rows of codes and of scales are padded with zeros to so many units and blocks.
constexpr u32 PADDED = 4;

__device__ __forceinline__ constexpr u32 padded(u32 count) { return (count + PADDED - 1) / PADDED * PADDED; }

// A matrix [n, k]; parts that a kind lacks are null.
struct Weights {
    // Of each unit.
    const u32* __restrict__ upper;
    const u32* __restrict__ lower;
    // Of each block: 16 bits, or two of them where there is a minimum.
    const u16* __restrict__ scale;
    // Of each sub-block.
    const u8* __restrict__ sub_scale;
    const u8* __restrict__ sub_min;
};

// `i` of 0..8 is the word of columns 4 i.. of a unit, a byte for each column. Integers of UPPER + LOWER bits are cut in two
// planes. One of W bits has, in W words, those of word `i` in bits W * (i / W).. of the bytes of word `i % W`.
template <u32 UPPER, u32 LOWER>
struct Planes {
    static constexpr u32 UPPER_WORDS = UPPER, LOWER_WORDS = LOWER;
    // Integers come as the highest bits of bytes, and so as multiples of 2^SHIFT.
    static constexpr u32 SHIFT = 8 - UPPER - LOWER;
    static constexpr u32 BYTES = 0x01010101;
    static constexpr u32 UPPER_MASK = (256 - (1 << (8 - UPPER))) * BYTES;
    static constexpr u32 MASK = (256 - (1 << SHIFT)) * BYTES;

    // Words `t` and `4 + t` of a unit, for `t` of 0..4. Both are in the same words of the planes, four bits apart.
    static __device__ __forceinline__ void unpack(const u32* upper, const u32* lower, u32 t, u32& a, u32& b) {
        u32 high = upper[t % UPPER], at = 8 - UPPER - t / UPPER * UPPER;
        a = rotated(high, at), b = rotated(high, at - 4);
        if constexpr (LOWER > 0) {
            u32 low = lower[t % LOWER], at = SHIFT - t / LOWER * LOWER;
            a = (a & UPPER_MASK) | (rotated(low, at) & ~UPPER_MASK);
            b = (b & UPPER_MASK) | (rotated(low, at - 4) & ~UPPER_MASK);
        }
        a &= MASK, b &= MASK;
    }

    static __device__ __forceinline__ u32 rotated(u32 word, u32 left) { return __funnelshift_l(word, word, left); }
};

// Integers that are bytes.
template <>
struct Planes<8, 0> {
    static constexpr u32 UPPER_WORDS = 8, LOWER_WORDS = 0, SHIFT = 0;

    static __device__ __forceinline__ void unpack(const u32* upper, const u32*, u32 t, u32& a, u32& b) {
        a = upper[t], b = upper[4 + t];
    }
};

// Places in a table of 16 bytes: word `t` of a unit has four bits for each column of words `t` and `4 + t`, in order.
template <class Table>
struct Lookup {
    static constexpr u32 UPPER_WORDS = 4, LOWER_WORDS = 0, SHIFT = 0;

    static __device__ __forceinline__ void unpack(const u32* upper, const u32*, u32 t, u32& a, u32& b) {
        u32 place = upper[t] & 0x77777777, half = (upper[t] & 0x88888888) >> 1 | 0x32103210;
        a = four(place, half), b = four(place >> 16, half >> 16);
    }

    static __device__ __forceinline__ u32 four(u32 place, u32 half) {
        u32 low = __byte_perm(Table::WORDS[0], Table::WORDS[1], place);
        u32 high = __byte_perm(Table::WORDS[2], Table::WORDS[3], place);
        return __byte_perm(low, high, half);
    }
};

// tensor::IQ4_NL_VALUES
struct Iq4NlTable {
    static constexpr u32 WORDS[4] = {0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535};
};

// tensor::MXFP4_VALUES
struct Mxfp4Table {
    static constexpr u32 WORDS[4] = {0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc};
};

// Formats: BLOCK columns have a scale, and each SUB of a block of 256 an integer scale; with MIN, also a minimum.
template <u32 BLOCK_, u32 SUB_, bool MIN_, class Codes_>
struct Kind {
    static constexpr u32 BLOCK = BLOCK_, SUB = SUB_;
    // Integers have a sign where there is no minimum.
    static constexpr bool MIN = MIN_;
    using Codes = Codes_;
    // Whether the scale and the minimum of a sub-block are the halves of a byte.
    static constexpr bool HALVES = false;
    // Whether scales are powers of two of any size, in bf16.
    static constexpr bool POWERS = false;
};

using Q4_0 = Kind<32, 32, false, Planes<4, 0>>;
using Q4_1 = Kind<32, 32, true, Planes<4, 0>>;
using Q5_0 = Kind<32, 32, false, Planes<4, 1>>;
using Q5_1 = Kind<32, 32, true, Planes<4, 1>>;
using Q8_0 = Kind<32, 32, false, Planes<8, 0>>;
using Iq4Nl = Kind<32, 32, false, Lookup<Iq4NlTable>>;
using Q3K = Kind<256, 16, false, Planes<2, 1>>;
using Q4K = Kind<256, 32, true, Planes<4, 0>>;
using Q5K = Kind<256, 32, true, Planes<4, 1>>;
using Q6K = Kind<256, 16, false, Planes<4, 2>>;

struct Q2K : Kind<256, 16, true, Planes<2, 0>> {
    static constexpr bool HALVES = true;
};

struct Mxfp4 : Kind<32, 32, false, Lookup<Mxfp4Table>> {
    static constexpr bool POWERS = true;
};

// The matrix of the rows from `row` on.
template <class K>
__device__ __forceinline__ Weights from_row(const Weights& weights, u64 row, u32 k) {
    u64 units = row * padded(k / UNIT), subs = row * (k / K::SUB);
    return {
        weights.upper + units * K::Codes::UPPER_WORDS, weights.lower + units * K::Codes::LOWER_WORDS,
        weights.scale + row * padded(k / K::BLOCK) * (K::MIN ? 2 : 1), weights.sub_scale + subs, weights.sub_min + subs};
}

// A block's scale, of what unpacked integers are multiples of.
template <class K>
__device__ __forceinline__ float scale_of(u16 bits) {
    constexpr float EACH = 1.0f / (1 << K::Codes::SHIFT);
    float scale = K::POWERS ? f32_of_bf16(bits) : f32_of_f16(bits);
    return K::Codes::SHIFT == 0 ? scale : scale * EACH;
}

// Scales or minima of sub-blocks, four at a time.
template <class K>
__device__ __forceinline__ u32 sub_scales_of(u32 bytes) {
    return K::HALVES ? bytes & 0x0f0f0f0f : bytes;
}

template <class K>
__device__ __forceinline__ u32 sub_mins_of(u32 bytes) {
    return K::HALVES ? bytes >> 4 & 0x0f0f0f0f : bytes;
}

// An integer less than 2^22 in magnitude that was added to these bits is, as f32, BIAS more than itself.
constexpr int BIASED = 0x4b400000;
constexpr float BIAS = 12582912.0f;

// A block's scale, with what takes the bias from its product.
struct BlockScale {
    float scale, bias;

    template <class K>
    static __device__ __forceinline__ BlockScale of(u16 bits) {
        float scale = scale_of<K>(bits);
        return {scale, K::POWERS ? 0.0f : scale * -BIAS};
    }
};

// What a block of 32 adds: (scale * isum) * d, or (scale * isum + min * xsum) * d, where `biased` is BIASED + isum. BIAS times a
// scale of f16 is exact, so that one rounding is left; `min * xsum` is exact, of 11 and 12 bits.
template <class K>
__device__ __forceinline__ float term_of_32(BlockScale scale, int biased, float min, float xsum, float d) {
    float sum = __int_as_float(biased);
    sum = K::POWERS ? (sum - BIAS) * scale.scale : fma_of_exact_product(sum, scale.scale, scale.bias);
    if (K::MIN) sum = fma_of_exact_product(min, xsum, sum);
    return sum * d;
}

// What a block of 256 adds: (scale * isum) * d, or (scale * isum - min * msum) * d.
template <class K>
__device__ __forceinline__ float term_of_256(float scale, int isum, float min, int msum, float d) {
    float sum = scale * (float)isum;
    if (K::MIN) sum = sum - min * (float)msum;
    return sum * d;
}
