//! Mixtures of experts: the choice against f64, and what experts make of a token against the feed-forward layer of each.

use samebits_conformance::{Case, Group, Op};
use samebits_cpu::{Cpu, Host};
use samebits_tensor::{
    Activation, Backend, Experts, FeedForward, Format, HostWeight, Input, Result, Routes, Routing, Tensor,
    Weight, contract::TINY, testing::random_blocks,
};

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

/// Of two experts with 32 channels inside, which map 32 channels to as many.
fn two_experts<B: Backend>(backend: &B, count: usize, ids: &[i32], top_k: usize) -> Result<Tensor<B>> {
    let format = Format::Q8_0;
    let bytes = random_blocks(format, 64, 32, 1).into();
    let weight = Weight::pack(backend, &HostWeight { name: "w".into(), format, shape: vec![64, 32], bytes })?;
    let (gate, up, down) = (&weight, &weight, &weight);
    let layer = Experts { gate, up, down, count, activation: Activation::Silu };
    let t = ids.len() / top_k;
    let routes = Routes {
        experts: Tensor::of(backend, [t, top_k], ids)?,
        weights: Tensor::of(backend, [t, top_k], &vec![0.5; ids.len()])?,
    };
    Input::from(&Tensor::of(backend, [1, 32], &[1.0f32; 32])?).experts(layer, &routes)
}

fn what_does_not_fit_is_refused_by<B: Backend>(backend: &B) {
    let error = |result: Result<Tensor<B>>| result.err().expect("an error").to_string();
    two_experts(backend, 2, &[1, 0], 2).expect("experts");
    for outside in [2, -1, i32::MIN] {
        for top_k in [1, 2, 3] {
            let ids: Vec<i32> = (0..top_k).map(|choice| if choice == 0 { outside } else { 1 }).collect();
            let error = error(two_experts(backend, 2, &ids, top_k as usize));
            assert!(error.contains("is outside of 0.."), "{outside} of {top_k}: {error}");
        }
    }
    assert!(error(two_experts(backend, 3, &[0], 1)).contains("3 experts, gate of 64 rows"));
    assert!(error(two_experts(backend, 0, &[0], 1)).contains("0 experts"));
    assert!(error(two_experts(backend, 2, &[0, 1], 1)).contains("experts [2, 1]"));
    let logits = Tensor::of(backend, [1, 3], &[0.0f32; 3]).expect("logits");
    for top_k in [0, 4] {
        let error = logits.route(Routing { top_k, normalize: true }).err().expect("an error").to_string();
        assert!(error.contains(&format!("{top_k} of the experts")), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    what_does_not_fit_is_refused_by(&Host);
    what_does_not_fit_is_refused_by(&Cpu::new().expect("a CPU"));
}

/// The output of 16 experts for as many tokens, two of them for each.
fn large<B: Backend>(backend: &B, tokens: usize) -> Vec<u32> {
    let (format, count, k, inner) = (Format::Q4_0, 16, 2048, 1024);
    let pack = |rows, cols| {
        let bytes = random_blocks(format, rows, cols, (rows * cols) as u64).into();
        Weight::pack(backend, &HostWeight { name: "w".into(), format, shape: vec![rows, cols], bytes })
            .unwrap()
    };
    let (gate, down) = (pack(count * inner, k), pack(count * 32, inner));
    let layer = Experts { gate: &gate, up: &gate, down: &down, count, activation: Activation::Silu };
    let ids: Vec<i32> = (0..2 * tokens).map(|choice| (choice * 7 % count) as i32).collect();
    let x: Vec<f32> = (0..tokens * k).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let routes = Routes {
        experts: Tensor::of(backend, [tokens, 2], &ids).unwrap(),
        weights: Tensor::of(backend, [tokens, 2], &vec![0.5; ids.len()]).unwrap(),
    };
    let y = Input::from(&Tensor::of(backend, [tokens, k], &x).unwrap()).experts(layer, &routes).unwrap();
    y.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The decomposition takes as many experts at once as keep its tensors below 2^25 values: 15 of these, be they gathered for 16
/// choices or given all tokens of 18.
#[test]
fn experts_in_several_pieces() {
    let cpu = Cpu::new().expect("a CPU");
    for tokens in [8, 9] {
        assert!(large(&Host, tokens) == large(&cpu, tokens), "{tokens} tokens");
    }
}
