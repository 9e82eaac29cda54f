//! Transcendental functions; the scalar functions of the same names in the crate root are the same steps.

use crate::{
    Activation, Backend, BinaryOp, CompareOp, DType, Result, Tensor, UnaryOp,
    exp::{EXP_MAX, EXP_MIN, EXP_POLY, GELU_CUBIC, GELU_SCALE, LN2_HI, LN2_LO, LOG2E},
};

/// `e^x`, at most 2 ulp from the true value; +0 below `EXP_MIN`, infinity above `EXP_MAX`. Steps of [`crate::exp()`].
pub fn exp<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    let n = x.scalar(BinaryOp::Mul, LOG2E)?.unary(UnaryOp::RoundEven)?;
    let high = x.sub(&n.scalar(BinaryOp::Mul, LN2_HI)?)?;
    let r = high.sub(&n.scalar(BinaryOp::Mul, LN2_LO)?)?;
    let mut p = x.filled(EXP_POLY[0])?;
    for &coefficient in &EXP_POLY[1..] {
        p = p.mul(&r)?.scalar(BinaryOp::Add, coefficient)?;
    }
    let exponent = n.cast(DType::I32)?.scalar(BinaryOp::Shl, 23)?;
    let scaled = p.bitcast(DType::I32)?.add(&exponent)?.bitcast(DType::F32)?;
    let floored = x.compare_scalar(CompareOp::Lt, EXP_MIN)?.select(&x.filled(0.0)?, &scaled)?;
    x.filled(EXP_MAX)?.lt(x)?.select(&x.filled(f32::INFINITY)?, &floored)
}

/// `1 / (1 + exp(-x))`; +0 below `EXP_MIN`. Steps of [`crate::sigmoid`].
pub fn sigmoid<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    let quotient = x.filled(1.0)?.div(&one_plus_exp_neg(x)?)?;
    x.compare_scalar(CompareOp::Lt, EXP_MIN)?.select(&x.filled(0.0)?, &quotient)
}

/// `tanh(x)`, odd by construction. Steps of [`crate::tanh`].
pub fn tanh<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    let t = exp(&x.unary(UnaryOp::Abs)?.scalar(BinaryOp::Mul, -2.0)?)?;
    let one = x.filled(1.0)?;
    let magnitude = one.sub(&t)?.div(&one.add(&t)?)?;
    x.compare_scalar(CompareOp::Lt, 0.0)?.select(&magnitude.unary(UnaryOp::Neg)?, &magnitude)
}

/// `activation(x)`: silu is `x / (1 + exp(-x))`, gelu is `x * sigmoid(GELU_SCALE * (x + GELU_CUBIC * x^3))`.
pub fn activate<B: Backend>(x: &Tensor<B>, activation: Activation) -> Result<Tensor<B>> {
    match activation {
        Activation::Silu => x.div(&one_plus_exp_neg(x)?),
        Activation::GeluTanh => {
            let cubic = x.mul(x)?.mul(x)?.scalar(BinaryOp::Mul, GELU_CUBIC)?;
            let inner = x.add(&cubic)?.scalar(BinaryOp::Mul, GELU_SCALE)?;
            x.mul(&sigmoid(&inner)?)
        }
    }
}

/// `activation(gate) * up`.
pub fn glu<B: Backend>(gate: &Tensor<B>, up: &Tensor<B>, activation: Activation) -> Result<Tensor<B>> {
    activate(gate, activation)?.mul(up)
}

/// `tanh(x * (1 / cap)) * cap`, with `1 / cap` rounded to f32 once.
pub fn soft_cap<B: Backend>(x: &Tensor<B>, cap: f32) -> Result<Tensor<B>> {
    tanh(&x.scalar(BinaryOp::Mul, 1.0 / cap)?)?.scalar(BinaryOp::Mul, cap)
}

fn one_plus_exp_neg<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    exp(&x.unary(UnaryOp::Neg)?)?.scalar(BinaryOp::Add, 1.0)
}
