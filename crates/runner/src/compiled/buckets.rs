use samebits_engine::Limits;
use samebits_tensor::contract::ATTENTION_TILE;

/// The extents that a compiled model is compiled for. A step takes the smallest that hold it, and is padded.
///
/// Few buckets compile sooner, many pad less. Padding changes no bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Tokens of a step, ascending; the last is the most that a step may have.
    pub tokens: Vec<usize>,
    /// Positions that a step's sequences may reach, ascending, whole tiles of attention; the last is the longest context.
    pub contexts: Vec<usize>,
}

/// One bucket of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) tokens: usize,
    pub(crate) context: usize,
    /// Tokens whose logits are wanted.
    pub(crate) logits: usize,
}

impl Buckets {
    /// Powers of 4 up to the limits.
    pub fn new(limits: &Limits) -> Self {
        let context = limits.context().next_multiple_of(ATTENTION_TILE);
        Buckets {
            tokens: powers_of_4(1, limits.max_tokens_per_step),
            contexts: powers_of_4(ATTENTION_TILE, context),
        }
    }

    /// The smallest bucket that holds a step; none holds one beyond the limits.
    pub(crate) fn of(&self, tokens: usize, context: usize, logits: usize) -> Option<Bucket> {
        let least = |sizes: &[usize], size| sizes.iter().copied().find(|&bucket| bucket >= size);
        let tokens = least(&self.tokens, tokens)?;
        let logits = if logits <= 1 { logits } else { least(&self.tokens, logits)? };
        Some(Bucket { tokens, context: least(&self.contexts, context)?, logits })
    }

    /// Every bucket that steps of at most `max_seqs` sequences take.
    pub(crate) fn all(&self, max_seqs: usize) -> Vec<Bucket> {
        let mut all = Vec::new();
        for &tokens in &self.tokens {
            let sizes = [0, 1].into_iter().chain(self.tokens.iter().copied().filter(|&size| size > 1));
            let fits = |&logits: &usize| {
                logits <= tokens
                    && self.of(tokens, 1, max_seqs.min(tokens)).is_some_and(|most| logits <= most.logits)
            };
            for logits in sizes.filter(fits) {
                all.extend(self.contexts.iter().map(|&context| Bucket { tokens, context, logits }));
            }
        }
        all
    }
}

/// `first`, four times that, and so on, and `last`.
fn powers_of_4(first: usize, last: usize) -> Vec<usize> {
    let below = std::iter::successors(Some(first), |size| size.checked_mul(4));
    below.take_while(|&size| size < last).chain([last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets() -> Buckets {
        let limits = Limits {
            pages: 100,
            page_size: 32,
            max_tokens_per_step: 48,
            max_seqs_per_step: 8,
            max_context: 1000,
            vocab_size: 10,
        };
        Buckets::new(&limits)
    }

    #[test]
    fn they_reach_the_limits() {
        assert_eq!(buckets().tokens, [1, 4, 16, 48]);
        assert_eq!(buckets().contexts, [128, 512, 1024]);
    }

    #[test]
    fn all_of_them_are_those_that_steps_take() {
        let (buckets, all) = (buckets(), buckets().all(8));
        for tokens in 1..=48 {
            for context in [1, 128, 129, 1000] {
                for logits in 0..=tokens.min(8) {
                    let bucket = buckets.of(tokens, context, logits).unwrap();
                    assert!(all.contains(&bucket), "{bucket:?}");
                }
            }
        }
        // 1 token: 0 or 1 logits; 4: or 4; 16 and 48: or 16; each at 3 contexts.
        assert_eq!(all.len(), (2 + 3 + 4 + 4) * 3);
    }

    #[test]
    fn a_step_takes_the_smallest() {
        let of = |tokens, context, logits| buckets().of(tokens, context, logits);
        assert_eq!(of(1, 1, 1), Some(Bucket { tokens: 1, context: 128, logits: 1 }));
        assert_eq!(of(5, 129, 0), Some(Bucket { tokens: 16, context: 512, logits: 0 }));
        assert_eq!(of(48, 1000, 3), Some(Bucket { tokens: 48, context: 1024, logits: 4 }));
        assert_eq!(of(49, 1, 1), None);
        assert_eq!(of(1, 1025, 1), None);
    }
}
