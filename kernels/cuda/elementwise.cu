// Operations of each element by itself. Buffers start at multiples of 16 bytes, so that all but the last elements of a
// buffer move in accesses of up to 16 bytes.
#include "contract.cuh"

template <class T, u32 N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T of[N];
};

// Elements that a thread moves at once: 16 bytes of the larger type.
template <class A, class B>
constexpr u32 PACK = 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));

template <class Out, class In, class F>
__device__ __forceinline__ void map(Out* __restrict__ out, const In* __restrict__ x, u64 n, F f) {
    constexpr u32 N = PACK<Out, In>;
    for (u64 i = first_index(); i < n / N; i += index_stride()) {
        Pack<In, N> from = ((const Pack<In, N>*)x)[i];
        Pack<Out, N> to;
#pragma unroll
        for (u32 j = 0; j < N; j++) to.of[j] = f(from.of[j]);
        ((Pack<Out, N>*)out)[i] = to;
    }
    for (u64 i = n / N * N + first_index(); i < n; i += index_stride()) out[i] = f(x[i]);
}

template <class Out, class In, class F>
__device__ __forceinline__ void zip(
    Out* __restrict__ out, const In* __restrict__ a, const In* __restrict__ b, u64 n, F f) {
    constexpr u32 N = PACK<Out, In>;
    for (u64 i = first_index(); i < n / N; i += index_stride()) {
        Pack<In, N> x = ((const Pack<In, N>*)a)[i];
        Pack<In, N> y = ((const Pack<In, N>*)b)[i];
        Pack<Out, N> to;
#pragma unroll
        for (u32 j = 0; j < N; j++) to.of[j] = f(x.of[j], y.of[j]);
        ((Pack<Out, N>*)out)[i] = to;
    }
    for (u64 i = n / N * N + first_index(); i < n; i += index_stride()) out[i] = f(a[i], b[i]);
}

#define UNARY(name, T, expression)                                                      \
    extern "C" __global__ void name(T* __restrict__ out, const T* __restrict__ x, u64 n) { \
        map(out, x, n, [](T x) -> T { return expression; });                            \
    }

UNARY(neg_f32, float, -x)
UNARY(neg_i32, u32, 0u - x)
UNARY(abs_f32, float, fabsf(x))
UNARY(sqrt_f32, float, sqrtf(x))
UNARY(round_even_f32, float, rintf(x))
UNARY(activate_silu, float, silu(x))
UNARY(activate_gelu_tanh, float, gelu_tanh(x))

extern "C" __global__ void soft_cap(
    float* __restrict__ out, const float* __restrict__ x, u64 n, float cap, float reciprocal) {
    map(out, x, n, [=](float x) { return soft_cap_of(x, cap, reciprocal); });
}

#define BINARY(name, Out, In, expression)                                                                \
    extern "C" __global__ void name(                                                                     \
        Out* __restrict__ out, const In* __restrict__ a, const In* __restrict__ b, u64 n) {              \
        zip(out, a, b, n, [](In a, In b) -> Out { return expression; });                                 \
    }

BINARY(add_f32, float, float, a + b)
BINARY(sub_f32, float, float, a - b)
BINARY(mul_f32, float, float, a * b)
BINARY(div_f32, float, float, a / b)
BINARY(max_f32, float, float, max_of(a, b))
BINARY(add_i32, u32, u32, a + b)
BINARY(sub_i32, u32, u32, a - b)
BINARY(mul_i32, u32, u32, a * b)
BINARY(max_i32, int, int, max_of(a, b))
BINARY(and_i32, u32, u32, a & b)
BINARY(or_i32, u32, u32, a | b)
BINARY(shl_i32, u32, u32, a << (b & 31))
BINARY(shr_i32, int, int, a >> (b & 31))
BINARY(and_bool, u8, u8, (u8)(a & b))
BINARY(or_bool, u8, u8, (u8)(a | b))
BINARY(lt_f32, u8, float, a < b)
BINARY(le_f32, u8, float, a <= b)
BINARY(eq_f32, u8, float, a == b)
BINARY(lt_i32, u8, int, a < b)
BINARY(le_i32, u8, int, a <= b)
BINARY(eq_i32, u8, int, a == b)
BINARY(glu_silu, float, float, silu(a) * b)
BINARY(glu_gelu_tanh, float, float, gelu_tanh(a) * b)

#define SELECT(name, T)                                                                                      \
    extern "C" __global__ void name(                                                                         \
        T* __restrict__ out, const u8* __restrict__ condition, const T* __restrict__ a,                      \
        const T* __restrict__ b, u64 n) {                                                                    \
        for (u64 i = first_index(); i < n; i += index_stride()) out[i] = condition[i] ? a[i] : b[i];         \
    }

SELECT(select_1, u8)
SELECT(select_2, u16)
SELECT(select_4, u32)

// Casts. Floats are read as f32, which holds each exactly; integers of 8 bits widen to int where no other function takes them.
struct F16 {
    u16 bits;
};
struct BF16 {
    u16 bits;
};

__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ float value(F16 x) { return f32_of_f16(x.bits); }
__device__ __forceinline__ float value(BF16 x) { return f32_of_bf16(x.bits); }
__device__ __forceinline__ int value(int x) { return x; }
__device__ __forceinline__ i8 value(i8 x) { return x; }
__device__ __forceinline__ u8 value(u8 x) { return x; }

__device__ __forceinline__ int clamp(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

__device__ __forceinline__ void set(float& out, float x) { out = x; }
__device__ __forceinline__ void set(F16& out, float x) { out.bits = f16_of_f32(x); }
__device__ __forceinline__ void set(BF16& out, float x) { out.bits = bf16_of_f32(x); }
__device__ __forceinline__ void set(int& out, float x) { out = __float2int_rz(x); }
__device__ __forceinline__ void set(i8& out, float x) { out = (i8)clamp(__float2int_rz(x), -128, 127); }
__device__ __forceinline__ void set(u8& out, float x) { out = (u8)clamp(__float2int_rz(x), 0, 255); }

__device__ __forceinline__ void set(float& out, int x) { out = (float)x; }
// Integers that f32 rounds overflow f16, so that rounding twice changes nothing.
__device__ __forceinline__ void set(F16& out, int x) { out.bits = f16_of_f32((float)x); }
// Rounded once: bits that f32 would round away are kept as a sticky bit, far below bfloat16's last place.
__device__ __forceinline__ void set(BF16& out, int x) {
    u32 magnitude = x < 0 ? 0u - (u32)x : (u32)x;
    u32 sticky = (magnitude & 0xff) != 0 ? 0x100 : 0;
    u32 exact = magnitude >> 24 == 0 ? magnitude : (magnitude & ~0xffu) | sticky;
    out.bits = bf16_of_f32(x < 0 ? -(float)exact : (float)exact);
}
__device__ __forceinline__ void set(BF16& out, i8 x) { out.bits = bf16_of_f32(x); }
__device__ __forceinline__ void set(BF16& out, u8 x) { out.bits = bf16_of_f32(x); }
__device__ __forceinline__ void set(int& out, int x) { out = x; }
__device__ __forceinline__ void set(i8& out, int x) { out = (i8)x; }
__device__ __forceinline__ void set(u8& out, int x) { out = (u8)x; }

#define CAST(name, Out, In)                                                                 \
    extern "C" __global__ void name(Out* __restrict__ out, const In* __restrict__ x, u64 n) { \
        map(out, x, n, [](In x) {                                                           \
            Out to;                                                                         \
            set(to, value(x));                                                              \
            return to;                                                                      \
        });                                                                                 \
    }
#define TO_F32(from, In) CAST(cast_##from##_f32, float, In)
#define TO_F16(from, In) CAST(cast_##from##_f16, F16, In)
#define TO_BF16(from, In) CAST(cast_##from##_bf16, BF16, In)
#define TO_I8(from, In) CAST(cast_##from##_i8, i8, In)
#define TO_U8(from, In) CAST(cast_##from##_u8, u8, In)
#define TO_I32(from, In) CAST(cast_##from##_i32, int, In)

// From each type to the five others.
#define CASTS(from, In, A, B, C, D, E) A(from, In) B(from, In) C(from, In) D(from, In) E(from, In)

CASTS(f32, float, TO_F16, TO_BF16, TO_I8, TO_U8, TO_I32)
CASTS(f16, F16, TO_F32, TO_BF16, TO_I8, TO_U8, TO_I32)
CASTS(bf16, BF16, TO_F32, TO_F16, TO_I8, TO_U8, TO_I32)
CASTS(i8, i8, TO_F32, TO_F16, TO_BF16, TO_U8, TO_I32)
CASTS(u8, u8, TO_F32, TO_F16, TO_BF16, TO_I8, TO_I32)
CASTS(i32, int, TO_F32, TO_F16, TO_BF16, TO_I8, TO_U8)
