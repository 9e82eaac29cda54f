// Mixtures of experts (decompose::experts): the order of pairs, layers over weights in blocks, and the sum of a token's experts.
#include "experts.cuh"
#include "linear_many_256.cuh"
#include "linear_many_32.cuh"

// The sum of a number of every thread, for every thread.
__device__ __forceinline__ u32 block_total(u32 x, u32 (&shared)[WARPS]) {
    x = __reduce_add_sync(ALL_LANES, x);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    u32 total = 0;
#pragma unroll
    for (u32 warp = 0; warp < WARPS; warp++) total += shared[warp];
    __syncthreads();
    return total;
}

// Puts pairs in the order of their experts, those of one as they come: `tokens` has their tokens in that order, `places` where each is.
// A block has an expert. Its groups are of TILE pairs; they begin at `first / TILE + expert`, which leaves room for those of the
// experts before it, and go on to where the next expert's begin.
template <u32 TILE>
__device__ __forceinline__ void sort_pairs(
    int* __restrict__ tokens, int* __restrict__ places, Group* __restrict__ groups, const int* __restrict__ ids, u32 pairs,
    u32 choices, u32 count, u32 op, Fault* fault) {
    __shared__ u32 shared[WARPS];
    u32 expert = blockIdx.x, before = 0, own = 0;
    for (u32 pair = threadIdx.x; pair < pairs; pair += THREADS) {
        u32 of = expert_of(ids[pair], count, op, fault);
        before += of < expert, own += of == expert;
    }
    u32 first = block_total(before, shared), end = first + block_total(own, shared), next = first;
    for (u32 start = 0; start < pairs; start += THREADS) {
        u32 pair = start + threadIdx.x;
        bool is_own = pair < pairs && expert_of(ids[pair], count, op, fault) == expert;
        u32 warp = threadIdx.x / WARP, mask = __ballot_sync(ALL_LANES, is_own);
        if (threadIdx.x % WARP == 0) shared[warp] = __popc(mask);
        __syncthreads();
        u32 place = next + __popc(mask & ((1u << threadIdx.x % WARP) - 1));
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) place += i < warp ? shared[i] : 0, next += shared[i];
        if (is_own) tokens[place] = (int)(pair / choices), places[pair] = (int)place;
        __syncthreads();
    }
    u32 from = first / TILE + expert, to = end / TILE + expert + 1;
    for (u32 i = threadIdx.x; i < to - from; i += THREADS) {
        u32 start = min(first + i * TILE, end);
        groups[from + i] = {expert, start, min(start + TILE, end)};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) experts_sort(
    int* tokens, int* places, Group* groups, const int* ids, u32 pairs, u32 choices, u32 count, u32 op, Fault* fault) {
    sort_pairs<Int8Dots::TOKENS>(tokens, places, groups, ids, pairs, choices, count, op, fault);
}

// Each of `count` outputs [tokens, n]: those of a token's pairs, `y` [pairs, n], weighted and added in order. `places` says where pairs
// are, if they are in another order.
extern "C" __global__ void experts_sum(
    float* __restrict__ out, const float* __restrict__ y, const float* __restrict__ weights, const int* __restrict__ places,
    u32 count, u32 choices, u32 n) {
    for (u64 at = first_index(); at < count; at += index_stride()) {
        u32 token = (u32)at / n, i = (u32)at - token * n;
        float sum = 0.0f;
        for (u32 choice = 0; choice < choices; choice++) {
            u64 pair = (u64)token * choices + choice, place = places == nullptr ? pair : (u64)places[pair];
            float term = without_tiny(y[place * n + i]) * without_tiny(weights[pair]);
            sum = choice == 0 ? term : sum + term;
        }
        out[at] = sum;
    }
}

// A block of threads has some rows of an expert, and a pair: `blockIdx.y`, whose token is row `pair / per_row` of `xq`.
#define EXPERTS_FEW(name, K)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS, 4) name(                                                    \
        float* out, const i8* xq, const float* xd, const u32* upper, const u32* lower, const u16* scale,              \
        const u8* sub_scale, const u8* sub_min, const int* ids, u32 per_row, u32 count, u32 n, u32 k, u32 op,         \
        Fault* fault) {                                                                                               \
        u32 expert = expert_of(ids[blockIdx.y], count, op, fault);                                                    \
        Weights weights = from_row<K>({upper, lower, scale, sub_scale, sub_min}, (u64)expert * n, k);                 \
        few<K, 1>(out, xq, xd, weights, blockIdx.y, blockIdx.y / per_row, 1, n, k);                                   \
    }

// A block of threads has 64 rows of an expert, and a group of its pairs, whose tokens are in their order.
#define EXPERTS_MANY(name, TILE, K)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) name(                                                    \
        float* out, const void* x, const float* d, const i8* sums, const u32* upper, const u32* lower,                \
        const u16* scale, const u8* sub_scale, const u8* sub_min, const Group* groups, u32 n, u32 k) {                \
        Group group = groups[blockIdx.y];                                                                             \
        if (group.first == group.end) return;                                                                         \
        Weights weights = from_row<K>({upper, lower, scale, sub_scale, sub_min}, (u64)group.expert * n, k);           \
        many(out, TILE<K, Int8Dots>(weights, x, d, nullptr, sums, group.first, group.end, n, k));                     \
    }

#define EXPERTS(name, TILE, K)            \
    EXPERTS_FEW(experts_##name##_few, K)  \
    EXPERTS_MANY(experts_##name##_many, TILE, K)

EXPERTS(q4_0, Tile32, Q4_0)
EXPERTS(q4_1, Tile32, Q4_1)
EXPERTS(q5_0, Tile32, Q5_0)
EXPERTS(q5_1, Tile32, Q5_1)
EXPERTS(q8_0, Tile32, Q8_0)
EXPERTS(iq4_nl, Tile32, Iq4Nl)
EXPERTS(mxfp4, Tile32, Mxfp4)
EXPERTS(q2_k, Tile256, Q2K)
EXPERTS(q3_k, Tile256, Q3K)
EXPERTS(q4_k, Tile256, Q4K)
EXPERTS(q5_k, Tile256, Q5K)
EXPERTS(q6_k, Tile256, Q6K)
