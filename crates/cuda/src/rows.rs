//! Fused operations whose kernels are in `rows.cu`, `reduce.cu` and `embedding.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{
    Activation, DType, Error, Heads, Input, KvCache, Result, RopeTable, Shape, Tensor, contract::SUM_LANES,
};

use crate::{
    Buffer, Cuda, PackedWeight, driver::Grid, indexed, layout::extent, linear::Kernels, weight::Held,
};

const WARP: usize = 32;

/// Threads of a block whose warps each have a piece of work.
const THREADS: u32 = 128;

/// A warp for each of `n` pieces of work.
fn warps(op: &'static str, n: usize) -> Result<Grid> {
    let blocks = extent(op, (n * WARP).div_ceil(THREADS as usize))?;
    Ok(Grid { blocks: (blocks, 1), threads: THREADS, shared: 0 })
}

/// A block for each row, whose threads are the lanes of its sum.
pub(crate) fn row_blocks(op: &'static str, rows: usize) -> Result<Grid> {
    Ok(Grid { blocks: (extent(op, rows)?, 1), threads: SUM_LANES as u32, shared: 0 })
}

impl Cuda {
    pub(crate) fn row_maxima(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        let op = "max_reduce";
        let kernel = if x.dtype() == DType::F32 { "max_rows_f32" } else { "max_rows_i32" };
        let out = self.room(op, shape, x.dtype())?;
        let (rows, columns) = (shape.elements(), x.dims().last().copied().unwrap_or(1));
        let (count, width) = (extent(op, rows)?, extent(op, columns)?);
        let arguments = [out.argument(), x.data().argument(), bytes_of(&count), bytes_of(&width)];
        self.launch(kernel, warps(op, rows)?, &arguments, shape)?;
        Ok(out)
    }

    pub(crate) fn exact_product(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        const TILE: usize = 32;
        let op = "matmul_exact";
        let kernel = match (a.dtype(), b.dtype()) {
            (DType::I8, DType::I8) => "matmul_i8_i8",
            (DType::I8, _) => "matmul_i8_u8",
            (_, DType::I8) => "matmul_u8_i8",
            _ => "matmul_u8_u8",
        };
        let (batch, rows, columns, inner) = (a.dims()[0], a.dims()[1], b.dims()[1], a.dims()[2]);
        let shape = Shape::from([batch, rows, columns]);
        let out = self.room(op, &shape, DType::I32)?;
        let blocks = extent(op, batch * rows.div_ceil(TILE) * columns.div_ceil(TILE))?;
        let (m, n, k) = (extent(op, rows)?, extent(op, columns)?, extent(op, inner)?);
        let (a, b) = (a.data().argument(), b.data().argument());
        let arguments = [out.argument(), a, b, bytes_of(&m), bytes_of(&n), bytes_of(&k)];
        self.launch(kernel, Grid { blocks: (blocks, 1), threads: 256, shared: 0 }, &arguments, &shape)?;
        Ok(out)
    }

    pub(crate) fn norm(
        &self,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: Option<&Tensor<Self>>,
        eps: f32,
    ) -> Result<Tensor<Self>> {
        let op = if bias.is_some() { "layer_norm" } else { "rms_norm" };
        let out = self.room(op, x.shape(), DType::F32)?;
        let (rows, columns) = (x.dims()[0], x.dims()[1]);
        let (n, reciprocal) = (extent(op, columns)?, 1.0 / columns as f32);
        let mut arguments = vec![out.argument(), x.data().argument(), weight.data().argument()];
        arguments.extend(bias.map(|bias| bias.data().argument()));
        arguments.extend([bytes_of(&n), bytes_of(&reciprocal), bytes_of(&eps)]);
        self.launch(op, row_blocks(op, rows)?, &arguments, x.shape())?;
        Ok(self.floats(x.shape(), out))
    }

    pub(crate) fn row_softmax(&self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        let op = "softmax";
        let out = self.room(op, x.shape(), DType::F32)?;
        let n = extent(op, x.dims()[1])?;
        let arguments = [out.argument(), x.data().argument(), bytes_of(&n)];
        self.launch(op, row_blocks(op, x.dims()[0])?, &arguments, x.shape())?;
        Ok(self.floats(x.shape(), out))
    }

    pub(crate) fn rotated(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        let op = "rope";
        let out = self.room(op, x.shape(), DType::F32)?;
        let (tokens, heads, head_dim) = (x.dims()[0], x.dims()[1], x.dims()[2]);
        let (rows, half) = (table.cos.dims()[0], table.cos.dims()[1]);
        let work = tokens * heads * (head_dim - half);
        let numbers = [work, heads, head_dim, half, rows];
        let mut extents = [0; 5];
        for (to, n) in extents.iter_mut().zip(numbers) {
            *to = extent(op, n)?;
        }
        let number = indexed(op);
        let mut arguments = vec![out.argument(), x.data().argument(), positions.data().argument()];
        arguments.extend([table.cos.data().argument(), table.sin.data().argument()]);
        arguments.extend(extents.iter().map(bytes_of));
        arguments.extend([bytes_of(&number), self.fault()]);
        self.launch(op, self.each(work), &arguments, x.shape())?;
        Ok(self.floats(x.shape(), out))
    }

    pub(crate) fn store(
        &self,
        cache: &mut KvCache<Self>,
        k: &Tensor<Self>,
        v: &Tensor<Self>,
        slots: &Tensor<Self>,
    ) -> Result<()> {
        let op = "store_kv";
        let shape = cache.shape;
        self.make_cache_unique(op, cache)?;
        let tokens = slots.dims()[0];
        let slots_of_cache = shape.pages * shape.page_size;
        let mut extents = [0; 5];
        for (to, n) in
            extents.iter_mut().zip([tokens, shape.kv_heads, shape.head_dim, shape.page_size, slots_of_cache])
        {
            *to = extent(op, n)?;
        }
        let number = indexed(op);
        let mut arguments: Vec<&[u8]> = [&cache.k, &cache.k_scale, &cache.v, &cache.v_scale, k, v, slots]
            .map(|x| x.data().argument())
            .into();
        arguments.extend(extents.iter().map(bytes_of));
        arguments.extend([bytes_of(&number), self.fault()]);
        self.launch(op, warps(op, tokens * shape.kv_heads)?, &arguments, k.shape())
    }

    pub(crate) fn rotated_and_stored(
        &self,
        cache: &mut KvCache<Self>,
        heads: Heads<'_, Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        let op = "rotate_and_store";
        let Heads { q, k, v, positions, slots } = heads;
        let out = self.room(op, q.shape(), DType::F32)?;
        self.make_cache_unique(op, cache)?;
        let shape = cache.shape;
        let (tokens, angles, half) = (q.dims()[0], table.cos.dims()[0], table.cos.dims()[1]);
        let numbers = [tokens, q.dims()[1], shape.kv_heads, shape.head_dim, half, angles, shape.page_size];
        let mut extents = [0; 8];
        for (to, n) in extents.iter_mut().zip(numbers.into_iter().chain([shape.pages * shape.page_size])) {
            *to = extent(op, n)?;
        }
        let ops = ["rope", "store_kv"].map(indexed);
        let tensors = [&cache.k, &cache.k_scale, &cache.v, &cache.v_scale, k, v];
        let mut arguments = vec![out.argument(), q.data().argument()];
        arguments.extend(tensors.map(|x| x.data().argument()));
        arguments.extend([positions, &table.cos, &table.sin, slots].map(|x| x.data().argument()));
        arguments.extend(extents.iter().chain(&ops).map(bytes_of));
        arguments.push(self.fault());
        let warps = warps(op, tokens * (q.dims()[1] + shape.kv_heads))?;
        self.launch(op, warps, &arguments, q.shape())?;
        Ok(self.floats(q.shape(), out))
    }

    fn make_cache_unique(&self, op: &'static str, cache: &mut KvCache<Self>) -> Result<()> {
        for part in [&mut cache.k, &mut cache.k_scale, &mut cache.v, &mut cache.v_scale] {
            let bytes = part.shape().elements() * part.dtype().size();
            self.make_unique(op, part.data_mut(), bytes)?;
        }
        Ok(())
    }

    pub(crate) fn embedded(&self, ids: &Tensor<Self>, weight: &PackedWeight) -> Result<Tensor<Self>> {
        let op = "embedding";
        let (kernel, parts, rows, columns): (_, Vec<&[u8]>, _, _) = match &weight.held {
            Held::Dense(values) => {
                let (rows, columns) = (values.dims()[0], values.dims()[1]);
                (dense_embedding(values.dtype()), vec![values.data().argument()], rows, columns)
            }
            Held::Blocks(blocks) => {
                let (rows, columns) = blocks.dims();
                (Kernels::of(blocks.format()).embedding, blocks.arguments().collect(), rows, columns)
            }
        };
        let shape = Shape::from([ids.dims()[0], columns]);
        let out = self.room(op, &shape, DType::F32)?;
        let (rows, width, number) = (extent(op, rows)?, extent(op, columns)?, indexed(op));
        let mut arguments = vec![out.argument(), ids.data().argument()];
        arguments.extend(parts);
        arguments.extend([bytes_of(&rows), bytes_of(&width), bytes_of(&number), self.fault()]);
        self.launch(kernel, row_blocks(op, ids.dims()[0])?, &arguments, &shape)?;
        Ok(self.floats(&shape, out))
    }

    /// Quantises the rows of an input, normalised first if it is to be, as linear layers do: int8 values of its shape, and a scale
    /// for each block of 32 or 256 values, `[rows, blocks]`. See [`samebits_tensor::decompose::quantize_blocks`].
    ///
    /// # Errors
    /// If rows are not whole blocks, or the driver refuses.
    pub fn quantize(&self, x: Input<'_, Self>, block_len: usize) -> Result<(Tensor<Self>, Tensor<Self>)> {
        let Input { x, norm } = x;
        let Some((weight, eps)) = norm else {
            return self.quantize_with(["quantize_32", "quantize_256"], block_len, &[x], None);
        };
        let kernels = ["quantize_norm_32", "quantize_norm_256"];
        self.quantize_with(kernels, block_len, &[x, weight], Some(eps))
    }

    /// The same of `activation(gate) * up`, which is not kept.
    ///
    /// # Errors
    /// As [`Self::quantize`].
    pub fn quantize_glu(
        &self,
        gate: &Tensor<Self>,
        up: &Tensor<Self>,
        activation: Activation,
        block_len: usize,
    ) -> Result<(Tensor<Self>, Tensor<Self>)> {
        let kernels = match activation {
            Activation::Silu => ["quantize_silu_32", "quantize_silu_256"],
            Activation::GeluTanh => ["quantize_gelu_tanh_32", "quantize_gelu_tanh_256"],
        };
        self.quantize_with(kernels, block_len, &[gate, up], None)
    }

    /// Issues one of two kernels, for blocks of 32 and of 256 values; with `eps`, one of a block for each row.
    fn quantize_with(
        &self,
        kernels: [&'static str; 2],
        block_len: usize,
        operands: &[&Tensor<Self>],
        eps: Option<f32>,
    ) -> Result<(Tensor<Self>, Tensor<Self>)> {
        let op = kernels[0];
        let shape = operands[0].shape();
        let kernel = [32, 256].iter().position(|&len| len == block_len).map(|i| kernels[i]);
        let (Some(kernel), &[rows, columns]) = (kernel, shape.dims()) else {
            return Err(Error::shape(op, format!("{shape} in blocks of {block_len} values")));
        };
        if !columns.is_multiple_of(block_len) {
            return Err(Error::shape(op, format!("{shape} in blocks of {block_len} values")));
        }
        let blocks = Shape::from([rows, columns / block_len]);
        let (q, scales) = (self.room(op, shape, DType::I8)?, self.room(op, &blocks, DType::F32)?);
        let mut arguments = vec![q.argument(), scales.argument()];
        arguments.extend(operands.iter().map(|x| x.data().argument()));
        let count = extent(op, blocks.elements())?;
        let (n, reciprocal) = (extent(op, columns)?, 1.0 / columns as f32);
        let grid = match &eps {
            Some(eps) => {
                arguments.extend([bytes_of(&n), bytes_of(&reciprocal), bytes_of(eps)]);
                row_blocks(op, rows)?
            }
            None => {
                arguments.push(bytes_of(&count));
                warps(op, blocks.elements())?
            }
        };
        self.launch(kernel, grid, &arguments, shape)?;
        Ok((Tensor::from_data(self, shape, DType::I8, q), self.floats(&blocks, scales)))
    }

    /// A tensor of f32.
    pub(crate) fn floats(&self, shape: &Shape, buffer: Buffer) -> Tensor<Self> {
        Tensor::from_data(self, shape, DType::F32, buffer)
    }
}

fn dense_embedding(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "embedding_f16",
        DType::BF16 => "embedding_bf16",
        _ => "embedding_f32",
    }
}
