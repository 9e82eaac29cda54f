//! The hyperparameters of a decoder, under Hugging Face's names, whatever file they came from.

use std::{fmt, ops::RangeInclusive};

use samebits_tensor::Activation;

/// Families of decoders that differ in more than numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM 2 and everything else of their shape.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Llama with norms on the heads of q and k.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Mistral with experts.
    Mixtral,
    /// Llama with experts, and with norms on the whole of q and k.
    Olmoe,
    /// Norms before and after each block, alternating windows, capped scores and logits.
    Gemma2,
    /// Gemma 2 without caps, with norms on the heads of q and k and its own rotary base in local layers.
    Gemma3,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 9] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::Qwen3Moe,
        Architecture::Mixtral,
        Architecture::Olmoe,
        Architecture::Gemma2,
        Architecture::Gemma3,
    ];

    /// `model_type` of a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen3Moe => "qwen3_moe",
            Architecture::Mixtral => "mixtral",
            Architecture::Olmoe => "olmoe",
            Architecture::Gemma2 => "gemma2",
            Architecture::Gemma3 => "gemma3",
        }
    }

    /// `general.architecture` of a GGUF file: a Mistral and a Mixtral are written as a Llama.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Architecture::Mistral | Architecture::Mixtral => "llama",
            Architecture::Qwen3Moe => "qwen3moe",
            other => other.name(),
        }
    }

    /// Whether this is a Gemma, whose checkpoints store norm weights less one.
    pub fn is_gemma(self) -> bool {
        matches!(self, Architecture::Gemma2 | Architecture::Gemma3)
    }

    /// Whether q and k have a norm, be it of each head or of the whole.
    pub fn has_qk_norm(self) -> bool {
        use Architecture::{Gemma3, Olmoe, Qwen3, Qwen3Moe};
        matches!(self, Qwen3 | Qwen3Moe | Olmoe | Gemma3)
    }

    /// Whether experts stand in the place of the feed-forward layer.
    pub fn has_experts(self) -> bool {
        matches!(self, Architecture::Qwen3Moe | Architecture::Mixtral | Architecture::Olmoe)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which keys the queries of a layer see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerType {
    /// Every key up to its own position.
    Full,
    /// The last [`Config::sliding_window`] of them.
    Sliding,
}

/// How rotary frequencies `rope_theta^(-2i / head_dim)` are changed for long contexts. In Gemma 3 it concerns
/// full layers only. Formulas: `transformers/modeling_rope_utils.py`.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Divided by `factor`.
    Linear {
        /// Context extension.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Context extension.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context that the model was first trained with.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Context extension.
        factor: f64,
        /// Context that the model was first trained with.
        original_max_position_embeddings: usize,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded to whole channels.
        truncate: bool,
    },
    /// One divisor a frequency, for contexts up to the original one and for longer ones.
    LongRope {
        /// Divisors of a context that fits `original_max_position_embeddings`; `head_dim / 2`.
        short_factor: Vec<f32>,
        /// Divisors of a longer one; `head_dim / 2`.
        long_factor: Vec<f32>,
        /// Context that the model was first trained with.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
    /// One divisor a frequency, `head_dim / 2` of them: GGUF's `rope_freqs.weight`.
    Factors(Vec<f32>),
}

/// The experts that stand in the place of the feed-forward layer, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Those that a token is given to.
    pub num_experts_per_tok: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub norm_topk_prob: bool,
}

/// Hyperparameters of a decoder. A field that a checkpoint leaves out has its architecture's default here.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Family.
    pub architecture: Architecture,
    /// Channels of the residual stream.
    pub hidden_size: usize,
    /// Channels inside the feed-forward layer, or inside each expert.
    pub intermediate_size: usize,
    /// Experts, where the architecture has them.
    pub experts: Option<ExpertsConfig>,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Channels of a head; even, and need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Base in sliding layers, where it differs (Gemma 3).
    pub rope_local_base_freq: Option<f64>,
    /// Change of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Keys that a query of a sliding layer sees, its own included; set if any layer is sliding.
    pub sliding_window: Option<usize>,
    /// What each layer sees; `num_hidden_layers` of them.
    pub layer_types: Vec<LayerType>,
    /// Cap of attention scores.
    pub attn_logit_softcapping: Option<f32>,
    /// Cap of logits.
    pub final_logit_softcapping: Option<f32>,
    /// Scores are divided by the root of this instead of that of `head_dim`.
    pub query_pre_attn_scalar: Option<f64>,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether the attention's output projection has one.
    pub attention_output_bias: bool,
    /// Activation of the feed-forward layer.
    pub hidden_activation: Activation,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one.
    pub eos_token_ids: Vec<u32>,
}

/// What is wrong with a model's hyperparameters; every variant names the field.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A field without which no model can be built, and which has no default.
    #[error("`{field}` is missing and has no default")]
    Missing {
        /// The field.
        field: String,
    },
    /// A field whose value no model can have.
    #[error("`{field}` is {found}; expected {expected}")]
    Invalid {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A field that changes the model's mathematics in a way that is not implemented.
    #[error("`{field}` is {found}, which is not supported: {supported}")]
    Unsupported {
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is.
        supported: String,
    },
}

impl ConfigError {
    /// A value that no model can have.
    pub fn invalid(field: impl Into<String>, found: impl ToString, expected: impl Into<String>) -> Self {
        ConfigError::Invalid { field: field.into(), found: found.to_string(), expected: expected.into() }
    }

    /// A value that is not implemented.
    pub fn unsupported(field: impl Into<String>, found: impl ToString, supported: impl Into<String>) -> Self {
        ConfigError::Unsupported {
            field: field.into(),
            found: found.to_string(),
            supported: supported.into(),
        }
    }
}

impl Config {
    /// Factor of the attention scores: one over the root of `query_pre_attn_scalar` or `head_dim`.
    pub fn attention_scale(&self) -> f32 {
        (1.0 / self.query_pre_attn_scalar.unwrap_or(self.head_dim as f64).sqrt()) as f32
    }

    /// Window of layer `layer`, or `None` if it sees every key.
    pub fn window(&self, layer: usize) -> Option<usize> {
        match self.layer_types[layer] {
            LayerType::Full => None,
            LayerType::Sliding => self.sliding_window,
        }
    }

    /// Rows of `q_proj`: channels of all query heads.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Rows of `k_proj` and of `v_proj`: channels of all key-value heads.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// That so many ranks can share each layer, whole heads and as many rows for each.
    ///
    /// # Errors
    /// Naming the first field that they do not divide, and the architecture where they cannot share its norm of all of q.
    pub fn check_ranks(&self, ranks: usize) -> Result<(), ConfigError> {
        if self.architecture == Architecture::Olmoe && ranks > 1 {
            let supported = "its norms of the whole of q and k need one device a layer";
            return Err(ConfigError::unsupported("model_type", self.architecture, supported));
        }
        let extents = [
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("intermediate_size", self.intermediate_size),
            ("hidden_size", self.hidden_size),
            ("vocab_size", self.vocab_size),
        ];
        let fits = |(field, extent): &(&str, usize)| {
            let is_shared = *field == "num_key_value_heads" && ranks.is_multiple_of(*extent);
            ranks > 0 && (extent.is_multiple_of(ranks) || is_shared)
        };
        extents.into_iter().find(|extent| !fits(extent)).map_or(Ok(()), |(field, extent)| {
            let supported =
                format!("the number of devices that share a layer has to divide it, and is {ranks}");
            Err(ConfigError::unsupported(field, extent, supported))
        })
    }

    /// The same, once every field is known to make sense.
    ///
    /// # Errors
    /// Naming the first field that is zero, does not divide, is absurdly large, or contradicts another.
    pub fn validated(self) -> Result<Self, ConfigError> {
        self.check_sizes()?;
        self.check_numbers()?;
        self.check_windows()?;
        self.check_rope_scaling()?;
        self.check_tokens()?;
        Ok(self)
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        check_size("hidden_size", self.hidden_size, 1..=1 << 18)?;
        check_size("intermediate_size", self.intermediate_size, 1..=1 << 20)?;
        check_size("num_hidden_layers", self.num_hidden_layers, 1..=1 << 12)?;
        check_size("num_attention_heads", self.num_attention_heads, 1..=1 << 12)?;
        check_size("num_key_value_heads", self.num_key_value_heads, 1..=self.num_attention_heads)?;
        check_size("head_dim", self.head_dim, 2..=1 << 12)?;
        check_size("vocab_size", self.vocab_size, 1..=1 << 24)?;
        check_size("max_position_embeddings", self.max_position_embeddings, 1..=1 << 28)?;
        self.check_experts()?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::invalid("head_dim", self.head_dim, "an even number"));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads, {}", self.num_attention_heads);
            return Err(ConfigError::invalid("num_key_value_heads", self.num_key_value_heads, expected));
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<(), ConfigError> {
        match self.experts {
            Some(experts) => {
                check_size("num_experts", experts.num_experts, 1..=1 << 12)?;
                check_size("num_experts_per_tok", experts.num_experts_per_tok, 1..=experts.num_experts)
            }
            None if self.architecture.has_experts() => {
                Err(ConfigError::Missing { field: "num_experts".into() })
            }
            None => Ok(()),
        }
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        check_number("rms_norm_eps", f64::from(self.rms_norm_eps), 1e-12..=1.0)?;
        check_number("rope_theta", self.rope_theta, 1.0..=1e15)?;
        if let Some(theta) = self.rope_local_base_freq {
            check_number("rope_local_base_freq", theta, 1.0..=1e15)?;
        }
        if let Some(scalar) = self.query_pre_attn_scalar {
            check_number("query_pre_attn_scalar", scalar, 1e-6..=1e6)?;
        }
        for (field, cap) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ] {
            if let Some(cap) = cap {
                check_number(field, f64::from(cap), 1e-3..=1e6)?;
            }
        }
        Ok(())
    }

    fn check_windows(&self) -> Result<(), ConfigError> {
        let (found, expected) = (self.layer_types.len(), self.num_hidden_layers);
        if found != expected {
            let found = format!("a list of {found}");
            return Err(ConfigError::invalid(
                "layer_types",
                found,
                format!("one for each of {expected} layers"),
            ));
        }
        match self.sliding_window {
            Some(window) => check_size("sliding_window", window, 1..=1 << 28),
            None if self.layer_types.contains(&LayerType::Sliding) => {
                Err(ConfigError::Missing { field: "sliding_window".into() })
            }
            None => Ok(()),
        }
    }

    fn check_rope_scaling(&self) -> Result<(), ConfigError> {
        let factor = |field: &str, value| check_number(&format!("rope_scaling.{field}"), value, 1e-6..=1e6);
        let original =
            |value| check_size("rope_scaling.original_max_position_embeddings", value, 1..=1 << 28);
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor: f } => factor("factor", *f),
            RopeScaling::Llama3 { factor: f, low_freq_factor, high_freq_factor, .. } => {
                factor("factor", *f)?;
                factor("low_freq_factor", *low_freq_factor)?;
                let range = low_freq_factor.next_up()..=1e6;
                check_number("rope_scaling.high_freq_factor", *high_freq_factor, range)
            }
            RopeScaling::Yarn { factor: f, beta_fast, beta_slow, attention_factor, .. } => {
                factor("factor", *f)?;
                factor("beta_slow", *beta_slow)?;
                factor("attention_factor", *attention_factor)?;
                check_number("rope_scaling.beta_fast", *beta_fast, beta_slow.next_up()..=1e6)
            }
            RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => {
                self.check_factors("rope_scaling.short_factor", short_factor)?;
                self.check_factors("rope_scaling.long_factor", long_factor)?;
                factor("attention_factor", *attention_factor)
            }
            RopeScaling::Factors(factors) => self.check_factors("rope_freqs.weight", factors),
        }?;
        match self.rope_scaling {
            RopeScaling::Llama3 { original_max_position_embeddings: n, .. }
            | RopeScaling::Yarn { original_max_position_embeddings: n, .. }
            | RopeScaling::LongRope { original_max_position_embeddings: n, .. } => original(n),
            _ => Ok(()),
        }
    }

    fn check_factors(&self, field: &str, factors: &[f32]) -> Result<(), ConfigError> {
        let (found, expected) = (factors.len(), self.head_dim / 2);
        if found != expected {
            let expected = format!("head_dim / 2 = {expected} of them");
            return Err(ConfigError::invalid(field, format!("a list of {found}"), expected));
        }
        let mut values = factors.iter().enumerate();
        values.try_for_each(|(i, &f)| check_number(&format!("{field}[{i}]"), f64::from(f), 1e-6..=1e6))
    }

    fn check_tokens(&self) -> Result<(), ConfigError> {
        let ids = self.bos_token_id.iter().map(|id| ("bos_token_id", id));
        for (field, &id) in ids.chain(self.eos_token_ids.iter().map(|id| ("eos_token_id", id))) {
            if id as usize >= self.vocab_size {
                return Err(ConfigError::invalid(
                    field,
                    id,
                    format!("below vocab_size, {}", self.vocab_size),
                ));
            }
        }
        Ok(())
    }
}

fn check_size(field: &str, value: usize, range: RangeInclusive<usize>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::invalid(field, value, format!("{} to {}", range.start(), range.end())))
}

fn check_number(field: &str, value: f64, range: RangeInclusive<f64>) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::invalid(field, value, format!("a number from {:e} to {:e}", range.start(), range.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Config {
        Config {
            architecture: Architecture::Llama,
            hidden_size: 64,
            intermediate_size: 128,
            experts: None,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            vocab_size: 100,
            rms_norm_eps: 1e-5,
            rope_theta: 10000.0,
            rope_local_base_freq: None,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 512,
            sliding_window: None,
            layer_types: vec![LayerType::Full; 2],
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            query_pre_attn_scalar: None,
            tie_word_embeddings: true,
            attention_bias: false,
            attention_output_bias: false,
            hidden_activation: Activation::Silu,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
        }
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = small();
        change(&mut config);
        config.validated().unwrap_err().to_string()
    }

    #[test]
    fn a_sensible_config_passes() {
        let config = small().validated().unwrap();
        assert_eq!((config.q_size(), config.kv_size()), (64, 32));
        assert_eq!(config.attention_scale(), 0.25);
        assert_eq!(config.window(1), None);
    }

    #[test]
    fn zero_absurd_and_indivisible_sizes_name_their_field() {
        assert!(refused(|c| c.hidden_size = 0).contains("`hidden_size` is 0"));
        assert!(refused(|c| c.num_hidden_layers = usize::MAX).contains("num_hidden_layers"));
        assert!(refused(|c| c.num_key_value_heads = 3).contains("divisor of num_attention_heads, 4"));
        assert!(refused(|c| c.head_dim = 15).contains("even"));
    }

    #[test]
    fn numbers_that_are_not_finite_or_positive_name_their_field() {
        assert!(refused(|c| c.rms_norm_eps = f32::NAN).contains("`rms_norm_eps` is NaN"));
        assert!(refused(|c| c.rope_theta = f64::INFINITY).contains("rope_theta"));
        assert!(refused(|c| c.attn_logit_softcapping = Some(0.0)).contains("attn_logit_softcapping"));
        let factors = RopeScaling::Factors(vec![1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert!(refused(|c| c.rope_scaling = factors).contains("rope_freqs.weight[1]"));
    }

    #[test]
    fn contradictions_name_their_field() {
        assert!(refused(|c| c.layer_types[1] = LayerType::Sliding).contains("sliding_window"));
        assert!(refused(|c| c.layer_types.truncate(1)).contains("layer_types"));
        assert!(refused(|c| c.eos_token_ids.push(100)).contains("eos_token_id"));
        assert!(refused(|c| c.rope_scaling = RopeScaling::Factors(vec![1.0])).contains("8 of them"));
    }

    #[test]
    fn experts_name_their_field() {
        let experts = |num_experts, num_experts_per_tok| {
            Some(ExpertsConfig { num_experts, num_experts_per_tok, norm_topk_prob: true })
        };
        assert!(refused(|c| c.experts = experts(0, 1)).contains("`num_experts` is 0"));
        assert!(
            refused(|c| c.experts = experts(4, 5)).contains("`num_experts_per_tok` is 5; expected 1 to 4")
        );
        assert!(refused(|c| c.architecture = Architecture::Mixtral).contains("num_experts"));
        let olmoe = Config { architecture: Architecture::Olmoe, experts: experts(4, 2), ..small() };
        assert!(olmoe.check_ranks(1).is_ok());
        assert!(olmoe.check_ranks(2).unwrap_err().to_string().contains("olmoe"));
    }

    #[test]
    fn ranks_divide_what_they_share() {
        let config = Config { num_attention_heads: 8, num_key_value_heads: 2, ..small() };
        let fits = |ranks| config.check_ranks(ranks);
        assert_eq!((fits(1), fits(2), fits(4)), (Ok(()), Ok(()), Ok(())));
        let error = fits(3).unwrap_err().to_string();
        assert!(error.contains("num_attention_heads") && error.contains("is 3"), "{error}");
        assert!(fits(0).is_err());
    }
}
