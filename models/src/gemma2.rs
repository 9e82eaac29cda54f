use samebits_nn::{Attention, AttentionSpec, Loader, Mlp, Result as LoadResult, RmsNorm, Step};
use samebits_tensor::{Backend, KvCache, Result, RopeTable, Tensor};

use crate::{Layer, LayerContext};

/// Gemma 2 (Riviere et al. 2024): norms before and after attention and a GeGLU feed-forward layer, windows in every
/// other layer, capped scores.
pub struct Gemma2Layer<B: Backend> {
    input_layernorm: RmsNorm<B>,
    self_attn: Attention<B>,
    post_attention_layernorm: RmsNorm<B>,
    pre_feedforward_layernorm: RmsNorm<B>,
    mlp: Mlp<B>,
    post_feedforward_layernorm: RmsNorm<B>,
}

impl<B: Backend> Gemma2Layer<B> {
    /// The layer with another attention and rotary table.
    pub(crate) fn with_attention(
        weights: &Loader<'_, B>,
        spec: AttentionSpec,
        rope: &RopeTable<B>,
    ) -> LoadResult<Self> {
        let hidden = weights.config().hidden_size;
        Ok(Gemma2Layer {
            input_layernorm: weights.norm("input_layernorm", hidden)?,
            self_attn: Attention::load(&weights.at("self_attn"), spec, rope)?,
            post_attention_layernorm: weights.norm("post_attention_layernorm", hidden)?,
            pre_feedforward_layernorm: weights.norm("pre_feedforward_layernorm", hidden)?,
            mlp: Mlp::load(&weights.at("mlp"))?,
            post_feedforward_layernorm: weights.norm("post_feedforward_layernorm", hidden)?,
        })
    }
}

impl<B: Backend> Layer<B> for Gemma2Layer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        let config = weights.config();
        let spec = AttentionSpec {
            window: config.window(context.index),
            soft_cap: config.attn_logit_softcapping,
            ..AttentionSpec::plain(config)
        };
        Self::with_attention(weights, spec, &context.rope)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        let attended = self.self_attn.forward(self.input_layernorm.of(x), step, cache)?;
        let x = x.add(&self.post_attention_layernorm.forward(&attended)?)?;
        let fed = self.mlp.forward(self.pre_feedforward_layernorm.of(&x))?;
        x.add(&self.post_feedforward_layernorm.forward(&fed)?)
    }

    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        self.self_attn.store(self.input_layernorm.of(x), step, cache)
    }
}
