use half::{bf16, f16};
use samebits_tensor::contract::TINY;

use super::*;
use crate::parts::Parts;

const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::BF16];

/// `[rows, k]` times the transpose of `[rows, k]`.
struct Case {
    format: Format,
    x: Vec<f32>,
    weights: Vec<u8>,
    m: usize,
    rows: usize,
    k: usize,
}

impl Case {
    fn new(format: Format, [m, rows, k]: [usize; 3], mut value: impl FnMut() -> f32) -> Self {
        let x = (0..m * k).map(|_| value()).collect();
        let weights = (0..rows * k).flat_map(|_| encode(format, value())).collect();
        Case { format, x, weights, m, rows, k }
    }

    /// The contract's `dot`, an element after the other.
    fn expected(&self) -> Vec<f32> {
        let size = self.format.block_bytes();
        let operand = |x: f32| if x.abs() < TINY { 0.0 } else { x };
        let weights: Vec<f32> =
            self.weights.chunks_exact(size).map(|bytes| operand(decode(self.format, bytes))).collect();
        let round = |&x: &f32| operand(decode(self.format, &encode(self.format, x)));
        let x: Vec<f32> = self.x.iter().map(round).collect();
        let dot = |x: &[f32], w: &[f32]| {
            let spans = x.chunks(DOT_SPAN).zip(w.chunks(DOT_SPAN));
            spans.fold(0.0, |sum, (x, w)| sum + x.iter().zip(w).fold(0.0, |acc, (x, w)| acc + x * w))
        };
        x.chunks(self.k).flat_map(|x| weights.chunks(self.k).map(move |w| dot(x, w))).collect()
    }

    fn found(&self, isa: Isa) -> Vec<f32> {
        let &Case { format, m, rows, k, .. } = self;
        let layout = DenseLayout::new(format, k);
        let mut bytes = vec![0; rows.div_ceil(LANES) * layout.bytes()];
        let packed = bytes.chunks_mut(layout.bytes()).zip(self.weights.chunks(LANES * layout.row_bytes()));
        packed.for_each(|(panel, rows)| layout.pack(rows, panel));
        let mut x = Floats::new();
        // Memory that has been used before.
        round(&mut x, isa, &vec![f32::NAN; 2 * m * (k + 1)], [2 * m, k + 1], format);
        round(&mut x, isa, &self.x, [m, k], format);
        let mut out = vec![f32::NAN; m * rows];
        let panels = DensePanels { format, cols: k, bytes: &bytes };
        linear_dense(isa, panels, &x, MatrixMut::new(&mut out, m, rows));
        out
    }

    fn check(&self) -> Vec<f32> {
        let expected = self.expected();
        for isa in Isa::available() {
            let found = self.found(isa);
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            let differs = expected.iter().zip(&found).position(|pair| !same(pair));
            let Case { format, m, rows, k, .. } = self;
            assert_eq!(differs, None, "{format} [{m}, {k}] by {rows} rows on {}", isa.name());
        }
        expected
    }
}

fn round(floats: &mut Floats, isa: Isa, x: &[f32], [m, k]: [usize; 2], format: Format) {
    floats.reset(isa, m, k, format);
    let pieces = floats.pieces(x, 5);
    // SAFETY: each number once.
    (0..pieces.count()).for_each(|i| unsafe { pieces.part(i) }.round(isa));
}

fn encode(format: Format, x: f32) -> Vec<u8> {
    match format {
        Format::F32 => x.to_le_bytes().to_vec(),
        Format::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        _ => bf16::from_f32(x).to_le_bytes().to_vec(),
    }
}

fn decode(format: Format, bytes: &[u8]) -> f32 {
    match format {
        Format::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Format::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

fn random() -> impl FnMut() -> u32 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 32) as u32
    }
}

/// In [-1, 1].
fn unit(random: u32) -> f32 {
    random as i32 as f32 * 2f32.powi(-31)
}

#[test]
fn every_shape_has_the_contracts_bits() {
    let mut random = random();
    for format in FORMATS {
        for (i, m) in [1, 2, 3, 5, 7, 11, 12, 13, 14, 25, 30, 241].into_iter().enumerate() {
            let (rows, k) = ([1, 17, 33, 48, 79, 95][i % 6], [1, 18, 515, 37, 1061][i % 5]);
            Case::new(format, [m, rows, k], || unit(random())).check();
        }
    }
}

#[test]
fn edges_have_the_contracts_bits() {
    let edges = [
        0.0,
        -0.0,
        TINY,
        -TINY,
        TINY * (1.0 - f32::EPSILON),
        TINY * (1.0 + f32::EPSILON),
        1e-40,
        -6e-8,
        65504.0,
        65520.0,
        -1e30,
    ];
    let mut random = random();
    for format in FORMATS {
        for (m, k) in [(1, 40), (4, 33), (26, 530)] {
            let case = Case::new(format, [m, 35, k], || match random() % 4 {
                0 => edges[random() as usize % edges.len()],
                _ => unit(random()) * 1e-3,
            });
            case.check();
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_token() {
    let mut random = random();
    for format in FORMATS {
        for m in [3, 29] {
            let mut case = Case::new(format, [m, 20, 70], || unit(random()));
            case.x[70 + 3] = f32::NAN;
            case.x[2 * 70 + 69] = f32::INFINITY;
            let expected = case.check();
            assert!(expected[20..40].iter().all(|x| x.is_nan()));
            assert!(expected[..20].iter().all(|x| x.is_finite()));
        }
    }
}

/// `-1.5 * 2^127 + 2^128`: the product alone is no f32, the sum is.
#[test]
fn products_too_large_for_f32_are_infinite_before_they_are_added() {
    let (columns, power) = ([(-1.5, 27), (1.0, 28)], |n: u32| f32::from_bits((127 + n) << 23));
    for m in [1, 2, 12, 13, 40] {
        let mut case = Case::new(Format::BF16, [m, 33, 2], || 0.0);
        for (i, x) in case.x.iter_mut().enumerate() {
            *x = columns[i % 2].0 * power(100);
        }
        case.weights = (0..33 * 2).flat_map(|i| encode(Format::BF16, power(columns[i % 2].1))).collect();
        assert!(case.check().iter().all(|&x| x == f32::INFINITY));
    }
}

#[test]
fn panels_give_their_rows_back() {
    let mut random = random();
    for format in FORMATS {
        for (rows, k) in [(1, 1), (16, 2), (5, 33)] {
            let layout = DenseLayout::new(format, k);
            let bytes: Vec<u8> = (0..rows * layout.row_bytes()).map(|_| random() as u8).collect();
            let mut panel = vec![0; layout.bytes()];
            layout.pack(&bytes, &mut panel);
            for (lane, row) in bytes.chunks(layout.row_bytes()).enumerate() {
                let mut found = vec![0; row.len()];
                layout.unpack_row(&panel, lane, &mut found);
                assert_eq!(found, row, "{format}");
            }
        }
    }
}
