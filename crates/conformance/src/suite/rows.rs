//! Norms, softmax, rotary embedding and activation functions.

use samebits_tensor::{Activation, DType, HostTensor};

use super::values::{case, edges_f32, f32s, floats, indices};
use crate::{Case, Op, Rng};

/// Row lengths around the 128 lanes of `sum`, and a model's.
const LENGTHS: [usize; 8] = [1, 2, 127, 128, 129, 300, 576, 1031];

pub(super) fn rms_norm() -> Vec<Case> {
    norm_shapes()
        .map(|(m, n, factor)| {
            let eps = if n % 2 == 0 { 1e-5 } else { 1e-6 };
            let name = format!("rms_norm/m={m},n={n}/x{factor:e}");
            let mut rng = Rng::named(&name);
            let inputs = vec![scaled(&mut rng, m, n, factor), vector(&mut rng, n)];
            case(name, Op::RmsNorm(eps), inputs)
        })
        .collect()
}

pub(super) fn layer_norm() -> Vec<Case> {
    norm_shapes()
        .map(|(m, n, factor)| {
            let name = format!("layer_norm/m={m},n={n}/x{factor:e}");
            let mut rng = Rng::named(&name);
            let inputs = vec![scaled(&mut rng, m, n, factor), vector(&mut rng, n), vector(&mut rng, n)];
            case(name, Op::LayerNorm(1e-5), inputs)
        })
        .collect()
}

pub(super) fn softmax() -> Vec<Case> {
    let mut cases: Vec<Case> = norm_shapes()
        .map(|(m, n, factor)| {
            let name = format!("softmax/m={m},n={n}/x{factor:e}");
            let input = scaled(&mut Rng::named(&name), m, n, factor);
            case(name, Op::Softmax, vec![input])
        })
        .collect();
    let inf = f32::INFINITY;
    let edges =
        [0.0, -0.0, -inf, -44.3, -44.4, 1.0, -inf, f32::MIN, inf, 1.0, -inf, -inf, f32::NAN, 0.0, -inf, 3.0];
    cases.push(case("softmax/edges".into(), Op::Softmax, vec![f32s([4, 4], &edges)]));
    cases
}

pub(super) fn rope() -> Vec<Case> {
    let shapes = [
        (0, 2, 8, 4),
        (1, 1, 2, 1),
        (1, 9, 64, 32),
        (3, 4, 80, 16),
        (17, 3, 128, 64),
        (5, 2, 24, 12),
        (7, 1, 33, 3),
        (2, 5, 96, 24),
    ];
    shapes.iter().map(|&(t, heads, head_dim, half)| rope_case(t, heads, head_dim, half)).collect()
}

fn rope_case(t: usize, heads: usize, head_dim: usize, half: usize) -> Case {
    let name = format!("rope/t={t},heads={heads},head_dim={head_dim},rotary_dim={}", 2 * half);
    let mut rng = Rng::named(&name);
    let context = 40;
    let [cos, sin] = angles(&mut rng, context, half);
    let positions = indices((0..t).map(|_| rng.below(context)));
    let x = f32s([t, heads, head_dim], &rng.bells(t * heads * head_dim));
    case(name, Op::Rope, vec![x, positions, cos, sin])
}

/// Cosines and sines `[context, half]` of random angles.
pub(super) fn angles(rng: &mut Rng, context: usize, half: usize) -> [HostTensor; 2] {
    let angles: Vec<f64> = (0..context * half).map(|_| 7.0 * f64::from(rng.unit())).collect();
    [f64::cos, f64::sin].map(|f| {
        // Rounded to a multiple of 2^-20, so that no platform's sine can matter.
        let values: Vec<f32> =
            angles.iter().map(|&angle| ((f(angle) * 1048576.0).round() / 1048576.0) as f32).collect();
        f32s([context, half], &values)
    })
}

pub(super) fn activate() -> Vec<Case> {
    let pairs = [Activation::Silu, Activation::GeluTanh]
        .into_iter()
        .flat_map(|activation| operands().into_iter().map(move |(detail, gate)| (activation, detail, gate)));
    pairs
        .map(|(activation, detail, gate)| {
            case(format!("activate/{activation:?}/{detail}"), Op::Activate(activation), vec![gate])
        })
        .collect()
}

pub(super) fn glu() -> Vec<Case> {
    let pairs = [Activation::Silu, Activation::GeluTanh]
        .into_iter()
        .flat_map(|activation| operands().into_iter().map(move |(detail, gate)| (activation, detail, gate)));
    pairs
        .map(|(activation, detail, gate)| {
            let name = format!("glu/{activation:?}/{detail}");
            let mut rng = Rng::named(&name);
            let up: Vec<f32> = (0..gate.shape().elements()).map(|_| rng.bell() + 4.0).collect();
            let up = f32s(gate.shape(), &up);
            case(name, Op::Glu(activation), vec![gate, up])
        })
        .collect()
}

pub(super) fn soft_cap() -> Vec<Case> {
    let mut cases = Vec::new();
    for cap in [30.0, 50.0, 1.0, 0.3] {
        for (detail, x) in operands() {
            cases.push(case(format!("soft_cap/{cap}/{detail}"), Op::SoftCap(cap), vec![x]));
        }
    }
    cases
}

pub(super) fn top_k() -> Vec<Case> {
    let shapes = [
        (0, 5, 1),
        (1, 1, 1),
        (2, 7, 7),
        (3, 64, 64),
        (4, 65, 2),
        (2, 129, 5),
        (3, 1031, 40),
        (1, 4096, 64),
        (2, 4097, 3),
        (1, 8200, 20),
        (2, 12_289, 1),
    ];
    let kinds = ["bells", "any", "ties", "bad"];
    let pairs = shapes.into_iter().flat_map(|shape| kinds.map(|kind| (shape, kind)));
    pairs.map(|((m, n, k), kind)| top_k_case(m, n, k, kind)).collect()
}

fn top_k_case(m: usize, n: usize, k: usize, kind: &str) -> Case {
    let name = format!("top_k/m={m},n={n},k={k}/{kind}");
    let mut rng = Rng::named(&name);
    let mut values = if kind == "any" { floats(&mut rng, m * n) } else { rng.bells(m * n) };
    match kind {
        // Zeros of both signs are equals.
        "ties" => values.iter_mut().for_each(|x| *x = (*x * 1.5).round()),
        // A row of minus infinities, and the two that come before all numbers.
        "bad" => {
            values.iter_mut().take(n).for_each(|x| *x = f32::NEG_INFINITY);
            let bad = [f32::NAN, f32::INFINITY, f32::NAN];
            (0..values.len().min(3)).for_each(|i| values[rng.below(m * n)] = bad[i]);
        }
        _ => {}
    }
    case(name, Op::TopK(k), vec![f32s([m, n], &values)])
}

/// Shapes of matrices with a factor on their values: ordinary, nearly subnormal squares, overflowing squares.
fn norm_shapes() -> impl Iterator<Item = (usize, usize, f32)> {
    let ordinary = LENGTHS.into_iter().flat_map(|n| [0, 1, 3, 17].map(|m| (m, n, 1.0)));
    ordinary.chain([(3, 129, 1e-15), (3, 576, 1e4), (2, 130, 1e20), (5, 33, 40.0)])
}

fn scaled(rng: &mut Rng, m: usize, n: usize, factor: f32) -> HostTensor {
    let values: Vec<f32> = rng.bells(m * n).into_iter().map(|x| x * factor).collect();
    f32s([m, n], &values)
}

fn vector(rng: &mut Rng, n: usize) -> HostTensor {
    f32s([n], &rng.bells(n))
}

/// Tensors of every rank, a dense grid, and the edges. Where a step would be subnormal, 1 instead.
fn operands() -> Vec<(String, HostTensor)> {
    let normal = |x: f32| if steps_are_normal(x) { x } else { 1.0 };
    let grid: Vec<f32> = (0..20_000).map(|i| normal(i as f32 * 0.01 - 100.0)).collect();
    let edges: Vec<f32> = edges_f32().into_iter().map(normal).collect();
    let mut operands =
        vec![("grid".into(), f32s([grid.len()], &grid)), ("edges".into(), f32s([edges.len()], &edges))];
    for shape in super::values::shapes() {
        let name = format!("{}{shape}", DType::F32);
        let values: Vec<f32> =
            Rng::named(&name).bells(shape.elements()).into_iter().map(|x| 3.0 * x).collect();
        operands.push((name, f32s(shape, &values)));
    }
    operands
}

/// The cube of gelu and the products with numbers near 4 stay normal.
fn steps_are_normal(x: f32) -> bool {
    x == 0.0 || x.is_nan() || x.abs() >= 1e-12
}
