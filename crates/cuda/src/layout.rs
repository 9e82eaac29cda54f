//! Primitives that make elements, or move them without looking at them.

use std::ops::Range;

use bytemuck::{Pod, Zeroable, bytes_of};
use samebits_tensor::{DType, Error, Result, Scalar, Shape, Tensor};

use crate::{Buffer, Cuda, driver::Grid, indexed};

/// Axes of a view that a kernel takes.
const AXES: usize = 8;

/// Tensors that one launch joins.
const PARTS: usize = 8;

/// `View` of `layout.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct View {
    rank: u32,
    extents: [u32; AXES],
    padding: u32,
    strides: [u64; AXES],
}

/// `Parts` of `layout.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Parts {
    from: [u64; PARTS],
    columns: [u32; PARTS],
    before: [u64; PARTS],
}

/// The name of a kernel for pieces of so many bytes.
macro_rules! sized {
    ($name:literal, $bytes:expr) => {
        match $bytes {
            1 => concat!($name, "_1"),
            2 => concat!($name, "_2"),
            4 => concat!($name, "_4"),
            _ => concat!($name, "_16"),
        }
    };
}

/// Threads of a block where each thread has an element.
const THREADS: u32 = 256;

/// Most blocks of a grid whose threads go on in strides.
pub(crate) const BLOCKS: u32 = 1 << 20;

/// An extent as kernels take it.
pub(crate) fn extent(op: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::shape(op, format!("{n} elements are more than a kernel takes")))
}

/// One axis of a strided view, in elements.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    stride: usize,
}

impl Cuda {
    /// A thread for each of `n` pieces of work, or fewer, which go on in strides.
    pub(crate) fn each(&self, n: usize) -> Grid {
        let blocks = n.div_ceil(THREADS as usize).min(self.shared.blocks_max as usize);
        Grid { blocks: (blocks as u32, 1), threads: THREADS, shared: 0 }
    }

    pub(crate) fn fill(&self, shape: &Shape, value: Scalar) -> Result<Buffer> {
        let dtype = value.dtype();
        let out = self.room("full", shape, dtype)?;
        let bytes = shape.elements() * dtype.size();
        let word: [u8; 4] = match value {
            Scalar::F32(value) => value.to_le_bytes(),
            Scalar::I32(value) => value.to_le_bytes(),
            Scalar::I8(value) => [value.cast_unsigned(); 4],
        };
        let unit = if bytes.is_multiple_of(16) { 16 } else { dtype.size() };
        let value: Vec<u8> = word.iter().copied().cycle().take(unit).collect();
        let n = (bytes / unit) as u64;
        let arguments = [out.argument(), &value, bytes_of(&n)];
        let kernel = match unit {
            1 => "fill_1",
            4 => "fill_4",
            _ => "fill_16",
        };
        self.launch(kernel, self.each(n as usize), &arguments, shape)?;
        Ok(out)
    }

    pub(crate) fn count_up(&self, shape: &Shape, axis: usize) -> Result<Buffer> {
        let out = self.room("iota", shape, DType::I32)?;
        let n = extent("iota", shape.elements())?;
        let (of_axis, inner) = (shape[axis] as u32, shape[axis + 1..].iter().product::<usize>() as u32);
        let arguments = [out.argument(), bytes_of(&n), bytes_of(&of_axis), bytes_of(&inner)];
        self.launch("iota", self.each(shape.elements()), &arguments, shape)?;
        Ok(out)
    }

    pub(crate) fn permuted(&self, x: &Tensor<Self>, axes: &[usize], shape: &Shape) -> Result<Buffer> {
        let strides = x.shape().strides();
        let view = axes.iter().map(|&axis| Axis { extent: x.dims()[axis], stride: strides[axis] });
        self.view("permute", x, 0, view, shape)
    }

    pub(crate) fn sliced(&self, x: &Tensor<Self>, ranges: &[Range<usize>], shape: &Shape) -> Result<Buffer> {
        let strides = x.shape().strides();
        let start = ranges.iter().zip(&strides).map(|(range, stride)| range.start * stride).sum();
        let view = ranges.iter().zip(&strides).map(|(range, &stride)| Axis { extent: range.len(), stride });
        self.view("slice", x, start, view, shape)
    }

    pub(crate) fn broadcasted(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Buffer> {
        let strides = x.shape().strides();
        let axes = shape.iter().zip(x.dims().iter().zip(&strides));
        let view = axes
            .map(|(&extent, (&from, &stride))| Axis { extent, stride: if from == 1 { 0 } else { stride } });
        self.view("broadcast", x, 0, view, shape)
    }

    /// The elements of a view of `x` that starts at an element, in row-major order.
    fn view(
        &self,
        op: &'static str,
        x: &Tensor<Self>,
        start: usize,
        axes: impl Iterator<Item = Axis>,
        shape: &Shape,
    ) -> Result<Buffer> {
        let out = self.room(op, shape, x.dtype())?;
        if shape.elements() == 0 {
            return Ok(out);
        }
        let size = x.dtype().size();
        let mut axes = merged(axes);
        let unit = unit_of(&mut axes, start, size);
        let n = axes.iter().map(|axis| axis.extent).product::<usize>();
        let mut view = View::zeroed();
        if axes.len() > AXES {
            return Err(Error::shape(op, format!("a view of {} axes; kernels take {AXES}", axes.len())));
        }
        view.rank = axes.len() as u32;
        for (i, axis) in axes.iter().rev().enumerate() {
            view.extents[i] = extent(op, axis.extent)?;
            view.strides[i] = axis.stride as u64;
        }
        let from = x.data().address() + (start * size) as u64;
        let count = extent(op, n)?;
        let arguments = [out.argument(), bytes_of(&from), bytes_of(&count), bytes_of(&view)];
        self.launch(sized!("view", unit), self.each(n), &arguments, shape)?;
        Ok(out)
    }

    pub(crate) fn joined(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<Buffer> {
        let op = "concat";
        let Some(first) = xs.first() else { return Err(Error::shape(op, "no operands")) };
        let size = first.dtype().size();
        let out = self.room(op, shape, first.dtype())?;
        let rows = extent(op, shape[..axis].iter().product())?;
        let row_bytes = |x: &Shape| x[axis..].iter().product::<usize>() * size;
        let unit = if xs.iter().all(|x| row_bytes(x.shape()).is_multiple_of(16)) { 16 } else { size };
        let pitch = (row_bytes(shape) / unit) as u64;
        let mut before = 0;
        for group in xs.chunks(PARTS) {
            let mut parts = Parts::zeroed();
            for (i, x) in group.iter().enumerate() {
                let columns = row_bytes(x.shape()) / unit;
                extent(op, columns * rows as usize)?;
                (parts.from[i], parts.columns[i], parts.before[i]) =
                    (x.data().address(), columns as u32, before);
                before += columns as u64;
            }
            let widest = parts.columns.iter().max().copied().unwrap_or_default() as usize;
            let grid = Grid {
                blocks: (self.each(widest * rows as usize).blocks.0, group.len() as u32),
                ..self.each(0)
            };
            let arguments = [out.argument(), bytes_of(&parts), bytes_of(&rows), bytes_of(&pitch)];
            self.launch(sized!("concat", unit), grid, &arguments, shape)?;
        }
        Ok(out)
    }

    pub(crate) fn gathered(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Buffer> {
        let op = "gather";
        let shape = x.shape().with(0, indices.dims()[0]);
        let out = self.room(op, &shape, x.dtype())?;
        let (unit, columns) = self.row(op, x)?;
        let elements = indices.dims()[0] * columns as usize;
        let (n, rows, number) = (extent(op, elements)?, extent(op, x.dims()[0])?, indexed(op));
        let arguments = [
            out.argument(),
            x.data().argument(),
            indices.data().argument(),
            bytes_of(&n),
            bytes_of(&columns),
            bytes_of(&rows),
            bytes_of(&number),
            self.fault(),
        ];
        self.launch(sized!("gather", unit), self.each(elements), &arguments, &shape)?;
        Ok(out)
    }

    pub(crate) fn scattered(
        &self,
        x: &mut Buffer,
        x_shape: &Shape,
        indices: &Tensor<Self>,
        rows: &Tensor<Self>,
    ) -> Result<()> {
        let op = "scatter";
        self.make_unique(op, x, x_shape.elements() * rows.dtype().size())?;
        let (unit, columns) = self.row(op, rows)?;
        let (n, rows_of_x, number) = (extent(op, indices.dims()[0])?, extent(op, x_shape[0])?, indexed(op));
        if n == 0 {
            return Ok(());
        }
        let arguments = [
            x.argument(),
            indices.data().argument(),
            rows.data().argument(),
            bytes_of(&n),
            bytes_of(&columns),
            bytes_of(&rows_of_x),
            bytes_of(&number),
            self.fault(),
        ];
        self.launch(sized!("scatter", unit), self.each(columns as usize), &arguments, x_shape)
    }

    /// Copies elements that other tensors share, so that they may be changed in place.
    pub(crate) fn make_unique(&self, op: &'static str, x: &mut Buffer, bytes: usize) -> Result<()> {
        if !x.is_unique() {
            let own = self.buffer(op, bytes)?;
            self.copy_from(&own, x.address(), bytes)?;
            *x = own;
        }
        Ok(())
    }

    /// Bytes of the pieces that the rows of `x` move in, and the pieces of a row.
    fn row(&self, op: &'static str, x: &Tensor<Self>) -> Result<(usize, u32)> {
        let bytes = x.dims()[1..].iter().product::<usize>() * x.dtype().size();
        let unit = if bytes.is_multiple_of(16) { 16 } else { x.dtype().size() };
        Ok((unit, extent(op, bytes / unit)?))
    }
}

/// The same view in fewer axes: those of extent 1 dropped, those that walk memory as one merged.
fn merged(axes: impl Iterator<Item = Axis>) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::with_capacity(AXES);
    for axis in axes.filter(|axis| axis.extent != 1) {
        match merged.last_mut() {
            Some(outer) if outer.stride == axis.stride * axis.extent => {
                *outer = Axis { extent: outer.extent * axis.extent, stride: axis.stride };
            }
            _ => merged.push(axis),
        }
    }
    merged
}

/// Bytes of the pieces that a view moves in: elements of `size` bytes, or 16, and then the view is turned into one of those.
fn unit_of(axes: &mut [Axis], start: usize, size: usize) -> usize {
    let Some((inner, outer)) = axes.split_last_mut() else { return size };
    let pieces = 16 / size;
    let fits = |n: usize| n.is_multiple_of(pieces);
    let are_whole =
        inner.stride == 1 && fits(inner.extent) && fits(start) && outer.iter().all(|axis| fits(axis.stride));
    if !are_whole {
        return size;
    }
    inner.extent /= pieces;
    outer.iter_mut().for_each(|axis| axis.stride /= pieces);
    16
}
