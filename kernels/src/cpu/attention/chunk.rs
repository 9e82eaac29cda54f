//! Up to 16 query heads over a tile, in three steps: scores, weights, outputs.

mod scores;
mod values;
mod weigh;

use std::iter;

use samebits_tensor::{
    AttentionParams,
    contract::{ATTENTION_TILE, MASKED},
};

use self::{scores::Scores, values::Values, weigh::Weigh};
use super::{
    AttentionTask, Dims, KEYS, Lanes, Part, Queries, Seen,
    tile::{Line, Tile},
};
use crate::cpu::isa::Isa;

/// What the steps hand on.
#[derive(Debug)]
pub(super) struct Work {
    /// Scores of each row, then its weights before they are rounded.
    scores: [[Lanes; KEYS]; 16],
    weights: [Weights; 16],
    /// What a row's integer weights are in units of.
    scales: [f32; 16],
}

/// 16-bit weights of a row in two slices.
#[derive(Clone, Copy, Debug)]
struct Weights {
    high: [Line; KEYS / 4],
    low: [Line; KEYS / 4],
}

impl Default for Work {
    fn default() -> Self {
        let bytes = [Line([0; 64]); KEYS / 4];
        Work {
            scores: [[Lanes::ZERO; KEYS]; 16],
            weights: [Weights { high: bytes, low: bytes }; 16],
            scales: [0.0; 16],
        }
    }
}

/// Up to 16 rows of a task over one tile.
pub(super) struct Chunk<'a> {
    params: &'a AttentionParams,
    dims: &'a Dims,
    queries: &'a Queries,
    tile: &'a Tile,
    /// The first row.
    first: usize,
    rows: usize,
    /// Position of the tile's first key.
    start: usize,
    /// What each row sees.
    seen: [Seen; 16],
    /// Vectors of keys up to the last that a row sees.
    count: usize,
    /// Whether every row sees every key.
    whole: bool,
}

impl<'a> Chunk<'a> {
    pub(super) fn new(
        task: &'a AttentionTask<'_>,
        dims: &'a Dims,
        queries: &'a Queries,
        keys: &'a Tile,
        tile: usize,
        chunk: usize,
    ) -> Self {
        let (params, first, start) = (task.params, 16 * chunk, tile * ATTENTION_TILE);
        let rows = (dims.rows - first).min(16);
        let mut seen = [Seen::NOTHING; 16];
        let (mut count, mut whole) = (0, true);
        let tokens = task.positions[first / dims.group..].iter();
        let all = tokens.flat_map(|&position| iter::repeat_n(Seen::of(position, params.window), dims.group));
        for (seen, of_row) in seen[..rows].iter_mut().zip(all.skip(first % dims.group)) {
            *seen = of_row;
            count = seen.vectors(start).max(count);
            whole &= seen.all_of(start);
        }
        Chunk { params, dims, queries, tile: keys, first, rows, start, seen, count, whole }
    }

    /// Maxima, sums and outputs of the rows.
    pub(super) fn compute(&self, isa: Isa, work: &mut Work, part: Part<'_>) {
        let Part { max, sum, out } = part;
        *max = [MASKED; 16];
        if self.count == 0 {
            return;
        }
        isa.run(Scores { chunk: self, scores: &mut work.scores });
        if self.tile.finite {
            isa.run(Weigh { chunk: self, nans: false, work, max, sum });
        }
        // A NaN among the scores is one in the sum.
        if !self.tile.finite || sum[..self.rows].iter().any(|sum| sum.is_nan()) {
            isa.run(Scores { chunk: self, scores: &mut work.scores });
            isa.run(Weigh { chunk: self, nans: true, work, max, sum });
        }
        isa.run(Values { chunk: self, work, out });
    }
}
