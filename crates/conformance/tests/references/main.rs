//! The reference is not its own judge: its primitives against plain arithmetic in wider types, its fused operations
//! against f64 within bounds that are derived, not tuned.

mod attention;
mod experts;
mod fused;
mod primitives;

use samebits_conformance::{Case, Check, Group};
use samebits_cpu::Host;
use samebits_tensor::{DType, HostTensor};

/// Cases of a group with the reference's results.
fn results(group: Group) -> impl Iterator<Item = (Case, Vec<HostTensor>)> {
    let cases = group.checks().into_iter().filter_map(|check| match check {
        Check::Reference(case) => Some(case),
        Check::Invariance(_) => None,
    });
    cases.map(|case| {
        let results = case.run(&Host).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        (case, results)
    })
}

fn f32s(x: &HostTensor) -> Vec<f32> {
    x.to_vec().expect("f32")
}

fn f64s(x: &HostTensor) -> Vec<f64> {
    f32s(x).into_iter().map(f64::from).collect()
}

/// Elements of any integer type or mask.
fn integers(x: &HostTensor) -> Vec<i64> {
    match x.dtype() {
        DType::I32 => x.to_vec::<i32>().expect("i32").into_iter().map(i64::from).collect(),
        DType::I8 => x.to_vec::<i8>().expect("i8").into_iter().map(i64::from).collect(),
        DType::U8 | DType::Bool => x.bytes().iter().map(|&byte| i64::from(byte)).collect(),
        other => panic!("{other} is no integer type"),
    }
}

fn indices(x: &HostTensor) -> Vec<usize> {
    integers(x).into_iter().map(|value| value as usize).collect()
}
