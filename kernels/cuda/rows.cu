// Operations of whole rows. A block of SUM_LANES threads has a row, and each thread a lane of its sum (rule R5).
#include "contract.cuh"

// Floats of a row that a block keeps in shared memory; of longer rows it reads the device's again.
constexpr u32 ROW_MAX = 8192;

// Copies a row of a multiple of four values in accesses of 16 bytes.
__device__ __forceinline__ void stage_fours(float* __restrict__ row, const float* __restrict__ x, u32 n) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < n / 4; i += SUM_LANES) ((float4*)row)[i] = ((const float4*)x)[i];
    __syncthreads();
}

// Copies a row.
__device__ __forceinline__ void stage(float* __restrict__ row, const float* __restrict__ x, u32 n) {
    if (n % 4 == 0) return stage_fours(row, x, n);
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) row[i] = x[i];
    __syncthreads();
}

// 1 / sqrt(sum(x * x) * (1 / n) + eps)
template <class F>
__device__ __forceinline__ float reciprocal_root(u32 n, float reciprocal_n, float eps, SumOf& shared, F x) {
    float lane = 0.0f;
#pragma unroll 8
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) {
        float value = x(i);
        lane = lane + value * value;
    }
    return 1.0f / sqrtf(block_sum(lane, shared) * reciprocal_n + eps);
}

// out[i] = f(x[i], weight[i]), four at a time where rows are aligned.
template <class F>
__device__ __forceinline__ void map_row(
    float* __restrict__ out, const float* x, const float* __restrict__ weight, u32 n, F f) {
    if (n % 4 == 0) {
#pragma unroll 4
        for (u32 i = threadIdx.x; i < n / 4; i += SUM_LANES) {
            float4 v = ((const float4*)x)[i], w = ((const float4*)weight)[i];
            ((float4*)out)[i] = {f(v.x, w.x), f(v.y, w.y), f(v.z, w.z), f(v.w, w.w)};
        }
    } else {
        for (u32 i = threadIdx.x; i < n; i += SUM_LANES) out[i] = f(x[i], weight[i]);
    }
}

__device__ __forceinline__ void norm_row(
    float* __restrict__ out, const float* x, const float* __restrict__ weight, u32 n, float reciprocal_n,
    float eps, SumOf& shared) {
    float r = reciprocal_root(n, reciprocal_n, eps, shared, [=](u32 i) { return x[i]; });
    map_row(out, x, weight, n, [=](float x, float w) { return (x * r) * w; });
}

// decompose::rms_norm, `reciprocal_n` being 1 / n.
extern "C" __global__ void __launch_bounds__(SUM_LANES) rms_norm(
    float* __restrict__ out, const float* __restrict__ x, const float* __restrict__ weight, u32 n,
    float reciprocal_n, float eps) {
    __shared__ SumOf shared;
    __shared__ alignas(16) float row[ROW_MAX];
    x += (u64)blockIdx.x * n;
    out += (u64)blockIdx.x * n;
    if (n > ROW_MAX) return norm_row(out, x, weight, n, reciprocal_n, eps, shared);
    stage(row, x, n);
    norm_row(out, row, weight, n, reciprocal_n, eps, shared);
}

// decompose::layer_norm
extern "C" __global__ void __launch_bounds__(SUM_LANES) layer_norm(
    float* __restrict__ out, const float* __restrict__ x, const float* __restrict__ weight,
    const float* __restrict__ bias, u32 n, float reciprocal_n, float eps) {
    __shared__ SumOf shared;
    x += (u64)blockIdx.x * n;
    out += (u64)blockIdx.x * n;
    float lane = 0.0f;
#pragma unroll 8
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) lane = lane + x[i];
    float mean = block_sum(lane, shared) * reciprocal_n;
    float r = reciprocal_root(n, reciprocal_n, eps, shared, [=](u32 i) { return x[i] - mean; });
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) out[i] = (((x[i] - mean) * r) * weight[i]) + bias[i];
}

// decompose::softmax of a row. The exponentials wait in `out`, where each thread finds its own.
__device__ __forceinline__ void softmax_row(float* __restrict__ out, const float* __restrict__ x, u32 n) {
    __shared__ SumOf shared;
    float largest = x[0];
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) largest = max_of(largest, x[i]);
    largest = block_max(largest, shared);
    float lane = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) {
        float e = exp_of(x[i] - largest);
        out[i] = e;
        lane = lane + e;
    }
    float sum = block_sum(lane, shared);
    for (u32 i = threadIdx.x; i < n; i += SUM_LANES) out[i] = out[i] / sum;
}

extern "C" __global__ void __launch_bounds__(SUM_LANES) softmax(float* out, const float* x, u32 n) {
    u64 start = (u64)blockIdx.x * n;
    softmax_row(out + start, x + start, n);
}

// Where a probability stands among those of a row: the greater first, and of equal ones that of the lower index. All of a row
// of NaN are equal; others are +0 or more, so that their bits are in their order.
__device__ __forceinline__ u64 rank(float p, u32 index) {
    return (u64)(p == p ? __float_as_uint(p) : 0) << 32 | ~index;
}

__device__ __forceinline__ u64 warp_greatest(u64 x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// decompose::route. A block for each token, whose probabilities are in `probabilities` [tokens, n]; its first warp chooses.
extern "C" __global__ void __launch_bounds__(SUM_LANES) route(
    int* __restrict__ experts, float* __restrict__ weights, float* probabilities, const float* __restrict__ logits, u32 n,
    u32 top_k, u32 normalize) {
    u32 lane = threadIdx.x;
    probabilities += (u64)blockIdx.x * n, logits += (u64)blockIdx.x * n;
    experts += (u64)blockIdx.x * top_k, weights += (u64)blockIdx.x * top_k;
    softmax_row(probabilities, logits, n);
    __syncthreads();
    if (lane >= WARP) return;
    u64 last = ~0ull;
    float sum = 0.0f;
    for (u32 choice = 0; choice < top_k; choice++) {
        u64 greatest = 0;
        for (u32 i = lane; i < n; i += WARP) {
            u64 of = rank(probabilities[i], i);
            if (of < last) greatest = max(greatest, of);
        }
        last = warp_greatest(greatest);
        u32 expert = ~(u32)last;
        float p = probabilities[expert];
        // What is +0 or more is the same after +0 is added.
        sum = sum + p;
        if (lane == choice % WARP) experts[choice] = (int)expert, weights[choice] = p;
    }
    if (normalize == 0) return;
    for (u32 choice = lane; choice < top_k; choice += WARP) weights[choice] = weights[choice] / sum;
}

// decompose::rope. A thread for each pair of channels (i, i + half), and for each channel past them.
extern "C" __global__ void rope(
    float* __restrict__ out, const float* __restrict__ x, const int* __restrict__ positions,
    const float* __restrict__ cosines, const float* __restrict__ sines, u32 n, u32 heads, u32 head_dim, u32 half,
    u32 rows, u32 op, Fault* fault) {
    u32 work = head_dim - half;
    for (u64 at = first_index(); at < n; at += index_stride()) {
        u32 head = (u32)at / work, i = (u32)at - head * work;
        const float* from = x + (u64)head * head_dim;
        float* to = out + (u64)head * head_dim;
        if (i >= half) {
            to[half + i] = from[half + i];
            continue;
        }
        int position = positions[head / heads];
        if (!is_row(position, rows, op, fault)) position = 0;
        float c = cosines[(u64)position * half + i], s = sines[(u64)position * half + i];
        float x0 = from[i], x1 = from[half + i];
        to[i] = x0 * c - x1 * s;
        to[half + i] = x1 * c + x0 * s;
    }
}

// decompose::quantize_blocks of one block of `WARP * PER_LANE` values, by a warp; `value` gives each.
template <u32 PER_LANE, class F>
__device__ __forceinline__ void quantize_block(i8* __restrict__ q, float* __restrict__ scale, F value) {
    u32 lane = threadIdx.x % WARP;
    float values[PER_LANE], largest = 0.0f;
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) {
        values[i] = value(lane + i * WARP);
        largest = max_of(largest, fabsf(values[i]));
    }
    Q8Scale of = q8_scale(warp_max(largest));
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) q[lane + i * WARP] = q8_value(values[i], of.inverse);
    if (lane == 0) *scale = of.scale;
}

// Blocks of values that `value` gives by their index, a warp for each block.
template <u32 PER_LANE, class F>
__device__ __forceinline__ void quantize_values(
    i8* __restrict__ q, float* __restrict__ scales, u32 blocks, F value) {
    u32 block = (u32)(first_index() / WARP);
    if (block >= blocks) return;
    u64 start = (u64)block * WARP * PER_LANE;
    quantize_block<PER_LANE>(q + start, scales + block, [=](u32 i) { return value(start + i); });
}

// The blocks of a row that was normalised.
template <u32 PER_LANE>
__device__ __forceinline__ void quantize_norm_row(
    i8* __restrict__ q, float* __restrict__ scales, const float* x, const float* __restrict__ weight, u32 n,
    float reciprocal_n, float eps, SumOf& shared) {
    constexpr u32 LEN = WARP * PER_LANE;
    float r = reciprocal_root(n, reciprocal_n, eps, shared, [=](u32 i) { return x[i]; });
    for (u32 block = threadIdx.x / WARP; block < n / LEN; block += SUM_LANES / WARP) {
        u32 start = block * LEN;
        quantize_block<PER_LANE>(
            q + start, scales + block, [=](u32 i) { return (x[start + i] * r) * weight[start + i]; });
    }
}

// decompose::rms_norm, then decompose::quantize_blocks.
template <u32 PER_LANE>
__device__ __forceinline__ void quantize_norm(
    i8* __restrict__ q, float* __restrict__ scales, const float* __restrict__ x, const float* __restrict__ weight,
    u32 n, float reciprocal_n, float eps) {
    __shared__ SumOf shared;
    __shared__ alignas(16) float row[ROW_MAX];
    x += (u64)blockIdx.x * n;
    q += (u64)blockIdx.x * n;
    scales += (u64)blockIdx.x * (n / (WARP * PER_LANE));
    if (n > ROW_MAX) {
        return quantize_norm_row<PER_LANE>(q, scales, x, weight, n, reciprocal_n, eps, shared);
    }
    stage_fours(row, x, n);
    quantize_norm_row<PER_LANE>(q, scales, row, weight, n, reciprocal_n, eps, shared);
}

#define QUANTIZE(len)                                                                                              \
    extern "C" __global__ void quantize_##len(i8* q, float* scales, const float* x, u32 blocks) {                  \
        quantize_values<len / WARP>(q, scales, blocks, [=](u64 i) { return x[i]; });                               \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(SUM_LANES) quantize_norm_##len(                                   \
        i8* q, float* scales, const float* x, const float* weight, u32 n, float reciprocal_n, float eps) {         \
        quantize_norm<len / WARP>(q, scales, x, weight, n, reciprocal_n, eps);                                     \
    }                                                                                                              \
    extern "C" __global__ void quantize_silu_##len(                                                                \
        i8* q, float* scales, const float* gate, const float* up, u32 blocks) {                                    \
        quantize_values<len / WARP>(q, scales, blocks, [=](u64 i) { return silu(gate[i]) * up[i]; });              \
    }                                                                                                              \
    extern "C" __global__ void quantize_gelu_tanh_##len(                                                           \
        i8* q, float* scales, const float* gate, const float* up, u32 blocks) {                                    \
        quantize_values<len / WARP>(q, scales, blocks, [=](u64 i) { return gelu_tanh(gate[i]) * up[i]; });         \
    }

QUANTIZE(32)
QUANTIZE(256)

// Quantises channels `first..last` of a head in one block, by a warp; `value` gives each.
template <class F>
__device__ __forceinline__ void quantize_channels(
    i8* __restrict__ q, float* __restrict__ scale, u32 first, u32 last, F value) {
    u32 lane = threadIdx.x % WARP;
    float largest = 0.0f;
    for (u32 i = first + lane; i < last; i += WARP) largest = max_of(largest, fabsf(value(i)));
    Q8Scale of = q8_scale(warp_max(largest));
    for (u32 i = first + lane; i < last; i += WARP) q[i] = q8_value(value(i), of.inverse);
    if (lane == 0) *scale = of.scale;
}

struct Cache {
    i8* k;
    float* k_scales;
    i8* v;
    float* v_scales;
    u32 kv_heads, head_dim, page_size;
};

// Stores a head's key and value, whose channels `k` and `v` give, in a slot, by a warp.
template <class K, class V>
__device__ __forceinline__ void store_head(const Cache& cache, u32 head, u32 slot, K k, V v) {
    u32 page = slot / cache.page_size, offset = slot % cache.page_size;
    u64 row = ((u64)page * cache.kv_heads + head) * cache.page_size + offset;
    u32 blocks = (cache.head_dim + HEAD_BLOCK - 1) / HEAD_BLOCK;
    for (u32 block = 0; block < blocks; block++) {
        u32 last = min((block + 1) * HEAD_BLOCK, cache.head_dim);
        i8* to = cache.k + row * cache.head_dim;
        quantize_channels(to, cache.k_scales + row * blocks + block, block * HEAD_BLOCK, last, k);
    }
    quantize_channels(cache.v + row * cache.head_dim, cache.v_scales + row, 0, cache.head_dim, v);
}

// decompose::store_kv. A warp for each token and head.
extern "C" __global__ void store_kv(
    i8* __restrict__ k_cache, float* __restrict__ k_scales, i8* __restrict__ v_cache, float* __restrict__ v_scales,
    const float* __restrict__ k, const float* __restrict__ v, const int* __restrict__ slots, u32 tokens,
    u32 kv_heads, u32 head_dim, u32 page_size, u32 slots_of_cache, u32 op, Fault* fault) {
    u32 warp = (u32)(first_index() / WARP);
    if (warp >= tokens * kv_heads) return;
    u32 token = warp / kv_heads, head = warp % kv_heads;
    int slot = slots[token];
    if (!is_row(slot, slots_of_cache, op, fault)) return;
    Cache cache = {k_cache, k_scales, v_cache, v_scales, kv_heads, head_dim, page_size};
    k += (u64)warp * head_dim;
    v += (u64)warp * head_dim;
    store_head(cache, head, (u32)slot, [=](u32 i) { return k[i]; }, [=](u32 i) { return v[i]; });
}

// A channel of a head as decompose::rope rotates it by a token's angles.
__device__ __forceinline__ float rotated(
    const float* __restrict__ x, const float* __restrict__ cosines, const float* __restrict__ sines, u32 half, u32 i) {
    if (i >= 2 * half) return x[i];
    if (i < half) return x[i] * cosines[i] - x[half + i] * sines[i];
    return x[i] * cosines[i - half] + x[i - half] * sines[i - half];
}

// decompose::rope of queries and keys, and decompose::store_kv of these keys. A warp for each token and head, the
// token's query heads before its key-value heads.
extern "C" __global__ void rotate_and_store(
    float* __restrict__ q_out, const float* __restrict__ q, i8* __restrict__ k_cache, float* __restrict__ k_scales,
    i8* __restrict__ v_cache, float* __restrict__ v_scales, const float* __restrict__ k, const float* __restrict__ v,
    const int* __restrict__ positions, const float* __restrict__ cosines, const float* __restrict__ sines,
    const int* __restrict__ slots, u32 tokens, u32 heads, u32 kv_heads, u32 head_dim, u32 half, u32 angles,
    u32 page_size, u32 slots_of_cache, u32 rope, u32 store, Fault* fault) {
    u32 warp = (u32)(first_index() / WARP), of_token = heads + kv_heads;
    if (warp >= tokens * of_token) return;
    u32 token = warp / of_token, head = warp % of_token;
    int position = positions[token];
    if (!is_row(position, angles, rope, fault)) position = 0;
    cosines += (u64)position * half;
    sines += (u64)position * half;
    if (head < heads) {
        u64 start = ((u64)token * heads + head) * head_dim;
        for (u32 i = threadIdx.x % WARP; i < head_dim; i += WARP) {
            q_out[start + i] = rotated(q + start, cosines, sines, half, i);
        }
        return;
    }
    int slot = slots[token];
    if (!is_row(slot, slots_of_cache, store, fault)) return;
    Cache cache = {k_cache, k_scales, v_cache, v_scales, kv_heads, head_dim, page_size};
    head -= heads;
    k += ((u64)token * kv_heads + head) * head_dim;
    v += ((u64)token * kv_heads + head) * head_dim;
    store_head(
        cache, head, (u32)slot, [=](u32 i) { return rotated(k, cosines, sines, half, i); },
        [=](u32 i) { return v[i]; });
}
