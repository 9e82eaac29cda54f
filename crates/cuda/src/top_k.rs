//! The greatest of each row, whose kernels are in `top_k.cu`.

use bytemuck::bytes_of;
use samebits_tensor::{DType, Result, Shape, Tensor};

use crate::{Cuda, driver::Grid, layout::extent};

/// Threads of a block, and values that it looks at.
const THREADS: u32 = 256;
const SPAN: usize = 4096;

impl Cuda {
    /// See [`samebits_tensor::decompose::top_k`]. The keys of each span's greatest are the values of the next launch, until a row is
    /// a single span.
    pub(crate) fn greatest(&self, x: &Tensor<Self>, k: usize) -> Result<Tensor<Self>> {
        let op = "top_k";
        let (rows, width) = (x.dims()[0], x.dims()[1]);
        let shape = Shape::from([rows, 2, k]);
        let out = self.room(op, &shape, DType::I32)?;
        let (count, width_of_x) = (extent(op, k)?, extent(op, width)?);
        let (mut kernel, mut values, mut columns) = ("top_k_values", x.data().clone(), width);
        loop {
            let spans = columns.div_ceil(SPAN);
            let found = spans * k;
            let keys = self.buffer(op, if spans > 1 { rows * found * size_of::<u64>() } else { 0 })?;
            let extents = [extent(op, columns)?, width_of_x, extent(op, spans)?, count];
            let mut arguments = vec![keys.argument(), out.argument(), values.argument(), x.data().argument()];
            arguments.extend(extents.iter().map(bytes_of));
            let grid = Grid { blocks: (extent(op, rows * spans)?, 1), threads: THREADS, shared: 0 };
            self.launch(kernel, grid, &arguments, x.shape())?;
            if spans == 1 {
                return Ok(Tensor::from_data(self, shape, DType::I32, out));
            }
            (kernel, values, columns) = ("top_k_keys", keys, found);
        }
    }
}
