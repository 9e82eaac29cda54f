//! The sampler against its rules written a second time, slowly, with full sorts.

use proptest::prelude::*;

use super::*;

fn sample(params: SamplingParams, logits: &[f32], position: u64) -> Result<Sampled, NumericalError> {
    Sampler::new(params, &[]).sample(&mut logits.to_vec(), position, &[], &mut Scratch::default())
}

/// Draws 20,000 tokens and counts them.
fn histogram(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut counts = vec![0; logits.len()];
    for position in 0..20_000 {
        counts[sample(params.clone(), logits, position).unwrap().token as usize] += 1;
    }
    counts
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let params = SamplingParams::greedy();
    assert_eq!(sample(params.clone(), &[1.0, 3.0, 3.0, -1.0], 0).unwrap().token, 1);
    assert_eq!(sample(params, &[-0.0, 0.0], 0).unwrap().token, 0, "zeros of either sign are equal");
}

#[test]
fn draws_follow_the_softmax() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
    let counts = histogram(&SamplingParams::default(), &logits);
    // Deviations are below 71; six of them.
    for (count, expected) in counts.iter().zip([10_000u32, 5_000, 2_500, 2_500]) {
        assert!(count.abs_diff(expected) < 430, "{counts:?}");
    }
    let colder = histogram(&SamplingParams { temperature: 0.5, ..SamplingParams::default() }, &logits);
    // Squared and normalised: 0.25, 0.0625, 0.015625 twice over 0.34375.
    for (count, expected) in colder.iter().zip([14_545u32, 3_636, 909, 909]) {
        assert!(count.abs_diff(expected) < 430, "{colder:?}");
    }
}

#[test]
fn a_cut_removes_exactly_the_tail() {
    let logits: Vec<f32> = [0.1f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect();
    let kept = |params: SamplingParams| -> Vec<bool> {
        histogram(&params, &logits).into_iter().map(|count| count > 0).collect()
    };
    let base = SamplingParams::default;
    assert_eq!(kept(SamplingParams { top_k: 2, ..base() }), [false, true, false, true]);
    assert_eq!(kept(SamplingParams { top_p: 0.69, ..base() }), [false, true, false, true]);
    assert_eq!(kept(SamplingParams { top_p: 0.71, ..base() }), [false, true, true, true]);
    assert_eq!(kept(SamplingParams { top_p: 1e-6, ..base() }), [false, true, false, false]);
    assert_eq!(kept(SamplingParams { min_p: 0.3, ..base() }), [false, true, true, true]);
    assert_eq!(kept(SamplingParams { min_p: 1.0, ..base() }), [false, true, false, false]);
    // Of the first two, 0.4 of 0.7 is 57 %: top-p counts what top-k has left.
    assert_eq!(kept(SamplingParams { top_k: 2, top_p: 0.5, ..base() }), [false, true, false, false]);
}

#[test]
fn penalties_follow_their_formulas() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        logit_bias: vec![(0, 1.0), (3, -7.0)],
        ..SamplingParams::greedy()
    };
    let mut sampler = Sampler::new(params, &[0, 1]);
    sampler.observe(1);
    sampler.observe(1);
    sampler.observe(2);
    let mut logits = [3.0, -2.0, 6.0, 8.0, f32::NEG_INFINITY, 0.5];
    sampler.adjust(&mut logits, &[5]);
    let token_0 = (3.0 + 1.0) / 2.0;
    let token_1 = -2.0 * 2.0 - 0.5 * 2.0 - 0.25;
    let token_2 = 6.0 / 2.0 - 0.5 - 0.25;
    assert_eq!(logits, [token_0, token_1, token_2, 1.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
}

#[test]
fn a_bad_logit_is_an_error_whatever_the_parameters() {
    let all = [
        SamplingParams::greedy(),
        SamplingParams::default(),
        SamplingParams { top_k: 1, ..SamplingParams::default() },
        SamplingParams { top_p: 0.5, logprobs: Some(2), ..SamplingParams::default() },
    ];
    for params in all {
        let nan = sample(params.clone(), &[1.0, f32::NAN, 0.0], 0);
        assert_eq!(nan, Err(NumericalError::NotANumber { token: 1 }));
        let infinite = sample(params.clone(), &[1.0, 0.0, f32::INFINITY], 0);
        assert_eq!(infinite, Err(NumericalError::Infinite { token: 2 }));
        assert_eq!(sample(params.clone(), &[f32::NEG_INFINITY; 3], 0), Err(NumericalError::NoCandidate));
        assert_eq!(sample(params, &[f32::NEG_INFINITY, 0.0], 0).unwrap().token, 1);
    }
}

#[test]
fn a_nan_is_not_hidden_by_a_ban() {
    let sampler = Sampler::new(SamplingParams::greedy(), &[]);
    let result = sampler.sample(&mut [1.0, f32::NAN], 0, &[1], &mut Scratch::default());
    assert_eq!(result, Err(NumericalError::NotANumber { token: 1 }));
}

#[test]
fn an_overflow_of_the_penalties_is_an_error() {
    let params = SamplingParams { repetition_penalty: 1e-9, ..SamplingParams::greedy() };
    let result = Sampler::new(params, &[0]).sample(&mut [3e38, 1.0], 0, &[], &mut Scratch::default());
    assert_eq!(result, Err(NumericalError::Infinite { token: 0 }));
}

#[test]
fn the_smallest_temperature_is_greedy() {
    let params = SamplingParams { temperature: f32::from_bits(1), ..SamplingParams::default() };
    for position in 0..100 {
        assert_eq!(sample(params.clone(), &[1.0, 1.0 + f32::EPSILON, -3.0], position).unwrap().token, 1);
    }
}

#[test]
fn logprobs_are_of_the_logits_as_they_came() {
    let params = SamplingParams {
        logprobs: Some(2),
        logit_bias: vec![(0, 100.0)],
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let logits: Vec<f32> = [0.125f32, 0.5, 0.25, 0.125].iter().map(|p| p.ln()).collect();
    let sampled = sample(params, &logits, 0).unwrap();
    assert_eq!(sampled.token, 0);
    let logprobs = sampled.logprobs.unwrap();
    assert!((logprobs.chosen - 0.125f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [1, 2]);
    assert!((logprobs.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
}

/// The bits of version 1. A change here is a new `SAMPLER_VERSION`.
#[test]
fn version_1_chooses_these_tokens() {
    let logits: Vec<f32> =
        (0..5000u32).map(|id| (id.wrapping_mul(2_654_435_761) >> 8) as f32 / 2_097_152.0).collect();
    let base = SamplingParams { seed: 0x5EED_5EED_5EED, ..SamplingParams::default() };
    let tokens = |params: SamplingParams| -> Vec<TokenId> {
        (0..4).map(|position| sample(params.clone(), &logits, position).unwrap().token).collect()
    };
    let golden = [
        tokens(base.clone()),
        tokens(SamplingParams { top_k: 50, ..base.clone() }),
        tokens(SamplingParams { top_p: 0.9, temperature: 0.6, ..base.clone() }),
        tokens(SamplingParams { min_p: 0.2, ..base }),
    ];
    assert_eq!(SAMPLER_VERSION, 1);
    assert_eq!(golden, GOLDEN);
}

const GOLDEN: [[TokenId; 4]; 4] =
    [[3723, 3901, 4417, 4901], [3715, 3859, 4469, 4846], [3723, 3901, 4422, 4904], [3723, 3901, 4422, 4901]];

/// Rules 6 to 11 with full sorts and nothing clever.
fn by_the_book(params: &SamplingParams, logits: &[f32], position: u64) -> TokenId {
    let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    order.retain(|&token| logits[token as usize] > f32::NEG_INFINITY);
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&(logits[a as usize])).then(a.cmp(&b)));
    if params.temperature == 0.0 {
        return order[0];
    }
    let weigher = Weigher::new(logits[order[0] as usize], params.temperature);
    let weight = |token: &TokenId| weigher.weight(logits[*token as usize]);
    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    if params.top_p < 1.0 {
        let enough = (f64::from(params.top_p) * order.iter().map(weight).sum::<u64>() as f64).ceil() as u64;
        let running = |length: &usize| order[..*length].iter().map(weight).sum::<u64>() >= enough;
        order.truncate((1..order.len()).find(running).unwrap_or(order.len()));
    }
    let least = libm::log(params.min_p.into());
    order.retain(|&token| weigher.exponent(logits[token as usize]) >= least);
    order.sort();
    let total = u128::from(order.iter().map(weight).sum::<u64>());
    let target = (u128::from(random_bits(params.seed, position)) * total) >> 64;
    let running = |length: &usize| {
        order[..*length].iter().map(|token| u128::from(weight(token))).sum::<u128>() > target
    };
    order[(1..=order.len()).find(running).unwrap() - 1]
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let smooth = prop::collection::vec(-12.0f32..12.0, 1..3000);
    let tied = prop::collection::vec((-3i8..3).prop_map(|logit| f32::from(logit) + 0.5), 1..600);
    let masked = prop::collection::vec(prop::sample::select(vec![f32::NEG_INFINITY, 1.0, 2.0]), 1..300);
    prop_oneof![smooth, tied, masked].prop_map(|mut row| {
        row[0] = row[0].max(0.0);
        row
    })
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop::sample::select(vec![0.0f32, 0.1, 0.7, 1.0, 3.0]);
    let top_k = prop::sample::select(vec![0usize, 0, 1, 2, 40, 500, 100_000]);
    let top_p = prop::sample::select(vec![1.0f32, 1.0, 0.99, 0.5, 0.01]);
    let min_p = prop::sample::select(vec![0.0f32, 0.0, 0.001, 0.1, 1.0]);
    (temperature, top_k, top_p, min_p, any::<u64>()).prop_map(|(temperature, top_k, top_p, min_p, seed)| {
        SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() }
    })
}

/// The head of a full sort, in which what is no number comes first.
fn leading_of(row: &[f32], count: usize) -> Vec<Candidate> {
    let rank = |logit: f32| if logit < f32::INFINITY { logit } else { f32::INFINITY };
    let mut all: Vec<Candidate> = (0..).zip(row.iter().copied()).collect();
    all.sort_by(|a, b| rank(b.1).partial_cmp(&rank(a.1)).unwrap());
    all.truncate(count);
    all
}

#[test]
fn the_whole_row_is_wanted_where_a_rule_changes_a_logit() {
    let wanted = |params: SamplingParams| Sampler::new(params, &[3]).wanted(&[]);
    let (greedy, base) = (SamplingParams::greedy, SamplingParams::default);
    assert_eq!(wanted(greedy()), Wanted::Leading(1));
    assert_eq!(wanted(SamplingParams { top_k: 40, top_p: 0.9, min_p: 0.1, ..base() }), Wanted::Leading(40));
    assert_eq!(wanted(SamplingParams { top_k: LEADING_MAX + 1, ..base() }), Wanted::Row);
    assert_eq!(wanted(base()), Wanted::Row);
    assert_eq!(wanted(SamplingParams { logprobs: Some(0), ..greedy() }), Wanted::Row);
    assert_eq!(wanted(SamplingParams { logit_bias: vec![(0, 1.0)], ..greedy() }), Wanted::Row);
    assert_eq!(wanted(SamplingParams { repetition_penalty: 1.1, ..greedy() }), Wanted::Row);
    let mut sampler = Sampler::new(SamplingParams { presence_penalty: 0.1, ..greedy() }, &[3]);
    assert_eq!((sampler.wanted(&[]), sampler.wanted(&[5])), (Wanted::Leading(1), Wanted::Row));
    sampler.observe(4);
    assert_eq!(sampler.wanted(&[]), Wanted::Row);
}

proptest! {
    #[test]
    fn the_fast_way_gives_the_token_of_the_book(row in rows(), params in params(), position in 0u64..1 << 40) {
        let expected = by_the_book(&params, &row, position);
        prop_assert_eq!(sample(params, &row, position).unwrap().token, expected);
    }

    #[test]
    fn the_leading_logits_give_what_the_row_gives(
        mut row in rows(), params in params(), position in 0u64..1 << 40, more in 0usize..3,
        bad in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![f32::NAN, f32::INFINITY])), 0..3),
    ) {
        let sampler = Sampler::new(params, &[]);
        let Wanted::Leading(count) = sampler.wanted(&[]) else { return Ok(()) };
        let is_bad = position % 8 == 0;
        let len = row.len();
        bad.into_iter().filter(|_| is_bad).for_each(|(at, logit)| row[at.index(len)] = logit);
        let leading = leading_of(&row, count + more);
        let expected = sampler.sample(&mut row.clone(), position, &[], &mut Scratch::default());
        prop_assert_eq!(sampler.sample_leading(&leading, position, &mut Scratch::default()), expected);
    }

    #[test]
    fn scratch_carries_nothing_over(row in rows(), other in rows(), params in params()) {
        let sampler = Sampler::new(params.clone(), &[]);
        let mut scratch = Scratch::default();
        sampler.sample(&mut other.clone(), 1, &[], &mut scratch).unwrap();
        let used = sampler.sample(&mut row.clone(), 2, &[], &mut scratch).unwrap();
        prop_assert_eq!(used, sample(params, &row, 2).unwrap());
    }

    #[test]
    fn log_probabilities_sum_to_one(row in rows()) {
        let params = SamplingParams { logprobs: Some(row.len()), ..SamplingParams::default() };
        let logprobs = sample(params, &row, 0).unwrap().logprobs.unwrap();
        let sum: f64 = logprobs.top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
        prop_assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}
