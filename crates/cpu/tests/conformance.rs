//! The suite on every instruction set of this CPU, on one thread and on two.

use samebits_conformance::check;
use samebits_cpu::{Cpu, Isa};

fn check_all(threads: usize) {
    for isa in Isa::available() {
        let cpu = Cpu::builder().threads(threads).isa(isa).build().expect("threads");
        let report = check(&cpu, &[]);
        assert!(report.is_clean(), "{report}");
    }
}

#[test]
fn one_thread() {
    check_all(1);
}

#[test]
fn two_threads() {
    check_all(2);
}
