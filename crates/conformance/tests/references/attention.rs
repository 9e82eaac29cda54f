//! Attention against an f64 softmax over the sequence's own keys, found through the block tables.

use samebits_conformance::{AttentionSteps, Case, Group, Op};
use samebits_tensor::{HostTensor, KvShape, contract::HEAD_BLOCK};

use crate::{f64s, indices, integers, results};

/// A row of f64 values, and what quantisation may have moved each of them by.
struct Quantised {
    value: Vec<f64>,
    step: Vec<f64>,
}

/// Blocks of `len` (the last may be shorter) as integers times `max / 127`.
fn quantise(x: &[f64], len: usize) -> Quantised {
    let mut row = Quantised { value: Vec::new(), step: Vec::new() };
    for block in x.chunks(len) {
        let amax = block.iter().fold(0.0f64, |amax, x| amax.max(x.abs()));
        let step = amax / 127.0;
        let integer = |x: &f64| if amax == 0.0 { 0.0 } else { (x / step).round_ties_even() };
        row.value.extend(block.iter().map(|x| integer(x) * step));
        row.step.extend(block.iter().map(|_| step));
    }
    row
}

struct Operands<'a> {
    case: &'a Case,
    steps: &'a AttentionSteps,
    /// The cache after all tokens are stored, dequantised.
    k: Vec<f64>,
    v: Vec<f64>,
    tables: Vec<usize>,
}

impl<'a> Operands<'a> {
    fn new(case: &'a Case, results: &[HostTensor]) -> Self {
        let Op::Attention(steps) = &case.op else { panic!("{}", case.name) };
        let kv = steps.kv;
        let scaled = |q: &HostTensor, scale: &HostTensor, len: usize| {
            let (q, scale) = (integers(q), f64s(scale));
            let blocks = kv.head_dim.div_ceil(len);
            let scale = |i: usize| scale[i / kv.head_dim * blocks + i % kv.head_dim / len];
            q.iter().enumerate().map(|(i, &q)| q as f64 * scale(i)).collect()
        };
        Operands {
            case,
            steps,
            k: scaled(&results[1], &results[2], HEAD_BLOCK),
            v: scaled(&results[3], &results[4], kv.head_dim),
            tables: indices(&case.inputs[6]),
        }
    }

    fn row(&self, sequence: usize, position: usize, head: usize) -> std::ops::Range<usize> {
        let KvShape { page_size, kv_heads, head_dim, .. } = self.steps.kv;
        let width = self.case.inputs[6].shape()[1];
        let page = self.tables[sequence * width + position / page_size];
        let row = (page * kv_heads + head) * page_size + position % page_size;
        row * head_dim..(row + 1) * head_dim
    }

    /// Scores of the visible keys, with the positions they stand at.
    fn scores(&self, q: &[f64], sequence: usize, position: usize, head: usize) -> Vec<(usize, f64)> {
        let params = &self.steps.params;
        let first = params.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |key: usize| {
            let k = &self.k[self.row(sequence, key, head)];
            let score = f64::from(params.scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            let cap = params.soft_cap.map(f64::from);
            (key, cap.map_or(score, |cap| cap * (score / cap).tanh()))
        };
        (first..=position).map(score).collect()
    }
}

/// Over the integers that the cache holds, and a query quantised likewise, what is left is the rounding of the scores
/// and the 16-bit weights. A weight is off by at most half of `w / 65535`, where `w`, the tile's largest, is at most
/// the largest value step `d`; times values of at most 127 steps' integers over 128 keys: `128 * 127 * d / 131070` a
/// tile, divided by a sum of at least 1.
#[test]
fn over_the_quantised_operands() {
    let mut rows = 0;
    for (case, found) in results(Group::Attention) {
        let operands = Operands::new(&case, &found);
        let (kv, heads) = (operands.steps.kv, case.inputs[0].shape()[1]);
        let (q, found) = (f64s(&case.inputs[0]), f64s(&found[0]));
        let (positions, sequences) = (indices(&case.inputs[4]), indices(&case.inputs[5]));
        for (index, found) in found.chunks_exact(kv.head_dim).enumerate() {
            let (token, head) = (index / heads, index % heads / (heads / kv.kv_heads));
            let query = quantise(&q[index * kv.head_dim..][..kv.head_dim], HEAD_BLOCK).value;
            let scores = operands.scores(&query, sequences[token], positions[token], head);
            let max = scores.iter().map(|score| score.1).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score.1 - max).exp()).sum();
            let value = |key: usize| &operands.v[operands.row(sequences[token], key, head)];
            let largest = scores.iter().flat_map(|&(key, _)| value(key)).fold(0.0f64, |a, v| a.max(v.abs()));
            let step =
                scores.iter().map(|&(key, _)| quantise(value(key), kv.head_dim).step[0]).fold(0.0, f64::max);
            let tiles = (positions[token] / 128 + 1) as f64;
            let magnitude = scores.iter().map(|score| score.1.abs()).fold(1.0, f64::max);
            let rounding = 1e-6 * (magnitude + 16.0) * largest;
            let bound = tiles * 128.0 * 127.0 / 131_070.0 * step + rounding;
            for (channel, found) in found.iter().enumerate() {
                let weigh = |&(key, score): &(usize, f64)| (score - max).exp() / sum * value(key)[channel];
                let expected: f64 = scores.iter().map(weigh).sum();
                let error = (found - expected).abs();
                assert!(
                    error <= bound,
                    "{}: row {index}: {found} is {error:e} from {expected}, bound {bound:e}",
                    case.name
                );
            }
            rows += 1;
        }
    }
    assert!(rows > 500, "only {rows} rows were examined");
}

/// What is stored is the new keys and values within half a step, and everything else is untouched.
#[test]
fn stored_rows_are_within_half_a_step() {
    for (case, found) in results(Group::StoreKv) {
        let Op::StoreKv(kv) = case.op else { panic!("{}", case.name) };
        let slots = indices(&case.inputs[2]);
        let row = |slot: usize, head: usize| {
            (slot / kv.page_size * kv.kv_heads + head) * kv.page_size + slot % kv.page_size
        };
        let mut written = vec![false; kv.rows()];
        for (part, len) in [(0, HEAD_BLOCK), (1, kv.head_dim)] {
            let (new, q, scale) =
                (f64s(&case.inputs[part]), integers(&found[2 * part]), f64s(&found[2 * part + 1]));
            for (index, new) in new.chunks_exact(kv.head_dim).enumerate() {
                let row = row(slots[index / kv.kv_heads], index % kv.kv_heads);
                written[row] = true;
                let blocks = kv.head_dim.div_ceil(len);
                for (channel, (new, step)) in new.iter().zip(quantise(new, len).step).enumerate() {
                    let stored = q[row * kv.head_dim + channel] as f64 * scale[row * blocks + channel / len];
                    assert!((stored - new).abs() <= 0.50001 * step, "{}: {stored} for {new}", case.name);
                }
            }
        }
        for (part, found) in found.iter().enumerate() {
            let before = &case.inputs[3 + part];
            let size = before.bytes().len() / kv.rows();
            for row in (0..kv.rows()).filter(|&row| !written[row]) {
                let bytes = row * size..(row + 1) * size;
                assert_eq!(before.bytes()[bytes.clone()], found.bytes()[bytes], "{}: row {row}", case.name);
            }
        }
    }
}
