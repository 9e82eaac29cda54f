//! Linear layers and embeddings: which rows of which weight each thread computes.

use std::{
    cell::Cell,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use bytemuck::pod_collect_to_vec;
use half::{bf16, f16};
use samebits_kernels::{
    cpu::{Activations, Bands, Floats, Isa, LANES, MatrixMut, Piece, linear_blocks, linear_dense, rms_norm},
    parts::Chunks,
};
use samebits_tensor::{DType, Error, Format, FormatKind, Input, PlainRowMut, PlainWeight, Result, Tensor};
use smallvec::SmallVec;

use crate::{
    Buffer, Cpu,
    backend::check_indices,
    memory::{Elements, Memory},
    packed::PackedWeight,
};

/// Bytes of weights, weighed by tokens, that are worth a task of their own.
const TASK_BYTES: usize = 1 << 15;

/// Tasks of a thread where tokens are many, as [`MANY`] are: the more, the less the last to finish keeps the others waiting.
const TASKS: usize = 16;

/// Tasks of a thread where tokens are few: the fewer, the longer the stretches of memory that a core reads, and fetches ahead.
const LONG_TASKS: usize = 4;

/// Tokens from which on a layer takes longer to compute than to read.
const MANY: usize = 64;

/// Panels that kernels take at once where there are many tokens.
const PANELS: usize = 2;

/// Activations to quantise that are worth a task of their own.
const TASK_VALUES: usize = 1 << 14;

/// Rows of an embedding in a task.
const ROWS: usize = 16;

/// An input `[m, k]` times the transpose of each weight, as `[m, rows]` each.
pub(crate) fn linears<const N: usize>(
    cpu: &Cpu,
    x: Input<'_, Cpu>,
    weights: [&PackedWeight; N],
) -> Result<[Tensor<Cpu>; N]> {
    let x = Rows::of(x)?;
    let (operands, served) = x.operands(cpu, weights);
    let products = products(cpu, x.m, weights, served.map(|served| &operands[served]));
    cpu.operands().give(operands);
    Ok(products)
}

/// The rows of each operand times the transpose of its weight.
pub(crate) fn products<const N: usize>(
    cpu: &Cpu,
    m: usize,
    weights: [&PackedWeight; N],
    operands: [&Operand; N],
) -> [Tensor<Cpu>; N] {
    let mut outs = weights.map(|weight| cpu.memory().elements(m * weight.rows()));
    let (share, mut each) = (share(cpu, &weights, m), weights.iter());
    let mut matrices = outs.each_mut().map(|out| {
        let weight = each.next().expect("a weight for each result");
        (MatrixMut::new(out.as_mut_slice(), m, weight.rows()), LANES * panels(weight, share, m))
    });
    cpu.threads().each(Bands::new(&mut matrices), |_, band| {
        let panels = band.cols.start / LANES..band.cols.end.div_ceil(LANES);
        operands[band.matrix].times(cpu, weights[band.matrix], panels, band.out);
    });
    let mut each = weights.iter();
    outs.map(|out| {
        let weight = each.next().expect("a weight for each result");
        cpu.tensor([m, weight.rows()], out)
    })
}

/// Bytes of weights of a task.
pub(crate) fn share(cpu: &Cpu, weights: &[&PackedWeight], m: usize) -> usize {
    share_of(cpu, weights.iter().map(|weight| weight.bytes()).sum(), m)
}

/// Bytes of weights of a task, of so many that `m` tokens take.
pub(crate) fn share_of(cpu: &Cpu, total: usize, m: usize) -> usize {
    let tasks = if m < MANY { LONG_TASKS } else { TASKS };
    match cpu.threads().count() {
        1 => usize::MAX,
        threads => (total / (tasks * threads)).max(TASK_BYTES / (1 + m / 4)),
    }
}

/// Panels of a task of about `share` bytes.
fn panels(weight: &PackedWeight, share: usize, m: usize) -> usize {
    let panels = (share / weight.panel_bytes().max(1)).clamp(1, weight.panels().max(1));
    if m < PANELS { panels } else { panels.next_multiple_of(PANELS) }
}

/// The values of an [`Input`].
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) m: usize,
    pub(crate) k: usize,
    x: &'a [f32],
    norm: Option<(&'a [f32], f32)>,
}

impl<'a> Rows<'a> {
    pub(crate) fn of(input: Input<'a, Cpu>) -> Result<Self> {
        let op = "linear";
        let (m, k) = (input.x.dims()[0], input.x.dims()[1]);
        if k == 0 {
            return Err(Error::shape("dot", "an empty contraction"));
        }
        let norm = match input.norm {
            Some((weight, eps)) => Some((weight.data().f32(op)?, eps)),
            None => None,
        };
        Ok(Rows { m, k, x: input.x.data().f32(op)?, norm })
    }

    /// What the weights are multiplied with, and which of it each.
    pub(crate) fn operands<const N: usize>(
        self,
        cpu: &Cpu,
        weights: [&PackedWeight; N],
    ) -> (SmallVec<[Operand; 2]>, [usize; N]) {
        let mut operands = SmallVec::<[Operand; 2]>::new();
        let served = weights.map(|weight| {
            let format = weight.format();
            operands.iter().position(|operand| operand.serves(format)).unwrap_or_else(|| {
                operands.push(self.operand(cpu, format));
                operands.len() - 1
            })
        });
        (operands, served)
    }

    fn operand(self, cpu: &Cpu, format: Format) -> Operand {
        let mut operand = cpu.operands().take(cpu, self.m, self.k, format);
        let tokens = (TASK_VALUES / self.k).max(self.m.div_ceil(4 * cpu.threads().count()));
        if format.is_quantized() {
            cpu.threads()
                .each(operand.blocks.pieces(tokens, self.k), |_, piece| self.quantize(cpu.isa(), piece));
        } else {
            let normed = self.normed(cpu);
            let x = normed.as_deref().unwrap_or(self.x);
            cpu.threads().each(operand.floats.pieces(x, tokens), |_, piece| piece.round(cpu.isa()));
        }
        operand
    }

    fn quantize(self, isa: Isa, piece: Piece<'_>) {
        let (start, end) = (piece.tokens().start * self.k, piece.tokens().end * self.k);
        let x = &self.x[start..end];
        match self.norm {
            None => piece.quantize(isa, x),
            Some((weight, eps)) => {
                with_scratch(isa.tile() * self.k, |room| piece.quantize_normed(isa, x, weight, eps, room));
            }
        }
    }

    /// The rows after the norm, if there is one.
    fn normed(self, cpu: &Cpu) -> Option<Elements<f32>> {
        self.norm.map(|(weight, eps)| {
            cpu.rows(self.x.len(), self.k, |at, out| {
                rms_norm(cpu.isa(), &self.x[at..at + out.len()], weight, eps, out);
            })
        })
    }
}

/// Operands whose memory waits for the next layer.
#[derive(Default)]
pub(crate) struct Operands {
    spare: Mutex<Vec<Operand>>,
}

/// One activation `[m, k]`, quantised or rounded for a kind of weight.
pub(crate) struct Operand {
    format: Format,
    pub(crate) blocks: Activations,
    floats: Floats,
}

impl Operands {
    /// Room for an activation for weights of a format.
    pub(crate) fn take(&self, cpu: &Cpu, m: usize, k: usize, format: Format) -> Operand {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut operand =
            spare.unwrap_or(Operand { format, blocks: Activations::new(), floats: Floats::new() });
        operand.format = format;
        if format.is_quantized() {
            operand.blocks.reset(cpu.isa(), m, k, format);
        } else {
            operand.floats.reset(cpu.isa(), m, k, format);
        }
        operand
    }

    pub(crate) fn give(&self, operands: impl IntoIterator<Item = Operand>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).extend(operands);
    }
}

impl Operand {
    /// The format of the weights.
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    fn serves(&self, format: Format) -> bool {
        if self.format.is_quantized() { self.blocks.serve(format) } else { self.format == format }
    }

    /// The columns of the product that some panels give.
    fn times(&self, cpu: &Cpu, weight: &PackedWeight, panels: Range<usize>, out: MatrixMut<'_>) {
        if self.format.is_quantized() {
            linear_blocks(cpu.isa(), &weight.layout(), weight.panel_range(panels), self.blocks.all(), out);
        } else {
            linear_dense(cpu.isa(), weight.dense(panels), &self.floats, out);
        }
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Runs `run` with `len` values of the thread's own, which are kept for the next call.
pub(crate) fn with_scratch(len: usize, run: impl FnOnce(&mut [f32])) {
    let mut scratch = SCRATCH.take();
    scratch.resize(scratch.len().max(len), 0.0);
    run(&mut scratch[..len]);
    SCRATCH.set(scratch);
}

/// The contract's view of a packed weight.
pub(crate) fn plain(cpu: &Cpu, weight: &PackedWeight) -> Result<PlainWeight<Cpu>> {
    let (rows, cols, format) = (weight.rows(), weight.cols(), weight.format());
    let tensor = |cols: usize, dtype, data: Buffer| Tensor::from_data(cpu, [rows, cols], dtype, data);
    let dense: Option<(DType, Buffer)> = match format {
        Format::F32 => Some((DType::F32, pod_collect_to_vec::<u8, f32>(&weight.dense_bytes()).into())),
        Format::F16 => Some((DType::F16, pod_collect_to_vec::<u8, f16>(&weight.dense_bytes()).into())),
        Format::BF16 => Some((DType::BF16, pod_collect_to_vec::<u8, bf16>(&weight.dense_bytes()).into())),
        _ => None,
    };
    if let Some((dtype, data)) = dense {
        return Ok(PlainWeight::Dense(tensor(cols, dtype, data)));
    }
    let plain = weight.block_rows();
    let blocks = cols / format.block_len();
    let q = tensor(cols, DType::I8, plain.q.into());
    let scale = tensor(blocks, DType::F32, plain.scale.into());
    let min = plain.min.map(|min| tensor(blocks, DType::F32, min.into()));
    let FormatKind::Blocks256 { sub_len, .. } = format.kind() else {
        return Ok(PlainWeight::Blocks32 { q, scale, min });
    };
    let sub_scale = tensor(cols / sub_len, DType::I8, plain.sub_scale.unwrap_or_default().into());
    let sub_min = plain.sub_min.map(|min| tensor(cols / sub_len, DType::U8, min.into()));
    Ok(PlainWeight::Blocks256 { q, scale, sub_scale, min: min.zip(sub_min) })
}

/// Rows of a weight at `ids [t]`, as f32 `[t, cols]`.
pub(crate) fn embedding(cpu: &Cpu, ids: &Tensor<Cpu>, weight: &PackedWeight) -> Result<Tensor<Cpu>> {
    let ids = ids.data().i32("embedding")?;
    check_indices("embedding", ids, weight.rows())?;
    let cols = weight.cols();
    let mut out = cpu.memory().elements(ids.len() * cols);
    cpu.threads().each(Chunks::new(out.as_mut_slice(), ROWS * cols), |i, out| {
        let rows = out.chunks_exact_mut(cols).zip(&ids[i * ROWS..]);
        rows.for_each(|(out, &id)| row(cpu.memory(), weight, id as usize, out));
    });
    Ok(cpu.tensor([ids.len(), cols], out))
}

/// One row, dequantised in the contract's order.
fn row(memory: &Memory, weight: &PackedWeight, row: usize, out: &mut [f32]) {
    let (format, cols) = (weight.format(), weight.cols());
    let block = format.block_len();
    let (sub_len, min, subs) = match format.kind() {
        FormatKind::Dense => {
            let mut bytes = memory.elements(cols * format.block_bytes());
            weight.dense_row(row, bytes.as_mut_slice());
            return samebits_tensor::dequantize_row(format, &bytes, out);
        }
        FormatKind::Blocks32 { min } => (block, min, 0),
        FormatKind::Blocks256 { sub_len, min } => (sub_len, min, cols / sub_len),
    };
    let (mut q, mut scale) = (memory.elements(cols), memory.elements(cols / block));
    let mut minimum = memory.elements::<f32>(if min { cols / block } else { 0 });
    let mut sub_scale = memory.elements::<i8>(subs);
    let mut sub_min = memory.elements::<u8>(if min { subs } else { 0 });
    let mut parts = PlainRowMut {
        q: q.as_mut_slice(),
        scale: scale.as_mut_slice(),
        min: minimum.as_mut_slice(),
        sub_scale: sub_scale.as_mut_slice(),
        sub_min: sub_min.as_mut_slice(),
    };
    weight.block_row(row, &mut parts);
    for (sub, (out, q)) in out.chunks_exact_mut(sub_len).zip(q.chunks_exact(sub_len)).enumerate() {
        let at = sub * sub_len / block;
        let (min, sub_min) = (minimum.get(at), sub_min.get(sub).map(|&min| f32::from(min)));
        let scale = sub_scale.get(sub).map_or(scale[at], |&sub_scale| scale[at] * f32::from(sub_scale));
        for (out, &q) in out.iter_mut().zip(q) {
            let value = f32::from(q) * scale;
            *out = match (min, sub_min) {
                (None, _) => value,
                (Some(min), None) => value + min,
                (Some(min), Some(sub_min)) => value - min * sub_min,
            };
        }
    }
}
