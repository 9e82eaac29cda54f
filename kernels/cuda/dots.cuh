// Exact dots of a unit's columns by matrix instructions: 16 rows of weights by 8 tokens. Lane `4 g + t` has rows `g` and `g + 8`, tokens
// `2 t` and `2 t + 1`.
#pragma once
#include "matrix.cuh"
#include "weights.cuh"

// Columns in shared memory at once.
constexpr u32 STEP = 128;

// Bytes of a row in shared memory, a multiple of 32, to the next: so that eight rows' same words are in banks of their own.
__device__ constexpr u32 pitch_of(u32 bytes) { return bytes + 16; }

// By products of 8-bit integers. Tokens are as they are quantised.
struct Int8Dots {
    static constexpr u32 TOKENS = 64, BYTES = STEP, PITCH = pitch_of(BYTES);
    // Whether `dot` takes the sums of the tokens' integers.
    static constexpr bool HAS_SUMS = false;

    struct Rows {
        u32 words[4];
    };

    struct Columns {
        u32 words[2];
    };

    // The operand of unpacked words `t` of both rows, then words `4 + t`.
    template <class K>
    static __device__ __forceinline__ Rows rows(const u32 (&a)[4]) {
        return {{a[0], a[1], a[2], a[3]}};
    }

    // Two units of a tile of tokens.
    static __device__ __forceinline__ void load_units(Columns (&to)[2], const u8 (*x)[PITCH], u32 unit, u32 lane) {
        u32 words[4];
        load_matrices(words, &x[lane % 8][unit * UNIT + lane / 8 * 16]);
        to[0] = {{words[0], words[1]}}, to[1] = {{words[2], words[3]}};
    }

    // A unit of two tiles of tokens.
    static __device__ __forceinline__ void load_tiles(Columns (&to)[2], const u8 (*x)[PITCH], u32 unit, u32 lane) {
        u32 words[4];
        load_matrices(words, &x[lane / 16 * 8 + lane % 8][unit * UNIT + lane / 8 % 2 * 16]);
        to[0] = {{words[0], words[1]}}, to[1] = {{words[2], words[3]}};
    }

    // BASE + the dots of sub-block `sub` of the unit.
    template <class K, int BASE>
    static __device__ __forceinline__ void dot(
        int (&c)[4], const Rows& a, const Columns& b, u32 sub, const float (&)[2]) {
        const int start[4] = {BASE, BASE, BASE, BASE};
        if constexpr (K::SUB == UNIT) {
            multiply<!K::MIN>(c, a.words, b.words[0], b.words[1], start);
        } else {
            multiply<!K::MIN>(c, a.words[2 * sub], a.words[2 * sub + 1], b.words[sub], start);
        }
    }
};

// By products of bf16 that are integers, for devices whose 8-bit products are slow. Sums are integers of at most 24 bits times a
// power of two, and so exact in any order. Tokens are as `linear_bf16` writes them.
struct Bf16Dots {
    static constexpr u32 TOKENS = 32, BYTES = 2 * STEP, PITCH = pitch_of(BYTES);
    static constexpr bool HAS_SUMS = true;

    // Of the first 16 columns, then of the others.
    struct Rows {
        u32 words[2][4];
    };

    struct Columns {
        u32 words[4];
    };

    // An integer u of up to 7 bits is, below the bits of 128, 128 + u; weights of fewer than 8 bits are that, times what they are
    // multiples of. It is more than the weight by so much.
    template <class K>
    static constexpr u32 BITS = 8 - K::Codes::SHIFT;
    template <class K>
    static constexpr u32 HALF = K::MIN ? 0 : 1 << (BITS<K> - 1);
    template <class K>
    static constexpr float EXCESS = BITS<K> == 8 ? 0.0f : (128 + HALF<K>) << K::Codes::SHIFT;

    template <class K>
    static __device__ __forceinline__ Rows rows(const u32 (&a)[4]) {
        Rows out;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32* to = out.words[i / 2] + i % 2;
            if constexpr (BITS<K> == 8) {
                bytes(a[i], to[0], to[2]);
            } else {
                constexpr u32 MASK = ((1 << BITS<K>) - 1) * 0x00010001;
                constexpr u32 ABOVE = (0x4300 + K::Codes::SHIFT * 0x80 + HALF<K>) * 0x00010001;
                to[0] = (a[i] >> K::Codes::SHIFT & MASK) ^ ABOVE;
                to[2] = (a[i] >> (8 + K::Codes::SHIFT) & MASK) ^ ABOVE;
            }
        }
        return out;
    }

    // Integers of 8 bits: bytes 0 and 2, 1 and 3.
    static __device__ __forceinline__ void bytes(u32 word, u32& even, u32& odd) {
        u32 x[4], above = word ^ 0x80808080;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            float value = __uint_as_float(__byte_perm(above, 0x4b000000, 0x7540 + i)) - 8388736.0f;
            x[i] = __float_as_uint(value);
        }
        even = __byte_perm(x[0], x[2], 0x7632), odd = __byte_perm(x[1], x[3], 0x7632);
    }

    static __device__ __forceinline__ void load_units(Columns (&to)[2], const u8 (*x)[PITCH], u32 unit, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) load_matrices(to[i].words, &x[lane % 8][(unit + i) * UNIT * 2 + lane / 8 * 16]);
    }

    static __device__ __forceinline__ void load_tiles(Columns (&to)[2], const u8 (*x)[PITCH], u32 unit, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) load_matrices(to[i].words, &x[8 * i + lane % 8][unit * UNIT * 2 + lane / 8 * 16]);
    }

    template <class K, int BASE>
    static __device__ __forceinline__ void dot(
        int (&c)[4], const Rows& a, const Columns& b, u32 sub, const float (&xsum)[2]) {
        float sum[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum[i] = fma_of_exact_product(-EXCESS<K>, xsum[i % 2], BIAS);
        if constexpr (K::SUB == UNIT) {
            multiply_bf16(sum, a.words[0], b.words[0], b.words[1]);
            multiply_bf16(sum, a.words[1], b.words[2], b.words[3]);
        } else {
            multiply_bf16(sum, a.words[sub], b.words[2 * sub], b.words[2 * sub + 1]);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) c[i] = __float_as_int(sum[i]) - (BIASED - BASE);
    }
};
