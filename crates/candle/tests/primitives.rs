//! Every primitive against values written out by hand, on contiguous tensors and on views.

use half::{bf16, f16};
use samebits_candle::{Candle, Device};
use samebits_tensor::{BinaryOp, CompareOp, DType, Error, HostTensor, Result, Tensor as AnyTensor, UnaryOp};

type Tensor = AnyTensor<Candle>;

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;

fn backend() -> Candle {
    Candle::exact(Device::Cpu)
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::of(&backend(), [values.len()], values).unwrap()
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::of(&backend(), [values.len()], values).unwrap()
}

fn matrix(rows: usize, cols: usize) -> Tensor {
    let values: Vec<i32> = (0..(rows * cols) as i32).collect();
    Tensor::of(&backend(), [rows, cols], &values).unwrap()
}

fn mask(values: &[u8]) -> Tensor {
    let host = HostTensor::new([values.len()], DType::Bool, values.to_vec().into()).unwrap();
    Tensor::upload(&backend(), &host).unwrap()
}

fn read_i32(x: Result<Tensor>) -> Vec<i32> {
    x.unwrap().to_vec().unwrap()
}

/// The bits of floats, with every NaN as one: the contract does not fix a NaN's payload.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if x.is_nan() { NAN.to_bits() } else { x.to_bits() }).collect()
}

#[track_caller]
fn expect_floats(x: Result<Tensor>, expected: &[f32]) {
    let values: Vec<f32> = x.unwrap().to_vec().unwrap();
    assert_eq!(bits(&values), bits(expected), "{values:?} is not {expected:?}");
}

#[track_caller]
fn expect_index(result: Result<impl Sized>, expected: i64) {
    match result {
        Err(Error::Index { index, .. }) => assert_eq!(index, expected),
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("index {expected} was taken"),
    }
}

#[test]
fn every_dtype_survives_the_round_trip() {
    let backend = backend();
    for dtype in DType::ALL {
        let bytes: Vec<u8> = match dtype {
            DType::Bool => vec![0, 1, 1, 0],
            _ => (0..4 * dtype.size()).map(|i| (i * 37 + 128) as u8).collect(),
        };
        let host = HostTensor::new([2, 2], dtype, bytes.clone().into()).unwrap();
        let back = Tensor::upload(&backend, &host).unwrap().download().unwrap();
        assert_eq!(
            (back.bytes(), back.dtype(), back.shape().dims()),
            (&bytes[..], dtype, &[2, 2][..]),
            "{dtype}"
        );
    }
}

#[test]
fn filled_and_counted_tensors() {
    let backend = backend();
    assert_eq!(Tensor::full(&backend, [2, 2], -3i8).unwrap().to_vec::<i8>().unwrap(), [-3; 4]);
    assert_eq!(read_i32(Tensor::full(&backend, [3], i32::MIN)), [i32::MIN; 3]);
    expect_floats(Tensor::full(&backend, [2], -0.0), &[-0.0, -0.0]);
    expect_floats(Tensor::full(&backend, [0usize; 0], 1.5), &[1.5]);
    assert_eq!(read_i32(Tensor::iota(&backend, [2, 3], 1)), [0, 1, 2, 0, 1, 2]);
    assert_eq!(read_i32(Tensor::iota(&backend, [2, 3], 0)), [0, 0, 0, 1, 1, 1]);
}

#[test]
fn views_read_as_their_copies() {
    let x = matrix(3, 4);
    let t = x.permute(&[1, 0]).unwrap();
    assert_eq!(read_i32(Ok(t.clone())), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
    assert_eq!(read_i32(t.reshape([2, 6])), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
    assert_eq!(read_i32(t.narrow(0, 1..3).unwrap().at(1, 2)), [9, 10]);
    assert_eq!(read_i32(x.narrow(1, 1..1).unwrap().reshape([0])), [0; 0]);
    let empty = matrix(0, 4).narrow(1, 1..3).unwrap();
    assert_eq!(read_i32(empty.permute(&[1, 0]).unwrap().reshape([0])), [0; 0]);
    assert_eq!(read_i32(x.at(1, 3).unwrap().repeat(0, 2)), [3, 7, 11, 3, 7, 11]);
    assert_eq!(read_i32(x.at(1, 3).unwrap().repeat(1, 2)), [3, 3, 7, 7, 11, 11]);
    let cube = matrix(4, 6).reshape([4, 2, 3]).unwrap().permute(&[2, 0, 1]).unwrap();
    assert_eq!(read_i32(cube.at(0, 1).unwrap().at(0, 2)), [13, 16]);
}

#[test]
fn concat_of_views() {
    let x = matrix(2, 3);
    let t = matrix(3, 2).permute(&[1, 0]).unwrap();
    let wide = x.at(0, 0).unwrap().repeat(0, 2).unwrap();
    let empty = x.narrow(1, 0..0).unwrap();
    let all = [&x, &t, &empty, &wide];
    assert_eq!(read_i32(Tensor::concat(&all, 1)), [0, 1, 2, 0, 2, 4, 0, 1, 2, 3, 4, 5, 1, 3, 5, 0, 1, 2]);
    assert_eq!(read_i32(Tensor::concat(&[&x, &t], 0)), [0, 1, 2, 3, 4, 5, 0, 2, 4, 1, 3, 5]);
    assert_eq!(read_i32(Tensor::concat(&[&t], 0)), [0, 2, 4, 1, 3, 5]);
}

#[test]
fn casts_saturate_from_floats_and_wrap_from_integers() {
    let x = floats(&[-0.0, 0.9, -1.9, 127.5, -200.0, 300.0, 3e9, -3e9, NAN, INF, -INF]);
    let as_i8 = x.cast(DType::I8).unwrap().to_vec::<i8>().unwrap();
    assert_eq!(as_i8, [0, 0, -1, 127, -128, 127, 127, -128, 0, 127, -128]);
    let as_u8 = x.cast(DType::U8).unwrap().to_vec::<u8>().unwrap();
    assert_eq!(as_u8, [0, 0, 0, 127, 0, 255, 255, 0, 0, 255, 0]);
    let as_i32 = read_i32(x.cast(DType::I32));
    assert_eq!(as_i32, [0, 0, -1, 127, -200, 300, i32::MAX, i32::MIN, 0, i32::MAX, i32::MIN]);

    let x = ints(&[-1, 255, 256, 384, i32::MIN, 65_407]);
    assert_eq!(x.cast(DType::I8).unwrap().to_vec::<i8>().unwrap(), [-1, -1, 0, -128, 0, 127]);
    assert_eq!(x.cast(DType::U8).unwrap().to_vec::<u8>().unwrap(), [255, 255, 0, 128, 0, 127]);
    let narrow = x.cast(DType::I8).unwrap();
    assert_eq!(narrow.cast(DType::U8).unwrap().to_vec::<u8>().unwrap(), [255, 255, 0, 128, 0, 127]);
    assert_eq!(read_i32(narrow.cast(DType::I32)), [-1, -1, 0, -128, 0, 127]);
    let wide = x.cast(DType::U8).unwrap();
    assert_eq!(wide.cast(DType::I8).unwrap().to_vec::<i8>().unwrap(), [-1, -1, 0, -128, 0, 127]);
    expect_floats(mask(&[0, 1]).cast(DType::F32), &[0.0, 1.0]);
    assert_eq!(read_i32(mask(&[0, 1]).cast(DType::I32)), [0, 1]);
    assert!(matches!(x.cast(DType::Bool), Err(Error::DType { op: "cast", .. })));
}

#[test]
fn casts_round_to_nearest_even() {
    expect_floats(
        ints(&[16_777_217, 16_777_219, i32::MAX]).cast(DType::F32),
        &[16_777_216.0, 16_777_220.0, 2_147_483_648.0],
    );
    let x = floats(&[1.0 + 0.5f32.powi(11), 1.0 + 3.0 * 0.5f32.powi(11), 65_520.0, 2f32.powi(-25)]);
    let halves: [f16; 4] = x.cast(DType::F16).unwrap().to_vec().unwrap().try_into().unwrap();
    assert_eq!(halves.map(f16::to_bits), [0x3c00, 0x3c02, 0x7c00, 0x0000]);
    let x = floats(&[1.0 + 0.5f32.powi(8), 1.0 + 3.0 * 0.5f32.powi(8), -1.0]);
    let brains = x.cast(DType::BF16).unwrap();
    let bits: [bf16; 3] = brains.to_vec().unwrap().try_into().unwrap();
    assert_eq!(bits.map(bf16::to_bits), [0x3f80, 0x3f82, 0xbf80]);
    expect_floats(brains.cast(DType::F16).unwrap().cast(DType::F32), &[1.0, 1.015_625, -1.0]);
    // Through f32 this would be a tie, and round down.
    let once = ints(&[0x0101_0001, 0x0101_0000, -0x0101_0001]).cast(DType::BF16).unwrap();
    expect_floats(once.cast(DType::F32), &[16_908_288.0, 16_777_216.0, -16_908_288.0]);
}

#[test]
fn bitcasts_keep_bits() {
    let x = floats(&[1.0, -0.0, f32::MIN_POSITIVE / 2.0, INF]);
    let bits = x.bitcast(DType::I32).unwrap();
    assert_eq!(read_i32(Ok(bits.clone())), [0x3f80_0000, i32::MIN, 0x0040_0000, 0x7f80_0000]);
    expect_floats(bits.bitcast(DType::F32), &[1.0, -0.0, f32::MIN_POSITIVE / 2.0, INF]);
}

#[test]
fn unary_operations() {
    let x = floats(&[-0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -0.3, 8_388_609.0, INF, NAN]);
    let rounded = [-0.0, 0.0, 2.0, 2.0, -0.0, -2.0, -0.0, 8_388_609.0, INF, NAN];
    expect_floats(x.unary(UnaryOp::RoundEven), &rounded);
    expect_floats(floats(&[0.0, -0.0, 2.0]).unary(UnaryOp::Neg), &[-0.0, 0.0, -2.0]);
    expect_floats(floats(&[-0.0, -2.0, -INF]).unary(UnaryOp::Abs), &[0.0, 2.0, INF]);
    let roots = floats(&[2.0, 0.1, -1.0, -0.0]).unary(UnaryOp::Sqrt);
    expect_floats(roots, &[f32::from_bits(0x3fb5_04f3), f32::from_bits(0x3ea1_e89b), NAN, -0.0]);
    assert_eq!(read_i32(ints(&[5, 0, i32::MIN]).unary(UnaryOp::Neg)), [-5, 0, i32::MIN]);
}

#[test]
fn float_arithmetic_rounds_each_operation_once() {
    let (a, b) = ([1.0f32, 0.1, 3.0, 1e30, -1.0], [3.0f32, 0.7, -0.3, 1e30, 0.0]);
    let (x, y) = (floats(&a), floats(&b));
    let each = |f: fn(f32, f32) -> f32| a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect::<Vec<_>>();
    expect_floats(x.add(&y), &each(|a, b| a + b));
    expect_floats(x.sub(&y), &each(|a, b| a - b));
    expect_floats(x.mul(&y), &each(|a, b| a * b));
    expect_floats(x.div(&y), &each(|a, b| a / b));
    // A product that is rounded before it is added; fused, the sum would not be zero.
    let product = x.mul(&y).unwrap();
    expect_floats(product.sub(&product), &[0.0, 0.0, 0.0, NAN, 0.0]);
    let subnormal = floats(&[f32::MIN_POSITIVE]).mul(&floats(&[0.25]));
    expect_floats(subnormal, &[f32::MIN_POSITIVE / 4.0]);
}

#[test]
fn arithmetic_with_a_repeated_operand_on_either_side() {
    let column = floats(&[1.0, 2.0]).repeat(1, 3).unwrap();
    let row = floats(&[10.0, 20.0, 30.0]).repeat(0, 2).unwrap();
    let x = Tensor::of(&backend(), [2, 3], &[1f32, 2., 3., 4., 5., 6.]).unwrap();
    expect_floats(x.sub(&column), &[0., 1., 2., 2., 3., 4.]);
    expect_floats(column.sub(&x), &[0., -1., -2., -2., -3., -4.]);
    expect_floats(column.div(&row), &[1. / 10., 1. / 20., 1. / 30., 2. / 10., 2. / 20., 2. / 30.]);
    expect_floats(row.div(&column), &[10., 20., 30., 5., 10., 15.]);
    expect_floats(x.scalar(BinaryOp::Sub, 1.0), &[0., 1., 2., 3., 4., 5.]);
    expect_floats(x.filled(1.0).unwrap().sub(&x), &[0., -1., -2., -3., -4., -5.]);
    let t = x.permute(&[1, 0]).unwrap();
    expect_floats(t.sub(&row.permute(&[1, 0]).unwrap()), &[-9., -6., -18., -15., -27., -24.]);
}

/// candle works on large operands in parallel, by another loop.
#[test]
fn arithmetic_on_large_repeated_operands() {
    let n = 100_000;
    let line: Vec<f32> = (0..n).map(|i| i as f32 * 0.25).collect();
    let x = floats(&line).repeat(0, 2).unwrap();
    let y = floats(&[3.0, 7.0]).repeat(1, n).unwrap();
    let each = |f: fn(f32, f32) -> f32| -> Vec<f32> {
        [3.0, 7.0].iter().flat_map(|&d| line.iter().map(move |&x| f(x, d))).collect()
    };
    expect_floats(x.div(&y), &each(|x, y| x / y));
    expect_floats(y.sub(&x), &each(|x, y| y - x));
}

#[test]
fn maxima_keep_every_nan() {
    let a = floats(&[1.0, NAN, 2.0, NAN, -INF, 4.0]);
    let b = floats(&[2.0, 1.0, NAN, NAN, 3.0, -INF]);
    expect_floats(a.max(&b), &[2.0, NAN, NAN, NAN, 3.0, 4.0]);
    assert_eq!(read_i32(ints(&[i32::MIN, 3]).max(&ints(&[-1, 2]))), [-1, 3]);

    let rows = [[3.0, NAN, 9.0], [NAN, 1.0, 2.0], [1.0, 2.0, NAN], [-INF, -5.0, -6.0]].concat();
    let x = Tensor::of(&backend(), [4, 3], &rows).unwrap();
    expect_floats(x.max_last(), &[NAN, NAN, NAN, -5.0]);
    expect_floats(x.permute(&[1, 0]).unwrap().narrow(1, 2..4).unwrap().max_last(), &[1.0, 2.0, NAN]);
    expect_floats(x.at(1, 1).unwrap().repeat(1, 1).unwrap().max_last(), &[NAN, 1.0, 2.0, -5.0]);
    expect_floats(floats(&[7.0, 8.0]).repeat(1, 5).unwrap().max_last(), &[7.0, 8.0]);
    expect_floats(x.narrow(0, 0..0).unwrap().max_last(), &[]);
    expect_floats(floats(&[2.0, 5.0]).max_last(), &[5.0]);
    assert_eq!(read_i32(matrix(2, 3).max_last()), [2, 5]);
}

#[test]
fn integer_arithmetic_wraps() {
    let a = ints(&[i32::MAX, i32::MIN, 65_536, -7]);
    let b = ints(&[1, 1, 65_537, 3]);
    assert_eq!(read_i32(a.add(&b)), [i32::MIN, i32::MIN + 1, 131_073, -4]);
    assert_eq!(read_i32(a.sub(&b)), [i32::MAX - 1, i32::MAX, -1, -10]);
    assert_eq!(read_i32(a.mul(&b)), [i32::MAX, i32::MIN, 65_536, -21]);
    assert_eq!(read_i32(a.binary(BinaryOp::And, &b)), [1, 0, 65_536, 1]);
    assert_eq!(read_i32(a.binary(BinaryOp::Or, &b)), [i32::MAX, i32::MIN + 1, 65_537, -5]);
    let shifts = ints(&[31, 1, 0, 2]);
    assert_eq!(read_i32(a.binary(BinaryOp::Shl, &shifts)), [i32::MIN, 0, 65_536, -28]);
    assert_eq!(read_i32(a.binary(BinaryOp::Shr, &shifts)), [0, -1_073_741_824, 65_536, -2]);
}

#[test]
fn masks_compare_combine_and_select() {
    let (a, b) = (floats(&[1.0, NAN, 0.0, 2.0]), floats(&[2.0, NAN, -0.0, 1.0]));
    let read = |x: Result<Tensor>| x.unwrap().to_vec::<u8>().unwrap();
    assert_eq!(read(a.compare(CompareOp::Lt, &b)), [1, 0, 0, 0]);
    assert_eq!(read(a.compare(CompareOp::Le, &b)), [1, 0, 1, 0]);
    assert_eq!(read(a.compare(CompareOp::Eq, &b)), [0, 0, 1, 0]);
    assert_eq!(read(ints(&[-1, 0]).compare_scalar(CompareOp::Lt, 0)), [1, 0]);
    let (p, q) = (mask(&[0, 0, 1, 1]), mask(&[0, 1, 0, 1]));
    assert_eq!(read(p.binary(BinaryOp::And, &q)), [0, 0, 0, 1]);
    assert_eq!(read(p.binary(BinaryOp::Or, &q)), [0, 1, 1, 1]);
    expect_floats(p.select(&a, &b), &[2.0, NAN, 0.0, 2.0]);
    assert_eq!(read(p.select(&q, &p)), [0, 0, 0, 1]);
    let tall = mask(&[1, 0]).repeat(1, 2).unwrap();
    let t = matrix(2, 2).permute(&[1, 0]).unwrap();
    assert_eq!(read_i32(tall.select(&t, &t.filled(9).unwrap())), [0, 2, 9, 9]);
}

fn bytes_i8(shape: [usize; 3], step: usize) -> (Tensor, Vec<i32>) {
    let values: Vec<i8> = (0..shape.iter().product()).map(|i| (i * step % 255) as u8 as i8).collect();
    let wide = values.iter().map(|&value| value.into()).collect();
    (Tensor::of(&backend(), shape, &values).unwrap(), wide)
}

#[test]
fn integer_products_are_exact() {
    for [batch, m, n, k] in [[1, 1, 70, 32], [3, 5, 4, 256], [2, 17, 33, 64], [2, 1, 1, 1], [4, 3, 128, 32]] {
        let (a, a_values) = bytes_i8([batch, m, k], 37);
        let (b, b_values) = bytes_i8([batch, n, k], 101);
        let mut expected = Vec::new();
        for (batch, row) in (0..batch).flat_map(|batch| (0..m).map(move |row| (batch, row))) {
            let a = &a_values[(batch * m + row) * k..][..k];
            let rows = b_values[batch * n * k..][..n * k].chunks(k);
            expected.extend(rows.map(|b| a.iter().zip(b).map(|(a, b)| a * b).sum::<i32>()));
        }
        assert_eq!(read_i32(a.matmul_exact(&b)), expected, "batch {batch}, m {m}, n {n}, k {k}");
        let swapped = b.permute(&[0, 2, 1]).unwrap().reshape([batch, k, n]).unwrap();
        let view = swapped.permute(&[0, 2, 1]).unwrap();
        assert_eq!(read_i32(a.matmul_exact(&view)), expected, "strided right operand");
    }
    let ones = |k| Tensor::full(&backend(), [1, 1, k], 1i8).unwrap();
    let high = Tensor::of(&backend(), [1, 1, 2], &[255u8, 255]).unwrap();
    assert_eq!(read_i32(high.matmul_exact(&ones(2))), [510]);
    let empty = Tensor::full(&backend(), [2, 3, 0], 1i8).unwrap();
    assert_eq!(read_i32(empty.matmul_exact(&empty)), [0; 18]);
    let empty = empty.narrow(0, 0..1).unwrap().narrow(1, 0..1).unwrap();
    assert_eq!(read_i32(empty.matmul_exact(&empty)), [0]);
}

#[test]
fn integer_products_of_views_with_a_repeated_operand() {
    let (a, a_values) = bytes_i8([2, 4, 3], 1);
    let a = a.permute(&[0, 2, 1]).unwrap();
    let b = Tensor::of(&backend(), [1, 4], &[1i8, 2, 3, 4]).unwrap().repeat(0, 2).unwrap();
    let expected: Vec<i32> =
        (0..6).map(|i| (0..4).map(|k| a_values[i / 3 * 12 + k * 3 + i % 3] * (k as i32 + 1)).sum()).collect();
    assert_eq!(read_i32(a.matmul_exact(&b)), expected);
    let swapped = b.matmul_exact(&a).unwrap();
    assert_eq!(read_i32(swapped.permute(&[0, 2, 1])), expected);
    let blocks = a.narrow(2, 1..3).unwrap().matmul_exact(&b.narrow(2, 1..3).unwrap());
    let expected: Vec<i32> =
        (0..6).map(|i| (1..3).map(|k| a_values[i / 3 * 12 + k * 3 + i % 3] * (k as i32 + 1)).sum()).collect();
    assert_eq!(read_i32(blocks), expected);
}

#[test]
fn gather_takes_rows_and_refuses_indices_outside() {
    let x = matrix(3, 2);
    assert_eq!(read_i32(x.gather(&ints(&[2, 0, 2]))), [4, 5, 0, 1, 4, 5]);
    assert_eq!(read_i32(x.permute(&[1, 0]).unwrap().gather(&ints(&[1]))), [1, 3, 5]);
    assert_eq!(read_i32(x.at(1, 1).unwrap().gather(&ints(&[1, 2]))), [3, 5]);
    assert_eq!(read_i32(x.gather(&ints(&[]))), [0; 0]);
    let every_other = ints(&[0, 9, 2, 9]).reshape([2, 2]).unwrap().at(1, 0).unwrap();
    assert_eq!(read_i32(x.gather(&every_other)), [0, 1, 4, 5]);
    for index in [-1, 3, i32::MIN, i32::MAX] {
        expect_index(x.gather(&ints(&[0, index])), index.into());
    }
    expect_index(x.narrow(0, 0..0).unwrap().gather(&ints(&[0])), 0);
}

#[test]
fn scatter_writes_rows_and_leaves_other_views_alone() {
    let mut x = Tensor::full(&backend(), [3, 2], 7).unwrap();
    x.scatter(&ints(&[2, 0]), &matrix(2, 2)).unwrap();
    assert_eq!(read_i32(Ok(x.clone())), [2, 3, 7, 7, 0, 1]);
    let (copy, last) = (x.clone(), x.at(0, 2).unwrap());
    x.scatter(&ints(&[2]), &x.narrow(0, 0..1).unwrap()).unwrap();
    assert_eq!(read_i32(Ok(x.clone())), [2, 3, 7, 7, 2, 3]);
    assert_eq!(read_i32(Ok(copy)), [2, 3, 7, 7, 0, 1]);
    assert_eq!(read_i32(Ok(last)), [0, 1]);
    let mut column = x.at(1, 0).unwrap();
    drop(x);
    column.scatter(&ints(&[1]), &ints(&[5])).unwrap();
    assert_eq!(read_i32(Ok(column)), [2, 5, 2]);
}

#[test]
fn scatter_refuses_indices_outside_before_it_writes() {
    let mut x = matrix(3, 2);
    for index in [-1, 3] {
        expect_index(x.scatter(&ints(&[0, index]), &matrix(2, 2)), index.into());
    }
    x.scatter(&ints(&[]), &matrix(0, 2)).unwrap();
    assert_eq!(read_i32(Ok(x)), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn empty_tensors_pass_through_every_operation() {
    let x = Tensor::full(&backend(), [2, 0, 3], 1.0).unwrap();
    let twice = x.add(&x).unwrap().unary(UnaryOp::RoundEven).unwrap().unary(UnaryOp::Sqrt).unwrap();
    let chosen = twice.lt(&x).unwrap().select(&x, &twice).unwrap();
    let integers = chosen.cast(DType::I32).unwrap();
    let sum = integers.add(&integers).unwrap().bitcast(DType::F32).unwrap();
    assert_eq!(sum.dims(), [2, 0, 3]);
    expect_floats(sum.permute(&[2, 0, 1]).unwrap().reshape([0, 6]), &[]);
}

#[test]
fn too_many_axes_are_an_error() {
    let deep = floats(&[1.0]).reshape([1; 9]);
    assert!(matches!(deep, Err(Error::Shape { op: "reshape", .. })));
}
