use samebits_nn::{Attention, AttentionSpec, FeedForward, Loader, Result as LoadResult, RmsNorm, Step};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{Layer, LayerContext};

/// Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), SmolLM 2 and their like: norm before attention, norm
/// before a SwiGLU feed-forward layer, a residual around each. Models with experts have them in the place of that layer.
pub struct LlamaLayer<B: Backend> {
    input_layernorm: RmsNorm<B>,
    self_attn: Attention<B>,
    post_attention_layernorm: RmsNorm<B>,
    mlp: FeedForward<B>,
}

impl<B: Backend> LlamaLayer<B> {
    /// The layer with another attention.
    pub(crate) fn with_attention(
        weights: &Loader<'_, B>,
        context: &LayerContext<B>,
        spec: AttentionSpec,
    ) -> LoadResult<Self> {
        let hidden = weights.config().hidden_size;
        Ok(LlamaLayer {
            input_layernorm: weights.norm("input_layernorm", hidden)?,
            self_attn: Attention::load(&weights.at("self_attn"), spec, &context.rope)?,
            post_attention_layernorm: weights.norm("post_attention_layernorm", hidden)?,
            mlp: FeedForward::load(&weights.at("mlp"))?,
        })
    }
}

impl<B: Backend> Layer<B> for LlamaLayer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        Self::with_attention(weights, context, AttentionSpec::plain(weights.config()))
    }

    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        let attended = self.self_attn.forward(self.input_layernorm.of(x), step, cache)?;
        let x = x.add(&attended)?;
        x.add(&self.mlp.forward(self.post_attention_layernorm.of(&x))?)
    }

    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        self.self_attn.store(self.input_layernorm.of(x), step, cache)
    }
}
