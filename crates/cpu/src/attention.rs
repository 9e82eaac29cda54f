//! Attention and the cache it reads: which tokens and heads each thread computes.

use std::{cell::RefCell, ops::Range};

use samebits_kernels::cpu::{AttentionScratch, AttentionTask, KvRows, MatrixMut, attend, quantize_block};
use samebits_tensor::{AttentionBatch, AttentionParams, Error, KvCache, KvShape, Result, Tensor};

use crate::{Cpu, backend::check_indices};

/// Tokens of one sequence that share the work of laying out keys and values.
const TOKENS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<AttentionScratch> = RefCell::default();
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

/// Tokens of one sequence, one kv head, and the box of the result that they fill.
struct Task<'a> {
    tokens: Range<usize>,
    kv_head: usize,
    out: MatrixMut<'a>,
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
    let mut out = vec![0.0; t * width];
    let tasks = cut(sequences, cache.shape, MatrixMut::new(&mut out, t, width));
    cpu.threads().each(tasks, |task| {
        let Task { tokens, kv_head, out } = task;
        let task = AttentionTask {
            cache: rows,
            kv_head,
            pages: tables.row(sequences[tokens.start]),
            positions: &positions[tokens.clone()],
            max_context: batch.max_context,
            q: &values[tokens.start * width..tokens.end * width],
            params,
        };
        SCRATCH.with_borrow_mut(|scratch| attend(cpu.isa(), task, scratch, out));
    });
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

/// Cuts the result at sequences, every [`TOKENS`] tokens, and at kv heads.
fn cut<'a>(sequences: &[i32], shape: KvShape, mut out: MatrixMut<'a>) -> Vec<Task<'a>> {
    let group_width = out.cols() / shape.kv_heads;
    let mut tasks = Vec::new();
    let mut start = 0;
    for run in sequences.chunk_by(|a, b| a == b) {
        for tokens in run.chunks(TOKENS) {
            let (mut rows, rest) = out.split_rows(tokens.len());
            for kv_head in 0..shape.kv_heads {
                let (piece, others) = rows.split_cols(group_width);
                tasks.push(Task { tokens: start..start + tokens.len(), kv_head, out: piece });
                rows = others;
            }
            (out, start) = (rest, start + tokens.len());
        }
    }
    tasks
}
