//! Language models, one file each, written once over any backend.
//!
//! A file holds what its paper says differs from the others: the layer. What they share, from embedding to logits, is
//! [`Decoder`]. Names are Hugging Face's, so that a checkpoint's tensors are found where the text says.
#![forbid(unsafe_code)]

mod decoder;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod olmoe;
mod qwen2;
mod qwen3;

pub use decoder::{Decoder, Layer, LayerContext};
pub use gemma2::Gemma2Layer;
pub use gemma3::Gemma3Layer;
pub use llama::LlamaLayer;
pub use mistral::MistralLayer;
pub use olmoe::OlmoeLayer;
pub use qwen2::Qwen2Layer;
pub use qwen3::Qwen3Layer;

use samebits_nn::{Architecture, Loader, Result as LoadResult, Step};
use samebits_tensor::{Backend, KvCache, KvShape, Result, Tensor};

/// A loaded model of any supported architecture.
pub struct Model<B: Backend> {
    decoder: AnyDecoder<B>,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

macro_rules! architectures {
    ($($name:ident => $layer:ident),* $(,)?) => {
        enum AnyDecoder<B: Backend> { $($name(Decoder<B, $layer<B>>)),* }

        impl<B: Backend> AnyDecoder<B> {
            fn load(weights: &Loader<'_, B>, max_context: usize) -> LoadResult<Self> {
                match weights.config().architecture {
                    $(Architecture::$name => Decoder::load(weights, max_context).map(Self::$name)),*
                }
            }
        }

        impl<B: Backend> Model<B> {
            /// Vectors `[t, hidden_size]` of the step's tokens.
            pub fn embed(&self, step: &Step<B>) -> Result<Tensor<B>> {
                match &self.decoder { $(AnyDecoder::$name(decoder) => decoder.embed(step)),* }
            }

            /// Layer `index` of `x [t, hidden_size]`.
            pub fn layer(
                &self,
                index: usize,
                x: &Tensor<B>,
                step: &Step<B>,
                cache: &mut KvCache<B>,
            ) -> Result<Tensor<B>> {
                match &self.decoder { $(AnyDecoder::$name(decoder) => decoder.layer(index, x, step, cache)),* }
            }

            fn last(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
                match &self.decoder { $(AnyDecoder::$name(decoder) => decoder.last(x, step, cache)),* }
            }

            /// Logits `[r, vocab_size]` of the step's chosen tokens, from the last layer's `x [t, hidden_size]`.
            pub fn head(&self, x: &Tensor<B>, step: &Step<B>) -> Result<Tensor<B>> {
                match &self.decoder { $(AnyDecoder::$name(decoder) => decoder.head(x, step)),* }
            }
        }
    };
}

architectures! {
    Llama => LlamaLayer,
    Mistral => MistralLayer,
    Qwen2 => Qwen2Layer,
    Qwen3 => Qwen3Layer,
    Qwen3Moe => Qwen3Layer,
    Mixtral => MistralLayer,
    Olmoe => OlmoeLayer,
    Gemma2 => Gemma2Layer,
    Gemma3 => Gemma3Layer,
}

impl<B: Backend> Model<B> {
    /// Loads the architecture that the configuration names, for contexts of up to `max_context` tokens.
    ///
    /// # Errors
    /// If a weight is missing, damaged, of another shape, or of a format that the backend does not take.
    pub fn load(weights: &Loader<'_, B>, max_context: usize) -> LoadResult<Self> {
        let config = weights.config();
        Ok(Model {
            decoder: AnyDecoder::load(weights, max_context)?,
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        })
    }

    /// An empty cache for each layer.
    ///
    /// # Errors
    /// If the backend cannot hold `pages` pages, or `page_size` does not divide an attention tile.
    pub fn caches(&self, backend: &B, pages: usize, page_size: usize) -> Result<Vec<KvCache<B>>> {
        let shape = KvShape { pages, page_size, kv_heads: self.kv_heads, head_dim: self.head_dim };
        (0..self.layers).map(|_| KvCache::new(backend, shape)).collect()
    }

    /// Logits `[r, vocab_size]` of a step; `caches` has one cache a layer.
    ///
    /// # Errors
    /// If the backend fails; the step's slots then hold no promise, other slots are as they were.
    pub fn forward(&self, step: &Step<B>, caches: &mut [KvCache<B>]) -> Result<Tensor<B>> {
        let mut x = self.embed(step)?;
        let (last, before) = caches[..self.layers].split_last_mut().expect("a layer");
        for (index, cache) in before.iter_mut().enumerate() {
            x = self.layer(index, &x, step, cache)?;
        }
        self.last(&x, step, last)
    }
}
