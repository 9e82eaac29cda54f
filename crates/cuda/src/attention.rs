//! Paged attention, whose kernels are in `attention.cu`.

use bytemuck::{Pod, Zeroable, bytes_of};
use samebits_tensor::{
    AttentionBatch, AttentionParams, DType, KvCache, Result, Tensor, contract::ATTENTION_TILE, decompose,
};

use crate::{Cuda, driver::Grid, layout::extent};

/// Query heads of a block of threads.
const HEADS: usize = 8;

/// Channels of a head that the kernels take.
const CHANNELS: usize = 256;

/// Blocks of threads that fill a device. Fewer tokens than give as many have their tiles computed side by side.
const FILL: usize = 512;

const OP: &str = "attention";

/// What a launch works on, as `Work` in `attention.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Work {
    q: u64,
    k: u64,
    k_scale: u64,
    v: u64,
    v_scale: u64,
    tables: u64,
    sequences: u64,
    positions: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    page_size: u32,
    max_pages: u32,
    tiles: u32,
    window: i32,
    scale: f32,
    cap: f32,
    reciprocal_cap: f32,
}

impl Cuda {
    /// See [`decompose::attention`].
    pub(crate) fn attended(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        let (tokens, heads, head_dim) = (q.dims()[0], q.dims()[1], q.dims()[2]);
        let (kv_heads, tiles) = (cache.shape.kv_heads, batch.max_context.div_ceil(ATTENTION_TILE));
        if head_dim > CHANNELS || params.soft_cap == Some(0.0) {
            return decompose::attention(q, cache, batch, params);
        }
        let work = work(q, cache, batch, params)?;
        let out = self.room(OP, q.shape(), DType::F32)?;
        let blocks = tokens * kv_heads * (heads / kv_heads.max(1)).div_ceil(HEADS);
        let threads = ATTENTION_TILE as u32;
        let grid = |across, down| -> Result<Grid> {
            Ok(Grid { blocks: (extent(OP, across)?, extent(OP, down)?), threads })
        };
        if blocks >= FILL || tiles == 1 {
            self.launch(OP, grid(blocks, 1)?, &[out.argument(), bytes_of(&work)], q.shape())?;
            return Ok(self.floats(q.shape(), out));
        }
        let states = self.buffer(OP, tiles * tokens * heads * (head_dim + 2) * size_of::<f32>())?;
        let arguments = [states.argument(), bytes_of(&work)];
        self.launch("attention_tile", grid(blocks, tiles)?, &arguments, q.shape())?;
        let Work { heads, head_dim, tiles, window, .. } = work;
        let arguments = [out.argument(), states.argument(), batch.positions.data().argument()];
        let numbers = [bytes_of(&heads), bytes_of(&head_dim), bytes_of(&tiles), bytes_of(&window)];
        let arguments: Vec<&[u8]> = arguments.into_iter().chain(numbers).collect();
        self.launch("attention_merge", grid(tokens * heads as usize, 1)?, &arguments, q.shape())?;
        Ok(self.floats(q.shape(), out))
    }
}

fn work(
    q: &Tensor<Cuda>,
    cache: &KvCache<Cuda>,
    batch: &AttentionBatch<Cuda>,
    params: &AttentionParams,
) -> Result<Work> {
    let address = |x: &Tensor<Cuda>| x.data().address();
    let cap = params.soft_cap.unwrap_or_default();
    Ok(Work {
        q: address(q),
        k: address(&cache.k),
        k_scale: address(&cache.k_scale),
        v: address(&cache.v),
        v_scale: address(&cache.v_scale),
        tables: address(&batch.block_tables),
        sequences: address(&batch.sequences),
        positions: address(&batch.positions),
        heads: extent(OP, q.dims()[1])?,
        kv_heads: extent(OP, cache.shape.kv_heads)?,
        head_dim: extent(OP, q.dims()[2])?,
        page_size: extent(OP, cache.shape.page_size)?,
        max_pages: extent(OP, batch.block_tables.dims()[1])?,
        tiles: extent(OP, batch.max_context.div_ceil(ATTENTION_TILE))?,
        window: params.window.and_then(|window| i32::try_from(window).ok()).unwrap_or(i32::MAX),
        scale: params.scale,
        cap,
        reciprocal_cap: if cap == 0.0 { 0.0 } else { 1.0 / cap },
    })
}
