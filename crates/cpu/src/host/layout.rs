//! Primitives that move elements without looking at them.

use std::ops::Range;

use samebits_tensor::{Backend, Error, Result, Shape, Tensor};

use super::buffer::{Buffer, Element, map_elements};

/// See [`Backend::permute`].
pub(crate) fn permute<B: Backend<Data = Buffer>>(x: &Tensor<B>, axes: &[usize]) -> Buffer {
    let strides = x.shape().strides();
    let view: Vec<Axis> =
        axes.iter().map(|&axis| Axis { extent: x.shape()[axis], stride: strides[axis] }).collect();
    map_elements!(x.data(), values => collect(values, &view))
}

/// See [`Backend::slice`].
pub(crate) fn slice<B: Backend<Data = Buffer>>(x: &Tensor<B>, ranges: &[Range<usize>]) -> Buffer {
    let strides = x.shape().strides();
    let start: usize = ranges.iter().zip(&strides).map(|(range, stride)| range.start * stride).sum();
    let view: Vec<Axis> =
        ranges.iter().zip(&strides).map(|(range, &stride)| Axis { extent: range.len(), stride }).collect();
    map_elements!(x.data(), values => collect(values.get(start..).unwrap_or(&[]), &view))
}

/// See [`Backend::broadcast`].
pub(crate) fn broadcast<B: Backend<Data = Buffer>>(x: &Tensor<B>, shape: &Shape) -> Buffer {
    let strides = x.shape().strides();
    let view: Vec<Axis> = shape
        .iter()
        .zip(x.shape().iter().zip(&strides))
        .map(|(&extent, (&from, &stride))| Axis { extent, stride: if from == 1 { 0 } else { stride } })
        .collect();
    map_elements!(x.data(), values => collect(values, &view))
}

/// See [`Backend::concat`].
pub(crate) fn concat<B: Backend<Data = Buffer>>(
    xs: &[&Tensor<B>],
    axis: usize,
    shape: &Shape,
) -> Result<Buffer> {
    let outer: usize = shape[..axis].iter().product();
    let Some(first) = xs.first() else {
        return Err(Error::shape("concat", "no operands"));
    };
    Ok(map_elements!(first.data(), values => join_rows(values, xs, outer, shape.elements())?))
}

/// See [`Backend::gather`].
pub(crate) fn gather<B: Backend<Data = Buffer>>(x: &Tensor<B>, indices: &Tensor<B>) -> Result<Buffer> {
    let rows = row_indices("gather", indices, x.shape()[0])?;
    let len: usize = x.shape()[1..].iter().product();
    Ok(map_elements!(x.data(), values => {
        let mut out = Vec::with_capacity(rows.len() * len);
        rows.iter().for_each(|&row| out.extend_from_slice(&values[row * len..(row + 1) * len]));
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
                    let x = std::sync::Arc::make_mut(x);
                    for (i, &target) in targets.iter().enumerate() {
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

/// One axis of a strided view.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    stride: usize,
}

/// The elements of a view in row-major order.
fn collect<T: Copy>(values: &[T], view: &[Axis]) -> Vec<T> {
    let elements = view.iter().map(|axis| axis.extent).product();
    let mut out = Vec::with_capacity(elements);
    if elements > 0 {
        append(values, &merge_axes(view), &mut out);
    }
    out
}

/// The same view in fewer axes: those of extent 1 dropped, those that walk memory as one merged.
fn merge_axes(view: &[Axis]) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::new();
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

fn append<T: Copy>(values: &[T], view: &[Axis], out: &mut Vec<T>) {
    match *view {
        [] => out.push(values[0]),
        [Axis { extent, stride: 0 }] => out.extend(std::iter::repeat_n(values[0], extent)),
        [Axis { extent, stride: 1 }] => out.extend_from_slice(&values[..extent]),
        [Axis { extent, stride }] => out.extend(values.iter().step_by(stride).take(extent)),
        [Axis { extent, stride }, ref inner @ ..] => {
            (0..extent).for_each(|i| append(&values[i * stride..], inner, out));
        }
    }
}

/// The tensors as matrices of `rows` rows each, side by side. `_first` names the type.
fn join_rows<B: Backend<Data = Buffer>, T: Element>(
    _first: &[T],
    xs: &[&Tensor<B>],
    rows: usize,
    elements: usize,
) -> Result<Vec<T>> {
    let parts = xs.iter().map(|x| x.data().values("concat")).collect::<Result<Vec<&[T]>>>()?;
    let mut out = Vec::with_capacity(elements);
    for row in 0..rows {
        for part in &parts {
            let len = part.len() / rows;
            out.extend_from_slice(&part[row * len..(row + 1) * len]);
        }
    }
    Ok(out)
}

fn row_indices<B: Backend<Data = Buffer>>(
    op: &'static str,
    indices: &Tensor<B>,
    len: usize,
) -> Result<Vec<usize>> {
    let check = |&index: &i32| match usize::try_from(index) {
        Ok(row) if row < len => Ok(row),
        _ => Err(Error::Index { op, index: index.into(), len }),
    };
    indices.data().i32(op)?.iter().map(check).collect()
}
