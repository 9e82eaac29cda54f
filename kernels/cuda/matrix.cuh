// Instructions for which CUDA C++ has no words: matrix products, loads of their operands, and copies to shared memory that go
// on while other work is done. Names of operands and places of lanes are those of the PTX manual (mma.sync, ldmatrix, cp.async).
#pragma once
#include "contract.cuh"

// Copies BYTES (4, 8 or 16) to shared memory some time before a wait, or zeros if they are not there.
template <u32 BYTES>
__device__ __forceinline__ void copy_later(u32 address, const void* from, bool there) {
    u32 bytes = there ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from), "r"(bytes), "n"(BYTES)
                     : "memory");
    }
}

__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

template <u32 BYTES>
__device__ __forceinline__ void copy_later(void* to, const void* from, bool there) {
    copy_later<BYTES>(shared_address(to), from, there);
}

// Makes one group of the copies asked for since the last.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies but those of the LATEST groups.
template <u32 LATEST>
__device__ __forceinline__ void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
}

// Four matrices of 8 rows of 16 bytes: lane `8 i + r` gives row `r` of matrix `i`; lane `4 g + t` gets word `t` of row `g` of each.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const void* row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// C += A [16, 32] B [8, 32]^T of i8. Lane `4 g + t` has rows g and g + 8 of C, columns 2 t and 2 t + 1.
__device__ __forceinline__ void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same, where A is of u8.
__device__ __forceinline__ void multiply_unsigned(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// C = A [16, 32] B [8, 32]^T + start, where A is of i8 or of u8.
template <bool SIGNED>
__device__ __forceinline__ void multiply(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, const int (&start)[4]) {
#define MULTIPLY_32(TYPE)                                                                                             \
    asm("mma.sync.aligned.m16n8k32.row.col.s32." TYPE                                                                \
        ".s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                                 \
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start[0]), "r"(start[1]), "r"(start[2]),  \
          "r"(start[3]))
    if (SIGNED) {
        MULTIPLY_32("s8");
    } else {
        MULTIPLY_32("u8");
    }
}

// C = A [16, 16] B [8, 16]^T + start
template <bool SIGNED>
__device__ __forceinline__ void multiply(int (&c)[4], u32 a0, u32 a1, u32 b, const int (&start)[4]) {
#define MULTIPLY_16(TYPE)                                                                                             \
    asm("mma.sync.aligned.m16n8k16.row.col.s32." TYPE                                                                \
        ".s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"                                                \
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])                                                             \
        : "r"(a0), "r"(a1), "r"(b), "r"(start[0]), "r"(start[1]), "r"(start[2]), "r"(start[3]))
    if (SIGNED) {
        MULTIPLY_16("s8");
    } else {
        MULTIPLY_16("u8");
    }
}

// C += A [16, 16] B [8, 16]^T of bf16. Exact where sums are integers of at most 24 bits, times a power of two.
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
