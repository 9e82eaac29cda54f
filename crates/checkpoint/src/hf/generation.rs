use samebits_nn::ConfigError;
use serde_json::Value;

use super::fields::Fields;
use crate::Metadata;

/// How the authors of a model suggest to sample from it: `generation_config.json`, or GGUF's
/// `general.sampling.*`. What they leave open is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Whether to sample at all; greedy if false.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// Tokens to choose from.
    pub top_k: Option<u32>,
    /// Probability to choose from.
    pub top_p: Option<f32>,
    /// Least probability, relative to the likeliest token's.
    pub min_p: Option<f32>,
    /// Divisor of the logits of tokens that were there before.
    pub repetition_penalty: Option<f32>,
    /// Tokens that end a sequence, the model configuration's included.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads a `generation_config.json`.
    ///
    /// # Errors
    /// Naming a field that is of another type than it should be.
    pub fn from_json(json: &Value) -> Result<Self, ConfigError> {
        let map =
            json.as_object().ok_or_else(|| ConfigError::invalid("the file", "no object", "an object"))?;
        let fields = Fields::new(map);
        let float = |field| Ok(fields.number(field)?.map(|value| value as f32));
        Ok(GenerationConfig {
            do_sample: fields.bool("do_sample")?,
            temperature: float("temperature")?,
            top_k: fields.size("top_k")?.map(|k| k.try_into().unwrap_or(u32::MAX)),
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repetition_penalty: float("repetition_penalty")?,
            eos_token_ids: fields.tokens("eos_token_id")?.unwrap_or_default(),
        })
    }

    /// Reads the keys of a GGUF file.
    ///
    /// # Errors
    /// Naming a key that is of another type than it should be.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, ConfigError> {
        let number = |key: &str| {
            let key = format!("general.sampling.{key}");
            metadata.f64(&key).map_err(|error| ConfigError::invalid(key, error, "a number"))
        };
        let float = |key| Ok(number(key)?.map(|value| value as f32));
        Ok(GenerationConfig {
            do_sample: None,
            temperature: float("temp")?,
            top_k: number("top_k")?.map(|k| k as u32),
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repetition_penalty: float("penalty_repeat")?,
            eos_token_ids: Vec::new(),
        })
    }

    /// Adds the tokens that the model's configuration says end a sequence.
    pub(crate) fn with_eos(mut self, ids: &[u32]) -> Self {
        for &id in ids {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
        self
    }
}
