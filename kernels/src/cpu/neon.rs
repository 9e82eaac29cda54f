//! NEON: four registers a vector, and one of three ways to a dot of four bytes.

use std::{
    arch::{aarch64::*, asm},
    marker::PhantomData,
};

use super::simd::Simd;

/// Proof that the CPU has NEON and the instructions of `D`.
#[derive(Clone, Copy)]
pub(super) struct Neon<D>(PhantomData<D>);

impl<D: Dot> Neon<D> {
    /// # Safety
    /// The CPU must have NEON and the instructions of `D`.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Neon(PhantomData)
    }
}

/// Integer dots of the four bytes of each lane.
pub(super) trait Dot: Copy {
    /// `acc + sum of a[i] * b[i]`.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    unsafe fn signed(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;

    /// [`Self::signed`] for `a` that is not negative.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    #[inline(always)]
    unsafe fn narrow(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the caller has seen to it that the CPU has the instructions.
        unsafe { Self::signed(acc, a, b) }
    }

    /// `acc + sum of u[i] * s[i]`: the signed dot of `u - 128`, and what that leaves out.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    #[inline(always)]
    unsafe fn mixed(acc: int32x4_t, u: uint8x16_t, s: int8x16_t) -> int32x4_t {
        // SAFETY: the caller has seen to it that the CPU has the instructions.
        unsafe {
            let shifted = vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(0x80)));
            let rest = vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(s)));
            vaddq_s32(Self::signed(acc, shifted, s), rest)
        }
    }
}

/// What every ARMv8 CPU has: products of 16 bits, and sums of pairs.
#[derive(Clone, Copy)]
pub(super) struct Baseline;

/// SDOT, of ARMv8.2's `dotprod`.
#[derive(Clone, Copy)]
pub(super) struct Dotprod;

/// USDOT, of ARMv8.6's `i8mm`.
#[derive(Clone, Copy)]
pub(super) struct I8mm;

impl Dot for Baseline {
    #[inline(always)]
    unsafe fn signed(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the caller has seen to it that the CPU has the instructions.
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
            let high = vpaddlq_s16(vmull_high_s8(a, b));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }
    #[inline(always)]
    unsafe fn narrow(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the caller has seen to it that the CPU has the instructions.
        unsafe {
            // Two products are at most 2 * 127 * 128 in magnitude, which 16 bits hold.
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(a, b)))
        }
    }
}

/// An instruction that adds dots to an accumulator, for which stable Rust has no intrinsic yet.
macro_rules! dot_instruction {
    ($instruction:literal, $acc:expr, $a:expr, $b:expr) => {{
        let mut acc: int32x4_t = $acc;
        // SAFETY: the caller has seen to it that the CPU has the instruction, which touches these registers alone.
        unsafe {
            asm!(
                concat!($instruction, " {0:v}.4s, {1:v}.16b, {2:v}.16b"),
                inout(vreg) acc, in(vreg) $a, in(vreg) $b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }};
}

impl Dot for Dotprod {
    #[inline(always)]
    unsafe fn signed(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        dot_instruction!("sdot", acc, a, b)
    }
}

impl Dot for I8mm {
    #[inline(always)]
    unsafe fn signed(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        dot_instruction!("sdot", acc, a, b)
    }
    #[inline(always)]
    unsafe fn mixed(acc: int32x4_t, u: uint8x16_t, s: int8x16_t) -> int32x4_t {
        dot_instruction!("usdot", acc, u, s)
    }
}

/// Evaluates an expression of intrinsics.
macro_rules! vector {
    ($body:expr) => {
        // SAFETY: `self` proves that the CPU has the instructions, and every pointer comes from a reference to an
        // array that is as long as the vectors read or written; loads and stores take any alignment.
        unsafe { $body }
    };
}

/// Applies an intrinsic to the quarters of its operands.
macro_rules! quarters {
    ($f:path, $($x:expr),*) => {
        vector!([$f($($x[0]),*), $f($($x[1]),*), $f($($x[2]),*), $f($($x[3]),*)])
    };
}

impl<D: Dot> Simd for Neon<D> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type M = [uint32x4_t; 4];
    const TILE: usize = 4;
    const DENSE_TOKENS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        vector!([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        let [a, b, c, d] = parts::<_, 4, 16>(x);
        vector!([vld1q_f32(a.as_ptr()), vld1q_f32(b.as_ptr()), vld1q_f32(c.as_ptr()), vld1q_f32(d.as_ptr())])
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
            vector!(vst1q_f32(out.as_mut_ptr(), x));
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        quarters!(vabsq_f32, x)
    }
    #[inline(always)]
    fn neg(self, x: Self::F) -> Self::F {
        quarters!(vnegq_f32, x)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vmaxq_f32, a, b)
    }
    #[inline(always)]
    fn add_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn scaled_integer(self, x: Self::I, scale: Self::F, offset: Self::F) -> Self::F {
        let x = self.of_bits(x);
        quarters!(vfmaq_f32, offset, x, scale)
    }
    #[inline(always)]
    fn sub_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vfmsq_f32, c, a, b)
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        quarters!(vcltq_f32, a, b)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vbslq_f32, mask, a, b)
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        let words = words(self, x);
        let words: [float16x4_t; 4] = quarters!(vreinterpret_f16_u16, words);
        quarters!(vcvt_f32_f16, words)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        vector!([vdupq_n_s32(x); 4])
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        let [a, b, c, d] = parts::<_, 4, 16>(x);
        vector!([vld1q_s32(a.as_ptr()), vld1q_s32(b.as_ptr()), vld1q_s32(c.as_ptr()), vld1q_s32(d.as_ptr())])
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<4>().0) {
            vector!(vst1q_s32(out.as_mut_ptr(), x));
        }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> Self::I {
        let [a, b, c, d] = parts::<_, 16, 64>(x);
        let bytes =
            vector!(
                [vld1q_u8(a.as_ptr()), vld1q_u8(b.as_ptr()), vld1q_u8(c.as_ptr()), vld1q_u8(d.as_ptr()),]
            );
        quarters!(vreinterpretq_s32_u8, bytes)
    }
    #[inline(always)]
    fn store_bytes(self, x: Self::I, out: &mut [u8; 64]) {
        for (x, out) in x.into_iter().zip(out.as_chunks_mut::<16>().0) {
            vector!(vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s32(x)));
        }
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        let lanes = vector!({
            let bytes = vld1q_u8(x.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ]
        });
        quarters!(vreinterpretq_s32_u32, lanes)
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> Self::I {
        vector!({
            let bytes = vreinterpretq_s8_u8(vld1q_u8(x.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ]
        })
    }
    #[inline(always)]
    fn store_low_bytes(self, x: Self::I, out: &mut [u8; 16]) {
        let bytes: [uint8x16_t; 4] = quarters!(vreinterpretq_u8_s32, x);
        vector!({
            let even = [vuzp1q_u8(bytes[0], bytes[1]), vuzp1q_u8(bytes[2], bytes[3])];
            vst1q_u8(out.as_mut_ptr(), vuzp1q_u8(even[0], even[1]));
        })
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vaddq_s32, a, b)
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vmulq_s32, a, b)
    }
    #[inline(always)]
    fn add_product_i16(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vmlaq_s32, acc, a, b)
    }
    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vmaxq_s32, a, b)
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vandq_s32, a, b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vorrq_s32, a, b)
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(veorq_s32, a, b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::I) -> Self::I {
        let count = self.splat_i32(N as i32);
        quarters!(vshlq_s32, x, count)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::I) -> Self::I {
        let count = self.splat_i32(-(N as i32));
        let x: [uint32x4_t; 4] = quarters!(vreinterpretq_u32_s32, x);
        let shifted: [uint32x4_t; 4] = quarters!(vshlq_u32, x, count);
        quarters!(vreinterpretq_s32_u32, shifted)
    }
    #[inline(always)]
    fn lt_i32(self, a: Self::I, b: Self::I) -> Self::M {
        quarters!(vcltq_s32, a, b)
    }
    #[inline(always)]
    fn and_mask(self, a: Self::M, b: Self::M) -> Self::M {
        quarters!(vandq_u32, a, b)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I {
        let table = vector!([vld1q_u8(table.as_ptr()); 4]);
        let index: [uint8x16_t; 4] = quarters!(vreinterpretq_u8_s32, index);
        let entries: [uint8x16_t; 4] = quarters!(vqtbl1q_u8, table, index);
        quarters!(vreinterpretq_s32_u8, entries)
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        quarters!(vcvtq_f32_s32, x)
    }
    #[inline(always)]
    fn round_i32(self, x: Self::F) -> Self::I {
        quarters!(vcvtnq_s32_f32, x)
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        quarters!(vreinterpretq_s32_f32, x)
    }
    #[inline(always)]
    fn of_bits(self, x: Self::I) -> Self::F {
        quarters!(vreinterpretq_f32_s32, x)
    }

    #[inline(always)]
    fn dot_u8(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        let u: [uint8x16_t; 4] = quarters!(vreinterpretq_u8_s32, u);
        let s: [int8x16_t; 4] = quarters!(vreinterpretq_s8_s32, s);
        quarters!(D::mixed, acc, u, s)
    }
    #[inline(always)]
    fn dot_u7(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        let u: [int8x16_t; 4] = quarters!(vreinterpretq_s8_s32, u);
        let s: [int8x16_t; 4] = quarters!(vreinterpretq_s8_s32, s);
        quarters!(D::narrow, acc, u, s)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, u: &[u8; 32], s: [i16; 2]) -> Self::I {
        let mut sums = acc;
        vector!({
            // Even bytes, then odd ones, each widened to 16 bits.
            let uint8x16x2_t(even, odd) = vld2q_u8(u.as_ptr());
            for (bytes, s) in [(even, s[0]), (odd, s[1])] {
                let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
                let high = vreinterpretq_s16_u16(vmovl_high_u8(bytes));
                sums = [
                    vmlal_n_s16(sums[0], vget_low_s16(low), s),
                    vmlal_high_n_s16(sums[1], low, s),
                    vmlal_n_s16(sums[2], vget_low_s16(high), s),
                    vmlal_high_n_s16(sums[3], high, s),
                ];
            }
        });
        sums
    }

    #[inline(always)]
    fn round_f16(self, x: Self::F) -> Self::F {
        let rounded: [float16x4_t; 4] = quarters!(vcvt_f16_f32, x);
        quarters!(vcvt_f32_f16, rounded)
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        let (a, b) = (halfwords(self, a), halfwords(self, b));
        let larger: [uint16x8_t; 4] = quarters!(vmaxq_u16, a, b);
        quarters!(vreinterpretq_s32_u16, larger)
    }
    #[inline(always)]
    fn at_least_u16(self, x: Self::I, least: u16) -> Self::I {
        let magnitude = halfwords(self, self.and(x, self.splat_i32(0x7fff_7fff)));
        let least = vector!([vdupq_n_u16(least); 4]);
        let kept: [uint16x8_t; 4] = quarters!(vcgeq_u16, magnitude, least);
        self.and(x, quarters!(vreinterpretq_s32_u16, kept))
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::I; 16]) -> [Self::I; 16] {
        // Blocks of four rows by four columns: block (g, c) goes to (c, g).
        let mut columns = rows;
        for (g, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
            for (c, columns) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let block = vector!(block_transposed([rows[0][c], rows[1][c], rows[2][c], rows[3][c]]));
                for (column, lanes) in columns.iter_mut().zip(block) {
                    column[g] = lanes;
                }
            }
        }
        columns
    }

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::I {
        let fours = vector!({
            let [a, b, c, d] = rows.map(|row| vld1q_u8(row.as_ptr()));
            let pairs = |a, b| {
                let (low, high) = (vzip1q_u8(a, b), vzip2q_u8(a, b));
                [vreinterpretq_u16_u8(low), vreinterpretq_u16_u8(high)]
            };
            let (ab, cd) = (pairs(a, b), pairs(c, d));
            [
                vzip1q_u16(ab[0], cd[0]),
                vzip2q_u16(ab[0], cd[0]),
                vzip1q_u16(ab[1], cd[1]),
                vzip2q_u16(ab[1], cd[1]),
            ]
        });
        quarters!(vreinterpretq_s32_u16, fours)
    }

    #[inline(always)]
    fn byte_slices(self, x: [Self::I; 4]) -> [Self::I; 2] {
        let [a, b, c, d] = x.map(|x| halfwords(self, x));
        let quarter = |i: usize| [a[i], b[i], c[i], d[i]];
        let [first, second, third, fourth] = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let left: [uint16x8_t; 4] = quarters!(vuzp1q_u16, first, second);
        let right: [uint16x8_t; 4] = quarters!(vuzp1q_u16, third, fourth);
        let left: [uint8x16_t; 4] = quarters!(vreinterpretq_u8_u16, left);
        let right: [uint8x16_t; 4] = quarters!(vreinterpretq_u8_u16, right);
        let high: [uint8x16_t; 4] = quarters!(vuzp2q_u8, left, right);
        let low: [uint8x16_t; 4] = quarters!(vuzp1q_u8, left, right);
        [quarters!(vreinterpretq_s32_u8, high), quarters!(vreinterpretq_s32_u8, low)]
    }

    #[inline(always)]
    fn even_odd(self, a: Self::F, b: Self::F) -> [Self::F; 2] {
        let (left, right) = ([a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]]);
        [quarters!(vuzp1q_f32, left, right), quarters!(vuzp2q_f32, left, right)]
    }

    #[inline(always)]
    fn prefetch_ahead<const NEAR: bool>(self, bytes: &[u8], ahead: usize) {
        let line = bytes.as_ptr().wrapping_add(ahead);
        // SAFETY: a hint about an address, which need not be the program's, and which it cannot see the effect of.
        unsafe {
            if NEAR {
                asm!("prfm pldl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
            } else {
                asm!("prfm pldl2keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, byte: &u8) {
        // SAFETY: a hint about an address, which no program can see the effect of.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) byte, options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn tree(self, x: Self::F) -> f32 {
        vector!({
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vget_lane_f32::<0>(x) + vget_lane_f32::<1>(x)
        })
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        vector!(vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3]))))
    }

    #[inline(always)]
    fn sum_i32(self, x: Self::I) -> i32 {
        vector!(vaddvq_s32(vaddq_s32(vaddq_s32(x[0], x[1]), vaddq_s32(x[2], x[3]))))
    }

    #[inline(always)]
    fn max_lane_i32(self, x: Self::I) -> i32 {
        vector!(vmaxvq_s32(vmaxq_s32(vmaxq_s32(x[0], x[1]), vmaxq_s32(x[2], x[3]))))
    }
}

/// The quarters of an array, each of `N` values.
#[inline(always)]
fn parts<T, const N: usize, const ALL: usize>(x: &[T; ALL]) -> [&[T; N]; 4] {
    let parts = x.as_chunks::<N>().0;
    [&parts[0], &parts[1], &parts[2], &parts[3]]
}

/// 16 words of 16 bits, a lane each.
#[inline(always)]
fn words<D: Dot>(_: Neon<D>, x: &[u8; 32]) -> [uint16x4_t; 4] {
    let [a, b, c, d] = parts::<_, 8, 32>(x);
    let bytes =
        vector!([vld1_u8(a.as_ptr()), vld1_u8(b.as_ptr()), vld1_u8(c.as_ptr()), vld1_u8(d.as_ptr()),]);
    quarters!(vreinterpret_u16_u8, bytes)
}

/// The 16-bit halves of each lane.
#[inline(always)]
fn halfwords<D: Dot>(_: Neon<D>, x: [int32x4_t; 4]) -> [uint16x8_t; 4] {
    quarters!(vreinterpretq_u16_s32, x)
}

/// The 4 by 4 matrix of lanes, transposed.
///
/// # Safety
/// The CPU must have NEON.
#[inline(always)]
unsafe fn block_transposed(x: [int32x4_t; 4]) -> [int32x4_t; 4] {
    // SAFETY: the caller has seen to it that the CPU has the instructions.
    unsafe {
        let pairs = |a, b| {
            let (even, odd) = (vtrn1q_s32(a, b), vtrn2q_s32(a, b));
            [vreinterpretq_s64_s32(even), vreinterpretq_s64_s32(odd)]
        };
        let (low, high) = (pairs(x[0], x[1]), pairs(x[2], x[3]));
        let columns = [
            vtrn1q_s64(low[0], high[0]),
            vtrn1q_s64(low[1], high[1]),
            vtrn2q_s64(low[0], high[0]),
            vtrn2q_s64(low[1], high[1]),
        ];
        columns.map(|column| vreinterpretq_s32_s64(column))
    }
}
