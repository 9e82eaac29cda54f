//! The suite on a GPU.

mod common;

use samebits_conformance::{Group, check_every};

/// Every so many-th case of operations of which one takes a second; all of them with `SAMEBITS_CASE_STRIDE=1`.
const STRIDE: usize = 16;

const PRODUCTS: [Group; 4] = [Group::LinearDense, Group::NormLinears, Group::FeedForward, Group::Experts];
const INVARIANCE: [Group; 3] = [Group::BatchInvariance, Group::ChunkInvariance, Group::PaddingInvariance];

fn check(stride: usize, groups: impl Iterator<Item = Group>) {
    let cuda = common::cuda();
    for group in groups {
        let report = check_every(stride, &cuda, group, &[]);
        println!("{report}");
        report.expect_clean();
    }
}

#[test]
fn primitives_rows_blocks_and_attention() {
    check(
        1,
        Group::ALL.iter().copied().filter(|group| !PRODUCTS.contains(group) && !INVARIANCE.contains(group)),
    );
}

fn sample(groups: &[Group]) {
    let chosen = std::env::var("SAMEBITS_CASE_STRIDE").ok().map(|it| it.parse().expect("a number"));
    check(chosen.unwrap_or(STRIDE), groups.iter().copied());
}

#[test]
fn sampled_products() {
    sample(&PRODUCTS);
}

#[test]
fn sampled_invariance() {
    sample(&INVARIANCE);
}
