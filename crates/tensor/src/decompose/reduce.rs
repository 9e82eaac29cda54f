//! The two orders in which floats are summed (rule R5).

use std::ops::Range;

use crate::{
    Backend, Error, Result, Tensor,
    contract::{DOT_SPAN, SUM_LANES},
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

/// Most elements of terms that are computed at once: a graph of many terms is far smaller than a graph of each.
const TERMS: usize = 1 << 23;

/// `dot`'s order over terms `[m, n]` that each stand for `step` values of the contraction index: in order inside spans of 512
/// values, one accumulator a span starting at +0, then the spans in order. `term` computes those of a range, as `[range, m, n]`;
/// each takes `size` elements.
pub fn add_in_order<B: Backend>(
    terms: usize,
    step: usize,
    size: usize,
    mut term: impl FnMut(Range<usize>) -> Result<Tensor<B>>,
) -> Result<Tensor<B>> {
    let per_span = DOT_SPAN / step;
    let together = (TERMS / size.max(1)).max(1);
    let (mut start, mut total) = (0, None::<Tensor<B>>);
    while start < terms {
        let spans = (together / per_span).max(1).min((terms - start) / per_span);
        let end = if spans == 0 { terms } else { start + spans * per_span };
        let sums = add_spans(start..end, spans.max(1), together, &mut term)?;
        for span in 0..spans.max(1) {
            let span = sums.at(0, span)?;
            total = Some(match total {
                Some(total) => total.add(&span)?,
                None => span,
            });
        }
        start = end;
    }
    total.ok_or_else(|| Error::shape("dot", "an empty contraction"))
}

/// Sums `[spans, m, n]` of as many spans, each of the same number of terms. Of a single one, no more terms than `together` are
/// computed at once.
fn add_spans<B: Backend>(
    range: Range<usize>,
    spans: usize,
    together: usize,
    term: &mut impl FnMut(Range<usize>) -> Result<Tensor<B>>,
) -> Result<Tensor<B>> {
    let mut sums: Option<Tensor<B>> = None;
    let stride = if spans == 1 { together } else { range.len() };
    for start in range.clone().step_by(stride) {
        let terms = term(start..range.end.min(start + stride))?;
        let &[count, m, n] = terms.dims() else { return Err(Error::shape("dot", "terms are matrices")) };
        let terms = terms.reshape([spans, count / spans, m, n])?;
        let mut sum = match sums {
            Some(sums) => sums,
            None => Tensor::full(terms.backend(), [spans, m, n], 0.0)?,
        };
        for index in 0..count / spans {
            sum = sum.add(&terms.at(1, index)?)?;
        }
        sums = Some(sum);
    }
    sums.ok_or_else(|| Error::shape("dot", "an empty span"))
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
