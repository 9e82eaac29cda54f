//! The suite on a GPU.

mod common;

use samebits_conformance::{Group, check_every};

/// Every so many-th case of operations of which one takes a second; all of them with `SAMEBITS_CASE_STRIDE=1`.
const STRIDE: usize = 16;

const SLOW: [Group; 6] = [
    Group::LinearDense,
    Group::NormLinears,
    Group::FeedForward,
    Group::BatchInvariance,
    Group::ChunkInvariance,
    Group::PaddingInvariance,
];

fn check(stride: usize, groups: impl Iterator<Item = Group>) {
    let cuda = common::cuda();
    for group in groups {
        let report = check_every(stride, &cuda, group, &[]);
        println!("{report}");
        report.expect_clean();
    }
}

#[test]
fn primitives_and_rows() {
    check(1, Group::ALL.iter().copied().filter(|group| !SLOW.contains(group)));
}

fn slow(part: usize) {
    let chosen = std::env::var("SAMEBITS_CASE_STRIDE").ok().map(|it| it.parse().expect("a number"));
    check(chosen.unwrap_or(STRIDE), SLOW.into_iter().skip(part).step_by(2));
}

#[test]
fn products_and_attention() {
    slow(0);
}

#[test]
fn products_and_invariance() {
    slow(1);
}
