//! Attention and the cache it reads: which tokens and heads each thread computes.

use std::cell::RefCell;

use samebits_kernels::cpu::{
    AttentionScratch, AttentionTask, Grid, KvRows, MatrixMut, attend, quantize_block,
};
use samebits_tensor::{AttentionBatch, AttentionParams, Error, KvCache, KvShape, Result, Tensor};

use crate::{Cpu, backend::check_indices};

/// Tokens of one sequence that share the work of laying out keys and values.
const TOKENS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<AttentionScratch> = RefCell::default();
    /// Where the tokens of a batch are cut.
    static ENDS: RefCell<Vec<usize>> = RefCell::default();
}

/// Quantises keys and values `[t, kv_heads, head_dim]` into their slots, in place.
pub(crate) fn store_kv(
    cpu: &Cpu,
    cache: &mut KvCache<Cpu>,
    k: &Tensor<Cpu>,
    v: &Tensor<Cpu>,
    slots: &Tensor<Cpu>,
) -> Result<()> {
    let op = "store_kv";
    let shape = cache.shape;
    let (k, v, slots) = (k.data().f32(op)?, v.data().f32(op)?, slots.data().i32(op)?);
    check_indices(op, slots, shape.pages * shape.page_size)?;
    let k_cache = cache.k.data_mut().i8_mut(op)?;
    let k_scale = cache.k_scale.data_mut().f32_mut(op)?;
    for (row, x) in rows(shape, slots).zip(k.chunks_exact(shape.head_dim)) {
        for block in 0..shape.head_blocks() {
            let channels = shape.head_block(block);
            let start = row * shape.head_dim + channels.start;
            let q = bytemuck::cast_slice_mut(&mut k_cache[start..start + channels.len()]);
            k_scale[row * shape.head_blocks() + block] = quantize_block(cpu.isa(), &x[channels], q);
        }
    }
    let v_cache = cache.v.data_mut().i8_mut(op)?;
    let v_scale = cache.v_scale.data_mut().f32_mut(op)?;
    for (row, x) in rows(shape, slots).zip(v.chunks_exact(shape.head_dim)) {
        let q = bytemuck::cast_slice_mut(&mut v_cache[row * shape.head_dim..(row + 1) * shape.head_dim]);
        v_scale[row] = quantize_block(cpu.isa(), x, q);
    }
    Ok(())
}

/// The cache rows of every slot and kv head: see [`KvShape::rows`].
fn rows(shape: KvShape, slots: &[i32]) -> impl Iterator<Item = usize> {
    slots.iter().flat_map(move |&slot| {
        let (page, offset) = (slot as usize / shape.page_size, slot as usize % shape.page_size);
        (0..shape.kv_heads).map(move |head| (page * shape.kv_heads + head) * shape.page_size + offset)
    })
}

/// Attention of `q [t, heads, head_dim]` over a paged cache.
pub(crate) fn attention(
    cpu: &Cpu,
    q: &Tensor<Cpu>,
    cache: &KvCache<Cpu>,
    batch: &AttentionBatch<Cpu>,
    params: &AttentionParams,
) -> Result<Tensor<Cpu>> {
    let op = "attention";
    let &[t, heads, head_dim] = q.dims() else { return Err(Error::shape(op, format!("q {}", q.shape()))) };
    let rows = KvRows {
        shape: cache.shape,
        k: bytemuck::cast_slice(cache.k.data().i8(op)?),
        k_scale: cache.k_scale.data().f32(op)?,
        v: bytemuck::cast_slice(cache.v.data().i8(op)?),
        v_scale: cache.v_scale.data().f32(op)?,
    };
    let sequences = batch.sequences.data().i32(op)?;
    let tables = Tables::of(batch, cache.shape)?;
    let (values, positions) = (q.data().f32(op)?, batch.positions.data().i32(op)?);
    let width = heads * head_dim;
    let mut out = cpu.memory().elements(t * width);
    let mut ends = ENDS.take();
    cut(sequences, &mut ends);
    let matrix = MatrixMut::new(out.as_mut_slice(), t, width);
    let boxes = Grid::new(matrix, &ends, (width / cache.shape.kv_heads).max(1));
    let across = boxes.across();
    cpu.threads().each(boxes, |i, out| {
        let tokens = Grid::rows(&ends, i / across);
        let task = AttentionTask {
            cache: rows,
            kv_head: i % across,
            pages: tables.row(sequences[tokens.start]),
            positions: &positions[tokens.clone()],
            max_context: batch.max_context,
            q: &values[tokens.start * width..tokens.end * width],
            params,
        };
        SCRATCH.with_borrow_mut(|scratch| attend(cpu.isa(), task, scratch, out));
    });
    ENDS.set(ends);
    Ok(cpu.tensor([t, heads, head_dim], out))
}

/// The pages of each sequence.
struct Tables<'a> {
    pages: &'a [i32],
    width: usize,
}

impl<'a> Tables<'a> {
    /// The tables of a batch, whose sequences and pages are all there.
    fn of(batch: &'a AttentionBatch<Cpu>, shape: KvShape) -> Result<Self> {
        let op = "attention";
        let pages = batch.block_tables.data().i32(op)?;
        let &[sequences, width] = batch.block_tables.dims() else {
            return Err(Error::shape(op, format!("tables {}", batch.block_tables.shape())));
        };
        check_indices(op, batch.sequences.data().i32(op)?, sequences)?;
        check_indices(op, pages, shape.pages)?;
        Ok(Tables { pages, width })
    }

    fn row(&self, sequence: i32) -> &'a [i32] {
        let start = sequence as usize * self.width;
        &self.pages[start..start + self.width]
    }
}

/// Cuts tokens between sequences, and every [`TOKENS`] of one.
fn cut(sequences: &[i32], ends: &mut Vec<usize>) {
    ends.clear();
    let mut end = 0;
    for run in sequences.chunk_by(|a, b| a == b) {
        for tokens in run.chunks(TOKENS) {
            end += tokens.len();
            ends.push(end);
        }
    }
}
