//! Linear layers over weights in blocks, whose kernels are in `linear_32.cu` and `linear_256.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{
    Backend, DType, FeedForward, Format, FormatKind, Input, Result, Shape, Tensor, Weight, decompose, try_map,
};

use crate::{Buffer, Cuda, driver::Grid, layout::extent, weight::Held};

/// Columns whose integers lie together.
const UNIT: usize = 32;

/// Threads of a block.
pub(crate) const THREADS: u32 = 128;

/// Rows of a tile of matrix instructions, and tokens where these are of int8 and of bf16.
const ROWS: usize = 64;
const TOKENS: usize = 64;
const TOKENS_BF16: usize = 32;

/// Compute capabilities whose matrix instructions of int8 are slow beside those of bf16: the B300's.
const SLOW_INT8: [(i32, i32); 1] = [(10, 3)];

/// Kernels that read weights once for a few tokens: tokens and rows of a block.
pub(crate) const FEW: [(usize, usize); 2] = [(1, 16), (8, 8)];

/// Tokens that these take at most where tiles would not fill a device, and tiles that do: two for each multiprocessor of an H100.
const FEW_MAX: usize = 32;
const FILLED: usize = 264;

/// The kernels of a format.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Of [`FEW`].
    few: [&'static str; 2],
    many: &'static str,
    many_bf16: &'static str,
    /// Of experts, for a few pairs and for groups of them.
    pub(crate) experts: [&'static str; 2],
    pub(crate) embedding: &'static str,
}

macro_rules! kernels {
    ($name:literal) => {
        Kernels {
            few: [concat!("linear_", $name, "_1"), concat!("linear_", $name, "_8")],
            many: concat!("linear_", $name, "_many"),
            many_bf16: concat!("linear_", $name, "_bf16"),
            experts: [concat!("experts_", $name, "_few"), concat!("experts_", $name, "_many")],
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
pub(crate) struct Quantized {
    pub(crate) block_len: usize,
    pub(crate) q: Tensor<Cuda>,
    pub(crate) scale: Tensor<Cuda>,
    /// What kernels made of it for others, by their names.
    derived: Vec<(&'static str, Buffer)>,
}

impl Cuda {
    /// An input `[m, k]` times the transpose of each weight; see [`decompose::linear`]. It is quantised once for each length of
    /// block.
    pub(crate) fn products<const N: usize>(
        &self,
        x: Input<'_, Self>,
        weights: [&Weight<Self>; N],
    ) -> Result<[Tensor<Self>; N]> {
        if let Some(blas) = self.fast(x.x.dims()[0], &weights) {
            return self.fast_products(blas, x, weights);
        }
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
        if let Some(blas) = self.fast(x.x.dims()[0], &[layer.gate, layer.up, layer.down]) {
            return self.fast_feed_forward(blas, x, layer);
        }
        if !has_blocks(layer.down, layer.gate.rows()) {
            return decompose::feed_forward(x, layer);
        }
        let [gate, up] = self.products(x, [layer.gate, layer.up])?;
        let block_len = layer.down.format().block_len();
        let (q, scale) = self.quantize_glu(&gate, &up, layer.activation, block_len)?;
        self.product(&mut Quantized::new(block_len, q, scale), layer.down)
    }

    pub(crate) fn quantized(&self, x: Input<'_, Self>, weight: &Weight<Self>) -> Result<Quantized> {
        let block_len = weight.format().block_len();
        let (q, scale) = self.quantize(x, block_len)?;
        Ok(Quantized::new(block_len, q, scale))
    }

    fn product(&self, x: &mut Quantized, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        let (op, m, n, k) = ("linear", x.q.dims()[0], weight.rows(), weight.cols());
        let Held::Blocks(blocks) = &weight.packed().held else { unreachable!("a weight of blocks") };
        let shape = Shape::from([m, n]);
        let out = self.room(op, &shape, DType::F32)?;
        let Choice { kernel, rows, tokens, inputs } = self.choose(x, blocks.format(), m, n)?;
        let mut arguments = vec![out.argument()];
        arguments.extend(inputs.iter().map(|input| input.as_ref().map_or(bytes_of(&0u64), Buffer::argument)));
        arguments.extend(blocks.arguments());
        let extents = [extent(op, m)?, extent(op, n)?, extent(op, k)?];
        arguments.extend(extents.iter().map(bytes_of));
        let grid = (extent(op, n.div_ceil(rows))?, extent(op, m.div_ceil(tokens))?);
        self.launch(kernel, Grid { blocks: grid, threads: THREADS, shared: 0 }, &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }

    /// The kernel for `m` tokens and `n` rows.
    fn choose(&self, x: &mut Quantized, format: Format, m: usize, n: usize) -> Result<Choice> {
        let kernels = Kernels::of(format);
        if m <= FEW[1].0 || m <= FEW_MAX && n.div_ceil(ROWS) < FILLED {
            let few = usize::from(m > 1);
            let (tokens, rows) = FEW[few];
            let inputs = [&x.q, &x.scale].map(|part| Some(part.data().clone())).into();
            return Ok(Choice { kernel: kernels.few[few], rows, tokens, inputs });
        }
        if SLOW_INT8.contains(&self.shared.capability) {
            let inputs = x.of_tiles_bf16(self, format)?;
            return Ok(Choice { kernel: kernels.many_bf16, rows: ROWS, tokens: TOKENS_BF16, inputs });
        }
        let [q, d, sums] = x.of_tiles(self, format)?;
        let inputs = vec![q, d, None, sums];
        Ok(Choice { kernel: kernels.many, rows: ROWS, tokens: TOKENS, inputs })
    }
}

/// A kernel for a layer.
struct Choice {
    kernel: &'static str,
    /// Rows and tokens of a block.
    rows: usize,
    tokens: usize,
    /// What it takes of the activation.
    inputs: Vec<Option<Buffer>>,
}

/// A kernel that makes something of a quantised activation.
struct Derived {
    kernel: &'static str,
    /// Values of the activation for each thread.
    values: usize,
    /// Bytes that a thread writes.
    bytes: usize,
}

const PAIRS: Derived = Derived { kernel: "linear_sums_32", values: UNIT, bytes: 8 };
const SUMS_16: Derived = Derived { kernel: "linear_sums_256_16", values: UNIT, bytes: 4 };
const SUMS_32: Derived = Derived { kernel: "linear_sums_256_32", values: UNIT, bytes: 2 };
const TOTALS_16: Derived = Derived { kernel: "linear_totals_16", values: UNIT, bytes: 8 };
const TOTALS_32: Derived = Derived { kernel: "linear_totals_32", values: UNIT, bytes: 4 };
const BF16: Derived = Derived { kernel: "linear_bf16", values: 2, bytes: 4 };

impl Quantized {
    pub(crate) fn new(block_len: usize, q: Tensor<Cuda>, scale: Tensor<Cuda>) -> Self {
        Quantized { block_len, q, scale, derived: vec![] }
    }

    /// What tiles of a format's weights take: values, scales or pairs of a scale and a sum, and sums for minima of sub-blocks.
    pub(crate) fn of_tiles(&mut self, cuda: &Cuda, format: Format) -> Result<[Option<Buffer>; 3]> {
        let has_min = matches!(
            format.kind(),
            FormatKind::Blocks32 { min: true } | FormatKind::Blocks256 { min: true, .. }
        );
        let is_paired = has_min && self.block_len == UNIT;
        let d = if is_paired { self.derived(cuda, &PAIRS)? } else { self.scale.data().clone() };
        let sums =
            (has_min && !is_paired).then(|| self.derived(cuda, by_sub_len(format, [&SUMS_16, &SUMS_32])));
        Ok([Some(self.q.data().clone()), Some(d), sums.transpose()?])
    }

    /// The same for products of bf16, with the totals of sub-blocks before the sums for minima.
    fn of_tiles_bf16(&mut self, cuda: &Cuda, format: Format) -> Result<Vec<Option<Buffer>>> {
        let [_, d, sums] = self.of_tiles(cuda, format)?;
        let is_paired = self.block_len == UNIT;
        let d = if is_paired { Some(self.derived(cuda, &PAIRS)?) } else { d };
        let totals = (!is_paired)
            .then(|| self.derived(cuda, by_sub_len(format, [&TOTALS_16, &TOTALS_32])))
            .transpose()?;
        Ok(vec![Some(self.derived(cuda, &BF16)?), d, totals, sums])
    }

    /// What a kernel makes of it, once.
    fn derived(&mut self, cuda: &Cuda, how: &Derived) -> Result<Buffer> {
        if let Some((_, made)) = self.derived.iter().find(|(kernel, _)| *kernel == how.kernel) {
            return Ok(made.clone());
        }
        let (op, work) = ("linear", self.q.shape().elements() / how.values);
        let out = cuda.buffer(op, work * how.bytes)?;
        let count = extent(op, work)?;
        let mut arguments = vec![out.argument(), self.q.data().argument()];
        if how.kernel == PAIRS.kernel {
            arguments.push(self.scale.data().argument());
        }
        arguments.push(bytes_of(&count));
        cuda.launch(how.kernel, cuda.each(work), &arguments, self.q.shape())?;
        self.derived.push((how.kernel, out.clone()));
        Ok(out)
    }
}

/// The kernel for sub-blocks of 16 columns, or that for those of 32.
fn by_sub_len(format: Format, kernels: [&'static Derived; 2]) -> &'static Derived {
    let is_unit = !matches!(format.kind(), FormatKind::Blocks256 { sub_len, .. } if sub_len < UNIT);
    kernels[usize::from(is_unit)]
}

/// Whether a weight is of blocks, and takes rows of `k`.
fn has_blocks(weight: &Weight<Cuda>, k: usize) -> bool {
    weight.format().is_quantized() && weight.cols() == k && k > 0
}
