//! Linear layers over weights in blocks, whose kernels are in `linear_32.cu` and `linear_256.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{
    Backend, DType, FeedForward, Format, FormatKind, Input, Result, Shape, Tensor, Weight, decompose, try_map,
};

use crate::{Buffer, Cuda, driver::Grid, layout::extent, weight::Held};

/// Columns whose integers lie together.
const UNIT: usize = 32;

/// Threads of a block.
const THREADS: u32 = 128;

/// Rows and tokens of a tile of matrix instructions.
const TILE: (usize, usize) = (64, 64);

/// Kernels that read each weight once: the tokens that they take at most, and rows of a block.
const FEW: [(usize, usize); 2] = [(1, 16), (8, 8)];

/// The kernels of a format.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Of [`FEW`].
    few: [&'static str; 2],
    many: &'static str,
    pub(crate) embedding: &'static str,
}

macro_rules! kernels {
    ($name:literal) => {
        Kernels {
            few: [concat!("linear_", $name, "_1"), concat!("linear_", $name, "_8")],
            many: concat!("linear_", $name, "_many"),
            embedding: concat!("embedding_", $name),
        }
    };
}

impl Kernels {
    /// Of a format with blocks.
    pub(crate) fn of(format: Format) -> Kernels {
        match format {
            Format::F32 | Format::F16 | Format::BF16 => unreachable!("a format with blocks"),
            Format::Q4_0 => kernels!("q4_0"),
            Format::Q4_1 => kernels!("q4_1"),
            Format::Q5_0 => kernels!("q5_0"),
            Format::Q5_1 => kernels!("q5_1"),
            Format::Q8_0 => kernels!("q8_0"),
            Format::Q2K => kernels!("q2_k"),
            Format::Q3K => kernels!("q3_k"),
            Format::Q4K => kernels!("q4_k"),
            Format::Q5K => kernels!("q5_k"),
            Format::Q6K => kernels!("q6_k"),
            Format::Iq4Nl => kernels!("iq4_nl"),
            Format::Mxfp4 => kernels!("mxfp4"),
        }
    }
}

/// A quantised activation `[m, k]`: int8 values, and a scale for each block.
struct Quantized {
    block_len: usize,
    q: Tensor<Cuda>,
    scale: Tensor<Cuda>,
    /// What `many` takes of it for formats with minima, by the columns of a sum.
    sums: Vec<(usize, Buffer)>,
}

impl Cuda {
    /// An input `[m, k]` times the transpose of each weight; see [`decompose::linear`]. It is quantised once for each length of
    /// block.
    pub(crate) fn products<const N: usize>(
        &self,
        x: Input<'_, Self>,
        weights: [&Weight<Self>; N],
    ) -> Result<[Tensor<Self>; N]> {
        if !weights.iter().all(|weight| has_blocks(weight, x.x.dims()[1])) {
            let x = x.rows()?;
            return try_map(weights, |weight| {
                if has_blocks(weight, x.dims()[1]) {
                    let mut x = self.quantized(Input::from(&x), weight)?;
                    return self.product(&mut x, weight);
                }
                match &weight.packed().held {
                    Held::Dense(weight) => self.dense_product(&x, weight),
                    Held::Blocks(_) => decompose::linear(&x, &self.plain(weight)?),
                }
            });
        }
        let mut inputs: Vec<Quantized> = Vec::with_capacity(1);
        try_map(weights, |weight| {
            let of = |input: &Quantized| input.block_len == weight.format().block_len();
            let input = match inputs.iter().position(of) {
                Some(input) => input,
                None => {
                    inputs.push(self.quantized(x, weight)?);
                    inputs.len() - 1
                }
            };
            self.product(&mut inputs[input], weight)
        })
    }

    /// See [`decompose::feed_forward`]. The product of gate and up is quantised as it is computed.
    pub(crate) fn gated(&self, x: Input<'_, Self>, layer: FeedForward<'_, Self>) -> Result<Tensor<Self>> {
        if !has_blocks(layer.down, layer.gate.rows()) {
            return decompose::feed_forward(x, layer);
        }
        let [gate, up] = self.products(x, [layer.gate, layer.up])?;
        let block_len = layer.down.format().block_len();
        let (q, scale) = self.quantize_glu(&gate, &up, layer.activation, block_len)?;
        self.product(&mut Quantized { block_len, q, scale, sums: vec![] }, layer.down)
    }

    fn quantized(&self, x: Input<'_, Self>, weight: &Weight<Self>) -> Result<Quantized> {
        let block_len = weight.format().block_len();
        let (q, scale) = self.quantize(x, block_len)?;
        Ok(Quantized { block_len, q, scale, sums: vec![] })
    }

    fn product(&self, x: &mut Quantized, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        let (op, m, n, k) = ("linear", x.q.dims()[0], weight.rows(), weight.cols());
        let Held::Blocks(blocks) = &weight.packed().held else { unreachable!("a weight of blocks") };
        let kernels = Kernels::of(blocks.format());
        let shape = Shape::from([m, n]);
        let out = self.room(op, &shape, DType::F32)?;
        let few = FEW.iter().position(|&(most, _)| m <= most);
        let sums = if few.is_none() { self.sums(x, blocks.format())? } else { None };
        let mut arguments = vec![out.argument(), x.q.data().argument()];
        let (kernel, (rows, tokens)) = match few {
            Some(i) => {
                arguments.push(x.scale.data().argument());
                (kernels.few[i], (FEW[i].1, FEW[i].0))
            }
            None => {
                let sums = sums.as_ref().map_or(bytes_of(&0u64), Buffer::argument);
                let has_pairs = x.block_len == 32 && sums != bytes_of(&0u64);
                arguments.extend([if has_pairs { sums } else { x.scale.data().argument() }, sums]);
                (kernels.many, TILE)
            }
        };
        arguments.extend(blocks.arguments());
        let extents = [extent(op, m)?, extent(op, n)?, extent(op, k)?];
        arguments.extend(extents.iter().map(bytes_of));
        let grid = (extent(op, n.div_ceil(rows))?, extent(op, m.div_ceil(tokens))?);
        self.launch(kernel, Grid { blocks: grid, threads: THREADS, shared: 0 }, &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }

    /// What a format with minima takes of an activation: see `linear_sums_32` and its like.
    fn sums(&self, x: &mut Quantized, format: Format) -> Result<Option<Buffer>> {
        let op = "linear";
        let units = x.q.shape().elements() / UNIT;
        let (kernel, len, bytes) = match format.kind() {
            FormatKind::Blocks32 { min: true } => ("linear_sums_32", 32, 8),
            FormatKind::Blocks256 { sub_len: 16, min: true } => ("linear_sums_256_16", 16, 4),
            FormatKind::Blocks256 { min: true, .. } => ("linear_sums_256_32", 32, 2),
            _ => return Ok(None),
        };
        if let Some((_, sums)) = x.sums.iter().find(|(of, _)| *of == len) {
            return Ok(Some(sums.clone()));
        }
        let out = self.buffer(op, units * bytes)?;
        let count = extent(op, units)?;
        let mut arguments = vec![out.argument(), x.q.data().argument()];
        if x.block_len == UNIT {
            arguments.push(x.scale.data().argument());
        }
        arguments.push(bytes_of(&count));
        self.launch(kernel, self.each(units), &arguments, x.q.shape())?;
        x.sums.push((len, out.clone()));
        Ok(Some(out))
    }
}

/// Whether a weight is of blocks, and takes rows of `k`.
fn has_blocks(weight: &Weight<Cuda>, k: usize) -> bool {
    weight.format().is_quantized() && weight.cols() == k && k > 0
}
