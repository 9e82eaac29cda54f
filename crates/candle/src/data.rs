use std::sync::Arc;

use candle_core::{DType as CandleDType, Device, Tensor as CandleTensor};
use half::{bf16, f16};
use samebits_tensor::{DType, Error, HostTensor, Result, Scalar, Shape};

use crate::During;

/// candle's element-wise loops keep their indices in arrays of this many axes.
const MAX_RANK: usize = 8;

/// A candle tensor, which may be a strided or broadcast view.
///
/// Element types: i8 and u8 are held as f32, bool as u8, the others as themselves.
#[derive(Clone, Debug)]
pub struct Data {
    tensor: CandleTensor,
    /// Present once the storage belongs to a tensor that is written in place, and shared by every view of it: a
    /// write copies first while someone else looks. candle counts a storage's users but does not tell.
    owner: Option<Arc<()>>,
}

impl Data {
    pub(crate) fn new(tensor: CandleTensor) -> Self {
        Data { tensor, owner: None }
    }

    /// What candle made of this data, which may be the same storage.
    pub(crate) fn view(&self, tensor: CandleTensor) -> Self {
        Data { tensor, owner: self.owner.clone() }
    }

    /// The candle tensor.
    pub fn tensor(&self) -> &CandleTensor {
        &self.tensor
    }

    /// The tensor, contiguous and seen by no one else.
    pub(crate) fn writable(&mut self) -> candle_core::Result<&CandleTensor> {
        let alone = self.owner.as_mut().is_some_and(|owner| Arc::get_mut(owner).is_some());
        if !alone || !self.tensor.is_contiguous() {
            *self = Data { tensor: self.tensor.force_contiguous()?, owner: Some(Arc::default()) };
        }
        Ok(&self.tensor)
    }

    pub(crate) fn upload(host: &HostTensor, device: &Device) -> Result<Self> {
        let dims = dims("upload", host.shape())?;
        let tensor = match host.dtype() {
            DType::F32 => CandleTensor::from_vec(host.to_vec::<f32>()?, dims, device),
            DType::F16 => CandleTensor::from_vec(host.to_vec::<f16>()?, dims, device),
            DType::BF16 => CandleTensor::from_vec(host.to_vec::<bf16>()?, dims, device),
            DType::I32 => CandleTensor::from_vec(host.to_vec::<i32>()?, dims, device),
            DType::Bool => CandleTensor::from_vec(host.to_vec::<u8>()?, dims, device),
            DType::I8 => CandleTensor::from_vec(as_f32(&host.to_vec::<i8>()?), dims, device),
            DType::U8 => CandleTensor::from_vec(as_f32(&host.to_vec::<u8>()?), dims, device),
        };
        tensor.map(Data::new).during("upload")
    }

    pub(crate) fn download(&self, shape: &Shape, dtype: DType) -> Result<HostTensor> {
        let op = "download";
        let flat = self.tensor.flatten_all().during(op)?;
        match dtype {
            DType::F32 => HostTensor::of(shape, &flat.to_vec1::<f32>().during(op)?),
            DType::F16 => HostTensor::of(shape, &flat.to_vec1::<f16>().during(op)?),
            DType::BF16 => HostTensor::of(shape, &flat.to_vec1::<bf16>().during(op)?),
            DType::I32 => HostTensor::of(shape, &flat.to_vec1::<i32>().during(op)?),
            DType::Bool => HostTensor::new(shape, dtype, flat.to_vec1::<u8>().during(op)?.into()),
            DType::I8 => HostTensor::of(shape, &integers(&flat, dtype, |x| (x as i8, x as i8 as f32))?),
            DType::U8 => HostTensor::of(shape, &integers(&flat, dtype, |x| (x as u8, x as u8 as f32))?),
        }
    }

    /// `shape` filled with `value`, as a view of one element; [`Self::writable`] lays it out.
    pub(crate) fn full(shape: &Shape, value: Scalar, device: &Device) -> Result<Self> {
        let (dims, ones) = (dims("full", shape)?, vec![1; shape.rank()]);
        let one = match value {
            Scalar::F32(value) => CandleTensor::from_vec(vec![value], ones, device),
            Scalar::I32(value) => CandleTensor::from_vec(vec![value], ones, device),
            Scalar::I8(value) => CandleTensor::from_vec(vec![f32::from(value)], ones, device),
        };
        one.and_then(|one| one.broadcast_as(dims)).map(Data::new).during("full")
    }
}

/// The extents as candle takes them.
pub(crate) fn dims(op: &'static str, shape: &Shape) -> Result<Vec<usize>> {
    if shape.rank() > MAX_RANK {
        return Err(Error::shape(op, format!("{shape} has more axes than candle's {MAX_RANK}")));
    }
    Ok(shape.to_vec())
}

/// The candle type that holds elements of `dtype`.
pub(crate) fn held_as(dtype: DType) -> CandleDType {
    match dtype {
        DType::F32 | DType::I8 | DType::U8 => CandleDType::F32,
        DType::F16 => CandleDType::F16,
        DType::BF16 => CandleDType::BF16,
        DType::I32 => CandleDType::I32,
        DType::Bool => CandleDType::U8,
    }
}

fn as_f32<T: Copy + Into<f32>>(values: &[T]) -> Vec<f32> {
    values.iter().map(|&value| value.into()).collect()
}

/// The values of a tensor held as f32, by a function that gives each as an integer and that integer as f32.
fn integers<T>(flat: &CandleTensor, dtype: DType, of: impl Fn(f32) -> (T, f32)) -> Result<Vec<T>> {
    let values = flat.to_vec1::<f32>().during("download")?;
    let integer = |value| {
        let (integer, back) = of(value);
        let detail = || format!("{value} is no {dtype}: rows of an unquantised cache cannot be downloaded");
        let error = || Error::Backend { backend: "candle-float".into(), op: "download", detail: detail() };
        if back == value { Ok(integer) } else { Err(error()) }
    };
    values.into_iter().map(integer).collect()
}
