//! The fused operations in plain f32, by candle's and candle-nn's own kernels.

use std::collections::BTreeMap;

use candle_core::{Result as CandleResult, Tensor as CandleTensor};
use candle_nn::{ops, rotary_emb};
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, DType, Error, HostTensor, HostWeight, KvCache, KvShape,
    PlainWeight, Result, RopeTable, Shape, Tensor,
};

use crate::{
    Candle, Data, During,
    backend::{checked_rows, select_rows},
};

type Floats = Tensor<Candle>;

/// A weight of any format as f32, in the contract's order of dequantisation.
pub(crate) fn dequantize(backend: &Candle, weight: &HostWeight) -> Result<PlainWeight<Candle>> {
    let (rows, cols) = weight.matrix()?;
    let values = HostTensor::of([rows, cols], &weight.to_f32()?)?;
    Ok(PlainWeight::Dense(Tensor::upload(backend, &values)?))
}

pub(crate) fn linear(x: &Floats, weight: &Floats) -> Result<Floats> {
    let shape = [x.dims()[0], weight.dims()[0]];
    let product = weight.data().tensor().t().and_then(|weight| x.data().tensor().matmul(&weight));
    result(x, shape, product.during("linear")?)
}

pub(crate) fn rms_norm(x: &Floats, weight: &Floats, eps: f32) -> Result<Floats> {
    let norm = || ops::rms_norm(&laid_out(x)?, &laid_out(weight)?, eps);
    result(x, x.shape(), norm().during("rms_norm")?)
}

pub(crate) fn layer_norm(x: &Floats, weight: &Floats, bias: &Floats, eps: f32) -> Result<Floats> {
    let norm = || ops::layer_norm(&laid_out(x)?, &laid_out(weight)?, &laid_out(bias)?, eps);
    result(x, x.shape(), norm().during("layer_norm")?)
}

pub(crate) fn softmax(x: &Floats) -> Result<Floats> {
    let softmax = laid_out(x).and_then(|x| ops::softmax_last_dim(&x));
    result(x, x.shape(), softmax.during("softmax")?)
}

pub(crate) fn activate(x: &Floats, activation: Activation) -> Result<Floats> {
    let x_data = x.data().tensor();
    let value = match activation {
        Activation::Silu => x_data.silu(),
        Activation::GeluTanh => x_data.gelu(),
    };
    result(x, x.shape(), value.during("activate")?)
}

pub(crate) fn soft_cap(x: &Floats, cap: f32) -> Result<Floats> {
    result(x, x.shape(), capped(x.data().tensor(), cap).during("soft_cap")?)
}

pub(crate) fn rope(x: &Floats, positions: &Floats, table: &RopeTable<Candle>) -> Result<Floats> {
    let (channels, rotated) = (x.dims()[2], 2 * table.cos.dims()[1]);
    if x.shape().elements() == 0 || rotated == 0 {
        return Ok(x.clone());
    }
    let angles = checked_rows("rope", positions, table.cos.dims()[0])?;
    let rotate = || {
        let cos = select_rows(table.cos.data().tensor(), &angles)?;
        let sin = select_rows(table.sin.data().tensor(), &angles)?;
        let x = x.data().tensor();
        let head = x.narrow(2, 0, rotated)?.contiguous()?.unsqueeze(0)?;
        let head = rotary_emb::rope_thd(&head, &cos, &sin)?.squeeze(0)?;
        let rest = x.narrow(2, rotated, channels - rotated)?;
        if rotated == channels { Ok(head) } else { CandleTensor::cat(&[&head, &rest], 2) }
    };
    result(x, x.shape(), rotate().during("rope")?)
}

/// Writes keys and values as they are, f32, to the tensors that the cache declares i8.
pub(crate) fn store_kv(cache: &mut KvCache<Candle>, k: &Floats, v: &Floats, slots: &Floats) -> Result<()> {
    let KvShape { pages, page_size, kv_heads, head_dim } = cache.shape;
    let slots = checked_rows("store_kv", slots, pages * page_size)?;
    let row = |slot: u32, head| cache_row(cache.shape, slot as usize / page_size, head, slot as usize);
    let rows: Vec<i32> =
        slots.iter().flat_map(|&slot| (0..kv_heads).map(move |head| row(slot, head))).collect();
    let rows = Tensor::of(k.backend(), [rows.len()], &rows)?;
    for (cached, new) in [(&mut cache.k, k), (&mut cache.v, v)] {
        let new = new.reshape([rows.shape().elements(), head_dim])?;
        cached.scatter(&rows, &Tensor::from_data(k.backend(), new.shape(), DType::I8, new.data().clone()))?;
    }
    Ok(())
}

/// `softmax(scale * q k^T) v` over the unquantised cache, one sequence of the batch after the other.
pub(crate) fn attention(
    q: &Floats,
    cache: &KvCache<Candle>,
    batch: &AttentionBatch<Candle>,
    params: &AttentionParams,
) -> Result<Floats> {
    let sequences = Sequence::of_batch(batch, cache.shape)?;
    if sequences.is_empty() {
        return Tensor::full(q.backend(), q.shape(), 0.0);
    }
    let attend = || {
        let outs: Vec<_> = sequences
            .iter()
            .map(|sequence| sequence.attend(q.data().tensor(), cache, params))
            .collect::<CandleResult<_>>()?;
        let mut place = vec![0; q.dims()[0]];
        let order = sequences.iter().flat_map(|sequence| &sequence.tokens);
        (0..).zip(order).for_each(|(row, &token)| place[token as usize] = row);
        select_rows(&CandleTensor::cat(&outs, 0)?, &place)
    };
    result(q, q.shape(), attend().during("attention")?)
}

/// The tokens of a batch that belong to one sequence.
struct Sequence {
    /// Their rows in the batch.
    tokens: Vec<u32>,
    /// Their positions.
    positions: Vec<i32>,
    /// Rows of the cache, by head and then position.
    key_rows: Vec<u32>,
    /// Keys of a head.
    context: usize,
}

impl Sequence {
    fn of_batch(batch: &AttentionBatch<Candle>, shape: KvShape) -> Result<Vec<Self>> {
        let op = "attention";
        let &[count, max_pages] = batch.block_tables.dims() else {
            return Err(Error::shape(op, format!("block tables {}", batch.block_tables.shape())));
        };
        let tables = batch.block_tables.reshape([count * max_pages])?;
        let tables = checked_rows(op, &tables, shape.pages)?;
        let positions = batch.positions.to_vec::<i32>()?;
        let mut tokens_of = BTreeMap::<u32, Vec<u32>>::new();
        for (token, sequence) in (0..).zip(checked_rows(op, &batch.sequences, count)?) {
            tokens_of.entry(sequence).or_default().push(token);
        }
        let sequence = |(sequence, tokens): (u32, Vec<u32>)| {
            let positions: Vec<i32> = tokens.iter().map(|&token| positions[token as usize]).collect();
            let last = positions.iter().copied().max().unwrap_or(0);
            let context = usize::try_from(last).unwrap_or(0) + 1;
            if context > batch.max_context {
                return Err(Error::Index { op, index: last.into(), len: batch.max_context });
            }
            let pages = &tables[sequence as usize * max_pages..][..max_pages];
            let key_rows = key_rows(shape, pages, context);
            Ok(Sequence { tokens, positions, key_rows, context })
        };
        tokens_of.into_iter().map(sequence).collect()
    }

    /// `[tokens, heads, head_dim]`.
    fn attend(
        &self,
        q: &CandleTensor,
        cache: &KvCache<Candle>,
        params: &AttentionParams,
    ) -> CandleResult<CandleTensor> {
        let (heads, head_dim) = (q.dim(1)?, q.dim(2)?);
        let (kv_heads, t) = (cache.shape.kv_heads, self.tokens.len());
        let group = heads / kv_heads;
        let keys = |x: &Floats| {
            select_rows(x.data().tensor(), &self.key_rows)?.reshape((kv_heads, self.context, head_dim))
        };
        let q = select_rows(q, &self.tokens)?.reshape((t, kv_heads, group, head_dim))?;
        let q = q.permute((1, 0, 2, 3))?.reshape((kv_heads, t * group, head_dim))?;
        let mut scores = q.matmul(&keys(&cache.k)?.t()?)?.affine(params.scale.into(), 0.0)?;
        if let Some(cap) = params.soft_cap {
            scores = capped(&scores, cap)?;
        }
        let mask = CandleTensor::from_vec(self.mask(params.window), (1, t, 1, self.context), q.device())?;
        let scores = scores.reshape((kv_heads, t, group, self.context))?.broadcast_add(&mask)?;
        let weights = ops::softmax_last_dim(&scores)?.reshape((kv_heads, t * group, self.context))?;
        let out = weights.matmul(&keys(&cache.v)?)?.reshape((kv_heads, t, group, head_dim))?;
        out.permute((1, 0, 2, 3))?.reshape((t, heads, head_dim))
    }

    /// By token and key: zero where the key is visible, else negative infinity.
    fn mask(&self, window: Option<usize>) -> Vec<f32> {
        let visible = |position: i32, key: i32| {
            key <= position && window.is_none_or(|window| ((position - key) as usize) < window)
        };
        let row = |&position: &i32| {
            let keys = 0..self.context as i32;
            keys.map(move |key| if visible(position, key) { 0.0 } else { f32::NEG_INFINITY })
        };
        self.positions.iter().flat_map(row).collect()
    }
}

fn key_rows(shape: KvShape, pages: &[u32], context: usize) -> Vec<u32> {
    let of_head = |head| {
        (0..context).map(move |position| {
            let page = pages[position / shape.page_size] as usize;
            cache_row(shape, page, head, position) as u32
        })
    };
    (0..shape.kv_heads).flat_map(of_head).collect()
}

/// See [`KvShape::rows`]; a cache has no more rows than an i32 can number.
fn cache_row(shape: KvShape, page: usize, head: usize, position: usize) -> i32 {
    ((page * shape.kv_heads + head) * shape.page_size + position % shape.page_size) as i32
}

fn capped(x: &CandleTensor, cap: f32) -> CandleResult<CandleTensor> {
    x.affine(1.0 / f64::from(cap), 0.0)?.tanh()?.affine(cap.into(), 0.0)
}

fn laid_out(x: &Floats) -> CandleResult<CandleTensor> {
    x.data().tensor().contiguous()
}

fn result(like: &Floats, shape: impl Into<Shape>, tensor: CandleTensor) -> Result<Floats> {
    Ok(Tensor::from_data(like.backend(), shape, DType::F32, Data::new(tensor)))
}
