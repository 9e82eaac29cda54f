//! Scores of a chunk's rows.

use super::{Chunk, KEYS, Lanes};
use crate::cpu::{attention::tile::load_lines, elementwise::capped, isa::Kernel, simd::Simd};

/// Scores by all keys that some row sees, and by a few more: before the factor of the scores, but after it where they are
/// capped.
pub(super) struct Scores<'a, 'b> {
    pub(super) chunk: &'a Chunk<'a>,
    pub(super) scores: &'b mut [[Lanes; KEYS]; 16],
}

impl Kernel for Scores<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.chunk.rows;
        if S::TILE < 8 {
            (0..rows / 2 * 2).step_by(2).for_each(|row| self.rows_of::<S, 2, 2>(s, row));
            (rows / 2 * 2..rows).for_each(|row| self.rows_of::<S, 1, 2>(s, row));
        } else {
            (0..rows / 4 * 4).step_by(4).for_each(|row| self.rows_of::<S, 4, 4>(s, row));
            match rows % 4 {
                3 => self.rows_of::<S, 3, 4>(s, rows - 3),
                2 => self.rows_of::<S, 2, 4>(s, rows - 2),
                1 => self.rows_of::<S, 1, 4>(s, rows - 1),
                _ => {}
            }
        }
        if let Some(cap) = self.chunk.params.soft_cap {
            self.cap(s, cap);
        }
    }
}

impl Scores<'_, '_> {
    /// `R` rows, by `V` or two vectors of keys at a time.
    #[inline(always)]
    fn rows_of<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize) {
        let mut v = 0;
        while v + V <= self.chunk.count.next_multiple_of(2) {
            self.scores_of::<S, R, V>(s, row, v);
            v += V;
        }
        if v < self.chunk.count {
            self.scores_of::<S, R, 2>(s, row, v);
        }
    }

    /// Over channel blocks in order, `s + (d_q * d_k) * isum`.
    #[inline(always)]
    fn scores_of<S: Simd, const R: usize, const V: usize>(&mut self, s: S, row: usize, v: usize) {
        let Chunk { tile, queries, dims, first, .. } = self.chunk;
        for (block, (k, k_scale)) in tile.k.as_chunks::<8>().0.iter().zip(&tile.k_scale).enumerate() {
            let mut isum = [[s.splat_i32(0); V]; R];
            let mut q = [&[[0; 4]; 8]; R];
            for r in 0..R {
                let at = (first + row + r) * dims.blocks + block;
                q[r] = &queries.q[at];
                isum[r] = [s.splat_i32(queries.bias[at]); V];
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
                let scale = s.splat(queries.scale[(first + row + r) * dims.blocks + block]);
                for j in 0..V {
                    let out = &mut self.scores[row + r][v + j].0;
                    let term = s.mul(s.mul(scale, s.load(&k_scale[v + j].0)), s.to_f32(isum[r][j]));
                    // A first block's -0 in place of +0 changes no exponential.
                    s.store(if block == 0 { term } else { s.add(s.load(out), term) }, out);
                }
            }
        }
    }

    #[inline(always)]
    fn cap<S: Simd>(&mut self, s: S, cap: f32) {
        for row in &mut self.scores[..self.chunk.rows] {
            for score in &mut row[..self.chunk.count] {
                let scaled = s.mul(s.load(&score.0), s.splat(self.chunk.params.scale));
                s.store(capped(s, scaled, cap), &mut score.0);
            }
        }
    }
}
