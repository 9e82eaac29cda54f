// Linear layers of a few tokens, which wait for the weights: each is read once for up to M tokens, in accesses of 16 bytes, and
// unpacked once.
#pragma once
#include "weights.cuh"

// Columns of a span of `dot` (rule R5).
constexpr u32 SPAN = 512;
constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;
constexpr u32 UNITS_OF_SPAN = SPAN / UNIT;

// 32 integers.
struct Integers {
    u32 words[UNIT / 4];

    __device__ __forceinline__ Integers() {}

    __device__ __forceinline__ explicit Integers(const i8* from) {
        uint4 low = ((const uint4*)from)[0], high = ((const uint4*)from)[1];
        words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
        words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
    }
};

// Words that are read once: loads stay where they are written, before the next `__syncwarp`.
__device__ __forceinline__ void load_4(u32* to, const u32* from) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from)
                 : "memory");
}

__device__ __forceinline__ void load_2(u32* to, const u32* from) {
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from) : "memory");
}

__device__ __forceinline__ u32 load_1(const u32* from) {
    u32 word;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
    return word;
}

// The words of a unit in memory.
template <u32 N>
struct Words {
    u32 words[N];

    __device__ __forceinline__ Words() {}

    __device__ __forceinline__ explicit Words(const u32* from) {
#pragma unroll
        for (u32 i = 0; i + 4 <= N; i += 4) load_4(words + i, from + i);
        if (N == 2) load_2(words, from);
        if (N == 1) words[0] = load_1(from);
    }
};

template <>
struct Words<0> {
    static constexpr const u32* words = nullptr;

    __device__ __forceinline__ Words() {}

    __device__ __forceinline__ explicit Words(const u32*) {}
};

// A unit of a row as it is in memory, so that several are on their way before one is unpacked.
template <class K>
struct Packed {
    using Codes = typename K::Codes;
    Words<Codes::UPPER_WORDS> upper;
    Words<Codes::LOWER_WORDS> lower;

    __device__ __forceinline__ Packed() {}

    __device__ __forceinline__ Packed(const Weights& weights, u64 unit)
        : upper(weights.upper + unit * Codes::UPPER_WORDS), lower(weights.lower + unit * Codes::LOWER_WORDS) {}

    __device__ __forceinline__ Integers unpack() const {
        Integers out;
#pragma unroll
        for (u32 t = 0; t < 4; t++) Codes::unpack(upper.words, lower.words, t, out.words[t], out.words[4 + t]);
        return out;
    }
};

// sum + four products of bytes, the first of which have a sign or not.
template <bool SIGNED>
__device__ __forceinline__ int dot4(u32 a, u32 b, int sum) {
    int out;
    if (SIGNED) {
        asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    } else {
        asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    }
    return out;
}

// sum + dot of part `part`, of LEN columns.
template <u32 LEN, bool SIGNED>
__device__ __forceinline__ int dot(const Integers& w, const Integers& x, u32 part, int sum) {
#pragma unroll
    for (u32 i = 0; i < LEN / 4; i++) sum = dot4<SIGNED>(w.words[part * LEN / 4 + i], x.words[part * LEN / 4 + i], sum);
    return sum;
}

template <u32 LEN>
__device__ __forceinline__ int sum_of(const Integers& x, u32 part) {
    int sum = 0;
#pragma unroll
    for (u32 i = 0; i < LEN / 4; i++) sum = dot4<false>(0x01010101, x.words[part * LEN / 4 + i], sum);
    return sum;
}

// Sums of N rows' integers over the lanes that share a block: lane `l` gets that of row `l % N`.
template <u32 N, u32 LANES>
__device__ __forceinline__ int sum_rows(int (&rows)[N]) {
#pragma unroll
    for (u32 half = N / 2; half > 0; half /= 2) {
        bool upper = threadIdx.x & half;
#pragma unroll
        for (u32 r = 0; r < half; r++) {
            int given = upper ? rows[r] : rows[r + half], kept = upper ? rows[r + half] : rows[r];
            rows[r] = kept + __shfl_xor_sync(ALL_LANES, given, half);
        }
    }
#pragma unroll
    for (u32 lanes = N; lanes < LANES; lanes *= 2) rows[0] += __shfl_xor_sync(ALL_LANES, rows[0], lanes);
    return rows[0];
}

// A block's work: `m` tokens, M at most. A task of a warp is a group of rows by 1,024 columns, a unit for each lane.
template <class K, u32 M>
struct Few {
    static constexpr u32 GROUP = M == 1 ? 8 : 4, ROWS = 2 * GROUP;
    static constexpr u32 GROUPS = ROWS / GROUP, PAIRS = GROUP * M, LANES = K::BLOCK / UNIT;
    static constexpr u32 SUBS = UNIT / K::SUB, TERMS_OF_SPAN = UNITS_OF_SPAN / LANES;
    // Spans whose sums wait in shared memory.
    static constexpr u32 SPANS = 32;

    // Of a warp's task, by pair of a row and a token, and block.
    typedef float Terms[PAIRS][WARP + 1];

    const i8* xq;
    const float* xd;
    const Weights& weights;
    u32 m, n, k;

    __device__ __forceinline__ void task(Terms& terms, u32 first_row, u32 tile) const {
        u32 lane = threadIdx.x % WARP, units = k / UNIT;
        // Lanes past the end compute what nobody adds.
        u32 unit = min(tile * WARP + lane, units - 1);
        Rows rows = load(first_row, unit);
        // The terms of the task before have been added.
        __syncwarp();
        if constexpr (LANES == 1) {
            terms_of_32(terms, rows, unit);
        } else {
            terms_of_256(terms, rows, unit);
        }
    }

    __device__ __forceinline__ u32 tokens() const { return M == 1 ? 1 : m; }

    __device__ __forceinline__ Integers token(u32 t, u32 unit) const {
        return Integers(xq + (u64)t * k + unit * UNIT);
    }

    __device__ __forceinline__ float token_scale(u32 t, u32 unit) const {
        return xd[(u64)t * (k / K::BLOCK) + unit / LANES];
    }

    __device__ __forceinline__ u64 place(u32 row, u32 at, u32 count) const { return (u64)min(row, n - 1) * count + at; }

    // What a lane reads for a task, all of which is on its way before any is used.
    struct Rows {
        // The first token's.
        Integers x;
        Packed<K> w[GROUP];
        // The scale, and the minimum above it, of the block that the unit is in; of blocks of 256, of this lane's row only.
        u32 scale[LANES == 1 ? GROUP : 1];
        // Bytes of the sub-blocks.
        u32 sub_scale[GROUP], sub_min[GROUP];
    };

    __device__ __forceinline__ Rows load(u32 first_row, u32 unit) const {
        Rows rows;
        rows.x = token(0, unit);
#pragma unroll
        for (u32 r = 0; r < GROUP; r++) rows.w[r] = Packed<K>(weights, place(first_row + r, unit, padded(k / UNIT)));
        if constexpr (LANES == 1) {
#pragma unroll
            for (u32 r = 0; r < GROUP; r++) rows.scale[r] = scale(first_row + r, unit);
            return rows;
        }
        rows.scale[0] = scale(first_row + threadIdx.x % GROUP, unit / LANES);
#pragma unroll
        for (u32 r = 0; r < GROUP; r++) {
            u64 at = place(first_row + r, unit, k / UNIT);
            rows.sub_scale[r] = subs(weights.sub_scale, at);
            if (K::MIN && !K::HALVES) rows.sub_min[r] = subs(weights.sub_min, at);
        }
        return rows;
    }

    __device__ __forceinline__ u32 scale(u32 row, u32 block) const {
        u64 at = place(row, block, padded(k / K::BLOCK));
        return K::MIN ? ((const u32*)weights.scale)[at] : weights.scale[at];
    }

    static __device__ __forceinline__ u32 subs(const u8* from, u64 unit) {
        return SUBS == 2 ? ((const u16*)from)[unit] : from[unit];
    }

    __device__ __forceinline__ void terms_of_32(Terms& terms, const Rows& rows, u32 unit) const {
        Integers w[GROUP];
        BlockScale scale[GROUP];
        float min_scale[GROUP];
#pragma unroll
        for (u32 r = 0; r < GROUP; r++) {
            w[r] = rows.w[r].unpack();
            scale[r] = BlockScale::of<K>((u16)rows.scale[r]);
            min_scale[r] = K::MIN ? f32_of_f16((u16)(rows.scale[r] >> 16)) : 0.0f;
        }
        Integers next = rows.x;
#pragma unroll 2
        for (u32 t = 0; t < tokens(); t++) {
            Integers x = next;
            if (M > 1) next = token(min(t + 1, m - 1), unit);
            float d = token_scale(t, unit), xsum = K::MIN ? (float)sum_of<UNIT>(x, 0) : 0.0f;
#pragma unroll
            for (u32 r = 0; r < GROUP; r++) {
                int sum = dot<UNIT, !K::MIN>(w[r], x, 0, BIASED);
                terms[r * M + t][threadIdx.x % WARP] = term_of_32<K>(scale[r], sum, min_scale[r], xsum, d);
            }
        }
    }

    // The scales and the minima of a unit's sub-blocks in a row.
    struct Subs {
        int scale[SUBS], min[SUBS];

        __device__ __forceinline__ Subs() {}

        __device__ __forceinline__ Subs(u32 scales, u32 mins) {
            scales = sub_scales_of<K>(scales), mins = sub_mins_of<K>(mins);
#pragma unroll
            for (u32 part = 0; part < SUBS; part++) scale[part] = (i8)(scales >> 8 * part), min[part] = mins >> 8 * part & 255;
        }
    };

    // A lane ends up with one of the rows, in the block that eight lanes have.
    __device__ __forceinline__ void terms_of_256(Terms& terms, const Rows& rows, u32 unit) const {
        u32 lane = threadIdx.x % WARP;
        Integers w[GROUP];
        Subs sub[GROUP];
#pragma unroll
        for (u32 r = 0; r < GROUP; r++) {
            w[r] = rows.w[r].unpack();
            sub[r] = Subs(rows.sub_scale[r], K::HALVES ? rows.sub_scale[r] : K::MIN ? rows.sub_min[r] : 0);
        }
        float scale = scale_of<K>((u16)rows.scale[0]);
        float min_scale = K::MIN ? f32_of_f16((u16)(rows.scale[0] >> 16)) : 0.0f;
        Integers next = rows.x;
#pragma unroll 2
        for (u32 t = 0; t < tokens(); t++) {
            Integers x = next;
            if (M > 1) next = token(min(t + 1, m - 1), unit);
            int isum[GROUP], msum[GROUP];
            dots(isum, msum, w, sub, x);
            int sum = sum_rows<GROUP, LANES>(isum), min_sum = K::MIN ? sum_rows<GROUP, LANES>(msum) : 0;
            float value = term_of_256<K>(scale, sum, min_scale, min_sum, token_scale(t, unit));
            if (lane % LANES < GROUP) terms[lane % GROUP * M + t][lane / LANES] = value;
        }
    }

    static __device__ __forceinline__ void dots(
        int (&isum)[GROUP], int (&msum)[GROUP], const Integers (&w)[GROUP], const Subs (&sub)[GROUP], const Integers& x) {
        int xsum[SUBS];
#pragma unroll
        for (u32 part = 0; part < SUBS; part++) xsum[part] = K::MIN ? sum_of<K::SUB>(x, part) : 0;
#pragma unroll
        for (u32 r = 0; r < GROUP; r++) {
            isum[r] = msum[r] = 0;
#pragma unroll
            for (u32 part = 0; part < SUBS; part++) {
                isum[r] += sub[r].scale[part] * dot<K::SUB, !K::MIN>(w[r], x, part, 0);
                if (K::MIN) msum[r] += sub[r].min[part] * xsum[part];
            }
        }
    }

    // Adds the terms of each span in their order. `sums` has a row of SPANS for each pair.
    __device__ __forceinline__ void add_spans(const Terms& terms, float (*sums)[SPANS + 1], u32 tile, u32 first) const {
        u32 terms_of_row = k / K::BLOCK;
        for (u32 i = threadIdx.x % WARP; i < 2 * PAIRS; i += WARP) {
            u32 pair = i % PAIRS, half = i / PAIRS, start = (2 * tile + half) * TERMS_OF_SPAN;
            if (pair % M >= tokens()) continue;
            u32 count = start < terms_of_row ? min(TERMS_OF_SPAN, terms_of_row - start) : 0;
            float sum = 0.0f;
#pragma unroll(TERMS_OF_SPAN < 4 ? TERMS_OF_SPAN : 4)
            for (u32 j = 0; j < count; j++) sum = sum + terms[pair][half * TERMS_OF_SPAN + j];
            sums[pair][2 * (tile - first) + half] = sum;
        }
    }
};

// `m` tokens, M at most, from row `from` of the activation on, to rows from `to` on.
template <class K, u32 M>
__device__ __forceinline__ void few(
    float* __restrict__ out, const i8* __restrict__ xq, const float* __restrict__ xd, const Weights& weights, u32 to,
    u32 from, u32 m, u32 n, u32 k) {
    using Work = Few<K, M>;
    constexpr u32 PAIRS = Work::ROWS * M, TILES = Work::SPANS / 2;
    out += (u64)to * n, xq += (u64)from * k, xd += (u64)from * (k / K::BLOCK);
    __shared__ typename Work::Terms terms[WARPS];
    __shared__ float sums[PAIRS][Work::SPANS + 1];
    Work work = {xq, xd, weights, m, n, k};
    u32 warp = threadIdx.x / WARP, first_row = blockIdx.x * Work::ROWS, spans = (k + SPAN - 1) / SPAN;
    u32 tiles = (spans + 1) / 2;
    float total = 0.0f;
    for (u32 first = 0; first < tiles; first += TILES) {
        u32 tasks = min(TILES, tiles - first) * Work::GROUPS;
#pragma unroll 1
        for (u32 task = warp; task < tasks; task += WARPS) {
            u32 group = task % Work::GROUPS, tile = first + task / Work::GROUPS;
            work.task(terms[warp], first_row + group * Work::GROUP, tile);
            __syncwarp();
            work.add_spans(terms[warp], sums + group * Work::PAIRS, tile, first);
        }
        __syncthreads();
        if (threadIdx.x < PAIRS && threadIdx.x % M < m) {
            u32 end = min(Work::SPANS, spans - 2 * first);
            for (u32 i = 0; i < end; i++) total = total + sums[threadIdx.x][i];
        }
        __syncthreads();
    }
    u32 row = first_row + threadIdx.x / M, token = threadIdx.x % M;
    if (threadIdx.x < PAIRS && row < n && token < m) out[(u64)token * n + row] = total;
}
