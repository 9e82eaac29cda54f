use samebits_nn::{Config, ExpertsConfig, WeightError, WeightSource};
use samebits_tensor::Format;

use crate::plan::{is_used, page_shape};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const EXPERTS: &str = ".mlp.experts.";

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPart {
    /// Tokens that are computed.
    pub tokens: usize,
    /// Tokens before them, whose keys and values are cached.
    pub past: usize,
    /// Whether the logits of the last token are wanted.
    pub logits: bool,
}

/// What a step has to read and to compute, whatever computes it: what its time is measured against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Bytes of weights, in their file's formats.
    pub weight_bytes: u64,
    /// Bytes of cached keys and values that a query sees.
    pub cache_bytes: u64,
    /// Multiply-adds of int8.
    pub int8_macs: u64,
    /// Multiply-adds of f32.
    pub f32_macs: u64,
}

impl StepWork {
    /// The work of one step, from the model's hyperparameters and the layouts of its weights; no weight is read.
    ///
    /// A matrix is read once and multiplied by every token; of the experts of a mixture at most as many as all tokens together
    /// are given to, each multiplied by its tokens; in the last layer, of which nobody reads more than keys and values
    /// of the other tokens, only by those whose logits are wanted, as a query is one of theirs there. The embedding is read by rows, one a token. The output layer, be
    /// it a matrix of its own or the embedding, is read once and multiplied by the tokens whose logits are wanted, and not
    /// at all if there are none. Each sequence's visible keys and values are read once a layer; scores and weighted values
    /// take one multiply-add a channel each, though the contract computes the values in two slices. Multiply-adds are int8
    /// where the weight is in blocks, and f32 where it is in floats. Norms, rotations and the softmax are left out: they
    /// are small.
    ///
    /// # Errors
    /// As [`WeightSource::layout`].
    pub fn new(config: &Config, weights: &dyn WeightSource, parts: &[StepPart]) -> Result<Self, WeightError> {
        let tokens: u64 = parts.iter().map(|part| part.tokens as u64).sum();
        let logits = parts.iter().filter(|part| part.logits).count() as u64;
        let mut work = StepWork::default();
        let last = format!("model.layers.{}.", config.num_hidden_layers - 1);
        for name in weights.names().iter().filter(|name| is_used(config, name)) {
            match name.as_str() {
                EMBEDDING => {
                    work.rows(weights, name, tokens)?;
                    if config.tie_word_embeddings {
                        work.matrix(weights, name, logits)?;
                    }
                }
                other => {
                    let is_last = other.starts_with(&last) && !is_stored(&other[last.len()..]);
                    let tokens = if is_last || other == HEAD { logits } else { tokens };
                    match config.experts {
                        Some(experts) if other.contains(EXPERTS) => {
                            work.experts(weights, name, tokens, &experts)?;
                        }
                        _ => work.matrix(weights, name, tokens)?,
                    }
                }
            }
        }
        parts.iter().for_each(|part| work.attention(config, part));
        Ok(work)
    }

    /// Both, one after the other.
    pub fn plus(self, other: StepWork) -> StepWork {
        StepWork {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            cache_bytes: self.cache_bytes + other.cache_bytes,
            int8_macs: self.int8_macs + other.int8_macs,
            f32_macs: self.f32_macs + other.f32_macs,
        }
    }

    /// A weight multiplied by `tokens` vectors; one that is no matrix is only read.
    fn matrix(&mut self, weights: &dyn WeightSource, name: &str, tokens: u64) -> Result<(), WeightError> {
        if tokens == 0 {
            return Ok(());
        }
        let (format, shape) = weights.layout(name)?;
        self.weight_bytes += weights.size(name).unwrap_or_default();
        if let &[rows, cols] = shape.as_slice() {
            self.products(format, (rows * cols) as u64 * tokens);
        }
        Ok(())
    }

    /// A weight `[experts, rows, cols]`, of which each token has some.
    fn experts(
        &mut self,
        weights: &dyn WeightSource,
        name: &str,
        tokens: u64,
        experts: &ExpertsConfig,
    ) -> Result<(), WeightError> {
        let (format, shape) = weights.layout(name)?;
        let (count, choices) = (experts.num_experts as u64, tokens * experts.num_experts_per_tok as u64);
        self.weight_bytes += weights.size(name).unwrap_or_default() / count.max(1) * count.min(choices);
        let of_expert: usize = shape.iter().skip(1).product();
        self.products(format, of_expert as u64 * choices);
        Ok(())
    }

    fn products(&mut self, format: Format, macs: u64) {
        *(if format.is_quantized() { &mut self.int8_macs } else { &mut self.f32_macs }) += macs;
    }

    /// Single rows of a matrix.
    fn rows(&mut self, weights: &dyn WeightSource, name: &str, rows: u64) -> Result<(), WeightError> {
        let (_, shape) = weights.layout(name)?;
        let row_bytes = weights.size(name).unwrap_or_default() / shape[0].max(1) as u64;
        self.weight_bytes += rows * row_bytes;
        Ok(())
    }

    fn attention(&mut self, config: &Config, part: &StepPart) {
        let token_bytes = page_shape(config, 1).bytes() as u64;
        for layer in 0..config.num_hidden_layers {
            let window = config.window(layer).unwrap_or(usize::MAX);
            let visible = |position: usize| (position + 1).min(window) as u64;
            let end = part.past + part.tokens;
            let queries = match layer + 1 < config.num_hidden_layers {
                true => part.past..end,
                false => end - usize::from(part.logits)..end,
            };
            let first = (queries.start + 1).saturating_sub(window);
            if !queries.is_empty() {
                self.cache_bytes += (end - first) as u64 * token_bytes;
            }
            let pairs: u64 = queries.map(visible).sum();
            self.int8_macs += 2 * config.q_size() as u64 * pairs;
        }
    }
}

/// Whether a layer's weight is there for keys and values.
fn is_stored(name: &str) -> bool {
    let keys_or_values = ["self_attn.k_", "self_attn.v_"].iter().any(|part| name.starts_with(part));
    keys_or_values || name.starts_with("input_layernorm.")
}

#[cfg(test)]
mod tests {
    use samebits_nn::{Architecture, LayerType, RopeScaling};
    use samebits_tensor::{Activation, HostWeight};

    use super::*;

    const ONE: StepPart = StepPart { tokens: 1, past: 0, logits: true };

    /// Weights that have a layout and no bytes.
    struct Layouts(Vec<(&'static str, Format, Vec<usize>)>);

    impl WeightSource for Layouts {
        fn get(&self, name: &str) -> Result<HostWeight, WeightError> {
            Err(WeightError::Missing { name: name.into(), origin: self.origin() })
        }

        fn contains(&self, name: &str) -> bool {
            self.0.iter().any(|weight| weight.0 == name)
        }

        fn names(&self) -> Vec<String> {
            self.0.iter().map(|weight| weight.0.into()).collect()
        }

        fn size(&self, name: &str) -> Option<u64> {
            let (format, shape) = self.layout(name).ok()?;
            let values: usize = shape.iter().product();
            Some((values / format.block_len() * format.block_bytes()) as u64)
        }

        fn origin(&self) -> String {
            "layouts".into()
        }

        fn layout(&self, name: &str) -> Result<(Format, Vec<usize>), WeightError> {
            let found = self.0.iter().find(|weight| weight.0 == name);
            found.map(|weight| (weight.1, weight.2.clone())).ok_or_else(|| self.get(name).unwrap_err())
        }
    }

    fn weights() -> Layouts {
        Layouts(vec![
            (EMBEDDING, Format::Q8_0, vec![100, 64]),
            ("model.layers.0.mlp.up_proj.weight", Format::Q4_0, vec![96, 64]),
            ("model.layers.0.input_layernorm.weight", Format::F32, vec![64]),
            ("model.layers.1.mlp.up_proj.weight", Format::F16, vec![96, 64]),
            (HEAD, Format::Q8_0, vec![100, 64]),
        ])
    }

    /// Two layers, of which the second sees the last 4 keys; heads of 16 channels, 4 for queries, 2 for keys.
    fn config(tie_word_embeddings: bool) -> Config {
        Config {
            architecture: Architecture::Llama,
            hidden_size: 64,
            intermediate_size: 96,
            experts: None,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            vocab_size: 100,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_local_base_freq: None,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 128,
            sliding_window: Some(4),
            layer_types: vec![LayerType::Full, LayerType::Sliding],
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            query_pre_attn_scalar: None,
            tie_word_embeddings,
            attention_bias: false,
            attention_output_bias: false,
            hidden_activation: Activation::Silu,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    fn work(tied: bool, parts: &[StepPart]) -> StepWork {
        StepWork::new(&config(tied), &weights(), parts).unwrap()
    }

    #[test]
    fn weights_are_read_once_and_the_embedding_by_rows() {
        let (row, head, quantised, norm, dense) = (68, 6800, 96 * 36, 256, 96 * 128);
        let one = work(false, &[ONE]);
        assert_eq!(one.weight_bytes, row + head + quantised + norm + dense);
        assert_eq!(work(true, &[ONE]).weight_bytes, one.weight_bytes);
        let many = work(false, &[ONE; 3]);
        assert_eq!(many.weight_bytes, one.weight_bytes + 2 * row);
        let silent = work(false, &[StepPart { logits: false, ..ONE }]);
        // The last layer's projection is not read either.
        assert_eq!(silent.weight_bytes, one.weight_bytes - head - dense);
    }

    #[test]
    fn multiply_adds_follow_the_format_and_the_tokens() {
        let (layer, head, attention) = (96 * 64, 100 * 64, 2 * 2 * 64);
        let one = work(true, &[ONE]);
        assert_eq!((one.int8_macs, one.f32_macs), (layer + head + attention, layer));
        let prompt = work(true, &[StepPart { tokens: 3, ..ONE }]);
        // Only the last token goes through the last layer, where its query sees 3 keys; the first layer's see 1, 2 and 3.
        assert_eq!(prompt.f32_macs, layer);
        assert_eq!(prompt.int8_macs, 3 * layer + head + (6 + 3) * attention / 2);
    }

    #[test]
    fn experts_are_read_as_far_as_tokens_choose_them() {
        let name = "model.layers.0.mlp.experts.up_proj.weight";
        let weights = Layouts(vec![(name, Format::Q4_0, vec![8, 96, 64])]);
        let experts = ExpertsConfig { num_experts: 8, num_experts_per_tok: 3, norm_topk_prob: true };
        let config = Config { experts: Some(experts), ..config(true) };
        let (bytes, macs) = (96 * 36, 96 * 64);
        for (tokens, read) in [(0, 0), (1, 3), (2, 6), (3, 8), (5, 8)] {
            let part = StepPart { tokens, past: 0, logits: false };
            let work = StepWork::new(&config, &weights, &[part]).unwrap();
            let attention = work.int8_macs - tokens as u64 * 3 * macs;
            assert_eq!(work.weight_bytes, read * bytes, "{tokens}");
            assert_eq!(attention, StepWork::new(&config, &Layouts(Vec::new()), &[part]).unwrap().int8_macs);
        }
    }

    #[test]
    fn a_window_bounds_what_is_read_of_the_cache() {
        let token = page_shape(&config(true), 1).bytes() as u64;
        let decode = work(true, &[StepPart { past: 9, ..ONE }]);
        assert_eq!(decode.cache_bytes, (10 + 4) * token);
        let chunk = work(true, &[StepPart { past: 9, tokens: 3, logits: true }]);
        assert_eq!(chunk.cache_bytes, (12 + 4) * token);
        assert_eq!(decode.plus(chunk).cache_bytes, 30 * token);
    }
}
