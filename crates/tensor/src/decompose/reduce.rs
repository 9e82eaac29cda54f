//! The two orders in which floats are summed (rule R5).

use crate::{
    Backend, Result, Tensor,
    contract::{DOT_SPAN, SUM_LANES},
    tensor::check,
};

/// `sum` of the last axis, which is dropped: 128 strided lanes, each starting at +0, then a halving tree.
pub fn sum_last<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    let axis = x.shape().rank() - 1;
    let mut lanes = Tensor::full(x.backend(), x.shape().with(axis, SUM_LANES), 0.0)?;
    for start in (0..x.dims()[axis]).step_by(SUM_LANES) {
        let end = (start + SUM_LANES).min(x.dims()[axis]);
        lanes = lanes.add(&pad_last(&x.narrow(axis, start..end)?, SUM_LANES)?)?;
    }
    let mut width = SUM_LANES;
    while width > 1 {
        width /= 2;
        lanes = lanes.narrow(axis, 0..width)?.add(&lanes.narrow(axis, width..2 * width)?)?;
    }
    lanes.at(axis, 0)
}

/// `dot`'s order over terms that each stand for `step` values of the contraction index: `term(i)` for `i` in
/// `0..terms`, in order inside spans of 512 values, one accumulator a span starting at +0, then the spans in order.
pub fn add_in_order<B: Backend>(
    terms: usize,
    step: usize,
    mut term: impl FnMut(usize) -> Result<Tensor<B>>,
) -> Result<Tensor<B>> {
    check(terms > 0, "dot", || "an empty contraction".into())?;
    let per_span = DOT_SPAN / step;
    let mut total: Option<Tensor<B>> = None;
    for start in (0..terms).step_by(per_span) {
        let first = term(start)?;
        let mut span = first.filled(0.0)?.add(&first)?;
        for index in start + 1..(start + per_span).min(terms) {
            span = span.add(&term(index)?)?;
        }
        total = Some(match total {
            Some(total) => total.add(&span)?,
            None => span,
        });
    }
    total.ok_or_else(|| crate::Error::shape("dot", "an empty contraction"))
}

/// `x` with +0 after the last axis up to `extent`: adding +0 to a sum that started at +0 changes no bit.
fn pad_last<B: Backend>(x: &Tensor<B>, extent: usize) -> Result<Tensor<B>> {
    let axis = x.shape().rank() - 1;
    let missing = extent - x.dims()[axis];
    if missing == 0 {
        return Ok(x.clone());
    }
    let zeros = Tensor::full(x.backend(), x.shape().with(axis, missing), 0.0)?;
    Tensor::concat(&[x, &zeros], axis)
}
