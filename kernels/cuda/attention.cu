// Paged attention over the int8 cache (decompose::attention), in tiles of 128 keys that are merged in order; `head_dim` is a
// multiple of 16. A warp has 8 or 16
// rows, each a token and a query head; a block of threads has rows that share a head of the cache and a sequence, and brings
// each tile of it to shared memory once. Scores and weighted values are matrix instructions, and what is between them stays in
// registers: the keys whose scores a lane has are the keys whose weights it gives.
#include "matrix.cuh"

constexpr u32 TILE = 128;
// Keys of a matrix instruction's columns.
constexpr u32 COLUMNS = 8;
constexpr u32 MATRICES = TILE / COLUMNS;
// Instructions of 32 keys over a tile.
constexpr u32 STEPS = TILE / 32;
// Channels of a block that a lane has of a row's output: 8 one after the other.
constexpr u32 EACH = 8;

constexpr float W16_MAX = 65535.0f;
constexpr float W16_MAX_RECIPROCAL = 1.0f / 65535.0f;
constexpr u32 MASKED_BITS = 0xff7fffff;
constexpr u32 NO_ROW = ~0u;

__device__ __forceinline__ float masked() { return __uint_as_float(MASKED_BITS); }

// What a launch works on. `window` is the largest i32 where there is none, `cap` 0 where scores have no cap.
struct Work {
    const float* __restrict__ q;          // [tokens, heads, head_dim]
    const i8* __restrict__ k;             // [pages, kv_heads, page_size, head_dim]
    const float* __restrict__ k_scale;    // [pages, kv_heads, page_size, blocks]
    const i8* __restrict__ v;             // as k
    const float* __restrict__ v_scale;    // [pages, kv_heads, page_size]
    const int* __restrict__ tables;       // [sequences, max_pages]
    const int* __restrict__ sequences;    // [tokens]
    const int* __restrict__ positions;    // [tokens]
    u32 tokens, heads, kv_heads, head_dim, page_size, max_pages, tiles;
    // Tokens of a block of threads.
    u32 per_block;
    int window;
    float scale, cap, reciprocal_cap;
};

// WARPS of a block, each with HALVES times 8 rows of at most CHANNELS channels.
template <u32 WARPS, u32 HALVES, u32 CHANNELS>
struct Shape {
    static constexpr u32 warps = WARPS, halves = HALVES, channels = CHANNELS;
    static constexpr u32 threads = WARPS * WARP, rows = WARPS * HALVES * 8, blocks = CHANNELS / HEAD_BLOCK;
    // One warp is for one token.
    static constexpr bool one_token = WARPS == 1;
    // Bytes from a row in shared memory to the next: with 16 more than there are, eight rows are in banks of their own.
    static constexpr u32 pitch = CHANNELS + 16;
};

template <class S>
struct Shared {
    alignas(16) i8 q[S::rows][S::pitch];
    alignas(16) i8 k[TILE][S::pitch];
    alignas(16) i8 v[TILE][S::pitch];
    float q_scale[S::rows][S::blocks];
    alignas(8) float k_scale[S::blocks][TILE];
    alignas(8) float v_scale[TILE];
};

// The rows of a block of threads: query heads `first_head..first_head + heads` of tokens `start..end`, which are of one
// sequence. Row `r` is head `r % heads` of token `first_token + r / heads`, if that is one of them.
struct Rows {
    u32 first_token, start, end, kv_head, first_head, heads, sequence;
    // Of all rows.
    int oldest, newest;
};

// The first key that a position sees.
__device__ __forceinline__ int oldest_key(const Work& work, int position) {
    return position >= work.window ? position - work.window + 1 : 0;
}

// Tokens `start..end` of the run number `run` of tokens of one sequence, of which bit `i` of `starts` begins one at token `i`.
__device__ __forceinline__ void find_run(Rows& rows, u64 starts, u32 run, u32 count) {
    for (u32 i = 0; i < run; i++) starts &= starts - 1;
    if (starts == 0) {
        rows.start = rows.end = 0;
        return;
    }
    u64 later = starts & (starts - 1);
    rows.start = rows.first_token + (u32)__ffsll((i64)starts) - 1;
    rows.end = rows.first_token + (later == 0 ? count : (u32)__ffsll((i64)later) - 1);
}

template <class S>
__device__ __forceinline__ Rows find_rows(const Work& work, u32 run) {
    u32 group = work.heads / work.kv_heads, parts = (group + S::rows - 1) / S::rows;
    u32 part = blockIdx.x % parts, pair = blockIdx.x / parts, lane = threadIdx.x % WARP;
    Rows rows;
    rows.first_token = pair / work.kv_heads * work.per_block;
    rows.kv_head = pair % work.kv_heads;
    rows.first_head = rows.kv_head * group + part * S::rows;
    rows.heads = min(S::rows, group - part * S::rows);
    if constexpr (S::one_token) {
        rows.start = rows.first_token, rows.end = rows.start + 1;
        rows.sequence = (u32)work.sequences[rows.start];
        rows.newest = work.positions[rows.start];
        rows.oldest = oldest_key(work, rows.newest);
        return rows;
    }
    u32 count = min(work.per_block, work.tokens - rows.first_token);
    u64 starts = 0;
    for (u32 first = 0; first < count; first += WARP) {
        u32 i = first + lane, token = rows.first_token + i;
        bool is_start = i < count && (i == 0 || work.sequences[token] != work.sequences[token - 1]);
        starts |= (u64)__ballot_sync(ALL_LANES, is_start) << first;
    }
    find_run(rows, starts, run, count);
    if (rows.start == rows.end) return rows;
    rows.sequence = (u32)work.sequences[rows.start];
    int first = 0x7fffffff, last = 0;
    for (u32 token = rows.start + lane; token < rows.end; token += WARP) {
        first = min(first, work.positions[token]), last = max(last, work.positions[token]);
    }
    rows.newest = __reduce_max_sync(ALL_LANES, last);
    rows.oldest = oldest_key(work, __reduce_min_sync(ALL_LANES, first));
    return rows;
}

// Quantises the queries of this warp's rows: eight lanes have a block of channels of one.
template <class S>
__device__ __forceinline__ void load_queries(Shared<S>& shared, const Work& work, const Rows& rows, u32 blocks) {
    constexpr u32 OWN = S::halves * 8;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = lane / 8; i < OWN * blocks; i += 4) {
        u32 row = warp * OWN + i / blocks, block = i % blocks, channel = block * HEAD_BLOCK + lane % 8 * 4;
        u32 token = rows.first_token + row / rows.heads, head = rows.first_head + row % rows.heads;
        bool is_there = token >= rows.start && token < rows.end;
        const float* from = work.q + ((u64)token * work.heads + head) * work.head_dim + channel;
        float x[4], largest = 0.0f;
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            x[c] = is_there && channel + c < work.head_dim ? from[c] : 0.0f;
            largest = max_of(largest, fabsf(x[c]));
        }
#pragma unroll
        for (u32 lanes = 4; lanes > 0; lanes /= 2) largest = max_of(largest, __shfl_xor_sync(ALL_LANES, largest, lanes));
        Q8Scale scale = q8_scale(largest);
        u32 word = 0;
#pragma unroll
        for (u32 c = 0; c < 4; c++) word |= (u32)(u8)q8_value(x[c], scale.inverse) << (8 * c);
        *(u32*)&shared.q[row][channel] = word;
        if (lane % 8 == 0) shared.q_scale[row][block] = scale.scale;
    }
}

// Brings tiles of the cache to shared memory. A lane knows the rows of the keys `i * threads + threadIdx.x` of a tile.
template <class S>
struct Loader {
    static constexpr u32 COUNT = TILE / S::threads;
    // 16 bytes each, of a row of CHANNELS.
    static constexpr u32 CHUNKS = S::channels / 16;

    const Work& work;
    const Rows& rows;
    u32 blocks;
    u32 at[COUNT];

    __device__ __forceinline__ void find(u32 tile) {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            // A page is of as many keys as a power of two.
            u32 key = tile * TILE + i * S::threads + threadIdx.x, entry = key >> (__ffs((int)work.page_size) - 1);
            bool is_there = (int)key >= rows.oldest && (int)key <= rows.newest && entry < work.max_pages;
            u32 page = is_there ? (u32)work.tables[(u64)rows.sequence * work.max_pages + entry] : 0;
            u32 row = (page * work.kv_heads + rows.kv_head) * work.page_size + (key & (work.page_size - 1));
            at[i] = is_there ? row : NO_ROW;
        }
    }

    // Integers of the keys, zeros for those that no row sees.
    __device__ __forceinline__ void copy(i8 (&to)[TILE][S::pitch], const i8* from) {
        u32 lane = threadIdx.x % WARP, first = threadIdx.x - lane;
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
#pragma unroll 2
            for (u32 chunk = 0; chunk < CHUNKS; chunk++) {
                u32 key = (chunk * WARP + lane) / CHUNKS, channel = lane % CHUNKS * 16;
                u32 row = __shfl_sync(ALL_LANES, at[i], key);
                bool is_there = row != NO_ROW && channel < work.head_dim;
                const i8* source = is_there ? from + (u64)row * work.head_dim + channel : from;
                if (channel < blocks * HEAD_BLOCK) {
                    copy_later<16>(&to[i * S::threads + first + key][channel], source, is_there);
                }
            }
        }
    }

    __device__ __forceinline__ void load_keys(Shared<S>& shared) {
        copy(shared.k, work.k);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u64 row = at[i] == NO_ROW ? 0 : at[i];
#pragma unroll
            for (u32 block = 0; block < S::blocks; block++) {
                if (block >= blocks) break;
                float* to = &shared.k_scale[block][i * S::threads + threadIdx.x];
                copy_later<4>(to, work.k_scale + row * blocks + block, at[i] != NO_ROW);
            }
        }
    }

    __device__ __forceinline__ void load_values(Shared<S>& shared) {
        copy(shared.v, work.v);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            u64 row = at[i] == NO_ROW ? 0 : at[i];
            copy_later<4>(&shared.v_scale[i * S::threads + threadIdx.x], work.v_scale + row, at[i] != NO_ROW);
        }
    }
};

// Factors of what was before a tile and of the tile, where that has a visible key.
struct Factors {
    float before, tile, max;
};

__device__ __forceinline__ Factors factors(float before, float tile) {
    float max = max_of(before, tile);
    return {exp_of_falling(before - max), exp_of_falling(tile - max), max};
}

// Word `j` of the result has byte `j` of each word.
__device__ __forceinline__ void transpose(u32 (&to)[4], u32 w0, u32 w1, u32 w2, u32 w3) {
    u32 low01 = __byte_perm(w0, w1, 0x5140), low23 = __byte_perm(w2, w3, 0x5140);
    u32 high01 = __byte_perm(w0, w1, 0x7362), high23 = __byte_perm(w2, w3, 0x7362);
    to[0] = __byte_perm(low01, low23, 0x5410), to[1] = __byte_perm(low01, low23, 0x7632);
    to[2] = __byte_perm(high01, high23, 0x5410), to[3] = __byte_perm(high01, high23, 0x7632);
}

// Reductions over the four lanes that have a row.
__device__ __forceinline__ float quad_max(float x) {
    x = max_of(x, __shfl_xor_sync(ALL_LANES, x, 2));
    return max_of(x, __shfl_xor_sync(ALL_LANES, x, 1));
}

// A lane's part of one tile: of row `g` of each half of its warp, keys `8 j + 2 t + e`.
template <class S>
struct Tile {
    static constexpr u32 HALVES = S::halves;

    Shared<S>& shared;
    const Work& work;
    u32 warp, lane, g, t, blocks;
    // Of each row; a position of -1 where there is no row.
    int position[HALVES], oldest[HALVES];
    float scores[HALVES][MATRICES][2];
    // Weights of the values in bytes, as operands of matrix instructions.
    u32 high[HALVES][STEPS][2], low[HALVES][STEPS][2];
    float weight_scale[HALVES], max[HALVES], sum[HALVES];

    __device__ __forceinline__ Tile(Shared<S>& shared, const Work& work, const Rows& rows, u32 blocks)
        : shared(shared), work(work), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), g(lane / 4), t(lane % 4),
          blocks(blocks) {
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) {
            u32 token = rows.first_token + row(h) / rows.heads;
            position[h] = token >= rows.start && token < rows.end ? work.positions[token] : -1;
            oldest[h] = oldest_key(work, position[h]);
        }
    }

    __device__ __forceinline__ u32 row(u32 half) const { return (warp * HALVES + half) * 8 + g; }

    // Whether a row sees a key of a tile.
    __device__ __forceinline__ bool sees(u32 half, u32 tile) const {
        int first = (int)(tile * TILE);
        return first <= position[half] && first + (int)TILE > oldest[half];
    }

    // Whether any row of this warp does.
    __device__ __forceinline__ bool is_wanted(u32 tile) const {
        bool any = false;
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) any = any || sees(h, tile);
        return __any_sync(ALL_LANES, any);
    }

    __device__ __forceinline__ void multiply_keys() {
#pragma unroll
        for (u32 i = 0; i < HALVES * MATRICES * 2; i++) scores[i / MATRICES / 2][i / 2 % MATRICES][i % 2] = 0.0f;
#pragma unroll 1
        for (u32 block = 0; block < blocks; block++) {
            u32 part = lane / 8, a[4];
            u32 first = warp * HALVES * 8 + lane % 8 + (HALVES == 2 ? part % 2 * 8 : 0);
            load_matrices(a, &shared.q[first][block * HEAD_BLOCK + part / 2 * 16]);
            if (HALVES == 1) a[1] = a[3] = 0;
            float scale[HALVES];
#pragma unroll
            for (u32 h = 0; h < HALVES; h++) scale[h] = shared.q_scale[row(h)][block];
#pragma unroll
            for (u32 j = 0; j < MATRICES; j += 2) {
                u32 b[4];
                load_matrices(b, &shared.k[8 * (j + part / 2) + lane % 8][block * HEAD_BLOCK + part % 2 * 16]);
                add_block(block, j, scale, a, b[0], b[1]);
                add_block(block, j + 1, scale, a, b[2], b[3]);
            }
        }
    }

    __device__ __forceinline__ void add_block(
        u32 block, u32 j, const float (&scale)[HALVES], const u32 (&a)[4], u32 b0, u32 b1) {
        int sums[4] = {0, 0, 0, 0};
        multiply(sums, a, b0, b1);
        float2 k_scale = *(const float2*)&shared.k_scale[block][COLUMNS * j + 2 * t];
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) {
            scores[h][j][0] = scores[h][j][0] + (scale[h] * k_scale.x) * (float)sums[2 * h];
            scores[h][j][1] = scores[h][j][1] + (scale[h] * k_scale.y) * (float)sums[2 * h + 1];
        }
    }

    __device__ __forceinline__ bool is_visible(u32 half, u32 tile, u32 j, u32 e) const {
        int key = (int)(tile * TILE + COLUMNS * j + 2 * t + e);
        return key >= oldest[half] && key <= position[half];
    }

    // Whether the value of a key may count. What no row of a block sees is zeros; what another token sees may be no number.
    __device__ __forceinline__ bool has_scale(u32 half, u32 tile, u32 j, u32 e) const {
        return S::one_token || is_visible(half, tile, j, e);
    }

    __device__ __forceinline__ void scale_and_cap(float (&s)[MATRICES][2]) const {
#pragma unroll
        for (u32 i = 0; i < 2 * MATRICES; i++) s[i / 2][i % 2] = s[i / 2][i % 2] * work.scale;
        if (work.cap == 0.0f) return;
#pragma unroll
        for (u32 i = 0; i < 2 * MATRICES; i++) {
            s[i / 2][i % 2] = soft_cap_of(s[i / 2][i % 2], work.cap, work.reciprocal_cap);
        }
    }

    // Scaled, capped and masked scores, then their exponentials, the sum of these, and the weights of the values.
    __device__ __forceinline__ void weigh(u32 half, u32 tile) {
        float(&s)[MATRICES][2] = scores[half];
        scale_and_cap(s);
        float largest = masked();
#pragma unroll
        for (u32 i = 0; i < 2 * MATRICES; i++) {
            float x = s[i / 2][i % 2];
            s[i / 2][i % 2] = is_visible(half, tile, i / 2, i % 2) ? x : masked();
            largest = max_of(largest, s[i / 2][i % 2]);
        }
        max[half] = quad_max(largest);
#pragma unroll
        for (u32 i = 0; i < 2 * MATRICES; i++) {
            float p = exp_of_falling(s[i / 2][i % 2] - max[half]);
            s[i / 2][i % 2] = is_visible(half, tile, i / 2, i % 2) ? p : 0.0f;
        }
        sum[half] = sum_of(s);
        largest = 0.0f;
#pragma unroll
        for (u32 j = 0; j < MATRICES; j++) {
            float2 v_scale = *(const float2*)&shared.v_scale[COLUMNS * j + 2 * t];
            s[j][0] = has_scale(half, tile, j, 0) ? s[j][0] * v_scale.x : 0.0f;
            s[j][1] = has_scale(half, tile, j, 1) ? s[j][1] * v_scale.y : 0.0f;
            largest = max_of(largest, max_of(s[j][0], s[j][1]));
        }
        slice(half, quad_max(largest));
    }

    // Sum of every STEP-th column from FIRST on: the upper levels of the tree of `sum`.
    template <u32 FIRST, u32 STEP>
    static __device__ __forceinline__ float halves(const float (&p)[MATRICES][2], u32 e) {
        if constexpr (STEP == MATRICES) {
            return p[FIRST][e];
        } else {
            return halves<FIRST, 2 * STEP>(p, e) + halves<FIRST + STEP, 2 * STEP>(p, e);
        }
    }

    // `sum` (rule R5) of a row, whose lanes are the keys.
    static __device__ __forceinline__ float sum_of(const float (&p)[MATRICES][2]) {
        float x[2];
#pragma unroll
        for (u32 e = 0; e < 2; e++) {
            x[e] = halves<0, 1>(p, e);
            x[e] = x[e] + __shfl_xor_sync(ALL_LANES, x[e], 2);
            x[e] = x[e] + __shfl_xor_sync(ALL_LANES, x[e], 1);
        }
        return x[0] + x[1];
    }

    // The weights as integers of 16 bits, in two bytes: bytes `2 j + e` of an operand's word are keys `8 j + 2 t + e`.
    __device__ __forceinline__ void slice(u32 half, float largest) {
        float scale = largest * W16_MAX_RECIPROCAL;
        bool tiny = scale < TINY;
        float inverse = tiny ? 0.0f : W16_MAX / largest;
        weight_scale[half] = tiny ? 0.0f : scale;
#pragma unroll
        for (u32 i = 0; i < 2 * STEPS; i++) {
            u32 w[4];
#pragma unroll
            for (u32 e = 0; e < 4; e++) w[e] = (u32)__float2int_rn(scores[half][2 * i + e / 2][e % 2] * inverse);
            u32 first = __byte_perm(w[0], w[1], 0x5140), second = __byte_perm(w[2], w[3], 0x5140);
            low[half][i / 2][i % 2] = __byte_perm(first, second, 0x5410);
            high[half][i / 2][i % 2] = __byte_perm(first, second, 0x7632);
        }
    }

    // Weighted values of a block of channels, exact: 128 products of 16 bits by 8 stay below 2^31. Passes a row's channels
    // `8 t..8 t + 8` of the block to `emit`.
    template <class F>
    __device__ __forceinline__ void multiply_values(u32 block, F emit) {
        int high_sums[4][4] = {}, low_sums[4][4] = {};
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            u32 words[8], b0[4], b1[4];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 key = 32 * step + i / 2 * COLUMNS + 2 * t + i % 2;
                words[i] = *(const u32*)&shared.v[key][block * HEAD_BLOCK + 4 * g];
            }
            transpose(b0, words[0], words[1], words[2], words[3]);
            transpose(b1, words[4], words[5], words[6], words[7]);
            constexpr u32 LAST = HALVES - 1;
            u32 high_a[4] = {high[0][step][0], HALVES == 2 ? high[LAST][step][0] : 0, high[0][step][1],
                             HALVES == 2 ? high[LAST][step][1] : 0};
            u32 low_a[4] = {low[0][step][0], HALVES == 2 ? low[LAST][step][0] : 0, low[0][step][1],
                            HALVES == 2 ? low[LAST][step][1] : 0};
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                multiply_unsigned(high_sums[j], high_a, b0[j], b1[j]);
                multiply_unsigned(low_sums[j], low_a, b0[j], b1[j]);
            }
        }
#pragma unroll
        for (u32 h = 0; h < HALVES; h++) {
            float x[EACH];
#pragma unroll
            for (u32 i = 0; i < EACH; i++) {
                int sum = high_sums[i % 4][2 * h + i / 4] * 256 + low_sums[i % 4][2 * h + i / 4];
                x[i] = (float)sum * weight_scale[h];
            }
            emit(h, x);
        }
    }
};

// Writes a lane's channels of a row.
__device__ __forceinline__ void store(float* to, const float (&x)[EACH]) {
    ((float4*)to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4*)to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// A lane's part of the outputs of all tiles until now.
template <class S>
struct State {
    float max[S::halves], sum[S::halves], out[S::blocks][S::halves][EACH];

    // To a zero below zero any first tile adds up to itself.
    __device__ __forceinline__ explicit State(bool is_of_one_tile) : sum() {
        float zero = is_of_one_tile ? -0.0f : 0.0f;
#pragma unroll
        for (u32 h = 0; h < S::halves; h++) max[h] = masked();
#pragma unroll
        for (u32 i = 0; i < S::blocks * S::halves * EACH; i++) out[i / EACH / S::halves][i / EACH % S::halves][i % EACH] = zero;
    }

    __device__ __forceinline__ void add(Tile<S>& tile, u32 number) {
        Factors by[S::halves];
        bool sees[S::halves];
#pragma unroll
        for (u32 h = 0; h < S::halves; h++) {
            by[h] = factors(max[h], tile.max[h]);
            sees[h] = tile.sees(h, number);
            if (!sees[h]) continue;
            sum[h] = sum[h] * by[h].before + tile.sum[h] * by[h].tile;
            max[h] = by[h].max;
        }
#pragma unroll
        for (u32 block = 0; block < S::blocks; block++) {
            if (block >= tile.blocks) break;
            tile.multiply_values(block, [&](u32 h, const float(&x)[EACH]) {
#pragma unroll
                for (u32 i = 0; i < EACH; i++) {
                    float& to = out[block][h][i];
                    to = sees[h] ? to * by[h].before + x[i] * by[h].tile : to;
                }
            });
        }
    }

    // Writes a row's output over a divisor.
    __device__ __forceinline__ void store_row(float* row, const Tile<S>& tile, u32 h, float divisor) const {
#pragma unroll
        for (u32 block = 0; block < S::blocks; block++) {
            float x[EACH];
#pragma unroll
            for (u32 i = 0; i < EACH; i++) x[i] = out[block][h][i] / divisor;
            u32 channel = block * HEAD_BLOCK + EACH * tile.t;
            if (channel < tile.work.head_dim) store(row + channel, x);
        }
    }
};

// Where outputs go: to `out` [tokens, heads, head_dim], or, where tiles have blocks of threads of their own, those of each tile to
// `tiles` [tiles, tokens, heads, head_dim], with its maximum and sum in `sums` [tiles, tokens, heads, 2].
struct Outputs {
    float *out, *tiles, *sums;
};

template <class S>
__device__ __forceinline__ void write(
    const Outputs& to, const Work& work, const Rows& rows, const Tile<S>& tile, const State<S>& state, u32 number) {
#pragma unroll
    for (u32 h = 0; h < S::halves; h++) {
        u32 token = rows.first_token + tile.row(h) / rows.heads, head = rows.first_head + tile.row(h) % rows.heads;
        u64 row = (u64)token * work.heads + head;
        if (to.tiles == nullptr) {
            if (tile.position[h] >= 0) state.store_row(to.out + row * work.head_dim, tile, h, state.sum[h]);
        } else if (tile.sees(h, number)) {
            row += (u64)number * work.tokens * work.heads;
            state.store_row(to.tiles + row * work.head_dim, tile, h, 1.0f);
            if (tile.t == 0) *(float2*)&to.sums[2 * row] = make_float2(state.max[h], state.sum[h]);
        }
    }
}

// All tiles of a block's rows, one after the other, or the one of number `blockIdx.y / runs`, where `runs` is the most changes of
// sequence, and one, that a block's tokens may have. The values of a tile come while its
// keys are multiplied, the keys of the next while values are.
template <class S>
__device__ __forceinline__ void attend(const Outputs& outputs, const Work& work) {
    extern __shared__ __align__(16) u8 dynamic[];
    Shared<S>& shared = *(Shared<S>*)dynamic;
    bool is_of_one_tile = outputs.tiles != nullptr;
    u32 runs = S::one_token ? 1 : is_of_one_tile ? gridDim.y / work.tiles : gridDim.y;
    Rows rows = find_rows<S>(work, blockIdx.y % runs);
    if (rows.start == rows.end) return;
    u32 blocks = (work.head_dim + HEAD_BLOCK - 1) / HEAD_BLOCK;
    u32 from = (u32)rows.oldest / TILE, to = min((u32)rows.newest / TILE + 1, work.tiles);
    if (is_of_one_tile) from = max(from, blockIdx.y / runs), to = min(to, blockIdx.y / runs + 1);
    if (from >= to) return;
    Loader<S> loader = {work, rows, blocks};
    Tile<S> tile(shared, work, rows, blocks);
    State<S> state(is_of_one_tile);
    loader.find(from);
    loader.load_keys(shared);
    end_group();
    loader.load_values(shared);
    end_group();
    load_queries(shared, work, rows, blocks);
    for (u32 number = from; number < to; number++) {
        bool is_wanted = tile.is_wanted(number), is_last = number + 1 == to;
        wait_groups<1>();
        __syncthreads();
        if (is_wanted) tile.multiply_keys();
        wait_groups<0>();
        __syncthreads();
        if (!is_last) {
            loader.find(number + 1);
            loader.load_keys(shared);
        }
        end_group();
        if (is_wanted) {
#pragma unroll
            for (u32 h = 0; h < S::halves; h++) tile.weigh(h, number);
            state.add(tile, number);
        }
        __syncthreads();
        if (!is_last) loader.load_values(shared);
        end_group();
    }
    write(outputs, work, rows, tile, state, from);
}

// Merges the tiles of a token in order: a block for each token and query head.
extern "C" __global__ void __launch_bounds__(TILE) attention_merge(
    float* __restrict__ out, const float* __restrict__ outs, const float* __restrict__ sums,
    const int* __restrict__ positions, u32 heads, u32 head_dim, u32 tiles, int window) {
    int position = positions[blockIdx.x / heads];
    u32 from = position >= window ? (u32)(position - window + 1) / TILE : 0, to = min((u32)position / TILE + 1, tiles);
    for (u32 channel = threadIdx.x; channel < head_dim; channel += TILE) {
        float max = masked(), sum = 0.0f, value = 0.0f;
#pragma unroll 4
        for (u32 tile = from; tile < to; tile++) {
            u64 row = (u64)tile * gridDim.x + blockIdx.x;
            float2 tile_sums = *(const float2*)&sums[2 * row];
            Factors by = factors(max, tile_sums.x);
            value = value * by.before + outs[row * head_dim + channel] * by.tile;
            sum = sum * by.before + tile_sums.y * by.tile;
            max = by.max;
        }
        out[(u64)blockIdx.x * head_dim + channel] = value / sum;
    }
}

#define ATTENTION(name, WARPS, HALVES, CHANNELS)                                                                         \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP, 1) name(Outputs outputs, Work work) {                         \
        attend<Shape<WARPS, HALVES, CHANNELS>>(outputs, work);                                                           \
    }

ATTENTION(attention_few_64, 1, 1, 64)
ATTENTION(attention_few_128, 1, 1, 128)
ATTENTION(attention_few_256, 1, 1, 256)
ATTENTION(attention_many_64, 4, 2, 64)
ATTENTION(attention_many_128, 4, 2, 128)
ATTENTION(attention_many_256, 4, 1, 256)
