//! Linear layers of shapes that fill no tile, against the host's plain primitives.

mod common;

use samebits_cpu::Host;
use samebits_tensor::{Backend, Format, HostWeight, Tensor, Weight, testing::random_blocks};

/// Rows, columns: fewer and more than a warp's columns, spans that end with less than a whole one, one row past a tile.
const SHAPES: [(usize, usize); 4] = [(1, 32), (17, 1056), (65, 2592), (3, 34048)];
const SHAPES_OF_256: [(usize, usize); 3] = [(1, 256), (17, 1280), (65, 2816)];

/// Tokens: of each kernel, and one past the tiles of the last.
const TOKENS: [usize; 7] = [0, 1, 2, 3, 8, 9, 65];

fn product<B: Backend>(backend: &B, host: &HostWeight, x: &[f32]) -> Vec<u32> {
    let weight = Weight::pack(backend, host).unwrap();
    let x = Tensor::of(backend, [x.len() / host.shape[1], host.shape[1]], x).unwrap();
    let bytes = x.linear(&weight).unwrap().download().unwrap();
    bytes.bytes().as_chunks::<4>().0.iter().map(|bits| u32::from_le_bytes(*bits)).collect()
}

fn check(formats: &[Format], shapes: &[(usize, usize)]) {
    let cuda = common::cuda();
    for (&format, &(rows, cols)) in formats.iter().flat_map(|it| shapes.iter().map(move |shape| (it, shape)))
    {
        let bytes = random_blocks(format, rows, cols, 7).into();
        let host = HostWeight { name: "weight".into(), format, shape: vec![rows, cols], bytes };
        for tokens in TOKENS.into_iter().filter(|tokens| tokens * cols < 1 << 18) {
            let x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
            let (found, expected) = (product(&cuda, &host, &x), product(&Host, &host, &x));
            assert!(found == expected, "{format} [{rows}, {cols}], {tokens} tokens");
        }
    }
}

#[test]
fn blocks_of_32() {
    check(&[Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1], &SHAPES);
}

#[test]
fn blocks_of_32_as_bytes_and_by_table() {
    check(&[Format::Q8_0, Format::Iq4Nl, Format::Mxfp4], &SHAPES);
}

#[test]
fn blocks_of_256() {
    check(&[Format::Q2K, Format::Q3K, Format::Q4K, Format::Q5K, Format::Q6K], &SHAPES_OF_256);
}

/// Columns: one read, less than a chunk, not a whole one, spans that end with less than a whole one, more spans than wait at once.
const SHAPES_OF_FLOATS: [(usize, usize); 5] = [(1, 8), (33, 72), (65, 600), (31, 2568), (2, 9224)];

#[test]
fn floats() {
    check(&[Format::F16, Format::BF16, Format::F32], &SHAPES_OF_FLOATS);
}
