//! Linear layers over float weights: the contract's `dot`, 16 rows side by side.

use std::marker::PhantomData;

use half::{bf16, f16};
use samebits_tensor::{
    Format,
    contract::{DOT_SPAN, TINY},
};

use super::{
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    panel::LANES,
    quantize::Tiles,
    simd::Simd,
};

/// Float weights: panels of 16 rows, column after column; rows past the matrix are zero.
#[derive(Clone, Copy, Debug)]
pub struct DensePanels<'a> {
    /// [`Format::F32`], [`Format::F16`] or [`Format::BF16`].
    pub format: Format,
    /// Columns of a row.
    pub cols: usize,
    /// The panels.
    pub bytes: &'a [u8],
}

/// Activations `[m, k]` rounded to a weight's type, in tiles of tokens as [`super::Activations`] are: `[cols, tokens]`.
pub struct Floats {
    m: usize,
    k: usize,
    tile: usize,
    values: Vec<f32>,
}

impl Floats {
    /// Rounds `x [m, k]` to the type of `format`; what is below [`TINY`] becomes +0.
    ///
    /// # Panics
    /// If `format` is no float format, or `x` is not as long.
    pub fn round(isa: Isa, x: &[f32], m: usize, k: usize, format: Format) -> Self {
        assert_eq!(x.len(), m * k, "activations [{m}, {k}]");
        let round: fn(f32) -> f32 = match format {
            Format::F32 => |x| x,
            Format::F16 => |x| f16::from_f32(x).to_f32(),
            Format::BF16 => |x| bf16::from_f32(x).to_f32(),
            _ => panic!("{format} is not a float format"),
        };
        let mut values = vec![0.0; m * k];
        for (start, width) in (Tiles { next: 0, end: m, widest: isa.tile() }) {
            for token in 0..width {
                let out = values[start * k..].iter_mut().skip(token).step_by(width);
                for (&x, out) in x[(start + token) * k..(start + token + 1) * k].iter().zip(out) {
                    let rounded = round(x);
                    *out = if rounded.abs() < TINY { 0.0 } else { rounded };
                }
            }
        }
        Floats { m, k, tile: isa.tile(), values }
    }
}

/// Rounded activations times the transpose of the rows in `panels`, into `out [m, rows]`. The last panel may have fewer
/// rows than 16.
///
/// # Panics
/// If a size does not fit.
pub fn linear_dense(isa: Isa, panels: DensePanels<'_>, x: &Floats, out: MatrixMut<'_>) {
    let panel = panels.cols * LANES * panels.format.block_bytes();
    assert!(x.k == panels.cols && x.m == out.rows(), "activations for {} columns", panels.cols);
    assert_eq!(panels.bytes.len(), out.cols().div_ceil(LANES) * panel, "panels of {}", panels.format);
    if panels.bytes.is_empty() {
        return;
    }
    match panels.format {
        Format::F32 => isa.run(Dense::<F32>::new(panels, x, out)),
        Format::F16 => isa.run(Dense::<F16>::new(panels, x, out)),
        Format::BF16 => isa.run(Dense::<BF16>::new(panels, x, out)),
        _ => panic!("{} is not a float format", panels.format),
    }
}

/// Type of the weights.
trait Element {
    const BYTES: usize;
    /// 16 values as f32, those below [`TINY`] as +0.
    fn load<S: Simd>(s: S, values: &[u8]) -> S::F;
}

struct F32;
struct F16;
struct BF16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(s: S, values: &[u8]) -> S::F {
        without_tiny(s, s.of_bits(s.load_bytes(values.first_chunk().expect("16 rows"))))
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    /// No f16 but zero is below [`TINY`].
    #[inline(always)]
    fn load<S: Simd>(s: S, values: &[u8]) -> S::F {
        s.load_f16(values.first_chunk().expect("16 rows"))
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, values: &[u8]) -> S::F {
        without_tiny(s, s.load_bf16(values.first_chunk().expect("16 rows")))
    }
}

#[inline(always)]
fn without_tiny<S: Simd>(s: S, x: S::F) -> S::F {
    s.select(s.lt(s.abs(x), s.splat(TINY)), s.splat(0.0), x)
}

/// A task over weights of type `E`.
struct Dense<'a, E> {
    panels: &'a [u8],
    x: &'a Floats,
    out: MatrixMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Dense<'_, E> {
    type Output = ();

    /// One token takes four panels at a time, so that four chains of sums are in flight.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let x = self.x;
        for (start, width) in (Tiles { next: 0, end: x.m, widest: x.tile }) {
            match width {
                8 => self.panels::<S, 1, 8>(s, start),
                4 => self.panels::<S, 1, 4>(s, start),
                2 => self.panels::<S, 2, 2>(s, start),
                _ => self.panels::<S, 4, 1>(s, start),
            }
        }
    }
}

impl<'a, E: Element> Dense<'a, E> {
    fn new(panels: DensePanels<'a>, x: &'a Floats, out: MatrixMut<'a>) -> Self {
        Dense { panels: panels.bytes, x, out, element: PhantomData }
    }

    #[inline(always)]
    fn panels<S: Simd, const P: usize, const T: usize>(&mut self, s: S, start: usize) {
        if T > S::TILE {
            return;
        }
        let panel = self.x.k * LANES * E::BYTES;
        let whole = self.panels.len() / panel / P;
        for group in 0..whole {
            self.tile::<S, P, T>(s, group * P, start);
        }
        for p in whole * P..self.panels.len() / panel {
            self.tile::<S, 1, T>(s, p, start);
        }
    }

    /// `P` panels by `T` tokens.
    #[inline(always)]
    fn tile<S: Simd, const P: usize, const T: usize>(&mut self, s: S, first: usize, start: usize) {
        let k = self.x.k;
        let panel = k * LANES * E::BYTES;
        let x = &self.x.values[start * k..(start + T) * k];
        let mut total = [[s.splat(0.0); T]; P];
        for (span, x) in x.chunks(DOT_SPAN * T).enumerate() {
            let mut panels: [&[u8]; P] = [&[]; P];
            for (p, weights) in panels.iter_mut().enumerate() {
                let at = (first + p) * panel + span * DOT_SPAN * LANES * E::BYTES;
                *weights = &self.panels[at..at + x.len() / T * LANES * E::BYTES];
            }
            let sums = sequential::<S, E, P, T>(s, panels, x);
            for (total, sums) in total.iter_mut().zip(sums) {
                for (total, sum) in total.iter_mut().zip(sums) {
                    *total = s.add(*total, sum);
                }
            }
        }
        for (p, sums) in total.into_iter().enumerate() {
            for (t, sum) in sums.into_iter().enumerate() {
                store_rows(s, sum, &mut self.out.row(start + t)[(first + p) * LANES..]);
            }
        }
    }
}

/// One span: sums in the order of the columns, from +0 on.
#[inline(always)]
fn sequential<S: Simd, E: Element, const P: usize, const T: usize>(
    s: S,
    panels: [&[u8]; P],
    x: &[f32],
) -> [[S::F; T]; P] {
    let mut acc = [[s.splat(0.0); T]; P];
    for (i, x) in x.as_chunks::<T>().0.iter().enumerate() {
        for (acc, weights) in acc.iter_mut().zip(panels) {
            let weights = E::load(s, &weights[i * LANES * E::BYTES..]);
            for (acc, &x) in acc.iter_mut().zip(x) {
                *acc = s.add(*acc, s.mul(s.splat(x), weights));
            }
        }
    }
    acc
}

/// The values of 16 rows, or of as many as are left.
#[inline(always)]
pub(super) fn store_rows<S: Simd>(s: S, rows: S::F, out: &mut [f32]) {
    match out.first_chunk_mut() {
        Some(out) => s.store(rows, out),
        None => {
            let mut lanes = [0.0; LANES];
            s.store(rows, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}
