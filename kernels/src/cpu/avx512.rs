//! AVX-512 with VNNI: one register a vector.

use std::arch::x86_64::*;

use super::simd::{Simd, dot_bf16};

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI, and whether it has BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ, VL and VNNI, and BF16 if so said.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Avx512(())
    }
}

/// Evaluates an expression of intrinsics.
macro_rules! vector {
    ($body:expr) => {
        // SAFETY: `self` proves that the CPU has the instructions, and every pointer comes from a reference to an
        // array that is as long as the vector read or written; the loads and stores used take any alignment.
        unsafe { $body }
    };
}

/// Lane `i` of the result is all lanes of `x[i]` taken together: each step halves the vectors, and the lanes of each.
macro_rules! lanes_folded {
    ($x:expr, $both:ident) => {{
        let x = $x;
        let mut quads = [x[0]; 4];
        for (q, quad) in quads.iter_mut().enumerate() {
            let [a, b, c, d] = [x[4 * q], x[4 * q + 1], x[4 * q + 2], x[4 * q + 3]];
            let ab = $both(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = $both(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            *quad = $both(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        }
        let [a, b, c, d] = quads;
        let ab =
            $both(_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b));
        let cd =
            $both(_mm512_shuffle_i32x4::<0b01_00_01_00>(c, d), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
        $both(_mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd), _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd))
    }};
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    const TILE: usize = 8;
    const PANELS: usize = 2;
    const DENSE_PANELS: usize = 2;
    const DENSE_TOKENS: usize = 12;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        vector!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        vector!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        vector!(_mm512_storeu_ps(out.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        vector!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn neg(self, x: Self::F) -> Self::F {
        vector!(_mm512_xor_ps(x, _mm512_set1_ps(-0.0)))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // The instruction gives `b` where either is NaN.
        vector!(_mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), a))
    }
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn sub_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        vector!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_mask_mov_ps(b, mask, a))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Self::F {
        vector!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        vector!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        vector!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        vector!(_mm512_storeu_si512(out.as_mut_ptr().cast(), x))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; 64]) -> Self::I {
        vector!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bytes(self, x: Self::I, out: &mut [u8; 64]) {
        vector!(_mm512_storeu_si512(out.as_mut_ptr().cast(), x))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        vector!(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8; 16]) -> Self::I {
        vector!(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_low_bytes(self, x: Self::I, out: &mut [u8; 16]) {
        vector!(_mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)))
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn add_product_i16(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        // The upper half of `a` is its sign, which meets 0.
        vector!(_mm512_dpwssd_epi32(acc, a, _mm512_and_si512(b, _mm512_set1_epi32(0xffff))))
    }
    #[inline(always)]
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::I) -> Self::I {
        vector!(_mm512_slli_epi32::<N>(x))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::I) -> Self::I {
        vector!(_mm512_srli_epi32::<N>(x))
    }
    #[inline(always)]
    fn lt_i32(self, a: Self::I, b: Self::I) -> Self::M {
        vector!(_mm512_cmplt_epi32_mask(a, b))
    }
    #[inline(always)]
    fn and_mask(self, a: Self::M, b: Self::M) -> Self::M {
        a & b
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I {
        vector!({
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        })
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        vector!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn round_i32(self, x: Self::F) -> Self::I {
        vector!(_mm512_cvtps_epi32(x))
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        vector!(_mm512_castps_si512(x))
    }
    #[inline(always)]
    fn of_bits(self, x: Self::I) -> Self::F {
        vector!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn dot_u8(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        vector!(_mm512_dpbusd_epi32(acc, u, s))
    }
    #[inline(always)]
    fn dot_u7(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        vector!(_mm512_dpbusd_epi32(acc, u, s))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, u: &[u8; 32], s: [i16; 2]) -> Self::I {
        vector!({
            let u = _mm512_cvtepu8_epi16(_mm256_loadu_si256(u.as_ptr().cast()));
            _mm512_dpwssd_epi32(acc, u, _mm512_set1_epi32(bytemuck::cast(s)))
        })
    }

    #[inline(always)]
    fn add_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        vector!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn scaled_integer(self, x: Self::I, scale: Self::F, offset: Self::F) -> Self::F {
        vector!(_mm512_fmadd_ps(_mm512_castsi512_ps(x), scale, offset))
    }
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::I, b: Self::I) -> Self::F {
        if BF16 {
            // The instruction takes the odd elements first, which are the high halves.
            return vector!({
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                _mm512_dpbf16_ps(acc, a, std::mem::transmute::<__m512i, __m512bh>(b))
            });
        }
        dot_bf16(self, acc, a, b)
    }
    #[inline(always)]
    fn round_f16(self, x: Self::F) -> Self::F {
        vector!(_mm512_cvtph_ps(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)))
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        vector!(_mm512_max_epu16(a, b))
    }
    #[inline(always)]
    fn at_least_u16(self, x: Self::I, least: u16) -> Self::I {
        vector!({
            let magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7fff));
            _mm512_maskz_mov_epi16(_mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16(least as i16)), x)
        })
    }

    #[inline(always)]
    fn transpose(self, rows: [Self::I; 16]) -> [Self::I; 16] {
        let r = rows;
        vector!({
            // Quads of four rows, column 4l + c of each in lane l of vector c, then the lanes of four quads gathered.
            let mut quads = [[r[0]; 4]; 4];
            for (q, quad) in quads.iter_mut().enumerate() {
                let (a, b) = (
                    _mm512_unpacklo_epi32(r[4 * q], r[4 * q + 1]),
                    _mm512_unpackhi_epi32(r[4 * q], r[4 * q + 1]),
                );
                let (c, d) = (
                    _mm512_unpacklo_epi32(r[4 * q + 2], r[4 * q + 3]),
                    _mm512_unpackhi_epi32(r[4 * q + 2], r[4 * q + 3]),
                );
                *quad = [
                    _mm512_unpacklo_epi64(a, c),
                    _mm512_unpackhi_epi64(a, c),
                    _mm512_unpacklo_epi64(b, d),
                    _mm512_unpackhi_epi64(b, d),
                ];
            }
            let mut columns = r;
            for c in 0..4 {
                let lanes = lanes_transposed([quads[0][c], quads[1][c], quads[2][c], quads[3][c]]);
                for (l, lane) in lanes.into_iter().enumerate() {
                    columns[4 * l + c] = lane;
                }
            }
            columns
        })
    }

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::I {
        vector!({
            let a = _mm_loadu_si128(rows[0].as_ptr().cast());
            let b = _mm_loadu_si128(rows[1].as_ptr().cast());
            let c = _mm_loadu_si128(rows[2].as_ptr().cast());
            let d = _mm_loadu_si128(rows[3].as_ptr().cast());
            let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
            let low = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
            let (ab, cd) = (_mm_unpackhi_epi8(a, b), _mm_unpackhi_epi8(c, d));
            let high = _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        })
    }

    #[inline(always)]
    fn interleave_wide(self, rows: [&[u8; 64]; 4]) -> [Self::I; 4] {
        vector!({
            let a = _mm512_loadu_si512(rows[0].as_ptr().cast());
            let b = _mm512_loadu_si512(rows[1].as_ptr().cast());
            let c = _mm512_loadu_si512(rows[2].as_ptr().cast());
            let d = _mm512_loadu_si512(rows[3].as_ptr().cast());
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (low0, low1) = (_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd));
            let (ab, cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [low0, low1, _mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)]
        })
    }

    #[inline(always)]
    fn in_order(self, wide: [Self::I; 4]) -> [Self::I; 4] {
        vector!(lanes_transposed(wide))
    }

    #[inline(always)]
    fn tree(self, x: Self::F) -> f32 {
        vector!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        vector!({
            if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x) == 0 { _mm512_reduce_max_ps(x) } else { f32::NAN }
        })
    }

    #[inline(always)]
    fn byte_slices(self, x: [Self::I; 4]) -> [Self::I; 2] {
        vector!({
            let (ab, cd) = (_mm512_packus_epi32(x[0], x[1]), _mm512_packus_epi32(x[2], x[3]));
            let low = _mm512_set1_epi16(255);
            let high_bytes = _mm512_packus_epi16(_mm512_srli_epi16::<8>(ab), _mm512_srli_epi16::<8>(cd));
            let low_bytes = _mm512_packus_epi16(_mm512_and_si512(ab, low), _mm512_and_si512(cd, low));
            // Packing works on 128 bits at a time: four bytes of each vector, then the next four.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            [_mm512_permutexvar_epi32(order, high_bytes), _mm512_permutexvar_epi32(order, low_bytes)]
        })
    }

    #[inline(always)]
    fn even_odd(self, a: Self::F, b: Self::F) -> [Self::F; 2] {
        vector!({
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            [_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)]
        })
    }

    #[inline(always)]
    fn largest_lane(self, x: Self::F) -> f32 {
        vector!(_mm512_reduce_max_ps(x))
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
    fn max_lanes_i32(self, x: [Self::I; 16]) -> Self::I {
        vector!(lanes_folded!(x, _mm512_max_epi32))
    }

    #[inline(always)]
    fn sum_lanes_i32(self, x: [Self::I; 16]) -> Self::I {
        vector!(lanes_folded!(x, _mm512_add_epi32))
    }

    #[inline(always)]
    fn sum_i32(self, x: Self::I) -> i32 {
        vector!(_mm512_reduce_add_epi32(x))
    }

    #[inline(always)]
    fn max_lane_i32(self, x: Self::I) -> i32 {
        vector!(_mm512_reduce_max_epi32(x))
    }
}

/// The 4 by 4 matrix of 128-bit lanes, transposed.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn lanes_transposed(x: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller has seen to it that the CPU has the instructions.
    unsafe {
        let low01 = _mm512_shuffle_i32x4::<0b01_00_01_00>(x[0], x[1]);
        let high01 = _mm512_shuffle_i32x4::<0b11_10_11_10>(x[0], x[1]);
        let low23 = _mm512_shuffle_i32x4::<0b01_00_01_00>(x[2], x[3]);
        let high23 = _mm512_shuffle_i32x4::<0b11_10_11_10>(x[2], x[3]);
        [
            _mm512_shuffle_i32x4::<0b10_00_10_00>(low01, low23),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(low01, low23),
            _mm512_shuffle_i32x4::<0b10_00_10_00>(high01, high23),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(high01, high23),
        ]
    }
}
