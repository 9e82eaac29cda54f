//! Primitives that move elements without looking at them.

use std::ops::Range;

use bytemuck::Pod;
use samebits_tensor::{Backend, Error, Result, Shape, Tensor};
use smallvec::SmallVec;

use super::buffer::{Buffer, Element, map_elements};
use crate::{
    backend::check_indices,
    memory::{Elements, Memory},
};

/// See [`Backend::permute`].
pub(crate) fn permute<B: Backend<Data = Buffer>>(memory: &Memory, x: &Tensor<B>, axes: &[usize]) -> Buffer {
    let strides = x.shape().strides();
    let view: View =
        axes.iter().map(|&axis| Axis { extent: x.shape()[axis], stride: strides[axis] }).collect();
    map_elements!(x.data(), values => collect(memory, values, &view))
}

/// See [`Backend::slice`].
pub(crate) fn slice<B: Backend<Data = Buffer>>(
    memory: &Memory,
    x: &Tensor<B>,
    ranges: &[Range<usize>],
) -> Buffer {
    let strides = x.shape().strides();
    let start: usize = ranges.iter().zip(&strides).map(|(range, stride)| range.start * stride).sum();
    let view: View =
        ranges.iter().zip(&strides).map(|(range, &stride)| Axis { extent: range.len(), stride }).collect();
    map_elements!(x.data(), values => collect(memory, values.get(start..).unwrap_or(&[]), &view))
}

/// See [`Backend::broadcast`].
pub(crate) fn broadcast<B: Backend<Data = Buffer>>(memory: &Memory, x: &Tensor<B>, shape: &Shape) -> Buffer {
    let strides = x.shape().strides();
    let view: View = shape
        .iter()
        .zip(x.shape().iter().zip(&strides))
        .map(|(&extent, (&from, &stride))| Axis { extent, stride: if from == 1 { 0 } else { stride } })
        .collect();
    map_elements!(x.data(), values => collect(memory, values, &view))
}

/// See [`Backend::concat`].
pub(crate) fn concat<B: Backend<Data = Buffer>>(
    memory: &Memory,
    xs: &[&Tensor<B>],
    axis: usize,
    shape: &Shape,
) -> Result<Buffer> {
    let outer: usize = shape[..axis].iter().product();
    let Some(first) = xs.first() else {
        return Err(Error::shape("concat", "no operands"));
    };
    Ok(map_elements!(first.data(), values => join_rows(memory, values, xs, outer, shape.elements())?))
}

/// See [`Backend::gather`].
pub(crate) fn gather<B: Backend<Data = Buffer>>(
    memory: &Memory,
    x: &Tensor<B>,
    indices: &Tensor<B>,
) -> Result<Buffer> {
    let rows = row_indices("gather", indices, x.shape()[0])?;
    let len: usize = x.shape()[1..].iter().product();
    Ok(map_elements!(x.data(), values => {
        let mut out = memory.elements(indices.shape().elements() * len);
        let targets = out.as_mut_slice().chunks_exact_mut(len.max(1));
        targets.zip(rows).for_each(|(out, row)| out.copy_from_slice(&values[row * len..(row + 1) * len]));
        out
    }))
}

/// See [`Backend::scatter`].
pub(crate) fn scatter<B: Backend<Data = Buffer>>(
    x: &mut Buffer,
    shape: &Shape,
    indices: &Tensor<B>,
    rows: &Tensor<B>,
) -> Result<()> {
    let targets = row_indices("scatter", indices, shape[0])?;
    let len: usize = shape[1..].iter().product();
    macro_rules! write_rows {
        ($($variant:ident),*) => {
            match (x, rows.data()) {
                $((Buffer::$variant(x), Buffer::$variant(rows)) => {
                    let x = x.as_mut_slice();
                    for (i, target) in targets.enumerate() {
                        x[target * len..(target + 1) * len].copy_from_slice(&rows[i * len..(i + 1) * len]);
                    }
                    Ok(())
                })*
                (_, rows) => Err(rows.mismatch("scatter", "the dtype of the target")),
            }
        };
    }
    write_rows!(F32, F16, BF16, I8, U8, I32, Bool)
}

type View = SmallVec<[Axis; 4]>;

/// One axis of a strided view.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    stride: usize,
}

/// The elements of a view in row-major order.
fn collect<T: Pod>(memory: &Memory, values: &[T], view: &View) -> Elements<T> {
    let mut out = memory.elements(view.iter().map(|axis| axis.extent).product());
    if !out.is_empty() {
        copy(values, &merge_axes(view), out.as_mut_slice());
    }
    out
}

/// The same view in fewer axes: those of extent 1 dropped, those that walk memory as one merged.
fn merge_axes(view: &View) -> View {
    let mut merged = View::new();
    for &axis in view.iter().filter(|axis| axis.extent != 1) {
        match merged.last_mut() {
            Some(outer) if outer.stride == axis.stride * axis.extent => {
                *outer = Axis { extent: outer.extent * axis.extent, stride: axis.stride };
            }
            _ => merged.push(axis),
        }
    }
    merged
}

/// Fills `out`, which has as many elements as the view.
fn copy<T: Copy>(values: &[T], view: &[Axis], out: &mut [T]) {
    match *view {
        [] => out[0] = values[0],
        [Axis { stride: 0, .. }] => out.fill(values[0]),
        [Axis { extent, stride: 1 }] => out.copy_from_slice(&values[..extent]),
        [Axis { stride, .. }] => {
            out.iter_mut().zip(values.iter().step_by(stride)).for_each(|(out, &value)| *out = value);
        }
        [Axis { extent, stride }, ref inner @ ..] => {
            let parts = out.chunks_exact_mut(out.len() / extent).enumerate();
            parts.for_each(|(i, out)| copy(&values[i * stride..], inner, out));
        }
    }
}

/// The tensors as matrices of `rows` rows each, side by side. `_first` names the type.
fn join_rows<B: Backend<Data = Buffer>, T: Element>(
    memory: &Memory,
    _first: &[T],
    xs: &[&Tensor<B>],
    rows: usize,
    elements: usize,
) -> Result<Elements<T>> {
    let mut out = memory.elements(elements);
    let width = elements.checked_div(rows).unwrap_or(0);
    let mut first = 0;
    for x in xs {
        let part = x.data().values::<T>("concat")?;
        let len = part.len().checked_div(rows).unwrap_or(0);
        if len > 0 {
            let targets = out.as_mut_slice().chunks_exact_mut(width);
            let copies = targets.zip(part.chunks_exact(len));
            copies.for_each(|(out, part)| out[first..first + len].copy_from_slice(part));
        }
        first += len;
    }
    Ok(out)
}

/// Indices of rows, all of them below `len`.
fn row_indices<'a, B: Backend<Data = Buffer>>(
    op: &'static str,
    indices: &'a Tensor<B>,
    len: usize,
) -> Result<impl Iterator<Item = usize> + use<'a, B>> {
    let indices = indices.data().i32(op)?;
    check_indices(op, indices, len)?;
    Ok(indices.iter().map(|&index| index as usize))
}
