//! Linear layers over float weights: the contract's `dot`, 16 rows side by side.

mod element;
mod floats;
mod layout;
#[cfg(test)]
mod tests;

use std::{array, marker::PhantomData};

use samebits_tensor::{Format, contract::DOT_SPAN};

use self::{
    element::{Bf16, Bf16Pairs, Element, F16, F32},
    floats::{Rounding, Tile, Tiles},
};
pub use self::{
    floats::{FloatPiece, FloatPieces, Floats},
    layout::DenseLayout,
};
use super::{
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    panel::LANES,
    simd::{Simd, prefetch_far, prefetch_near},
};

/// Tokens whose activations of a span stay in a core's cache while the panels of a task pass by.
const BLOCK_TOKENS: usize = 240;

/// Float weights, packed by [`DenseLayout`].
#[derive(Clone, Copy, Debug)]
pub struct DensePanels<'a> {
    /// [`Format::F32`], [`Format::F16`] or [`Format::BF16`].
    pub format: Format,
    /// Columns of a row.
    pub cols: usize,
    /// The panels.
    pub bytes: &'a [u8],
}

/// Rounded activations times the transpose of the rows in `panels`, into `out [m, rows]`. The last panel may have fewer
/// rows than 16.
///
/// # Panics
/// If a size does not fit.
pub fn linear_dense(isa: Isa, panels: DensePanels<'_>, x: &Floats, out: MatrixMut<'_>) {
    let panel = DenseLayout::new(panels.format, panels.cols).bytes();
    let rounding = Rounding::of(isa, panels.format);
    let fits =
        x.rounding == rounding && x.widest == floats::widest(isa) && x.k == panels.cols && x.m == out.rows();
    assert!(fits, "activations for {} columns of {}", panels.cols, panels.format);
    assert_eq!(panels.bytes.len(), out.cols().div_ceil(LANES) * panel, "panels of {}", panels.format);
    if panels.bytes.is_empty() || x.m == 0 {
        return;
    }
    match rounding {
        Rounding::F32 => isa.run(Dense::<F32>::new(panels, x, out)),
        Rounding::F16 => isa.run(Dense::<F16>::new(panels, x, out)),
        Rounding::Bf16 => isa.run(Dense::<Bf16<true>>::new(panels, x, out)),
        Rounding::Bf16Pairs => isa.run(Dense::<Bf16Pairs<true>>::new(panels, x, out)),
    }
}

/// Runs `$body` with the width of a tile as the constant `$T`.
macro_rules! with_width {
    ($width:expr, $T:ident => $body:expr) => {
        match $width {
            1 => with_width!(@ 1, $T, $body),
            2 => with_width!(@ 2, $T, $body),
            4 => with_width!(@ 4, $T, $body),
            6 => with_width!(@ 6, $T, $body),
            8 => with_width!(@ 8, $T, $body),
            _ => with_width!(@ 12, $T, $body),
        }
    };
    (@ $width:literal, $T:ident, $body:expr) => {{
        const $T: usize = $width;
        $body
    }};
}

/// A task over weights of type `E`.
struct Dense<'a, E> {
    panels: &'a [u8],
    panel_bytes: usize,
    x: &'a Floats,
    out: MatrixMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Dense<'_, E> {
    const BF16_DOTS: bool = E::BF16_DOTS;
    type Output = ();

    /// Few tokens take the weights as they come; more of them share weights that are widened once.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let tile = match self.x.tiles().next() {
            Some(tile) if tile.used == self.x.m => tile,
            _ if const { S::DENSE_PANELS == 2 } => return self.share::<S, 2>(s),
            _ => return self.share::<S, 1>(s),
        };
        with_width!(tile.width, T => self.stream::<S, T>(s, tile));
    }
}

impl<'a, E: Element> Dense<'a, E> {
    fn new(panels: DensePanels<'a>, x: &'a Floats, out: MatrixMut<'a>) -> Self {
        let panel_bytes = DenseLayout::new(panels.format, panels.cols).bytes();
        Dense { panels: panels.bytes, panel_bytes, x, out, element: PhantomData }
    }

    fn panels(&self) -> usize {
        self.panels.len() / self.panel_bytes
    }

    /// One tile of tokens with all panels; one token takes several panels at a time, so that many sums are in flight.
    #[inline(always)]
    fn stream<S: Simd, const T: usize>(&mut self, s: S, tile: Tile) {
        let (panels, mut first) = (self.panels(), 0);
        while first < panels {
            first += match panels - first {
                _ if const { T > S::DENSE_TOKENS } => return,
                _ if const { T > 1 && S::DENSE_PANELS == 2 } => self.stream_panels::<S, 2, T>(s, tile, first),
                _ if const { T > 1 } => self.stream_panels::<S, 1, T>(s, tile, first),
                1 => self.stream_panels::<S, 1, T>(s, tile, first),
                2 | 3 => self.stream_panels::<S, 2, T>(s, tile, first),
                _ => self.stream_panels::<S, 4, T>(s, tile, first),
            };
        }
    }

    /// Returns how many panels it takes; the last one stands in for those past it.
    #[inline(always)]
    fn stream_panels<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        tile: Tile,
        first: usize,
    ) -> usize {
        let last = self.panels() - 1;
        for (span, x) in self.x.words(tile).chunks(E::SPAN * T).enumerate() {
            let panels = array::from_fn(|p| self.span(last.min(first + p), span, x.len() / T));
            let (sums, largest) = streamed::<S, E, P, T>(s, panels, x);
            if E::overflows(s, largest, self.x.largest[0]) {
                self.rounded::<S, P, T>(s, panels, x, first, span, tile);
            } else {
                self.put::<S, P, T>(s, sums, first, span, tile);
            }
        }
        P
    }

    /// All tiles with `P` panels at a time: some hundred tokens at once, a span after the other, so that their activations
    /// stay in the cache as the panels pass by.
    #[inline(always)]
    fn share<S: Simd, const P: usize>(&mut self, s: S) {
        let (x, last) = (self.x, self.panels() - 1);
        let mut weights = [[s.splat(0.0); P]; DOT_SPAN];
        let (per_token, block) = (x.rounding.words(x.k), BLOCK_TOKENS / S::DENSE_TOKENS * S::DENSE_TOKENS);
        for start in (0..x.m).step_by(block) {
            for span in 0..per_token.div_ceil(E::SPAN) {
                let words = E::SPAN.min(per_token - span * E::SPAN);
                for first in (0..=last).step_by(P) {
                    let steps = array::from_fn(|p| self.span(last.min(first + p), span, words));
                    let largest = widen::<S, E, P>(s, steps, &mut weights);
                    let group = Group { first, span, steps, weights: &weights[..words], largest };
                    for tile in (Tiles { next: start, end: x.m.min(start + block), widest: x.widest }) {
                        with_width!(tile.width, T => self.share_tile::<S, P, T>(s, &group, tile));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn share_tile<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        group: &Group<'_, S, E::Step, P>,
        tile: Tile,
    ) {
        if const { T > S::DENSE_TOKENS } {
            return;
        }
        let &Group { first, span, steps, weights, largest } = group;
        let x = &self.x.words(tile)[span * E::SPAN * T..][..weights.len() * T];
        if E::overflows(s, largest, self.x.largest[tile.start / self.x.widest]) {
            return self.rounded::<S, P, T>(s, steps, x, first, span, tile);
        }
        let mut acc = [[s.splat(0.0); T]; P];
        for (weights, x) in weights.iter().zip(x.as_chunks::<T>().0) {
            column::<S, E, P, T>(s, *weights, x, &mut acc);
        }
        self.put::<S, P, T>(s, acc, first, span, tile);
    }

    /// A span with products that are rounded before they are added.
    #[inline(always)]
    fn rounded<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        panels: [&[E::Step]; P],
        x: &[u32],
        first: usize,
        span: usize,
        tile: Tile,
    ) {
        for (p, steps) in panels.into_iter().enumerate() {
            let (sums, _) = streamed::<S, E::Rounded, 1, T>(s, [steps], x);
            self.put::<S, 1, T>(s, sums, first + p, span, tile);
        }
    }

    /// The steps of `vectors` vectors of a span of a panel.
    #[inline(always)]
    fn span(&self, panel: usize, span: usize, vectors: usize) -> &'a [E::Step] {
        let size = size_of::<E::Step>();
        let at = panel * self.panel_bytes + span * (DOT_SPAN / E::COLS) * size;
        bytemuck::cast_slice(&self.panels[at..at + vectors / E::VECTORS * size])
    }

    /// Adds the sums of a span to those of the spans before, in rows that there are. (No sum that starts at +0 is ever -0, so the first need not
    /// be added to +0.)
    #[inline(always)]
    fn put<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        sums: [[S::F; T]; P],
        first: usize,
        span: usize,
        tile: Tile,
    ) {
        for (t, _) in (0..T).zip(0..tile.used) {
            let row = self.out.row(tile.start + t);
            for (p, sums) in sums.iter().enumerate() {
                if let Some(out) = row.get_mut((first + p) * LANES..) {
                    let sum = if span == 0 { sums[t] } else { s.add(load_rows(s, out), sums[t]) };
                    store_rows(s, sum, out);
                }
            }
        }
    }
}

/// Panels that many tiles share, in one span.
struct Group<'a, S: Simd, Step, const P: usize> {
    first: usize,
    span: usize,
    steps: [&'a [Step]; P],
    weights: &'a [[S::F; P]],
    largest: S::I,
}

/// The sums of one span, in the order of the columns, from +0 on; and the largest weights.
#[inline(always)]
fn streamed<S: Simd, E: Element, const P: usize, const T: usize>(
    s: S,
    panels: [&[E::Step]; P],
    x: &[u32],
) -> ([[S::F; T]; P], S::I) {
    let mut acc = [[s.splat(0.0); T]; P];
    let mut largest = s.splat_i32(0);
    let steps = panels[0].len();
    let panels = panels.map(|panel| &panel[..steps]);
    let (x, _) = x.as_chunks::<T>();
    for (i, x) in x.chunks_exact(E::VECTORS).enumerate().take(steps) {
        let mut weights = [[s.splat(0.0); 2]; P];
        for (weights, panel) in weights.iter_mut().zip(panels) {
            prefetch_far(s, bytemuck::bytes_of(&panel[i]));
            prefetch_near(s, bytemuck::bytes_of(&panel[i]));
            *weights = E::load(s, &panel[i], &mut largest);
        }
        for (v, x) in x.iter().enumerate() {
            column::<S, E, P, T>(s, weights.map(|weights| weights[v]), x, &mut acc);
        }
    }
    (acc, largest)
}

/// The weights of a span, and the largest of them.
#[inline(always)]
fn widen<S: Simd, E: Element, const P: usize>(
    s: S,
    panels: [&[E::Step]; P],
    out: &mut [[S::F; P]; DOT_SPAN],
) -> S::I {
    let mut largest = s.splat_i32(0);
    for (p, panel) in panels.into_iter().enumerate() {
        for (step, out) in panel.iter().zip(out.chunks_exact_mut(E::VECTORS)) {
            prefetch_far(s, bytemuck::bytes_of(step));
            let weights = E::load(s, step, &mut largest);
            for (out, weights) in out.iter_mut().zip(weights) {
                out[p] = weights;
            }
        }
    }
    largest
}

/// Adds the products of one vector of weights.
#[inline(always)]
fn column<S: Simd, E: Element, const P: usize, const T: usize>(
    s: S,
    weights: [S::F; P],
    x: &[u32; T],
    acc: &mut [[S::F; T]; P],
) {
    for t in 0..T {
        let x = s.of_bits(s.splat_i32(x[t] as i32));
        for p in 0..P {
            acc[p][t] = E::add(s, acc[p][t], weights[p], x);
        }
    }
}

/// The values of 16 rows, or of as many as there are.
#[inline(always)]
fn load_rows<S: Simd>(s: S, rows: &[f32]) -> S::F {
    match rows.first_chunk() {
        Some(rows) => s.load(rows),
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..rows.len()].copy_from_slice(rows);
            s.load(&lanes)
        }
    }
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
