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
