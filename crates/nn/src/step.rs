use samebits_tensor::{AttentionBatch, Backend, Tensor};

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
