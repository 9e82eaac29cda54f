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
    for start in (0..batch.max_context).step_by(ATTENTION_TILE) {
        let tile = Tile::load(cache, batch, start, group, params)?;
        state = state.merge(&tile.attend(&query, params)?)?;
    }
    state.out.div(&state.sum.repeat(2, head_dim)?)?.reshape([t, heads, head_dim])
}

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

/// Quantised queries: `[t * kv_heads, group, head_dim]`, scales `[t * kv_heads, group, head_blocks]`.
struct Query<B: Backend> {
    q: Tensor<B>,
    scale: Tensor<B>,
}

/// 128 keys and values for each token and kv head, and which of them the token sees.
struct Tile<B: Backend> {
    shape: KvShape,
    k: Tensor<B>,
    k_scale: Tensor<B>,
    v: Tensor<B>,
    v_scale: Tensor<B>,
    visible: Tensor<B>,
}

/// Running maximum and sum `[t * kv_heads, group]`, and output `[t * kv_heads, group, head_dim]`.
struct State<B: Backend> {
    max: Tensor<B>,
    sum: Tensor<B>,
    out: Tensor<B>,
}

impl<B: Backend> Tile<B> {
    fn load(
        cache: &KvCache<B>,
        batch: &AttentionBatch<B>,
        start: usize,
        group: usize,
        params: &AttentionParams,
    ) -> Result<Self> {
        let shape = cache.shape;
        let (t, n) = (batch.positions.dims()[0], batch.positions.dims()[0] * shape.kv_heads);
        let rows = tile_rows(batch, shape, start)?;
        Ok(Tile {
            shape,
            k: cache.k.gather(&rows)?.reshape([n, ATTENTION_TILE, shape.head_dim])?,
            k_scale: cache.k_scale.gather(&rows)?.reshape([n, ATTENTION_TILE, shape.head_blocks()])?,
            v: cache.v.gather(&rows)?.reshape([n, ATTENTION_TILE, shape.head_dim])?,
            v_scale: cache.v_scale.gather(&rows)?.reshape([n, ATTENTION_TILE])?,
            visible: visible_keys(&batch.positions, start, params.window)?
                .repeat(1, shape.kv_heads * group)?
                .reshape([t * shape.kv_heads, group, ATTENTION_TILE])?,
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

    /// `[t * kv_heads, group, 128]`: over channel blocks in order, `s + (d_q * d_k) * isum`; then scale, cap, mask.
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
    /// The state after one more tile, or this one where the tile held no visible key.
    fn merge(&self, tile: &State<B>) -> Result<State<B>> {
        let head_dim = self.out.dims()[2];
        let max = self.max.max(&tile.max)?;
        let old = exp(&self.max.sub(&max)?)?;
        let new = exp(&tile.max.sub(&max)?)?;
        let sum = self.sum.mul(&old)?.add(&tile.sum.mul(&new)?)?;
        let out = self.out.mul(&old.repeat(2, head_dim)?)?.add(&tile.out.mul(&new.repeat(2, head_dim)?)?)?;
        let empty = tile.max.compare_scalar(CompareOp::Eq, MASKED)?;
        let empty_out = empty.repeat(2, head_dim)?;
        Ok(State {
            max: empty.select(&self.max, &max)?,
            sum: empty.select(&self.sum, &sum)?,
            out: empty_out.select(&self.out, &out)?,
        })
    }
}

/// Cache rows of the tile's keys, `[t * kv_heads * 128]`. Positions past the block table read page 0 and are masked.
fn tile_rows<B: Backend>(batch: &AttentionBatch<B>, shape: KvShape, start: usize) -> Result<Tensor<B>> {
    let (t, page_size) = (batch.positions.dims()[0], shape.page_size);
    let (sequences, max_pages) = (batch.block_tables.dims()[0], batch.block_tables.dims()[1]);
    let pages = ATTENTION_TILE / page_size;
    let first = start / page_size;
    let last = (first + pages).min(max_pages);
    let mut table = batch.block_tables.narrow(1, first..last)?;
    if last - first < pages {
        let padding = Tensor::full(table.backend(), [sequences, pages - (last - first)], 0)?;
        table = Tensor::concat(&[&table, &padding], 1)?;
    }
    let dims = [t, shape.kv_heads, pages, page_size];
    let page = table.gather(&batch.sequences)?.repeat(1, shape.kv_heads)?.repeat(3, page_size)?;
    let head = Tensor::iota(table.backend(), dims, 1)?;
    let offset = Tensor::iota(table.backend(), dims, 3)?;
    cache_rows(&page, &head, shape)?.add(&offset)?.reshape([t * shape.kv_heads * ATTENTION_TILE])
}

/// `(page * kv_heads + head) * page_size`.
fn cache_rows<B: Backend>(page: &Tensor<B>, head: &Tensor<B>, shape: KvShape) -> Result<Tensor<B>> {
    let rows = page.scalar(BinaryOp::Mul, shape.kv_heads as i32)?.add(head)?;
    rows.scalar(BinaryOp::Mul, shape.page_size as i32)
}

/// Bool `[t, 128]`: the key at `start + j` is not after the token, and inside its window.
fn visible_keys<B: Backend>(positions: &Tensor<B>, start: usize, window: Option<usize>) -> Result<Tensor<B>> {
    let dims = [positions.dims()[0], ATTENTION_TILE];
    let key = Tensor::iota(positions.backend(), dims, 1)?.scalar(BinaryOp::Add, start as i32)?;
    let position = positions.repeat(1, ATTENTION_TILE)?;
    let visible = key.compare(CompareOp::Le, &position)?;
    let Some(window) = window.and_then(|window| i32::try_from(window).ok()) else {
        return Ok(visible);
    };
    let age = position.sub(&key)?;
    visible.binary(BinaryOp::And, &age.compare_scalar(CompareOp::Lt, window)?)
}
