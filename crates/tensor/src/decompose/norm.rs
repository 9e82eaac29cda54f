use crate::{Backend, BinaryOp, Result, Tensor, UnaryOp, decompose::exp, decompose::sum_last};

/// `y = (x * r) * w` with `r = 1 / sqrt(sum(x * x) * (1 / n) + eps)`, for rows of `x [m, n]`.
///
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
pub fn rms_norm<B: Backend>(x: &Tensor<B>, weight: &Tensor<B>, eps: f32) -> Result<Tensor<B>> {
    let r = reciprocal_root(&sum_last(&x.mul(x)?)?, x.dims()[1], eps)?;
    x.mul(&across(&r, x)?)?.mul(&down(weight, x)?)
}

/// `y = ((x - mean) * r) * w + b` with `mean = sum(x) * (1 / n)` and `r` as in [`rms_norm`] of `x - mean`.
///
/// Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
pub fn layer_norm<B: Backend>(
    x: &Tensor<B>,
    weight: &Tensor<B>,
    bias: &Tensor<B>,
    eps: f32,
) -> Result<Tensor<B>> {
    let mean = sum_last(x)?.scalar(BinaryOp::Mul, 1.0 / x.dims()[1] as f32)?;
    let centred = x.sub(&across(&mean, x)?)?;
    rms_norm(&centred, weight, eps)?.add(&down(bias, x)?)
}

/// `exp(x - max) / sum(exp(x - max))` for rows of `x [m, n]`.
pub fn softmax<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    let e = exp(&x.sub(&across(&x.max_last()?, x)?)?)?;
    e.div(&across(&sum_last(&e)?, x)?)
}

/// `1 / sqrt(s * (1 / n) + eps)`.
fn reciprocal_root<B: Backend>(s: &Tensor<B>, n: usize, eps: f32) -> Result<Tensor<B>> {
    let mean = s.scalar(BinaryOp::Mul, 1.0 / n as f32)?;
    let root = mean.scalar(BinaryOp::Add, eps)?.unary(UnaryOp::Sqrt)?;
    root.filled(1.0)?.div(&root)
}

/// A value of each row `[m]`, repeated along the columns of `x [m, n]`.
fn across<B: Backend>(rows: &Tensor<B>, x: &Tensor<B>) -> Result<Tensor<B>> {
    rows.repeat(1, x.dims()[1])
}

/// A vector of columns `[n]`, repeated down the rows of `x [m, n]`.
fn down<B: Backend>(columns: &Tensor<B>, x: &Tensor<B>) -> Result<Tensor<B>> {
    columns.repeat(0, x.dims()[0])
}
