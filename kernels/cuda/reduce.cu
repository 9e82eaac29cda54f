// Reductions that are exact in any order: maxima and integer products.
#include "contract.cuh"

// A warp for each row.
template <class T>
__device__ __forceinline__ void max_rows(T* __restrict__ out, const T* __restrict__ x, u32 rows, u32 columns) {
    u32 row = (u32)(first_index() / WARP), lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const T* values = x + (u64)row * columns;
    T largest = values[0];
    for (u32 i = lane; i < columns; i += WARP) largest = max_of(largest, values[i]);
    largest = warp_max(largest);
    if (lane == 0) out[row] = largest;
}

extern "C" __global__ void max_rows_f32(float* out, const float* x, u32 rows, u32 columns) {
    max_rows(out, x, rows, columns);
}

extern "C" __global__ void max_rows_i32(int* out, const int* x, u32 rows, u32 columns) {
    max_rows(out, x, rows, columns);
}

template <bool A_SIGNED, bool B_SIGNED>
__device__ __forceinline__ int dot4(u32 a, u32 b, int sum) {
    int out;
    if (A_SIGNED && B_SIGNED) asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    else if (A_SIGNED) asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    else if (B_SIGNED) asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    else asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(sum));
    return out;
}

constexpr u32 TILE = 32;
constexpr u32 TILE_WORDS = 8;

// Four bytes of a row from column `at` on, zero past its end.
__device__ __forceinline__ u32 word_of(const u8* row, u32 at, u32 columns) {
    if (columns % 4 == 0) return at < columns ? *(const u32*)(row + at) : 0;
    u32 word = 0;
    for (u32 i = 0; i < 4; i++) {
        if (at + i < columns) word |= (u32)row[at + i] << (8 * i);
    }
    return word;
}

// Word `threadIdx.x % 8` of row `threadIdx.x / 8` of a tile.
__device__ __forceinline__ void load_tile(
    u32 (*tile)[TILE_WORDS + 1], const u8* matrix, u32 first_row, u32 rows, u32 at, u32 columns) {
    u32 row = threadIdx.x / TILE_WORDS, word = threadIdx.x % TILE_WORDS;
    bool inside = first_row + row < rows;
    tile[row][word] = inside ? word_of(matrix + (u64)(first_row + row) * columns, at + 4 * word, columns) : 0;
}

// out [batch, m, n] = a [batch, m, k] times the transpose of b [batch, n, k]. A block of 256 threads for each tile of
// 32 by 32, four elements a thread.
template <bool A_SIGNED, bool B_SIGNED>
__device__ __forceinline__ void matmul_exact(
    int* __restrict__ out, const u8* __restrict__ a, const u8* __restrict__ b, u32 m, u32 n, u32 k) {
    __shared__ u32 a_tile[TILE][TILE_WORDS + 1], b_tile[TILE][TILE_WORDS + 1];
    u32 columns_of_tiles = (n + TILE - 1) / TILE, rows_of_tiles = (m + TILE - 1) / TILE;
    u32 column_tile = blockIdx.x % columns_of_tiles, rest = blockIdx.x / columns_of_tiles;
    u32 row_tile = rest % rows_of_tiles, batch = rest / rows_of_tiles;
    u32 first_row = row_tile * TILE, first_column = column_tile * TILE;
    u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
    int sums[2][2] = {};
    for (u32 at = 0; at < k; at += 4 * TILE_WORDS) {
        load_tile(a_tile, a + (u64)batch * m * k, first_row, m, at, k);
        load_tile(b_tile, b + (u64)batch * n * k, first_column, n, at, k);
        __syncthreads();
#pragma unroll
        for (u32 word = 0; word < TILE_WORDS; word++) {
            for (u32 i = 0; i < 2; i++) {
                for (u32 j = 0; j < 2; j++) {
                    u32 x = a_tile[row + 16 * i][word], y = b_tile[column + 16 * j][word];
                    sums[i][j] = dot4<A_SIGNED, B_SIGNED>(x, y, sums[i][j]);
                }
            }
        }
        __syncthreads();
    }
    for (u32 i = 0; i < 2; i++) {
        for (u32 j = 0; j < 2; j++) {
            u32 to_row = first_row + row + 16 * i, to_column = first_column + column + 16 * j;
            if (to_row < m && to_column < n) out[((u64)batch * m + to_row) * n + to_column] = sums[i][j];
        }
    }
}

#define MATMUL(name, A_SIGNED, B_SIGNED)                                                           \
    extern "C" __global__ void name(int* out, const u8* a, const u8* b, u32 m, u32 n, u32 k) {     \
        matmul_exact<A_SIGNED, B_SIGNED>(out, a, b, m, n, k);                                      \
    }

MATMUL(matmul_i8_i8, true, true)
MATMUL(matmul_i8_u8, true, false)
MATMUL(matmul_u8_i8, false, true)
MATMUL(matmul_u8_u8, false, false)
