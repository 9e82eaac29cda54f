//! Primitives that compute each element from the elements at its place.

use bytemuck::Pod;
use half::{bf16, f16};
use samebits_tensor::{Backend, BinaryOp, CompareOp, DType, Error, Result, Scalar, Tensor, UnaryOp};

use super::buffer::{Buffer, zip_elements};
use crate::memory::{Elements, Memory};

/// See [`Backend::cast`]. A mask is made by a comparison, not by a cast.
pub(crate) fn cast(memory: &Memory, x: &Buffer, dtype: DType) -> Result<Buffer> {
    match x {
        Buffer::F32(values) => from_float(memory, values.iter().copied(), dtype),
        Buffer::F16(values) => from_float(memory, values.iter().map(|value| value.to_f32()), dtype),
        Buffer::BF16(values) => from_float(memory, values.iter().map(|value| value.to_f32()), dtype),
        Buffer::I8(values) => from_integer(memory, values.iter().map(|&value| value.into()), dtype),
        Buffer::U8(values) | Buffer::Bool(values) => {
            from_integer(memory, values.iter().map(|&value| value.into()), dtype)
        }
        Buffer::I32(values) => from_integer(memory, values.iter().copied(), dtype),
    }
}

/// See [`Backend::bitcast`].
pub(crate) fn bitcast(memory: &Memory, x: &Buffer, dtype: DType) -> Result<Buffer> {
    match (x, dtype) {
        (Buffer::F32(values), DType::I32) => Ok(map(memory, values, |x| x.to_bits().cast_signed()).into()),
        (Buffer::I32(values), DType::F32) => {
            Ok(map(memory, values, |x| f32::from_bits(x.cast_unsigned())).into())
        }
        _ => Err(x.mismatch("bitcast", "f32 or i32")),
    }
}

/// See [`Backend::unary`].
pub(crate) fn unary(memory: &Memory, op: UnaryOp, x: &Buffer) -> Result<Buffer> {
    match (op, x) {
        (UnaryOp::Neg, Buffer::I32(values)) => Ok(map(memory, values, i32::wrapping_neg).into()),
        (UnaryOp::Neg, Buffer::F32(values)) => Ok(map(memory, values, |x| -x).into()),
        (UnaryOp::Abs, Buffer::F32(values)) => Ok(map(memory, values, f32::abs).into()),
        (UnaryOp::Sqrt, Buffer::F32(values)) => Ok(map(memory, values, f32::sqrt).into()),
        (UnaryOp::RoundEven, Buffer::F32(values)) => Ok(map(memory, values, f32::round_ties_even).into()),
        _ => Err(x.mismatch("unary", "f32")),
    }
}

/// See [`Backend::binary`].
pub(crate) fn binary(memory: &Memory, op: BinaryOp, a: &Buffer, b: &Buffer) -> Result<Buffer> {
    match (a, b) {
        (Buffer::F32(a), Buffer::F32(b)) => binary_f32(memory, op, a, b),
        (Buffer::I32(a), Buffer::I32(b)) => binary_i32(memory, op, a, b),
        (Buffer::Bool(a), Buffer::Bool(b)) => match op {
            BinaryOp::And => Ok(Buffer::mask(zip(memory, a, b, |x, y| x & y))),
            BinaryOp::Or => Ok(Buffer::mask(zip(memory, a, b, |x, y| x | y))),
            _ => Err(Error::DType { op: "binary", expected: "f32 or i32", found: DType::Bool }),
        },
        _ => Err(a.mismatch("binary", "f32, i32 or bool")),
    }
}

/// Sums of `a` and `b`.
pub(crate) fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (x, y))| *out = x + y);
}

/// See [`Backend::compare`].
pub(crate) fn compare(memory: &Memory, op: CompareOp, a: &Buffer, b: &Buffer) -> Result<Buffer> {
    match (a, b) {
        (Buffer::F32(a), Buffer::F32(b)) => Ok(Buffer::mask(compare_values(memory, op, a, b))),
        (Buffer::I32(a), Buffer::I32(b)) => Ok(Buffer::mask(compare_values(memory, op, a, b))),
        _ => Err(a.mismatch("compare", "f32 or i32")),
    }
}

/// See [`Backend::select`].
pub(crate) fn select(memory: &Memory, condition: &Buffer, a: &Buffer, b: &Buffer) -> Result<Buffer> {
    let condition = condition.bools("select")?;
    Ok(zip_elements!("select", a, b, (a, b) => {
        let pick = |(&c, (&x, &y))| if c != 0 { x } else { y };
        memory.collect(a.len(), condition.iter().zip(a.iter().zip(b.iter())).map(pick))
    }))
}

/// See [`Backend::full`].
pub(crate) fn full(memory: &Memory, len: usize, value: Scalar) -> Buffer {
    fn filled<T: Pod>(memory: &Memory, len: usize, value: T) -> Elements<T> {
        if bytemuck::bytes_of(&value).iter().all(|&byte| byte == 0) {
            return memory.zeros(len);
        }
        let mut elements = memory.elements(len);
        elements.as_mut_slice().fill(value);
        elements
    }
    match value {
        Scalar::F32(value) => filled(memory, len, value).into(),
        Scalar::I32(value) => filled(memory, len, value).into(),
        Scalar::I8(value) => filled(memory, len, value).into(),
    }
}

/// See [`Backend::iota`].
pub(crate) fn iota(memory: &Memory, shape: &[usize], axis: usize) -> Buffer {
    let inner: usize = shape[axis + 1..].iter().product();
    let indices = (0..shape[axis] as i32).flat_map(|index| std::iter::repeat_n(index, inner)).cycle();
    memory.collect(shape.iter().product(), indices).into()
}

/// See [`Backend::max_reduce`].
pub(crate) fn max_reduce<B: Backend<Data = Buffer>>(memory: &Memory, x: &Tensor<B>) -> Result<Buffer> {
    let extent = x.dims().last().copied().unwrap_or(1).max(1);
    let rows = x.shape().elements() / extent;
    match x.data() {
        Buffer::F32(values) => {
            Ok(memory.collect(rows, values.chunks_exact(extent).map(|row| fold(row, max_f32))).into())
        }
        Buffer::I32(values) => {
            Ok(memory.collect(rows, values.chunks_exact(extent).map(|row| fold(row, i32::max))).into())
        }
        other => Err(other.mismatch("max_reduce", "f32 or i32")),
    }
}

fn binary_f32(memory: &Memory, op: BinaryOp, a: &[f32], b: &[f32]) -> Result<Buffer> {
    Ok(match op {
        BinaryOp::Add => zip(memory, a, b, |x, y| x + y),
        BinaryOp::Sub => zip(memory, a, b, |x, y| x - y),
        BinaryOp::Mul => zip(memory, a, b, |x, y| x * y),
        BinaryOp::Div => zip(memory, a, b, |x, y| x / y),
        BinaryOp::Max => zip(memory, a, b, max_f32),
        BinaryOp::And | BinaryOp::Or | BinaryOp::Shl | BinaryOp::Shr => {
            return Err(Error::DType { op: "binary", expected: "i32", found: DType::F32 });
        }
    }
    .into())
}

fn binary_i32(memory: &Memory, op: BinaryOp, a: &[i32], b: &[i32]) -> Result<Buffer> {
    Ok(match op {
        BinaryOp::Add => zip(memory, a, b, i32::wrapping_add),
        BinaryOp::Sub => zip(memory, a, b, i32::wrapping_sub),
        BinaryOp::Mul => zip(memory, a, b, i32::wrapping_mul),
        BinaryOp::Max => zip(memory, a, b, i32::max),
        BinaryOp::And => zip(memory, a, b, |x, y| x & y),
        BinaryOp::Or => zip(memory, a, b, |x, y| x | y),
        BinaryOp::Shl => zip(memory, a, b, |x, y| x.wrapping_shl(y.cast_unsigned())),
        BinaryOp::Shr => zip(memory, a, b, |x, y| x.wrapping_shr(y.cast_unsigned())),
        BinaryOp::Div => return Err(Error::DType { op: "binary", expected: "f32", found: DType::I32 }),
    }
    .into())
}

fn max_f32(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

fn compare_values<T: Copy + PartialOrd>(memory: &Memory, op: CompareOp, a: &[T], b: &[T]) -> Elements<u8> {
    match op {
        CompareOp::Lt => zip(memory, a, b, |x, y| u8::from(x < y)),
        CompareOp::Le => zip(memory, a, b, |x, y| u8::from(x <= y)),
        CompareOp::Eq => zip(memory, a, b, |x, y| u8::from(x == y)),
    }
}

/// Rust's `as` is the contract's cast: to nearest between floats, saturating toward zero to an integer, NaN to 0.
fn from_float(memory: &Memory, values: impl ExactSizeIterator<Item = f32>, dtype: DType) -> Result<Buffer> {
    let len = values.len();
    Ok(match dtype {
        DType::F32 => memory.collect(len, values).into(),
        DType::F16 => memory.collect(len, values.map(f16::from_f32)).into(),
        DType::BF16 => memory.collect(len, values.map(bf16::from_f32)).into(),
        DType::I8 => memory.collect(len, values.map(|x| x as i8)).into(),
        DType::U8 => memory.collect(len, values.map(|x| x as u8)).into(),
        DType::I32 => memory.collect(len, values.map(|x| x as i32)).into(),
        DType::Bool => return Err(no_mask_from(DType::F32)),
    })
}

/// Integers below 2^24 are exact in f32, and larger ones overflow f16, so that rounding twice changes nothing.
fn from_integer(memory: &Memory, values: impl ExactSizeIterator<Item = i32>, dtype: DType) -> Result<Buffer> {
    let len = values.len();
    Ok(match dtype {
        DType::F32 => memory.collect(len, values.map(|x| x as f32)).into(),
        DType::F16 => memory.collect(len, values.map(|x| f16::from_f32(x as f32))).into(),
        DType::BF16 => memory.collect(len, values.map(bf16_from_i32)).into(),
        DType::I8 => memory.collect(len, values.map(|x| x as i8)).into(),
        DType::U8 => memory.collect(len, values.map(|x| x as u8)).into(),
        DType::I32 => memory.collect(len, values).into(),
        DType::Bool => return Err(no_mask_from(DType::I32)),
    })
}

/// Rounded once: bits that f32 would round away are kept as a sticky bit, far below bfloat16's last place.
fn bf16_from_i32(x: i32) -> bf16 {
    let magnitude = x.unsigned_abs();
    let sticky = u32::from(magnitude & 0xff != 0) << 8;
    let exact = if magnitude >> 24 == 0 { magnitude } else { (magnitude & !0xff) | sticky };
    bf16::from_f32(if x < 0 { -(exact as f32) } else { exact as f32 })
}

fn no_mask_from(found: DType) -> Error {
    Error::DType { op: "cast", expected: "a comparison, where a mask is wanted", found }
}

fn map<T: Copy, U: Pod>(memory: &Memory, values: &[T], f: impl Fn(T) -> U) -> Elements<U> {
    memory.collect(values.len(), values.iter().map(|&x| f(x)))
}

fn zip<T: Copy, U: Pod>(memory: &Memory, a: &[T], b: &[T], f: impl Fn(T, T) -> U) -> Elements<U> {
    memory.collect(a.len(), a.iter().zip(b).map(|(&x, &y)| f(x, y)))
}

fn fold<T: Copy>(row: &[T], f: impl Fn(T, T) -> T) -> T {
    row[1..].iter().fold(row[0], |x, &y| f(x, y))
}
