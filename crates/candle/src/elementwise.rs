//! Element-wise functions that candle lacks, over its storage: strided on the CPU, by way of the host elsewhere.

use std::marker::PhantomData;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, WithDType,
    cpu_backend::{binary_map, unary_map},
};

/// `f` of each element.
pub(crate) fn map<S: WithDType, T: WithDType>(x: &Tensor, f: impl Fn(S) -> T) -> Result<Tensor> {
    let op = Map { f, types: PhantomData };
    x.to_device(&Device::Cpu)?.apply_op1_no_bwd(&op)?.to_device(x.device())
}

/// `f` of each pair of elements of two tensors of one shape.
pub(crate) fn zip<S: WithDType, T: WithDType>(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(S, S) -> T,
) -> Result<Tensor> {
    let op = Map { f, types: PhantomData };
    let (cpu_a, cpu_b) = (a.to_device(&Device::Cpu)?, b.to_device(&Device::Cpu)?);
    cpu_a.apply_op2_no_bwd(&cpu_b, &op)?.to_device(a.device())
}

struct Map<F, S, T> {
    f: F,
    types: PhantomData<fn(S) -> T>,
}

impl<S: WithDType, T: WithDType, F: Fn(S) -> T> CustomOp1 for Map<F, S, T> {
    fn name(&self) -> &'static str {
        "map"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = unary_map(x.as_slice::<S>()?, layout, &self.f);
        Ok((T::to_cpu_storage_owned(values), layout.shape().clone()))
    }
}

impl<S: WithDType, T: WithDType, F: Fn(S, S) -> T> CustomOp2 for Map<F, S, T> {
    fn name(&self) -> &'static str {
        "zip"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let values = binary_map(a_layout, b_layout, a.as_slice::<S>()?, b.as_slice::<S>()?, &self.f);
        Ok((T::to_cpu_storage_owned(values), a_layout.shape().clone()))
    }
}
