//! Linear layers and embeddings, in every weight format.

use samebits_tensor::{
    Activation, Format, HostTensor, HostWeight,
    contract::TINY,
    testing::{extreme_blocks, infinite_blocks, random_blocks},
};

use super::values::{case, f32s, indices};
use crate::{Case, Op, Rng};

/// Formats without blocks.
pub(super) const DENSE: &[Format] = &[Format::F32, Format::F16, Format::BF16];
/// Formats in blocks of 32.
pub(super) const BLOCKS32: &[Format] =
    &[Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Iq4Nl, Format::Mxfp4];
/// Formats in blocks of 256.
pub(super) const BLOCKS256: &[Format] = &[Format::Q2K, Format::Q3K, Format::Q4K, Format::Q5K, Format::Q6K];

/// Rows of the activation: single tokens, small batches, and around the tile heights of matrix kernels.
const ROWS: [usize; 8] = [0, 1, 2, 3, 7, 16, 17, 33];

/// What an activation holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Activations {
    /// Mean 0, variance 1.
    Bell,
    /// Blocks of zeros, and blocks around the scale below which they count as zero.
    Tiny,
    /// A few values a thousand times the others.
    Outliers,
    /// Multiples of half a quantisation step, so that rounding ties occur.
    Ties,
    /// Every integer at its largest, in even rows positive and in odd rows negative.
    Largest,
    /// A NaN, an infinity, or both, in some rows.
    NonFinite,
}

pub(super) fn plain() -> Vec<Case> {
    let formats = DENSE.iter().chain(BLOCKS32).chain(BLOCKS256);
    let cases = formats.flat_map(|&format| {
        [(1, 1), (7, 3), (33, 5)].into_iter().flat_map(move |(rows, blocks)| {
            let cols = blocks * block(format);
            [false, true].map(|extreme| {
                let kind = if extreme { "extreme" } else { "random" };
                let name = format!("plain/{format}/n={rows},k={cols}/{kind}");
                let weights = vec![weight(&name, format, rows, cols, extreme)];
                Case { weights, ..case(name, Op::Plain, vec![]) }
            })
        })
    });
    cases.collect()
}

pub(super) fn linear(formats: &[Format]) -> Vec<Case> {
    let mut cases: Vec<Case> = formats.iter().flat_map(|&format| of_format(format)).collect();
    cases.extend(ROWS.map(|m| linears(formats, m)));
    cases
}

/// Every number of rows with a short and with a long contraction (which crosses a span of 512), then edges.
fn of_format(format: Format) -> Vec<Case> {
    let (short, long) = contractions(format);
    let mut cases = Vec::new();
    for (i, m) in ROWS.into_iter().enumerate() {
        let n = [1, 7, 33, 65, 130, 16, 31, 3][i];
        cases.push(linear_case(format, [m, n, short], Activations::Bell, false));
        cases.push(linear_case(format, [m, 131 - n, long], Activations::Bell, false));
    }
    let edges = [
        Activations::Tiny,
        Activations::Outliers,
        Activations::Ties,
        Activations::Largest,
        Activations::NonFinite,
    ];
    for activations in edges {
        cases.push(linear_case(format, [1, 17, long], activations, false));
        cases.push(linear_case(format, [5, 33, short], activations, false));
        cases.push(linear_case(format, [17, 9, short], activations, true));
    }
    cases.push(linear_case(format, [4, 35, long], Activations::Bell, true));
    cases.push(linear_case(format, [41, 49, long], Activations::Bell, false));
    cases.push(infinite_case(format, [3, 19, short]));
    cases
}

/// Scales and minima that no sound file has.
fn infinite_case(format: Format, [m, n, k]: [usize; 3]) -> Case {
    let name = format!("linear/{format}/m={m},n={n},k={k}/Bell/infinite");
    let bytes = infinite_blocks(format, n, k).into();
    let weights = vec![HostWeight { name: format!("{format}.weight"), format, shape: vec![n, k], bytes }];
    let inputs = vec![activation(&mut Rng::named(&name), m, k, Activations::Bell)];
    Case { weights, ..case(name, Op::Linear, inputs) }
}

/// A contraction of a few blocks, and one of more than two spans, both odd multiples of the block.
pub(super) fn contractions(format: Format) -> (usize, usize) {
    match block(format) {
        1 => (37, 1061),
        32 => (96, 1056),
        len => (len, 5 * len),
    }
}

pub(super) fn linear_case(
    format: Format,
    [m, n, k]: [usize; 3],
    activations: Activations,
    extreme: bool,
) -> Case {
    let kind = if extreme { "extreme" } else { "random" };
    let name = format!("linear/{format}/m={m},n={n},k={k}/{activations:?}/{kind}");
    let weights = vec![weight(&name, format, n, k, extreme)];
    let inputs = vec![activation(&mut Rng::named(&name), m, k, activations)];
    Case { weights, ..case(name, Op::Linear, inputs) }
}

/// Layers of one input in different formats and heights, as query, key and value projections are.
fn linears(formats: &[Format], m: usize) -> Case {
    let k = contractions(formats[0]).1;
    let name = format!("linear/several/{}.../m={m},k={k}", formats[0]);
    let heights = [33, 8, 16, 1, 24, 7, 5];
    let weights =
        formats.iter().zip(heights).map(|(&format, n)| weight(&name, format, n, k, false)).collect();
    let inputs = vec![activation(&mut Rng::named(&name), m, k, Activations::Bell)];
    Case { weights, ..case(name, Op::Linears(None), inputs) }
}

/// Layers of one input that is normalised first: of one format, of several that quantise alike, and of several that do not.
pub(super) fn norm_linears() -> Vec<Case> {
    use Format::{F16, Q4_0, Q4_1, Q4K, Q6K, Q8_0};
    let formats = [[Q4_1, Q4_1], [Q4_0, Q4_1], [Q4K, Q6K], [F16, F16], [Q8_0, F16], [Q4K, Q8_0]];
    let cases = formats.into_iter().flat_map(|formats| {
        [(0, 1), (1, 1), (3, 2), (9, 1), (33, 3)].map(|(m, blocks)| {
            let (name, k) =
                (format!("norm_linears/{}+{}/m={m},blocks={blocks}", formats[0], formats[1]), 256 * blocks);
            let mut rng = Rng::named(&name);
            let inputs = vec![activation(&mut rng, m, k, Activations::Bell), f32s([k], &rng.bells(k))];
            let weights = formats.map(|format| weight(&name, format, 24, k, false)).into();
            Case { weights, ..case(name, Op::Linears(Some(1e-5)), inputs) }
        })
    });
    cases.collect()
}

/// Rows of an activation: none, a token, and around what a task takes of a prompt.
const PROMPTS: [usize; 7] = [0, 1, 2, 7, 17, 127, 265];

/// Feed-forward layers of every number of rows, in formats that quantise alike and others, with inner sizes that are no
/// multiple of what a task takes.
pub(super) fn feed_forward() -> Vec<Case> {
    use Format::{BF16, F16, Iq4Nl, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
    let formats = [
        [Q4_0, Q4_0, Q4_0],
        [Q4_1, Q4_1, Q4_1],
        [Q4K, Q4K, Q6K],
        [Q5_0, Q5_1, Q8_0],
        [Q8_0, Q8_0, Q4_1],
        [Q3K, Q2K, Q5K],
        [Q4K, Q6K, Mxfp4],
        [Mxfp4, Iq4Nl, Q4K],
        [F16, F16, F16],
        [Q8_0, Q8_0, BF16],
    ];
    let mut cases = Vec::new();
    for (i, formats) in formats.into_iter().enumerate() {
        for (j, m) in PROMPTS.into_iter().enumerate() {
            let inner = block(formats[2]).max(32) * [1, 3, 2, 5, 4, 3, 1][j];
            // Many rows of every format would take the reference too long.
            if m < 100 || (i + j) % 3 == 0 {
                cases.push(feed_forward_case(formats, [m, inner], Activations::Bell, (i + j) % 2 == 0));
            }
        }
        cases.push(feed_forward_case(formats, [5, 256], Activations::Outliers, false));
        cases.push(feed_forward_case(formats, [3, 256], Activations::NonFinite, false));
        cases.push(feed_forward_case(formats, [3, 512], Activations::Tiny, false));
    }
    cases
}

fn feed_forward_case(
    formats: [Format; 3],
    [m, inner]: [usize; 2],
    activations: Activations,
    norm: bool,
) -> Case {
    let [gate, up, down] = formats;
    let name = format!("feed_forward/{gate}+{up}+{down}/m={m},inner={inner}/{activations:?}/norm={norm}");
    let (k, mut rng) = (256, Rng::named(&name));
    let mut inputs = vec![activation(&mut rng, m, k, activations)];
    inputs.extend(norm.then(|| f32s([k], &rng.bells(k))));
    let weights = vec![
        weight(&name, gate, inner, k, false),
        weight(&name, up, inner, k, false),
        weight(&name, down, 40, inner, false),
    ];
    let function = if inner % 3 == 0 { Activation::GeluTanh } else { Activation::Silu };
    Case { weights, ..case(name, Op::FeedForward(function, norm.then_some(1e-5)), inputs) }
}

pub(super) fn embedding() -> Vec<Case> {
    let formats = DENSE.iter().chain(BLOCKS32).chain(BLOCKS256);
    let cases = formats.flat_map(|&format| {
        [(0, false), (1, false), (17, false), (5, true)].map(|(t, extreme)| {
            let (rows, cols) = (29, 3 * block(format));
            let kind = if extreme { "extreme" } else { "random" };
            let name = format!("embedding/{format}/t={t},n={rows},k={cols}/{kind}");
            let mut rng = Rng::named(&name);
            let ids = indices((0..t).map(|_| rng.below(rows)));
            let weights = vec![weight(&name, format, rows, cols, extreme)];
            Case { weights, ..case(name, Op::Embedding, vec![ids]) }
        })
    });
    cases.collect()
}

/// Block length, or 1 for floats.
pub(super) fn block(format: Format) -> usize {
    if format.is_quantized() { format.block_len() } else { 1 }
}

pub(super) fn weight(name: &str, format: Format, rows: usize, cols: usize, extreme: bool) -> HostWeight {
    let bytes = if extreme {
        extreme_blocks(format, rows, cols)
    } else {
        random_blocks(format, rows, cols, Rng::named(name).bits())
    };
    HostWeight { name: format!("{format}.weight"), format, shape: vec![rows, cols], bytes: bytes.into() }
}

pub(super) fn activation(rng: &mut Rng, m: usize, k: usize, activations: Activations) -> HostTensor {
    let mut x = rng.bells(m * k);
    match activations {
        Activations::Bell => {}
        Activations::Tiny => x.chunks_mut(32).for_each(|block| shrink(rng, block)),
        Activations::Outliers => {
            x.iter_mut().filter(|_| rng.below(50) == 0).for_each(|x| *x *= 1000.0);
        }
        Activations::Ties => x.chunks_mut(32).for_each(|block| {
            block.iter_mut().for_each(|x| *x = (*x * 84.0).round_ties_even() / 2.0);
            block[0] = 127.0;
        }),
        Activations::Largest => {
            let value = |index: usize| if (index / k).is_multiple_of(2) { 1.5 } else { -1.5 };
            x.iter_mut().enumerate().for_each(|(index, x)| *x = value(index));
        }
        Activations::NonFinite => spoil(rng, &mut x, k),
    }
    f32s([m, k], &x)
}

/// Zeros, or values whose scale lies on either side of [`TINY`].
fn shrink(rng: &mut Rng, block: &mut [f32]) {
    let largest = [0.0, -0.0, 126.999 * TINY, 127.0 * TINY, 127.001 * TINY, 200.0 * TINY, 1.0][rng.below(7)];
    let top = block.iter().fold(0.5f32, |top, x| top.max(x.abs()));
    block.iter_mut().for_each(|x| *x = *x / top * largest);
    block[rng.below(block.len())] = largest;
}

/// A NaN in every third row, an infinity in the next, both signs of it in the third.
fn spoil(rng: &mut Rng, x: &mut [f32], k: usize) {
    for (row, values) in x.chunks_mut(k).enumerate() {
        let spoilers: &[f32] = match row % 3 {
            0 => &[f32::INFINITY],
            1 => &[f32::NAN],
            _ => &[f32::INFINITY, f32::NEG_INFINITY],
        };
        spoilers.iter().for_each(|&spoiler| values[rng.below(k)] = spoiler);
    }
}
