//! Sums over rows, and the norms built on them.

use samebits_tensor::contract::SUM_LANES;

use super::{
    elementwise::{exp, load_at, store_at, vectors},
    isa::{Isa, Kernel},
    simd::Simd,
};

/// Vectors of the contract's `sum`.
const VECTORS: usize = SUM_LANES / 16;

/// `(x * r) * weight` with `r = 1 / sqrt(sum(x * x) * (1 / n) + eps)`, for each row of `n` values.
///
/// # Panics
/// If a length does not fit.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    isa.run(RmsNorm { x, weight, eps, out });
}

/// `((x - mean) * r) * weight + bias` with `mean = sum(x) * (1 / n)` and `r` as in [`rms_norm`] of `x - mean`.
///
/// # Panics
/// If a length does not fit.
pub fn layer_norm(isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    isa.run(LayerNorm { x, weight, bias, eps, out });
}

/// `exp(x - max) / sum(exp(x - max))` for each row of `n` values.
///
/// # Panics
/// If a length does not fit.
pub fn softmax(isa: Isa, x: &[f32], n: usize, out: &mut [f32]) {
    isa.run(Softmax { x, n, out });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.weight.len();
        assert_eq!(self.x.len(), self.out.len(), "rows of a norm");
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            rms_norm_row(s, x, self.weight, self.eps, out);
        }
    }
}

/// [`rms_norm`] of one row.
#[inline(always)]
pub(super) fn rms_norm_row<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let r = s.splat(reciprocal_root(s, x, eps));
    let whole = weight.len() / 16;
    let pairs = x.as_chunks::<16>().0.iter().zip(weight.as_chunks::<16>().0);
    for ((x, weight), out) in pairs.zip(out.as_chunks_mut::<16>().0) {
        s.store(s.mul(s.mul(s.load(x), r), s.load(weight)), out);
    }
    for i in whole..vectors(weight.len()) {
        let scaled = s.mul(load_at(s, x, i), r);
        store_at(s, s.mul(scaled, load_at(s, weight, i)), out, i);
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.weight.len();
        assert!(self.x.len() == self.out.len() && self.bias.len() == n, "rows of a norm");
        for (x, out) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)) {
            let mean = s.splat(sum::<S, false>(s, x) * (1.0 / n as f32));
            for i in 0..vectors(n) {
                store_at(s, s.sub(load_at(s, x, i), mean), out, i);
            }
            let r = s.splat(reciprocal_root(s, out, self.eps));
            for i in 0..vectors(n) {
                let scaled = s.mul(s.mul(load_at(s, out, i), r), load_at(s, self.weight, i));
                store_at(s, s.add(scaled, load_at(s, self.bias, i)), out, i);
            }
        }
    }
}

struct Softmax<'a> {
    x: &'a [f32],
    n: usize,
    out: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.x.len(), self.out.len(), "rows of a softmax");
        for (x, out) in self.x.chunks_exact(self.n).zip(self.out.chunks_exact_mut(self.n)) {
            let largest = s.splat(max(s, x));
            for i in 0..vectors(self.n) {
                store_at(s, exp(s, s.sub(load_at(s, x, i), largest)), out, i);
            }
            let total = s.splat(sum::<S, false>(s, out));
            for i in 0..vectors(self.n) {
                store_at(s, s.div(load_at(s, out, i), total), out, i);
            }
        }
    }
}

/// `1 / sqrt(sum(x * x) * (1 / n) + eps)`.
#[inline(always)]
fn reciprocal_root<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mean = sum::<S, true>(s, x) * (1.0 / x.len() as f32);
    1.0 / (mean + eps).sqrt()
}

/// The contract's `sum`, of the values or of their squares. What is missing to 128 values is +0, which changes no bit of
/// a sum that started at +0.
#[inline(always)]
pub(super) fn sum<S: Simd, const SQUARES: bool>(s: S, x: &[f32]) -> f32 {
    let mut lanes = [s.splat(0.0); VECTORS];
    let (whole, rest) = x.as_chunks::<SUM_LANES>();
    for chunk in whole {
        add_lanes::<S, SQUARES>(s, &mut lanes, chunk);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; SUM_LANES];
        padded[..rest.len()].copy_from_slice(rest);
        add_lanes::<S, SQUARES>(s, &mut lanes, &padded);
    }
    tree(s, lanes)
}

#[inline(always)]
fn add_lanes<S: Simd, const SQUARES: bool>(s: S, lanes: &mut [S::F; VECTORS], x: &[f32; SUM_LANES]) {
    for (lane, x) in lanes.iter_mut().zip(x.as_chunks::<16>().0) {
        let x = s.load(x);
        *lane = s.add(*lane, if SQUARES { s.mul(x, x) } else { x });
    }
}

/// The halving tree over 128 lanes.
#[inline(always)]
pub(super) fn tree<S: Simd>(s: S, mut lanes: [S::F; VECTORS]) -> f32 {
    for width in [4, 2, 1] {
        for i in 0..width {
            lanes[i] = s.add(lanes[i], lanes[i + width]);
        }
    }
    s.tree(lanes[0])
}

/// The largest value; NaN if any is.
#[inline(always)]
fn max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<16>();
    let mut largest = s.splat(x[0]);
    for x in whole {
        largest = s.max(largest, s.load(x));
    }
    for &x in rest {
        largest = s.max(largest, s.splat(x));
    }
    s.max_lane(largest)
}
