//! Linear layers of many tokens by products of bf16, which a B300 takes.

mod common;

use common::linear::{SHAPES, SHAPES_OF_256, check};
use samebits_tensor::Format;

/// Fewer tokens than a tile, and one more than two.
const TOKENS: [usize; 2] = [9, 65];

#[test]
fn every_format() {
    let sim = ptx_sim::Sim::alone().expect("the stand-in for the driver");
    sim.set("PTX_SIM_CAPABILITY", "103");
    let cuda = common::cuda();
    let of_len = |len| Format::ALL.into_iter().filter(move |format| format.block_len() == len);
    check(&cuda, &of_len(32).collect::<Vec<_>>(), &SHAPES, &TOKENS);
    check(&cuda, &of_len(256).collect::<Vec<_>>(), &SHAPES_OF_256, &TOKENS);
}
