//! Portable lanes: arrays, which a compiler may still put in registers.

use half::f16;

use super::simd::Simd;

/// Lanes as arrays; runs everywhere.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

#[inline(always)]
fn map<T: Copy, R: Copy + Default>(x: [T; 16], f: impl Fn(T) -> R) -> [R; 16] {
    let mut out = [R::default(); 16];
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(x);
    }
    out
}

#[inline(always)]
fn zip<A: Copy, B: Copy, R: Copy + Default>(a: [A; 16], b: [B; 16], f: impl Fn(A, B) -> R) -> [R; 16] {
    let mut out = [R::default(); 16];
    for (out, (a, b)) in out.iter_mut().zip(a.into_iter().zip(b)) {
        *out = f(a, b);
    }
    out
}

#[inline(always)]
fn dot4(acc: i32, u: i32, s: i32) -> i32 {
    let (u, s) = (u.to_le_bytes(), s.to_le_bytes());
    (0..4).fold(acc, |acc, i| acc + i32::from(u[i]) * i32::from(s[i] as i8))
}

/// Pairs of bytes, as the 16-bit words they are.
#[inline(always)]
fn words(bytes: &[u8; 32]) -> [u16; 16] {
    let mut words = [0; 16];
    for (word, &pair) in words.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *word = u16::from_le_bytes(pair);
    }
    words
}

impl Simd for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type M = [bool; 16];
    const TILE: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        map(x, f32::abs)
    }
    #[inline(always)]
    fn neg(self, x: Self::F) -> Self::F {
        map(x, |x| -x)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b || a.is_nan() { a } else { b })
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        let mut out = b;
        for i in 0..16 {
            if mask[i] {
                out[i] = a[i];
            }
        }
        out
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        map(words(x), |word| f16::from_bits(word).to_f32())
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        *x
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> Self::I {
        let mut out = [0; 16];
        for (out, &bytes) in out.iter_mut().zip(x.as_chunks::<4>().0) {
            *out = i32::from_le_bytes(bytes);
        }
        out
    }
    #[inline(always)]
    fn store_bytes(self, x: Self::I, out: &mut [u8; 64]) {
        for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            *out = x.to_le_bytes();
        }
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        map(*x, i32::from)
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> Self::I {
        map(*x, |x| i32::from(x as i8))
    }
    #[inline(always)]
    fn store_low_bytes(self, x: Self::I, out: &mut [u8; 16]) {
        *out = map(x, |x| x as u8);
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::I) -> Self::I {
        map(x, |x| x << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::I) -> Self::I {
        map(x, |x| (x as u32 >> N) as i32)
    }
    #[inline(always)]
    fn lt_i32(self, a: Self::I, b: Self::I) -> Self::M {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn and_mask(self, a: Self::M, b: Self::M) -> Self::M {
        zip(a, b, |a, b| a && b)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I {
        map(index, |index| i32::from_le_bytes(index.to_le_bytes().map(|i| table[usize::from(i & 15)])))
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        map(x, |x| x as f32)
    }
    #[inline(always)]
    fn round_i32(self, x: Self::F) -> Self::I {
        map(x, |x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        map(x, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn of_bits(self, x: Self::I) -> Self::F {
        map(x, |x| f32::from_bits(x as u32))
    }

    #[inline(always)]
    fn dot_u8(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        zip(acc, zip(u, s, |u, s| dot4(0, u, s)), i32::wrapping_add)
    }
    #[inline(always)]
    fn dot_u7(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        self.dot_u8(acc, u, s)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, u: &[u8; 32], s: [i16; 2]) -> Self::I {
        let pair = |pair: [u8; 2]| (0..2).map(|i| i32::from(pair[i]) * i32::from(s[i])).sum::<i32>();
        zip(acc, words(u), |acc, word| acc + pair(word.to_le_bytes()))
    }
}
