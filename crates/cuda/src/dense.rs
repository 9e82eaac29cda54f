//! Linear layers over float weights, whose kernels are in `dense.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{DType, PlainWeight, Result, Shape, Tensor, decompose};

use crate::{Cuda, driver::Grid, layout::extent};

const OP: &str = "linear";

/// Threads of a block, and of a warp.
const THREADS: u32 = 128;
pub(crate) const WARP: usize = 32;

/// Columns that are read at once.
pub(crate) const EACH: usize = 8;

/// Rows and tokens of a block that computes many.
const SIDE: usize = 64;

/// Tokens from which on a layer is a product of matrices.
const MANY: usize = 9;

/// The kernels of one type of weights.
struct Kernels {
    operands: &'static str,
    /// By the tokens that a block takes at most: 1, 2, 4, 8.
    few: [&'static str; 4],
    many: &'static str,
    /// Of experts, for a few pairs and for groups of them.
    experts: [&'static str; 2],
}

macro_rules! kernels {
    ($name:literal) => {
        Kernels {
            operands: concat!("dense_operands_", $name),
            few: [
                concat!("dense_", $name, "_1"),
                concat!("dense_", $name, "_2"),
                concat!("dense_", $name, "_4"),
                concat!("dense_", $name, "_8"),
            ],
            many: concat!("dense_", $name, "_many"),
            experts: [concat!("experts_", $name, "_few"), concat!("experts_", $name, "_many")],
        }
    };
}

impl Cuda {
    /// `x [m, k]` times the transpose of float weights `[n, k]`; see [`decompose::linear`].
    pub(crate) fn dense_product(&self, x: &Tensor<Self>, weight: &Tensor<Self>) -> Result<Tensor<Self>> {
        let (m, n, k) = (x.dims()[0], weight.dims()[0], weight.dims()[1]);
        if x.dims()[1] != k || k == 0 || !k.is_multiple_of(EACH) {
            return decompose::linear(x, &PlainWeight::Dense(weight.clone()));
        }
        let kernels = Kernels::of_type(weight.dtype());
        let operands = self.dense_operands(x, weight.dtype())?;
        let shape = Shape::from([m, n]);
        let out = self.room(OP, &shape, DType::F32)?;
        let (kernel, grid) = kernels.of(m, n)?;
        let extents = [extent(OP, m)?, extent(OP, n)?, extent(OP, k)?];
        let tensors = [out.argument(), operands.data().argument(), weight.data().argument()];
        let arguments: Vec<&[u8]> = tensors.into_iter().chain(extents.iter().map(bytes_of)).collect();
        self.launch(kernel, grid, &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }

    /// Activations as weights of a type take them: rounded to it, and without what is tiny.
    pub(crate) fn dense_operands(&self, x: &Tensor<Self>, dtype: DType) -> Result<Tensor<Self>> {
        Ok(self.floats(x.shape(), self.mapped(Kernels::of_type(dtype).operands, &[x], DType::F32, &[])?))
    }
}

/// The kernels of experts for weights of a type: for a few pairs, and for groups of them.
pub(crate) fn of_experts(dtype: DType) -> [&'static str; 2] {
    Kernels::of_type(dtype).experts
}

impl Kernels {
    fn of_type(dtype: DType) -> Self {
        match dtype {
            DType::F16 => kernels!("f16"),
            DType::BF16 => kernels!("bf16"),
            _ => kernels!("f32"),
        }
    }

    /// The kernel for `m` tokens and `n` rows, and its blocks.
    fn of(&self, m: usize, n: usize) -> Result<(&'static str, Grid)> {
        let grid = |rows: usize, tokens: usize, shared: usize| -> Result<Grid> {
            let blocks = (extent(OP, n.div_ceil(rows))?, extent(OP, m.div_ceil(tokens))?);
            Ok(Grid { blocks, threads: THREADS, shared: extent(OP, shared)? })
        };
        if m >= MANY {
            return Ok((self.many, grid(SIDE, SIDE, 0)?));
        }
        let most = m.max(1).next_power_of_two();
        Ok((self.few[most.ilog2() as usize], grid(WARP, most, shared_bytes(most))?))
    }
}

/// Bytes of `Shared` in `dense.cu`.
pub(crate) fn shared_bytes(tokens: usize) -> usize {
    let (warps, stages, pitch, spans) = (4, 3, 144, 16);
    warps * stages * WARP * pitch + spans * tokens * WARP * size_of::<f32>()
}
