//! Mutants of the shipped PTX: a change of one instruction is to be noticed, by the stand-in's checks or by other bits.
//!
//! A sample of fixed seed runs with the tests. The whole is for people: `cargo xtask mutate cuda`, which writes
//! docs/cuda-mutation.md.
#![cfg(target_os = "linux")]

mod accepted;
mod pool;
mod report;
mod run;
mod worker;

use run::Options;

/// Of a sample's mutants, the share that must be noticed: a few hundredths below what larger samples gave (docs/cuda-mutation.md).
const SHARE_MIN: f64 = 0.92;

/// In the process that runs mutants, does that; nothing where the tests run.
#[test]
fn worker() {
    worker::serve();
}

#[test]
fn a_sample_of_mutants_is_noticed() {
    let options = Options { sample: Some(160), seed: 7, ..Options::default() };
    let report = run::run(&options);
    println!("{}", report.table());
    assert!(report.share() >= SHARE_MIN, "{}", report.survivors());
}

#[test]
#[ignore = "takes as long as SAMEBITS_MUTATE says; cargo xtask mutate cuda runs it"]
fn mutants() {
    let options = Options::from_environment();
    let report = run::run(&options);
    println!("{}\n{}", report.table(), report.survivors());
    report.write(&options);
}
