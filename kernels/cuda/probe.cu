// What a device can do at most, of what the other kernels live on: copies of memory and products of int8 matrices.
#include "matrix.cuh"

// Pieces that a thread has on their way at once.
constexpr u32 PIECES = 4;

// Products of a warp that do not wait for each other.
constexpr u32 CHAINS = 8;

// out = in, `n` pieces of 16 bytes.
extern "C" __global__ void __launch_bounds__(256) probe_copy(uint4* __restrict__ out, const uint4* __restrict__ in, u64 n) {
    u64 stride = index_stride();
    for (u64 i = first_index(); i < n; i += PIECES * stride) {
        uint4 pieces[PIECES];
#pragma unroll
        for (u32 j = 0; j < PIECES; j++) {
            if (i + j * stride < n) pieces[j] = in[i + j * stride];
        }
#pragma unroll
        for (u32 j = 0; j < PIECES; j++) {
            if (i + j * stride < n) out[i + j * stride] = pieces[j];
        }
    }
}

// Each warp multiplies `rounds` times CHAINS matrices [16, 32] and [8, 32] of ones, and each thread writes the sum of its results.
extern "C" __global__ void __launch_bounds__(128) probe_multiply(int* __restrict__ out, u32 rounds) {
    u32 ones = 0x01010101;
    u32 a[4] = {ones, ones, ones, ones};
    int c[CHAINS][4] = {};
    for (u32 round = 0; round < rounds; round++) {
#pragma unroll
        for (u32 chain = 0; chain < CHAINS; chain++) multiply(c[chain], a, ones, ones);
    }
    int sum = 0;
#pragma unroll
    for (u32 chain = 0; chain < CHAINS; chain++) sum += c[chain][0] + c[chain][1] + c[chain][2] + c[chain][3];
    out[first_index()] = sum;
}
