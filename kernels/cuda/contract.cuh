// The numerics contract (docs/numerics.md) for device code: each function returns the bits of the function of
// crates/tensor that it names. Compiled with --fmad=false, where every float operator is one rounded operation.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// crates/tensor/src/contract.rs
constexpr float TINY = 0x1p-48f;
constexpr u32 SUM_LANES = 128;
constexpr u32 HEAD_BLOCK = 32;
constexpr float Q8_MAX = 127.0f;
constexpr float Q8_MAX_RECIPROCAL = 1.0f / 127.0f;

// crates/tensor/src/exp.rs
constexpr u32 EXP_MAX_BITS = 0x42b17217;
constexpr float EXP_MIN = -44.36142f;
constexpr float LOG2E = 1.44269504088896340736f;
constexpr u32 LN2_HI_BITS = 0x3f317200;
constexpr float LN2_LO = 1.4286068e-6f;
constexpr float GELU_SCALE = 1.5957692f;
constexpr float GELU_CUBIC = 0.044715f;
constexpr u32 INFINITY_BITS = 0x7f800000;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;

// a * b + c rounded once, for products that are exact, which fusing cannot change (rule R2). The comment goes into
// the PTX, where the lint looks for it.
__device__ __forceinline__ float fma_of_exact_product(float a, float b, float c) {
    float out;
    asm("fma.rn.f32 %0, %1, %2, %3; // exact product" : "=f"(out) : "f"(a), "f"(b), "f"(c));
    return out;
}

// The larger, NaN if either is (rule R6).
__device__ __forceinline__ float max_of(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}

__device__ __forceinline__ int max_of(int a, int b) { return a > b ? a : b; }

// tensor::exp, of what is not above zero.
__device__ __forceinline__ float exp_of_falling(float x) {
    float n = rintf(x * LOG2E);
    float r = (x - n * __uint_as_float(LN2_HI_BITS)) - n * LN2_LO;
    float p = 0.0013838903f;
    p = p * r + 0.0083691925f;
    p = p * r + 0.041668102f;
    p = p * r + 0.16666517f;
    p = p * r + 0.49999994f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    u32 bits = __float_as_uint(p) + ((u32)__float2int_rz(n) << 23);
    return x < EXP_MIN ? 0.0f : __uint_as_float(bits);
}

// tensor::exp
__device__ __forceinline__ float exp_of(float x) {
    float scaled = exp_of_falling(x);
    return x > __uint_as_float(EXP_MAX_BITS) ? __uint_as_float(INFINITY_BITS) : scaled;
}

// tensor::sigmoid
__device__ __forceinline__ float sigmoid(float x) {
    return x < EXP_MIN ? 0.0f : 1.0f / (1.0f + exp_of(-x));
}

// tensor::silu
__device__ __forceinline__ float silu(float x) { return x / (1.0f + exp_of(-x)); }

// tensor::tanh
__device__ __forceinline__ float tanh_of(float x) {
    float t = exp_of(fabsf(x) * -2.0f);
    float magnitude = (1.0f - t) / (1.0f + t);
    return x < 0.0f ? -magnitude : magnitude;
}

// tensor::gelu_tanh
__device__ __forceinline__ float gelu_tanh(float x) {
    float cubic = x * x * x * GELU_CUBIC;
    return x * sigmoid((x + cubic) * GELU_SCALE);
}

struct Silu {
    static __device__ __forceinline__ float of(float x) { return silu(x); }
};

struct GeluTanh {
    static __device__ __forceinline__ float of(float x) { return gelu_tanh(x); }
};

// decompose::soft_cap, given `1 / cap` rounded once.
__device__ __forceinline__ float soft_cap_of(float x, float cap, float reciprocal) {
    return tanh_of(x * reciprocal) * cap;
}

// decompose::quantize_blocks: scale of a block whose largest magnitude is `largest`, and the factor of its values.
struct Q8Scale {
    float scale;
    float inverse;
};

__device__ __forceinline__ Q8Scale q8_scale(float largest) {
    float scale = largest * Q8_MAX_RECIPROCAL;
    bool tiny = scale < TINY;
    return {tiny ? 0.0f : scale, tiny ? 0.0f : Q8_MAX / largest};
}

// The integer of a value: rounded to even, NaN to 0.
__device__ __forceinline__ i8 q8_value(float x, float inverse) { return (i8)__float2int_rn(x * inverse); }

// tensor::blocks: an operand of a float dot, without what is tiny (rule R4).
__device__ __forceinline__ float without_tiny(float x) { return fabsf(x) < TINY ? 0.0f : x; }

__device__ __forceinline__ float f32_of_f16(u16 bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
}

__device__ __forceinline__ u16 f16_of_f32(float x) {
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

__device__ __forceinline__ float f32_of_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

__device__ __forceinline__ u16 bf16_of_f32(float x) {
    u16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

// Reductions of a warp, every lane of which takes part and gets the result.
template <class T>
__device__ __forceinline__ T warp_max(T x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = max_of(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// The last five levels of the halving tree of `sum` (rule R5).
__device__ __forceinline__ float warp_sum(float x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = x + __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// Largest of a block of SUM_LANES threads, for every thread.
__device__ __forceinline__ float block_max(float x, float* shared) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = max_of(max_of(shared[0], shared[1]), max_of(shared[2], shared[3]));
    __syncthreads();
    return x;
}

// What `block_sum` needs of shared memory: the lanes, and their sum in a place of its own, which a thread may still read while
// others write the lanes of the next.
typedef float SumOf[SUM_LANES + 1];

// `sum` (rule R5) of SUM_LANES threads that each hold a lane, for every thread.
__device__ __forceinline__ float block_sum(float lane, SumOf& shared) {
    u32 thread = threadIdx.x;
    shared[thread] = lane;
    __syncthreads();
    if (thread < WARP) {
        float even = shared[thread] + shared[thread + 64];
        float odd = shared[thread + 32] + shared[thread + 96];
        float sum = warp_sum(even + odd);
        if (thread == 0) shared[SUM_LANES] = sum;
    }
    __syncthreads();
    return shared[SUM_LANES];
}

// Work of one launch that no grid is large enough for is done in strides.
__device__ __forceinline__ u64 first_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ u64 index_stride() { return (u64)gridDim.x * blockDim.x; }

// The first index outside of a tensor that a kernel was given; the host reads it when it next waits. `op` is a number
// that the host gave out, and 0 while nothing has happened.
struct Fault {
    u32 op;
    int index;
    u32 len;
};

// Whether `index` is one of `len` rows; if not, notes it.
__device__ __forceinline__ bool is_row(int index, u32 len, u32 op, Fault* fault) {
    if ((u32)index < len) return true;
    if (atomicCAS(&fault->op, 0u, op) == 0u) {
        fault->index = index;
        fault->len = len;
    }
    return false;
}
