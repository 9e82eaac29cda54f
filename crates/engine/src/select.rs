//! Passes over a row of logits: check, greatest, leading candidates, sums of weights.

use crate::{NumericalError, TokenId};

/// A token and its logit.
pub(crate) type Candidate = (TokenId, f32);

/// Logits a pass looks at together; small enough to stay in registers and the nearest cache.
const CHUNK: usize = 64;

/// Summands of one partial sum of weights.
pub(crate) const SPAN: usize = 1024;

/// The first position of the greatest logit.
///
/// # Errors
/// When a logit is NaN or +inf, or all are -inf.
pub(crate) fn arg_max(logits: &[f32]) -> Result<usize, NumericalError> {
    let mut best = f32::NEG_INFINITY;
    let mut best_chunk = 0;
    let mut all_valid = true;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let (greatest, valid) = chunk_max(chunk);
        all_valid &= valid;
        if greatest > best {
            (best, best_chunk) = (greatest, index);
        }
    }
    if !all_valid {
        return Err(first_invalid(logits));
    }
    if best == f32::NEG_INFINITY {
        return Err(NumericalError::NoCandidate);
    }
    let start = best_chunk * CHUNK;
    let offset = logits[start..].iter().position(|&logit| logit == best);
    Ok(start + offset.unwrap_or(0))
}

/// The greatest of a chunk, and whether all are below +inf (NaN is not). Eight lanes, so that it vectorises; the
/// greatest does not depend on their order.
fn chunk_max(chunk: &[f32]) -> (f32, bool) {
    let mut greatest = [f32::NEG_INFINITY; 8];
    let mut valid = [true; 8];
    let lanes = chunk.chunks_exact(8);
    let rest = lanes.remainder();
    for group in lanes {
        for lane in 0..8 {
            greatest[lane] = if group[lane] > greatest[lane] { group[lane] } else { greatest[lane] };
            valid[lane] &= group[lane] < f32::INFINITY;
        }
    }
    for &logit in rest {
        greatest[0] = if logit > greatest[0] { logit } else { greatest[0] };
        valid[0] &= logit < f32::INFINITY;
    }
    let max = greatest.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    (max, valid.into_iter().all(|lane| lane))
}

#[cold]
fn first_invalid(logits: &[f32]) -> NumericalError {
    let index = logits.iter().position(|logit| !(*logit < f32::INFINITY)).unwrap_or(0);
    let token = index as TokenId;
    if logits[index].is_nan() {
        NumericalError::NotANumber { token }
    } else {
        NumericalError::Infinite { token }
    }
}

/// Fills `leading` with the `count` greatest candidates (all when there are fewer), in descending order of logit, equal
/// logits in ascending order of token. The logits hold no NaN; tokens of -inf are no candidates.
///
/// One pass keeps a buffer of a few times `count`, cut back to `count` when full; its least then is the bar for the rest.
pub(crate) fn leading(logits: &[f32], count: usize, leading: &mut Vec<Candidate>) {
    leading.clear();
    if count == 0 {
        return;
    }
    let capacity = count.saturating_mul(2).max(count.saturating_add(256)).min(logits.len() + CHUNK);
    let mut bar = f32::NEG_INFINITY;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        if chunk_max(chunk).0 <= bar {
            continue;
        }
        let first = (index * CHUNK) as TokenId;
        leading.extend((first..).zip(chunk.iter().copied()).filter(|&(_, logit)| logit > bar));
        if leading.len() >= capacity.max(count + 1) {
            cut(leading, count);
            bar = leading[count - 1].1;
        }
    }
    cut(leading, count);
    leading.sort_unstable_by(descending);
}

/// Keeps the `count` first in descending order, unsorted but for the last.
fn cut(candidates: &mut Vec<Candidate>, count: usize) {
    if candidates.len() > count {
        candidates.select_nth_unstable_by(count - 1, descending);
        candidates.truncate(count);
    }
}

/// Descending by logit, then ascending by token. -0 and +0 are equal.
fn descending(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0))
}

/// `exp((logit - greatest) / temperature)` in f64: the subtraction of two f32 values is exact or rounded once, the
/// product with the reciprocal is one operation, and the exponential is `libm`'s, the same bits everywhere.
#[derive(Clone, Copy)]
pub(crate) struct Weigher {
    greatest: f64,
    inverse_temperature: f64,
}

impl Weigher {
    pub(crate) fn new(greatest: f32, temperature: f32) -> Self {
        Self { greatest: f64::from(greatest), inverse_temperature: 1.0 / f64::from(temperature) }
    }

    #[inline]
    pub(crate) fn weight(self, logit: f32) -> f64 {
        libm::exp((f64::from(logit) - self.greatest) * self.inverse_temperature)
    }

    /// The sum of the weights of all logits: each span of [`SPAN`] summed in ascending order of token, then the spans
    /// in order. `spans` receives the partial sums.
    pub(crate) fn sum(self, logits: &[f32], spans: &mut Vec<f64>) -> f64 {
        spans.clear();
        spans.extend(
            logits.chunks(SPAN).map(|span| span.iter().fold(0.0, |sum, &logit| sum + self.weight(logit))),
        );
        spans.iter().fold(0.0, |sum, span| sum + span)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few distinct values, so that ties are the rule.
    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let logit = prop_oneof![
            9 => (-6i8..6).prop_map(f32::from),
            1 => prop::sample::select(vec![f32::NEG_INFINITY, -0.0, f32::MIN, f32::MAX]),
        ];
        prop::collection::vec(logit, 1..700)
    }

    fn sorted(row: &[f32]) -> Vec<Candidate> {
        let candidates = (0..).zip(row.iter().copied()).filter(|&(_, logit)| logit > f32::NEG_INFINITY);
        let mut all: Vec<Candidate> = candidates.collect();
        all.sort_by(descending);
        all
    }

    proptest! {
        #[test]
        fn leading_is_the_head_of_a_full_sort(row in rows(), count in 0usize..800) {
            let mut found = Vec::new();
            leading(&row, count, &mut found);
            let mut expected = sorted(&row);
            expected.truncate(count);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn arg_max_is_the_first_of_a_full_sort(row in rows()) {
            let expected = sorted(&row).first().map(|&(token, _)| token as usize);
            prop_assert_eq!(arg_max(&row).ok(), expected);
        }

        #[test]
        fn one_bad_logit_is_found_and_named(mut row in rows(), at in any::<prop::sample::Index>(), nan: bool) {
            let at = at.index(row.len());
            row[at] = if nan { f32::NAN } else { f32::INFINITY };
            let token = at as TokenId;
            let expected =
                if nan { NumericalError::NotANumber { token } } else { NumericalError::Infinite { token } };
            prop_assert_eq!(arg_max(&row), Err(expected));
        }
    }

    #[test]
    fn nothing_to_choose_from_is_an_error() {
        assert_eq!(arg_max(&[f32::NEG_INFINITY; 5]), Err(NumericalError::NoCandidate));
        assert_eq!(arg_max(&[]), Err(NumericalError::NoCandidate));
    }
}
