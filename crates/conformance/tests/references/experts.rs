//! Mixtures of experts: the choice against f64, and what experts make of a token against the feed-forward layer of each.

use samebits_conformance::{Case, Group, Op};
use samebits_cpu::Host;
use samebits_tensor::{Activation, FeedForward, Input, Result, Tensor, Weight, contract::TINY};

use crate::{f32s, f64s, indices, results};

/// Half a unit in the last place of f32, relative.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

#[test]
fn the_likeliest_experts_are_chosen_in_order() {
    for (case, found) in results(Group::Route) {
        let Op::Route(routing) = case.op else { panic!("{}", case.name) };
        let n = case.inputs[0].shape()[1];
        let (experts, weights) = (indices(&found[0]), f64s(&found[1]));
        let rows = experts.chunks_exact(routing.top_k).zip(weights.chunks_exact(routing.top_k));
        for (logits, (experts, weights)) in f64s(&case.inputs[0]).chunks_exact(n).zip(rows) {
            check_choice(&case, logits, experts);
            check_weights(&case, logits, experts, weights, routing.normalize);
        }
    }
}

/// Whether the softmax of a row is a number.
fn has_an_answer(logits: &[f64]) -> bool {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max.is_finite() && !logits.iter().any(|x| x.is_nan())
}

/// Probabilities that are equal in f32 make no difference but by their index; those of logits that are equal, or so far below
/// the largest that both vanish, are.
fn check_choice(case: &Case, logits: &[f64], experts: &[usize]) {
    if !has_an_answer(logits) {
        assert_eq!(experts, (0..experts.len()).collect::<Vec<_>>(), "{}: {logits:?}", case.name);
        return;
    }
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let key = |expert: usize| (logits[expert] - max).max(-60.0);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
    for (choice, (&expert, &expected)) in experts.iter().zip(&order).enumerate() {
        // What is rounded to the same probability, or is near the bound of `exp` at -44.36, may come in either order.
        let are_near = (key(expert) - key(expected)).abs() < 4.0 * ROUNDING
            || key(expert) < -44.0 && key(expected) < -44.0;
        assert!(expert == expected || are_near, "{}: choice {choice} of {logits:?}: {experts:?}", case.name);
        assert!(!experts[..choice].contains(&expert), "{}: {experts:?}", case.name);
    }
    let equal = experts.windows(2).filter(|pair| logits[pair[0]] == logits[pair[1]]);
    equal.for_each(|pair| assert!(pair[0] < pair[1], "{}: {experts:?}", case.name));
}

/// Bounds as of softmax, and one rounding more for each choice.
fn check_weights(case: &Case, logits: &[f64], experts: &[usize], weights: &[f64], normalize: bool) {
    if !has_an_answer(logits) {
        assert!(weights.iter().all(|weight| weight.is_nan()), "{}: {weights:?}", case.name);
        return;
    }
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e = |logit: f64| (logit - max).exp();
    let sum: f64 = match normalize {
        true => experts.iter().map(|&expert| e(logits[expert])).sum(),
        false => logits.iter().copied().map(e).sum(),
    };
    for (&expert, &weight) in experts.iter().zip(weights) {
        let (expected, n) = (e(logits[expert]) / sum, logits.len() + experts.len());
        let argument = (max - logits[expert]).min(50.0) * ROUNDING;
        let bound = (ROUNDING * (n as f64 / 128.0 + 32.0) + 2.0 * argument) * expected + (-44.0f64).exp();
        let error = (weight - expected).abs();
        assert!(error <= bound, "{}: {weight:e} is not {expected:e}", case.name);
    }
}

/// The sum over a token's choices, each the feed-forward layer with the rows of its expert, in f32 and in order.
#[test]
fn experts_are_feed_forward_layers() {
    for (case, found) in results(Group::Experts) {
        let Op::Experts(count, activation, eps) = case.op else { panic!("{}", case.name) };
        let &[t, top_k] = case.inputs[1].shape().dims() else { panic!("{}", case.name) };
        // Those of more tokens take long, and are the same tokens again.
        if t > 20 {
            continue;
        }
        let (ids, weights, n) = (indices(&case.inputs[1]), f32s(&case.inputs[2]), found[0].shape()[1]);
        let of_experts: Vec<Vec<f32>> =
            (0..count).map(|expert| expert_of(&case, count, expert, activation, eps).unwrap()).collect();
        let operand = |x: f32| if x.abs() < TINY { 0.0 } else { x };
        let found = f32s(&found[0]);
        for (token, found) in found.chunks_exact(n).enumerate() {
            for (column, &found) in found.iter().enumerate() {
                let term = |choice: usize| {
                    let at = token * top_k + choice;
                    operand(of_experts[ids[at]][token * n + column]) * operand(weights[at])
                };
                let expected = (1..top_k).fold(term(0), |sum, choice| sum + term(choice));
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{}: [{token}, {column}] is {found} and not {expected}", case.name);
            }
        }
    }
}

/// The output of one expert for every token of a case.
fn expert_of(
    case: &Case,
    count: usize,
    expert: usize,
    activation: Activation,
    eps: Option<f32>,
) -> Result<Vec<f32>> {
    let of = |i: usize| {
        let rows = case.weights[i].shape[0] / count;
        Weight::pack(&Host, &case.weights[i].rows(expert * rows..(expert + 1) * rows)?)
    };
    let (gate, up, down) = (of(0)?, of(1)?, of(2)?);
    let x = Tensor::upload(&Host, &case.inputs[0])?;
    let norm = case.inputs.get(3).map(|norm| Tensor::upload(&Host, norm)).transpose()?;
    let input = Input { x: &x, norm: norm.as_ref().zip(eps) };
    input.feed_forward(FeedForward { gate: &gate, up: &up, down: &down, activation })?.to_vec()
}
