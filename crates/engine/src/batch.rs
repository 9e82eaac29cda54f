//! What one step asks of the device.

use std::ops::Range;

use crate::{PageId, TokenId};

/// One step: tokens of several sequences, concatenated. A prefill chunk and a decode token are the same thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The tokens to compute, sequence after sequence.
    pub tokens: Vec<TokenId>,
    /// Each token's absolute position in its sequence; consecutive within a sequence.
    pub positions: Vec<u32>,
    /// The sequences, in the order of their tokens.
    pub seqs: Vec<BatchSeq>,
}

/// One sequence's part of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSeq {
    /// Where its tokens lie in [`Batch::tokens`]; never empty.
    pub tokens: Range<usize>,
    /// Its block table. Position `p` lives in slot `pages[p / page_size] * page_size + p % page_size`; the table
    /// covers every position of the sequence up to and including this step's last.
    pub pages: Vec<PageId>,
    /// What is wanted of the logits of its last token.
    pub logits: Wanted,
}

/// What a step returns of a row of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing, since more of the prompt is to come.
    #[default]
    Nothing,
    /// At least so many of its greatest, from 1 to [`LEADING_MAX`]; a runner may return the whole row instead.
    Leading(usize),
    /// The whole row.
    Row,
}

/// Most logits of a row that are wanted without the others.
pub const LEADING_MAX: usize = 64;

impl Batch {
    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// How many rows of logits the step returns.
    pub fn logit_rows(&self) -> usize {
        self.wanted().count()
    }

    /// What is wanted of each row that the step returns.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted> + '_ {
        self.seqs.iter().map(|seq| seq.logits).filter(|&wanted| wanted != Wanted::Nothing)
    }

    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.seqs.clear();
    }

    /// Appends `tokens`, the first of them at absolute position `start`.
    pub(crate) fn push(&mut self, tokens: &[TokenId], start: usize, pages: &[PageId], logits: Wanted) {
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((start..start + tokens.len()).map(|position| position as u32));
        self.seqs.push(BatchSeq { tokens: first..self.tokens.len(), pages: pages.to_vec(), logits });
    }
}
