//! Query heads over a tile: scores, weights, outputs.

use std::ops::Range;

use samebits_tensor::{
    AttentionParams,
    contract::{ATTENTION_TILE, MASKED, TINY, W16_MAX, W16_MAX_RECIPROCAL},
};

use super::{
    AttentionTask, Dims, KEYS, Lanes, Part, Queries, Seen,
    tile::{Line, Tile},
    visible,
};
use crate::cpu::{
    elementwise::{capped, exp_below_max},
    norm::tree,
    simd::Simd,
};

/// Rows that are computed together at most.
const ROWS: usize = 4;

/// Scores and weights of a few rows.
#[derive(Debug)]
pub(super) struct Work {
    scores: [[Lanes; KEYS]; ROWS],
    weights: [Weights; ROWS],
}

/// 16-bit weights of a row in two slices: for each 64 keys, four keys of vector `i` from `4l` on are word `4l + i`.
#[derive(Clone, Copy, Debug)]
struct Weights {
    high: [Line; KEYS / 4],
    low: [Line; KEYS / 4],
}

impl Default for Work {
    fn default() -> Self {
        let bytes = [Line([0; 64]); KEYS / 4];
        Work { scores: [[Lanes::ZERO; KEYS]; ROWS], weights: [Weights { high: bytes, low: bytes }; ROWS] }
    }
}

/// Some rows of a task over one tile.
pub(super) struct Rows<'a> {
    params: &'a AttentionParams,
    dims: &'a Dims,
    positions: &'a [i32],
    queries: &'a Queries,
    tile: &'a Tile,
    /// Position of the tile's first key.
    start: usize,
    work: &'a mut Work,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn new(
        task: &AttentionTask<'a>,
        dims: &'a Dims,
        queries: &'a Queries,
        keys: &'a Tile,
        tile: usize,
        work: &'a mut Work,
    ) -> Self {
        let (params, positions, start) = (task.params, task.positions, tile * ATTENTION_TILE);
        Rows { params, dims, positions, queries, tile: keys, start, work }
    }

    /// Maxima, sums and outputs of up to 16 rows from `first` on.
    #[inline(always)]
    pub(super) fn compute<S: Simd>(&mut self, s: S, first: usize, part: &mut Part<'_>) {
        *part.max = [MASKED; 16];
        let end = (self.dims.rows - first).min(16);
        let widest = if S::TILE >= 8 { ROWS } else { 2 };
        for row in (0..end).step_by(widest) {
            self.compute_few(s, first, row..end.min(row + widest), part);
        }
    }

    #[inline(always)]
    fn compute_few<S: Simd>(&mut self, s: S, first: usize, rows: Range<usize>, part: &mut Part<'_>) {
        let (mut count, mut whole) = (0, true);
        for row in rows.clone() {
            let seen = self.seen(first + row);
            count = seen.vectors(self.start).max(count);
            whole &= seen.all_of(self.start);
        }
        if count == 0 {
            return;
        }
        self.scores(s, first + rows.start, rows.len(), count);
        let mut scales = [0.0; ROWS];
        for (r, row) in rows.clone().enumerate() {
            let seen = self.seen(first + row);
            (part.max[row], part.sum[row], scales[r]) = self.weigh(s, r, whole, count, seen);
        }
        let out = &mut part.out[rows.start * self.dims.vectors..rows.end * self.dims.vectors];
        self.values(s, count, &scales[..rows.len()], out);
    }

    #[inline(always)]
    fn seen(&self, row: usize) -> Seen {
        Seen::of(self.positions[row / self.dims.group], self.params.window)
    }

    /// Scores of `rows` rows by `count` vectors of keys or some more.
    #[inline(always)]
    fn scores<S: Simd>(&mut self, s: S, row: usize, rows: usize, count: usize) {
        let widest = if S::TILE >= 8 { 4 } else { 2 };
        for v in (0..count).step_by(widest) {
            match rows {
                4 => self.scores_of::<S, 4, 4>(s, row, v),
                3 => self.scores_of::<S, 3, 4>(s, row, v),
                2 if S::TILE >= 8 => self.scores_of::<S, 2, 4>(s, row, v),
                2 => self.scores_of::<S, 2, 2>(s, row, v),
                _ if S::TILE >= 8 => self.scores_of::<S, 1, 4>(s, row, v),
                _ => self.scores_of::<S, 1, 2>(s, row, v),
            }
        }
        if let Some(cap) = self.params.soft_cap {
            for row in &mut self.work.scores[..rows] {
                for score in &mut row[..count] {
                    let scaled = s.mul(s.load(&score.0), s.splat(self.params.scale));
                    s.store(capped(s, scaled, cap), &mut score.0);
                }
            }
        }
    }

    /// Over channel blocks in order, `s + (d_q * d_k) * isum`.
    #[inline(always)]
    fn scores_of<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, v: usize) {
        let blocks = self.dims.blocks;
        let (k_blocks, _) = self.tile.k.as_chunks::<8>();
        for (block, (k, k_scale)) in k_blocks.iter().zip(&self.tile.k_scale).enumerate() {
            let mut isum = [[s.splat_i32(0); V]; R];
            let mut q = [&[[0; 4]; 8]; R];
            for r in 0..R {
                let at = (row + r) * blocks + block;
                q[r] = &self.queries.q[at];
                isum[r] = [s.splat_i32(self.queries.bias[at]); V];
            }
            for group in 0..8 {
                let k = load_lines::<S, V>(s, &k[group][v..]);
                for r in 0..R {
                    let q = s.splat_i32(i32::from_le_bytes(q[r][group]));
                    for j in 0..V {
                        isum[r][j] = s.dot_u8(isum[r][j], k[j], q);
                    }
                }
            }
            for r in 0..R {
                let scale = s.splat(self.queries.scale[(row + r) * blocks + block]);
                for j in 0..V {
                    let out = &mut self.work.scores[r][v + j].0;
                    let term = s.mul(s.mul(scale, s.load(&k_scale[v + j].0)), s.to_f32(isum[r][j]));
                    // A first block's -0 in place of +0 changes no exponential.
                    s.store(if block == 0 { term } else { s.add(s.load(out), term) }, out);
                }
            }
        }
    }

    /// Maximum and sum of row `r`, and the scale of its weights.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, s: S, r: usize, whole: bool, count: usize, seen: Seen) -> (f32, f32, f32) {
        let result = match count {
            _ if !self.tile.finite => (MASKED, f32::NAN, 0.0),
            _ if whole => self.weigh_as::<S, KEYS, false, false>(s, r, seen),
            0..=4 => self.weigh_as::<S, 4, true, false>(s, r, seen),
            _ => self.weigh_as::<S, KEYS, true, false>(s, r, seen),
        };
        // Without care, a NaN among the scores is one in the sum.
        if result.1.is_nan() { self.weigh_as::<S, KEYS, true, true>(s, r, seen) } else { result }
    }

    /// The weights `rne(w * (65535 / max w))` of the keys in `N` vectors, where the other keys are masked. `MASK` if some of
    /// these are, `NANS` if there may be NaN.
    #[inline(always)]
    fn weigh_as<S: Simd, const N: usize, const MASK: bool, const NANS: bool>(
        &mut self,
        s: S,
        r: usize,
        seen: Seen,
    ) -> (f32, f32, f32) {
        let scores = &self.work.scores[r];
        let zero = s.splat(0.0);
        let (mut x, mut shown) = ([zero; N], [s.lt(zero, zero); N]);
        // A capped score is scaled already.
        let scale = s.splat(if self.params.soft_cap.is_some() { 1.0 } else { self.params.scale });
        for j in 0..N {
            x[j] = s.mul(s.load(&scores[j].0), scale);
            if MASK {
                shown[j] = visible(s, self.start + 16 * j, seen);
                x[j] = s.select(shown[j], x[j], s.splat(MASKED));
            }
        }
        let max = largest::<S, N, NANS>(s, x);
        if max == MASKED {
            return (MASKED, 0.0, 0.0);
        }
        let mut p = [zero; KEYS];
        let mut w = [zero; N];
        for j in 0..N {
            p[j] = exp_below_max(s, s.sub(x[j], s.splat(max)));
            w[j] = s.mul(p[j], s.load(&self.tile.v_scale[j].0));
            if MASK {
                p[j] = s.select(shown[j], p[j], zero);
                w[j] = s.select(shown[j], w[j], zero);
            }
        }
        let sum = tree(s, p);
        let largest = largest::<S, N, NANS>(s, w);
        let scale = largest * W16_MAX_RECIPROCAL;
        let tiny = scale < TINY;
        let inverse = s.splat(if tiny { 0.0 } else { W16_MAX / largest });
        for (i, weights) in w.chunks(4).enumerate() {
            let mut integers = [s.splat_i32(0); 4];
            for (integer, &weight) in integers.iter_mut().zip(weights) {
                *integer = s.round_i32(s.mul(weight, inverse));
            }
            let [high, low] = s.byte_slices(integers);
            s.store_bytes(high, &mut self.work.weights[r].high[i].0);
            s.store_bytes(low, &mut self.work.weights[r].low[i].0);
        }
        (max, sum, if tiny { 0.0 } else { scale })
    }

    /// Outputs of a row for each scale, from the values of `count` vectors of keys.
    #[inline(always)]
    fn values<S: Simd>(&self, s: S, count: usize, scales: &[f32], out: &mut [Lanes]) {
        let vectors = self.dims.vectors;
        let mut r = 0;
        while r < scales.len() {
            let (scales, out) = (&scales[r..], &mut out[r * vectors..]);
            r += match scales.len() {
                3 if S::TILE >= 8 => self.values_of::<S, 3>(s, count, r, scales, out),
                2.. if S::TILE >= 8 => self.values_of::<S, 2>(s, count, r, scales, out),
                _ => self.values_of::<S, 1>(s, count, r, scales, out),
            };
        }
    }

    /// `R` rows from `r` on; returns `R`.
    #[inline(always)]
    fn values_of<S: Simd, const R: usize>(
        &self,
        s: S,
        count: usize,
        r: usize,
        scales: &[f32],
        out: &mut [Lanes],
    ) -> usize {
        let wide = self.dims.vectors / 4 * 4;
        for at in (0..wide).step_by(4) {
            self.channels::<S, R, 4>(s, count, r, at, scales, &mut out[at..]);
        }
        for at in wide..self.dims.vectors {
            self.channels::<S, R, 1>(s, count, r, at, scales, &mut out[at..]);
        }
        R
    }

    /// `d * (256 * dot(high, v) + dot(low, v))` of `R` rows and `C` vectors of channels from `at` on.
    #[inline(always)]
    fn channels<S: Simd, const R: usize, const C: usize>(
        &self,
        s: S,
        count: usize,
        r: usize,
        at: usize,
        scales: &[f32],
        out: &mut [Lanes],
    ) {
        let vectors = self.dims.vectors;
        let weights: &[Weights; R] = self.work.weights[r..].first_chunk().expect("rows of the work");
        let zero = s.splat_i32(0);
        let (mut high_sums, mut low_sums) = ([[zero; C]; R], [[zero; C]; R]);
        for (i, values) in self.tile.v.chunks_exact(4 * vectors).take(count).enumerate() {
            for l in 0..4 {
                let (half, word) = (i / 4 % 2, 4 * l + i % 4);
                let v = load_lines::<S, C>(s, &values[l * vectors + at..]);
                for r in 0..R {
                    let high = splat_word(s, &weights[r].high[half], word);
                    let low = splat_word(s, &weights[r].low[half], word);
                    for c in 0..C {
                        high_sums[r][c] = s.dot_u8(high_sums[r][c], high, v[c]);
                        low_sums[r][c] = s.dot_u8(low_sums[r][c], low, v[c]);
                    }
                }
            }
        }
        for r in 0..R {
            let scale = s.splat(scales[r]);
            for c in 0..C {
                let sum = s.add_i32(s.shl::<8>(high_sums[r][c]), low_sums[r][c]);
                s.store(s.mul(s.to_f32(sum), scale), &mut out[r * vectors + c].0);
            }
        }
    }
}

#[inline(always)]
fn load_lines<S: Simd, const N: usize>(s: S, lines: &[Line]) -> [S::I; N] {
    let lines: &[Line; N] = lines.first_chunk().expect("lines of a tile");
    let mut vectors = [s.splat_i32(0); N];
    for (vector, line) in vectors.iter_mut().zip(lines) {
        *vector = s.load_bytes(&line.0);
    }
    vectors
}

#[inline(always)]
fn splat_word<S: Simd>(s: S, line: &Line, word: usize) -> S::I {
    s.splat_i32(i32::from_le_bytes(line.0.as_chunks::<4>().0[word]))
}

/// The largest of the values; NaN if any is, where `NANS` says that there may be.
#[inline(always)]
fn largest<S: Simd, const N: usize, const NANS: bool>(s: S, mut x: [S::F; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            x[i] = if NANS { s.max(x[i], x[i + width]) } else { s.larger(x[i], x[i + width]) };
        }
        width /= 2;
    }
    if NANS { s.max_lane(x[0]) } else { s.largest_lane(x[0]) }
}

const _: () = assert!(KEYS * 16 == ATTENTION_TILE && KEYS == 8);
