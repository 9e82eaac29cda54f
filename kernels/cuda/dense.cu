// Linear layers over float weights (decompose::linear): products are summed in order within a span of 512 columns, and spans are
// added in order (rule R5). Columns come in eights. Activations are f32 that `operands` has made.
#include "experts.cuh"
#include "matrix.cuh"

constexpr u32 SPAN = 512;
constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;
// Columns that are read at once.
constexpr u32 EACH = 8;

// Types of weights: an activation rounded to it, `sum + w * x`, and EACH weights as f32, without what is tiny.
template <float (*WIDEN)(u16), u16 (*NARROW)(float)>
struct Half {
    typedef u16 Stored;
    static __device__ __forceinline__ float rounded(float x) { return WIDEN(NARROW(x)); }
    // Products of 16-bit floats are exact in f32.
    static __device__ __forceinline__ float add(float sum, float w, float x) { return fma_of_exact_product(w, x, sum); }
    static __device__ __forceinline__ void read(float (&to)[EACH], const u16* from) {
        uint4 x = *(const uint4*)from;
        u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (u32 i = 0; i < EACH; i++) to[i] = without_tiny(WIDEN((u16)(words[i / 2] >> (16 * (i % 2)))));
    }
};

typedef Half<f32_of_f16, f16_of_f32> F16;
typedef Half<f32_of_bf16, bf16_of_f32> BF16;

__device__ __forceinline__ void read_floats(float (&to)[EACH], const float* from) {
    float4 low = ((const float4*)from)[0], high = ((const float4*)from)[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

struct F32 {
    typedef float Stored;
    static __device__ __forceinline__ float rounded(float x) { return x; }
    static __device__ __forceinline__ float add(float sum, float w, float x) { return sum + w * x; }
    static __device__ __forceinline__ void read(float (&to)[EACH], const float* from) {
        read_floats(to, from);
#pragma unroll
        for (u32 i = 0; i < EACH; i++) to[i] = without_tiny(to[i]);
    }
};

template <class T>
__device__ __forceinline__ void operands(float* __restrict__ out, const float* __restrict__ x, u64 n) {
    for (u64 i = first_index(); i < n; i += index_stride()) out[i] = without_tiny(T::rounded(x[i]));
}

// Few tokens: a block of threads has 32 rows, a lane one of them, and warps share the spans. Each warp brings CHUNK columns of
// all rows to shared memory at a time, in accesses that follow each other in a row, while it computes with those before.
constexpr u32 CHUNK_BYTES = 128;
constexpr u32 STAGES = 3;
// Bytes from a row in shared memory to the next: 16 more than it has, so that eight rows are in banks of their own.
constexpr u32 PITCH = CHUNK_BYTES + 16;
// Spans whose sums wait in shared memory.
constexpr u32 SPANS = 16;

template <u32 M>
struct Shared {
    alignas(16) u8 rows[WARPS][STAGES][WARP][PITCH];
    float sums[SPANS][M][WARP];
};

// The chunks of a warp's spans, one after the other.
template <class T>
struct Chunks {
    typedef typename T::Stored Stored;
    static constexpr u32 COLUMNS = CHUNK_BYTES / sizeof(Stored), OF_SPAN = SPAN / COLUMNS;

    u8 (&rows)[STAGES][WARP][PITCH];
    const Stored* __restrict__ weights;
    u32 warp, lane, first_row, n, k;

    // The first column of a chunk.
    __device__ __forceinline__ u32 column(u32 chunk) const {
        return (chunk / OF_SPAN * WARPS + warp) * SPAN + chunk % OF_SPAN * COLUMNS;
    }

    __device__ __forceinline__ void load(u32 chunk) {
        constexpr u32 PARTS = CHUNK_BYTES / 16;
        u32 part = lane % PARTS, at = column(chunk) + part * (16 / sizeof(Stored));
        if (at < k) {
#pragma unroll
            for (u32 i = 0; i < PARTS; i++) {
                u32 row = i * (WARP / PARTS) + lane / PARTS;
                const Stored* from = weights + (u64)min(first_row + row, n - 1) * k + at;
                copy_later<16>(&rows[chunk % STAGES][row][part * 16], from, true);
            }
        }
        end_group();
    }

    // Adds a chunk of this lane's row times the tokens.
    template <u32 M>
    __device__ __forceinline__ void add(float (&sums)[M], u32 chunk, const float* x, u32 m) const {
        const Stored* row = (const Stored*)rows[chunk % STAGES][lane];
        u32 first = column(chunk), columns = min(COLUMNS, k - first);
#pragma unroll 2
        for (u32 at = 0; at < columns; at += EACH) {
            float w[EACH];
            T::read(w, row + at);
#pragma unroll
            for (u32 t = 0; t < M; t++) {
                float values[EACH];
                read_floats(values, x + (u64)min(t, m - 1) * k + first + at);
#pragma unroll
                for (u32 i = 0; i < EACH; i++) sums[t] = T::add(sums[t], w[i], values[i]);
            }
        }
    }
};

template <class T, u32 M>
__device__ __forceinline__ void few(
    float* __restrict__ out, const float* __restrict__ x, const typename T::Stored* __restrict__ weights, u32 to, u32 from,
    u32 m, u32 n, u32 k) {
    out += (u64)to * n, x += (u64)from * k;
    extern __shared__ __align__(16) u8 dynamic[];
    Shared<M>& shared = *(Shared<M>*)dynamic;
    constexpr u32 OF_SPAN = Chunks<T>::OF_SPAN, PAIRS = M * WARP, OWN = (PAIRS + THREADS - 1) / THREADS;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, spans = (k + SPAN - 1) / SPAN;
    Chunks<T> chunks = {shared.rows[warp], weights, warp, lane, blockIdx.x * WARP, n, k};
    float totals[OWN] = {};
    for (u32 chunk = 0; chunk < STAGES - 1; chunk++) chunks.load(chunk);
    for (u32 first = 0; first < spans; first += SPANS) {
        u32 last = min(first + SPANS, spans);
        for (u32 span = first + warp; span < last; span += WARPS) {
            float sums[M] = {};
            for (u32 i = 0; i < OF_SPAN; i++) {
                u32 chunk = span / WARPS * OF_SPAN + i;
                wait_groups<STAGES - 2>();
                __syncwarp();
                chunks.load(chunk + STAGES - 1);
                if (chunks.column(chunk) < k) chunks.add(sums, chunk, x, m);
            }
#pragma unroll
            for (u32 t = 0; t < M; t++) shared.sums[span - first][t][lane] = sums[t];
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            u32 pair = i * THREADS + threadIdx.x;
            if (pair >= PAIRS) continue;
            for (u32 span = 0; span < last - first; span++) {
                totals[i] = totals[i] + shared.sums[span][pair / WARP][pair % WARP];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        u32 pair = i * THREADS + threadIdx.x, token = pair / WARP, row = blockIdx.x * WARP + pair % WARP;
        if (pair < PAIRS && token < m && row < n) out[(u64)token * n + row] = totals[i];
    }
}

// Many tokens: a block of threads has 64 rows by 64 tokens, a thread 8 by 4 of them, DEPTH columns at a time, which wait in
// registers while those before are multiplied.
constexpr u32 SIDE = 64;
constexpr u32 DEPTH = 16;
constexpr u32 OWN_ROWS = 8;
constexpr u32 OWN_TOKENS = 4;

struct Operands {
    // Column by column. Lanes that read four elements at once begin at multiples of 16 bytes.
    alignas(16) float w[DEPTH][SIDE];
    alignas(16) float x[DEPTH][SIDE];
};

// A thread reads EACH columns of a row and of a token: of number `threadIdx.x % SIDE`, from column `threadIdx.x / SIDE * EACH` on.
template <class T>
struct Reader {
    const typename T::Stored* __restrict__ w;
    const float* __restrict__ x;
    u32 k;
    float next_w[EACH], next_x[EACH];

    __device__ __forceinline__ void read(u32 column) {
        u32 at = column + threadIdx.x / SIDE * EACH;
        if (at >= k) return;
        T::read(next_w, w + at);
        read_floats(next_x, x + at);
    }

    __device__ __forceinline__ void write(Operands& to) const {
        u32 first = threadIdx.x / SIDE * EACH, of = threadIdx.x % SIDE;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) to.w[first + i][of] = next_w[i], to.x[first + i][of] = next_x[i];
    }
};

// Adds the products of some columns to a thread's sums.
template <class T>
__device__ __forceinline__ void multiply(
    float (&sums)[OWN_ROWS][OWN_TOKENS], const Operands& from, u32 columns, u32 first_row, u32 first_token) {
#pragma unroll 1
    for (u32 first = 0; first < columns; first += EACH) {
#pragma unroll
        for (u32 column = first; column < first + EACH; column++) {
            float w[EACH];
            read_floats(w, &from.w[column][first_row]);
            float4 tokens = *(const float4*)&from.x[column][first_token];
            float x[OWN_TOKENS] = {tokens.x, tokens.y, tokens.z, tokens.w};
#pragma unroll
            for (u32 i = 0; i < OWN_ROWS * OWN_TOKENS; i++) {
                float& sum = sums[i / OWN_TOKENS][i % OWN_TOKENS];
                sum = T::add(sum, w[i / OWN_TOKENS], x[i % OWN_TOKENS]);
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void many(
    float* __restrict__ out, const float* __restrict__ x, const typename T::Stored* __restrict__ weights, u32 first_token,
    u32 m, u32 n, u32 k) {
    __shared__ Operands shared[2];
    u32 first_row = blockIdx.x * SIDE, of = threadIdx.x % SIDE;
    u32 own_row = threadIdx.x / (SIDE / OWN_TOKENS) * OWN_ROWS, own_token = threadIdx.x % (SIDE / OWN_TOKENS) * OWN_TOKENS;
    Reader<T> reader = {
        weights + (u64)min(first_row + of, n - 1) * k, x + (u64)min(first_token + of, m - 1) * k, k, {}, {}};
    float sums[OWN_ROWS][OWN_TOKENS] = {}, totals[OWN_ROWS][OWN_TOKENS] = {};
    reader.read(0);
    for (u32 column = 0; column < k; column += DEPTH) {
        Operands& operands = shared[column / DEPTH % 2];
        reader.write(operands);
        __syncthreads();
        reader.read(column + DEPTH);
        u32 columns = min(DEPTH, k - column);
        multiply<T>(sums, operands, columns, own_row, own_token);
        if ((column + DEPTH) % SPAN != 0 && column + DEPTH < k) continue;
#pragma unroll
        for (u32 i = 0; i < OWN_ROWS * OWN_TOKENS; i++) {
            u32 row = i / OWN_TOKENS, token = i % OWN_TOKENS;
            totals[row][token] = totals[row][token] + sums[row][token];
            sums[row][token] = 0.0f;
        }
    }
#pragma unroll
    for (u32 i = 0; i < OWN_ROWS * OWN_TOKENS; i++) {
        u32 row = first_row + own_row + i / OWN_TOKENS, token = first_token + own_token + i % OWN_TOKENS;
        if (row < n && token < m) out[(u64)token * n + row] = totals[i / OWN_TOKENS][i % OWN_TOKENS];
    }
}

#define FEW(name, T, M)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                             \
        name(float* out, const float* x, const T::Stored* weights, u32 m, u32 n, u32 k) {                                \
        few<T, M>(out, x, weights, 0, 0, m, n, k);                                                                       \
    }
#define DENSE(name, T)                                                                                                   \
    extern "C" __global__ void dense_operands_##name(float* out, const float* x, u64 n) { operands<T>(out, x, n); }      \
    FEW(dense_##name##_1, T, 1)                                                                                          \
    FEW(dense_##name##_2, T, 2)                                                                                          \
    FEW(dense_##name##_4, T, 4)                                                                                          \
    FEW(dense_##name##_8, T, 8)                                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                \
        dense_##name##_many(float* out, const float* x, const T::Stored* weights, u32 m, u32 n, u32 k) {                 \
        many<T>(out, x, weights, blockIdx.y * SIDE, m, n, k);                                                                               \
    }

// Of an expert's rows, as in experts.cu.
#define EXPERTS(name, T)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) experts_##name##_few(                                       \
        float* out, const float* x, const T::Stored* weights, const int* ids, u32 per_row, u32 count, u32 n, u32 k,      \
        u32 op, Fault* fault) {                                                                                          \
        weights += (u64)expert_of(ids[blockIdx.y], count, op, fault) * n * k;                                            \
        few<T, 1>(out, x, weights, blockIdx.y, blockIdx.y / per_row, 1, n, k);                                           \
    }                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) experts_##name##_many(                                         \
        float* out, const float* x, const T::Stored* weights, const Group* groups, u32 n, u32 k) {                       \
        Group group = groups[blockIdx.y];                                                                                \
        if (group.first == group.end) return;                                                                            \
        many<T>(out, x, weights + (u64)group.expert * n * k, group.first, group.end, n, k);                              \
    }

#define KERNELS(name, T) DENSE(name, T) EXPERTS(name, T)

KERNELS(f16, F16)
KERNELS(bf16, BF16)
KERNELS(f32, F32)
