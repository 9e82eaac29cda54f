use samebits_nn::{AttentionSpec, Loader, Result as LoadResult, Step};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{Layer, LayerContext, LlamaLayer};

/// Mistral (Jiang et al. 2023): Llama whose queries see a sliding window of keys. With experts it is Mixtral (Jiang et al.
/// 2024).
pub struct MistralLayer<B: Backend>(LlamaLayer<B>);

impl<B: Backend> Layer<B> for MistralLayer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        let config = weights.config();
        let spec = AttentionSpec { window: config.window(context.index), ..AttentionSpec::plain(config) };
        LlamaLayer::with_attention(weights, context, spec).map(Self)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        self.0.forward(x, step, cache)
    }

    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        self.0.store(x, step, cache)
    }
}
