//! Attention over the int8 cache: 128 keys at a time, every product an exact integer dot.
//!
//! A tile's keys are laid out channel groups outermost, so that 16 keys fill a vector; its values key groups outermost, so
//! that 16 channels do. Both are done once for all query heads and tokens of a task, its rows.

mod chunk;
mod store;
mod tile;

use std::ops::Range;

use samebits_tensor::{
    AttentionParams, KvShape,
    contract::{ATTENTION_TILE, HEAD_BLOCK, MASKED},
};

pub use self::store::{KvHeads, KvRowsMut, NewKv};
use self::{
    chunk::{Chunk, Work},
    tile::Tile,
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
}

/// Attention of a task into `out [tokens, group * head_dim]`.
///
/// # Panics
/// If a size does not fit, or a page is outside of the cache.
pub fn attend(isa: Isa, task: AttentionTask<'_>, scratch: &mut AttentionScratch, out: MatrixMut<'_>) {
    let dims = Dims::of(&task);
    let AttentionScratch { queries, tile, work, states, part } = scratch;
    start_states(states, &dims);
    part.resize(dims.chunk_len(), Lanes::ZERO);
    queries.quantize(isa, &task, &dims);
    for index in task.tiles() {
        tile.load(isa, &task, &dims, index);
        for chunk in 0..dims.chunks() {
            Chunk::new(&task, &dims, queries, tile, index, chunk).compute(isa, work, Part::of(part));
            isa.run(Merge { dims: &dims, state: &mut states[dims.chunk(chunk)], part });
        }
    }
    isa.run(Finish { dims: &dims, states, out });
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
    let dims = Dims::of(&task);
    let AttentionScratch { queries, tile, work, .. } = scratch;
    queries.quantize(isa, &task, &dims);
    for (i, index) in tiles.enumerate() {
        tile.load(isa, &task, &dims, index);
        for chunk in 0..dims.chunks() {
            let part = &mut parts[dims.chunk(i * dims.chunks() + chunk)];
            Chunk::new(&task, &dims, queries, tile, index, chunk).compute(isa, work, Part::of(part));
        }
    }
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
    let (dims, states) = (Dims::of(&task), &mut scratch.states);
    start_states(states, &dims);
    let tiles = task.tiles().len();
    let piece = parts.len() / tiles.div_ceil(span).max(1);
    for i in 0..tiles {
        let parts = &parts[i / span * piece + i % span * dims.part_len()..];
        for chunk in 0..dims.chunks() {
            let part = &parts[dims.chunk(chunk)];
            isa.run(Merge { dims: &dims, state: &mut states[dims.chunk(chunk)], part });
        }
    }
    isa.run(Finish { dims: &dims, states, out });
}

/// States before the first tile.
fn start_states(states: &mut Vec<Lanes>, dims: &Dims) {
    states.clear();
    states.resize(dims.part_len(), Lanes::ZERO);
    for state in states.chunks_exact_mut(dims.chunk_len()) {
        *Part::of(state).max = [MASKED; 16];
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

impl Queries {
    /// Quantises the task's query heads in blocks of 32 channels.
    fn quantize(&mut self, isa: Isa, task: &AttentionTask<'_>, dims: &Dims) {
        let blocks = dims.rows * dims.blocks;
        self.q.clear();
        self.q.resize(blocks, [[0; 4]; 8]);
        self.scale.resize(blocks, 0.0);
        self.bias.resize(blocks, 0);
        isa.run(Quantize { queries: self, task, dims });
    }
}

struct Quantize<'a, 'b> {
    queries: &'a mut Queries,
    task: &'a AttentionTask<'b>,
    dims: &'a Dims,
}

impl Kernel for Quantize<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Quantize { queries, task, dims } = self;
        let width = dims.group * dims.head_dim;
        let tokens = task.q.chunks_exact(width * task.cache.shape.kv_heads);
        let heads =
            tokens.flat_map(|token| token[task.kv_head * width..][..width].chunks_exact(dims.head_dim));
        let blocks = heads.flat_map(|head| head.chunks(HEAD_BLOCK));
        let out = queries.q.iter_mut().zip(&mut queries.scale).zip(&mut queries.bias);
        for (x, ((q, scale), bias)) in blocks.zip(out) {
            let q = q.as_flattened_mut();
            // The usual length as a constant.
            *scale = match x.first_chunk::<HEAD_BLOCK>() {
                Some(x) => block_of(s, x, q),
                None => block_of(s, x, &mut q[..x.len()]),
            };
            *bias = -128 * sum_bytes(s, q);
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
    const NOTHING: Seen = Seen { above: -1, position: -1 };

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
        self.offsets(start) == [-1, ATTENTION_TILE as i32]
    }

    /// Offsets in the tile from `start` on that keys are seen after and before.
    #[inline(always)]
    fn offsets(self, start: usize) -> [i32; 2] {
        let offset = |position: i64| (position - start as i64).clamp(-1, ATTENTION_TILE as i64) as i32;
        [offset(i64::from(self.above)), offset(i64::from(self.position) + 1)]
    }
}

/// Offsets of a tile's keys.
const OFFSETS: [[i32; 16]; KEYS] = {
    let mut offsets = [[0; 16]; KEYS];
    let mut key = 0;
    while key < ATTENTION_TILE {
        offsets[key / 16][key % 16] = key as i32;
        key += 1;
    }
    offsets
};

/// Offsets in a tile that keys are seen after and before.
#[derive(Clone, Copy)]
struct Bounds<S: Simd> {
    after: S::I,
    before: S::I,
}

impl<S: Simd> Bounds<S> {
    #[inline(always)]
    fn new(s: S, [after, before]: [i32; 2]) -> Self {
        Bounds { after: s.splat_i32(after), before: s.splat_i32(before) }
    }

    /// Which keys of vector `v` are seen.
    #[inline(always)]
    fn of(self, s: S, v: usize) -> S::M {
        let offsets = s.load_i32(&OFFSETS[v]);
        s.and_mask(s.lt_i32(self.after, offsets), s.lt_i32(offsets, self.before))
    }
}

/// `M' = max(M, m)`, `O * exp(M - M') + o * exp(m - M')` and the same of the sums, for the rows that saw a key.
struct Merge<'a> {
    dims: &'a Dims,
    state: &'a mut [Lanes],
    part: &'a [Lanes],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Merge { dims, state, part } = self;
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
        for (row, (state, out)) in rows.enumerate().take(dims.rows) {
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
}

/// `a` where a tile's maximum says that it held a visible key, else `b`.
#[inline(always)]
fn where_seen<S: Simd>(s: S, tile_max: S::F, a: S::F, b: S::F) -> S::F {
    let (bits, masked) = (s.bits(tile_max), s.splat_i32(MASKED.to_bits() as i32));
    s.select(s.lt_i32(bits, masked), a, s.select(s.lt_i32(masked, bits), a, b))
}

/// `O / L`, channels put in order.
struct Finish<'a, 'b> {
    dims: &'a Dims,
    states: &'a [Lanes],
    out: MatrixMut<'b>,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Finish { dims, states, mut out } = self;
        let fits = out.rows() * dims.group == dims.rows && out.cols() == dims.group * dims.head_dim;
        assert!(fits, "attention of {} rows", dims.rows);
        for row in 0..dims.rows {
            let state = &states[dims.chunk(row / 16)];
            let sum = s.splat(state[1].0[row % 16]);
            let total = &state[2 + row % 16 * dims.vectors..][..dims.vectors];
            let member = row % dims.group;
            let out = &mut out.row(row / dims.group)[member * dims.head_dim..(member + 1) * dims.head_dim];
            divide(s, total, sum, out);
        }
    }
}

/// The channels of a row, which are in the tile's order, divided by `sum`.
#[inline(always)]
fn divide<S: Simd>(s: S, total: &[Lanes], sum: S::F, out: &mut [f32]) {
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
