//! Attention over the int8 cache: 128 keys at a time, every product an exact integer dot.
//!
//! A tile's keys are laid out channel groups outermost, so that 16 keys fill a vector; its values key groups outermost, so
//! that 16 channels do. Both are done once for all query heads and tokens of a task.

use samebits_tensor::{
    AttentionParams, KvShape,
    contract::{ATTENTION_TILE, MASKED, TINY, W16_MAX, W16_MAX_RECIPROCAL},
    exp,
};

use super::{
    elementwise::{capped, exp as exp_lanes, load_at, store_at, vectors},
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    norm::tree,
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

/// Room for a task's tile, queries and states; grows to the largest task.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// `[head_dim / 4, 128]` of four bytes: keys plus 128.
    k: Vec<[u8; 64]>,
    /// `[head_blocks, 128]`.
    k_scale: Vec<f32>,
    /// `[128 / 4, head_dim]` of four bytes.
    v: Vec<[u8; 64]>,
    v_scale: Vec<f32>,
    /// `[tokens * group, head_dim]` of i8, padded to 16 channels.
    q: Vec<u8>,
    /// `[tokens * group, head_blocks]`.
    q_scale: Vec<f32>,
    /// `-128 * sum(q)`, of each block.
    q_bias: Vec<i32>,
    states: Vec<State>,
    /// `[tokens * group, head_dim]`, padded to 16 channels.
    outs: Vec<f32>,
    /// Output of one head in one tile.
    tile_out: Vec<f32>,
}

/// Running maximum and sum of one query head.
#[derive(Clone, Copy, Debug)]
struct State {
    max: f32,
    sum: f32,
}

impl State {
    /// The maximum with a tile's, and what the sums so far and the tile's are multiplied by.
    #[inline(always)]
    fn factors(self, tile_max: f32) -> (f32, f32, f32) {
        let max = if self.max > tile_max || self.max.is_nan() { self.max } else { tile_max };
        (max, exp(self.max - max), exp(tile_max - max))
    }
}

/// Attention of a task into `out [tokens, group * head_dim]`.
///
/// # Panics
/// If a size does not fit, or a page is outside of the cache.
pub fn attend(isa: Isa, task: AttentionTask<'_>, scratch: &mut AttentionScratch, out: MatrixMut<'_>) {
    let shape = task.cache.shape;
    let width = shape.kv_heads * out.cols();
    let fits = out.rows() == task.positions.len()
        && out.cols().is_multiple_of(shape.head_dim)
        && task.q.len() == task.positions.len() * width;
    assert!(fits, "attention of {} tokens", task.positions.len());
    isa.run(Attend { task, scratch, out });
}

struct Attend<'a, 'b> {
    task: AttentionTask<'a>,
    scratch: &'b mut AttentionScratch,
    out: MatrixMut<'a>,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let dims = Dims::of(&self.task, self.out.cols());
        self.scratch.reset(&dims);
        self.quantize_queries(s, &dims);
        for tile in tiles_seen(&self.task) {
            let start = tile * ATTENTION_TILE;
            load_tile(s, &self.task, &dims, start, self.scratch);
            for (token, &position) in self.task.positions.iter().enumerate() {
                let seen = Seen::of(position, self.task.params.window);
                if seen.any_in(start) {
                    for head in token * dims.group..(token + 1) * dims.group {
                        self.head(s, &dims, start, seen, head);
                    }
                }
            }
        }
        self.finish(s, &dims);
    }
}

/// Extents of a task.
struct Dims {
    heads: usize,
    group: usize,
    head_dim: usize,
    /// Channels rounded up to whole vectors.
    padded: usize,
    blocks: usize,
}

impl Dims {
    fn of(task: &AttentionTask<'_>, cols: usize) -> Self {
        let KvShape { head_dim, .. } = task.cache.shape;
        let group = cols / head_dim;
        Dims {
            heads: group * task.positions.len(),
            group,
            head_dim,
            padded: head_dim.next_multiple_of(16),
            blocks: task.cache.shape.head_blocks(),
        }
    }
}

impl AttentionScratch {
    fn reset(&mut self, dims: &Dims) {
        self.k.resize(dims.padded / 4 * KEYS, [0; 64]);
        self.k_scale.resize(dims.blocks * ATTENTION_TILE, 0.0);
        self.v.resize(ATTENTION_TILE / 4 * dims.padded / 16, [0; 64]);
        self.v_scale.resize(ATTENTION_TILE, 0.0);
        self.q.clear();
        self.q.resize(dims.heads * dims.padded, 0);
        self.q_scale.resize(dims.heads * dims.blocks, 0.0);
        self.q_bias.resize(dims.heads * dims.blocks, 0);
        self.states.clear();
        self.states.resize(dims.heads, State { max: MASKED, sum: 0.0 });
        self.outs.clear();
        self.outs.resize(dims.heads * dims.padded, 0.0);
        self.tile_out.resize(dims.padded, 0.0);
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

    #[inline(always)]
    fn any_in(self, start: usize) -> bool {
        let start = start as i64;
        start <= i64::from(self.position) && start + (ATTENTION_TILE as i64) > i64::from(self.above) + 1
    }
}

/// The tiles in which some token of the task sees a key.
fn tiles_seen(task: &AttentionTask<'_>) -> std::ops::Range<usize> {
    let all = task.positions.iter().map(|&position| Seen::of(position, task.params.window));
    let first = all.clone().map(|seen| (seen.above + 1).max(0) as usize / ATTENTION_TILE).min();
    let end = all.map(|seen| (i64::from(seen.position) + 1).max(0) as usize).max().unwrap_or(0);
    let end = end.div_ceil(ATTENTION_TILE).min(task.max_context.div_ceil(ATTENTION_TILE));
    first.unwrap_or(0).min(end)..end
}

/// Lays the keys and values of a tile out for integer dots.
#[inline(always)]
fn load_tile<S: Simd>(
    s: S,
    task: &AttentionTask<'_>,
    dims: &Dims,
    start: usize,
    scratch: &mut AttentionScratch,
) {
    let mut rows = [0; ATTENTION_TILE];
    let KvShape { page_size, kv_heads, .. } = task.cache.shape;
    for (page, rows) in rows.chunks_mut(page_size).enumerate() {
        let page = task.pages.get(start / page_size + page).map_or(0, |&page| page as usize);
        let first = (page * kv_heads + task.kv_head) * page_size;
        for (offset, row) in rows.iter_mut().enumerate() {
            *row = first + offset;
        }
    }
    let per_page = page_size.min(ATTENTION_TILE);
    for (page, &row) in rows.iter().step_by(per_page).enumerate() {
        let start = page * per_page;
        scratch.v_scale[start..start + per_page].copy_from_slice(&task.cache.v_scale[row..row + per_page]);
        let scales = &task.cache.k_scale[row * dims.blocks..(row + per_page) * dims.blocks];
        for (j, scales) in scales.chunks_exact(dims.blocks).enumerate() {
            for (block, &scale) in scales.iter().enumerate() {
                scratch.k_scale[block * ATTENTION_TILE + start + j] = scale;
            }
        }
    }
    load_keys(s, task.cache.k, &rows, dims, &mut scratch.k);
    load_values(s, task.cache.v, &rows, dims, &mut scratch.v);
}

/// 16 keys by 64 channels at a time, transposed in groups of four channels and made unsigned.
#[inline(always)]
fn load_keys<S: Simd>(s: S, k: &[u8], rows: &[usize; ATTENTION_TILE], dims: &Dims, out: &mut [[u8; 64]]) {
    let sign = s.splat_i32(i32::from_le_bytes([0x80; 4]));
    for (v, rows) in rows.as_chunks::<16>().0.iter().enumerate() {
        for channel in (0..dims.head_dim).step_by(64) {
            let mut keys = [sign; 16];
            for (key, &row) in keys.iter_mut().zip(rows) {
                let row = &k[row * dims.head_dim..(row + 1) * dims.head_dim];
                *key = s.xor(load_bytes_at(s, &row[channel..]), sign);
            }
            let groups = s.transpose(keys);
            let end = (dims.padded - channel).min(64) / 4;
            for (i, &group) in groups[..end].iter().enumerate() {
                s.store_bytes(group, &mut out[(channel / 4 + i) * KEYS + v]);
            }
        }
    }
}

/// At most 64 bytes, then 0.
#[inline(always)]
fn load_bytes_at<S: Simd>(s: S, bytes: &[u8]) -> S::I {
    match bytes.first_chunk() {
        Some(bytes) => s.load_bytes(bytes),
        None => {
            let mut padded = [0; 64];
            padded[..bytes.len()].copy_from_slice(bytes);
            s.load_bytes(&padded)
        }
    }
}

/// Four keys at a time, the four bytes of a channel side by side: 64 channels in the vectors' own order, then 16 each.
#[inline(always)]
fn load_values<S: Simd>(s: S, v: &[u8], rows: &[usize; ATTENTION_TILE], dims: &Dims, out: &mut [[u8; 64]]) {
    let per_group = dims.padded / 16;
    let row = |row: usize| &v[row * dims.head_dim..(row + 1) * dims.head_dim];
    for (rows, out) in rows.as_chunks::<4>().0.iter().zip(out.chunks_exact_mut(per_group)) {
        let (wide, narrow) = out.as_chunks_mut::<4>();
        let rows = [row(rows[0]), row(rows[1]), row(rows[2]), row(rows[3])];
        for (i, out) in wide.iter_mut().enumerate() {
            let mut padded = [[0; 64]; 4];
            for (out, &group) in out.iter_mut().zip(&s.interleave_wide(padded_at(rows, 64 * i, &mut padded)))
            {
                s.store_bytes(group, out);
            }
        }
        for (i, out) in narrow.iter_mut().enumerate() {
            let mut padded = [[0; 16]; 4];
            let chunks = padded_at(rows, 64 * wide.len() + 16 * i, &mut padded);
            s.store_bytes(s.interleave(chunks), out);
        }
    }
}

/// `N` bytes of each row from `start` on, or what is left of them and zeros.
#[inline(always)]
fn padded_at<'a, const N: usize>(
    rows: [&'a [u8]; 4],
    start: usize,
    padded: &'a mut [[u8; N]; 4],
) -> [&'a [u8; N]; 4] {
    let [a, b, c, d] = padded;
    [at(rows[0], start, a), at(rows[1], start, b), at(rows[2], start, c), at(rows[3], start, d)]
}

#[inline(always)]
fn at<'a, const N: usize>(row: &'a [u8], start: usize, padded: &'a mut [u8; N]) -> &'a [u8; N] {
    let row = &row[start..];
    match row.first_chunk() {
        Some(chunk) => chunk,
        None => {
            padded[..row.len()].copy_from_slice(row);
            padded
        }
    }
}

impl Attend<'_, '_> {
    /// Quantises the task's query heads in blocks of 32 channels.
    #[inline(always)]
    fn quantize_queries<S: Simd>(&mut self, s: S, dims: &Dims) {
        let shape = self.task.cache.shape;
        let first = self.task.kv_head * dims.group;
        for head in 0..dims.heads {
            let (token, member) = (head / dims.group, head % dims.group);
            let row = (token * shape.kv_heads * dims.group + first + member) * dims.head_dim;
            for block in 0..dims.blocks {
                let channels = shape.head_block(block);
                let x = &self.task.q[row + channels.start..row + channels.end];
                let start = head * dims.padded + channels.start;
                let q = &mut self.scratch.q[start..start + channels.len().next_multiple_of(16)];
                let at = head * dims.blocks + block;
                self.scratch.q_scale[at] = block_of(s, x, &mut q[..channels.len()]);
                self.scratch.q_bias[at] = -128 * sum_bytes(s, q);
            }
        }
    }

    /// One query head over one tile, merged into its state.
    #[inline(always)]
    fn head<S: Simd>(&mut self, s: S, dims: &Dims, start: usize, seen: Seen, head: usize) {
        let visible = visible(s, start, seen);
        let mut scores = self.scores(s, dims, head);
        let masked = s.splat(MASKED);
        for (score, &visible) in scores.iter_mut().zip(&visible) {
            *score = s.mul(*score, s.splat(self.task.params.scale));
            if let Some(cap) = self.task.params.soft_cap {
                *score = capped(s, *score, cap);
            }
            *score = s.select(visible, *score, masked);
        }
        let max = largest(s, scores);
        if max == MASKED {
            return;
        }
        let (max_so_far, old, new) = self.scratch.states[head].factors(max);
        let zero = s.splat(0.0);
        let (mut p, mut weights) = ([zero; KEYS], [zero; KEYS]);
        for j in 0..KEYS {
            let exp = exp_lanes(s, s.sub(scores[j], s.splat(max)));
            p[j] = s.select(visible[j], exp, zero);
            let weight = s.mul(p[j], load_at(s, &self.scratch.v_scale, j));
            weights[j] = s.select(visible[j], weight, zero);
        }
        self.weigh_values(s, dims, weights);
        let state = &mut self.scratch.states[head];
        *state = State { max: max_so_far, sum: state.sum * old + tree(s, p) * new };
        self.merge(s, dims, head, old, new);
    }

    /// Over channel blocks in order, `s + (d_q * d_k) * isum`.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, dims: &Dims, head: usize) -> [S::F; KEYS] {
        let mut scores = [s.splat(0.0); KEYS];
        let q = &self.scratch.q[head * dims.padded..(head + 1) * dims.padded];
        let blocks = q.chunks(32).zip(self.scratch.k.chunks(32 / 4 * KEYS));
        for (block, (q, k)) in blocks.enumerate() {
            let at = head * dims.blocks + block;
            let mut isum = [s.splat_i32(self.scratch.q_bias[at]); KEYS];
            for (&q, k) in q.as_chunks::<4>().0.iter().zip(k.as_chunks::<KEYS>().0) {
                let q = s.splat_i32(i32::from_le_bytes(q));
                for (isum, k) in isum.iter_mut().zip(k) {
                    *isum = s.dot_u8(*isum, s.load_bytes(k), q);
                }
            }
            let scale = s.splat(self.scratch.q_scale[at]);
            let k_scale = &self.scratch.k_scale[block * ATTENTION_TILE..(block + 1) * ATTENTION_TILE];
            for (j, (score, isum)) in scores.iter_mut().zip(isum).enumerate() {
                let scale = s.mul(scale, load_at(s, k_scale, j));
                *score = s.add(*score, s.mul(scale, s.to_f32(isum)));
            }
        }
        scores
    }

    /// The tile's output: weights as 16-bit integers of the largest, in two slices of eight bits.
    #[inline(always)]
    fn weigh_values<S: Simd>(&mut self, s: S, dims: &Dims, weights: [S::F; KEYS]) {
        let largest = largest(s, weights);
        let scale = largest * W16_MAX_RECIPROCAL;
        let tiny = scale < TINY;
        let inverse = s.splat(if tiny { 0.0 } else { W16_MAX / largest });
        let (mut high, mut low) = ([[0; 16]; KEYS], [[0; 16]; KEYS]);
        for j in 0..KEYS {
            let integer = s.round_i32(s.mul(weights[j], inverse));
            s.store_low_bytes(s.shr::<8>(integer), &mut high[j]);
            s.store_low_bytes(integer, &mut low[j]);
        }
        let scale = s.splat(if tiny { 0.0 } else { scale });
        let per_group = dims.padded / 16;
        let mut at = 0;
        while at < per_group {
            let (high, low) = (high.as_flattened(), low.as_flattened());
            let out = &mut self.scratch.tile_out[16 * at..];
            if at + 4 <= per_group {
                channels::<S, 4>(s, &self.scratch.v[at..], per_group, high, low, scale, out);
                at += 4;
            } else {
                channels::<S, 1>(s, &self.scratch.v[at..], per_group, high, low, scale, out);
                at += 1;
            }
        }
    }

    /// `O * old + o * new`, with `o` the tile's output.
    #[inline(always)]
    fn merge<S: Simd>(&mut self, s: S, dims: &Dims, head: usize, old: f32, new: f32) {
        let (old, new) = (s.splat(old), s.splat(new));
        let out = &mut self.scratch.outs[head * dims.padded..(head + 1) * dims.padded];
        for i in 0..vectors(dims.padded) {
            let tile = s.mul(load_at(s, &self.scratch.tile_out, i), new);
            store_at(s, s.add(s.mul(load_at(s, out, i), old), tile), out, i);
        }
    }

    /// `O / L`.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, dims: &Dims) {
        for token in 0..self.task.positions.len() {
            let row = self.out.row(token);
            for (member, out) in row.chunks_exact_mut(dims.head_dim).enumerate() {
                let head = token * dims.group + member;
                let sum = s.splat(self.scratch.states[head].sum);
                let total = &self.scratch.outs[head * dims.padded..];
                for i in 0..vectors(dims.head_dim) {
                    store_at(s, s.div(load_at(s, total, i), sum), out, i);
                }
            }
        }
    }
}

/// The largest of a tile's values; NaN if any is.
#[inline(always)]
fn largest<S: Simd>(s: S, mut x: [S::F; KEYS]) -> f32 {
    for width in [4, 2, 1] {
        for i in 0..width {
            x[i] = s.max(x[i], x[i + width]);
        }
    }
    s.max_lane(x[0])
}

/// Which keys of the tile at `start` are seen.
#[inline(always)]
fn visible<S: Simd>(s: S, start: usize, seen: Seen) -> [S::M; KEYS] {
    let (above, end) = (s.splat_i32(seen.above), s.splat_i32(seen.position.saturating_add(1)));
    let lanes = s.load_i32(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let mut mask = [s.lt_i32(lanes, end); KEYS];
    for (j, mask) in mask.iter_mut().enumerate() {
        let key = s.add_i32(lanes, s.splat_i32((start + 16 * j) as i32));
        *mask = s.and_mask(s.lt_i32(above, key), s.lt_i32(key, end));
    }
    mask
}

/// `d * (256 * dot(high, v) + dot(low, v))` of `16 * C` channels.
#[inline(always)]
fn channels<S: Simd, const C: usize>(
    s: S,
    v: &[[u8; 64]],
    per_group: usize,
    high: &[u8],
    low: &[u8],
    scale: S::F,
    out: &mut [f32],
) {
    let zero = s.splat_i32(0);
    let (mut high_sums, mut low_sums) = ([zero; C], [zero; C]);
    let weights = high.as_chunks::<4>().0.iter().zip(low.as_chunks::<4>().0);
    for ((&high, &low), v) in weights.zip(v.chunks(per_group)) {
        let (high, low) = (s.splat_i32(i32::from_le_bytes(high)), s.splat_i32(i32::from_le_bytes(low)));
        for c in 0..C {
            let v = s.load_bytes(&v[c]);
            high_sums[c] = s.dot_u8(high_sums[c], high, v);
            low_sums[c] = s.dot_u8(low_sums[c], low, v);
        }
    }
    let mut sums = [zero; C];
    for c in 0..C {
        sums[c] = s.add_i32(s.shl::<8>(high_sums[c]), low_sums[c]);
    }
    if let Some(wide) = sums.first_chunk_mut() {
        *wide = s.in_order(*wide);
    }
    for (c, sum) in sums.into_iter().enumerate() {
        store_at(s, s.mul(s.to_f32(sum), scale), out, c);
    }
}
