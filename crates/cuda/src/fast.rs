//! Linear layers that are not exact: products of many tokens in bf16 by cuBLASLt.

use bytemuck::bytes_of;
use samebits_tensor::{
    Backend, DType, Error, FeedForward, Format, Input, Result, Shape, Tensor, Weight, contract, decompose,
    try_map,
};

use crate::{
    Buffer, Cuda, NAME,
    blas::{Blas, BlasError, Extents, Operands},
    driver::Grid,
    error::words,
    layout::extent,
    weight::{Blocks, Held},
};

/// How linear layers are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Numerics {
    /// As the contract says: the same bits everywhere.
    #[default]
    Exact,
    /// Steps of more than [`FAST_FROM`] tokens, or [`FAST_FROM_OF_BLOCKS`] where weights are in blocks, multiply in bf16 (TF32 where weights
    /// are F32) through cuBLASLt. No bits are promised: they depend on the device, the library's version, and on what else is in a
    /// step.
    Fast,
}

/// Version of what [`Numerics::Fast`] computes, part of its name.
pub const FAST_VERSION: u32 = 1;

/// Tokens of a step whose products with float weights are still exact, by kernels that memory limits.
pub const FAST_FROM: usize = 64;

/// The same of weights in blocks, which have to be unpacked to memory first. Reckoned and not measured: docs/cuda.md.
pub const FAST_FROM_OF_BLOCKS: usize = 256;

/// Bytes of weights that are unpacked at once.
pub(crate) const SCRATCH_BYTES: usize = 64 << 20;

/// Rows whose number keeps what follows aligned for cuBLASLt.
const ROWS: usize = 64;

/// Threads that unpack a row.
const THREADS: u32 = 128;

const OP: &str = "linear";

/// An input as products take it, made once for each type.
struct Rows {
    x: Tensor<Cuda>,
    bf16: Option<Buffer>,
}

/// The name of the results.
pub(crate) fn name(blas: &Blas, (major, minor): (i32, i32)) -> String {
    format!("fast-{FAST_VERSION}+{}+cublaslt-{}+sm_{major}{minor}", contract::exact(), blas.version())
}

impl Cuda {
    /// The library, where products of so many tokens with these weights are not exact.
    pub(crate) fn fast(&self, tokens: usize, weights: &[&Weight<Self>]) -> Option<&Blas> {
        let from = |weight: &&Weight<Self>| match weight.format().is_quantized() {
            true => FAST_FROM_OF_BLOCKS,
            false => FAST_FROM,
        };
        self.shared.blas.as_ref().filter(|_| weights.iter().all(|weight| tokens > from(weight)))
    }

    /// Whether a step of so many tokens may have products that are not exact.
    pub(crate) fn may_be_fast(&self, tokens: usize) -> bool {
        self.shared.blas.is_some() && tokens > FAST_FROM
    }

    /// Several linear layers of one input.
    pub(crate) fn fast_products<const N: usize>(
        &self,
        blas: &Blas,
        x: Input<'_, Self>,
        weights: [&Weight<Self>; N],
    ) -> Result<[Tensor<Self>; N]> {
        let mut x = Rows { x: x.rows()?, bf16: None };
        try_map(weights, |weight| self.fast_product(blas, &mut x, weight))
    }

    pub(crate) fn fast_feed_forward(
        &self,
        blas: &Blas,
        x: Input<'_, Self>,
        layer: FeedForward<'_, Self>,
    ) -> Result<Tensor<Self>> {
        let [gate, up] = self.fast_products(blas, x, [layer.gate, layer.up])?;
        let inner = gate.glu(&up, layer.activation)?;
        let [out] = self.fast_products(blas, Input::from(&inner), [layer.down])?;
        Ok(out)
    }

    fn fast_product(&self, blas: &Blas, x: &mut Rows, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        let (tokens, rows, columns) = (x.x.dims()[0], weight.rows(), weight.cols());
        if columns == 0 {
            return decompose::linear(&x.x, &self.plain(weight)?);
        }
        let shape = Shape::from([tokens, rows]);
        let out = self.room(OP, &shape, DType::F32)?;
        let whole = Extents { operands: Operands::Bf16, rows, tokens, columns, pitch: rows };
        match &weight.packed().held {
            Held::Dense(dense) if dense.dtype() == DType::F32 => {
                let of = Extents { operands: Operands::Tf32, ..whole };
                self.multiplied(blas, of, [dense.data(), x.x.data(), &out].map(Buffer::address))?;
            }
            Held::Dense(dense) if dense.dtype() == DType::BF16 => {
                self.multiplied(blas, whole, [dense.data(), x.bf16(self)?, &out].map(Buffer::address))?;
            }
            held => {
                let most = (blas.scratch_bytes() / (columns.max(1) * 2) / ROWS).max(1) * ROWS;
                for first in (0..rows).step_by(most) {
                    let of = Extents { rows: most.min(rows - first), ..whole };
                    self.unpack(blas, held, first, of)?;
                    let to = out.address() + (first * size_of::<f32>()) as u64;
                    self.multiplied(blas, of, [blas.scratch(), x.bf16(self)?.address(), to])?;
                }
            }
        }
        Ok(self.floats(&shape, out))
    }

    /// Writes rows of a weight to the scratch memory as bf16.
    fn unpack(&self, blas: &Blas, held: &Held, first: usize, of: Extents) -> Result<()> {
        let shape = Shape::from([of.rows, of.columns]);
        if of.rows * of.columns * 2 > blas.scratch_bytes() {
            let detail = format!("{shape} are more weights than {} bytes hold as bf16", blas.scratch_bytes());
            return Err(Error::Backend { backend: NAME.into(), op: OP, detail });
        }
        match held {
            Held::Blocks(blocks) => self.unpack_blocks(blas, blocks, first, of, &shape),
            Held::Dense(dense) => {
                let scratch = blas.scratch();
                let from = dense.data().after((first * of.columns * dense.dtype().size()) as u64);
                let count = (of.rows * of.columns) as u64;
                let arguments = [bytes_of(&scratch), from.argument(), bytes_of(&count)];
                self.launch("cast_f16_bf16", self.each(count.div_ceil(8) as usize), &arguments, &shape)
            }
        }
    }

    fn unpack_blocks(
        &self,
        blas: &Blas,
        blocks: &Blocks,
        first: usize,
        of: Extents,
        shape: &Shape,
    ) -> Result<()> {
        let (scratch, first, columns) = (blas.scratch(), extent(OP, first)?, extent(OP, of.columns)?);
        let mut arguments = vec![bytes_of(&scratch)];
        arguments.extend(blocks.arguments());
        arguments.extend([bytes_of(&first), bytes_of(&columns)]);
        let grid = Grid { blocks: (extent(OP, of.rows)?, 1), threads: THREADS, shared: 0 };
        self.launch(kernel(blocks.format()), grid, &arguments, shape)
    }

    #[allow(unsafe_code)]
    fn multiplied(&self, blas: &Blas, of: Extents, [weight, x, out]: [u64; 3]) -> Result<()> {
        if of.rows == 0 {
            return Ok(());
        }
        let shape = Shape::from([of.tokens, of.rows]);
        self.note("cublasLtMatmul", &shape);
        // SAFETY: the buffers have these extents, and memory is used again by later work of the stream alone.
        let done = unsafe { blas.multiply(of, weight, x, out) };
        done.map_err(|error| {
            let (call, detail) = match error {
                BlasError::Driver(error) => ("the driver", words(error)),
                BlasError::Library(call, detail) => (call, detail),
            };
            let detail = format!("{call} of {shape} from {} columns: {detail}", of.columns);
            Error::Backend { backend: NAME.into(), op: OP, detail }
        })
    }
}

impl Rows {
    fn bf16(&mut self, cuda: &Cuda) -> Result<&Buffer> {
        if self.bf16.is_none() {
            self.bf16 = Some(cuda.mapped("cast_f32_bf16", &[&self.x], DType::BF16, &[])?);
        }
        Ok(self.bf16.as_ref().expect("made above"))
    }
}

fn kernel(format: Format) -> &'static str {
    match format {
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("a format with blocks"),
        Format::Q4_0 => "unpack_q4_0",
        Format::Q4_1 => "unpack_q4_1",
        Format::Q5_0 => "unpack_q5_0",
        Format::Q5_1 => "unpack_q5_1",
        Format::Q8_0 => "unpack_q8_0",
        Format::Q2K => "unpack_q2_k",
        Format::Q3K => "unpack_q3_k",
        Format::Q4K => "unpack_q4_k",
        Format::Q5K => "unpack_q5_k",
        Format::Q6K => "unpack_q6_k",
        Format::Iq4Nl => "unpack_iq4_nl",
        Format::Mxfp4 => "unpack_mxfp4",
    }
}
