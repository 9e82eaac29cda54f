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
    Result, Scalar, Shape, Tensor, UnaryOp, Weight, contract,
};

pub use buffer::Buffer;

use crate::memory::Memory;

/// The primitives of a [`Backend`] whose data is a [`Buffer`], to stand inside its `impl`; `binary` is left to it, and `memory()`
/// says where the results go.
macro_rules! host_primitives {
    () => {
        fn upload(&self, host: &HostTensor) -> Result<Buffer> {
            self.upload_bytes(host.shape(), host.dtype(), host.bytes())
        }
        fn upload_bytes(&self, _shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Buffer> {
            Ok(Buffer::of_bytes(self.memory(), dtype, bytes))
        }
        fn download(&self, x: &Tensor<Self>) -> Result<HostTensor> {
            HostTensor::new(x.shape(), x.dtype(), Bytes::new(Arc::new(x.data().clone())))
        }
        fn full(&self, shape: &Shape, value: Scalar) -> Result<Buffer> {
            Ok($crate::host::elementwise::full(self.memory(), shape.elements(), value))
        }
        fn iota(&self, shape: &Shape, axis: usize) -> Result<Buffer> {
            Ok($crate::host::elementwise::iota(self.memory(), shape, axis))
        }
        fn reshape(&self, x: &Tensor<Self>, _shape: &Shape) -> Result<Buffer> {
            Ok(x.data().clone())
        }
        fn permute(&self, x: &Tensor<Self>, axes: &[usize], _shape: &Shape) -> Result<Buffer> {
            Ok($crate::host::layout::permute(self.memory(), x, axes))
        }
        fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], _shape: &Shape) -> Result<Buffer> {
            Ok($crate::host::layout::slice(self.memory(), x, ranges))
        }
        fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
            Ok($crate::host::layout::broadcast(self.memory(), x, shape))
        }
        fn concat(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<Buffer> {
            $crate::host::layout::concat(self.memory(), xs, axis, shape)
        }
        fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
            $crate::host::elementwise::cast(self.memory(), x.data(), dtype)
        }
        fn bitcast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Buffer> {
            $crate::host::elementwise::bitcast(self.memory(), x.data(), dtype)
        }
        fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::unary(self.memory(), op, x.data())
        }
        fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::compare(self.memory(), op, a.data(), b.data())
        }
        fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::elementwise::select(self.memory(), condition.data(), a.data(), b.data())
        }
        fn max_reduce(&self, x: &Tensor<Self>, _shape: &Shape) -> Result<Buffer> {
            $crate::host::elementwise::max_reduce(self.memory(), x)
        }
        fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::matmul::matmul_exact(self.memory(), a, b)
        }
        fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Buffer> {
            $crate::host::layout::gather(self.memory(), x, indices)
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
    numerics: contract::exact(),
    formats: Format::ALL.to_vec(),
    memory_bytes: None,
});

impl Host {
    fn memory(&self) -> &'static Memory {
        static MEMORY: Memory = Memory::system();
        &MEMORY
    }
}

impl Backend for Host {
    type Data = Buffer;
    type Weight = PlainWeight<Self>;

    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    host_primitives!();

    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Buffer> {
        elementwise::binary(self.memory(), op, a.data(), b.data())
    }

    fn pack(&self, weight: &HostWeight) -> Result<PlainWeight<Self>> {
        PlainWeight::unpack(self, weight)
    }

    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        Ok(weight.packed().clone())
    }
}
