//! The suite on every instruction set of this CPU, on one thread and on two, with and without subnormals.

use samebits_conformance::{Case, Subject, check};
use samebits_cpu::{Cpu, Isa};
use samebits_kernels::cpu::flush_subnormals;
use samebits_tensor::{Backend, Format, HostTensor, Result};

/// A backend whose threads flush subnormals while it computes, and the reference's do not.
struct Flushed(Cpu);

impl Flushed {
    fn set(&self, on: bool) {
        flush_subnormals(on);
        self.0.on_every_thread(|| flush_subnormals(on));
    }
}

impl Subject for Flushed {
    fn name(&self) -> String {
        format!("{}, subnormals flushed", Subject::name(&self.0))
    }

    fn takes(&self, format: Format) -> bool {
        self.0.capabilities().formats.contains(&format)
    }

    fn run(&self, case: &Case) -> Result<Vec<HostTensor>> {
        self.set(true);
        let results = case.run(&self.0);
        self.set(false);
        results
    }
}

fn check_all<S: Subject>(threads: usize, subject: impl Fn(Cpu) -> S) {
    for isa in Isa::available() {
        let cpu = Cpu::builder().threads(threads).isa(isa).build().expect("threads");
        let report = check(&subject(cpu), &[]);
        assert!(report.is_clean(), "{report}");
    }
}

#[test]
fn one_thread() {
    check_all(1, |cpu| cpu);
}

#[test]
fn two_threads() {
    check_all(2, |cpu| cpu);
}

#[test]
fn one_thread_without_subnormals() {
    check_all(1, Flushed);
}

#[test]
fn two_threads_without_subnormals() {
    check_all(2, Flushed);
}
