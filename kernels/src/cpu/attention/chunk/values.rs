//! Outputs of a chunk's rows.

use super::{Chunk, KEYS, Lanes, Line, Weights, Work};
use crate::cpu::{attention::tile::load_lines, isa::Kernel, simd::Simd};

/// `d * (256 * dot(high, v) + dot(low, v))` of each row.
pub(super) struct Values<'a, 'b> {
    pub(super) chunk: &'a Chunk<'a>,
    pub(super) work: &'b Work,
    /// `[16, vectors]`.
    pub(super) out: &'b mut [Lanes],
}

impl Kernel for Values<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.chunk.rows;
        let mut row = 0;
        while row < rows {
            row += match rows - row {
                _ if S::TILE < 8 => self.rows_of::<S, 1, 2>(s, row),
                1 => self.rows_of::<S, 1, 4>(s, row),
                2 | 4 => self.rows_of::<S, 2, 4>(s, row),
                _ => self.rows_of::<S, 3, 4>(s, row),
            };
        }
    }
}

impl Values<'_, '_> {
    /// `R` rows, by `C` vectors of channels at a time, then one; returns `R`.
    #[inline(always)]
    fn rows_of<S: Simd, const R: usize, const C: usize>(&mut self, s: S, row: usize) -> usize {
        let vectors = self.chunk.dims.vectors;
        let wide = vectors / C * C;
        (0..wide).step_by(C).for_each(|at| self.channels::<S, R, C>(s, row, at));
        (wide..vectors).for_each(|at| self.channels::<S, R, 1>(s, row, at));
        R
    }

    /// `R` rows and `C` vectors of channels from `at` on.
    #[inline(always)]
    fn channels<S: Simd, const R: usize, const C: usize>(&mut self, s: S, row: usize, at: usize) {
        let Chunk { tile, count, dims, .. } = self.chunk;
        let weights: &[Weights; R] = self.work.weights[row..].first_chunk().expect("rows of the work");
        let zero = s.splat_i32(0);
        let (mut high_sums, mut low_sums) = ([[zero; C]; R], [[zero; C]; R]);
        for (word, values) in tile.v.chunks_exact(dims.vectors).take(4 * count).enumerate() {
            let v = load_lines::<S, C>(s, &values[at..]);
            for r in 0..R {
                let (high, low) =
                    (splat_word(s, &weights[r].high, word), splat_word(s, &weights[r].low, word));
                for c in 0..C {
                    high_sums[r][c] = s.dot_u8(high_sums[r][c], high, v[c]);
                    low_sums[r][c] = s.dot_u8(low_sums[r][c], low, v[c]);
                }
            }
        }
        for r in 0..R {
            let scale = s.splat(self.work.scales[row + r]);
            let out = &mut self.out[(row + r) * dims.vectors + at..][..C];
            for c in 0..C {
                let sum = s.add_i32(s.shl::<8>(high_sums[r][c]), low_sums[r][c]);
                s.store(s.mul(s.to_f32(sum), scale), &mut out[c].0);
            }
        }
    }
}

/// Four bytes in all lanes.
#[inline(always)]
fn splat_word<S: Simd>(s: S, lines: &[Line; KEYS / 4], word: usize) -> S::I {
    s.splat_i32(i32::from_le_bytes(lines[word / 16].0.as_chunks::<4>().0[word % 16]))
}
