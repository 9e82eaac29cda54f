// Operations that move elements without looking at them. The host gives sizes and strides in units: elements, or, where
// rows allow, pieces of 16 bytes.
#include "contract.cuh"

constexpr u32 AXES = 8;
constexpr u32 PARTS = 8;

// A view of a tensor, its axes from the innermost one on.
struct View {
    u32 rank;
    u32 extents[AXES];
    u64 strides[AXES];
};

// Pieces that are joined: where each is, the columns it has and those before it.
struct Parts {
    const void* from[PARTS];
    u32 columns[PARTS];
    u64 before[PARTS];
};

template <class T>
__device__ __forceinline__ void fill(T* out, T value, u64 n) {
    for (u64 i = first_index(); i < n; i += index_stride()) out[i] = value;
}

template <class T>
__device__ __forceinline__ void copy_view(T* __restrict__ out, const T* __restrict__ x, u32 n, const View& view) {
    for (u64 i = first_index(); i < n; i += index_stride()) {
        u32 rest = (u32)i;
        u64 at = 0;
#pragma unroll
        for (u32 axis = 0; axis < AXES; axis++) {
            if (axis >= view.rank) break;
            u32 outer = rest / view.extents[axis];
            at += (rest - outer * view.extents[axis]) * view.strides[axis];
            rest = outer;
        }
        out[i] = x[at];
    }
}

// Rows of all parts, one after the other; the part is the grid's second axis.
template <class T>
__device__ __forceinline__ void concat(T* __restrict__ out, const Parts& parts, u32 rows, u64 pitch) {
    const T* x = nullptr;
    T* to = out;
    u32 columns = 1;
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) {
        if (part != blockIdx.y) continue;
        x = (const T*)parts.from[part];
        to = out + parts.before[part];
        columns = parts.columns[part];
    }
    for (u64 i = first_index(); i < (u64)rows * columns; i += index_stride()) {
        u32 row = (u32)i / columns;
        to[row * pitch + ((u32)i - row * columns)] = x[i];
    }
}

template <class T>
__device__ __forceinline__ void gather(
    T* __restrict__ out, const T* __restrict__ x, const int* __restrict__ indices, u32 n, u32 columns, u32 rows,
    u32 op, Fault* fault) {
    for (u64 i = first_index(); i < n; i += index_stride()) {
        u32 to = (u32)i / columns;
        int from = indices[to];
        if (is_row(from, rows, op, fault)) out[i] = x[(u64)from * columns + ((u32)i - to * columns)];
        else out[i] = T{};
    }
}

// A thread for each column, rows in order, so that of an index that repeats the last row stays whole.
template <class T>
__device__ __forceinline__ void scatter(
    T* __restrict__ out, const int* __restrict__ indices, const T* __restrict__ x, u32 n, u32 columns, u32 rows,
    u32 op, Fault* fault) {
    for (u64 column = first_index(); column < columns; column += index_stride()) {
        for (u32 from = 0; from < n; from++) {
            int to = indices[from];
            if (is_row(to, rows, op, fault)) out[(u64)to * columns + column] = x[(u64)from * columns + column];
        }
    }
}

#define FILL(bytes, T) \
    extern "C" __global__ void fill_##bytes(T* out, T value, u64 n) { fill(out, value, n); }

FILL(1, u8)
FILL(4, u32)
FILL(16, uint4)

#define MOVES(bytes, T)                                                                                     \
    extern "C" __global__ void view_##bytes(T* out, const T* x, u32 n, const View view) {                   \
        copy_view(out, x, n, view);                                                                         \
    }                                                                                                       \
    extern "C" __global__ void concat_##bytes(T* out, const Parts parts, u32 rows, u64 pitch) {             \
        concat(out, parts, rows, pitch);                                                                    \
    }                                                                                                       \
    extern "C" __global__ void gather_##bytes(                                                              \
        T* out, const T* x, const int* indices, u32 n, u32 columns, u32 rows, u32 op, Fault* fault) {       \
        gather(out, x, indices, n, columns, rows, op, fault);                                               \
    }                                                                                                       \
    extern "C" __global__ void scatter_##bytes(                                                             \
        T* out, const int* indices, const T* x, u32 n, u32 columns, u32 rows, u32 op, Fault* fault) {       \
        scatter(out, indices, x, n, columns, rows, op, fault);                                              \
    }

MOVES(1, u8)
MOVES(2, u16)
MOVES(4, u32)
MOVES(16, uint4)

extern "C" __global__ void iota(int* out, u32 n, u32 extent, u32 inner) {
    for (u64 i = first_index(); i < n; i += index_stride()) out[i] = (int)((u32)i / inner % extent);
}
