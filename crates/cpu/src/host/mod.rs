//! The reference: plain primitives over host buffers, and no fused operation of its own.

mod buffer;
pub(crate) mod elementwise;
pub(crate) mod layout;
pub(crate) mod matmul;

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use samebits_tensor::{
    Backend, BinaryOp, Bytes, Capabilities, CompareOp, DType, Format, HostTensor, HostWeight, PlainWeight,
    Result, Scalar, Shape, Tensor, UnaryOp, Weight,
};

pub use buffer::Buffer;

/// The primitives of a [`Backend`] whose data is a [`Buffer`], to stand inside its `impl`.
macro_rules! host_primitives {
    () => {
        fn upload(&self, host: &HostTensor) -> Result<Buffer> {
            Ok(Buffer::from_host(host))
        }
        fn download(&self, x: &Tensor<Self>) -> Result<HostTensor> {
            HostTensor::new(x.shape(), x.dtype(), Bytes::new(Arc::new(x.data().clone())))
        }
        fn full(&self, shape: &Shape, value: Scalar) -> Result<Buffer> {
            Ok(match value {
                Scalar::F32(value) => vec![value; shape.elements()].into(),
                Scalar::I32(value) => vec![value; shape.elements()].into(),
                Scalar::I8(value) => vec![value; shape.elements()].into(),
            })
        }
        fn iota(&self, shape: &Shape, axis: usize) -> Result<Buffer> {
            Ok($crate::host::elementwise::iota(shape, axis))
        }
        fn reshape(&self, x: &Tensor<Self>, _shape: &Shape) -> Result<Buffer> {
            Ok(x.data().clone())
        }
        fn permute(&self, x: &Tensor<Self>, axes: &[usize], _shape: &Shape) -> Result<Buffer> {
            Ok($crate::host::layout::permute(x, axes))
        }
        fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], _shape: &Shape) -> Result<Buffer> {
            Ok($crate::host::layout::slice(x, ranges))
        }
        fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
            Ok($crate::host::layout::broadcast(x, shape))
        }
        fn concat(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<Buffer> {
            $crate::host::layout::concat(xs, axis, shape)
        }
        fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
            $crate::host::elementwise::cast(x.data(), dtype)
        }
        fn bitcast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
            $crate::host::elementwise::bitcast(x.data(), dtype)
        }
        fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::unary(op, x.data())
        }
        fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::binary(op, a.data(), b.data())
        }
        fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::compare(op, a.data(), b.data())
        }
        fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::select(condition.data(), a.data(), b.data())
        }
        fn max_reduce(&self, x: &Tensor<Self>, _shape: &Shape) -> Result<Buffer> {
            $crate::host::elementwise::max_reduce(x)
        }
        fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::matmul::matmul_exact(a, b)
        }
        fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::layout::gather(x, indices)
        }
        fn scatter(
            &self,
            x: &mut Buffer,
            x_shape: &Shape,
            indices: &Tensor<Self>,
            rows: &Tensor<Self>,
        ) -> Result<()> {
            $crate::host::layout::scatter(x, x_shape, indices, rows)
        }
    };
}

#[allow(unused_imports, reason = "for the backends of this crate that share the primitives")]
pub(crate) use host_primitives;

/// The reference backend: scalar loops, and every fused operation as its decomposition says.
///
/// Everything else is compared with it. It takes every format and is slow; [`crate::Cpu`] is the fast one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

static CAPABILITIES: LazyLock<Capabilities> = LazyLock::new(|| Capabilities {
    name: "host".into(),
    device: "scalar reference".into(),
    formats: Format::ALL.to_vec(),
    memory_bytes: None,
});

impl Backend for Host {
    type Data = Buffer;
    type Weight = PlainWeight<Self>;

    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    host_primitives!();

    fn pack(&self, weight: &HostWeight) -> Result<PlainWeight<Self>> {
        PlainWeight::unpack(self, weight)
    }

    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        Ok(weight.packed().clone())
    }
}
