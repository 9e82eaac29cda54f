use samebits_nn::{AttentionSpec, Loader, QkNorm, Result as LoadResult, Step};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{Layer, LayerContext, LlamaLayer};

/// OLMoE (Muennighoff et al. 2024): Llama with experts, and with norms on the whole of q and k.
pub struct OlmoeLayer<B: Backend>(LlamaLayer<B>);

impl<B: Backend> Layer<B> for OlmoeLayer<B> {
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self> {
        let spec = AttentionSpec { qk_norm: Some(QkNorm::Whole), ..AttentionSpec::plain(weights.config()) };
        LlamaLayer::with_attention(weights, context, spec).map(Self)
    }

    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        self.0.forward(x, step, cache)
    }

    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        self.0.store(x, step, cache)
    }
}
