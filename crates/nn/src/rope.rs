//! Rotary frequencies and their tables, computed on the host in f64 so that every device holds the same bits.

use std::f64::consts::PI;

use samebits_tensor::{Backend, RopeTable, Tensor};

use crate::{Config, RopeScaling, loader::Result};

/// Cosines and sines f32 `[positions, head_dim / 2]` of base `theta`.
///
/// `cos(position * frequency) * attention_factor`, in f64 with the pure-Rust `libm`, rounded to f32 once.
pub fn rope_table<B: Backend>(
    backend: &B,
    config: &Config,
    theta: f64,
    scaling: &RopeScaling,
    positions: usize,
) -> Result<RopeTable<B>> {
    let frequencies = inverse_frequencies(config.head_dim, theta, scaling, positions);
    let factor = attention_factor(scaling);
    let angles = |f: fn(f64) -> f64| -> Vec<f32> {
        let at = |position| frequencies.iter().map(move |&w| (f(position as f64 * w) * factor) as f32);
        (0..positions).flat_map(at).collect()
    };
    let shape = [positions, frequencies.len()];
    Ok(RopeTable {
        cos: Tensor::of(backend, shape, &angles(libm::cos))?,
        sin: Tensor::of(backend, shape, &angles(libm::sin))?,
    })
}

/// Radians a position for each channel pair: `theta^(-2i / head_dim)`, changed by `scaling`. `positions` is the
/// longest context to be served: it picks LongRoPE's set of factors.
///
/// Formulas: `transformers/modeling_rope_utils.py`.
pub fn inverse_frequencies(head_dim: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> Vec<f64> {
    let exponent = |i: usize| -2.0 * i as f64 / head_dim as f64;
    let base = (0..head_dim / 2).map(|i| libm::pow(theta, exponent(i)));
    let divided = |factors: &[f32]| base.clone().zip(factors).map(|(w, &f)| w / f64::from(f)).collect();
    match scaling {
        RopeScaling::None => base.collect(),
        RopeScaling::Linear { factor } => base.map(|w| w / factor).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            let divisor = |w| llama3_divisor(w, *factor, *low_freq_factor, *high_freq_factor, original);
            base.map(|w| w / f64::from(divisor(w))).collect()
        }
        RopeScaling::Yarn { factor, .. } => {
            let ramp = yarn_ramp(head_dim, theta, scaling);
            base.zip(ramp).map(|(w, keep)| w * keep + w / factor * (1.0 - keep)).collect()
        }
        RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
            let long = positions > *original_max_position_embeddings;
            divided(if long { long_factor } else { short_factor })
        }
        RopeScaling::Factors(factors) => divided(factors),
    }
}

fn attention_factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            *attention_factor
        }
        _ => 1.0,
    }
}

/// `factor` for long wavelengths, 1 for short ones, a linear ramp of the frequency between. Rounded to f32, since that
/// is how a GGUF file holds it.
fn llama3_divisor(frequency: f64, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = 2.0 * PI / frequency;
    if wavelength < original / high {
        return 1.0;
    }
    if wavelength > original / low {
        return factor as f32;
    }
    let keep = (original / wavelength - low) / (high - low);
    (1.0 / ((1.0 - keep) / factor + keep)) as f32
}

/// How much of each frequency is kept: 1 above `beta_fast` rotations of the original context, 0 below `beta_slow`.
fn yarn_ramp(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Vec<f64> {
    let RopeScaling::Yarn { original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } = scaling
    else {
        return vec![1.0; head_dim / 2];
    };
    let original = *original_max_position_embeddings as f64;
    let channel = |rotations: f64| {
        head_dim as f64 * libm::log(original / (rotations * 2.0 * PI)) / (2.0 * libm::log(theta))
    };
    let (mut low, mut high) = (channel(*beta_fast), channel(*beta_slow));
    if *truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    (0..head_dim / 2).map(|i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against `ROPE_INIT_FUNCTIONS` of transformers 5.23, which computes in f32: hence the tolerance of a few ulp.
    fn check(scaling: &RopeScaling, theta: f64, positions: usize, expected: [f64; 8]) {
        let found = inverse_frequencies(16, theta, scaling, positions);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{scaling:?}: {found} is not {expected}");
        }
    }

    #[test]
    fn linear_and_llama3_frequencies() {
        let expected = [0.25, 0.07905694, 0.025, 0.0079056947, 0.0025, 0.00079056947, 0.00025, 7.9056947e-5];
        check(&RopeScaling::Linear { factor: 4.0 }, 10_000.0, 4096, expected);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let expected =
            [1.0, 0.19392276, 0.03760603, 0.007292665, 0.000524846, 3.4281024e-5, 6.6478697e-6, 1.2891732e-6];
        check(&llama3, 500_000.0, 4096, expected);
    }

    #[test]
    fn yarn_frequencies() {
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 2048,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138_629_436,
            truncate: true,
        };
        let expected = [1.0, 0.31622776, 0.1, 0.025693506, 0.0062499996, 0.0013834966, 0.00025, 7.9056947e-5];
        check(&yarn, 10_000.0, 8192, expected);
        assert_eq!(attention_factor(&yarn), 1.138_629_436);
    }

    #[test]
    fn longrope_picks_its_factors_by_the_longest_context() {
        let longrope = RopeScaling::LongRope {
            short_factor: vec![1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
            long_factor: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5],
            original_max_position_embeddings: 2048,
            attention_factor: 1.087_114_613,
        };
        let short =
            [1.0, 0.28747976, 0.083333336, 0.024325214, 0.007142857, 0.0021081853, 0.000625, 0.00018601633];
        let long =
            [1.0, 0.15811388, 0.033333335, 0.0079056947, 0.002, 0.00052704633, 0.00014285714, 3.7203266e-5];
        check(&longrope, 10_000.0, 2048, short);
        check(&longrope, 10_000.0, 2049, long);
    }
}
