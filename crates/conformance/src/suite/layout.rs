//! Primitives that move elements.

use samebits_tensor::{DType, Scalar, Shape};

use super::values::{case, indices, shapes, tensor};
use crate::{Case, Op, Rng};

pub(super) fn full() -> Vec<Case> {
    let values = [
        Scalar::F32(-0.0),
        Scalar::F32(f32::NEG_INFINITY),
        Scalar::F32(f32::MIN_POSITIVE),
        Scalar::F32(1.0 / 3.0),
        Scalar::I32(i32::MIN),
        Scalar::I32(7),
        Scalar::I8(-128),
        Scalar::I8(1),
    ];
    let shapes = shapes().into_iter().chain([[3, 1000].into()]);
    let pairs = shapes.flat_map(|shape| values.map(|value| (shape.clone(), value)));
    pairs
        .map(|(shape, value)| case(format!("full/{shape}/{value:?}"), Op::Full(shape, value), vec![]))
        .collect()
}

pub(super) fn iota() -> Vec<Case> {
    let axes = |shape: Shape| (0..shape.rank()).map(move |axis| (shape.clone(), axis));
    let pairs = shapes().into_iter().flat_map(axes);
    pairs
        .map(|(shape, axis)| case(format!("iota/{shape}/axis={axis}"), Op::Iota(shape, axis), vec![]))
        .collect()
}

pub(super) fn reshape() -> Vec<Case> {
    let pairs: [(&[usize], &[usize]); 9] = [
        (&[], &[1, 1]),
        (&[1], &[]),
        (&[6], &[2, 3]),
        (&[5, 26], &[2, 65]),
        (&[2, 3, 4, 5], &[120]),
        (&[7, 33], &[1, 7, 1, 33]),
        (&[0, 3], &[5, 0]),
        (&[17, 4], &[2, 2, 17]),
        (&[3, 64], &[3, 2, 32]),
    ];
    every_dtype("reshape", &pairs.map(|(from, to)| (from.into(), to.into())), |to: &Shape| {
        Op::Reshape(to.clone())
    })
}

pub(super) fn permute() -> Vec<Case> {
    let pairs: [(&[usize], &[usize]); 12] = [
        (&[], &[]),
        (&[7], &[0]),
        (&[5, 13], &[1, 0]),
        (&[33, 65], &[1, 0]),
        (&[17, 128], &[0, 1]),
        (&[3, 5, 7], &[1, 0, 2]),
        (&[3, 5, 7], &[0, 2, 1]),
        (&[3, 5, 7], &[2, 0, 1]),
        (&[2, 3, 4, 31], &[2, 0, 3, 1]),
        (&[2, 3, 4, 31], &[3, 2, 1, 0]),
        (&[1, 4, 1, 17], &[2, 1, 0, 3]),
        (&[0, 3, 2], &[2, 0, 1]),
    ];
    every_dtype("permute", &pairs.map(|(shape, axes)| (shape.into(), axes)), |axes| {
        Op::Permute(axes.to_vec())
    })
}

/// An axis and a range of it.
type Cut = (usize, std::ops::Range<usize>);

pub(super) fn slice() -> Vec<Case> {
    let pairs: [(&[usize], Cut); 11] = [
        (&[7], (0, 2..5)),
        (&[129], (0, 128..129)),
        (&[7], (0, 3..3)),
        (&[5, 13], (0, 1..4)),
        (&[5, 13], (1, 12..13)),
        (&[5, 128], (1, 64..128)),
        (&[3, 5, 7], (1, 0..2)),
        (&[3, 5, 33], (2, 1..32)),
        (&[2, 3, 4, 5], (3, 4..5)),
        (&[2, 3, 4, 5], (1, 2..3)),
        (&[0, 4], (1, 1..3)),
    ];
    every_dtype("slice", &pairs.map(|(shape, cut)| (shape.into(), cut)), |(axis, range)| {
        Op::Slice(*axis, range.clone())
    })
}

pub(super) fn broadcast() -> Vec<Case> {
    let pairs: [(&[usize], &[usize]); 10] = [
        (&[1], &[7]),
        (&[1], &[0]),
        (&[1, 1], &[33, 17]),
        (&[5, 1], &[5, 13]),
        (&[1, 13], &[5, 13]),
        (&[3, 1, 7], &[3, 5, 7]),
        (&[1, 5, 1], &[3, 5, 7]),
        (&[2, 1, 4, 1], &[2, 3, 4, 65]),
        (&[1, 1, 1, 31], &[2, 3, 1, 31]),
        (&[3, 1], &[3, 0]),
    ];
    every_dtype("broadcast", &pairs.map(|(from, to)| (from.into(), to.into())), |to: &Shape| {
        Op::Broadcast(to.clone())
    })
}

pub(super) fn concat() -> Vec<Case> {
    let joins: [(usize, &[&[usize]]); 8] = [
        (0, &[&[3], &[0], &[5]]),
        (0, &[&[7]]),
        (0, &[&[2, 13], &[1, 13]]),
        (1, &[&[5, 3], &[5, 13], &[5, 1]]),
        (1, &[&[2, 31, 3], &[2, 33, 3]]),
        (2, &[&[3, 5, 32], &[3, 5, 16]]),
        (3, &[&[2, 3, 2, 7], &[2, 3, 2, 0], &[2, 3, 2, 1]]),
        (1, &[&[0, 3], &[0, 2]]),
    ];
    let cases = joins.iter().flat_map(|(axis, shapes)| {
        DType::ALL.map(|dtype| {
            let name = format!("concat/{dtype}/{shapes:?}/axis={axis}");
            let mut rng = Rng::named(&name);
            let inputs = shapes.iter().map(|&shape| tensor(&mut rng, shape, dtype)).collect();
            case(name, Op::Concat(*axis), inputs)
        })
    });
    cases.collect()
}

pub(super) fn gather() -> Vec<Case> {
    let gathers: [(&[usize], usize); 9] = [
        (&[1], 3),
        (&[129], 65),
        (&[7], 0),
        (&[5, 13], 17),
        (&[33, 128], 2),
        (&[4, 0], 3),
        (&[3, 5, 7], 4),
        (&[2, 3, 2, 7], 5),
        (&[300, 1], 257),
    ];
    let cases = gathers.iter().flat_map(|&(shape, m)| {
        DType::ALL.map(|dtype| {
            let name = format!("gather/{dtype}/{shape:?}/m={m}");
            let mut rng = Rng::named(&name);
            let rows = indices((0..m).map(|_| rng.below(shape[0])));
            case(name, Op::Gather, vec![tensor(&mut rng, shape, dtype), rows])
        })
    });
    cases.collect()
}

/// Targets are distinct, since the contract leaves open which of two rows stays.
pub(super) fn scatter() -> Vec<Case> {
    let scatters: [(&[usize], usize); 8] = [
        (&[1], 1),
        (&[129], 65),
        (&[7], 0),
        (&[19, 13], 17),
        (&[33, 128], 2),
        (&[3, 5, 7], 3),
        (&[4, 3, 2, 7], 2),
        (&[300, 1], 257),
    ];
    let cases = scatters.iter().flat_map(|&(shape, m)| {
        DType::ALL.map(|dtype| {
            let name = format!("scatter/{dtype}/{shape:?}/m={m}");
            let mut rng = Rng::named(&name);
            let rows = indices(rng.order(shape[0]).into_iter().take(m));
            let (x, new) = (tensor(&mut rng, shape, dtype), Shape::from(shape).with(0, m));
            case(name, Op::Scatter, vec![x, rows, tensor(&mut rng, new, dtype)])
        })
    });
    cases.collect()
}

/// One case for each pair of a shape and a parameter, in every dtype.
fn every_dtype<P: std::fmt::Debug>(group: &str, pairs: &[(Shape, P)], op: impl Fn(&P) -> Op) -> Vec<Case> {
    let cases = pairs.iter().flat_map(|(shape, parameter)| {
        DType::ALL.map(|dtype| {
            let name = format!("{group}/{dtype}/{shape}/{parameter:?}");
            let input = tensor(&mut Rng::named(&name), shape, dtype);
            case(name, op(parameter), vec![input])
        })
    });
    cases.collect()
}
