use crate::{
    Backend, BinaryOp, CompareOp, DType, FeedForward, Input, PlainWeight, Result, Tensor, UnaryOp,
    contract::{Q8_MAX, Q8_MAX_RECIPROCAL, TINY},
    decompose::add_in_order,
    tensor::check,
};

/// `x [m, k]` times the transpose of a weight `[n, k]`, as `[m, n]`: [`linear_groups`] of one group.
pub fn linear<B: Backend>(x: &Tensor<B>, weight: &PlainWeight<B>) -> Result<Tensor<B>> {
    linear_groups(x, weight, 1)
}

/// `x [groups * m, k]` times the transpose of a weight `[groups * n, k]`, the rows of each group with those of the same group,
/// as `[groups * m, n]`.
///
/// Float weights: the activation is rounded to the weight's type, then `dot`. Quantised weights: the
/// activation is quantised in blocks as long as the weight's, integer dots are exact, and each block adds one
/// term to `dot`:
/// `(scale * isum) * d`, or `(scale * isum + min * xsum) * d` or `(scale * isum - min_scale * msum) * d` where the format has
/// a minimum.
pub fn linear_groups<B: Backend>(x: &Tensor<B>, weight: &PlainWeight<B>, groups: usize) -> Result<Tensor<B>> {
    let ((rows, cols), m) = (weight.dims(), x.dims()[0]);
    let fits = groups > 0 && rows.is_multiple_of(groups) && m.is_multiple_of(groups);
    check(fits && x.dims()[1] == cols, "linear", || {
        format!("x {} with weight [{rows}, {cols}] in {groups} groups", x.shape())
    })?;
    let groups = Groups { count: groups, m: m / groups, n: rows / groups };
    match weight {
        PlainWeight::Dense(weight) => dense(x, weight, groups),
        PlainWeight::Blocks32 { q, scale, min } => blocks32(x, q, scale, min.as_ref(), groups),
        PlainWeight::Blocks256 { q, scale, sub_scale, min } => {
            blocks256(x, q, scale, sub_scale, min.as_ref(), groups)
        }
    }
}

/// `down(activation(gate(x)) * up(x))` of an input `[m, k]`, as `[m, n]`: linear layers around [`super::glu`].
pub fn feed_forward<B: Backend>(x: Input<'_, B>, layer: FeedForward<'_, B>) -> Result<Tensor<B>> {
    let [gate, up] = x.linears([layer.gate, layer.up])?;
    gate.glu(&up, layer.activation)?.all_gather(1)?.linear(layer.down)
}

/// Rows of a weight at `ids [t]`, as f32: `q * scale (+ min)`, or `q * (scale * sub_scale) - min_scale * sub_min`.
pub fn embedding<B: Backend>(ids: &Tensor<B>, weight: &PlainWeight<B>) -> Result<Tensor<B>> {
    let cols = weight.dims().1;
    let float = |x: &Tensor<B>| x.gather(ids)?.cast(DType::F32);
    let spread = |x: &Tensor<B>| {
        let &[t, blocks] = x.dims() else { unreachable!("a matrix") };
        match cols.checked_div(blocks) {
            Some(len) => x.repeat(2, len)?.reshape([t, cols]),
            None => x.reshape([t, 0]),
        }
    };
    match weight {
        PlainWeight::Dense(weight) => float(weight),
        PlainWeight::Blocks32 { q, scale, min } => {
            let value = float(q)?.mul(&spread(&float(scale)?)?)?;
            min.as_ref().map_or(Ok(value.clone()), |min| value.add(&spread(&float(min)?)?))
        }
        PlainWeight::Blocks256 { q, scale, sub_scale, min } => {
            let scale = spread(&float(scale)?)?.mul(&spread(&float(sub_scale)?)?)?;
            let value = float(q)?.mul(&scale)?;
            min.as_ref().map_or(Ok(value.clone()), |(min, sub_min)| {
                value.sub(&spread(&float(min)?)?.mul(&spread(&float(sub_min)?)?)?)
            })
        }
    }
}

/// Quantises `x […, blocks, n]` in blocks of the last axis: int8 values of that shape, and scales `[…, blocks]`.
///
/// `d = max|x| * (1 / 127)`, `q = rne(x * (127 / max|x|))`; a scale below [`TINY`] is zero, and so are its values.
pub fn quantize_blocks<B: Backend>(x: &Tensor<B>) -> Result<(Tensor<B>, Tensor<B>)> {
    let axis = x.shape().rank() - 1;
    let amax = x.unary(UnaryOp::Abs)?.max_last()?;
    let scale = amax.scalar(BinaryOp::Mul, Q8_MAX_RECIPROCAL)?;
    let tiny = scale.compare_scalar(CompareOp::Lt, TINY)?;
    let zero = scale.filled(0.0)?;
    let inverse = tiny.select(&zero, &amax.filled(Q8_MAX)?.div(&amax)?)?;
    let q = x.mul(&inverse.repeat(axis, x.dims()[axis])?)?.unary(UnaryOp::RoundEven)?;
    Ok((q.cast(DType::I8)?, tiny.select(&zero, &scale)?))
}

/// Rows of activations and of weights that belong together: `m` and `n` in each of `count` groups.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    m: usize,
    n: usize,
}

impl Groups {
    /// Values of all products of one column or block.
    fn size(self) -> usize {
        self.count * self.m * self.n
    }

    /// A value of each row of the weight `[b, count * n]`, for every row of its group's activations: `[b, count * m, n]`.
    fn spread<B: Backend>(self, of_rows: &Tensor<B>) -> Result<Tensor<B>> {
        if self.count == 1 {
            return of_rows.repeat(1, self.m);
        }
        let b = of_rows.dims()[0];
        let spread = of_rows.reshape([b * self.count, self.n])?.repeat(1, self.m)?;
        spread.reshape([b, self.count * self.m, self.n])
    }

    /// Exact products of blocks `[b, count * m, len]` and `[b, count * n, len]`: i32 `[b, count * m, n]`.
    fn products<B: Backend>(self, xq: &Tensor<B>, wq: &Tensor<B>) -> Result<Tensor<B>> {
        if self.count == 1 {
            return xq.matmul_exact(wq);
        }
        let (b, len) = (xq.dims()[0], xq.dims()[2]);
        let xq = xq.reshape([b * self.count, self.m, len])?;
        let wq = wq.reshape([b * self.count, self.n, len])?;
        xq.matmul_exact(&wq)?.reshape([b, self.count * self.m, self.n])
    }
}

/// `dot` over float weights, whose terms are products of columns of both operands.
fn dense<B: Backend>(x: &Tensor<B>, weight: &Tensor<B>, groups: Groups) -> Result<Tensor<B>> {
    let k = x.dims()[1];
    let x = without_tiny(&x.cast(weight.dtype())?.cast(DType::F32)?)?.permute(&[1, 0])?;
    let w = without_tiny(&weight.cast(DType::F32)?)?.permute(&[1, 0])?;
    add_in_order(k, 1, groups.size(), |columns| {
        x.narrow(0, columns.clone())?.repeat(2, groups.n)?.mul(&groups.spread(&w.narrow(0, columns)?)?)
    })
}

/// `x` with +0 for what is below [`TINY`] in magnitude.
pub(super) fn without_tiny<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    x.unary(UnaryOp::Abs)?.compare_scalar(CompareOp::Lt, TINY)?.select(&x.filled(0.0)?, x)
}

fn blocks32<B: Backend>(
    x: &Tensor<B>,
    q: &Tensor<B>,
    scale: &Tensor<B>,
    min: Option<&Tensor<B>>,
    groups: Groups,
) -> Result<Tensor<B>> {
    let (xq, d) = activation_blocks(x, 32)?;
    let wq = block_major(q, 32)?;
    let (scale, min) = (columns(scale)?, min.map(columns).transpose()?);
    add_in_order(x.dims()[1] / 32, 32, groups.size(), |blocks| {
        let of = |x: &Tensor<B>| x.narrow(0, blocks.clone());
        let isum = groups.products(&of(&xq)?, &of(&wq)?)?.cast(DType::F32)?;
        let mut sum = groups.spread(&of(&scale)?)?.mul(&isum)?;
        if let Some(min) = &min {
            let xsum = value_sums(&of(&xq)?)?.cast(DType::F32)?.repeat(2, groups.n)?;
            sum = sum.add(&groups.spread(&of(min)?)?.mul(&xsum)?)?;
        }
        sum.mul(&of(&d)?.repeat(2, groups.n)?)
    })
}

fn blocks256<B: Backend>(
    x: &Tensor<B>,
    q: &Tensor<B>,
    scale: &Tensor<B>,
    sub_scale: &Tensor<B>,
    min: Option<&(Tensor<B>, Tensor<B>)>,
    groups: Groups,
) -> Result<Tensor<B>> {
    let (m, k) = (x.dims()[0], x.dims()[1]);
    let subs = 256 * sub_scale.dims()[1] / k.max(1);
    let sub_len = 256 / subs.max(1);
    let (xq, d) = activation_blocks(x, 256)?;
    let xq = xq.permute(&[1, 0, 2])?.reshape([m, k])?;
    let (xq, wq) = (block_major(&xq, sub_len)?, block_major(q, sub_len)?);
    let integers = |x: &Tensor<B>| columns(&x.cast(DType::I32)?);
    let (scale, sub_scale) = (columns(scale)?, integers(sub_scale)?);
    let min = min.map(|(min, sub)| columns(min).and_then(|min| Ok((min, integers(sub)?)))).transpose()?;
    add_in_order(k / 256, 256, groups.size() * subs, |blocks| {
        let of = |x: &Tensor<B>| x.narrow(0, blocks.clone());
        let of_subs = |x: &Tensor<B>| x.narrow(0, blocks.start * subs..blocks.end * subs);
        // Exact sums of what each part of a block contributes.
        let add_subs = |parts: Tensor<B>| {
            let parts = parts.reshape([blocks.len(), subs, m, groups.n])?;
            let sum = Tensor::full(parts.backend(), [blocks.len(), m, groups.n], 0)?;
            (0..subs).try_fold(sum, |sum, sub| sum.add(&parts.at(1, sub)?))?.cast(DType::F32)
        };
        let factor = groups.spread(&of_subs(&sub_scale)?)?;
        let isum = add_subs(groups.products(&of_subs(&xq)?, &of_subs(&wq)?)?.mul(&factor)?)?;
        let mut sum = groups.spread(&of(&scale)?)?.mul(&isum)?;
        if let Some((min, sub_min)) = &min {
            let xsum = value_sums(&of_subs(&xq)?)?.repeat(2, groups.n)?;
            let msum = add_subs(xsum.mul(&groups.spread(&of_subs(sub_min)?)?)?)?;
            sum = sum.sub(&groups.spread(&of(min)?)?.mul(&msum)?)?;
        }
        sum.mul(&of(&d)?.repeat(2, groups.n)?)
    })
}

/// Quantised activations `[blocks, m, len]` and their scales `[blocks, m]`.
fn activation_blocks<B: Backend>(x: &Tensor<B>, len: usize) -> Result<(Tensor<B>, Tensor<B>)> {
    let &[m, k] = x.dims() else { return Err(crate::Error::shape("linear", "x is not a matrix")) };
    let (q, d) = quantize_blocks(&x.reshape([m, k / len, len])?)?;
    Ok((q.permute(&[1, 0, 2])?, columns(&d)?))
}

/// `[rows, cols]` as `[cols / len, rows, len]`.
fn block_major<B: Backend>(q: &Tensor<B>, len: usize) -> Result<Tensor<B>> {
    let (rows, cols) = (q.dims()[0], q.dims()[1]);
    q.reshape([rows, cols / len, len])?.permute(&[1, 0, 2])
}

/// `[rows, cols]` as `[cols, rows]`.
fn columns<B: Backend>(x: &Tensor<B>) -> Result<Tensor<B>> {
    x.permute(&[1, 0])
}

/// Exact sums of blocks of activations `[blocks, m, len]`: i32 `[blocks, m]`.
fn value_sums<B: Backend>(xq: &Tensor<B>) -> Result<Tensor<B>> {
    let &[blocks, m, len] = xq.dims() else { return Err(crate::Error::shape("linear", "no blocks")) };
    let ones = Tensor::full(xq.backend(), [blocks, 1, len], 1i8)?;
    xq.matmul_exact(&ones)?.reshape([blocks, m])
}
