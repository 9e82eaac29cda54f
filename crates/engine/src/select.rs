//! Passes over a row of logits: check, greatest, the most likely few.

use crate::{NumericalError, TokenId};

/// A token and its logit.
pub type Candidate = (TokenId, f32);

/// Logits a pass looks at together; small enough to stay in registers and the nearest cache.
const CHUNK: usize = 64;

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
    let index = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY).unwrap_or(0);
    let token = index as TokenId;
    if logits[index].is_nan() {
        NumericalError::NotANumber { token }
    } else {
        NumericalError::Infinite { token }
    }
}

/// Fills `leading` with the `count` first candidates (all when there are fewer) of the descending order, themselves in
/// no order. The logits hold no NaN; tokens of -inf are no candidates.
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
}

/// Keeps the shortest beginning of the descending order whose `mass` is at least `enough`; all when none is.
///
/// Halves the part of the order that the end must lie in, so nothing is ever sorted. `mass` must not depend on order.
pub(crate) fn keep_mass(candidates: &mut Vec<Candidate>, enough: u64, mass: impl Fn(&[Candidate]) -> u64) {
    let (mut start, mut end, mut left) = (0, candidates.len(), enough);
    while end - start > 1 {
        let middle = start + (end - start) / 2;
        candidates[start..end].select_nth_unstable_by(middle - start, descending);
        let upper = mass(&candidates[start..middle]);
        if upper >= left {
            end = middle;
        } else {
            left -= upper;
            start = middle;
        }
    }
    candidates.truncate(end);
}

/// Keeps the `count` first in descending order, unsorted but for the last.
fn cut(candidates: &mut Vec<Candidate>, count: usize) {
    if candidates.len() > count {
        candidates.select_nth_unstable_by(count - 1, descending);
        candidates.truncate(count);
    }
}

/// Descending by logit, then ascending by token. -0 and +0 are equal.
pub(crate) fn descending(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0))
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
            found.sort_by(descending);
            let mut expected = sorted(&row);
            expected.truncate(count);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_mass_kept_is_the_shortest_that_suffices(row in rows(), enough in 0u64..3000) {
            let mass = |candidates: &[Candidate]| -> u64 { candidates.iter().map(|&(token, _)| u64::from(token % 7)).sum() };
            let mut kept: Vec<Candidate> = sorted(&row);
            let all = kept.clone();
            kept.reverse();
            keep_mass(&mut kept, enough, mass);
            kept.sort_by(descending);
            let length = (1..all.len()).find(|&length| mass(&all[..length]) >= enough).unwrap_or(all.len());
            prop_assert_eq!(kept, &all[..length]);
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
