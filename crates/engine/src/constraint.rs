//! What may come next, said from outside: a grammar, a JSON schema.

use thiserror::Error;

use crate::TokenId;

/// Restricts the output of one request. Implemented outside.
///
/// It sees every token of the output once and in order, whatever is preempted, retried or chunked. Where its output may
/// end it must allow an end-of-sequence token.
pub trait Constraint: Send {
    /// Adds to the empty `allowed` every token that may come next.
    ///
    /// # Errors
    /// Ends the request. To allow nothing ends it too.
    fn allow(&mut self, allowed: &mut TokenSet) -> Result<(), ConstraintError>;

    /// Takes the token that came.
    ///
    /// # Errors
    /// Ends the request.
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError>;
}

/// Why a [`Constraint`] cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the output's constraint failed: {detail}")]
pub struct ConstraintError {
    /// What it reports.
    pub detail: String,
}

/// A set of tokens of one vocabulary, a bit for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    /// Token `t` is bit `t % 32` of word `t / 32`.
    words: Vec<u32>,
    vocab_size: usize,
}

impl TokenSet {
    /// Adds a token; one past the vocabulary is ignored.
    pub fn insert(&mut self, token: TokenId) {
        if (token as usize) < self.vocab_size {
            self.words[token as usize / 32] |= 1 << (token % 32);
        }
    }

    /// Whether the token is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        (token as usize) < self.vocab_size && self.words[token as usize / 32] >> (token % 32) & 1 == 1
    }

    /// How many tokens the vocabulary has.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The set as bits: token `t` is bit `t % 32` of word `t / 32`. Bits past the vocabulary mean nothing.
    pub fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }

    /// Makes it the empty set of a vocabulary.
    pub(crate) fn clear(&mut self, vocab_size: usize) {
        self.words.clear();
        self.words.resize(vocab_size.div_ceil(32), 0);
        self.vocab_size = vocab_size;
    }

    /// Gives -inf to every logit whose token is not in the set.
    pub(crate) fn mask(&self, logits: &mut [f32]) {
        for (word, logits) in self.words.iter().zip(logits.chunks_mut(32)) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_the_set_keep_their_logits() {
        let mut set = TokenSet::default();
        set.clear(35);
        [0, 31, 32, 34, 35, 1000].into_iter().for_each(|token| set.insert(token));
        let mut logits = vec![1.5; 35];
        set.mask(&mut logits);
        for token in 0..40 {
            let kept = [0, 31, 32, 34].contains(&token);
            assert_eq!(set.contains(token), kept);
            assert_eq!(logits.get(token as usize).is_some_and(|&logit| logit == 1.5), kept);
        }
        set.clear(3);
        assert_eq!((set.words_mut().len(), set.vocab_size(), set.contains(0)), (1, 3, false));
    }
}
