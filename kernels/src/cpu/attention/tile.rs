//! The keys and values of a tile, laid out for integer dots.

use samebits_tensor::{KvShape, contract::ATTENTION_TILE};

use super::{AttentionTask, Bounds, Dims, KEYS, KvRows, Lanes};
use crate::cpu::{
    elementwise::load_at,
    isa::{Isa, Kernel},
    simd::Simd,
};

/// Bytes that are asked for by their first cache line.
const STREAM: usize = 512;

/// Sixty-four bytes that start a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

/// 128 keys and values of one kv head.
#[derive(Debug, Default)]
pub(super) struct Tile {
    /// `[channels / 4, 128]` of four bytes: keys plus 128. Channels are whole blocks of 32.
    pub(super) k: Vec<[Line; KEYS]>,
    /// `[head_blocks, 128]`.
    pub(super) k_scale: Vec<[Lanes; KEYS]>,
    /// `[128 / 4, channels]` of four bytes. Channels are whole vectors, 64 of them in the order of `interleave_wide`.
    pub(super) v: Vec<Line>,
    /// `[128]`.
    pub(super) v_scale: [Lanes; KEYS],
    /// Whether the scales of all values that a token sees are finite and not negative.
    pub(super) finite: bool,
    copied: Copied,
}

/// Sixteen keys and values whose pages are shorter than that, side by side.
#[derive(Debug, Default)]
struct Copied {
    k: Vec<u8>,
    k_scale: Vec<f32>,
    v: Vec<u8>,
    v_scale: Vec<f32>,
}

impl Tile {
    /// Lays out what is seen of tile `index`, in whole vectors of keys; the keys of the next tile are asked for.
    pub(super) fn load(&mut self, isa: Isa, task: &AttentionTask<'_>, dims: &Dims, index: usize) {
        self.k.resize(dims.blocks * 8, [Line([0; 64]); KEYS]);
        self.k_scale.resize(dims.blocks, [Lanes::ZERO; KEYS]);
        self.v.resize(ATTENTION_TILE / 4 * dims.vectors, Line([0; 64]));
        let start = index * ATTENTION_TILE;
        let end = task.end().min(start + ATTENTION_TILE);
        let (cache, page_size) = (&task.cache, task.cache.shape.page_size);
        let mut copied = std::mem::take(&mut self.copied);
        for (v, key) in (start..end).step_by(16).enumerate() {
            if page_size < 16 {
                copied.fill(task, key);
                isa.run(&mut Load { tile: self, cache: &copied.rows(cache.shape), v, row: 0, ahead: None });
                continue;
            }
            let ahead = key + ATTENTION_TILE;
            let ahead = (ahead < task.max_context).then(|| row_of(task, ahead));
            isa.run(&mut Load { tile: self, cache, v, row: row_of(task, key), ahead });
        }
        self.copied = copied;
        self.finite = isa.run(Finite { scales: &self.v_scale, count: end - start });
    }
}

/// Whether the scales of the first `count` values are finite and not negative.
struct Finite<'a> {
    scales: &'a [Lanes; KEYS],
    count: usize,
}

impl Kernel for Finite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let bounds = Bounds::new(s, [-1, self.count as i32]);
        let mut largest = s.splat_i32(0);
        for (v, scales) in self.scales.iter().enumerate().take(self.count.div_ceil(16)) {
            let scale = s.select(bounds.of(s, v), s.load(&scales.0), s.splat(0.0));
            // Halved, so that a sign bit makes a large integer and not a negative one.
            largest = s.max_i32(largest, s.shr::<1>(s.bits(scale)));
        }
        s.max_lane_i32(largest) < (f32::INFINITY.to_bits() / 2) as i32
    }
}

/// Lays out 16 keys and values of a cache from `row` on as vector `v` of a tile, and asks for those from `ahead` on.
struct Load<'a> {
    tile: &'a mut Tile,
    cache: &'a KvRows<'a>,
    v: usize,
    row: usize,
    ahead: Option<usize>,
}

impl Kernel for &mut Load<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Compiled for each, so that offsets are constants.
        match self.cache.shape.head_dim {
            64 => self.load(s, 64),
            128 => self.load(s, 128),
            head_dim => self.load(s, head_dim),
        }
    }
}

impl Load<'_> {
    #[inline(always)]
    fn load<S: Simd>(&mut self, s: S, head_dim: usize) {
        let Load { ref mut tile, cache, v, row, ahead } = *self;
        assert!(v < KEYS, "vector {v} of keys");
        if let Some(ahead) = ahead {
            let bytes = ahead * head_dim..(ahead + 16) * head_dim;
            // The rest of a stream follows by itself.
            for at in (0..16 * head_dim).step_by(STREAM) {
                s.prefetch(&cache.k[bytes.clone()][at]);
                s.prefetch(&cache.v[bytes.clone()][at]);
            }
        }
        let (bytes, vectors) = (row * head_dim..(row + 16) * head_dim, head_dim.div_ceil(16));
        load_keys(s, head_dim, v, &cache.k[bytes.clone()], &mut tile.k);
        load_values(s, head_dim, &cache.v[bytes], &mut tile.v[4 * v * vectors..][..4 * vectors]);
        let blocks = tile.k_scale.len();
        load_key_scales(s, v, &cache.k_scale[row * blocks..(row + 16) * blocks], &mut tile.k_scale);
        s.store(load_at(s, &cache.v_scale[row..row + 16], 0), &mut tile.v_scale[v].0);
    }
}

/// 16 keys by 64 channels at a time, transposed in groups of four channels and made unsigned.
#[inline(always)]
fn load_keys<S: Simd>(s: S, head_dim: usize, v: usize, k: &[u8], out: &mut [[Line; KEYS]]) {
    assert_eq!(k.len(), 16 * head_dim, "a vector of keys");
    let (wide, rest) = out.as_chunks_mut::<16>();
    let rest_start = 64 * wide.len();
    for (out, channel) in wide.iter_mut().zip((0..).step_by(64)) {
        let groups = channel_groups(s, head_dim, k, channel);
        for i in 0..16 {
            s.store_bytes(groups[i], &mut out[i][v].0);
        }
    }
    if let Some(out) = rest.first_chunk_mut::<8>() {
        let groups = channel_groups(s, head_dim, k, rest_start);
        for i in 0..8 {
            s.store_bytes(groups[i], &mut out[i][v].0);
        }
    }
}

/// Scales `[16, head_blocks]` of keys, transposed.
#[inline(always)]
fn load_key_scales<S: Simd>(s: S, v: usize, scales: &[f32], out: &mut [[Lanes; KEYS]]) {
    match out {
        [only] => s.store(load_at(s, scales, 0), &mut only[v].0),
        [even, odd] => {
            let [a, b] = s.even_odd(load_at(s, scales, 0), load_at(s, scales, 1));
            s.store(a, &mut even[v].0);
            s.store(b, &mut odd[v].0);
        }
        [first, second, third, fourth] => {
            let low = s.even_odd(load_at(s, scales, 0), load_at(s, scales, 1));
            let high = s.even_odd(load_at(s, scales, 2), load_at(s, scales, 3));
            let [a, c] = s.even_odd(low[0], high[0]);
            let [b, d] = s.even_odd(low[1], high[1]);
            for (out, scales) in [first, second, third, fourth].into_iter().zip([a, b, c, d]) {
                s.store(scales, &mut out[v].0);
            }
        }
        blocks => {
            for (key, scales) in scales.chunks_exact(blocks.len()).enumerate() {
                for (out, &scale) in blocks.iter_mut().zip(scales) {
                    out[v].0[key] = scale;
                }
            }
        }
    }
}

/// Of the 64 channels of 16 keys from `channel` on, or what is left of them, each group of four.
#[inline(always)]
fn channel_groups<S: Simd>(s: S, head_dim: usize, k: &[u8], channel: usize) -> [S::I; 16] {
    let sign = s.splat_i32(i32::from_le_bytes([0x80; 4]));
    let mut keys = [sign; 16];
    if channel + 64 <= head_dim {
        for i in 0..16 {
            keys[i] = s.xor(s.load_bytes(chunk_at(k, i * head_dim + channel)), sign);
        }
    } else {
        for (key, row) in keys.iter_mut().zip(k.chunks_exact(head_dim)) {
            let mut padded = [0; 64];
            padded[..head_dim - channel].copy_from_slice(&row[channel..]);
            *key = s.xor(s.load_bytes(&padded), sign);
        }
    }
    s.transpose(keys)
}

/// Four keys at a time, the four bytes of a channel side by side: 64 channels in the vectors' own order, then 16 each.
#[inline(always)]
fn load_values<S: Simd>(s: S, head_dim: usize, v: &[u8], out: &mut [Line]) {
    let vectors = head_dim.div_ceil(16);
    assert!(v.len() == 16 * head_dim && out.len() == 4 * vectors, "a vector of values");
    for (rows, out) in v.chunks_exact(4 * head_dim).zip(out.chunks_exact_mut(vectors)) {
        let (wide, narrow) = out.as_chunks_mut::<4>();
        let narrow_start = 64 * wide.len();
        for (out, at) in wide.iter_mut().zip((0..).step_by(64)) {
            let mut padded = [[0; 64]; 4];
            let groups = s.interleave_wide(four_rows(rows, head_dim, at, &mut padded));
            for i in 0..4 {
                s.store_bytes(groups[i], &mut out[i].0);
            }
        }
        for (out, at) in narrow.iter_mut().zip((narrow_start..).step_by(16)) {
            let mut padded = [[0; 16]; 4];
            s.store_bytes(s.interleave(four_rows(rows, head_dim, at, &mut padded)), &mut out.0);
        }
    }
}

/// `N` bytes of each of four rows from `at` on, or what is left of them and zeros.
#[inline(always)]
fn four_rows<'a, const N: usize>(
    rows: &'a [u8],
    head_dim: usize,
    at: usize,
    padded: &'a mut [[u8; N]; 4],
) -> [&'a [u8; N]; 4] {
    if at + N <= head_dim {
        return [
            chunk_at(rows, at),
            chunk_at(rows, head_dim + at),
            chunk_at(rows, 2 * head_dim + at),
            chunk_at(rows, 3 * head_dim + at),
        ];
    }
    for (row, padded) in rows.chunks_exact(head_dim).zip(&mut *padded) {
        padded[..head_dim - at].copy_from_slice(&row[at..]);
    }
    padded.each_ref()
}

#[inline(always)]
pub(super) fn load_lines<S: Simd, const N: usize>(s: S, lines: &[Line]) -> [S::I; N] {
    let lines: &[Line; N] = lines.first_chunk().expect("lines of a tile");
    let mut vectors = [s.splat_i32(0); N];
    for (vector, line) in vectors.iter_mut().zip(lines) {
        *vector = s.load_bytes(&line.0);
    }
    vectors
}

#[inline(always)]
fn chunk_at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().expect("a row of the cache")
}

impl Copied {
    /// Copies 16 keys and values from `key` on, page by page.
    fn fill(&mut self, task: &AttentionTask<'_>, key: usize) {
        let KvRows { shape, k, k_scale, v, v_scale } = task.cache;
        let (page_size, head_dim, blocks) = (shape.page_size, shape.head_dim, shape.head_blocks());
        self.k.clear();
        self.k_scale.clear();
        self.v.clear();
        self.v_scale.clear();
        for key in (key..key + 16).step_by(page_size) {
            let rows = row_of(task, key)..row_of(task, key) + page_size;
            self.k.extend_from_slice(&k[rows.start * head_dim..rows.end * head_dim]);
            self.k_scale.extend_from_slice(&k_scale[rows.start * blocks..rows.end * blocks]);
            self.v.extend_from_slice(&v[rows.start * head_dim..rows.end * head_dim]);
            self.v_scale.extend_from_slice(&v_scale[rows]);
        }
    }

    /// The copies, as rows of a cache.
    fn rows(&self, shape: KvShape) -> KvRows<'_> {
        KvRows { shape, k: &self.k, k_scale: &self.k_scale, v: &self.v, v_scale: &self.v_scale }
    }
}

/// The cache row of a key: see [`KvShape::rows`].
fn row_of(task: &AttentionTask<'_>, key: usize) -> usize {
    let KvShape { page_size, kv_heads, .. } = task.cache.shape;
    let page = task.pages.get(key / page_size).map_or(0, |&page| page as usize);
    (page * kv_heads + task.kv_head) * page_size + key % page_size
}
