//! Linear layers over weights in blocks, whose kernels are in `linear.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{DType, PlainWeight, Result, Shape, Tensor, decompose};

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

impl Cuda {
    /// `x [m, k]` times the transpose of a weight; see [`decompose::linear`].
    pub(crate) fn product(&self, x: &Tensor<Self>, weight: &PlainWeight<Self>) -> Result<Tensor<Self>> {
        let (n, k) = weight.dims();
        let (kernels, parts) = match weight {
            PlainWeight::Dense(_) => return decompose::linear(x, weight),
            PlainWeight::Blocks32 { q, scale, min: None } => {
                (kernels!("linear_32", 64), [Some(q), Some(scale), None, None, None])
            }
            PlainWeight::Blocks32 { q, scale, min: Some(min) } => {
                (kernels!("linear_32_min", 64), [Some(q), Some(scale), Some(min), None, None])
            }
            PlainWeight::Blocks256 { q, scale, sub_scale, min: None } => {
                (kernels!("linear_256_16", 32), [Some(q), Some(scale), None, Some(sub_scale), None])
            }
            PlainWeight::Blocks256 { q, scale, sub_scale, min: Some((min, sub_min)) } => {
                let kernels = match k / sub_min.dims()[1].max(1) {
                    16 => kernels!("linear_256_16_min", 32),
                    _ => kernels!("linear_256_32_min", 32),
                };
                (kernels, [Some(q), Some(scale), Some(min), Some(sub_scale), Some(sub_min)])
            }
        };
        let m = x.dims()[0];
        if k == 0 || x.dims()[1] != k {
            return decompose::linear(x, weight);
        }
        let block_len = if matches!(weight, PlainWeight::Blocks32 { .. }) { 32 } else { 256 };
        let (xq, d) = self.quantize(x, block_len)?;
        let (op, shape) = ("linear", Shape::from([m, n]));
        let (kernel, grid) = kernels.of(m, n)?;
        let out = self.room(op, &shape, DType::F32)?;
        let mut arguments = vec![out.argument(), xq.data().argument(), d.data().argument()];
        arguments.extend(parts.map(|part| part.map_or(bytes_of(&0u64), |part| part.data().argument())));
        let extents = [extent(op, m)?, extent(op, n)?, extent(op, k)?];
        arguments.extend(extents.iter().map(bytes_of));
        self.launch(kernel, grid, &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }
}

impl Kernels {
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
        Ok((kernel, Grid { blocks, threads: THREADS }))
    }
}
