//! Mixtures of experts: which experts a token is given to, and what they make of it.

use std::ops::Range;

use samebits_tensor::{Activation, Format, HostTensor, HostWeight, Routing};

use super::{
    linear::{Activations, activation, block, weight},
    values::{case, f32s, i32s},
};
use crate::{Case, Op, Rng};

/// What a router says.
#[derive(Clone, Copy, Debug)]
enum Logits {
    /// Mean 0, variance 1.
    Bell,
    /// So far from each other that most probabilities are 0.
    Steep,
    /// Few values, so that many experts are equally likely.
    Ties,
    /// One value.
    Equal,
}

/// Every kind of logits, with few and with all experts of a token; then the edges of f32.
pub(super) fn route() -> Vec<Case> {
    let sizes = [
        (0, 4, 2),
        (1, 1, 1),
        (3, 2, 1),
        (1, 5, 5),
        (7, 8, 2),
        (17, 8, 8),
        (1, 60, 4),
        (5, 64, 8),
        (33, 128, 8),
        (3, 129, 1),
        (2, 300, 17),
    ];
    let mut cases = Vec::new();
    for (i, (t, experts, top_k)) in sizes.into_iter().enumerate() {
        for (j, logits) in [Logits::Bell, Logits::Steep, Logits::Ties, Logits::Equal].into_iter().enumerate()
        {
            let routing = Routing { top_k, normalize: (i + j) % 2 == 0 };
            let name = format!("route/t={t},experts={experts}/{logits:?}/{routing:?}");
            let input = f32s([t, experts], &router(&mut Rng::named(&name), t * experts, logits));
            cases.push(case(name, Op::Route(routing), vec![input]));
        }
    }
    for normalize in [false, true] {
        let routing = Routing { top_k: 3, normalize };
        let name = format!("route/edges/{routing:?}");
        cases.push(case(name, Op::Route(routing), vec![f32s([8, 4], &EDGES)]));
    }
    cases
}

fn router(rng: &mut Rng, n: usize, logits: Logits) -> Vec<f32> {
    let bells = rng.bells(n).into_iter();
    match logits {
        Logits::Bell => bells.collect(),
        Logits::Steep => bells.map(|x| 60.0 * x).collect(),
        Logits::Ties => bells.map(|x| x.round_ties_even()).collect(),
        Logits::Equal => vec![rng.bell(); n],
    }
}

const INF: f32 = f32::INFINITY;

/// Rows of four: signed zeros, experts that are never chosen, what overflows and vanishes, and rows without an answer.
const EDGES: [f32; 32] = [
    0.0,
    -0.0,
    0.0,
    -0.0, //
    -INF,
    1.0,
    -INF,
    0.5, //
    f32::MAX,
    -f32::MAX,
    0.0,
    f32::MAX, //
    0.0,
    -44.3,
    -44.4,
    -44.36, //
    INF,
    0.0,
    1.0,
    -INF, //
    -INF,
    -INF,
    -INF,
    -INF, //
    1.0,
    f32::NAN,
    2.0,
    0.0, //
    f32::NAN,
    f32::NAN,
    INF,
    0.0, //
];

/// How the tokens of a case are spread over experts.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// Each has other experts, in any order.
    Random,
    /// All have the same ones, and the others none.
    Same,
    /// All of a token's choices are one expert.
    Twice,
}

/// Shapes around the tiles of kernels and on both sides of as many choices as experts, in every kind of format.
pub(super) fn experts() -> Vec<Case> {
    use Format::{BF16, F16, F32, Iq4Nl, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let formats = [
        [Q4_0, Q4_0, Q4_0],
        [Q4_1, Q5_1, Q8_0],
        [Q4K, Q4K, Q6K],
        [Q5_0, Mxfp4, Iq4Nl],
        [Q3K, Q2K, Q5K],
        [Q8_0, Q8_0, Q4K],
        [BF16, BF16, BF16],
        [F16, F32, F16],
        [Q8_0, Q4K, F32],
    ];
    let sizes = [(0, 2, 1), (1, 1, 1), (1, 8, 2), (2, 5, 5), (3, 64, 8), (7, 8, 2), (17, 4, 3), (33, 3, 2)];
    let mut cases = Vec::new();
    for (i, formats) in formats.into_iter().enumerate() {
        for (j, (t, count, top_k)) in sizes.into_iter().enumerate() {
            let spread = [Spread::Random, Spread::Same, Spread::Random, Spread::Twice][(i + j) % 4];
            let layer =
                Layer { formats, count, n: [32, 40, 48, 64][(i + 2 * j) % 4], blocks: 1 + (i + j) % 2 };
            cases.push(layer.case(t, top_k, spread, Activations::Bell, (i + j) % 3 == 0));
        }
        let layer = Layer { formats, count: 4, n: 48, blocks: 3 };
        cases.push(layer.case(5, 2, Spread::Random, Activations::NonFinite, false));
        cases.push(layer.case(5, 2, Spread::Same, Activations::Tiny, i % 2 == 0));
        // More tokens than a task takes; many rows of every format would take the reference too long.
        if i % 3 == 0 {
            let layer = Layer { formats, count: 2, n: 32, blocks: 1 };
            cases.push(layer.case(131, 1, Spread::Same, Activations::Outliers, true));
        }
    }
    cases
}

/// Tokens alone and in small groups against a batch, which crosses from few choices to many: the case of all, some tokens, and
/// the case of those.
pub(super) fn batches() -> Vec<(Case, Range<usize>, Case)> {
    use Format::{F16, Q4_1, Q4K, Q6K};
    let layers = [[Q4_1, Q4_1, Q4_1], [Q4K, Q4K, Q6K], [F16, F16, F16]];
    let cases = layers.into_iter().flat_map(|formats| {
        let layer = Layer { formats, count: 8, n: 48, blocks: 1 };
        let whole = layer.case(17, 2, Spread::Random, Activations::Outliers, false);
        [0..1, 16..17, 2..5, 3..10].map(|tokens| {
            let inputs = whole.inputs.iter().map(|x| super::invariance::rows_of(x, tokens.clone())).collect();
            (whole.clone(), tokens, Case { inputs, ..whole.clone() })
        })
    });
    cases.collect()
}

/// The experts of a case.
#[derive(Clone, Copy)]
struct Layer {
    formats: [Format; 3],
    count: usize,
    n: usize,
    /// Blocks of the longest of its formats in a row of each weight; many of floats.
    blocks: usize,
}

impl Layer {
    fn case(self, t: usize, top_k: usize, spread: Spread, activations: Activations, norm: bool) -> Case {
        let Layer { formats: [gate, up, down], count, n, blocks } = self;
        let (k, inner) = (length([gate, up], blocks), length([down, down], blocks));
        let name = format!(
            "experts/{gate}+{up}+{down}/t={t},k={k},inner={inner},n={n}/{top_k} of {count}/{spread:?}/{activations:?}/norm={norm}"
        );
        let mut rng = Rng::named(&name);
        let (ids, weights) = routes(&mut rng, t, top_k, count, spread);
        let mut inputs = vec![activation(&mut rng, t, k, activations), ids, weights];
        inputs.extend(norm.then(|| f32s([k], &rng.bells(k))));
        let function = if count % 5 == 0 { Activation::GeluTanh } else { Activation::Silu };
        let weights = self.weights(&name, k, inner);
        Case { weights, ..case(name, Op::Experts(count, function, norm.then_some(1e-5)), inputs) }
    }

    fn weights(self, name: &str, k: usize, inner: usize) -> Vec<HostWeight> {
        let [gate, up, down] = self.formats;
        let of = |part: &str, format, rows, cols| {
            weight(&format!("{name}/{part}"), format, self.count * rows, cols, false)
        };
        vec![of("gate", gate, inner, k), of("up", up, inner, k), of("down", down, self.n, inner)]
    }
}

/// Columns that are whole blocks of both formats; of floats alone, an odd number.
fn length(formats: [Format; 2], blocks: usize) -> usize {
    match formats.map(block).into_iter().max() {
        Some(len) if len > 1 => blocks * len,
        _ => 37 * blocks,
    }
}

/// Experts and weights of each token. Weights fall, as a router's do; one is so small that it counts as zero.
fn routes(rng: &mut Rng, t: usize, top_k: usize, count: usize, spread: Spread) -> (HostTensor, HostTensor) {
    let order = rng.order(count);
    let mut ids = Vec::new();
    for token in 0..t {
        let choices: Vec<usize> = match spread {
            Spread::Random => rng.order(count),
            Spread::Same => order.clone(),
            Spread::Twice => vec![order[token % count]; top_k],
        };
        ids.extend(choices[..top_k].iter().map(|&expert| expert as i32));
    }
    let mut weights: Vec<f32> = (0..t * top_k).map(|i| (1.5 + rng.unit()) / (1 + i % top_k) as f32).collect();
    if let Some(last) = weights.last_mut() {
        *last = 1e-15;
    }
    (i32s([t, top_k], &ids), f32s([t, top_k], &weights))
}
