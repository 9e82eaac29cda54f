// Paged attention over the int8 cache (decompose::attention): in tiles of 128 keys, merged in order. A block of threads has
// some query heads of one token that share a head of the cache.
#include "contract.cuh"

constexpr u32 TILE = 128;
constexpr u32 WARPS = TILE / WARP;
// Query heads of a block.
constexpr u32 HEADS = 8;
// Channels of a head, at most.
constexpr u32 CHANNELS = 256;
constexpr u32 BLOCKS = CHANNELS / HEAD_BLOCK;

constexpr float W16_MAX = 65535.0f;
constexpr float W16_MAX_RECIPROCAL = 1.0f / 65535.0f;
constexpr u32 MASKED_BITS = 0xff7fffff;

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
    u32 heads, kv_heads, head_dim, page_size, max_pages, tiles;
    int window;
    float scale, cap, reciprocal_cap;
};

// A tile's largest score, sum of exponentials and output, or those of all tiles until now.
struct State {
    float max[HEADS], sum[HEADS];
    float out[HEADS][CHANNELS];
};

struct Shared {
    alignas(16) i8 q[HEADS][CHANNELS];
    float q_scale[HEADS][BLOCKS];
    float scores[HEADS][TILE];
    u32 weights[HEADS][TILE];
    float v_scale[TILE];
    // Of the cache, of each key.
    u64 rows[TILE];
    float weight_scale[HEADS], max[HEADS], sum[HEADS];
    State state;
};

// Quantises the block's queries, a warp for each block of channels.
__device__ __forceinline__ void load_queries(Shared& shared, const Work& work, u64 first, u32 count) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 blocks = (work.head_dim + HEAD_BLOCK - 1) / HEAD_BLOCK;
    for (u32 i = warp; i < count * blocks; i += WARPS) {
        u32 head = i / blocks, block = i % blocks, channel = block * HEAD_BLOCK + lane;
        bool there = channel < work.head_dim;
        float x = there ? work.q[(first + head) * work.head_dim + channel] : 0.0f;
        Q8Scale scale = q8_scale(warp_max(fabsf(x)));
        shared.q[head][channel] = q8_value(x, scale.inverse);
        if (lane == 0) shared.q_scale[head][block] = scale.scale;
    }
    for (u32 i = threadIdx.x; i < HEADS * CHANNELS; i += TILE) shared.state.out[i / CHANNELS][i % CHANNELS] = 0.0f;
    if (threadIdx.x < HEADS) shared.state.max[threadIdx.x] = masked(), shared.state.sum[threadIdx.x] = 0.0f;
    __syncthreads();
}

// Row of the cache of a key.
__device__ __forceinline__ u64 cache_row(const Work& work, u32 token, u32 kv_head, u32 key) {
    u32 entry = key / work.page_size;
    int page = entry < work.max_pages ? work.tables[(u64)work.sequences[token] * work.max_pages + entry] : 0;
    return ((u64)page * work.kv_heads + kv_head) * work.page_size + key % work.page_size;
}

__device__ __forceinline__ int dot_words(const u32 (&a)[HEAD_BLOCK / 4], const i8* b) {
    int sum = 0;
#pragma unroll
    for (u32 i = 0; i < HEAD_BLOCK / 4; i++) sum = __dp4a((int)a[i], ((const int*)b)[i], sum);
    return sum;
}

// The 32 channels of a block, zeros past the head's last.
__device__ __forceinline__ void load_channels(u32 (&to)[HEAD_BLOCK / 4], const i8* row, u32 first, u32 head_dim) {
    if (head_dim % 16 == 0) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            uint4 x = {0, 0, 0, 0};
            if (first + 16 * i < head_dim) x = *(const uint4*)(row + first + 16 * i);
            to[4 * i] = x.x, to[4 * i + 1] = x.y, to[4 * i + 2] = x.z, to[4 * i + 3] = x.w;
        }
        return;
    }
#pragma unroll
    for (u32 i = 0; i < HEAD_BLOCK / 4; i++) {
        to[i] = 0;
#pragma unroll
        for (u32 byte = 0; byte < 4; byte++) {
            u32 channel = first + 4 * i + byte;
            if (channel < head_dim) to[i] |= (u32)(u8)row[channel] << (8 * byte);
        }
    }
}

// Scores of a thread's key with every query.
__device__ __forceinline__ void score(Shared& shared, const Work& work, u64 row, bool visible, u32 count) {
    u32 key = threadIdx.x, blocks = (work.head_dim + HEAD_BLOCK - 1) / HEAD_BLOCK;
    for (u32 block = 0; block < blocks; block++) {
        u32 channels[HEAD_BLOCK / 4];
        load_channels(channels, work.k + row * work.head_dim, block * HEAD_BLOCK, work.head_dim);
        float k_scale = work.k_scale[row * blocks + block];
        for (u32 head = 0; head < count; head++) {
            float before = block == 0 ? 0.0f : shared.scores[head][key];
            int isum = dot_words(channels, &shared.q[head][block * HEAD_BLOCK]);
            shared.scores[head][key] = before + (shared.q_scale[head][block] * k_scale) * (float)isum;
        }
    }
    for (u32 head = 0; head < count; head++) {
        float s = shared.scores[head][key] * work.scale;
        if (work.cap != 0.0f) s = soft_cap_of(s, work.cap, work.reciprocal_cap);
        shared.scores[head][key] = visible ? s : masked();
    }
}

// `sum` (rule R5) of 128 lanes, of which this one holds four, 32 apart.
__device__ __forceinline__ float sum_of_four(const float (&x)[WARPS]) { return warp_sum((x[0] + x[2]) + (x[1] + x[3])); }

__device__ __forceinline__ float max_of_four(const float (&x)[WARPS]) {
    return warp_max(max_of(max_of(x[0], x[1]), max_of(x[2], x[3])));
}

// Exponentials of the scores, and from them the 16-bit weights of the values; a warp for each query.
__device__ __forceinline__ void weigh(Shared& shared, u32 first_key, int oldest, int position, u32 count) {
    u32 lane = threadIdx.x % WARP;
    for (u32 head = threadIdx.x / WARP; head < count; head += WARPS) {
        float s[WARPS], p[WARPS], w[WARPS];
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) s[i] = shared.scores[head][i * WARP + lane];
        float max = max_of_four(s);
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) {
            int key = (int)(first_key + i * WARP + lane);
            bool visible = key >= oldest && key <= position;
            p[i] = visible ? exp_of(s[i] - max) : 0.0f;
            w[i] = visible ? p[i] * shared.v_scale[i * WARP + lane] : 0.0f;
        }
        float sum = sum_of_four(p), largest = max_of_four(w);
        float scale = largest * W16_MAX_RECIPROCAL;
        bool tiny = scale < TINY;
        float inverse = tiny ? 0.0f : W16_MAX / largest;
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) {
            shared.weights[head][i * WARP + lane] = (u32)__float2int_rn(w[i] * inverse);
        }
        if (lane == 0) {
            shared.weight_scale[head] = tiny ? 0.0f : scale;
            shared.max[head] = max;
            shared.sum[head] = sum;
        }
    }
}

// Factors of what was before a tile and of the tile, where that has a visible key.
struct Factors {
    float before, tile, max;
};

__device__ __forceinline__ Factors factors(float before, float tile) {
    float max = max_of(before, tile);
    return {exp_of(before - max), exp_of(tile - max), max};
}

// Weighted values of a channel for every query: exact, since 128 products of 16 bits by 8 stay below 2^31.
__device__ __forceinline__ void weigh_values(
    const Shared& shared, const Work& work, u32 channel, int (&sums)[HEADS]) {
#pragma unroll
    for (u32 head = 0; head < HEADS; head++) sums[head] = 0;
    for (u32 key = 0; key < TILE; key++) {
        int value = work.v[shared.rows[key] * work.head_dim + channel];
#pragma unroll
        for (u32 head = 0; head < HEADS; head++) sums[head] += (int)shared.weights[head][key] * value;
    }
}

// The first key that a token sees.
__device__ __forceinline__ int oldest_key(const Work& work, int position) {
    return position >= work.window ? position - work.window + 1 : 0;
}

// Computes tile `tile` into the shared arrays, and passes each channel's outputs to `merge`.
template <class F>
__device__ __forceinline__ void attend(
    Shared& shared, const Work& work, u32 token, u32 kv_head, u32 count, u32 tile, F merge) {
    int position = work.positions[token], oldest = oldest_key(work, position);
    u32 key = tile * TILE + threadIdx.x;
    bool visible = (int)key >= oldest && (int)key <= position;
    u64 row = cache_row(work, token, kv_head, key);
    shared.rows[threadIdx.x] = row;
    shared.v_scale[threadIdx.x] = work.v_scale[row];
    score(shared, work, row, visible, count);
    __syncthreads();
    weigh(shared, tile * TILE, oldest, position, count);
    __syncthreads();
    for (u32 channel = threadIdx.x; channel < work.head_dim; channel += TILE) {
        int sums[HEADS];
        weigh_values(shared, work, channel, sums);
        for (u32 head = 0; head < count; head++) merge(head, channel, (float)sums[head] * shared.weight_scale[head]);
    }
    __syncthreads();
}

struct Place {
    u32 token, kv_head, first, count;
};

// Which token, head of the cache and query heads a block has: those of `blockIdx.x`.
__device__ __forceinline__ Place place(const Work& work) {
    u32 group = work.heads / work.kv_heads, parts = (group + HEADS - 1) / HEADS;
    u32 part = blockIdx.x % parts, pair = blockIdx.x / parts;
    u32 first = pair % work.kv_heads * group + part * HEADS;
    return {pair / work.kv_heads, pair % work.kv_heads, first, min(HEADS, group - part * HEADS)};
}

// What of the queries that a block lacks is computed with all the same.
__device__ __forceinline__ void clear(Shared& shared) {
    if (threadIdx.x < HEADS) {
        shared.weight_scale[threadIdx.x] = shared.max[threadIdx.x] = shared.sum[threadIdx.x] = 0.0f;
    }
    for (u32 i = threadIdx.x; i < HEADS * TILE; i += TILE) shared.weights[i / TILE][i % TILE] = 0;
    __syncthreads();
}

// All tiles of a token, one after the other.
extern "C" __global__ void __launch_bounds__(TILE) attention(float* __restrict__ out, Work work) {
    __shared__ Shared shared;
    Place at = place(work);
    u64 first = (u64)at.token * work.heads + at.first;
    clear(shared);
    load_queries(shared, work, first, at.count);
    int position = work.positions[at.token];
    u32 from = (u32)oldest_key(work, position) / TILE, to = min((u32)(position + TILE) / TILE, work.tiles);
    for (u32 tile = from; tile < to; tile++) {
        attend(shared, work, at.token, at.kv_head, at.count, tile, [&](u32 head, u32 channel, float value) {
            Factors by = factors(shared.state.max[head], shared.max[head]);
            shared.state.out[head][channel] = shared.state.out[head][channel] * by.before + value * by.tile;
        });
        if (threadIdx.x < at.count) {
            Factors by = factors(shared.state.max[threadIdx.x], shared.max[threadIdx.x]);
            shared.state.sum[threadIdx.x] = shared.state.sum[threadIdx.x] * by.before + shared.sum[threadIdx.x] * by.tile;
            shared.state.max[threadIdx.x] = by.max;
        }
        __syncthreads();
    }
    for (u32 channel = threadIdx.x; channel < work.head_dim; channel += TILE) {
        for (u32 head = 0; head < at.count; head++) {
            out[(first + head) * work.head_dim + channel] = shared.state.out[head][channel] / shared.state.sum[head];
        }
    }
}

// One tile of a token, `blockIdx.y`, for long contexts of few tokens. `states` is [tiles, tokens, heads, head_dim + 2]: output,
// maximum and sum.
extern "C" __global__ void __launch_bounds__(TILE) attention_tile(float* __restrict__ states, Work work) {
    __shared__ Shared shared;
    Place at = place(work);
    int position = work.positions[at.token];
    u32 tile = blockIdx.y;
    if (tile < (u32)oldest_key(work, position) / TILE || tile * TILE > (u32)position) return;
    u64 first = (u64)at.token * work.heads + at.first, pitch = work.head_dim + 2;
    u64 tokens = gridDim.x / ((work.heads / work.kv_heads + HEADS - 1) / HEADS) / work.kv_heads;
    float* to = states + (tile * tokens * work.heads + first) * pitch;
    clear(shared);
    load_queries(shared, work, first, at.count);
    attend(shared, work, at.token, at.kv_head, at.count, tile, [=](u32 head, u32 channel, float value) {
        to[head * pitch + channel] = value;
    });
    if (threadIdx.x < at.count) {
        to[threadIdx.x * pitch + work.head_dim] = shared.max[threadIdx.x];
        to[threadIdx.x * pitch + work.head_dim + 1] = shared.sum[threadIdx.x];
    }
}

// Merges the states of a token's tiles in order: a block for each token and query head.
extern "C" __global__ void __launch_bounds__(TILE) attention_merge(
    float* __restrict__ out, const float* __restrict__ states, const int* __restrict__ positions, u32 heads, u32 head_dim,
    u32 tiles, int window) {
    u32 token = blockIdx.x / heads, pitch = head_dim + 2;
    int position = positions[token];
    u32 from = position >= window ? (u32)(position - window + 1) / TILE : 0, to = min((u32)(position + TILE) / TILE, tiles);
    for (u32 channel = threadIdx.x; channel < head_dim; channel += TILE) {
        float max = masked(), sum = 0.0f, value = 0.0f;
        for (u32 tile = from; tile < to; tile++) {
            const float* state = states + ((u64)tile * gridDim.x + blockIdx.x) * pitch;
            Factors by = factors(max, state[head_dim]);
            value = value * by.before + state[channel] * by.tile;
            sum = sum * by.before + state[head_dim + 1] * by.tile;
            max = by.max;
        }
        out[(u64)blockIdx.x * head_dim + channel] = value / sum;
    }
}
