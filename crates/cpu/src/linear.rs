//! Linear layers and embeddings: which rows of which weight each thread computes.

use std::ops::Range;

use bytemuck::pod_collect_to_vec;
use half::{bf16, f16};
use samebits_kernels::cpu::{Activations, Floats, LANES, MatrixMut, linear_blocks, linear_dense};
use samebits_tensor::{DType, Error, Format, FormatKind, PlainWeight, Result, Tensor};

use crate::{
    Buffer, Cpu,
    backend::check_indices,
    packed::{PackedWeight, Parts},
};

/// Bytes of weights, weighed by tokens, that are worth a task of their own.
const TASK_BYTES: usize = 1 << 15;

/// Activations to quantise that are worth a task of their own.
const TASK_VALUES: usize = 1 << 14;

/// Rows of an embedding in a task.
const ROWS: usize = 16;

/// One activation, quantised or rounded once for each kind of weight that reads it.
enum Input {
    Blocks(Activations),
    Floats(Format, Floats),
}

impl Input {
    fn of(cpu: &Cpu, x: &[f32], m: usize, k: usize, format: Format) -> Self {
        if format.is_quantized() {
            let mut input = Activations::zeros(cpu.isa(), m, k, format);
            let pieces = input.pieces(x, (TASK_VALUES / k).max(m.div_ceil(4 * cpu.threads().count())));
            cpu.threads().each(pieces.collect(), |piece| piece.quantize(cpu.isa()));
            Input::Blocks(input)
        } else {
            Input::Floats(format, Floats::round(cpu.isa(), x, m, k, format))
        }
    }

    fn serves(&self, format: Format) -> bool {
        match self {
            Input::Blocks(x) => x.serve(format),
            Input::Floats(of, _) => *of == format,
        }
    }
}

/// Some panels of one weight, and the columns of its result that they give.
struct Task<'a> {
    weight: &'a PackedWeight,
    panels: Range<usize>,
    input: &'a Input,
    out: MatrixMut<'a>,
}

/// `x [m, k]` times the transpose of each weight, as `[m, rows]` each.
pub(crate) fn linears(cpu: &Cpu, x: &Tensor<Cpu>, weights: &[&PackedWeight]) -> Result<Vec<Tensor<Cpu>>> {
    let (m, k) = (x.dims()[0], x.dims()[1]);
    if k == 0 {
        return Err(Error::shape("dot", "an empty contraction"));
    }
    let values = x.data().f32("linear")?;
    let mut inputs: Vec<Input> = Vec::new();
    for weight in weights {
        if !inputs.iter().any(|input| input.serves(weight.format())) {
            inputs.push(Input::of(cpu, values, m, k, weight.format()));
        }
    }
    let mut outs: Vec<_> = weights.iter().map(|weight| vec![0.0; m * weight.rows()]).collect();
    let mut tasks = Vec::new();
    let total: usize = weights.iter().map(|weight| weight.bytes()).sum();
    let share = (total / (4 * cpu.threads().count())).max(TASK_BYTES / (1 + m / 4));
    for (weight, out) in weights.iter().zip(&mut outs) {
        let input = inputs.iter().find(|input| input.serves(weight.format()));
        let input = input.ok_or_else(|| Error::shape("linear", "no input"))?;
        cut(weight, input, MatrixMut::new(out, m, weight.rows()), share, &mut tasks);
    }
    cpu.threads().each(tasks, |task| run(cpu, task));
    let outs = outs.into_iter().zip(weights);
    Ok(outs.map(|(out, weight)| cpu.tensor([m, weight.rows()], out)).collect())
}

/// Cuts a weight into tasks of about `share` bytes.
fn cut<'a>(
    weight: &'a PackedWeight,
    input: &'a Input,
    mut out: MatrixMut<'a>,
    share: usize,
    tasks: &mut Vec<Task<'a>>,
) {
    let step = (share / weight.panel_bytes().max(1)).max(1);
    let mut panel = 0;
    while panel < weight.panels() {
        let end = (panel + step).min(weight.panels());
        let (piece, rest) = out.split_cols((end * LANES).min(weight.rows()) - panel * LANES);
        tasks.push(Task { weight, panels: panel..end, input, out: piece });
        (out, panel) = (rest, end);
    }
}

fn run(cpu: &Cpu, task: Task<'_>) {
    let Task { weight, panels, input, out } = task;
    match input {
        Input::Blocks(x) => linear_blocks(cpu.isa(), &weight.layout(), weight.panel_range(panels), x, out),
        Input::Floats(_, x) => linear_dense(cpu.isa(), weight.dense(panels), x, out),
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
    let mut out = vec![0.0; ids.len() * cols];
    if cols > 0 {
        let pieces: Vec<_> = out.chunks_mut(ROWS * cols).zip(ids.chunks(ROWS)).collect();
        cpu.threads().each(pieces, |(out, ids)| {
            out.chunks_exact_mut(cols).zip(ids).for_each(|(out, &id)| row(weight, id as usize, out));
        });
    }
    Ok(cpu.tensor([ids.len(), cols], out))
}

/// One row, dequantised in the contract's order.
fn row(weight: &PackedWeight, row: usize, out: &mut [f32]) {
    let (format, cols) = (weight.format(), weight.cols());
    if !format.is_quantized() {
        let mut bytes = vec![0; cols * format.block_bytes()];
        weight.dense_row(row, &mut bytes);
        return samebits_tensor::dequantize_row(format, &bytes, out);
    }
    let parts = Parts::of(format);
    let mut plain = parts.rows(1, cols);
    weight.block_row(row, &mut parts.row(&mut plain, 0, cols));
    let sub_len = match format.kind() {
        FormatKind::Blocks256 { sub_len, .. } => sub_len,
        _ => format.block_len(),
    };
    for (sub, (out, q)) in out.chunks_exact_mut(sub_len).zip(plain.q.chunks_exact(sub_len)).enumerate() {
        let block = sub * sub_len / format.block_len();
        let min = plain.min.as_ref().map(|min| min[block]);
        let sub_min = plain.sub_min.as_ref().map(|min| f32::from(min[sub]));
        let sub_scale = plain.sub_scale.as_ref().map(|scale| f32::from(scale[sub]));
        let scale = sub_scale.map_or(plain.scale[block], |sub_scale| plain.scale[block] * sub_scale);
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
