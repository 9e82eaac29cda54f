//! Properties that hold between cases.

use std::ops::Range;

use samebits_tensor::{AttentionParams, Format, HostTensor};

use super::{
    Invariance,
    attention::Setup,
    experts,
    linear::{self, Activations},
    values::{case, f32s},
};
use crate::{AttentionSteps, Case, Op, Rng};

/// Rows alone and in small groups against the batch of 33.
pub(super) fn batch() -> Vec<Invariance> {
    let formats = linear::DENSE.iter().chain(linear::BLOCKS32).chain(linear::BLOCKS256);
    let mut pairs: Vec<Invariance> = formats.flat_map(|&format| batch_linear(format)).collect();
    pairs.extend(batch_rows());
    pairs.extend(batch_experts());
    pairs.extend([0, 1, 3, 4].map(batch_attention));
    pairs
}

/// A prompt of 300 tokens fed at once, and in steps that do and do not end on tiles and pages.
pub(super) fn chunk() -> Vec<Invariance> {
    let whole = setup(vec![(0, 300)], 0, None).named("chunk_invariance").case();
    let cuts: [&[usize]; 5] = [&[128], &[1, 127, 129], &[100, 200], &[299], &[16, 48, 112, 128, 256]];
    cuts.iter()
        .map(|cuts| {
            let bounds: Vec<usize> = [0].iter().chain(*cuts).chain(&[300]).copied().collect();
            let steps = bounds.windows(2).map(|pair| pair[0]..pair[1]).collect();
            let part = with_steps(&whole, steps);
            pair(format!("chunk_invariance/300 tokens cut at {cuts:?}"), whole.clone(), part, 0..300)
        })
        .collect()
}

/// Larger bounds of positions, and dummy tokens beside the real ones.
pub(super) fn padding() -> Vec<Invariance> {
    let window = Some(40);
    let plain = setup(vec![(0, 5), (130, 1), (127, 2)], 0, window).named("padding_invariance").case();
    let mut pairs: Vec<Invariance> = [1, 100, 128, 500]
        .into_iter()
        .map(|extra| {
            let whole = with_context(&plain, extra);
            pair(format!("padding_invariance/context+{extra}"), whole, plain.clone(), 0..8)
        })
        .collect();
    for real in [1, 5, 7] {
        let part = first_tokens(&plain, real);
        let name = format!("padding_invariance/{real} of 8 tokens real");
        pairs.push(pair(name, plain.clone(), part, 0..real));
    }
    for dummies in [1, 5] {
        let name = format!("padding_invariance/{dummies} dummies");
        pairs.push(pair(name, with_dummies(&plain, dummies), plain.clone(), 0..8));
    }
    pairs
}

fn batch_linear(format: Format) -> Vec<Invariance> {
    let m = 33;
    let (_, k) = linear::contractions(format);
    let whole = linear::linear_case(format, [m, 21, k], Activations::Outliers, false);
    let parts: [Range<usize>; 5] = [0..1, 32..33, 5..7, 9..16, 1..33];
    parts
        .map(|rows| {
            let part = Case { inputs: vec![rows_of(&whole.inputs[0], rows.clone())], ..whole.clone() };
            pair(format!("batch_invariance/linear/{format}/rows {rows:?} of {m}"), whole.clone(), part, rows)
        })
        .into()
}

fn batch_rows() -> Vec<Invariance> {
    let (m, n) = (17, 576);
    let mut rng = Rng::named("batch_invariance");
    let x = f32s([m, n], &rng.bells(m * n));
    let weight = f32s([n], &rng.bells(n));
    let ops = [
        ("rms_norm", Op::RmsNorm(1e-5), vec![weight.clone()]),
        ("layer_norm", Op::LayerNorm(1e-5), vec![weight.clone(), weight]),
        ("softmax", Op::Softmax, vec![]),
    ];
    ops.into_iter()
        .flat_map(|(op_name, op, rest)| {
            [0..1, 16..17, 3..10].map(|rows: Range<usize>| {
                let of = |x: HostTensor| {
                    let inputs = std::iter::once(x).chain(rest.iter().cloned()).collect();
                    case(op_name.into(), op.clone(), inputs)
                };
                let name = format!("batch_invariance/{op_name}/rows {rows:?} of {m}");
                pair(name, of(x.clone()), of(rows_of(&x, rows.clone())), rows)
            })
        })
        .collect()
}

fn batch_experts() -> impl Iterator<Item = Invariance> {
    experts::batches().into_iter().map(|(whole, rows, part)| {
        let name = format!("batch_invariance/{}/tokens {rows:?}", whole.name);
        pair(name, whole, part, rows)
    })
}

/// One token of a mixed batch against that token alone in the same cache.
fn batch_attention(token: usize) -> Invariance {
    let whole =
        setup(vec![(300, 1), (0, 1), (127, 1), (128, 1), (1, 1)], 3, None).named("batch_invariance").case();
    let tokens = token..token + 1;
    let part = tokens_of(&whole, tokens.clone());
    pair(format!("batch_invariance/attention/token {token} of 5"), whole, part, tokens)
}

fn setup(sequences: Vec<(usize, usize)>, extra_context: usize, window: Option<usize>) -> Setup {
    Setup {
        name: String::new(),
        page_size: 16,
        kv_heads: 2,
        group: 3,
        head_dim: 40,
        params: AttentionParams { scale: 0.158, window, soft_cap: None },
        sequences,
        extra_context,
        sharpness: 2.0,
    }
}

fn pair(name: String, whole: Case, part: Case, rows: Range<usize>) -> Invariance {
    Invariance { name, whole, part, rows: rows.collect() }
}

fn steps(case: &Case) -> &AttentionSteps {
    match &case.op {
        Op::Attention(steps) => steps,
        other => unreachable!("an attention case, not {other:?}"),
    }
}

fn with_steps(case: &Case, ranges: Vec<Range<usize>>) -> Case {
    Case { op: Op::Attention(AttentionSteps { steps: ranges, ..steps(case).clone() }), ..case.clone() }
}

/// The same tokens with a larger bound, and a block table as wide as it needs.
fn with_context(case: &Case, extra: usize) -> Case {
    let mut case = case.clone();
    let mut steps = steps(&case).clone();
    steps.max_context += extra;
    let [sequences, width] = *case.inputs[6].shape().dims() else { unreachable!("a matrix of pages") };
    let wider = width + extra.div_ceil(steps.kv.page_size);
    let row_bytes = 4 * width;
    let bytes = case.inputs[6]
        .bytes()
        .chunks_exact(row_bytes)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, 4 * (wider - width))));
    let bytes: Vec<u8> = bytes.collect();
    case.inputs[6] =
        HostTensor::new([sequences, wider], case.inputs[6].dtype(), bytes.into()).expect("whole rows");
    case.op = Op::Attention(steps);
    case
}

/// The same tokens and then dummies: all at position 0 of the last sequence, writing to the first slot of page 0.
fn with_dummies(case: &Case, count: usize) -> Case {
    let tokens = case.inputs[0].shape()[0];
    let mut padded = with_steps(case, std::iter::once(0..tokens + count).collect());
    for (operand, input) in padded.inputs[..6].iter_mut().enumerate() {
        let row_bytes = input.bytes().len() / tokens;
        let row = match operand {
            0..=2 => vec![0x3f; row_bytes],
            3 | 4 => vec![0; row_bytes],
            _ => input.bytes()[(tokens - 1) * row_bytes..].to_vec(),
        };
        let bytes = [input.bytes(), &row.repeat(count)].concat();
        *input = HostTensor::new(input.shape().with(0, tokens + count), input.dtype(), bytes.into())
            .expect("whole rows");
    }
    padded
}

fn first_tokens(case: &Case, count: usize) -> Case {
    tokens_of(case, 0..count)
}

/// Some tokens of a one-step case, in the same cache.
fn tokens_of(case: &Case, tokens: Range<usize>) -> Case {
    let mut part = with_steps(case, std::iter::once(0..tokens.len()).collect());
    for input in &mut part.inputs[..6] {
        *input = rows_of(input, tokens.clone());
    }
    part
}

pub(super) fn rows_of(x: &HostTensor, rows: Range<usize>) -> HostTensor {
    let row_bytes = x.bytes().len() / x.shape()[0];
    let bytes = x.bytes()[rows.start * row_bytes..rows.end * row_bytes].to_vec();
    HostTensor::new(x.shape().with(0, rows.len()), x.dtype(), bytes.into()).expect("whole rows")
}
