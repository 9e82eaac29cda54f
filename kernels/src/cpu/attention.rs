//! Attention over the int8 cache: 128 keys at a time, every product an exact integer dot.
//!
//! A tile's keys are laid out channel groups outermost, so that 16 keys fill a vector; its values key groups outermost, so
//! that 16 channels do. Both are done once for all query heads and tokens of a task, its rows.

mod rows;
mod tile;

use std::ops::Range;

use samebits_tensor::{
    AttentionParams, KvShape,
    contract::{ATTENTION_TILE, HEAD_BLOCK, MASKED},
};

use self::{
    rows::{Rows, Work},
    tile::{Copied, Tile},
};
use super::{
    elementwise::{exp_below_max, store_at},
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    quantize::{block_of, sum_bytes},
    simd::Simd,
};

/// Vectors of keys in a tile.
const KEYS: usize = ATTENTION_TILE / 16;

/// The rows of a cache: see [`KvShape::rows`].
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    /// Extents.
    pub shape: KvShape,
    /// i8 `[rows, head_dim]`.
    pub k: &'a [u8],
    /// `[rows, head_blocks]`.
    pub k_scale: &'a [f32],
    /// i8 `[rows, head_dim]`.
    pub v: &'a [u8],
    /// `[rows]`.
    pub v_scale: &'a [f32],
}

/// Tokens of one sequence, and the query heads of one kv head.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTask<'a> {
    /// The cache.
    pub cache: KvRows<'a>,
    /// The kv head.
    pub kv_head: usize,
    /// Pages of the sequence, in order; what lies past them reads page 0.
    pub pages: &'a [i32],
    /// Position of each token.
    pub positions: &'a [i32],
    /// Positions that may hold a visible key.
    pub max_context: usize,
    /// `[tokens, heads, head_dim]`: all query heads of the tokens.
    pub q: &'a [f32],
    /// Constants of the layer.
    pub params: &'a AttentionParams,
}

impl AttentionTask<'_> {
    /// The tiles in which some token sees a key.
    pub fn tiles(&self) -> Range<usize> {
        let all = self.positions.iter().map(|&position| Seen::of(position, self.params.window));
        let first = all.clone().map(|seen| (seen.above + 1).max(0) as usize / ATTENTION_TILE).min();
        let end = self.end().div_ceil(ATTENTION_TILE);
        first.unwrap_or(0).min(end)..end
    }

    /// Length of the results of one tile: see [`attend_tiles`].
    pub fn part_len(&self) -> usize {
        Dims::of(self).part_len()
    }

    /// The position after the last key that some token sees.
    fn end(&self) -> usize {
        let end = self.positions.iter().map(|&position| (i64::from(position) + 1).max(0) as usize).max();
        end.unwrap_or(0).min(self.max_context)
    }
}

/// Sixteen values that start a cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Lanes([f32; 16]);

impl Lanes {
    /// Sixteen times +0.
    pub const ZERO: Lanes = Lanes([0.0; 16]);
}

/// Room for a task's tile, queries and states; grows to the largest task.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    queries: Queries,
    tile: Tile,
    work: Work,
    states: Vec<Lanes>,
    part: Vec<Lanes>,
    copied: Copied,
}

/// Attention of a task into `out [tokens, group * head_dim]`.
///
/// # Panics
/// If a size does not fit, or a page is outside of the cache.
pub fn attend(isa: Isa, task: AttentionTask<'_>, scratch: &mut AttentionScratch, out: MatrixMut<'_>) {
    isa.run(Attend { tiles: task.tiles(), task, scratch, into: Into::Merged(out) });
}

/// Each tile's maxima, sums and outputs, [`AttentionTask::part_len`] of them a tile, for [`merge_tiles`].
///
/// # Panics
/// As [`attend`].
pub fn attend_tiles(
    isa: Isa,
    task: AttentionTask<'_>,
    tiles: Range<usize>,
    scratch: &mut AttentionScratch,
    parts: &mut [Lanes],
) {
    isa.run(Attend { task, tiles, scratch, into: Into::Parts(parts) });
}

/// Attention of a task into `out [tokens, group * head_dim]` from the results of all of its tiles. For every `span` tiles
/// there is a piece of `parts`; pieces are of one length, and start with the results.
///
/// # Panics
/// If a size does not fit.
pub fn merge_tiles(
    isa: Isa,
    task: AttentionTask<'_>,
    span: usize,
    parts: &[Lanes],
    scratch: &mut AttentionScratch,
    out: MatrixMut<'_>,
) {
    isa.run(MergeTiles { task, span, parts, scratch, out });
}

struct Attend<'a, 'b> {
    task: AttentionTask<'a>,
    tiles: Range<usize>,
    scratch: &'b mut AttentionScratch,
    into: Into<'a, 'b>,
}

/// Where the results of tiles go.
enum Into<'a, 'b> {
    Merged(MatrixMut<'a>),
    Parts(&'b mut [Lanes]),
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { task, tiles, scratch, mut into } = self;
        let dims = Dims::of(&task);
        scratch.start(s, &task, &dims);
        for (i, tile) in tiles.enumerate() {
            let AttentionScratch { queries, tile: keys, work, states, part, copied } = &mut *scratch;
            keys.load(s, &task, &dims, tile, copied);
            let mut rows = Rows::new(&task, &dims, queries, keys, tile, work);
            for chunk in 0..dims.chunks() {
                let (part, state) = match &mut into {
                    Into::Merged(_) => (&mut part[..], Some(&mut states[dims.chunk(chunk)])),
                    Into::Parts(parts) => (&mut parts[dims.chunk(i * dims.chunks() + chunk)], None),
                };
                rows.compute(s, 16 * chunk, &mut Part::of(part));
                if let Some(state) = state {
                    merge(s, &dims, state, part);
                }
            }
        }
        if let Into::Merged(out) = into {
            finish(s, &dims, &scratch.states, out);
        }
    }
}

struct MergeTiles<'a, 'b> {
    task: AttentionTask<'a>,
    span: usize,
    parts: &'b [Lanes],
    scratch: &'b mut AttentionScratch,
    out: MatrixMut<'a>,
}

impl Kernel for MergeTiles<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dims = Dims::of(&self.task);
        self.scratch.start_states(&dims);
        let (tiles, span) = (self.task.tiles(), self.span);
        let piece = self.parts.len() / tiles.len().div_ceil(span).max(1);
        for i in 0..tiles.len() {
            let part = i / span * piece + i % span * dims.part_len();
            for chunk in 0..dims.chunks() {
                let part = &self.parts[part..][dims.chunk(chunk)];
                merge(s, &dims, &mut self.scratch.states[dims.chunk(chunk)], part);
            }
        }
        finish(s, &dims, &self.scratch.states, self.out);
    }
}

/// Extents of a task.
#[derive(Debug)]
struct Dims {
    /// Query heads of all tokens, those of a token side by side.
    rows: usize,
    group: usize,
    head_dim: usize,
    /// Vectors that hold a head's channels.
    vectors: usize,
    blocks: usize,
}

impl Dims {
    fn of(task: &AttentionTask<'_>) -> Self {
        let KvShape { head_dim, kv_heads, .. } = task.cache.shape;
        let tokens = task.positions.len();
        let group = task.q.len() / (tokens * kv_heads * head_dim).max(1);
        assert_eq!(task.q.len(), tokens * kv_heads * group * head_dim, "attention of {tokens} tokens");
        Dims {
            rows: group * tokens,
            group,
            head_dim,
            vectors: head_dim.div_ceil(16),
            blocks: task.cache.shape.head_blocks(),
        }
    }

    /// Maxima, sums and outputs of 16 rows: see [`Part`].
    fn chunk_len(&self) -> usize {
        2 + 16 * self.vectors
    }

    fn chunks(&self) -> usize {
        self.rows.div_ceil(16)
    }

    fn chunk(&self, i: usize) -> Range<usize> {
        i * self.chunk_len()..(i + 1) * self.chunk_len()
    }

    fn part_len(&self) -> usize {
        self.chunks() * self.chunk_len()
    }
}

/// Maxima, sums and outputs of 16 rows, of one tile or of all tiles so far. The maximum of a row that saw no key is
/// [`MASKED`].
struct Part<'a> {
    max: &'a mut [f32; 16],
    sum: &'a mut [f32; 16],
    /// `[16, vectors]`.
    out: &'a mut [Lanes],
}

impl<'a> Part<'a> {
    #[inline(always)]
    fn of(lanes: &'a mut [Lanes]) -> Self {
        let ([max, sum], out) = lanes.split_first_chunk_mut().expect("a part");
        Part { max: &mut max.0, sum: &mut sum.0, out }
    }
}

/// Query heads, quantised like keys.
#[derive(Debug, Default)]
struct Queries {
    /// `[rows, head_blocks, 32]` of i8.
    q: Vec<[[u8; 4]; 8]>,
    /// `[rows, head_blocks]`.
    scale: Vec<f32>,
    /// `-128 * sum(q)`, of each block.
    bias: Vec<i32>,
}

impl AttentionScratch {
    fn start_states(&mut self, dims: &Dims) {
        self.states.clear();
        self.states.resize(dims.part_len(), Lanes::ZERO);
        for state in self.states.chunks_exact_mut(dims.chunk_len()) {
            *Part::of(state).max = [MASKED; 16];
        }
    }

    #[inline(always)]
    fn start<S: Simd>(&mut self, s: S, task: &AttentionTask<'_>, dims: &Dims) {
        self.start_states(dims);
        self.part.resize(dims.chunk_len(), Lanes::ZERO);
        self.tile.reset(dims);
        self.queries.quantize(s, task, dims);
    }
}

impl Queries {
    /// Quantises the task's query heads in blocks of 32 channels.
    #[inline(always)]
    fn quantize<S: Simd>(&mut self, s: S, task: &AttentionTask<'_>, dims: &Dims) {
        let width = task.cache.shape.kv_heads * dims.group * dims.head_dim;
        let start = task.kv_head * dims.group * dims.head_dim;
        self.q.clear();
        self.scale.clear();
        self.bias.clear();
        for token in task.q.chunks_exact(width) {
            for head in token[start..start + dims.group * dims.head_dim].chunks_exact(dims.head_dim) {
                for x in head.chunks(HEAD_BLOCK) {
                    let mut q = [[0; 4]; 8];
                    self.scale.push(block_of(s, x, &mut q.as_flattened_mut()[..x.len()]));
                    self.bias.push(-128 * sum_bytes(s, q.as_flattened()));
                    self.q.push(q);
                }
            }
        }
    }
}

/// The keys that one token sees: after `above`, up to `position`.
#[derive(Clone, Copy)]
struct Seen {
    above: i32,
    position: i32,
}

impl Seen {
    #[inline(always)]
    fn of(position: i32, window: Option<usize>) -> Seen {
        let window = window.and_then(|window| i32::try_from(window).ok());
        Seen { above: window.map_or(-1, |window| position.saturating_sub(window)), position }
    }

    /// Vectors of keys from the tile's first one to the last that is seen.
    #[inline(always)]
    fn vectors(self, start: usize) -> usize {
        let start = start as i64;
        if start + (ATTENTION_TILE as i64) <= i64::from(self.above) + 1 {
            return 0;
        }
        ((i64::from(self.position) + 16 - start).max(0) as usize / 16).min(KEYS)
    }

    #[inline(always)]
    fn all_of(self, start: usize) -> bool {
        let start = start as i64;
        start > i64::from(self.above) && start + (ATTENTION_TILE as i64) <= i64::from(self.position) + 1
    }
}

/// Which of 16 keys are seen.
#[inline(always)]
fn visible<S: Simd>(s: S, key: usize, seen: Seen) -> S::M {
    let lanes = s.load_i32(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let key = s.add_i32(lanes, s.splat_i32(key as i32));
    let (above, end) = (s.splat_i32(seen.above), s.splat_i32(seen.position.saturating_add(1)));
    s.and_mask(s.lt_i32(above, key), s.lt_i32(key, end))
}

/// `M' = max(M, m)`, `O * exp(M - M') + o * exp(m - M')` and the same of the sums, for the rows that saw a key.
#[inline(always)]
fn merge<S: Simd>(s: S, dims: &Dims, state: &mut [Lanes], part: &[Lanes]) {
    let state = Part::of(state);
    let ([max, sum], out) = part.split_first_chunk().expect("a part");
    let (max_so_far, tile_max) = (s.load(state.max), s.load(&max.0));
    let total_max = s.max(max_so_far, tile_max);
    let old = exp_below_max(s, s.sub(max_so_far, total_max));
    let new = exp_below_max(s, s.sub(tile_max, total_max));
    let sum_so_far = s.load(state.sum);
    let total = s.add(s.mul(sum_so_far, old), s.mul(s.load(&sum.0), new));
    s.store(where_seen(s, tile_max, total_max, max_so_far), state.max);
    s.store(where_seen(s, tile_max, total, sum_so_far), state.sum);
    let (mut olds, mut news) = ([0.0; 16], [0.0; 16]);
    s.store(old, &mut olds);
    s.store(new, &mut news);
    let rows = state.out.chunks_exact_mut(dims.vectors).zip(out.chunks_exact(dims.vectors));
    for (row, (state, out)) in rows.enumerate() {
        if max.0[row] == MASKED {
            continue;
        }
        let (old, new) = (s.splat(olds[row]), s.splat(news[row]));
        for (state, out) in state.iter_mut().zip(out) {
            let sum = s.add(s.mul(s.load(&state.0), old), s.mul(s.load(&out.0), new));
            s.store(sum, &mut state.0);
        }
    }
}

/// `a` where a tile's maximum says that it held a visible key, else `b`.
#[inline(always)]
fn where_seen<S: Simd>(s: S, tile_max: S::F, a: S::F, b: S::F) -> S::F {
    let (bits, masked) = (s.bits(tile_max), s.splat_i32(MASKED.to_bits() as i32));
    s.select(s.lt_i32(bits, masked), a, s.select(s.lt_i32(masked, bits), a, b))
}

/// `O / L`, channels put in order.
#[inline(always)]
fn finish<S: Simd>(s: S, dims: &Dims, states: &[Lanes], mut out: MatrixMut<'_>) {
    let fits = out.rows() * dims.group == dims.rows && out.cols() == dims.group * dims.head_dim;
    assert!(fits, "attention of {} rows", dims.rows);
    for row in 0..dims.rows {
        let state = &states[row / 16 * dims.chunk_len()..][..dims.chunk_len()];
        let sum = s.splat(state[1].0[row % 16]);
        let total = &state[2 + row % 16 * dims.vectors..][..dims.vectors];
        let member = row % dims.group;
        let out = &mut out.row(row / dims.group)[member * dims.head_dim..(member + 1) * dims.head_dim];
        let (wide, narrow) = total.as_chunks::<4>();
        for (i, total) in wide.iter().enumerate() {
            let mut bits = [s.splat_i32(0); 4];
            for (bits, total) in bits.iter_mut().zip(total) {
                *bits = s.bits(s.load(&total.0));
            }
            for (j, total) in s.in_order(bits).into_iter().enumerate() {
                store_at(s, s.div(s.of_bits(total), sum), out, 4 * i + j);
            }
        }
        for (i, total) in narrow.iter().enumerate() {
            store_at(s, s.div(s.load(&total.0), sum), out, 4 * wide.len() + i);
        }
    }
}
