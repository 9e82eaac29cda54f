//! The contract's exponential and the functions built on it.

/// Above this, `exp` is infinite.
pub const EXP_MAX: f32 = 88.722_83;
/// Below this, `exp` is +0: `-64 ln 2`.
pub const EXP_MIN: f32 = -44.361_42;
/// `1 / ln 2`.
pub const LOG2E: f32 = std::f32::consts::LOG2_E;
/// High part of `ln 2`, with trailing zeros enough that `n * LN2_HI` is exact.
pub const LN2_HI: f32 = 0.693_359_4;
/// `ln 2 - LN2_HI`.
pub const LN2_LO: f32 = -2.121_944_4e-4;
/// Coefficients, highest degree first.
pub const EXP_POLY: [f32; 7] = [1.388_888_9e-3, 8.333_333e-3, 4.166_666_6e-2, 0.166_666_67, 0.5, 1.0, 1.0];
/// Cubic coefficient of gelu.
pub const GELU_CUBIC: f32 = 0.044715;
/// `2 sqrt(2 / pi)`.
pub const GELU_SCALE: f32 = 1.595_769_1;

/// `e^x`.
pub fn exp(x: f32) -> f32 {
    let n = (x * LOG2E).round_ties_even();
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = EXP_POLY[0];
    for &c in &EXP_POLY[1..] {
        p = p * r + c;
    }
    let y = f32::from_bits((p.to_bits() as i32).wrapping_add((n as i32).wrapping_shl(23)) as u32);
    if x > EXP_MAX {
        f32::INFINITY
    } else if x < EXP_MIN {
        0.0
    } else {
        y
    }
}
/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
/// `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}
/// Hyperbolic tangent.
pub fn tanh(x: f32) -> f32 {
    let t = exp(-2.0 * x.abs());
    let y = (1.0 - t) / (1.0 + t);
    if x < 0.0 { -y } else { y }
}
/// The tanh approximation of GELU.
pub fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(GELU_SCALE * (x + GELU_CUBIC * (x * x * x)))
}
