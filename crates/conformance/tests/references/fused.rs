//! Fused operations against f64.

use samebits_conformance::{Case, Group, Op};
use samebits_tensor::{Activation, Format, contract::TINY};

use crate::{f64s, indices, results};

/// Half a unit in the last place of f32, relative.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

fn check(case: &Case, what: impl std::fmt::Display, found: f64, expected: f64, bound: f64) {
    let error = (found - expected).abs();
    assert!(
        error <= bound || found.is_nan() && expected.is_nan(),
        "{}: {what}: {found:e} is {error:e} from {expected:e}, bound {bound:e}",
        case.name
    );
}

/// A quantised activation is off by at most half a step of its block, so a product by the sum of `|w| * step / 2`; each
/// term and each partial sum is rounded. A float activation is off by its rounding to the weight's type.
#[test]
fn linear() {
    let groups = [Group::LinearDense, Group::LinearBlocks32, Group::LinearBlocks256];
    for (case, found) in groups.into_iter().flat_map(results) {
        if case.name.contains("NonFinite") {
            continue;
        }
        let x = f64s(&case.inputs[0]);
        let k = case.inputs[0].shape()[1];
        for (weight, found) in case.weights.iter().zip(&found) {
            let w: Vec<f64> = weight.to_f32().expect("a weight").into_iter().map(f64::from).collect();
            let found = f64s(found);
            let n = weight.shape[0];
            for (row, x) in x.chunks_exact(k).enumerate() {
                let steps = steps(weight.format, x);
                for (column, w) in w.chunks_exact(k).enumerate() {
                    let expected: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    let bound = linear_bound(weight.format, x, w, &steps);
                    check(&case, format_args!("[{row}, {column}]"), found[row * n + column], expected, bound);
                }
            }
        }
    }
}

/// Largest error of each activation when it is quantised or rounded to the weight's type.
fn steps(format: Format, x: &[f64]) -> Vec<f64> {
    let tiny = f64::from(TINY);
    match format {
        Format::F32 => x.iter().map(|_| tiny).collect(),
        Format::F16 => x.iter().map(|x| x.abs() / 2048.0 + 1.0 / f64::from(1 << 25)).collect(),
        Format::BF16 => x.iter().map(|x| x.abs() / 256.0 + tiny).collect(),
        _ => {
            let block = format.block_len();
            let step = |x: &[f64]| {
                let amax = x.iter().fold(0.0f64, |amax, x| amax.max(x.abs()));
                // Below the bound the whole block counts as zero; near it, either way is possible.
                let zeroed = if amax / 127.0 < 1.001 * tiny { amax } else { 0.0 };
                vec![(amax / 127.0 * 0.5001).max(zeroed); x.len()]
            };
            x.chunks_exact(block).flat_map(step).collect()
        }
    }
}

fn linear_bound(format: Format, x: &[f64], w: &[f64], steps: &[f64]) -> f64 {
    let quantisation: f64 = steps.iter().zip(w).map(|(step, w)| step * w.abs()).sum();
    // With a minimum, both halves of a value may exceed the value, but no more than the largest of the row twice over.
    let largest = 4.0 * w.iter().fold(0.0f64, |largest, w| largest.max(w.abs()));
    let magnitude: f64 = x.iter().zip(steps).map(|(x, step)| (x.abs() + step) * largest).sum();
    let zeroed_weights: f64 = x.iter().map(|x| x.abs() * f64::from(TINY) * 128.0).sum();
    let terms = x.len().div_ceil(if format.is_quantized() { format.block_len() } else { 1 });
    1.001 * quantisation + zeroed_weights + magnitude * ROUNDING * (terms as f64 + 8.0)
}

/// The sum of squares has at most `n / 128 + 8` roundings on the way to any term; the rest is seven operations.
#[test]
fn rms_norm() {
    for (case, found) in results(Group::RmsNorm) {
        let Op::RmsNorm(eps) = case.op else { panic!("{}", case.name) };
        let (x, weight, found) = (f64s(&case.inputs[0]), f64s(&case.inputs[1]), f64s(&found[0]));
        let n = weight.len();
        let bound = ROUNDING * (n as f64 / 128.0 + 16.0);
        for (x, found) in x.chunks_exact(n).zip(found.chunks_exact(n)) {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
            if mean * n as f64 > f64::from(f32::MAX) {
                continue;
            }
            let r = 1.0 / (mean + f64::from(eps)).sqrt();
            for i in 0..n {
                let expected = x[i] * r * weight[i];
                check(&case, i, found[i], expected, bound * expected.abs());
            }
        }
    }
}

/// Cancellation in `x - mean` makes the error relative to the largest value, not to each.
#[test]
fn layer_norm() {
    for (case, found) in results(Group::LayerNorm) {
        let Op::LayerNorm(eps) = case.op else { panic!("{}", case.name) };
        let [x, weight, bias] = [0, 1, 2].map(|i| f64s(&case.inputs[i]));
        let (n, found) = (weight.len(), f64s(&found[0]));
        for (x, found) in x.chunks_exact(n).zip(found.chunks_exact(n)) {
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
            if variance * n as f64 > f64::from(f32::MAX) / 4.0 {
                continue;
            }
            let r = 1.0 / (variance + f64::from(eps)).sqrt();
            let largest = x.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
            for i in 0..n {
                let expected = (x[i] - mean) * r * weight[i] + bias[i];
                let magnitude = largest * r * (1.0 + largest * r) * weight[i].abs() + bias[i].abs();
                check(&case, i, found[i], expected, ROUNDING * (n as f64 / 64.0 + 32.0) * magnitude);
            }
        }
    }
}

/// `exp` is off by 2 units in the last place and by the rounding of `x - max`, which is absolute in its argument.
#[test]
fn softmax() {
    for (case, found) in results(Group::Softmax) {
        if case.name.contains("edges") {
            continue;
        }
        let n = case.inputs[0].shape()[1];
        let (x, found) = (f64s(&case.inputs[0]), f64s(&found[0]));
        for (x, found) in x.chunks_exact(n).zip(found.chunks_exact(n)) {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
            for i in 0..n {
                let expected = (x[i] - max).exp() / sum;
                let argument = if x[i] - max < -44.0 { 0.0 } else { (max - x[i]) * ROUNDING };
                let relative = ROUNDING * (n as f64 / 128.0 + 24.0) + 2.0 * argument;
                check(&case, i, found[i], expected, relative * expected + (-44.0f64).exp());
            }
        }
    }
}

#[test]
fn softmax_of_infinities_and_nan() {
    let (_, found) = results(Group::Softmax).find(|(case, _)| case.name.contains("edges")).expect("the case");
    let found = f64s(&found[0]);
    assert_eq!(found[2], 0.0, "-inf among finite values has no weight");
    assert_eq!(&found[4..8], [0.0, 1.0, 0.0, 0.0].as_slice());
    assert!(found[8..12].iter().any(|x| x.is_nan()), "a row with +inf is poisoned");
    assert!(found[12..].iter().all(|x| x.is_nan()), "a row with a NaN is poisoned");
}

/// One rounding a product and one for the sum.
#[test]
fn rope() {
    for (case, found) in results(Group::Rope) {
        let [t, heads, head_dim] = *case.inputs[0].shape().dims() else { panic!("{}", case.name) };
        let half = case.inputs[2].shape()[1];
        let (x, positions) = (f64s(&case.inputs[0]), indices(&case.inputs[1]));
        let (cos, sin, found) = (f64s(&case.inputs[2]), f64s(&case.inputs[3]), f64s(&found[0]));
        for row in 0..t * heads {
            let (x, found) = (&x[row * head_dim..][..head_dim], &found[row * head_dim..][..head_dim]);
            let position = positions[row / heads];
            for i in 0..half {
                let (c, s) = (cos[position * half + i], sin[position * half + i]);
                let (a, b) = (x[i], x[i + half]);
                let bound = 2.0 * ROUNDING * (a.abs() + b.abs());
                check(&case, i, found[i], a * c - b * s, bound);
                check(&case, i + half, found[i + half], b * c + a * s, bound);
            }
            assert_eq!(found[2 * half..], x[2 * half..], "{}", case.name);
        }
    }
}

#[test]
fn activations() {
    for (case, found) in [Group::Activate, Group::Glu].into_iter().flat_map(results) {
        let (Op::Activate(activation) | Op::Glu(activation)) = case.op else { panic!("{}", case.name) };
        let up = case.inputs.get(1).map(f64s);
        for (i, (x, found)) in f64s(&case.inputs[0]).into_iter().zip(f64s(&found[0])).enumerate() {
            // Beyond this, exp overflows to infinity, as the contract says, or the cube does.
            if !x.is_finite() || x.abs() > 88.0 {
                continue;
            }
            let factor = up.as_ref().map_or(1.0, |up| up[i]);
            let (argument, expected) = match activation {
                Activation::Silu => (x, x / (1.0 + (-x).exp())),
                Activation::GeluTanh => {
                    let inner = (8.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    (inner, x / (1.0 + (-inner).exp()))
                }
            };
            // An argument rounded by a few units is off by that much of itself, and exp amplifies it.
            let relative = ROUNDING * (12.0 + 8.0 * argument.abs().min(90.0));
            // A sigmoid below 2^-64 is zero.
            let floored =
                if activation == Activation::GeluTanh { (x * factor).abs() * 2f64.powi(-63) } else { 1e-30 };
            check(&case, x, found, expected * factor, relative * (expected * factor).abs() + floored);
        }
    }
}

#[test]
fn soft_cap() {
    for (case, found) in results(Group::SoftCap) {
        let Op::SoftCap(cap) = case.op else { panic!("{}", case.name) };
        let cap = f64::from(cap);
        for (x, found) in f64s(&case.inputs[0]).into_iter().zip(f64s(&found[0])) {
            if x.is_nan() {
                assert!(found.is_nan(), "{}", case.name);
                continue;
            }
            // `1 - exp(-2|x|)` cancels near zero, so that the error is absolute.
            check(&case, x, found, cap * (x / cap).tanh(), 8.0 * ROUNDING * cap);
        }
    }
}

/// The head of a full sort.
#[test]
fn top_k() {
    for (case, found) in results(Group::TopK) {
        let Op::TopK(k) = case.op else { panic!("{}", case.name) };
        let rows = crate::f32s(&case.inputs[0]);
        let found = found[0].to_vec::<i32>().expect("i32");
        for (row, found) in rows.chunks_exact(case.inputs[0].shape()[1]).zip(found.chunks_exact(2 * k)) {
            let rank = |column: usize| if row[column] < f32::INFINITY { row[column] } else { f32::INFINITY };
            let mut columns: Vec<usize> = (0..row.len()).collect();
            columns.sort_by(|&a, &b| rank(b).partial_cmp(&rank(a)).expect("no NaN"));
            columns.truncate(k);
            let bits = columns.iter().map(|&column| row[column].to_bits().cast_signed());
            let expected: Vec<i32> = columns.iter().map(|&column| column as i32).chain(bits).collect();
            assert_eq!(found, expected, "{}", case.name);
        }
    }
}

#[test]
fn embedding() {
    for (case, found) in results(Group::Embedding) {
        let k = case.weights[0].shape[1];
        let values = case.weights[0].to_f32().expect("a weight");
        let expected: Vec<u32> = indices(&case.inputs[0])
            .into_iter()
            .flat_map(|id| values[id * k..(id + 1) * k].iter().map(|value| value.to_bits()))
            .collect();
        let found: Vec<u32> = crate::f32s(&found[0]).into_iter().map(f32::to_bits).collect();
        assert_eq!(found, expected, "{}: rows of the dequantised weight", case.name);
    }
}
