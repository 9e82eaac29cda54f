use rayon::prelude::*;
use samebits_tensor::{Backend, Result, Tensor};

use super::buffer::Buffer;
use crate::memory::{Elements, Memory};

/// Multiply-adds above which rows are shared out to threads.
const PARALLEL_WORK: usize = 1 << 20;

/// See [`Backend::matmul_exact`].
pub(crate) fn matmul_exact<B: Backend<Data = Buffer>>(
    memory: &Memory,
    a: &Tensor<B>,
    b: &Tensor<B>,
) -> Result<Buffer> {
    let extents = Extents { batch: a.dims()[0], m: a.dims()[1], n: b.dims()[1], k: a.dims()[2] };
    let product = match (a.data(), b.data()) {
        (Buffer::I8(a), Buffer::I8(b)) => product(memory, a, b, extents),
        (Buffer::I8(a), Buffer::U8(b)) => product(memory, a, b, extents),
        (Buffer::U8(a), Buffer::I8(b)) => product(memory, a, b, extents),
        (Buffer::U8(a), Buffer::U8(b)) => product(memory, a, b, extents),
        (Buffer::I8(_) | Buffer::U8(_), other) | (other, _) => {
            return Err(other.mismatch("matmul_exact", "i8 or u8"));
        }
    };
    Ok(product.into())
}

#[derive(Clone, Copy)]
struct Extents {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

fn product<X, Y>(memory: &Memory, a: &[X], b: &[Y], extents: Extents) -> Elements<i32>
where
    X: Copy + Into<i32> + Sync,
    Y: Copy + Into<i32> + Sync,
{
    let Extents { batch, m, n, k } = extents;
    let mut product = memory.elements(batch * m * n);
    let out = product.as_mut_slice();
    if out.is_empty() || k == 0 {
        out.fill(0);
        return product;
    }
    let row = |(index, out): (usize, &mut [i32])| {
        let x = &a[index * k..(index + 1) * k];
        let matrix = &b[index / m * n * k..][..n * k];
        out.iter_mut().zip(matrix.chunks_exact(k)).for_each(|(out, y)| *out = dot(x, y));
    };
    if batch * m * n * k < PARALLEL_WORK {
        out.chunks_exact_mut(n).enumerate().for_each(row);
    } else {
        out.par_chunks_exact_mut(n).enumerate().for_each(row);
    }
    product
}

fn dot<X: Copy + Into<i32>, Y: Copy + Into<i32>>(x: &[X], y: &[Y]) -> i32 {
    x.iter().zip(y).map(|(&x, &y)| x.into() * y.into()).sum()
}
