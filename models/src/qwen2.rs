use samebits_nn::{AttentionSpec, Loader, Result as LoadResult, Step};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{Layer, LayerContext, LlamaLayer};

/// Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on q, k and v, and a window in layers that ask for one.
pub struct Qwen2Layer<B: Backend>(LlamaLayer<B>);

impl<B: Backend> Layer<B> for Qwen2Layer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        let config = weights.config();
        let spec = AttentionSpec {
            bias: true,
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
