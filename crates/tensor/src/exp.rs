//! The contract's exponential and the functions built on it, as scalar code: the order of operations that every
//! backend follows. All of it is IEEE-754 f32 multiplication, addition, division, rounding to the nearest even
//! integer, comparison and integer work on bits; no operation may be fused with another.

use std::f32::consts;

/// The largest `x` whose exponential is finite; above it, [`exp`] is infinity.
pub const EXP_MAX: f32 = f32::from_bits(0x42b1_7217);

/// `-64 ln 2` rounded to f32; below it, [`exp`] is +0.
pub const EXP_MIN: f32 = -44.361_42;

/// `1 / ln 2` rounded to f32.
pub const LOG2E: f32 = consts::LOG2_E;

/// The leading 15 bits of `ln 2`, so that `n * LN2_HI` is exact for every integer `|n| <= 512`.
pub const LN2_HI: f32 = f32::from_bits(0x3f31_7200);

/// `ln 2 - LN2_HI` rounded to f32.
pub const LN2_LO: f32 = 1.428_606_8e-6;

/// Coefficients of `e^r` on `|r| <= ln 2 / 2`, highest degree first.
///
/// A minimax fit (Remez) of relative error below 2^-28, with the two last coefficients held at 1 and the others
/// rounded to f32 one after another, lowest degree first, each followed by a new fit of the rest.
pub const EXP_POLY: [f32; 7] =
    [0.001_383_890_3, 0.008_369_192_5, 0.041_668_102, 0.166_665_17, 0.499_999_94, 1.0, 1.0];

/// `2 sqrt(2 / pi)` rounded to f32.
pub const GELU_SCALE: f32 = 1.595_769_2;

/// Factor of the cubic term in the tanh form of GELU.
pub const GELU_CUBIC: f32 = 0.044_715;

/// `e^x`, at most 1.17 ulp from the true value. From one `x` to the next float it may fall, by one ulp at most.
///
/// Above [`EXP_MAX`] it is infinity. Below [`EXP_MIN`], where the true value is under 2^-64, it is +0: a product with
/// it is then either zero or far from the subnormal range, whose treatment differs between chips. `exp(0)` is 1.
/// A NaN gives a NaN of unspecified payload.
#[inline]
pub fn exp(x: f32) -> f32 {
    if x > EXP_MAX {
        return f32::INFINITY;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    let n = (x * LOG2E).round_ties_even();
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = EXP_POLY[0];
    for coefficient in &EXP_POLY[1..] {
        p = p * r + coefficient;
    }
    // Where n is 128, p is below 1, and so the sum is still a finite number's bits.
    f32::from_bits(p.to_bits().wrapping_add((n as i32 as u32) << 23))
}

/// `1 / (1 + exp(-x))`, at most 2.5 ulp from the true value; +0 below [`EXP_MIN`], where the quotient could be subnormal.
#[inline]
pub fn sigmoid(x: f32) -> f32 {
    if x < EXP_MIN { 0.0 } else { 1.0 / (1.0 + exp(-x)) }
}

/// `x / (1 + exp(-x))`, at most 2.5 ulp from the true value while `x >= EXP_MIN`. Minus infinity gives NaN.
#[inline]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `(1 - t) / (1 + t)` with `t = exp(-2 |x|)`, negated where `x < 0`. The error is at most
/// 1e-7, absolute: near zero the result is a multiple of 2^-25.
#[inline]
pub fn tanh(x: f32) -> f32 {
    let t = exp(x.abs() * -2.0);
    let magnitude = (1.0 - t) / (1.0 + t);
    if x < 0.0 { -magnitude } else { magnitude }
}

/// GELU in its tanh form: `x * sigmoid((x + ((x * x) * x) * GELU_CUBIC) * GELU_SCALE)`.
///
/// At most 3 ulp from the true value where `x > 0`, and 6e-8, absolute, where `x < 0`.
#[inline]
pub fn gelu_tanh(x: f32) -> f32 {
    let cubic = x * x * x * GELU_CUBIC;
    x * sigmoid((x + cubic) * GELU_SCALE)
}
