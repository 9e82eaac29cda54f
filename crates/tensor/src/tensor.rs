use std::ops::Range;

use crate::{
    Backend, BinaryOp, CompareOp, DType, Dims, Error, HostTensor, Result, Scalar, Shape, UnaryOp,
    dtype::Element,
};

/// A tensor of a backend: shape, dtype, and the backend's buffer or node. Cloning is cheap.
///
/// The methods check their operands and infer the result, then call the backend.
#[derive(Clone)]
pub struct Tensor<B: Backend> {
    backend: B,
    shape: Shape,
    dtype: DType,
    data: B::Data,
}

impl<B: Backend> Tensor<B> {
    /// A tensor over a backend's own data, which must be of that shape and dtype. For backends.
    pub fn from_data(backend: &B, shape: impl Into<Shape>, dtype: DType, data: B::Data) -> Self {
        Tensor { backend: backend.clone(), shape: shape.into(), dtype, data }
    }

    /// Copies a host tensor to the device.
    pub fn upload(backend: &B, host: &HostTensor) -> Result<Self> {
        Ok(Self::from_data(backend, host.shape(), host.dtype(), backend.upload(host)?))
    }

    /// Copies elements to the device.
    pub fn of<T: Element>(backend: &B, shape: impl Into<Shape>, values: &[T]) -> Result<Self> {
        let (shape, bytes) = (shape.into(), bytemuck::cast_slice(values));
        HostTensor::check(&shape, T::DTYPE, bytes.len())?;
        let data = backend.upload_bytes(&shape, T::DTYPE, bytes)?;
        Ok(Self::from_data(backend, shape, T::DTYPE, data))
    }

    /// `shape` filled with `value`.
    pub fn full(backend: &B, shape: impl Into<Shape>, value: impl Into<Scalar>) -> Result<Self> {
        let (shape, value) = (shape.into(), value.into());
        let data = backend.full(&shape, value)?;
        Ok(Self::from_data(backend, shape, value.dtype(), data))
    }

    /// i32 of `shape`, each element its index along `axis`.
    pub fn iota(backend: &B, shape: impl Into<Shape>, axis: usize) -> Result<Self> {
        let shape = shape.into();
        check(axis < shape.rank(), "iota", || format!("axis {axis} of {shape}"))?;
        let data = backend.iota(&shape, axis)?;
        Ok(Self::from_data(backend, shape, DType::I32, data))
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The backend's buffer or node.
    pub fn data(&self) -> &B::Data {
        &self.data
    }

    /// The backend's buffer or node, to be worked on in place. For backends.
    pub fn data_mut(&mut self) -> &mut B::Data {
        &mut self.data
    }

    /// Copies the tensor to the host.
    ///
    /// # Errors
    /// [`Error::Traced`] where there is no value yet.
    pub fn download(&self) -> Result<HostTensor> {
        self.backend.download(self)
    }

    /// Copies the elements to the host.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.download()?.to_vec()
    }

    /// Copies the elements to where the caller wants them.
    ///
    /// # Errors
    /// If they are of another type or number, and [`Error::Traced`] where there is no value yet.
    pub fn read<T: Element>(&self, out: &mut [T]) -> Result<()> {
        if T::DTYPE != self.dtype {
            return Err(Error::DType { op: "read", expected: T::DTYPE.name(), found: self.dtype });
        }
        let fits = out.len() == self.shape.elements();
        check(fits, "read", || format!("{} elements of {}", out.len(), self.shape))?;
        self.backend.download_bytes(self, bytemuck::cast_slice_mut(out))
    }

    /// The same elements, row-major, under another shape.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let fits = shape.elements() == self.shape.elements();
        check(fits, "reshape", || format!("{} has another number of elements than {shape}", self.shape))?;
        let data = self.backend.reshape(self, &shape)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// Axis `i` of the result is axis `axes[i]` of this.
    pub fn permute(&self, axes: &[usize]) -> Result<Self> {
        let mut seen = vec![false; self.shape.rank()];
        axes.iter().for_each(|&axis| {
            if let Some(slot) = seen.get_mut(axis) {
                *slot = true;
            }
        });
        let fits = axes.len() == seen.len() && seen.iter().all(|&slot| slot);
        check(fits, "permute", || format!("{axes:?} is no order of the axes of {}", self.shape))?;
        let shape: Shape = axes.iter().map(|&axis| self.shape[axis]).collect::<Dims>().into();
        let data = self.backend.permute(self, axes, &shape)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// Elements `range` along `axis`.
    pub fn narrow(&self, axis: usize, range: Range<usize>) -> Result<Self> {
        let fits = axis < self.shape.rank() && range.start <= range.end && range.end <= self.shape[axis];
        check(fits, "slice", || format!("{range:?} of axis {axis} of {}", self.shape))?;
        if range == (0..self.shape[axis]) {
            return Ok(self.clone());
        }
        let shape = self.shape.with(axis, range.len());
        let mut ranges: Vec<_> = self.shape.iter().map(|&extent| 0..extent).collect();
        ranges[axis] = range;
        let data = self.backend.slice(self, &ranges, &shape)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// The slice at `index` along `axis`, which is dropped.
    pub fn at(&self, axis: usize, index: usize) -> Result<Self> {
        let slice = self.narrow(axis, index..index + 1)?;
        let shape = slice.shape.without(axis);
        slice.reshape(shape)
    }

    /// Axes of extent 1 repeated to the extent of `shape`, which has the same rank.
    pub fn broadcast(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        let fits = shape.rank() == self.shape.rank()
            && self.shape.iter().zip(shape.iter()).all(|(&from, &to)| from == to || from == 1);
        check(fits, "broadcast", || format!("{} to {shape}", self.shape))?;
        if shape == self.shape {
            return Ok(self.clone());
        }
        let data = self.backend.broadcast(self, &shape)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// Tensors one after the other along `axis`.
    pub fn concat(xs: &[&Self], axis: usize) -> Result<Self> {
        let Some(first) = xs.first() else {
            return Err(Error::shape("concat", "no operands"));
        };
        for x in xs {
            expect_dtype("concat", x, first.dtype)?;
            let fits = axis < first.shape.rank()
                && x.shape.rank() == first.shape.rank()
                && x.shape.with(axis, 0) == first.shape.with(axis, 0);
            check(fits, "concat", || format!("{} and {} along axis {axis}", first.shape, x.shape))?;
        }
        let shape = first.shape.with(axis, xs.iter().map(|x| x.shape[axis]).sum());
        let data = first.backend.concat(xs, axis, &shape)?;
        Ok(first.wrap(shape, first.dtype, data))
    }

    /// The tensors of all ranks one after the other along `axis`; the tensor itself where a backend is alone.
    pub fn all_gather(self, axis: usize) -> Result<Self> {
        let count = self.backend.rank().count;
        if count == 1 {
            return Ok(self);
        }
        check(axis < self.shape.rank(), "all_gather", || format!("no axis {axis} in {}", self.shape))?;
        let shape = self.shape.with(axis, self.shape[axis] * count);
        let data = self.backend.all_gather(&self, axis, &shape)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// Values in another type; see [`Backend::cast`].
    pub fn cast(&self, dtype: DType) -> Result<Self> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let data = self.backend.cast(self, dtype)?;
        Ok(self.wrap(self.shape.clone(), dtype, data))
    }

    /// The bits of f32 as i32, or of i32 as f32.
    pub fn bitcast(&self, dtype: DType) -> Result<Self> {
        if !matches!((self.dtype, dtype), (DType::F32, DType::I32) | (DType::I32, DType::F32)) {
            return Err(Error::DType { op: "bitcast", expected: "f32 or i32", found: self.dtype });
        }
        let data = self.backend.bitcast(self, dtype)?;
        Ok(self.wrap(self.shape.clone(), dtype, data))
    }

    /// Element-wise `op`.
    pub fn unary(&self, op: UnaryOp) -> Result<Self> {
        if !(self.dtype == DType::F32 || (self.dtype == DType::I32 && op == UnaryOp::Neg)) {
            return Err(Error::DType { op: "unary", expected: "f32", found: self.dtype });
        }
        let data = self.backend.unary(op, self)?;
        Ok(self.wrap(self.shape.clone(), self.dtype, data))
    }

    /// Element-wise `op` with a tensor of the same shape and dtype.
    pub fn binary(&self, op: BinaryOp, other: &Self) -> Result<Self> {
        self.expect_like("binary", other)?;
        let taken = match op {
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Max => &[DType::F32, DType::I32][..],
            BinaryOp::Div => &[DType::F32],
            BinaryOp::And | BinaryOp::Or => &[DType::I32, DType::Bool],
            BinaryOp::Shl | BinaryOp::Shr => &[DType::I32],
        };
        if !taken.contains(&self.dtype) {
            return Err(Error::DType { op: "binary", expected: "f32, i32 or bool", found: self.dtype });
        }
        let data = self.backend.binary(op, self, other)?;
        Ok(self.wrap(self.shape.clone(), self.dtype, data))
    }

    /// Element-wise comparison with a tensor of the same shape and dtype, as bool.
    pub fn compare(&self, op: CompareOp, other: &Self) -> Result<Self> {
        self.expect_like("compare", other)?;
        if !matches!(self.dtype, DType::F32 | DType::I32) {
            return Err(Error::DType { op: "compare", expected: "f32 or i32", found: self.dtype });
        }
        let data = self.backend.compare(op, self, other)?;
        Ok(self.wrap(self.shape.clone(), DType::Bool, data))
    }

    /// `a` where this mask holds, else `b`.
    pub fn select(&self, a: &Self, b: &Self) -> Result<Self> {
        expect_dtype("select", self, DType::Bool)?;
        a.expect_like("select", b)?;
        check(self.shape == a.shape, "select", || format!("mask {} of {}", self.shape, a.shape))?;
        let data = self.backend.select(self, a, b)?;
        Ok(self.wrap(a.shape.clone(), a.dtype, data))
    }

    /// Largest element along the last axis, which is dropped.
    pub fn max_last(&self) -> Result<Self> {
        if !matches!(self.dtype, DType::F32 | DType::I32) {
            return Err(Error::DType { op: "max_reduce", expected: "f32 or i32", found: self.dtype });
        }
        let fits = self.shape.last().is_some_and(|&extent| extent > 0);
        check(fits, "max_reduce", || format!("no elements along the last axis of {}", self.shape))?;
        let shape = self.shape.without(self.shape.rank() - 1);
        let data = self.backend.max_reduce(self, &shape)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// Exact integer product `[batch, m, k] x [batch, n, k] -> [batch, m, n]`; see [`Backend::matmul_exact`].
    pub fn matmul_exact(&self, other: &Self) -> Result<Self> {
        for operand in [self, other] {
            if !matches!(operand.dtype, DType::I8 | DType::U8) {
                return Err(Error::DType { op: "matmul_exact", expected: "i8 or u8", found: operand.dtype });
            }
        }
        let (&[batch, m, k], &[other_batch, n, other_k]) = (self.dims(), other.dims()) else {
            let detail = format!("{} and {} are not batches of matrices", self.shape, other.shape);
            return Err(Error::shape("matmul_exact", detail));
        };
        let fits = batch == other_batch && k == other_k;
        check(fits, "matmul_exact", || format!("{} and {}", self.shape, other.shape))?;
        let data = self.backend.matmul_exact(self, other)?;
        Ok(self.wrap([batch, m, n].into(), DType::I32, data))
    }

    /// Rows of this at `indices [m]`.
    pub fn gather(&self, indices: &Self) -> Result<Self> {
        expect_dtype("gather", indices, DType::I32)?;
        let fits = indices.shape.rank() == 1 && self.shape.rank() >= 1;
        check(fits, "gather", || format!("indices {} of {}", indices.shape, self.shape))?;
        let shape = self.shape.with(0, indices.shape[0]);
        let data = self.backend.gather(self, indices)?;
        Ok(self.wrap(shape, self.dtype, data))
    }

    /// Replaces rows of this at `indices [m]` by `rows [m, …]`, in place where the backend is eager.
    pub fn scatter(&mut self, indices: &Self, rows: &Self) -> Result<()> {
        expect_dtype("scatter", indices, DType::I32)?;
        expect_dtype("scatter", rows, self.dtype)?;
        let fits = self.shape.rank() >= 1
            && indices.shape.rank() == 1
            && rows.shape == self.shape.with(0, indices.shape[0]);
        check(fits, "scatter", || {
            format!("rows {} at indices {} of {}", rows.shape, indices.shape, self.shape)
        })?;
        self.backend.scatter(&mut self.data, &self.shape, indices, rows)
    }

    pub(crate) fn wrap(&self, shape: Shape, dtype: DType, data: B::Data) -> Self {
        Tensor { backend: self.backend.clone(), shape, dtype, data }
    }

    fn expect_like(&self, op: &'static str, other: &Self) -> Result<()> {
        check(self.shape == other.shape, op, || format!("{} and {}", self.shape, other.shape))?;
        let same = self.dtype == other.dtype;
        check(same, op, || format!("operands of {} and {}", self.dtype, other.dtype))
    }
}

/// Sugar over the primitives; each is one or two of them.
impl<B: Backend> Tensor<B> {
    /// `self + other`.
    pub fn add(&self, other: &Self) -> Result<Self> {
        self.binary(BinaryOp::Add, other)
    }

    /// `self - other`.
    pub fn sub(&self, other: &Self) -> Result<Self> {
        self.binary(BinaryOp::Sub, other)
    }

    /// `self * other`.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        self.binary(BinaryOp::Mul, other)
    }

    /// `self / other`.
    pub fn div(&self, other: &Self) -> Result<Self> {
        self.binary(BinaryOp::Div, other)
    }

    /// The larger of both.
    pub fn max(&self, other: &Self) -> Result<Self> {
        self.binary(BinaryOp::Max, other)
    }

    /// `self < other`.
    pub fn lt(&self, other: &Self) -> Result<Self> {
        self.compare(CompareOp::Lt, other)
    }

    /// `op` with a scalar on the right.
    pub fn scalar(&self, op: BinaryOp, value: impl Into<Scalar>) -> Result<Self> {
        self.binary(op, &Self::full(&self.backend, &self.shape, value)?)
    }

    /// Comparison with a scalar on the right.
    pub fn compare_scalar(&self, op: CompareOp, value: impl Into<Scalar>) -> Result<Self> {
        self.compare(op, &Self::full(&self.backend, &self.shape, value)?)
    }

    /// A tensor of this one's shape, filled with `value`.
    pub fn filled(&self, value: impl Into<Scalar>) -> Result<Self> {
        Self::full(&self.backend, &self.shape, value)
    }

    /// A new axis of extent 1 before `axis`, repeated to `extent`.
    pub fn repeat(&self, axis: usize, extent: usize) -> Result<Self> {
        check(axis <= self.shape.rank(), "repeat", || format!("axis {axis} of {}", self.shape))?;
        let mut dims = Dims::from(self.dims());
        dims.insert(axis, 1);
        let one = self.reshape(dims.clone())?;
        dims[axis] = extent;
        one.broadcast(dims)
    }
}

pub(crate) fn check(fits: bool, op: &'static str, detail: impl FnOnce() -> String) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::shape(op, detail())) }
}

pub(crate) fn expect_dtype<B: Backend>(op: &'static str, x: &Tensor<B>, dtype: DType) -> Result<()> {
    if x.dtype == dtype { Ok(()) } else { Err(Error::DType { op, expected: dtype.name(), found: x.dtype }) }
}
