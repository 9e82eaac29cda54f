//! The keys and values of a tile, laid out for integer dots.

use samebits_tensor::{KvShape, contract::ATTENTION_TILE};

use super::{AttentionTask, Dims, KEYS, Lanes, Seen, visible};
use crate::cpu::{elementwise::load_at, simd::Simd};

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
}

/// Sixteen keys and values whose pages are shorter than that, side by side.
#[derive(Debug, Default)]
pub(super) struct Copied {
    k: Vec<u8>,
    k_scale: Vec<f32>,
    v: Vec<u8>,
    v_scale: Vec<f32>,
}

/// Sixteen keys and values, one after the other.
#[derive(Clone, Copy)]
struct Sixteen<'a> {
    k: &'a [u8],
    k_scale: &'a [f32],
    v: &'a [u8],
    v_scale: &'a [f32],
}

impl Tile {
    pub(super) fn reset(&mut self, dims: &Dims) {
        self.k.resize(dims.blocks * 8, [Line([0; 64]); KEYS]);
        self.k_scale.resize(dims.blocks, [Lanes::ZERO; KEYS]);
        self.v.resize(ATTENTION_TILE / 4 * dims.vectors, Line([0; 64]));
    }

    /// Lays out what is seen of a tile, in whole vectors of keys; the keys of the next tile are asked for.
    #[inline(always)]
    pub(super) fn load<S: Simd>(
        &mut self,
        s: S,
        task: &AttentionTask<'_>,
        dims: &Dims,
        tile: usize,
        copied: &mut Copied,
    ) {
        let start = tile * ATTENTION_TILE;
        let end = task.end().min(start + ATTENTION_TILE);
        let count = (end - start).div_ceil(16);
        for v in 0..count {
            let key = start + 16 * v;
            prefetch(s, task, dims, key + ATTENTION_TILE);
            let keys = sixteen(task, dims, key, copied);
            load_keys(s, dims, v, keys.k, &mut self.k);
            load_values(s, dims, keys.v, &mut self.v[4 * v * dims.vectors..][..4 * dims.vectors]);
            self.load_key_scales(s, dims, v, keys.k_scale);
            s.store(load_at(s, keys.v_scale, 0), &mut self.v_scale[v].0);
        }
        self.finite = self.scales_are_finite(s, start, end, count);
    }

    /// Scales `[16, head_blocks]` of keys, transposed.
    #[inline(always)]
    fn load_key_scales<S: Simd>(&mut self, s: S, dims: &Dims, v: usize, scales: &[f32]) {
        match &mut self.k_scale[..] {
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
                for (key, scales) in scales.chunks_exact(dims.blocks).enumerate() {
                    for (out, &scale) in blocks.iter_mut().zip(scales) {
                        out[v].0[key] = scale;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn scales_are_finite<S: Simd>(&self, s: S, start: usize, end: usize, count: usize) -> bool {
        let seen = Seen { above: -1, position: i32::try_from(end).map_or(i32::MAX, |end| end - 1) };
        let mut largest = s.splat_i32(0);
        for v in 0..count {
            let visible = visible(s, start + 16 * v, seen);
            let scale = s.select(visible, s.load(&self.v_scale[v].0), s.splat(0.0));
            // Halved, so that a sign bit makes a large integer and not a negative one.
            largest = s.max_i32(largest, s.shr::<1>(s.bits(scale)));
        }
        s.max_lane_i32(largest) < (f32::INFINITY.to_bits() / 2) as i32
    }
}

/// 16 keys by 64 channels at a time, transposed in groups of four channels and made unsigned.
#[inline(always)]
fn load_keys<S: Simd>(s: S, dims: &Dims, v: usize, k: &[u8], out: &mut [[Line; KEYS]]) {
    assert!(v < KEYS, "vector {v} of keys");
    let (wide, rest) = out.as_chunks_mut::<16>();
    let rest_start = 64 * wide.len();
    for (out, channel) in wide.iter_mut().zip((0..).step_by(64)) {
        let groups = channel_groups(s, dims, k, channel);
        for i in 0..16 {
            s.store_bytes(groups[i], &mut out[i][v].0);
        }
    }
    if let Some(out) = rest.first_chunk_mut::<8>() {
        let groups = channel_groups(s, dims, k, rest_start);
        for i in 0..8 {
            s.store_bytes(groups[i], &mut out[i][v].0);
        }
    }
}

/// Of the 64 channels of 16 keys from `channel` on, or what is left of them, each group of four.
#[inline(always)]
fn channel_groups<S: Simd>(s: S, dims: &Dims, k: &[u8], channel: usize) -> [S::I; 16] {
    let sign = s.splat_i32(i32::from_le_bytes([0x80; 4]));
    let mut keys = [sign; 16];
    if channel + 64 <= dims.head_dim {
        for i in 0..16 {
            keys[i] = s.xor(s.load_bytes(chunk_at(k, i * dims.head_dim + channel)), sign);
        }
    } else {
        for (key, row) in keys.iter_mut().zip(k.chunks_exact(dims.head_dim)) {
            let mut padded = [0; 64];
            padded[..dims.head_dim - channel].copy_from_slice(&row[channel..]);
            *key = s.xor(s.load_bytes(&padded), sign);
        }
    }
    s.transpose(keys)
}

/// Four keys at a time, the four bytes of a channel side by side: 64 channels in the vectors' own order, then 16 each.
#[inline(always)]
fn load_values<S: Simd>(s: S, dims: &Dims, v: &[u8], out: &mut [Line]) {
    let head_dim = dims.head_dim;
    for (rows, out) in v.chunks_exact(4 * head_dim).zip(out.chunks_exact_mut(dims.vectors)) {
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
fn chunk_at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().expect("a row of the cache")
}

/// The keys from `key` on, a multiple of 16.
#[inline(always)]
fn sixteen<'a>(task: &AttentionTask<'a>, dims: &Dims, key: usize, copied: &'a mut Copied) -> Sixteen<'a> {
    let page_size = task.cache.shape.page_size;
    if page_size >= 16 {
        return rows(task, dims, row_of(task, key), 16);
    }
    copied.k.clear();
    copied.k_scale.clear();
    copied.v.clear();
    copied.v_scale.clear();
    for key in (key..key + 16).step_by(page_size) {
        let page = rows(task, dims, row_of(task, key), page_size);
        copied.k.extend_from_slice(page.k);
        copied.k_scale.extend_from_slice(page.k_scale);
        copied.v.extend_from_slice(page.v);
        copied.v_scale.extend_from_slice(page.v_scale);
    }
    Sixteen { k: &copied.k, k_scale: &copied.k_scale, v: &copied.v, v_scale: &copied.v_scale }
}

/// Some keys from a cache row on.
#[inline(always)]
fn rows<'a>(task: &AttentionTask<'a>, dims: &Dims, row: usize, keys: usize) -> Sixteen<'a> {
    let cache = &task.cache;
    let (channels, blocks) = (row * dims.head_dim, row * dims.blocks);
    Sixteen {
        k: &cache.k[channels..channels + keys * dims.head_dim],
        k_scale: &cache.k_scale[blocks..blocks + keys * dims.blocks],
        v: &cache.v[channels..channels + keys * dims.head_dim],
        v_scale: &cache.v_scale[row..row + keys],
    }
}

/// The cache row of a key: see [`KvShape::rows`].
#[inline(always)]
fn row_of(task: &AttentionTask<'_>, key: usize) -> usize {
    let KvShape { page_size, kv_heads, .. } = task.cache.shape;
    let page = task.pages.get(key / page_size).map_or(0, |&page| page as usize);
    (page * kv_heads + task.kv_head) * page_size + key % page_size
}

/// Asks for 16 keys and values.
#[inline(always)]
fn prefetch<S: Simd>(s: S, task: &AttentionTask<'_>, dims: &Dims, key: usize) {
    if key >= task.max_context || task.cache.shape.page_size < 16 {
        return;
    }
    let keys = rows(task, dims, row_of(task, key), 16);
    for line in keys.k.as_chunks::<64>().0 {
        s.prefetch(&line[0]);
    }
    for line in keys.v.as_chunks::<64>().0 {
        s.prefetch(&line[0]);
    }
}
