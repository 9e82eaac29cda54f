// Linear layers over weights in blocks (decompose::linear). Integer dots are exact; each block adds one float term to the sum
// of its span of 512 columns, in order, and spans are added in order (rule R5).
//
// Kinds of weights: BLOCK columns have a scale. Of 256, each SUB have an integer scale of their own. MIN says whether there is
// a minimum for each.
#include "contract.cuh"

constexpr u32 SPAN = 512;
// Columns of an integer dot of one lane, or of one matrix instruction.
constexpr u32 UNIT = 32;
constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * WARP;

// A weight matrix [n, k]; parts that a kind lacks are null.
struct Weights {
    const i8* __restrict__ q;
    const float* __restrict__ scale;
    const float* __restrict__ min;
    const i8* __restrict__ sub_scale;
    const u8* __restrict__ sub_min;
};

// The 32 integers of a unit.
struct Integers {
    int words[UNIT / 4];

    __device__ __forceinline__ explicit Integers(const i8* from) {
        int4 low = ((const int4*)from)[0], high = ((const int4*)from)[1];
        words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
        words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
    }
};

// Dot of part `part` of two units, of LEN columns.
template <u32 LEN>
__device__ __forceinline__ int dot(const Integers& a, const Integers& b, u32 part) {
    int sum = 0;
#pragma unroll
    for (u32 i = 0; i < LEN / 4; i++) sum = __dp4a(a.words[part * LEN / 4 + i], b.words[part * LEN / 4 + i], sum);
    return sum;
}

template <u32 LEN>
__device__ __forceinline__ int sum_of(const Integers& a, u32 part) {
    int sum = 0;
#pragma unroll
    for (u32 i = 0; i < LEN / 4; i++) sum = __dp4a(a.words[part * LEN / 4 + i], 0x01010101, sum);
    return sum;
}

// What a block adds: its scale times its integer sum, with its minimum if it has one, times the activation's scale.
template <bool MIN>
__device__ __forceinline__ float block_term_32(float scale, int isum, float min, int xsum, float d) {
    float sum = scale * (float)isum;
    if (MIN) sum = sum + min * (float)xsum;
    return sum * d;
}

template <bool MIN>
__device__ __forceinline__ float block_term_256(float scale, int isum, float min, int msum, float d) {
    float sum = scale * (float)isum;
    if (MIN) sum = sum - min * (float)msum;
    return sum * d;
}

// The term of a lane's unit; of blocks of 256, the term of the block that eight lanes have, for each of them.
template <u32 BLOCK, u32 SUB, bool MIN>
__device__ __forceinline__ float term(const Weights& weights, const Integers& w, const Integers& x, u64 unit, float d) {
    if (BLOCK == UNIT) {
        int xsum = MIN ? sum_of<UNIT>(x, 0) : 0;
        return block_term_32<MIN>(weights.scale[unit], dot<UNIT>(w, x, 0), MIN ? weights.min[unit] : 0.0f, xsum, d);
    }
    int isum = 0, msum = 0;
#pragma unroll
    for (u32 part = 0; part < UNIT / SUB; part++) {
        u64 sub = unit * (UNIT / SUB) + part;
        isum += weights.sub_scale[sub] * dot<SUB>(w, x, part);
        if (MIN) msum += weights.sub_min[sub] * sum_of<SUB>(x, part);
    }
#pragma unroll
    for (u32 lanes = 1; lanes < BLOCK / UNIT; lanes *= 2) {
        isum += __shfl_xor_sync(ALL_LANES, isum, lanes);
        if (MIN) msum += __shfl_xor_sync(ALL_LANES, msum, lanes);
    }
    u64 block = unit / (BLOCK / UNIT);
    return block_term_256<MIN>(weights.scale[block], isum, MIN ? weights.min[block] : 0.0f, msum, d);
}

// Pairs of a row and a token that a block of threads computes.
constexpr u32 PAIRS = 16;
// Spans whose sums wait in shared memory.
constexpr u32 SPANS = 64;

// Few tokens, at most M: a lane has a unit of a row, a warp 1024 columns of all pairs, and the warps of a block split the
// columns. Every weight is read once, in accesses of 16 bytes.
template <u32 BLOCK, u32 SUB, bool MIN, u32 M>
__device__ __forceinline__ void few(
    float* __restrict__ out, const i8* __restrict__ xq, const float* __restrict__ xd, const Weights& weights, u32 m,
    u32 n, u32 k) {
    constexpr u32 ROWS = PAIRS / M, LANES = BLOCK / UNIT, PER_SPAN = SPAN / BLOCK;
    __shared__ float terms[WARPS][PAIRS][WARP + 1];
    __shared__ float sums[PAIRS][SPANS + 1];
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, first_row = blockIdx.x * ROWS;
    u32 units = k / UNIT, blocks = k / BLOCK, tiles = (units + WARP - 1) / WARP;
    u32 pair = lane % PAIRS, half = lane / PAIRS;
    float total = 0.0f;
    for (u32 first = 0; first < tiles; first += SPANS / 2) {
        u32 last = min(first + SPANS / 2, tiles);
        for (u32 tile = first + warp; tile < last; tile += WARPS) {
            // Lanes past the end compute what nobody adds.
            u32 unit = min(tile * WARP + lane, units - 1);
#pragma unroll
            for (u32 t = 0; t < M; t++) {
                u32 token = min(t, m - 1);
                Integers x(xq + (u64)token * k + unit * UNIT);
                float d = xd[(u64)token * blocks + unit / LANES];
#pragma unroll 4
                for (u32 r = 0; r < ROWS; r++) {
                    u64 at = (u64)min(first_row + r, n - 1) * units + unit;
                    Integers w(weights.q + at * UNIT);
                    float value = term<BLOCK, SUB, MIN>(weights, w, x, at, d);
                    if (lane % LANES == 0) terms[warp][r * M + t][lane / LANES] = value;
                }
            }
            __syncwarp();
            u32 start = (tile * 2 + half) * PER_SPAN;
            u32 count = start < blocks ? min(PER_SPAN, blocks - start) : 0;
            float sum = 0.0f;
            for (u32 i = 0; i < count; i++) sum = sum + terms[warp][pair][half * PER_SPAN + i];
            sums[pair][(tile - first) * 2 + half] = sum;
            __syncwarp();
        }
        __syncthreads();
        if (threadIdx.x < PAIRS) {
            u32 end = min(last * 2, (blocks + PER_SPAN - 1) / PER_SPAN) - first * 2;
            for (u32 i = 0; i < end; i++) total = total + sums[threadIdx.x][i];
        }
        __syncthreads();
    }
    u32 row = first_row + threadIdx.x / M, token = threadIdx.x % M;
    if (threadIdx.x < PAIRS && row < n && token < m) out[(u64)token * n + row] = total;
}

// Many tokens: matrix instructions on tiles of 64 rows, of which each warp has 16, by TOKENS tokens. Both operands come
// through shared memory, STEP columns at a time, the next while these are multiplied.
constexpr u32 STEP = 128;
constexpr u32 STEP_UNITS = STEP / UNIT;
constexpr u32 ROWS = 64;
// Bytes from a row in shared memory to the next: 16 more than it has, so that eight rows are in banks of their own.
constexpr u32 STRIDE = STEP + 16;

template <u32 BLOCK, u32 SUB, bool MIN, u32 TOKENS>
struct Stage {
    static constexpr u32 SUBS = BLOCK == UNIT ? 4 : STEP / SUB;
    alignas(16) i8 w[ROWS][STRIDE];
    alignas(16) i8 x[TOKENS][STRIDE];
    // Of blocks of 32.
    alignas(16) float scale[BLOCK == UNIT ? ROWS : 1][STEP_UNITS];
    alignas(16) float min[BLOCK == UNIT && MIN ? ROWS : 1][STEP_UNITS];
    alignas(16) float d[BLOCK == UNIT ? TOKENS : 1][STEP_UNITS];
    // Of blocks of 256.
    alignas(16) i8 sub_scale[BLOCK == UNIT ? 1 : ROWS][SUBS];
    alignas(16) u8 sub_min[BLOCK != UNIT && MIN ? ROWS : 1][SUBS];
};

// Copies BYTES (4, 8 or 16) to shared memory some time before the next wait, or zeros if they are not there.
template <u32 BYTES>
__device__ __forceinline__ void copy(void* to, const void* from, bool there) {
    u32 address = (u32)__cvta_generic_to_shared(to), bytes = there ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(bytes), "n"(BYTES)
                     : "memory");
    }
}

// Copies rows `first..` of columns `at..at + N * sizeof(T)` (in T) of a row-major matrix [rows, columns].
template <u32 BYTES, u32 ROWS_OF, u32 N, class T, u32 PITCH>
__device__ __forceinline__ void copy_rows(
    T (&to)[ROWS_OF][PITCH], const T* from, u32 first, u32 rows, u32 at, u32 columns) {
    constexpr u32 EACH = BYTES / sizeof(T), ACROSS = N / EACH;
    for (u32 i = threadIdx.x; i < ROWS_OF * ACROSS; i += THREADS) {
        u32 row = i / ACROSS, column = i % ACROSS * EACH;
        bool there = first + row < rows && at + column < columns;
        copy<BYTES>(&to[row][column], there ? from + (u64)(first + row) * columns + at + column : from, there);
    }
}

// C += A [16, 32] B [8, 32]^T
__device__ __forceinline__ void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// C += A [16, 16] B [8, 16]^T
__device__ __forceinline__ void multiply(int (&c)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

constexpr u32 ONES = 0x01010101;

template <u32 BLOCK, u32 SUB, bool MIN, u32 TOKENS>
struct Tile {
    static constexpr u32 TILES = TOKENS / 8;
    using Staged = Stage<BLOCK, SUB, MIN, TOKENS>;

    Weights weights;
    const i8* xq;
    const float* xd;
    u32 m, n, k, first_row, first_token;
    // Place of this lane in the matrices of an instruction: rows `g` and `g + 8` of the weights, tokens `2 t` and `2 t + 1`.
    u32 warp, g, t;
    float acc[TILES][4], total[TILES][4];
    int isum[TILES][4], msum[TILES][4];

    __device__ __forceinline__ void load(Staged& to, u32 step) {
        u32 column = step * STEP, units = k / UNIT;
        copy_rows<16, ROWS, STEP>(to.w, weights.q, first_row, n, column, k);
        copy_rows<16, TOKENS, STEP>(to.x, xq, first_token, m, column, k);
        if constexpr (BLOCK == UNIT) {
            copy_rows<4, ROWS, STEP_UNITS>(to.scale, weights.scale, first_row, n, step * STEP_UNITS, units);
            if constexpr (MIN) {
                copy_rows<4, ROWS, STEP_UNITS>(to.min, weights.min, first_row, n, step * STEP_UNITS, units);
            }
            copy_rows<4, TOKENS, STEP_UNITS>(to.d, xd, first_token, m, step * STEP_UNITS, units);
        } else {
            constexpr u32 SUBS = Staged::SUBS;
            copy_rows<SUBS, ROWS, SUBS>(to.sub_scale, weights.sub_scale, first_row, n, step * SUBS, k / SUB);
            if constexpr (MIN) {
                copy_rows<SUBS, ROWS, SUBS>(to.sub_min, weights.sub_min, first_row, n, step * SUBS, k / SUB);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    static __device__ __forceinline__ u32 word(const i8 (&row)[STRIDE], u32 unit, u32 word) {
        return *(const u32*)&row[unit * UNIT + 4 * word];
    }

    __device__ __forceinline__ void unit(const Staged& from, u32 unit) {
        u32 row = warp * 16 + g;
        u32 a[4] = {
            word(from.w[row], unit, t), word(from.w[row + 8], unit, t), word(from.w[row], unit, 4 + t),
            word(from.w[row + 8], unit, 4 + t)};
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
            const i8(&x)[STRIDE] = from.x[8 * j + g];
            u32 b0 = word(x, unit, t), b1 = word(x, unit, 4 + t);
            if constexpr (BLOCK == UNIT) {
                unit_of_32(from, unit, j, a, b0, b1);
            } else {
                unit_of_256(from, unit, j, a, b0, b1);
            }
        }
    }

    __device__ __forceinline__ void unit_of_32(const Staged& from, u32 unit, u32 j, const u32 (&a)[4], u32 b0, u32 b1) {
        int c[4] = {0, 0, 0, 0}, xsum[4] = {0, 0, 0, 0};
        multiply(c, a, b0, b1);
        if constexpr (MIN) multiply(xsum, {ONES, ONES, ONES, ONES}, b0, b1);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 row = warp * 16 + g + i / 2 * 8, token = 8 * j + 2 * t + i % 2;
            float min = 0.0f;
            if constexpr (MIN) min = from.min[row][unit];
            float d = from.d[token][unit];
            acc[j][i] = acc[j][i] + block_term_32<MIN>(from.scale[row][unit], c[i], min, xsum[i], d);
        }
    }

    __device__ __forceinline__ void unit_of_256(const Staged& from, u32 unit, u32 j, const u32 (&a)[4], u32 b0, u32 b1) {
#pragma unroll
        for (u32 part = 0; part < UNIT / SUB; part++) {
            int c[4] = {0, 0, 0, 0}, xsum[4] = {0, 0, 0, 0};
            if constexpr (SUB == UNIT) {
                multiply(c, a, b0, b1);
                if constexpr (MIN) multiply(xsum, {ONES, ONES, ONES, ONES}, b0, b1);
            } else {
                u32 b = part == 0 ? b0 : b1;
                multiply(c, a[2 * part], a[2 * part + 1], b);
                if constexpr (MIN) multiply(xsum, ONES, ONES, b);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 row = warp * 16 + g + i / 2 * 8, sub = unit * (UNIT / SUB) + part;
                isum[j][i] += from.sub_scale[row][sub] * c[i];
                if constexpr (MIN) msum[j][i] += from.sub_min[row][sub] * xsum[i];
            }
        }
    }

    // Adds a block of 256 columns, whose integers are summed.
    __device__ __forceinline__ void end_block(u32 block) {
        u32 blocks = k / BLOCK;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 row = min(first_row + warp * 16 + g + i / 2 * 8, n - 1);
            float scale = weights.scale[(u64)row * blocks + block], min_scale = 0.0f;
            if constexpr (MIN) min_scale = weights.min[(u64)row * blocks + block];
#pragma unroll
            for (u32 j = 0; j < TILES; j++) {
                u32 token = min(first_token + 8 * j + 2 * t + i % 2, m - 1);
                float d = xd[(u64)token * blocks + block];
                acc[j][i] = acc[j][i] + block_term_256<MIN>(scale, isum[j][i], min_scale, msum[j][i], d);
                isum[j][i] = msum[j][i] = 0;
            }
        }
    }

    __device__ __forceinline__ void end_span() {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                total[j][i] = total[j][i] + acc[j][i];
                acc[j][i] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void store(float* __restrict__ out) {
#pragma unroll
        for (u32 j = 0; j < TILES; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 row = first_row + warp * 16 + g + i / 2 * 8, token = first_token + 8 * j + 2 * t + i % 2;
                if (row < n && token < m) out[(u64)token * n + row] = total[j][i];
            }
        }
    }
};

template <u32 BLOCK, u32 SUB, bool MIN, u32 TOKENS>
__device__ __forceinline__ void many(
    float* __restrict__ out, const i8* __restrict__ xq, const float* __restrict__ xd, const Weights& weights, u32 m,
    u32 n, u32 k) {
    __shared__ Stage<BLOCK, SUB, MIN, TOKENS> stages[2];
    u32 lane = threadIdx.x % WARP;
    Tile<BLOCK, SUB, MIN, TOKENS> tile = {
        weights, xq, xd, m, n, k, blockIdx.x * ROWS, blockIdx.y * TOKENS, threadIdx.x / WARP, lane / 4, lane % 4, {}, {},
        {}, {}};
    u32 units = k / UNIT, steps = (units + STEP_UNITS - 1) / STEP_UNITS;
    tile.load(stages[0], 0);
    for (u32 step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        if (step + 1 < steps) tile.load(stages[(step + 1) % 2], step + 1);
        // Units past the end are zeros, whose terms are too, and add nothing.
#pragma unroll
        for (u32 unit = 0; unit < STEP_UNITS; unit++) tile.unit(stages[step % 2], unit);
        if (BLOCK != UNIT && (step + 1) * STEP % BLOCK == 0) tile.end_block(step * STEP / BLOCK);
        if ((step + 1) * STEP % SPAN == 0 || step + 1 == steps) tile.end_span();
    }
    tile.store(out);
}

#define LINEAR(name, expression)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) name(                                                          \
        float* out, const i8* xq, const float* xd, const i8* q, const float* scale, const float* min,                    \
        const i8* sub_scale, const u8* sub_min, u32 m, u32 n, u32 k) {                                                   \
        Weights weights = {q, scale, min, sub_scale, sub_min};                                                           \
        expression(out, xq, xd, weights, m, n, k);                                                                       \
    }
#define KIND(name, BLOCK, SUB, MIN, TOKENS)                                                                              \
    LINEAR(name##_1, (few<BLOCK, SUB, MIN, 1>))                                                         \
    LINEAR(name##_2, (few<BLOCK, SUB, MIN, 2>))                                                         \
    LINEAR(name##_4, (few<BLOCK, SUB, MIN, 4>))                                                         \
    LINEAR(name##_8, (few<BLOCK, SUB, MIN, 8>))                                                         \
    LINEAR(name##_many, (many<BLOCK, SUB, MIN, TOKENS>))

KIND(linear_32, 32, 32, false, 64)
KIND(linear_32_min, 32, 32, true, 64)
KIND(linear_256_16, 256, 16, false, 32)
KIND(linear_256_16_min, 256, 16, true, 32)
KIND(linear_256_32_min, 256, 32, true, 32)
