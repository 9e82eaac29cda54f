use samebits_nn::{Embedding, Linear, Loader, Result as LoadResult, RmsNorm, Step, rope_table};
use samebits_tensor::{Backend, BinaryOp, KvCache, Result, RopeTable, Tensor};

/// One layer of a decoder.
pub trait Layer<B: Backend>: Sized {
    /// Loads the layer from the names below `model.layers.N.`.
    fn load(weights: &Loader<'_, B>, context: &LayerContext<B>) -> LoadResult<Self>;

    /// `x [t, hidden_size]` to the same shape; the tokens' keys and values go to `cache`.
    fn forward(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>>;

    /// Only the keys and values of `x [t, hidden_size]`, to `cache`.
    fn store(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()>;
}

/// What a layer is built from besides its weights.
pub struct LayerContext<B: Backend> {
    /// Number of the layer, from 0.
    pub index: usize,
    /// Rotary angles of full layers.
    pub rope: RopeTable<B>,
    /// Rotary angles of sliding layers, where they have their own base.
    pub local_rope: RopeTable<B>,
}

/// Embedding, layers, norm and output layer.
pub struct Decoder<B: Backend, L> {
    embed_tokens: Embedding<B>,
    embedding_scale: Option<f32>,
    layers: Vec<L>,
    norm: RmsNorm<B>,
    lm_head: Linear<B>,
    final_logit_softcapping: Option<f32>,
}

impl<B: Backend, L: Layer<B>> Decoder<B, L> {
    /// Loads a decoder that serves contexts of up to `max_context` tokens.
    ///
    /// # Errors
    /// If a weight is missing, damaged, of another shape, or of a format that the backend does not take.
    pub fn load(weights: &Loader<'_, B>, max_context: usize) -> LoadResult<Self> {
        let config = weights.config();
        let model = weights.at("model");
        let embed_tokens = model.embedding("embed_tokens")?;
        let rope =
            rope_table(weights.backend(), config, config.rope_theta, &config.rope_scaling, max_context)?;
        let local_rope = match config.rope_local_base_freq {
            Some(theta) => rope_table(weights.backend(), config, theta, &Default::default(), max_context)?,
            None => rope.clone(),
        };
        let layer = |index| {
            let context = LayerContext { index, rope: rope.clone(), local_rope: local_rope.clone() };
            L::load(&model.at("layers").at(index), &context)
        };
        let is_alone = weights.backend().rank().count == 1;
        let part =
            |of: &Loader<'_, B>, name| of.linear_part(name, config.vocab_size, config.hidden_size, false);
        let lm_head = match config.tie_word_embeddings {
            true if is_alone => embed_tokens.as_linear(),
            true => part(&model, "embed_tokens")?,
            false => part(weights, "lm_head")?,
        };
        Ok(Decoder {
            lm_head,
            embed_tokens,
            embedding_scale: config.architecture.is_gemma().then(|| (config.hidden_size as f32).sqrt()),
            layers: (0..config.num_hidden_layers).map(layer).collect::<LoadResult<_>>()?,
            norm: model.norm("norm", config.hidden_size)?,
            final_logit_softcapping: config.final_logit_softcapping,
        })
    }

    /// Vectors `[t, hidden_size]` of the step's tokens.
    pub fn embed(&self, step: &Step<B>) -> Result<Tensor<B>> {
        let x = self.embed_tokens.forward(&step.tokens)?;
        match self.embedding_scale {
            Some(scale) => x.scalar(BinaryOp::Mul, scale),
            None => Ok(x),
        }
    }

    /// Layer `index` of `x [t, hidden_size]`.
    pub fn layer(
        &self,
        index: usize,
        x: &Tensor<B>,
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Result<Tensor<B>> {
        self.layers[index].forward(x, step, cache)
    }

    /// Logits `[r, vocab_size]` of the step's chosen tokens, from the `x [t, hidden_size]` that goes into the last layer: of
    /// the other tokens, nobody reads more of that layer than keys and values.
    pub fn last(&self, x: &Tensor<B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        let last = self.layers.len() - 1;
        // Not worth it where most are chosen, as in a step of single tokens.
        if 2 * step.logits.dims()[0] > x.dims()[0] {
            return self.head(&self.layer(last, x, step, cache)?, step);
        }
        self.layers[last].store(x, step, cache)?;
        let chosen = step.chosen()?;
        let x = self.layer(last, &x.gather(&step.logits)?, &chosen, cache)?;
        self.head(&x, &chosen)
    }

    /// Logits `[r, vocab_size]` of the step's chosen tokens, from the last layer's `x [t, hidden_size]`.
    pub fn head(&self, x: &Tensor<B>, step: &Step<B>) -> Result<Tensor<B>> {
        let x = self.norm.forward(&x.gather(&step.logits)?)?;
        let logits = self.lm_head.forward(&x)?.all_gather(1)?;
        match self.final_logit_softcapping {
            Some(cap) => logits.soft_cap(cap),
            None => Ok(logits),
        }
    }
}
