use std::ops::Range;

use crate::{
    AttentionBatch, AttentionParams, Backend, BinaryOp, CompareOp, DType, KvCache, KvShape, Result, Tensor,
    UnaryOp,
    contract::{ATTENTION_TILE, MASKED, TINY, W16_MAX, W16_MAX_RECIPROCAL},
    decompose::{exp, quantize_blocks, soft_cap, sum_last},
};

/// Quantises new keys (one scale for each block of 32 channels) and values (one scale a head) and writes them to
/// their slots.
pub fn store_kv<B: Backend>(
    cache: &mut KvCache<B>,
    k: &Tensor<B>,
    v: &Tensor<B>,
    slots: &Tensor<B>,
) -> Result<()> {
    let shape = cache.shape;
    let t = slots.dims()[0];
    let heads = t * shape.kv_heads;
    let page = slots.scalar(BinaryOp::Shr, shape.page_size.trailing_zeros() as i32)?;
    let offset = slots.scalar(BinaryOp::And, shape.page_size as i32 - 1)?;
    let per_head = |x: Tensor<B>| x.repeat(1, shape.kv_heads);
    let rows = cache_rows(&per_head(page)?, &Tensor::iota(k.backend(), [t, shape.kv_heads], 1)?, shape)?
        .add(&per_head(offset)?)?
        .reshape([heads])?;
    let (kq, kd) = quantize_heads(k)?;
    let (vq, vd) = quantize_blocks(v)?;
    cache.k.scatter(&rows, &kq.reshape([heads, shape.head_dim])?)?;
    cache.k_scale.scatter(&rows, &kd.reshape([heads, shape.head_blocks()])?)?;
    cache.v.scatter(&rows, &vq.reshape([heads, shape.head_dim])?)?;
    cache.v_scale.scatter(&rows, &vd.reshape([heads, 1])?)
}

/// Attention over the int8 cache, in tiles of 128 keys aligned to absolute position, merged in order.
///
/// In a tile: scores from exact integer dots of 32-channel blocks, added in order; `m = max`, `p = exp(s - m)`;
/// `p * d_v` becomes a 16-bit integer of the tile's largest, in two 8-bit slices, and two exact integer dots give
/// the tile's output. Tiles without a visible key are passed over, so that neither chunking nor padding
/// changes a bit.
pub fn attention<B: Backend>(
    q: &Tensor<B>,
    cache: &KvCache<B>,
    batch: &AttentionBatch<B>,
    params: &AttentionParams,
) -> Result<Tensor<B>> {
    let &[t, heads, head_dim] = q.dims() else {
        return Err(crate::Error::shape("attention", format!("q {}", q.shape())));
    };
    let kv_heads = cache.shape.kv_heads;
    let group = heads / kv_heads;
    let (qq, qd) = quantize_heads(q)?;
    let query = Query {
        q: qq.reshape([t * kv_heads, group, head_dim])?,
        scale: qd.reshape([t * kv_heads, group, cache.shape.head_blocks()])?,
    };
    let fill = |value: f32| Tensor::full(q.backend(), [t * kv_heads, group], value);
    let mut state = State {
        max: fill(MASKED)?,
        sum: fill(0.0)?,
        out: Tensor::full(q.backend(), [t * kv_heads, group, head_dim], 0.0)?,
    };
    let together = (SCORES / (t * heads * ATTENTION_TILE).max(1)).max(1);
    let count = batch.max_context.div_ceil(ATTENTION_TILE);
    for first in (0..count).step_by(together) {
        let numbers = first..count.min(first + together);
        let (count, query) = (numbers.len(), query.repeat(numbers.len())?);
        let tiles = Tiles::load(cache, batch, numbers, group, params)?;
        state = state.merge(&tiles.attend(&query, params)?, count)?;
    }
    state.out.div(&state.sum.repeat(2, head_dim)?)?.reshape([t, heads, head_dim])
}

/// Most scores that are computed at once, for tiles do not depend on each other before they are merged: a graph of them all is far
/// smaller than a graph of each.
const SCORES: usize = 1 << 23;

/// Quantises `x [t, heads, head_dim]` in blocks of 32 channels, the last of which may be shorter: int8 values of that
/// shape, and scales `[t, heads, head_blocks]`.
pub fn quantize_heads<B: Backend>(x: &Tensor<B>) -> Result<(Tensor<B>, Tensor<B>)> {
    let (t, heads, head_dim) = (x.dims()[0], x.dims()[1], x.dims()[2]);
    let shape = KvShape { pages: 0, page_size: 1, kv_heads: heads, head_dim };
    let mut values = Vec::new();
    let mut scales = Vec::new();
    for block in 0..shape.head_blocks() {
        let (q, d) = quantize_blocks(&x.narrow(2, shape.head_block(block))?)?;
        values.push(q);
        scales.push(d.reshape([t, heads, 1])?);
    }
    let join = |parts: &[Tensor<B>]| Tensor::concat(&parts.iter().collect::<Vec<_>>(), 2);
    Ok((join(&values)?, join(&scales)?))
}

/// Quantised queries: `[n, group, head_dim]`, scales `[n, group, head_blocks]`, where `n` is `t * kv_heads` for each tile.
struct Query<B: Backend> {
    q: Tensor<B>,
    scale: Tensor<B>,
}

/// 128 keys and values for each tile, token and kv head, in this order, and which of them the token sees.
struct Tiles<B: Backend> {
    shape: KvShape,
    k: Tensor<B>,
    k_scale: Tensor<B>,
    v: Tensor<B>,
    v_scale: Tensor<B>,
    visible: Tensor<B>,
}

/// Maximum and sum `[n, group]`, and output `[n, group, head_dim]`: of each tile, or of all until now.
struct State<B: Backend> {
    max: Tensor<B>,
    sum: Tensor<B>,
    out: Tensor<B>,
}

impl<B: Backend> Query<B> {
    /// The queries once more for each tile.
    fn repeat(&self, tiles: usize) -> Result<Self> {
        let repeat = |x: &Tensor<B>| {
            let &[n, group, last] = x.dims() else { unreachable!("three axes") };
            x.repeat(0, tiles)?.reshape([tiles * n, group, last])
        };
        Ok(Query { q: repeat(&self.q)?, scale: repeat(&self.scale)? })
    }
}

impl<B: Backend> Tiles<B> {
    fn load(
        cache: &KvCache<B>,
        batch: &AttentionBatch<B>,
        numbers: Range<usize>,
        group: usize,
        params: &AttentionParams,
    ) -> Result<Self> {
        let shape = cache.shape;
        let n = numbers.len() * batch.positions.dims()[0] * shape.kv_heads;
        let rows = tile_rows(batch, shape, &numbers)?;
        Ok(Tiles {
            shape,
            k: cache.k.gather(&rows)?.reshape([n, ATTENTION_TILE, shape.head_dim])?,
            k_scale: cache.k_scale.gather(&rows)?.reshape([n, ATTENTION_TILE, shape.head_blocks()])?,
            v: cache.v.gather(&rows)?.reshape([n, ATTENTION_TILE, shape.head_dim])?,
            v_scale: cache.v_scale.gather(&rows)?.reshape([n, ATTENTION_TILE])?,
            visible: visible_keys(&batch.positions, &numbers, params.window)?
                .repeat(2, shape.kv_heads * group)?
                .reshape([n, group, ATTENTION_TILE])?,
        })
    }

    fn attend(&self, query: &Query<B>, params: &AttentionParams) -> Result<State<B>> {
        let scores = self.scores(query, params)?;
        let max = scores.max_last()?;
        let zero = scores.filled(0.0)?;
        let p = exp(&scores.sub(&max.repeat(2, ATTENTION_TILE)?)?)?;
        let p = self.visible.select(&p, &zero)?;
        let group = query.q.dims()[1];
        let weights = self.visible.select(&p.mul(&self.v_scale.repeat(1, group)?)?, &zero)?;
        Ok(State { max, sum: sum_last(&p)?, out: self.weigh_values(&weights)? })
    }

    /// `[n, group, 128]`: over channel blocks in order, `s + (d_q * d_k) * isum`; then scale, cap, mask.
    fn scores(&self, query: &Query<B>, params: &AttentionParams) -> Result<Tensor<B>> {
        let group = query.q.dims()[1];
        let dims = [self.k.dims()[0], group, ATTENTION_TILE];
        let mut scores = Tensor::full(self.k.backend(), dims, 0.0)?;
        for block in 0..self.shape.head_blocks() {
            let channels = self.shape.head_block(block);
            let isum = query.q.narrow(2, channels.clone())?.matmul_exact(&self.k.narrow(2, channels)?)?;
            let scale = query.scale.at(2, block)?.repeat(2, ATTENTION_TILE)?;
            let scale = scale.mul(&self.k_scale.at(2, block)?.repeat(1, group)?)?;
            scores = scores.add(&scale.mul(&isum.cast(DType::F32)?)?)?;
        }
        scores = scores.scalar(BinaryOp::Mul, params.scale)?;
        if let Some(cap) = params.soft_cap {
            scores = soft_cap(&scores, cap)?;
        }
        self.visible.select(&scores, &scores.filled(MASKED)?)
    }

    /// `d * (256 * dot(hi, v) + dot(lo, v))` with `256 * hi + lo = rne(w * (65535 / max w))` and `d = max w / 65535`.
    fn weigh_values(&self, weights: &Tensor<B>) -> Result<Tensor<B>> {
        let largest = weights.max_last()?;
        let scale = largest.scalar(BinaryOp::Mul, W16_MAX_RECIPROCAL)?;
        let tiny = scale.compare_scalar(CompareOp::Lt, TINY)?;
        let zero = scale.filled(0.0)?;
        let inverse = tiny.select(&zero, &largest.filled(W16_MAX)?.div(&largest)?)?;
        let integer =
            weights.mul(&inverse.repeat(2, ATTENTION_TILE)?)?.unary(UnaryOp::RoundEven)?.cast(DType::I32)?;
        let high = integer.scalar(BinaryOp::Shr, 8)?.cast(DType::U8)?;
        let low = integer.scalar(BinaryOp::And, 255)?.cast(DType::U8)?;
        let values = self.v.permute(&[0, 2, 1])?;
        let high = high.matmul_exact(&values)?.scalar(BinaryOp::Mul, 256)?;
        let sum = high.add(&low.matmul_exact(&values)?)?;
        let scale = tiny.select(&zero, &scale)?;
        sum.cast(DType::F32)?.mul(&scale.repeat(2, self.shape.head_dim)?)
    }
}

impl<B: Backend> State<B> {
    /// The state after `count` more tiles, in order. One without a visible key leaves it as it is.
    fn merge(&self, tiles: &State<B>, count: usize) -> Result<State<B>> {
        let (n, head_dim) = (self.max.dims()[0], self.out.dims()[2]);
        let of = |x: &Tensor<B>, tile: usize| x.narrow(0, tile * n..(tile + 1) * n);
        let mut maxima = vec![self.max.clone()];
        for tile in 0..count {
            maxima.push(maxima[tile].max(&of(&tiles.max, tile)?)?);
        }
        let join = |maxima: &[Tensor<B>]| Tensor::concat(&maxima.iter().collect::<Vec<_>>(), 0);
        let (before, after) = (join(&maxima[..count])?, join(&maxima[1..])?);
        let (old, new) = (exp(&before.sub(&after)?)?, exp(&tiles.max.sub(&after)?)?);
        let empty = tiles.max.compare_scalar(CompareOp::Eq, MASKED)?;
        let wide = |x: &Tensor<B>| x.repeat(2, head_dim);
        let (sums, outs) = (tiles.sum.mul(&new)?, tiles.out.mul(&wide(&new)?)?);
        let (wide_old, wide_empty) = (wide(&old)?, wide(&empty)?);
        let (mut sum, mut out) = (self.sum.clone(), self.out.clone());
        for tile in 0..count {
            let more = sum.mul(&of(&old, tile)?)?.add(&of(&sums, tile)?)?;
            sum = of(&empty, tile)?.select(&sum, &more)?;
            let more = out.mul(&of(&wide_old, tile)?)?.add(&of(&outs, tile)?)?;
            out = of(&wide_empty, tile)?.select(&out, &more)?;
        }
        Ok(State { max: maxima.swap_remove(count), sum, out })
    }
}

/// Cache rows of the tiles' keys, `[tiles * t * kv_heads * 128]`. Positions past the block table read page 0 and are masked.
fn tile_rows<B: Backend>(
    batch: &AttentionBatch<B>,
    shape: KvShape,
    numbers: &Range<usize>,
) -> Result<Tensor<B>> {
    let (t, page_size) = (batch.positions.dims()[0], shape.page_size);
    let (sequences, max_pages) = (batch.block_tables.dims()[0], batch.block_tables.dims()[1]);
    let (tiles, pages) = (numbers.len(), ATTENTION_TILE / page_size);
    let first = numbers.start * pages;
    let last = (numbers.end * pages).min(max_pages);
    let mut table = batch.block_tables.narrow(1, first..last)?;
    if last - first < tiles * pages {
        let padding = Tensor::full(table.backend(), [sequences, tiles * pages - (last - first)], 0)?;
        table = Tensor::concat(&[&table, &padding], 1)?;
    }
    let table = table.gather(&batch.sequences)?.reshape([t, tiles, pages])?.permute(&[1, 0, 2])?;
    let page = table.repeat(2, shape.kv_heads)?.repeat(4, page_size)?;
    let dims = [tiles, t, shape.kv_heads, pages, page_size];
    let head = Tensor::iota(table.backend(), dims, 2)?;
    let offset = Tensor::iota(table.backend(), dims, 4)?;
    cache_rows(&page, &head, shape)?.add(&offset)?.reshape([tiles * t * shape.kv_heads * ATTENTION_TILE])
}

/// `(page * kv_heads + head) * page_size`.
fn cache_rows<B: Backend>(page: &Tensor<B>, head: &Tensor<B>, shape: KvShape) -> Result<Tensor<B>> {
    let rows = page.scalar(BinaryOp::Mul, shape.kv_heads as i32)?.add(head)?;
    rows.scalar(BinaryOp::Mul, shape.page_size as i32)
}

/// Bool `[tiles, t, 128]`: the key at `128 * tile + j` is not after the token, and inside its window.
fn visible_keys<B: Backend>(
    positions: &Tensor<B>,
    numbers: &Range<usize>,
    window: Option<usize>,
) -> Result<Tensor<B>> {
    let dims = [numbers.len(), positions.dims()[0], ATTENTION_TILE];
    let iota = |axis| Tensor::iota(positions.backend(), dims, axis);
    let start = iota(0)?.scalar(BinaryOp::Add, numbers.start as i32)?;
    let key = start.scalar(BinaryOp::Mul, ATTENTION_TILE as i32)?.add(&iota(2)?)?;
    let position = positions.repeat(0, numbers.len())?.repeat(2, ATTENTION_TILE)?;
    let visible = key.compare(CompareOp::Le, &position)?;
    let Some(window) = window.and_then(|window| i32::try_from(window).ok()) else {
        return Ok(visible);
    };
    let age = position.sub(&key)?;
    visible.binary(BinaryOp::And, &age.compare_scalar(CompareOp::Lt, window)?)
}
