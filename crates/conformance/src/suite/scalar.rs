//! Primitives that compute.

use half::f16;
use samebits_tensor::{BinaryOp, CompareOp, DType, HostTensor, Shape, UnaryOp};

use super::values::{bytes, case, edges_f32, edges_i32, f32s, floats, i32s, shapes, tensor};
use crate::{Case, Op, Rng};

/// From every dtype to every number; a mask is made by a comparison, not by a cast.
pub(super) fn cast() -> Vec<Case> {
    let numbers = DType::ALL.into_iter().filter(|&dtype| dtype != DType::Bool);
    let pairs = numbers.flat_map(|to| DType::ALL.map(|from| (from, to))).filter(|(from, to)| from != to);
    pairs.flat_map(|(from, to)| cast_pair(from, to)).collect()
}

fn cast_pair(from: DType, to: DType) -> Vec<Case> {
    let mut cases = vec![case(format!("cast/{from}->{to}/every"), Op::Cast(to), vec![every_value(from)])];
    for shape in [Shape::from([0]), [].into(), [3, 0].into(), [2, 3, 5, 7].into(), [129].into()] {
        let name = format!("cast/{from}->{to}/{shape}");
        let input = tensor(&mut Rng::named(&name), shape, from);
        cases.push(case(name, Op::Cast(to), vec![input]));
    }
    cases
}

/// All values of a small type; edges and many random values of a large one. No subnormal f32.
fn every_value(dtype: DType) -> HostTensor {
    let n = 1 << 14;
    let mut rng = Rng::named("every value");
    match dtype {
        DType::F32 => {
            let ties = (0..512).map(|i| i as f32 * 0.5 - 128.0);
            let halves = (0..4096u16).map(|i| f16::from_bits(i * 7).to_f32() * (1.0 + 1.0 / 2048.0));
            let random = floats(&mut rng, n);
            let values: Vec<f32> = edges_f32().into_iter().chain(ties).chain(halves).chain(random).collect();
            f32s([values.len()], &values)
        }
        DType::F16 => bytes([1 << 16], dtype, (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()),
        DType::BF16 => {
            let normal = |bits: &u16| bits & 0x7f80 != 0 || bits & 0x7f == 0;
            let values: Vec<u16> = (0..=u16::MAX).filter(normal).collect();
            bytes([values.len()], dtype, values.into_iter().flat_map(u16::to_le_bytes).collect())
        }
        DType::I8 | DType::U8 => bytes([256], dtype, (0..=255).collect()),
        DType::Bool => bytes([2], dtype, vec![0, 1]),
        DType::I32 => {
            let values: Vec<i32> = edges_i32().into_iter().chain((0..n).map(|_| rng.bits() as i32)).collect();
            i32s([values.len()], &values)
        }
    }
}

/// Without NaN, whose payload a device may change.
pub(super) fn bitcast() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes() {
        for (from, to) in [(DType::F32, DType::I32), (DType::I32, DType::F32)] {
            let name = format!("bitcast/{from}->{to}/{shape}");
            let values = floats(&mut Rng::named(&name), shape.elements()).into_iter();
            let values: Vec<f32> = values.map(|x| if x.is_nan() { 1.0 } else { x }).collect();
            let input = if from == DType::F32 {
                f32s(&shape, &values)
            } else {
                i32s(&shape, &values.iter().map(|x| x.to_bits().cast_signed()).collect::<Vec<_>>())
            };
            cases.push(case(name, Op::Bitcast(to), vec![input]));
        }
    }
    cases
}

pub(super) fn unary() -> Vec<Case> {
    let ops = [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Sqrt, UnaryOp::RoundEven];
    let mut cases = Vec::new();
    for op in ops {
        for shape in shapes().into_iter().chain([[1 << 14].into()]) {
            let name = format!("unary/{op:?}/f32/{shape}");
            let input = tensor(&mut Rng::named(&name), shape, DType::F32);
            cases.push(case(name, Op::Unary(op), vec![input]));
        }
        let name = format!("unary/{op:?}/f32/every");
        cases.push(case(name, Op::Unary(op), vec![every_value(DType::F32)]));
    }
    for shape in shapes().into_iter().chain([[4096].into()]) {
        let name = format!("unary/Neg/i32/{shape}");
        let input = tensor(&mut Rng::named(&name), shape, DType::I32);
        cases.push(case(name, Op::Unary(UnaryOp::Neg), vec![input]));
    }
    cases
}

pub(super) fn binary() -> Vec<Case> {
    let float = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Max];
    let integer = [
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::Mul,
        BinaryOp::Max,
        BinaryOp::And,
        BinaryOp::Or,
        BinaryOp::Shl,
        BinaryOp::Shr,
    ];
    let mut cases = Vec::new();
    for shape in shapes().into_iter().chain([[1 << 14].into()]) {
        float.iter().for_each(|&op| cases.push(binary_case(op, DType::F32, shape.clone())));
        integer.iter().for_each(|&op| cases.push(binary_case(op, DType::I32, shape.clone())));
        for op in [BinaryOp::And, BinaryOp::Or] {
            cases.push(binary_case(op, DType::Bool, shape.clone()));
        }
    }
    cases.extend(float.map(|op| {
        let (a, b) = normal_pairs(op);
        let inputs = vec![f32s([a.len()], &a), f32s([b.len()], &b)];
        case(format!("binary/{op:?}/f32/edges"), Op::Binary(op), inputs)
    }));
    cases
}

fn binary_case(op: BinaryOp, dtype: DType, shape: Shape) -> Case {
    let name = format!("binary/{op:?}/{dtype}/{shape}");
    let mut rng = Rng::named(&name);
    let n = shape.elements();
    let inputs = match (dtype, op) {
        (DType::F32, _) => {
            let (mut a, mut b) = (floats(&mut rng, n), floats(&mut rng, n));
            for (x, y) in a.iter_mut().zip(&mut b).filter(|(x, y)| !is_normal(op, **x, **y)) {
                (*x, *y) = (1.5, 0.75);
            }
            vec![f32s(&shape, &a), f32s(&shape, &b)]
        }
        (_, BinaryOp::Shl | BinaryOp::Shr) => {
            let amounts: Vec<i32> = (0..n).map(|_| rng.below(32) as i32).collect();
            vec![tensor(&mut rng, &shape, dtype), i32s(&shape, &amounts)]
        }
        _ => vec![tensor(&mut rng, &shape, dtype), tensor(&mut rng, &shape, dtype)],
    };
    case(name, Op::Binary(op), inputs)
}

/// All pairs of edges whose result is not subnormal.
fn normal_pairs(op: BinaryOp) -> (Vec<f32>, Vec<f32>) {
    let edges = edges_f32();
    let pairs = edges.iter().flat_map(|&a| edges.iter().map(move |&b| (a, b)));
    pairs.filter(|&(a, b)| is_normal(op, a, b)).unzip()
}

/// Whether neither the result nor its exact value before rounding lies in the subnormal range.
fn is_normal(op: BinaryOp, a: f32, b: f32) -> bool {
    let (a, b) = (f64::from(a), f64::from(b));
    let exact = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        _ => return true,
    };
    exact == 0.0 || exact.is_nan() || exact.abs() >= f64::from(f32::MIN_POSITIVE)
}

pub(super) fn compare() -> Vec<Case> {
    let mut cases = Vec::new();
    for op in [CompareOp::Lt, CompareOp::Le, CompareOp::Eq] {
        for dtype in [DType::F32, DType::I32] {
            for shape in shapes().into_iter().chain([[1 << 13].into()]) {
                let name = format!("compare/{op:?}/{dtype}/{shape}");
                let mut rng = Rng::named(&name);
                let inputs = vec![tensor(&mut rng, &shape, dtype), tensor(&mut rng, &shape, dtype)];
                cases.push(case(name, Op::Compare(op), inputs));
            }
        }
        let edges = edges_f32();
        let (a, b): (Vec<f32>, Vec<f32>) =
            edges.iter().flat_map(|&a| edges.iter().map(move |&b| (a, b))).unzip();
        let inputs = vec![f32s([a.len()], &a), f32s([b.len()], &b)];
        cases.push(case(format!("compare/{op:?}/f32/edges"), Op::Compare(op), inputs));
    }
    cases
}

pub(super) fn select() -> Vec<Case> {
    let shapes = shapes().into_iter().chain([[4097].into()]);
    let pairs = shapes.flat_map(|shape| DType::ALL.map(|dtype| (shape.clone(), dtype)));
    pairs
        .map(|(shape, dtype)| {
            let name = format!("select/{dtype}/{shape}");
            let mut rng = Rng::named(&name);
            let of = |rng: &mut Rng, dtype| tensor(rng, &shape, dtype);
            let inputs = vec![of(&mut rng, DType::Bool), of(&mut rng, dtype), of(&mut rng, dtype)];
            case(name, Op::Select, inputs)
        })
        .collect()
}

pub(super) fn max_reduce() -> Vec<Case> {
    let extra: [Shape; 5] = [[1000].into(), [3, 576].into(), [0, 4].into(), [2, 128].into(), [65, 32].into()];
    let fits = |shape: &Shape| shape.last().is_some_and(|&extent| extent > 0);
    let mut cases = Vec::new();
    for shape in shapes().into_iter().filter(fits).chain(extra) {
        for dtype in [DType::F32, DType::I32] {
            let name = format!("max_reduce/{dtype}/{shape}");
            let input = tensor(&mut Rng::named(&name), &shape, dtype);
            cases.push(case(name, Op::MaxReduce, vec![input]));
        }
        let name = format!("max_reduce/f32/{shape}/finite");
        let values = Rng::named(&name).bells(shape.elements());
        cases.push(case(name, Op::MaxReduce, vec![f32s(shape, &values)]));
    }
    cases
}

/// Every contraction is short enough that its sum stays below 2^24 whatever the bytes.
pub(super) fn matmul_exact() -> Vec<Case> {
    let extents = [
        [0, 2, 3, 4],
        [1, 0, 3, 8],
        [1, 2, 0, 8],
        [1, 2, 3, 0],
        [1, 1, 1, 1],
        [1, 1, 7, 3],
        [3, 5, 2, 16],
        [1, 17, 33, 31],
        [2, 16, 16, 32],
        [1, 33, 65, 33],
        [4, 3, 24, 64],
        [7, 4, 128, 80],
        [5, 3, 64, 128],
        [1, 2, 130, 255],
        [1, 65, 17, 256],
    ];
    let types =
        [(DType::I8, DType::I8), (DType::U8, DType::I8), (DType::I8, DType::U8), (DType::U8, DType::U8)];
    let mut cases = Vec::new();
    for [batch, m, n, k] in extents {
        for (a, b) in types {
            let name = format!("matmul_exact/{a}x{b}/batch={batch},m={m},n={n},k={k}");
            let mut rng = Rng::named(&name);
            let inputs = vec![tensor(&mut rng, [batch, m, k], a), tensor(&mut rng, [batch, n, k], b)];
            cases.push(case(name, Op::MatmulExact, inputs));
        }
    }
    for (a, b) in types {
        let full = |rows, dtype| {
            bytes([1, rows, 256], dtype, vec![if dtype == DType::I8 { 128 } else { 255 }; rows * 256])
        };
        let name = format!("matmul_exact/{a}x{b}/largest");
        cases.push(case(name, Op::MatmulExact, vec![full(3, a), full(5, b)]));
    }
    cases
}
