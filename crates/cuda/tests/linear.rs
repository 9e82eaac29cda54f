//! Linear layers of shapes that fill no tile.

mod common;

use common::linear::{SHAPES, SHAPES_OF_256, check};
use samebits_tensor::Format;

/// Tokens: of each kernel, and one past the tiles of the last.
const TOKENS: [usize; 7] = [0, 1, 2, 3, 8, 9, 65];

#[test]
fn blocks_of_32() {
    check(&common::cuda(), &[Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1], &SHAPES, &TOKENS);
}

#[test]
fn blocks_of_32_as_bytes_and_by_table() {
    check(&common::cuda(), &[Format::Q8_0, Format::Iq4Nl, Format::Mxfp4], &SHAPES, &TOKENS);
}

#[test]
fn blocks_of_256() {
    check(
        &common::cuda(),
        &[Format::Q2K, Format::Q3K, Format::Q4K, Format::Q5K, Format::Q6K],
        &SHAPES_OF_256,
        &TOKENS,
    );
}

/// Columns: one read, less than a chunk, not a whole one, spans that end with less than a whole one, more spans than wait at once.
const SHAPES_OF_FLOATS: [(usize, usize); 5] = [(1, 8), (33, 72), (65, 600), (31, 2568), (2, 9224)];

#[test]
fn floats() {
    check(&common::cuda(), &[Format::F16, Format::BF16, Format::F32], &SHAPES_OF_FLOATS, &TOKENS);
}
