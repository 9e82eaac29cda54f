use samebits_nn::{AttentionSpec, Loader, QkNorm, Result as LoadResult, Step};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{Layer, LayerContext, LlamaLayer};

/// Qwen 3 (Yang et al. 2025): Llama with norms on the heads of q and k, and heads as wide as it likes. With experts it is
/// Qwen 3 MoE.
pub struct Qwen3Layer<B: Backend>(LlamaLayer<B>);

impl<B: Backend> Layer<B> for Qwen3Layer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        let config = weights.config();
        let spec = AttentionSpec {
            qk_norm: Some(QkNorm::Heads),
            window: config.window(context.index),
            ..AttentionSpec::plain(config)
        };
        LlamaLayer::with_attention(weights, context, spec).map(Self)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        self.0.forward(x, step, cache)
    }

    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        self.0.store(x, step, cache)
    }
}
