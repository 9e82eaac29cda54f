use samebits_nn::{AttentionSpec, Loader, QkNorm, Result as LoadResult, Step};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{Gemma2Layer, Layer, LayerContext};

/// Gemma 3 (Kamath et al. 2025): Gemma 2 with norms on the heads of q and k instead of capped scores, and a rotary base
/// of their own in sliding layers.
pub struct Gemma3Layer<B: Backend>(Gemma2Layer<B>);

impl<B: Backend> Layer<B> for Gemma3Layer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        let config = weights.config();
        let window = config.window(context.index);
        let rope = if window.is_some() { &context.local_rope } else { &context.rope };
        let spec = AttentionSpec {
            qk_norm: Some(QkNorm::Heads),
            window,
            soft_cap: config.attn_logit_softcapping,
            ..AttentionSpec::plain(config)
        };
        Gemma2Layer::with_attention(weights, spec, rope).map(Self)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        self.0.forward(x, step, cache)
    }

    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        self.0.store(x, step, cache)
    }
}
