//! Element-wise functions: the contract's `exp` and what is built on it, and rotary embedding.

use samebits_tensor::{
    Activation,
    contract::TINY,
    exp::{EXP_MAX, EXP_MIN, EXP_POLY, GELU_CUBIC, GELU_SCALE, LN2_HI, LN2_LO, LOG2E},
};

use super::{
    isa::{Isa, Kernel},
    quantize::load_padded,
    simd::Simd,
};

/// `activation(x)`, element-wise.
///
/// # Panics
/// If the lengths differ.
pub fn activate(isa: Isa, x: &[f32], activation: Activation, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "an activation");
    isa.run(Activate { x, up: None, activation, out });
}

/// `activation(gate) * up`, element-wise.
///
/// # Panics
/// If the lengths differ.
pub fn glu(isa: Isa, gate: &[f32], up: &[f32], activation: Activation, out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len(), "a gated activation");
    isa.run(Activate { x: gate, up: Some(up), activation, out });
}

/// `((w0 * y0) + w1 * y1) + …`, element-wise, where `y` are some of `rows [r, n]` and `n` is as long as `out`. What is below
/// [`TINY`] in magnitude counts as +0, be it a weight or a value.
///
/// # Panics
/// If there is no weight, not one for each row that is chosen, or no such row.
pub fn add_weighed(isa: Isa, rows: &[f32], chosen: &[u32], weights: &[f32], out: &mut [f32]) {
    assert!(chosen.len() == weights.len() && !weights.is_empty(), "a weight for each row");
    isa.run(AddWeighed { rows, chosen, weights, out });
}

/// `cap * tanh(x / cap)`, element-wise.
///
/// # Panics
/// If the lengths differ.
pub fn soft_cap(isa: Isa, x: &[f32], cap: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "a soft cap");
    isa.run(SoftCap { x, cap, out });
}

/// Rotates the channel pairs `(i, i + half)` of every head of one token by angles given as `half` cosines and sines; channels
/// past them are copied.
///
/// # Panics
/// If a length does not fit.
pub fn rope(isa: Isa, x: &[f32], head_dim: usize, cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let fits = x.len() == out.len() && cos.len() == sin.len() && 2 * cos.len() <= head_dim;
    assert!(fits, "rotary embedding of {} channels in heads of {head_dim}", x.len());
    isa.run(Rope { x, head_dim, cos, sin, out });
}

struct Activate<'a> {
    x: &'a [f32],
    up: Option<&'a [f32]>,
    activation: Activation,
    out: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..vectors(self.x.len()) {
            let mut y = activated(s, load_at(s, self.x, i), self.activation);
            if let Some(up) = self.up {
                y = s.mul(y, load_at(s, up, i));
            }
            store_at(s, y, self.out, i);
        }
    }
}

/// `activation(gate) * up`, element-wise, in place of `gate`; both are whole vectors.
#[inline(always)]
pub(super) fn glu_in_place<S: Simd>(s: S, gate: &mut [f32], up: &[f32], activation: Activation) {
    for (gate, up) in gate.as_chunks_mut::<16>().0.iter_mut().zip(up.as_chunks::<16>().0) {
        s.store(s.mul(activated(s, s.load(gate), activation), s.load(up)), gate);
    }
}

#[inline(always)]
fn activated<S: Simd>(s: S, x: S::F, activation: Activation) -> S::F {
    match activation {
        Activation::Silu => silu(s, x),
        Activation::GeluTanh => gelu(s, x),
    }
}

struct AddWeighed<'a> {
    rows: &'a [f32],
    chosen: &'a [u32],
    weights: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for AddWeighed<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.out.len();
        for (choice, (&row, &weight)) in self.chosen.iter().zip(self.weights).enumerate() {
            let (y, weight) = (&self.rows[row as usize * n..][..n], operand(s, s.splat(weight)));
            for i in 0..vectors(n) {
                let term = s.mul(operand(s, load_at(s, y, i)), weight);
                let sum = if choice == 0 { term } else { s.add(load_at(s, self.out, i), term) };
                store_at(s, sum, self.out, i);
            }
        }
    }
}

/// `x`, or +0 where that is below [`TINY`] in magnitude.
#[inline(always)]
fn operand<S: Simd>(s: S, x: S::F) -> S::F {
    s.select(s.lt(s.abs(x), s.splat(TINY)), s.splat(0.0), x)
}

struct SoftCap<'a> {
    x: &'a [f32],
    cap: f32,
    out: &'a mut [f32],
}

impl Kernel for SoftCap<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in 0..vectors(self.x.len()) {
            store_at(s, capped(s, load_at(s, self.x, i), self.cap), self.out, i);
        }
    }
}

struct Rope<'a> {
    x: &'a [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rope<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        let heads = self.x.chunks_exact(self.head_dim).zip(self.out.chunks_exact_mut(self.head_dim));
        for (x, out) in heads {
            let (x0, x1) = x[..2 * half].split_at(half);
            out[2 * half..].copy_from_slice(&x[2 * half..]);
            let (y0, y1) = out[..2 * half].split_at_mut(half);
            for i in 0..vectors(half) {
                let (c, sin) = (load_at(s, self.cos, i), load_at(s, self.sin, i));
                let (x0, x1) = (load_at(s, x0, i), load_at(s, x1, i));
                store_at(s, s.sub(s.mul(x0, c), s.mul(x1, sin)), y0, i);
                store_at(s, s.add(s.mul(x1, c), s.mul(x0, sin)), y1, i);
            }
        }
    }
}

/// Vectors that hold `n` values.
#[inline(always)]
pub(super) fn vectors(n: usize) -> usize {
    n.div_ceil(16)
}

/// Vector `i`, +0 past the end.
#[inline(always)]
pub(super) fn load_at<S: Simd>(s: S, x: &[f32], i: usize) -> S::F {
    let x = &x[16 * i..];
    match x.first_chunk() {
        Some(x) => s.load(x),
        None => load_padded(s, x),
    }
}

/// Writes vector `i`, up to the end.
#[inline(always)]
pub(super) fn store_at<S: Simd>(s: S, x: S::F, out: &mut [f32], i: usize) {
    let out = &mut out[16 * i..];
    match out.first_chunk_mut() {
        Some(out) => s.store(x, out),
        None => {
            let mut lanes = [0.0; 16];
            s.store(x, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// The steps of [`samebits_tensor::exp()`].
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    s.select(s.lt(s.splat(EXP_MAX), x), s.splat(f32::INFINITY), exp_below_max(s, x))
}

/// [`exp`] of no more than [`EXP_MAX`]. A NaN stays NaN, as no conversion of one to an integer has any of the lowest bits.
#[inline(always)]
pub(super) fn exp_below_max<S: Simd>(s: S, x: S::F) -> S::F {
    let integer = s.round_i32(s.mul(x, s.splat(LOG2E)));
    let n = s.to_f32(integer);
    let high = s.sub_exact_product(x, n, s.splat(LN2_HI));
    let r = s.sub(high, s.mul(n, s.splat(LN2_LO)));
    let mut p = s.splat(EXP_POLY[0]);
    for &coefficient in &EXP_POLY[1..] {
        p = s.add(s.mul(p, r), s.splat(coefficient));
    }
    let y = s.of_bits(s.add_i32(s.bits(p), s.shl::<23>(integer)));
    s.select(s.lt(x, s.splat(EXP_MIN)), s.splat(0.0), y)
}

/// `tanh(x * (1 / cap)) * cap`.
#[inline(always)]
pub(super) fn capped<S: Simd>(s: S, x: S::F, cap: f32) -> S::F {
    s.mul(tanh(s, s.mul(x, s.splat(1.0 / cap))), s.splat(cap))
}

#[inline(always)]
fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let t = exp(s, s.mul(s.abs(x), s.splat(-2.0)));
    let one = s.splat(1.0);
    let magnitude = s.div(s.sub(one, t), s.add(one, t));
    s.select(s.lt(x, s.splat(0.0)), s.neg(magnitude), magnitude)
}

#[inline(always)]
fn one_plus_exp_neg<S: Simd>(s: S, x: S::F) -> S::F {
    s.add(exp(s, s.neg(x)), s.splat(1.0))
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(x, one_plus_exp_neg(s, x))
}

/// `x * sigmoid(GELU_SCALE * (x + GELU_CUBIC * x^3))`.
#[inline(always)]
fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.mul(s.mul(s.mul(x, x), x), s.splat(GELU_CUBIC));
    let inner = s.mul(s.add(x, cubic), s.splat(GELU_SCALE));
    let sigmoid = s.div(s.splat(1.0), one_plus_exp_neg(s, inner));
    s.mul(x, s.select(s.lt(inner, s.splat(EXP_MIN)), s.splat(0.0), sigmoid))
}
