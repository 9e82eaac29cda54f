//! Linear layers and embeddings: which rows of which weight each thread computes.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use bytemuck::pod_collect_to_vec;
use half::{bf16, f16};
use samebits_kernels::{
    cpu::{Activations, Bands, Floats, LANES, MatrixMut, linear_blocks, linear_dense},
    parts::Chunks,
};
use samebits_tensor::{DType, Error, Format, FormatKind, PlainRowMut, PlainWeight, Result, Tensor};
use smallvec::SmallVec;

use crate::{Buffer, Cpu, backend::check_indices, memory::Memory, packed::PackedWeight};

/// Bytes of weights, weighed by tokens, that are worth a task of their own.
const TASK_BYTES: usize = 1 << 15;

/// Tasks of a thread: the more, the less the last one to finish keeps the others waiting.
const TASKS: usize = 16;

/// Panels that kernels take at once where there are many tokens.
const PANELS: usize = 2;

/// Activations to quantise that are worth a task of their own.
const TASK_VALUES: usize = 1 << 14;

/// Rows of an embedding in a task.
const ROWS: usize = 16;

/// `x [m, k]` times the transpose of each weight, as `[m, rows]` each.
pub(crate) fn linears<const N: usize>(
    cpu: &Cpu,
    x: &Tensor<Cpu>,
    weights: [&PackedWeight; N],
) -> Result<[Tensor<Cpu>; N]> {
    let (m, k) = (x.dims()[0], x.dims()[1]);
    if k == 0 {
        return Err(Error::shape("dot", "an empty contraction"));
    }
    let values = x.data().f32("linear")?;
    let mut inputs = SmallVec::<[Input; 2]>::new();
    let served = weights.map(|weight| {
        inputs.iter().position(|input| input.serves(weight.format())).unwrap_or_else(|| {
            inputs.push(cpu.inputs().of(cpu, values, m, k, weight.format()));
            inputs.len() - 1
        })
    });
    let mut outs = weights.map(|weight| cpu.memory().elements(m * weight.rows()));
    let (share, mut each) = (share(cpu, &weights, m), weights.iter());
    let mut matrices = outs.each_mut().map(|out| {
        let weight = each.next().expect("a weight for each result");
        (MatrixMut::new(out.as_mut_slice(), m, weight.rows()), LANES * panels(weight, share, m))
    });
    cpu.threads().each(Bands::new(&mut matrices), |_, band| {
        let (weight, input) = (weights[band.matrix], &inputs[served[band.matrix]]);
        let panels = band.cols.start / LANES..band.cols.end.div_ceil(LANES);
        input.times(cpu, weight, panels, band.out);
    });
    cpu.inputs().give(inputs);
    let mut each = weights.iter();
    Ok(outs.map(|out| {
        let weight = each.next().expect("a weight for each result");
        cpu.tensor([m, weight.rows()], out)
    }))
}

/// Bytes of weights of a task.
fn share(cpu: &Cpu, weights: &[&PackedWeight], m: usize) -> usize {
    let total: usize = weights.iter().map(|weight| weight.bytes()).sum();
    match cpu.threads().count() {
        1 => usize::MAX,
        threads => (total / (TASKS * threads)).max(TASK_BYTES / (1 + m / 4)),
    }
}

/// Panels of a task of about `share` bytes.
fn panels(weight: &PackedWeight, share: usize, m: usize) -> usize {
    let panels = (share / weight.panel_bytes().max(1)).clamp(1, weight.panels().max(1));
    if m < PANELS { panels } else { panels.next_multiple_of(PANELS) }
}

/// Inputs whose memory waits for the next layer.
#[derive(Default)]
pub(crate) struct Inputs {
    spare: Mutex<Vec<Input>>,
}

/// One activation, quantised or rounded for a kind of weight.
struct Input {
    format: Format,
    blocks: Activations,
    floats: Floats,
}

impl Inputs {
    fn of(&self, cpu: &Cpu, x: &[f32], m: usize, k: usize, format: Format) -> Input {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut input = spare.unwrap_or(Input { format, blocks: Activations::new(), floats: Floats::new() });
        input.format = format;
        let tokens = (TASK_VALUES / k).max(m.div_ceil(4 * cpu.threads().count()));
        if format.is_quantized() {
            input.blocks.reset(cpu.isa(), m, k, format);
            cpu.threads().each(input.blocks.pieces(x, tokens), |_, piece| piece.quantize(cpu.isa()));
        } else {
            input.floats.reset(cpu.isa(), m, k, format);
            cpu.threads().each(input.floats.pieces(x, tokens), |_, piece| piece.round(cpu.isa()));
        }
        input
    }

    fn give(&self, inputs: impl IntoIterator<Item = Input>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).extend(inputs);
    }
}

impl Input {
    fn serves(&self, format: Format) -> bool {
        if self.format.is_quantized() { self.blocks.serve(format) } else { self.format == format }
    }

    /// The columns of the product that some panels give.
    fn times(&self, cpu: &Cpu, weight: &PackedWeight, panels: Range<usize>, out: MatrixMut<'_>) {
        if self.format.is_quantized() {
            linear_blocks(cpu.isa(), &weight.layout(), weight.panel_range(panels), &self.blocks, out);
        } else {
            linear_dense(cpu.isa(), weight.dense(panels), &self.floats, out);
        }
    }
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
