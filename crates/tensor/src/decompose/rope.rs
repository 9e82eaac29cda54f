use crate::{Backend, Result, RopeTable, Tensor};

/// Rotates channel pairs `(i, i + half)` of `x [t, heads, head_dim]` by the table's angle at each token's
/// position: `(x0 * c - x1 * s, x1 * c + x0 * s)`, each product rounded.
///
/// Source: Su et al., "RoFormer", 2021, in the half-split order of Hugging Face checkpoints.
pub fn rope<B: Backend>(x: &Tensor<B>, positions: &Tensor<B>, table: &RopeTable<B>) -> Result<Tensor<B>> {
    let (heads, half) = (x.dims()[1], table.cos.dims()[1]);
    let cos = table.cos.gather(positions)?.repeat(1, heads)?;
    let sin = table.sin.gather(positions)?.repeat(1, heads)?;
    let x0 = x.narrow(2, 0..half)?;
    let x1 = x.narrow(2, half..2 * half)?;
    let y0 = x0.mul(&cos)?.sub(&x1.mul(&sin)?)?;
    let y1 = x1.mul(&cos)?.add(&x0.mul(&sin)?)?;
    let rest = x.narrow(2, 2 * half..x.dims()[2])?;
    if rest.dims()[2] == 0 { Tensor::concat(&[&y0, &y1], 2) } else { Tensor::concat(&[&y0, &y1, &rest], 2) }
}
