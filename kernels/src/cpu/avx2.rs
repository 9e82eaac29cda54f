//! AVX2 with F16C and FMA: two registers a vector, and integer dots with or without VNNI.

use std::arch::x86_64::*;

use super::simd::Simd;

/// Proof that the CPU has AVX2, F16C and FMA, and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub(super) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The CPU must have AVX2, F16C and FMA, and AVX-VNNI if `VNNI`.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Avx2(())
    }
}

/// Evaluates an expression of intrinsics.
macro_rules! vector {
    ($body:expr) => {
        // SAFETY: `self` proves that the CPU has the instructions, and every pointer comes from a reference to an
        // array that is as long as the vectors read or written; the loads and stores used take any alignment.
        unsafe { $body }
    };
}

/// Applies an intrinsic to the halves of its operands.
macro_rules! halves {
    ($f:ident $(::<$n:tt>)? ($($x:ident),*)) => {
        vector!([$f $(::<$n>)? ($($x[0]),*), $f $(::<$n>)? ($($x[1]),*)])
    };
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type M = [__m256; 2];
    const TILE: usize = 2;
    const DENSE_TOKENS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        vector!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        vector!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        vector!({
            _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x[1]);
        })
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        let sign = self.splat(-0.0);
        halves!(_mm256_andnot_ps(sign, x))
    }
    #[inline(always)]
    fn neg(self, x: Self::F) -> Self::F {
        let sign = self.splat(-0.0);
        halves!(_mm256_xor_ps(sign, x))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // The instruction gives `b` where either is NaN.
        let larger: Self::F = halves!(_mm256_max_ps(a, b));
        let nan: Self::M = halves!(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
        self.select(nan, a, larger)
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        halves!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_blendv_ps(b, a, mask))
    }
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn byte_slices(self, x: [Self::I; 4]) -> [Self::I; 2] {
        let low = vector!([_mm256_set1_epi16(255); 2]);
        let [a, b, c, d] = x;
        let ab: Self::I = halves!(_mm256_packus_epi32(a, b));
        let cd: Self::I = halves!(_mm256_packus_epi32(c, d));
        let (ab_high, cd_high): (Self::I, Self::I) =
            (halves!(_mm256_srli_epi16::<8>(ab)), halves!(_mm256_srli_epi16::<8>(cd)));
        let (ab_low, cd_low) = (self.and(ab, low), self.and(cd, low));
        let high: Self::I = halves!(_mm256_packus_epi16(ab_high, cd_high));
        let low: Self::I = halves!(_mm256_packus_epi16(ab_low, cd_low));
        // Packing works on 128 bits at a time: four bytes of each vector, then the next four.
        vector!([words_transposed(high), words_transposed(low)])
    }
    #[inline(always)]
    fn prefetch_ahead<const NEAR: bool>(self, bytes: &[u8], ahead: usize) {
        // Any address may be asked for: none is read.
        let line = bytes.as_ptr().wrapping_add(ahead).cast();
        vector!(if NEAR { _mm_prefetch::<_MM_HINT_T0>(line) } else { _mm_prefetch::<_MM_HINT_T1>(line) })
    }
    #[inline(always)]
    fn prefetch(self, byte: &u8) {
        vector!(_mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(byte).cast()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        vector!([
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(16).cast())),
        ])
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        vector!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        vector!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())])
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        vector!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), x[1]);
        })
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> Self::I {
        vector!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(32).cast())])
    }
    #[inline(always)]
    fn store_bytes(self, x: Self::I, out: &mut [u8; 64]) {
        vector!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), x[1]);
        })
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        vector!({
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))]
        })
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> Self::I {
        vector!({
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))]
        })
    }
    #[inline(always)]
    fn store_low_bytes(self, x: Self::I, out: &mut [u8; 16]) {
        let low = self.and(x, self.splat_i32(255));
        vector!({
            // Packs the halves of each register apart: lanes 0-3, 8-11, 4-7, 12-15 before the permutation.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low[0], low[1]));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        })
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn add_product_i16(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        // The upper half of `a` is its sign, which meets 0.
        let b = self.and(b, self.splat_i32(0xffff));
        let product: Self::I = halves!(_mm256_madd_epi16(a, b));
        self.add_i32(acc, product)
    }
    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::I) -> Self::I {
        vector!({
            let count = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi32(x[0], count), _mm256_sll_epi32(x[1], count)]
        })
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::I) -> Self::I {
        vector!({
            let count = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi32(x[0], count), _mm256_srl_epi32(x[1], count)]
        })
    }
    #[inline(always)]
    fn lt_i32(self, a: Self::I, b: Self::I) -> Self::M {
        let mask: Self::I = halves!(_mm256_cmpgt_epi32(b, a));
        self.of_bits(mask)
    }
    #[inline(always)]
    fn and_mask(self, a: Self::M, b: Self::M) -> Self::M {
        halves!(_mm256_and_ps(a, b))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I {
        vector!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, index[0]), _mm256_shuffle_epi8(table, index[1])]
        })
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        halves!(_mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn round_i32(self, x: Self::F) -> Self::I {
        halves!(_mm256_cvtps_epi32(x))
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        halves!(_mm256_castps_si256(x))
    }
    #[inline(always)]
    fn of_bits(self, x: Self::I) -> Self::F {
        halves!(_mm256_castsi256_ps(x))
    }

    #[inline(always)]
    fn dot_u8(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        if VNNI {
            return halves!(_mm256_dpbusd_avx_epi32(acc, u, s));
        }
        // `maddubs` would saturate, so even and odd bytes are widened to 16 bits and multiplied apart.
        let low = vector!([_mm256_set1_epi16(255); 2]);
        let even: Self::I = self.and(u, low);
        let odd: Self::I = halves!(_mm256_srli_epi16::<8>(u));
        let left: Self::I = halves!(_mm256_slli_epi16::<8>(s));
        let s_even: Self::I = halves!(_mm256_srai_epi16::<8>(left));
        let s_odd: Self::I = halves!(_mm256_srai_epi16::<8>(s));
        let even: Self::I = halves!(_mm256_madd_epi16(even, s_even));
        let odd: Self::I = halves!(_mm256_madd_epi16(odd, s_odd));
        self.add_i32(acc, self.add_i32(even, odd))
    }
    #[inline(always)]
    fn dot_u7(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        if VNNI {
            return halves!(_mm256_dpbusd_avx_epi32(acc, u, s));
        }
        // Two products are at most 2 * 127 * 127 in magnitude, which 16 bits hold.
        let ones = vector!([_mm256_set1_epi16(1); 2]);
        let pairs: Self::I = halves!(_mm256_maddubs_epi16(u, s));
        let sums: Self::I = halves!(_mm256_madd_epi16(pairs, ones));
        self.add_i32(acc, sums)
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, u: &[u8; 32], s: [i16; 2]) -> Self::I {
        let u: Self::I = vector!([
            _mm256_cvtepu8_epi16(_mm_loadu_si128(u.as_ptr().cast())),
            _mm256_cvtepu8_epi16(_mm_loadu_si128(u.as_ptr().add(16).cast())),
        ]);
        let s = self.splat_i32(bytemuck::cast(s));
        let sums: Self::I = halves!(_mm256_madd_epi16(u, s));
        self.add_i32(acc, sums)
    }

    #[inline(always)]
    fn add_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn scaled_integer(self, x: Self::I, scale: Self::F, offset: Self::F) -> Self::F {
        let x = self.of_bits(x);
        halves!(_mm256_fmadd_ps(x, scale, offset))
    }
    #[inline(always)]
    fn round_f16(self, x: Self::F) -> Self::F {
        let rounded: [__m128i; 2] = halves!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        halves!(_mm256_cvtph_ps(rounded))
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_max_epu16(a, b))
    }
    #[inline(always)]
    fn at_least_u16(self, x: Self::I, least: u16) -> Self::I {
        let magnitude = self.and(x, self.splat_i32(0x7fff_7fff));
        let below = vector!([_mm256_set1_epi16(least as i16 - 1); 2]);
        let kept: Self::I = halves!(_mm256_cmpgt_epi16(magnitude, below));
        self.and(x, kept)
    }
    #[inline(always)]
    fn sub_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_fnmadd_ps(a, b, c))
    }
}

/// The 4 by 4 matrix of 32-bit words, transposed.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn words_transposed(x: [__m256i; 2]) -> [__m256i; 2] {
    // SAFETY: the caller has seen to it that the CPU has the instructions.
    unsafe {
        let columns = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let [a, b] = x.map(|x| _mm256_permutevar8x32_epi32(x, columns));
        let (even, odd) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        [_mm256_permute2x128_si256::<0x20>(even, odd), _mm256_permute2x128_si256::<0x31>(even, odd)]
    }
}
