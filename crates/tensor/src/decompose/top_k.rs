use crate::{Backend, CompareOp, DType, Result, Tensor, UnaryOp};

/// The `k` greatest of each row of `x [m, n]` in descending order, as i32 `[m, 2, k]`: columns, then the bits of the values.
///
/// The order is total: +inf and NaN of either sign first, then numbers, -0 and +0 as equals; of equals the lower column first.
pub fn top_k<B: Backend>(x: &Tensor<B>, k: usize) -> Result<Tensor<B>> {
    let bits = x.bitcast(DType::I32)?;
    let columns = Tensor::iota(x.backend(), x.shape(), 1)?;
    let mut keys = keys(x)?;
    let mut found = Vec::with_capacity(2 * k);
    for _ in 0..k {
        let is_greatest = keys.compare(CompareOp::Eq, &across(&keys.max_last()?, x)?)?;
        // The largest of `-column` is the lowest column.
        let column = is_greatest
            .select(&columns.unary(UnaryOp::Neg)?, &columns.filled(i32::MIN)?)?
            .max_last()?
            .unary(UnaryOp::Neg)?;
        let is_first = columns.compare(CompareOp::Eq, &across(&column, x)?)?;
        let value = is_first.select(&bits, &bits.filled(i32::MIN)?)?.max_last()?;
        keys = is_first.select(&keys.filled(TAKEN)?, &keys)?;
        found.push([column, value]);
    }
    let rows = [x.dims()[0], 1, 1];
    let part = |i: usize| -> Result<Tensor<B>> {
        let parts: Vec<_> = found.iter().map(|pair| pair[i].reshape(rows)).collect::<Result<_>>()?;
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), 2)
    };
    Tensor::concat(&[&part(0)?, &part(1)?], 1)
}

/// Below the key of every value.
const TAKEN: i32 = i32::MIN;

/// Integers in the order of the values, equal where these are.
fn keys<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    let bits = x.bitcast(DType::I32)?;
    // Negative floats descend as their bits ascend; -0, the least of all bits, becomes 0.
    let mirrored = bits.filled(i32::MIN)?.sub(&bits)?;
    let ordered = bits.compare_scalar(CompareOp::Lt, 0)?.select(&mirrored, &bits)?;
    let is_number = x.compare_scalar(CompareOp::Lt, f32::INFINITY)?;
    is_number.select(&ordered, &ordered.filled(i32::MAX)?)
}

/// A value of each row `[m]`, repeated along the columns of `x [m, n]`.
fn across<B: Backend>(rows: &Tensor<B>, x: &Tensor<B>) -> Result<Tensor<B>> {
    rows.repeat(1, x.dims()[1])
}
