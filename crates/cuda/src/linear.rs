//! Linear layers over weights in blocks, whose kernels are in `linear.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{
    Backend, DType, FeedForward, Input, PlainWeight, Result, Shape, Tensor, Weight, decompose, try_map,
};

use crate::{Cuda, driver::Grid, layout::extent};

/// Threads of a block.
const THREADS: u32 = 128;

/// Rows of a tile of matrix instructions.
const ROWS: usize = 64;

/// Pairs of a row and a token of a block that reads each weight once.
const PAIRS: usize = 16;

/// Tokens from which on a layer is a product of matrices.
const MANY: usize = 9;

/// The kernels of one kind of weight.
struct Kernels {
    /// By the tokens that a block takes at most: 1, 2, 4, 8.
    few: [&'static str; 4],
    many: &'static str,
    /// Tokens of a tile of `many`.
    tokens: usize,
}

macro_rules! kernels {
    ($name:literal, $tokens:literal) => {
        Kernels {
            few: [concat!($name, "_1"), concat!($name, "_2"), concat!($name, "_4"), concat!($name, "_8")],
            many: concat!($name, "_many"),
            tokens: $tokens,
        }
    };
}

/// A quantised activation `[m, k]`: int8 values, and a scale for each block.
struct Quantized {
    block_len: usize,
    q: Tensor<Cuda>,
    scale: Tensor<Cuda>,
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
                    let x = self.quantized(Input::from(&x), weight)?;
                    return self.product(&x, weight);
                }
                match self.plain(weight)? {
                    PlainWeight::Dense(weight) => self.dense_product(&x, &weight),
                    plain => decompose::linear(&x, &plain),
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
            self.product(&inputs[input], weight)
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
        self.product(&Quantized { block_len, q, scale }, layer.down)
    }

    fn quantized(&self, x: Input<'_, Self>, weight: &Weight<Self>) -> Result<Quantized> {
        let block_len = weight.format().block_len();
        let (q, scale) = self.quantize(x, block_len)?;
        Ok(Quantized { block_len, q, scale })
    }

    fn product(&self, x: &Quantized, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        let (op, m, n, k) = ("linear", x.q.dims()[0], weight.rows(), weight.cols());
        let (kernels, parts) = Kernels::and_parts(weight.packed().plain());
        let (kernel, grid) = kernels.of(m, n)?;
        let shape = Shape::from([m, n]);
        let out = self.room(op, &shape, DType::F32)?;
        let mut arguments = vec![out.argument(), x.q.data().argument(), x.scale.data().argument()];
        arguments.extend(parts.map(|part| part.map_or(bytes_of(&0u64), |part| part.data().argument())));
        let extents = [extent(op, m)?, extent(op, n)?, extent(op, k)?];
        arguments.extend(extents.iter().map(bytes_of));
        self.launch(kernel, grid, &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }
}

/// Whether a weight is of blocks, and takes rows of `k`.
fn has_blocks(weight: &Weight<Cuda>, k: usize) -> bool {
    weight.format().is_quantized() && weight.cols() == k && k > 0
}

impl Kernels {
    /// The kernels for a weight, and what they take of it.
    fn and_parts(weight: &PlainWeight<Cuda>) -> (Kernels, [Option<&Tensor<Cuda>>; 5]) {
        match weight {
            PlainWeight::Dense(_) => unreachable!("a weight of blocks"),
            PlainWeight::Blocks32 { q, scale, min } => {
                let kernels =
                    if min.is_some() { kernels!("linear_32_min", 64) } else { kernels!("linear_32", 64) };
                (kernels, [Some(q), Some(scale), min.as_ref(), None, None])
            }
            PlainWeight::Blocks256 { q, scale, sub_scale, min } => {
                let kernels = match (min, q.dims()[1] / sub_scale.dims()[1].max(1)) {
                    (None, _) => kernels!("linear_256_16", 32),
                    (Some(_), 16) => kernels!("linear_256_16_min", 32),
                    (Some(_), _) => kernels!("linear_256_32_min", 32),
                };
                let (min, sub_min) = min.as_ref().map(|(min, sub_min)| (min, sub_min)).unzip();
                (kernels, [Some(q), Some(scale), min, Some(sub_scale), sub_min])
            }
        }
    }

    /// The kernel for `m` tokens and `n` rows, and its blocks.
    fn of(&self, m: usize, n: usize) -> Result<(&'static str, Grid)> {
        let (kernel, rows, tokens) = match m {
            MANY.. => (self.many, ROWS, self.tokens),
            few => {
                let most = few.max(1).next_power_of_two();
                (self.few[most.ilog2() as usize], PAIRS / most, most)
            }
        };
        let blocks = (extent("linear", n.div_ceil(rows))?, extent("linear", m.div_ceil(tokens))?);
        Ok((kernel, Grid { blocks, threads: THREADS, shared: 0 }))
    }
}
