//! Every primitive, element by element: f32 arithmetic as f64 arithmetic rounded once (which is exact rounding, since
//! 53 >= 2 * 24 + 2 bits), integers in i64, moves by coordinates.

use half::{bf16, f16};
use samebits_conformance::{Case, Group, Op};
use samebits_cpu::Host;
use samebits_tensor::{BinaryOp, CompareOp, DType, HostTensor, Shape, Tensor, UnaryOp};

use crate::{f32s, f64s, indices, integers, results};

fn same_f32(case: &Case, found: &[f32], expected: impl Iterator<Item = f32>) {
    let open = case.zero_sign_is_open();
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits()
            || (found.is_nan() && expected.is_nan())
            || (open && *found == 0.0 && expected == 0.0);
        assert!(same, "{}: element {i}: {found:e}, not {expected:e}", case.name);
    }
}

#[test]
fn binary() {
    for (case, found) in results(Group::Binary) {
        let Op::Binary(op) = case.op else { panic!("{}", case.name) };
        if case.inputs[0].dtype() == DType::F32 {
            let (a, b) = (f64s(&case.inputs[0]), f64s(&case.inputs[1]));
            same_f32(&case, &f32s(&found[0]), a.iter().zip(&b).map(|(&a, &b)| binary_f64(op, a, b) as f32));
        } else {
            let (a, b) = (integers(&case.inputs[0]), integers(&case.inputs[1]));
            let expected: Vec<i64> =
                a.iter().zip(&b).map(|(&a, &b)| i64::from(binary_i64(op, a, b) as i32)).collect();
            assert_eq!(integers(&found[0]), expected, "{}", case.name);
        }
    }
}

fn binary_f64(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Max if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Max => a.max(b),
        other => panic!("{other:?} of floats"),
    }
}

fn binary_i64(op: BinaryOp, a: i64, b: i64) -> i64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Max => a.max(b),
        BinaryOp::And => !(!a | !b),
        BinaryOp::Or => !(!a & !b),
        BinaryOp::Shl => a * (1 << b),
        BinaryOp::Shr => a.div_euclid(1 << b),
        BinaryOp::Div => panic!("a quotient of integers"),
    }
}

#[test]
fn unary() {
    for (case, found) in results(Group::Unary) {
        let Op::Unary(op) = case.op else { panic!("{}", case.name) };
        if case.inputs[0].dtype() == DType::I32 {
            let expected: Vec<i64> =
                integers(&case.inputs[0]).into_iter().map(|x| i64::from(-x as i32)).collect();
            assert_eq!(integers(&found[0]), expected, "{}", case.name);
            continue;
        }
        let expected = f64s(&case.inputs[0]).into_iter().map(|x| match op {
            UnaryOp::Neg => (0.0f64.copysign(-x.signum()) - x) as f32,
            UnaryOp::Abs => x.max(-x).copysign(1.0) as f32,
            UnaryOp::Sqrt => x.sqrt() as f32,
            UnaryOp::RoundEven => round_even(x) as f32,
        });
        same_f32(&case, &f32s(&found[0]), expected);
    }
}

/// The nearest integer; of two as near, the even one. The sign stays, also of a zero.
fn round_even(x: f64) -> f64 {
    let below = x.floor();
    let nearest = match (x - below).partial_cmp(&0.5) {
        Some(std::cmp::Ordering::Less) => below,
        Some(std::cmp::Ordering::Greater) => below + 1.0,
        Some(std::cmp::Ordering::Equal) => 2.0 * ((below + 1.0) / 2.0).floor(),
        None => x,
    };
    nearest.copysign(x)
}

#[test]
fn compare() {
    for (case, found) in results(Group::Compare) {
        let Op::Compare(op) = case.op else { panic!("{}", case.name) };
        let values = |x: &HostTensor| match x.dtype() {
            DType::F32 => f64s(x),
            _ => integers(x).into_iter().map(|x| x as f64).collect(),
        };
        let (a, b) = (values(&case.inputs[0]), values(&case.inputs[1]));
        let expected: Vec<i64> = a
            .iter()
            .zip(&b)
            .map(|(a, b)| match (op, a.partial_cmp(b)) {
                (_, None) => 0,
                (CompareOp::Lt, Some(order)) => i64::from(order.is_lt()),
                (CompareOp::Le, Some(order)) => i64::from(order.is_le()),
                (CompareOp::Eq, Some(order)) => i64::from(order.is_eq()),
            })
            .collect();
        assert_eq!(integers(&found[0]), expected, "{}", case.name);
    }
}

#[test]
fn cast() {
    for (case, found) in results(Group::Cast) {
        let Op::Cast(to) = case.op else { panic!("{}", case.name) };
        let values = numbers(&case.inputs[0]);
        let found = numbers(&found[0]);
        assert_eq!(values.len(), found.len(), "{}", case.name);
        let from_float = matches!(case.inputs[0].dtype(), DType::F32 | DType::F16 | DType::BF16);
        for (x, found) in values.into_iter().zip(found) {
            let expected = cast_f64(x, from_float, to);
            let same = expected.to_bits() == found.to_bits() || (expected.is_nan() && found.is_nan());
            assert!(same, "{}: {x:e} became {found:e}, not {expected:e}", case.name);
        }
    }
}

/// Any elements as f64, which holds all of them exactly. Half floats are decoded by the definition of their formats.
fn numbers(x: &HostTensor) -> Vec<f64> {
    let pairs = || x.bytes().chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    match x.dtype() {
        DType::F32 => f64s(x),
        DType::F16 => pairs().map(|bits| decode(bits, 10, 15)).collect(),
        DType::BF16 => pairs().map(|bits| decode(bits, 7, 127)).collect(),
        _ => integers(x).into_iter().map(|x| x as f64).collect(),
    }
}

fn decode(bits: u16, fraction_bits: u32, bias: i32) -> f64 {
    let fraction = f64::from(bits & ((1 << fraction_bits) - 1)) / f64::from(1u32 << fraction_bits);
    let exponent_mask = (1 << (15 - fraction_bits)) - 1;
    let exponent = i32::from((bits >> fraction_bits) & exponent_mask);
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(1 - bias),
        e if e == i32::from(exponent_mask) && fraction == 0.0 => f64::INFINITY,
        e if e == i32::from(exponent_mask) => f64::NAN,
        e => (1.0 + fraction) * 2f64.powi(e - bias),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

fn cast_f64(x: f64, from_float: bool, to: DType) -> f64 {
    let clamp = |low: f64, high: f64| if x.is_nan() { 0.0 } else { x.trunc().clamp(low, high) + 0.0 };
    let low_bits = |bits: u32| (x as i64).rem_euclid(1 << bits);
    let signed = |bits: u32| {
        let value = low_bits(bits);
        (if value >= 1 << (bits - 1) { value - (1 << bits) } else { value }) as f64
    };
    match to {
        DType::F32 => round_to(x, 23, -126, 127),
        DType::F16 => round_to(x, 10, -14, 15),
        DType::BF16 => round_to(x, 7, -126, 127),
        DType::I8 if from_float => clamp(-128.0, 127.0),
        DType::U8 if from_float => clamp(0.0, 255.0),
        DType::I32 if from_float => clamp(-2_147_483_648.0, 2_147_483_647.0),
        DType::I8 => signed(8),
        DType::U8 => low_bits(8) as f64,
        DType::I32 => signed(32),
        DType::Bool => panic!("no cast makes a mask"),
    }
}

/// The nearest value of a binary format with this many fraction bits and these exponents.
fn round_to(x: f64, fraction_bits: i32, least: i32, largest: i32) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let quantum = 2f64.powi(exponent - fraction_bits);
    let rounded = round_even(x / quantum) * quantum;
    if rounded.abs() >= 2f64.powi(largest + 1) { f64::INFINITY.copysign(x) } else { rounded }
}

#[test]
fn half_floats_are_those_of_the_host_types() {
    for bits in 0..=u16::MAX {
        let (a, b) = (f16::from_bits(bits).to_f64(), bf16::from_bits(bits).to_f64());
        assert!(a.is_nan() || a == decode(bits, 10, 15), "{bits:#x}");
        assert!(b.is_nan() || b == decode(bits, 7, 127), "{bits:#x}");
    }
}

#[test]
fn bitcast() {
    for (case, found) in results(Group::Bitcast) {
        assert_eq!(case.inputs[0].bytes(), found[0].bytes(), "{}", case.name);
    }
}

#[test]
fn max_reduce() {
    for (case, found) in results(Group::MaxReduce) {
        let extent = *case.inputs[0].shape().last().expect("an axis");
        if case.inputs[0].dtype() == DType::I32 {
            let largest = |row: &[i64]| row.iter().copied().max().expect("an element");
            let expected: Vec<i64> = integers(&case.inputs[0]).chunks(extent).map(largest).collect();
            assert_eq!(integers(&found[0]), expected, "{}", case.name);
        } else {
            let largest = |row: &[f32]| {
                let nan = row.iter().any(|x| x.is_nan());
                if nan { f32::NAN } else { row.iter().copied().fold(f32::NEG_INFINITY, f32::max) }
            };
            let expected: Vec<f32> = f32s(&case.inputs[0]).chunks(extent).map(largest).collect();
            same_f32(&case, &f32s(&found[0]), expected.into_iter());
        }
    }
}

#[test]
fn matmul_exact() {
    for (case, found) in results(Group::MatmulExact) {
        let (a, b) = (&case.inputs[0], &case.inputs[1]);
        let [batch, m, k] = *a.shape().dims() else { panic!("{}", case.name) };
        let n = b.shape()[1];
        let (a, b) = (integers(a), integers(b));
        let mut expected = Vec::new();
        for (i, row, column) in product3(batch, m, n) {
            let dot: i64 = (0..k).map(|c| a[(i * m + row) * k + c] * b[(i * n + column) * k + c]).sum();
            assert!(dot.abs() < 1 << 24, "{}: the case breaks the contract", case.name);
            expected.push(dot);
        }
        assert_eq!(integers(&found[0]), expected, "{}", case.name);
    }
}

fn product3(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

#[test]
fn moves() {
    let groups = [
        Group::Reshape,
        Group::Permute,
        Group::Slice,
        Group::Broadcast,
        Group::Concat,
        Group::Gather,
        Group::Scatter,
        Group::Select,
    ];
    for (case, found) in groups.into_iter().flat_map(results) {
        let shape = found[0].shape();
        for index in 0..shape.elements() {
            let (operand, source) = source(&case, index, &coordinates(shape, index));
            let (operand, size) = (&case.inputs[operand], found[0].dtype().size());
            let element = |x: &HostTensor, index: usize| x.bytes()[index * size..(index + 1) * size].to_vec();
            assert_eq!(element(&found[0], index), element(operand, source), "{}: element {index}", case.name);
        }
    }
}

/// Which operand and which of its elements an element of the result is.
fn source(case: &Case, index: usize, at: &[usize]) -> (usize, usize) {
    let flat = |operand: usize, at: &[usize]| {
        let strides = case.inputs[operand].shape().strides();
        (operand, at.iter().zip(strides).map(|(coordinate, stride)| coordinate * stride).sum())
    };
    let mut at = at.to_vec();
    match &case.op {
        Op::Reshape(_) => (0, index),
        Op::Permute(axes) => {
            let mut from = vec![0; at.len()];
            axes.iter().zip(&at).for_each(|(&axis, &coordinate)| from[axis] = coordinate);
            flat(0, &from)
        }
        Op::Slice(axis, range) => {
            at[*axis] += range.start;
            flat(0, &at)
        }
        Op::Broadcast(_) => {
            let extents = case.inputs[0].shape();
            at.iter_mut().zip(extents.iter()).for_each(|(at, &extent)| *at = (*at).min(extent - 1));
            flat(0, &at)
        }
        Op::Concat(axis) => {
            let mut operand = 0;
            while at[*axis] >= case.inputs[operand].shape()[*axis] {
                at[*axis] -= case.inputs[operand].shape()[*axis];
                operand += 1;
            }
            flat(operand, &at)
        }
        Op::Gather => {
            at[0] = indices(&case.inputs[1])[at[0]];
            flat(0, &at)
        }
        Op::Scatter => match indices(&case.inputs[1]).iter().position(|&target| target == at[0]) {
            Some(row) => {
                at[0] = row;
                flat(2, &at)
            }
            None => flat(0, &at),
        },
        Op::Select => (if case.inputs[0].bytes()[index] == 1 { 1 } else { 2 }, index),
        other => panic!("{other:?} is no move"),
    }
}

fn coordinates(shape: &Shape, index: usize) -> Vec<usize> {
    shape.strides().iter().zip(shape.iter()).map(|(stride, extent)| index / stride % extent).collect()
}

#[test]
fn iota_and_full() {
    for (case, found) in results(Group::Iota) {
        let Op::Iota(shape, axis) = &case.op else { panic!("{}", case.name) };
        let expected: Vec<i64> =
            (0..shape.elements()).map(|index| coordinates(shape, index)[*axis] as i64).collect();
        assert_eq!(integers(&found[0]), expected, "{}", case.name);
    }
    for (case, found) in results(Group::Full) {
        let Op::Full(shape, value) = &case.op else { panic!("{}", case.name) };
        let bytes = match *value {
            samebits_tensor::Scalar::F32(value) => value.to_le_bytes().to_vec(),
            samebits_tensor::Scalar::I32(value) => value.to_le_bytes().to_vec(),
            samebits_tensor::Scalar::I8(value) => value.to_le_bytes().to_vec(),
        };
        assert_eq!(found[0].bytes(), bytes.repeat(shape.elements()), "{}", case.name);
    }
}

#[test]
fn indices_outside_are_errors_and_change_nothing() {
    let tensor = |values: &[i32]| Tensor::of(&Host, [values.len()], values).expect("a vector");
    let mut x = tensor(&[1, 2, 3]);
    for bad in [-1, 3, i32::MAX, i32::MIN] {
        let at = tensor(&[0, bad]);
        let error = x.gather(&at).err().expect("an index outside").to_string();
        assert_eq!(error, format!("gather: index {bad} is outside of 0..3"));
        let error = x.scatter(&at, &tensor(&[7, 8])).expect_err("an index outside").to_string();
        assert_eq!(error, format!("scatter: index {bad} is outside of 0..3"));
    }
    assert_eq!(x.to_vec::<i32>().expect("i32"), [1, 2, 3]);
}

#[test]
fn a_scatter_into_a_shared_buffer_leaves_the_other_owner_alone() {
    let x = Tensor::of(&Host, [2], &[1, 2]).expect("a vector");
    let mut y = x.clone();
    let (at, row) =
        (Tensor::of(&Host, [1], &[0]).expect("an index"), Tensor::of(&Host, [1], &[9]).expect("a row"));
    y.scatter(&at, &row).expect("inside");
    assert_eq!((x.to_vec::<i32>().expect("i32"), y.to_vec::<i32>().expect("i32")), (vec![1, 2], vec![9, 2]));
}

#[test]
fn a_mask_is_made_by_a_comparison_only() {
    let x = Tensor::of(&Host, [1], &[1.0f32]).expect("a vector");
    assert!(x.cast(DType::Bool).err().expect("no cast").to_string().contains("a comparison"));
}
