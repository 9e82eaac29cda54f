//! Operands: shapes, values at the edges of f32, and tensors of them.

use half::{bf16, f16};
use samebits_tensor::{DType, HostTensor, Shape};

use crate::{Case, Op, Rng};

/// Ranks 0 to 4; extents 0, 1, primes, and just off the widths of vector and matrix units.
pub(super) fn shapes() -> Vec<Shape> {
    let shapes: &[&[usize]] = &[
        &[],
        &[0],
        &[1],
        &[7],
        &[16],
        &[33],
        &[129],
        &[3, 0],
        &[1, 65],
        &[5, 13],
        &[31, 2],
        &[17, 127],
        &[2, 3, 5],
        &[4, 1, 17],
        &[0, 2, 3],
        &[2, 3, 2, 7],
        &[1, 1, 1, 1],
        &[3, 5, 1, 33],
        &[2, 0, 3, 1],
    ];
    shapes.iter().map(|&dims| dims.into()).collect()
}

/// Zeros, infinities, NaN, the ends of the normal range, powers of two, ties, and the ends of integer ranges.
pub(super) fn edges_f32() -> Vec<f32> {
    let positive = [
        0.0,
        f32::INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        1.5 * f32::MIN_POSITIVE,
        f32::EPSILON,
        0.25,
        0.5,
        0.499_999_97,
        0.500_000_06,
        1.0,
        1.0 - f32::EPSILON / 2.0,
        1.0 + f32::EPSILON,
        1.0 / 3.0,
        1.5,
        2.0,
        2.5,
        3.5,
        126.5,
        127.0,
        127.5,
        128.0,
        128.5,
        254.5,
        255.0,
        255.5,
        256.0,
        65_504.0,
        65_520.0,
        8_388_607.5,
        8_388_608.0,
        8_388_609.0,
        16_777_216.0,
        16_777_218.0,
        2_147_483_520.0,
        2_147_483_648.0,
        4_294_967_296.0,
        1.8446744e19,
        5.421011e-20,
        1e-30,
        1e30,
    ];
    positive.into_iter().flat_map(|x: f32| [x, -x]).chain([f32::NAN]).collect()
}

/// Zeros, units, powers of two and their neighbours, and both ends.
pub(super) fn edges_i32() -> Vec<i32> {
    let powers = (0..31).flat_map(|bit| [1 << bit, (1 << bit) - 1, -(1 << bit), -(1 << bit) - 1]);
    powers.chain([i32::MIN, i32::MAX, 16_777_217, 16_777_219, -16_777_217, 255, 256, -129]).collect()
}

/// `n` floats over many magnitudes, none subnormal, with every edge where they fit.
pub(super) fn floats(rng: &mut Rng, n: usize) -> Vec<f32> {
    let edges = edges_f32();
    let random = |rng: &mut Rng| rng.unit() * f32::from_bits(((64 + rng.below(128)) as u32) << 23) + 1e-18;
    (0..n).map(|_| if rng.below(3) == 0 { edges[rng.below(edges.len())] } else { random(rng) }).collect()
}

/// A tensor of any dtype with values over its range.
pub(super) fn tensor(rng: &mut Rng, shape: impl Into<Shape>, dtype: DType) -> HostTensor {
    let shape = shape.into();
    let n = shape.elements();
    match dtype {
        DType::F32 => f32s(shape, &floats(rng, n)),
        DType::F16 => {
            let values: Vec<f16> = floats(rng, n).into_iter().map(f16::from_f32).collect();
            HostTensor::of(shape, &values).expect("one value an element")
        }
        DType::BF16 => {
            let values: Vec<bf16> = floats(rng, n).into_iter().map(bf16::from_f32).collect();
            HostTensor::of(shape, &values).expect("one value an element")
        }
        DType::I32 => {
            let edges = edges_i32();
            let value = |_| if rng.below(2) == 0 { edges[rng.below(edges.len())] } else { rng.bits() as i32 };
            i32s(shape, &(0..n).map(value).collect::<Vec<_>>())
        }
        DType::I8 | DType::U8 => bytes(shape, dtype, rng.bytes(n)),
        DType::Bool => bytes(shape, dtype, rng.bytes(n).into_iter().map(|byte| byte & 1).collect()),
    }
}

pub(super) fn f32s(shape: impl Into<Shape>, values: &[f32]) -> HostTensor {
    HostTensor::of(shape, values).expect("one value an element")
}

pub(super) fn i32s(shape: impl Into<Shape>, values: &[i32]) -> HostTensor {
    HostTensor::of(shape, values).expect("one value an element")
}

pub(super) fn bytes(shape: impl Into<Shape>, dtype: DType, values: Vec<u8>) -> HostTensor {
    HostTensor::new(shape, dtype, values.into()).expect("one byte an element")
}

/// Indices `[m]` of rows, as a tensor.
pub(super) fn indices(values: impl IntoIterator<Item = usize>) -> HostTensor {
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    i32s([values.len()], &values)
}

/// A case without weights.
pub(super) fn case(name: String, op: Op, inputs: Vec<HostTensor>) -> Case {
    Case { name, op, inputs, weights: Vec::new() }
}
