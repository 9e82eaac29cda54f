//! Hyperparameters that both kinds of file leave to their reader.

use samebits_nn::ConfigError;

/// Channels of a head where a file does not state them: the heads share the residual stream.
pub(crate) fn derived_head_dim(hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    if heads > 0 && hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    let expected = format!("a divisor of hidden_size, {hidden_size}, where head_dim is not stated");
    Err(ConfigError::invalid("num_attention_heads", heads, expected))
}

/// Factor of YaRN's cosines and sines: `0.1 ln(factor) + 1` (Peng et al. 2023, equation 22).
pub(crate) fn yarn_attention_factor(factor: f64) -> f64 {
    yarn_attention_factor_of(factor, 1.0)
}

/// The same with its logarithm scaled (`_compute_yarn_parameters` of transformers, `get_mscale`).
pub(crate) fn yarn_attention_factor_of(factor: f64, scale: f64) -> f64 {
    if factor > 1.0 { 0.1 * scale * libm::log(factor) + 1.0 } else { 1.0 }
}

/// Factor of LongRoPE's cosines and sines: `sqrt(1 + ln(extension) / ln(original))`
/// (`_compute_longrope_parameters` of transformers).
pub(crate) fn long_rope_attention_factor(extension: f64, original: usize) -> f64 {
    if extension > 1.0 { (1.0 + libm::log(extension) / libm::log(original as f64)).sqrt() } else { 1.0 }
}
