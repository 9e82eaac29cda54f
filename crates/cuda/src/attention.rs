//! Paged attention, whose kernels are in `attention.cu`.

use bytemuck::{Pod, Zeroable, bytes_of};
use samebits_tensor::{
    AttentionBatch, AttentionParams, DType, KvCache, Result, Shape, Tensor,
    contract::{ATTENTION_TILE, HEAD_BLOCK},
    decompose,
};

use crate::{Buffer, Cuda, driver::Grid, layout::extent};

/// Rows, each a token and a query head, of one half of a warp.
const ROWS: usize = 8;

const WARP: usize = 32;

/// Channels that are copied at once.
const CHUNK: usize = 16;

/// Blocks of threads that fill a device. Fewer have their tiles computed side by side.
const FILL: usize = 512;

/// Blocks that a grid may have in its second direction.
const DOWN_MAX: usize = 65_535;

/// Bytes that the outputs of single tiles may take.
const STATES: usize = 64 << 20;

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
    tokens: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    page_size: u32,
    max_pages: u32,
    tiles: u32,
    per_block: u32,
    window: i32,
    scale: f32,
    cap: f32,
    reciprocal_cap: f32,
}

/// Kernels of one shape: `Shape` in `attention.cu`.
struct Kernels {
    name: &'static str,
    warps: usize,
    halves: usize,
    channels: usize,
}

macro_rules! kernels {
    ($name:literal, $warps:literal, $halves:literal, $channels:literal) => {
        Kernels { name: concat!("attention_", $name), warps: $warps, halves: $halves, channels: $channels }
    };
}

/// For one token of each sequence, and for more, by the channels of a head.
const FEW: [Kernels; 3] =
    [kernels!("few_64", 1, 1, 64), kernels!("few_128", 1, 1, 128), kernels!("few_256", 1, 1, 256)];
const MANY: [Kernels; 3] =
    [kernels!("many_64", 4, 2, 64), kernels!("many_128", 4, 2, 128), kernels!("many_256", 4, 1, 256)];

impl Kernels {
    fn of(
        tokens: usize,
        sequences: usize,
        head_dim: usize,
        params: &AttentionParams,
    ) -> Option<&'static Self> {
        if !head_dim.is_multiple_of(CHUNK) || params.soft_cap == Some(0.0) {
            return None;
        }
        let kernels = if tokens <= sequences { &FEW } else { &MANY };
        kernels.iter().find(|kernels| head_dim <= kernels.channels)
    }

    fn rows(&self) -> usize {
        self.warps * self.halves * ROWS
    }

    /// Bytes of `Shared` in `attention.cu`.
    fn shared(&self) -> usize {
        let blocks = self.channels / HEAD_BLOCK;
        let integers = (self.rows() + 2 * ATTENTION_TILE) * (self.channels + 16);
        let scales = self.rows() * blocks + ATTENTION_TILE * (blocks + 1);
        integers + scales * size_of::<f32>()
    }
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
        let sequences = batch.block_tables.dims()[0];
        let Some(kernels) = Kernels::of(tokens, sequences, head_dim, params) else {
            return decompose::attention(q, cache, batch, params);
        };
        let group = heads / cache.shape.kv_heads.max(1);
        let per_block = if tokens <= sequences { 1 } else { (kernels.rows() / group.max(1)).max(1) };
        let work = work(q, cache, batch, params, per_block)?;
        // Tokens of several sequences may stand in any order.
        let runs = if sequences == 1 { 1 } else { per_block.min(tokens) };
        let tiles = work.tiles as usize;
        let blocks = tokens.div_ceil(per_block) * cache.shape.kv_heads * group.div_ceil(kernels.rows());
        let (threads, shared) = (extent(OP, kernels.warps * WARP)?, extent(OP, kernels.shared())?);
        let grid = |down: usize| -> Result<Grid> {
            Ok(Grid { blocks: (extent(OP, blocks)?, extent(OP, down)?), threads, shared })
        };
        let out = self.room(OP, q.shape(), DType::F32)?;
        let sums = tiles * tokens * heads * 2 * size_of::<f32>();
        let outs = sums / 2 * head_dim;
        let fill = FILL.min(self.shared.blocks_max as usize);
        if blocks * kernels.warps >= fill || tiles == 1 || outs > STATES || tiles * runs > DOWN_MAX {
            let outputs = [out.address(), 0, 0];
            self.launch(kernels.name, grid(runs)?, &[bytes_of(&outputs), bytes_of(&work)], q.shape())?;
            return Ok(self.floats(q.shape(), out));
        }
        let (outs, sums) = (self.buffer(OP, outs)?, self.buffer(OP, sums)?);
        let outputs = [0, outs.address(), sums.address()];
        self.launch(kernels.name, grid(tiles * runs)?, &[bytes_of(&outputs), bytes_of(&work)], q.shape())?;
        self.merge(&out, [&outs, &sums], batch, &work, q.shape())?;
        Ok(self.floats(q.shape(), out))
    }

    /// Merges the outputs of single tiles, in order.
    fn merge(
        &self,
        out: &Buffer,
        [outs, sums]: [&Buffer; 2],
        batch: &AttentionBatch<Self>,
        work: &Work,
        shape: &Shape,
    ) -> Result<()> {
        let blocks = extent(OP, shape.dims()[0] * shape.dims()[1])?;
        let grid = Grid { blocks: (blocks, 1), threads: ATTENTION_TILE as u32, shared: 0 };
        let tensors = [out, outs, sums, batch.positions.data()].map(Buffer::argument);
        let numbers = [&work.heads, &work.head_dim, &work.tiles].map(bytes_of);
        let arguments: Vec<&[u8]> =
            tensors.into_iter().chain(numbers).chain([bytes_of(&work.window)]).collect();
        self.launch("attention_merge", grid, &arguments, shape)
    }
}

fn work(
    q: &Tensor<Cuda>,
    cache: &KvCache<Cuda>,
    batch: &AttentionBatch<Cuda>,
    params: &AttentionParams,
    per_block: usize,
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
        tokens: extent(OP, q.dims()[0])?,
        heads: extent(OP, q.dims()[1])?,
        kv_heads: extent(OP, cache.shape.kv_heads)?,
        head_dim: extent(OP, q.dims()[2])?,
        page_size: extent(OP, cache.shape.page_size)?,
        max_pages: extent(OP, batch.block_tables.dims()[1])?,
        tiles: extent(OP, batch.max_context.div_ceil(ATTENTION_TILE))?,
        per_block: extent(OP, per_block)?,
        window: params.window.and_then(|window| i32::try_from(window).ok()).unwrap_or(i32::MAX),
        scale: params.scale,
        cap,
        reciprocal_cap: if cap == 0.0 { 0.0 } else { 1.0 / cap },
    })
}
