use samebits_tensor::{AttentionBatch, Backend, Result, Tensor};

/// Inputs of one forward pass: tokens of several sequences, concatenated.
#[derive(Clone)]
pub struct Step<B: Backend> {
    /// i32 `[t]`: token ids.
    pub tokens: Tensor<B>,
    /// i32 `[t]`: cache slot of each token, `page * page_size + offset`.
    pub slots: Tensor<B>,
    /// Positions, sequences and block tables of the tokens.
    pub attention: AttentionBatch<B>,
    /// i32 `[r]`: indices of the tokens whose logits are wanted.
    pub logits: Tensor<B>,
}

impl<B: Backend> Step<B> {
    /// The tokens whose logits are wanted, as a step of their own.
    pub fn chosen(&self) -> Result<Self> {
        let of = |x: &Tensor<B>| x.gather(&self.logits);
        let AttentionBatch { positions, sequences, block_tables, max_context } = &self.attention;
        Ok(Step {
            tokens: of(&self.tokens)?,
            slots: of(&self.slots)?,
            attention: AttentionBatch {
                positions: of(positions)?,
                sequences: of(sequences)?,
                block_tables: block_tables.clone(),
                max_context: *max_context,
            },
            logits: Tensor::iota(self.logits.backend(), self.logits.dims(), 0)?,
        })
    }
}
