//! The types of weights.

use std::cmp::Ordering;

use bytemuck::Pod;
use samebits_tensor::contract::{DOT_SPAN, TINY};

use super::super::{panel::LANES, simd::Simd};

/// How weights of a type are read and multiplied.
pub(super) trait Element {
    /// Columns of a step.
    const COLS: usize;
    /// Vectors of weights of a step, and words of a token's activations.
    const VECTORS: usize;
    /// Vectors of a span.
    const SPAN: usize = DOT_SPAN / Self::COLS * Self::VECTORS;
    /// Whether [`Simd::dot_bf16`] is used.
    const BF16_DOTS: bool = false;
    /// A step of 16 rows.
    type Step: Pod;
    /// The same with products that are rounded before they are added.
    type Rounded: Element<Step = Self::Step>;

    /// The weights of a step, those below [`TINY`] as +0, in [`Self::VECTORS`] of two vectors. Keeps the largest.
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2];
    /// `acc + weights * x`, of a pair the first column first.
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F;
    /// Activations rounded to the type of the weights.
    fn round<S: Simd>(s: S, x: S::F) -> S::F;
    /// Whether a product may be too large for [`Self::add`], given the largest weights and the bits of the largest
    /// activation.
    #[inline(always)]
    fn overflows<S: Simd>(_s: S, _weights: S::I, _x: u32) -> bool {
        false
    }
}

pub(super) struct F32;
pub(super) struct F16;
/// Columns apart; fused or not.
pub(super) struct Bf16<const FUSED: bool>;
/// Columns in pairs; fused or not.
pub(super) struct Bf16Pairs<const FUSED: bool>;

impl Element for F32 {
    const COLS: usize = 1;
    const VECTORS: usize = 1;
    type Step = [u8; 4 * LANES];
    type Rounded = F32;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, _: &mut S::I) -> [S::F; 2] {
        [without_tiny(s, s.of_bits(s.load_bytes(step))); 2]
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        s.add(acc, s.mul(weights, x))
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, x: S::F) -> S::F {
        x
    }
}

impl Element for F16 {
    const COLS: usize = 1;
    const VECTORS: usize = 1;
    type Step = [u8; 2 * LANES];
    /// No product of two f16 is rounded or too large.
    type Rounded = F16;

    /// No f16 but zero is below [`TINY`].
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, _: &mut S::I) -> [S::F; 2] {
        [s.load_f16(step); 2]
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        s.add_exact_product(acc, weights, x)
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        s.round_f16(x)
    }
}

/// The high half of each word.
const HIGH: i32 = 0xffff << 16;

impl<const FUSED: bool> Element for Bf16<FUSED> {
    const COLS: usize = 2;
    const VECTORS: usize = 2;
    type Step = [u8; 4 * LANES];
    type Rounded = Bf16<false>;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2] {
        halves(s, load_pairs::<S, FUSED>(s, step, largest))
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        if FUSED { s.add_exact_product(acc, weights, x) } else { s.add(acc, s.mul(weights, x)) }
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        round_bf16(s, x)
    }
    #[inline(always)]
    fn overflows<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
        FUSED && pairs_overflow(s, weights, x)
    }
}

impl<const FUSED: bool> Element for Bf16Pairs<FUSED> {
    const COLS: usize = 2;
    const VECTORS: usize = 1;
    const BF16_DOTS: bool = FUSED;
    type Step = [u8; 4 * LANES];
    type Rounded = Bf16Pairs<false>;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2] {
        [s.of_bits(load_pairs::<S, FUSED>(s, step, largest)); 2]
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        let (weights, x) = (s.bits(weights), s.bits(x));
        if FUSED {
            return s.dot_bf16(acc, weights, x);
        }
        let ([w0, w1], [x0, x1]) = (halves(s, weights), halves(s, x));
        s.add(s.add(acc, s.mul(w0, x0)), s.mul(w1, x1))
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        round_bf16(s, x)
    }
    #[inline(always)]
    fn overflows<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
        FUSED && pairs_overflow(s, weights, x)
    }
}

/// Pairs of weights, those below [`TINY`] as +0. Keeps the largest if asked to.
#[inline(always)]
fn load_pairs<S: Simd, const KEEP: bool>(s: S, step: &[u8; 4 * LANES], largest: &mut S::I) -> S::I {
    let pairs = s.at_least_u16(s.load_bytes(step), (TINY.to_bits() >> 16) as u16);
    if KEEP {
        *largest = s.max_u16(*largest, s.and(pairs, s.splat_i32(0x7fff_7fff)));
    }
    pairs
}

/// The columns of pairs, widened.
#[inline(always)]
fn halves<S: Simd>(s: S, pairs: S::I) -> [S::F; 2] {
    [s.of_bits(s.and(pairs, s.splat_i32(HIGH))), s.of_bits(s.shl::<16>(pairs))]
}

/// Two columns of rounded values in a word each.
#[inline(always)]
pub(super) fn pairs<S: Simd>(s: S, first: S::I, second: S::I) -> S::I {
    s.or(s.and(first, s.splat_i32(HIGH)), s.shr::<16>(second))
}

/// The nearest bf16, ties to even, widened.
#[inline(always)]
fn round_bf16<S: Simd>(s: S, x: S::F) -> S::F {
    let bits = s.bits(x);
    let odd = s.and(s.shr::<16>(bits), s.splat_i32(1));
    let rounded = s.and(s.add_i32(bits, s.add_i32(odd, s.splat_i32(0x7fff))), s.splat_i32(HIGH));
    let is_nan = s.lt_i32(s.splat_i32(f32::INFINITY.to_bits() as i32), s.bits(s.abs(x)));
    s.select(is_nan, s.splat(f32::NAN), s.of_bits(rounded))
}

/// Whether a product of two bf16 may be too large for an f32; it is one exactly otherwise.
#[inline(always)]
fn pairs_overflow<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
    let (high, low) = (s.shr::<16>(weights), s.and(weights, s.splat_i32(0xffff)));
    let weight = f32::from_bits((s.max_lane_i32(s.max_i32(high, low)) as u32) << 16);
    let largest = f64::from(weight) * f64::from(f32::from_bits(x));
    // True for NaN as well.
    !matches!(largest.partial_cmp(&f64::from(f32::MAX)), Some(Ordering::Less))
}

#[inline(always)]
pub(super) fn without_tiny<S: Simd>(s: S, x: S::F) -> S::F {
    s.select(s.lt(s.abs(x), s.splat(TINY)), s.splat(0.0), x)
}
