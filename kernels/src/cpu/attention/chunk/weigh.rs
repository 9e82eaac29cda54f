//! Weights of a chunk's rows: a softmax over the tile, times the scales of the values, as integers.

use samebits_tensor::contract::{MASKED, TINY, W16_MAX, W16_MAX_RECIPROCAL};

use super::{Chunk, KEYS, Work};
use crate::cpu::{attention::Bounds, elementwise::exp_below_max, isa::Kernel, norm::tree, simd::Simd};

/// Maxima and sums of the rows, and the weights `rne(w * (65535 / max w))`. All rows take each step before the next one, since
/// a row's own steps wait for one another.
pub(super) struct Weigh<'a, 'b> {
    pub(super) chunk: &'a Chunk<'a>,
    /// Whether there may be NaN.
    pub(super) nans: bool,
    pub(super) work: &'b mut Work,
    pub(super) max: &'b mut [f32; 16],
    pub(super) sum: &'b mut [f32; 16],
}

impl Kernel for Weigh<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.chunk {
            _ if self.nans => self.weigh::<S, KEYS, true, true>(s),
            Chunk { whole: true, .. } => self.weigh::<S, KEYS, false, false>(s),
            Chunk { count: 0..=4, .. } => self.weigh::<S, 4, true, false>(s),
            _ => self.weigh::<S, KEYS, true, false>(s),
        }
    }
}

impl Weigh<'_, '_> {
    /// The weights of the keys in `N` vectors; the others are not seen. `MASK` if some of these are not either.
    #[inline(always)]
    fn weigh<S: Simd, const N: usize, const MASK: bool, const NANS: bool>(mut self, s: S) {
        let rows = self.chunk.rows;
        for r in 0..rows {
            self.max[r] = self.mask_and_scale::<S, N, MASK, NANS>(s, r);
        }
        let mut largest = [0.0; 16];
        for r in 0..rows {
            (self.sum[r], largest[r]) = self.exponentials::<S, N, MASK, NANS>(s, r);
        }
        let inverses = self.scales(s, &largest);
        for r in 0..rows {
            self.integers::<S, N>(s, r, inverses[r]);
        }
    }

    /// The row's scores, scaled and masked; returns the largest.
    #[inline(always)]
    fn mask_and_scale<S: Simd, const N: usize, const MASK: bool, const NANS: bool>(
        &mut self,
        s: S,
        r: usize,
    ) -> f32 {
        let Chunk { params, start, seen, .. } = self.chunk;
        // A capped score is scaled already.
        let scale = s.splat(if params.soft_cap.is_some() { 1.0 } else { params.scale });
        let bounds = Bounds::new(s, seen[r].offsets(*start));
        let mut largest = s.splat(f32::NEG_INFINITY);
        for (v, score) in self.work.scores[r][..N].iter_mut().enumerate() {
            let mut x = s.mul(s.load(&score.0), scale);
            if MASK {
                x = s.select(bounds.of(s, v), x, s.splat(MASKED));
            }
            s.store(x, &mut score.0);
            largest = larger::<S, NANS>(s, largest, x);
        }
        largest_lane::<S, NANS>(s, largest)
    }

    /// Turns the row's scores into weights; returns the sum of the exponentials, and the largest weight.
    #[inline(always)]
    fn exponentials<S: Simd, const N: usize, const MASK: bool, const NANS: bool>(
        &mut self,
        s: S,
        r: usize,
    ) -> (f32, f32) {
        let Chunk { tile, start, seen, .. } = self.chunk;
        let (zero, max) = (s.splat(0.0), s.splat(self.max[r]));
        let bounds = Bounds::new(s, seen[r].offsets(*start));
        let (mut p, mut largest) = ([zero; KEYS], zero);
        for v in 0..N {
            let score = &mut self.work.scores[r][v].0;
            p[v] = exp_below_max(s, s.sub(s.load(score), max));
            let mut w = s.mul(p[v], s.load(&tile.v_scale[v].0));
            if MASK {
                let shown = bounds.of(s, v);
                (p[v], w) = (s.select(shown, p[v], zero), s.select(shown, w, zero));
            }
            s.store(w, score);
            largest = larger::<S, NANS>(s, largest, w);
        }
        (tree(s, p), largest_lane::<S, NANS>(s, largest))
    }

    /// The scales of all rows' integers; returns their inverses.
    #[inline(always)]
    fn scales<S: Simd>(&mut self, s: S, largest: &[f32; 16]) -> [f32; 16] {
        let (zero, largest) = (s.splat(0.0), s.load(largest));
        let scale = s.mul(largest, s.splat(W16_MAX_RECIPROCAL));
        let tiny = s.lt(scale, s.splat(TINY));
        s.store(s.select(tiny, zero, scale), &mut self.work.scales);
        let mut inverses = [0.0; 16];
        s.store(s.select(tiny, zero, s.div(s.splat(W16_MAX), largest)), &mut inverses);
        inverses
    }

    #[inline(always)]
    fn integers<S: Simd, const N: usize>(&mut self, s: S, r: usize, inverse: f32) {
        let (inverse, out) = (s.splat(inverse), &mut self.work.weights[r]);
        for (i, weights) in self.work.scores[r][..N].as_chunks::<4>().0.iter().enumerate() {
            let mut integers = [s.splat_i32(0); 4];
            for (integer, weight) in integers.iter_mut().zip(weights) {
                *integer = s.round_i32(s.mul(s.load(&weight.0), inverse));
            }
            let [high, low] = s.byte_slices(integers);
            s.store_bytes(high, &mut out.high[i].0);
            s.store_bytes(low, &mut out.low[i].0);
        }
    }
}

/// The larger values; NaN if any is, where `NANS` says that there may be.
#[inline(always)]
fn larger<S: Simd, const NANS: bool>(s: S, a: S::F, b: S::F) -> S::F {
    if NANS { s.max(a, b) } else { s.larger(a, b) }
}

/// The largest lane; NaN if any is, where `NANS` says that there may be.
#[inline(always)]
fn largest_lane<S: Simd, const NANS: bool>(s: S, x: S::F) -> f32 {
    if NANS { s.max_lane(x) } else { s.largest_lane(x) }
}
