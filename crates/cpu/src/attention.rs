//! Attention and the cache it reads: which tokens, heads and tiles each thread computes.

use std::{cell::RefCell, ops::Range};

use samebits_kernels::{
    cpu::{
        AttentionScratch, AttentionTask, Grid, KvRows, KvRowsMut, Lanes, MatrixMut, NewKv, attend,
        attend_tiles, merge_tiles,
    },
    parts::Chunks,
};
use samebits_tensor::{AttentionBatch, AttentionParams, Error, KvCache, KvShape, Result, Tensor};

use crate::{Cpu, backend::check_indices};

/// Query heads, of one or more tokens, that share the work of laying out keys and values.
const ROWS: usize = 48;

/// New keys' channels that are worth several tasks.
const STORED: usize = 1 << 13;

/// Tiles that are worth a task of their own.
const SPAN: usize = 2;

thread_local! {
    static SCRATCH: RefCell<AttentionScratch> = RefCell::default();
    static PLAN: RefCell<Plan> = RefCell::default();
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
    // A few rows are not worth waking a thread for.
    let heads = if k.len() < STORED { shape.kv_heads } else { 1 };
    let rows = KvRowsMut::new(
        shape,
        heads,
        bytemuck::cast_slice_mut(cache.k.data_mut().i8_mut(op)?),
        cache.k_scale.data_mut().f32_mut(op)?,
        bytemuck::cast_slice_mut(cache.v.data_mut().i8_mut(op)?),
        cache.v_scale.data_mut().f32_mut(op)?,
    );
    cpu.threads().each(rows, |_, heads| heads.store(cpu.isa(), NewKv { k, v, slots }));
    Ok(())
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
    let width = heads * head_dim;
    let mut plan = PLAN.take();
    let job = Job {
        cache: rows,
        tables: Tables::of(batch, cache.shape)?,
        sequences: batch.sequences.data().i32(op)?,
        positions: batch.positions.data().i32(op)?,
        max_context: batch.max_context,
        q: q.data().f32(op)?,
        width,
        params,
    };
    plan.cut(&job, heads / cache.shape.kv_heads);
    let mut out = cpu.memory().elements(t * width);
    job.run(cpu, &mut plan, MatrixMut::new(out.as_mut_slice(), t, width));
    PLAN.set(plan);
    Ok(cpu.tensor([t, heads, head_dim], out))
}

/// What all tasks have in common.
struct Job<'a> {
    cache: KvRows<'a>,
    tables: Tables<'a>,
    sequences: &'a [i32],
    positions: &'a [i32],
    max_context: usize,
    q: &'a [f32],
    /// Values of a token's query heads.
    width: usize,
    params: &'a AttentionParams,
}

impl<'a> Job<'a> {
    /// Task `i` of the boxes of a grid with a column for each kv head.
    fn task(&self, ends: &[usize], i: usize) -> AttentionTask<'a> {
        let kv_heads = self.cache.shape.kv_heads;
        let tokens = Grid::rows(ends, i / kv_heads);
        AttentionTask {
            cache: self.cache,
            kv_head: i % kv_heads,
            pages: self.tables.row(self.sequences[tokens.start]),
            positions: &self.positions[tokens.clone()],
            max_context: self.max_context,
            q: &self.q[tokens.start * self.width..tokens.end * self.width],
            params: self.params,
        }
    }

    fn run(&self, cpu: &Cpu, plan: &mut Plan, out: MatrixMut<'_>) {
        let isa = cpu.isa();
        let span = plan.split(self, cpu.threads().count());
        let Plan { ends, spans, starts, room } = plan;
        let boxes = Grid::new(out, ends, (self.width / self.cache.shape.kv_heads).max(1));
        let Some((span, part)) = span else {
            return cpu.threads().each(boxes, |i, out| {
                let task = self.task(ends, i);
                SCRATCH.with_borrow_mut(|scratch| attend(isa, task, scratch, out));
            });
        };
        cpu.threads().each(Chunks::new(&mut room[..spans.len() * part], part), |i, parts| {
            let Span { task, ref tiles } = spans[i];
            let task = self.task(ends, task);
            let parts = &mut parts[..tiles.len() * task.part_len()];
            SCRATCH.with_borrow_mut(|scratch| attend_tiles(isa, task, tiles.clone(), scratch, parts));
        });
        cpu.threads().each(boxes, |i, out| {
            let parts = &room[starts[i] * part..starts[i + 1] * part];
            SCRATCH.with_borrow_mut(|scratch| {
                merge_tiles(isa, self.task(ends, i), span, parts, scratch, out);
            });
        });
    }
}

/// How the work is cut; kept for the next call.
#[derive(Default)]
struct Plan {
    /// Where the tokens of a batch are cut.
    ends: Vec<usize>,
    /// Tiles of tasks that are too few for all threads.
    spans: Vec<Span>,
    /// The first span of each task, and their number.
    starts: Vec<usize>,
    /// Results of spans.
    room: Vec<Lanes>,
}

/// Some tiles of a task.
struct Span {
    task: usize,
    tiles: Range<usize>,
}

impl Plan {
    /// Cuts tokens between sequences, and so that a task has about [`ROWS`] query heads.
    fn cut(&mut self, job: &Job<'_>, group: usize) {
        self.ends.clear();
        let (mut end, most) = (0, (ROWS / group.max(1)).max(1));
        for run in job.sequences.chunk_by(|a, b| a == b) {
            for tokens in run.chunks(most) {
                end += tokens.len();
                self.ends.push(end);
            }
        }
    }

    /// Cuts the tiles of tasks that would leave threads idle: how many tiles a span has, and the length of its results.
    fn split(&mut self, job: &Job<'_>, threads: usize) -> Option<(usize, usize)> {
        let tasks = self.ends.len() * job.cache.shape.kv_heads;
        if threads < 2 {
            return None;
        }
        let (mut all, mut longest, mut part) = (0, 0, 0);
        for task in (0..tasks).map(|i| job.task(&self.ends, i)) {
            let tiles = task.tiles().len();
            (all, longest, part) = (all + tiles, longest.max(tiles), task.part_len().max(part));
        }
        let span = (all / (4 * threads)).max(SPAN);
        if longest <= span {
            return None;
        }
        self.spans.clear();
        self.starts.clear();
        for i in 0..tasks {
            self.starts.push(self.spans.len());
            let tiles = job.task(&self.ends, i).tiles();
            let spans = tiles.clone().step_by(span).map(|start| start..tiles.end.min(start + span));
            self.spans.extend(spans.map(|tiles| Span { task: i, tiles }));
        }
        self.starts.push(self.spans.len());
        let length = self.spans.len() * span * part;
        if self.room.len() < length {
            self.room.resize(length, Lanes::ZERO);
        }
        Some((span, span * part))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of the last tokens of two sequences, of `context` and of 300 positions, in a cache of some page size.
    fn bits(threads: usize, page_size: usize, context: usize, window: Option<usize>) -> Result<Vec<u32>> {
        let cpu = Cpu::builder().threads(threads).build()?;
        let (heads, pages) = (6, context.div_ceil(page_size));
        let shape = KvShape { pages: 2 * pages, page_size, kv_heads: 2, head_dim: 24 };
        let mut cache = KvCache::new(&cpu, shape)?;
        // The second sequence has the later pages.
        let slots: Vec<i32> =
            (0..context).chain(pages * page_size..).take(context + 300).map(|s| s as i32).collect();
        let kv = values(&cpu, &[slots.len(), shape.kv_heads, shape.head_dim])?;
        cache.store(&kv, &kv, &Tensor::of(&cpu, [slots.len()], &slots)?)?;
        let table: Vec<i32> = (0..2 * pages as i32).collect();
        let batch = AttentionBatch {
            positions: Tensor::of(&cpu, [4], &[context as i32 - 1, 297, 298, 299])?,
            sequences: Tensor::of(&cpu, [4], &[0, 1, 1, 1])?,
            block_tables: Tensor::of(&cpu, [2, pages], &table)?,
            max_context: context,
        };
        let params = AttentionParams { scale: 0.2, window, soft_cap: None };
        let out = values(&cpu, &[4, heads, shape.head_dim])?.attention(&cache, &batch, &params)?;
        Ok(out.data().f32("test")?.iter().map(|x| x.to_bits()).collect())
    }

    fn values(cpu: &Cpu, shape: &[usize]) -> Result<Tensor<Cpu>> {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1009) as f32 / 200.0 - 2.5).collect();
        Tensor::of(cpu, shape, &values)
    }

    #[test]
    fn neither_threads_nor_pages_change_a_bit() -> Result<()> {
        for window in [None, Some(700)] {
            let expected = bits(1, 32, 1300, window)?;
            for (threads, page_size) in [(1, 4), (2, 128), (3, 16), (5, 32), (4, 8)] {
                assert!(
                    bits(threads, page_size, 1300, window)? == expected,
                    "{threads} threads, pages of {page_size}"
                );
            }
        }
        Ok(())
    }
}
