//! Mixtures of experts: which experts a token is given to, and what they make of it together.

use std::ops::Range;

use super::{
    linear::{linear_groups, without_tiny},
    top_k,
};
use crate::{
    Activation, Backend, BinaryOp, DType, Experts, Input, PlainWeight, Result, Routes, Routing, Tensor,
    try_map,
};

/// The `top_k` experts of each row of `logits [t, experts]`, and their weights.
///
/// Probabilities are [`super::softmax`] over all experts. The greatest come first, and of equal ones that of the lowest index.
/// With `normalize`, each is divided by `((p0 + p1) + p2) + …` of the row's choices. A row with a NaN or +inf, or of nothing but
/// -inf, has the experts `0..top_k`, and NaN weights: its probabilities are all NaN.
///
/// Source: Shazeer et al., "Outrageously Large Neural Networks", 2017, with the softmax before the choice as in Fedus et al.,
/// "Switch Transformers", 2021.
pub fn route<B: Backend>(logits: &Tensor<B>, routing: Routing) -> Result<Routes<B>> {
    let found = top_k(&logits.softmax()?, routing.top_k)?;
    let (experts, mut weights) = (found.at(1, 0)?, found.at(1, 1)?.bitcast(DType::F32)?);
    if routing.normalize {
        let first = weights.at(1, 0)?;
        let sum = (1..routing.top_k).try_fold(first, |sum, choice| sum.add(&weights.at(1, choice)?))?;
        weights = weights.div(&sum.repeat(1, routing.top_k)?)?;
    }
    Ok(Routes { experts, weights })
}

/// What the experts of `routes` make of an input `[t, k]`, as `[t, n]`: for each token `((w0 * y0) + w1 * y1) + …` over its
/// choices in order, where `y` is [`super::feed_forward`] with the rows of that expert. A weight and a `y` below
/// [`TINY`](crate::contract::TINY) in magnitude count as +0, as operands of a float dot do (rule R4).
///
/// Where choices are no more than experts, their experts' rows are gathered; where they are more, every expert computes every
/// token, of which the chosen are gathered. Both are the same bits.
pub fn experts<B: Backend>(x: Input<'_, B>, layer: Experts<'_, B>, routes: &Routes<B>) -> Result<Tensor<B>> {
    let &[t, choices] = routes.experts.dims() else { unreachable!("a matrix") };
    let (x, ids) = (x.rows()?, routes.experts.reshape([t * choices])?);
    let bank = Bank::of(x.backend(), layer)?;
    let y = match (1..=bank.count).contains(&(t * choices)) {
        true => bank.of_choices(&x.repeat(1, choices)?.reshape([t * choices, x.dims()[1]])?, &ids)?,
        false => {
            let token = Tensor::iota(x.backend(), [t, choices], 0)?.reshape([t * choices])?;
            bank.of_all(&x)?.gather(&ids.scalar(BinaryOp::Mul, t as i32)?.add(&token)?)?
        }
    };
    let n = y.dims()[1];
    let y = without_tiny(&y)?.reshape([t, choices, n])?;
    let weights = without_tiny(&routes.weights)?;
    let term = |choice| y.at(1, choice)?.mul(&weights.at(1, choice)?.repeat(1, n)?);
    (1..choices).try_fold(term(0)?, |sum, choice| sum.add(&term(choice)?))
}

/// Most values of a tensor between the layers of several experts at once, or of the weights of those.
const VALUES: usize = 1 << 25;

/// The weights of all experts.
struct Bank<B: Backend> {
    gate: PlainWeight<B>,
    up: PlainWeight<B>,
    down: PlainWeight<B>,
    count: usize,
    activation: Activation,
}

impl<B: Backend> Bank<B> {
    fn of(backend: &B, layer: Experts<'_, B>) -> Result<Self> {
        let Experts { gate, up, down, count, activation } = layer;
        let [gate, up, down] = try_map([gate, up, down], |weight| backend.plain(weight))?;
        Ok(Bank { gate, up, down, count, activation })
    }

    /// Row `i` of `x [r, k]` given to expert `ids[i]`: `[r, n]`.
    fn of_choices(&self, x: &Tensor<B>, ids: &Tensor<B>) -> Result<Tensor<B>> {
        self.in_pieces(ids.dims()[0], 1, |choices| {
            let ids = ids.narrow(0, choices.clone())?;
            let chosen = self.map(|part| {
                let &[rows, cols] = part.dims() else { unreachable!("a matrix") };
                let of_experts = part.reshape([self.count, rows / self.count, cols])?;
                of_experts.gather(&ids)?.reshape([ids.dims()[0] * (rows / self.count), cols])
            })?;
            chosen.feed_forward(&x.narrow(0, choices.clone())?, choices.len())
        })
    }

    /// All rows of `x [t, k]` given to each expert: `[count * t, n]`.
    fn of_all(&self, x: &Tensor<B>) -> Result<Tensor<B>> {
        let (t, k) = (x.dims()[0], x.dims()[1]);
        self.in_pieces(self.count, t, |experts| {
            let some = self.map(|part| {
                let rows = part.dims()[0] / self.count;
                part.narrow(0, experts.start * rows..experts.end * rows)
            })?;
            let x = x.repeat(0, experts.len())?.reshape([experts.len() * t, k])?;
            some.feed_forward(&x, experts.len())
        })
    }

    /// The rows that `run` makes of `groups` experts with `m` rows each, in as many pieces as keep tensors small.
    fn in_pieces(
        &self,
        groups: usize,
        m: usize,
        run: impl Fn(Range<usize>) -> Result<Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let extents = [&self.gate, &self.down].map(PlainWeight::dims);
        let largest = extents.map(|(rows, cols)| (rows / self.count) * cols + m * (rows / self.count + cols));
        let piece = (VALUES / largest[0].max(largest[1]).max(1)).max(1);
        let starts = (0..groups).step_by(piece);
        let pieces = starts.map(|start| run(start..groups.min(start + piece))).collect::<Result<Vec<_>>>()?;
        match pieces.as_slice() {
            [one] => Ok(one.clone()),
            several => Tensor::concat(&several.iter().collect::<Vec<_>>(), 0),
        }
    }

    /// [`super::feed_forward`] of `groups` experts, each with its rows of `x [groups * m, k]`: `[groups * m, n]`.
    fn feed_forward(&self, x: &Tensor<B>, groups: usize) -> Result<Tensor<B>> {
        let (gate, up) = (linear_groups(x, &self.gate, groups)?, linear_groups(x, &self.up, groups)?);
        linear_groups(&gate.glu(&up, self.activation)?.all_gather(1)?, &self.down, groups)
    }

    /// The same of `f` of every tensor of the weights.
    fn map(&self, f: impl Fn(&Tensor<B>) -> Result<Tensor<B>>) -> Result<Self> {
        let [gate, up, down] = try_map([&self.gate, &self.up, &self.down], |weight| weight.map(&f))?;
        Ok(Bank { gate, up, down, ..*self })
    }
}
