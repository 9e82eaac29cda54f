//! The op suite that every backend must pass bit for bit.
//!
//! A [`Case`] is one operation with its operands as data; [`Group::checks`] lists the cases of an operation, the same
//! on every run. A case passes when the subject returns the bits that [`samebits_cpu::Host`] returns, which is the
//! decomposition over plain scalar loops. `Host` itself is held to references written apart from it (exact integers,
//! f64) and to hashes of its bits, in this crate's own tests.
//!
//! # Entry points
//!
//! For a backend, one `#[test]` for each operation, in an integration test (`tests/conformance.rs`):
//!
//! ```
//! use samebits_cpu::Host;
//! samebits_conformance::conformance_tests!(Host);
//! # samebits_conformance::check_group(&Host, samebits_conformance::Group::Iota, &[]).expect_clean();
//! ```
//!
//! With cases that the backend cannot take, each with the reason that the report prints:
//!
//! ```
//! # use samebits_cpu::Host;
//! samebits_conformance::conformance_tests!(Host, skip: [("cast/f16->i8", "no such kernel on this device")]);
//! ```
//!
//! As a value, for a program: `check(&backend, &[])` returns a [`Report`], which prints.
//!
//! For a device that compiles recorded graphs: [`Compiled`]. For anything else that is no backend: implement [`Subject`],
//! whose one real method takes a [`Case`]; [`Case::apply`] records it over any backend, so also over a trace.
//!
//! # A failing case
//!
//! A report names it (`linear/q4_k/m=3,n=7,k=512/random`), with the first differing element and both bit patterns.
//! `SAMEBITS_CASE=linear/q4_k/m=3` in the environment limits a run to the cases whose name contains that text.
//!
//! # What is compared
//!
//! Bits. A NaN equals any NaN. The sign of zero counts, but for the results of `max`, whose contract leaves it open.
//! No operand and no result is a subnormal f32 (rule R4 of the contract), so a device that flushes them passes.
#![forbid(unsafe_code)]

mod case;
mod compare;
mod compiled;
mod random;
mod report;
mod subject;
mod suite;

pub use case::{AttentionSteps, Case, Op};
pub use compare::{Difference, canonical_bits, compare};
pub use compiled::Compiled;
pub use random::Rng;
pub use report::{Failure, GroupReport, Report};
pub use subject::Subject;
pub use suite::{Check, Group, Invariance};

/// A case that a subject does not take.
#[derive(Clone, Copy, Debug)]
pub struct Skip {
    /// Cases whose name contains this are skipped.
    pub pattern: &'static str,
    /// Why, in words for the report.
    pub reason: &'static str,
}

/// Runs every group against a subject.
pub fn check(subject: &impl Subject, skips: &[Skip]) -> Report {
    let groups = Group::ALL.iter().map(|&group| check_group(subject, group, skips)).collect();
    Report { subject: subject.name(), groups }
}

/// Runs one group against a subject.
pub fn check_group(subject: &impl Subject, group: Group, skips: &[Skip]) -> GroupReport {
    check_every(1, subject, group, skips)
}

/// Runs every `stride`th case of one group against a subject, the first among them: for a subject that takes seconds for one.
pub fn check_every(stride: usize, subject: &impl Subject, group: Group, skips: &[Skip]) -> GroupReport {
    check_those(subject, group, skips, group.checks().into_iter().step_by(stride.max(1)))
}

/// Runs so many cases of one group against a subject, evenly spread: for a subject that takes minutes for one.
pub fn check_sample(count: usize, subject: &impl Subject, group: Group, skips: &[Skip]) -> GroupReport {
    let checks = group.checks();
    let (all, count) = (checks.len(), count.clamp(1, checks.len()));
    // The middle of each of as many parts, since groups begin with what is empty.
    let is_chosen = |index: usize| (0..count).any(|part| (2 * part + 1) * all / (2 * count) == index);
    let chosen = checks.into_iter().enumerate().filter(|(index, _)| is_chosen(*index));
    check_those(subject, group, skips, chosen.map(|(_, check)| check))
}

fn check_those(
    subject: &impl Subject,
    group: Group,
    skips: &[Skip],
    checks: impl Iterator<Item = Check>,
) -> GroupReport {
    let only = std::env::var("SAMEBITS_CASE").ok();
    let mut report = GroupReport::new(group);
    for check in checks.filter(|check| only.as_deref().is_none_or(|only| check.name().contains(only))) {
        report.record(subject, &check, skips);
    }
    report
}

/// One `#[test]` for each group, for a subject given as an expression.
#[macro_export]
macro_rules! conformance_tests {
    ($subject:expr) => {
        $crate::conformance_tests!($subject, skip: []);
    };
    ($subject:expr, skip: [$(($pattern:expr, $reason:expr)),* $(,)?]) => {
        $crate::conformance_tests!(@groups $subject, [$($crate::Skip { pattern: $pattern, reason: $reason }),*],
            full Full, iota Iota, reshape Reshape, permute Permute, slice Slice, broadcast Broadcast,
            concat Concat, cast Cast, bitcast Bitcast, unary Unary, binary Binary, compare Compare,
            select Select, max_reduce MaxReduce, matmul_exact MatmulExact, gather Gather, scatter Scatter,
            plain Plain, linear_dense LinearDense, linear_blocks32 LinearBlocks32,
            linear_blocks256 LinearBlocks256, norm_linears NormLinears, feed_forward FeedForward,
            route Route, experts Experts, embedding Embedding, rms_norm RmsNorm, layer_norm LayerNorm,
            rope Rope, store_kv StoreKv, rotate_and_store RotateAndStore, attention Attention, glu Glu,
            activate Activate, softmax Softmax, soft_cap SoftCap, top_k TopK, batch_invariance BatchInvariance,
            chunk_invariance ChunkInvariance,
            padding_invariance PaddingInvariance
        );
    };
    (@groups $subject:expr, $skips:expr, $($test:ident $group:ident),*) => {
        $(
            #[test]
            fn $test() {
                $crate::check_group(&$subject, $crate::Group::$group, &$skips).expect_clean();
            }
        )*

        #[test]
        fn every_group_has_a_test() {
            assert_eq!([$($crate::Group::$group),*].as_slice(), $crate::Group::ALL);
        }
    };
}
