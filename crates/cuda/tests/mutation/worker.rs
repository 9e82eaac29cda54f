//! The process that runs mutants: a line of its input is a [`Request`], a line of its output the answer.

use std::{
    collections::HashMap,
    env,
    io::{BufRead, Write, stdin, stdout},
    time::Instant,
};

use ptx_sim::{Mutation, Order, Sim};
use samebits_conformance::{Case, compare};
use samebits_cpu::Host;
use samebits_cuda::{Cuda, Numerics};
use samebits_tensor::HostTensor;
use serde_json::{Value, json};

use crate::pool;

/// Set for the process that runs mutants.
pub(crate) const MARK: &str = "SAMEBITS_MUTATION_WORKER";

/// Before an answer, since the test harness writes too.
pub(crate) const ANSWER: &str = "=answer ";

/// What a case gives: tensors, or an error's words.
type Outcome = Result<Vec<HostTensor>, String>;

struct Worker {
    sim: Sim,
    /// Whose launches are as small as they can be, so that threads and blocks have several pieces of work.
    narrow: Cuda,
    /// Whose launches are as they are on a device; for cases whose names begin with [`pool::WIDE`].
    wide: Cuda,
    /// Of an architecture whose layers are products of bf16; for cases whose names begin with [`pool::BF16`].
    bf16: Cuda,
    /// Whose products are not exact; for cases whose names begin with [`pool::FAST`], which no reference has the bits of.
    fast: Cuda,
    cases: Vec<Case>,
    /// Of kernels that are not changed.
    expected: HashMap<usize, Outcome>,
}

/// Answers requests until there are no more: `cover CASE`, or `run MUTATION CASE...`.
pub(crate) fn serve() {
    if env::var_os(MARK).is_none() {
        return;
    }
    let sim = Sim::alone().expect("the stand-in for the driver");
    let [narrow, wide, bf16, fast] = open(&sim);
    let (cases, expected) = (pool::cases(), HashMap::new());
    let mut worker = Worker { sim, narrow, wide, bf16, fast, cases, expected };
    for line in stdin().lock().lines() {
        let line = line.expect("a request");
        let mut words = line.split(' ');
        let answer = match (words.next(), words.next()) {
            (Some("cover"), Some(case)) => worker.cover(number(case)),
            (Some("run"), Some(mutation)) => {
                let cases: Vec<usize> = words.map(number).collect();
                worker.run(&mutation.parse().expect("a mutation"), &cases)
            }
            _ => panic!("{line:?} is no request"),
        };
        println!("\n{ANSWER}{answer}");
        stdout().flush().expect("an answer");
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("the number of a case")
}

/// Devices on which a byte behind a tensor is out of bounds.
fn open(sim: &Sim) -> [Cuda; 4] {
    let builder = Cuda::builder().memory_bytes(64 << 20).tensors_apart();
    let [narrow, wide] =
        [builder.clone().blocks_max(2), builder.clone()].map(|builder| builder.open().expect("a device"));
    sim.set("PTX_SIM_CAPABILITY", "103");
    let bf16 = builder.clone().open().expect("a device");
    sim.set("PTX_SIM_CAPABILITY", "90");
    let library = ptx_sim::library().expect("the stand-in for cuBLASLt");
    let fast = builder.numerics(Numerics::Fast).cublaslt(library).scratch_bytes(pool::SCRATCH_BYTES);
    [narrow, wide, bf16, fast.open().expect("a device")]
}

impl Worker {
    /// Which lines a case executes, and how long it takes; that it has the bits of the reference.
    fn cover(&mut self, index: usize) -> Value {
        self.sim.reset();
        let start = Instant::now();
        let found = self.outcome(index);
        let seconds = start.elapsed().as_secs_f64();
        let case = &self.cases[index];
        let is_exact = !case.name.starts_with(pool::FAST);
        if is_exact && let (Ok(found), Ok(expected)) = (&found, case.run(&Host)) {
            let difference = compare(&expected, found, case.zero_sign_is_open());
            assert!(difference.is_none(), "{}: {}", case.name, difference.unwrap());
        }
        if let (Err(error), Some(fault)) = (&found, self.sim.fault()) {
            panic!("{}: {error}: {fault}", case.name);
        }
        let lines = self.sim.lines();
        self.expected.insert(index, found);
        json!({ "seconds": seconds, "lines": lines })
    }

    /// What notices a mutant first, and on which case; the warps of a block run from the first and from the last.
    fn run(&mut self, mutation: &Mutation, cases: &[usize]) -> Value {
        for &index in cases {
            if !self.expected.contains_key(&index) {
                let outcome = self.outcome(index);
                self.expected.insert(index, outcome);
            }
        }
        if let Err(error) = self.sim.mutate(Some(mutation)) {
            panic!("{mutation}: {error}");
        }
        let orders = [Order::Ascending, Order::Descending];
        let found = orders.into_iter().find_map(|order| {
            self.sim.order(order);
            let (case, by) = cases.iter().find_map(|&index| Some((index, self.notice(index)?)))?;
            Some(json!({ "killed": by, "case": case, "order": format!("{order:?}") }))
        });
        let is_fault = self.sim.fault().is_some();
        self.sim.reset();
        if is_fault && self.outcome(cases[0]).is_err() {
            // What was issued before the fault is in an unknown state.
            [self.narrow, self.wide, self.bf16, self.fast] = open(&self.sim);
        }
        found.unwrap_or_else(|| json!({ "killed": null }))
    }

    /// What notices that a kernel is changed: a check, or other bits than before.
    fn notice(&self, index: usize) -> Option<String> {
        let found = self.outcome(index);
        if let Some(check) = self.sim.fault_name() {
            return Some(check);
        }
        match (&self.expected[&index], &found) {
            (Ok(expected), Ok(found)) => {
                compare(expected, found, self.cases[index].zero_sign_is_open()).map(|_| "bits".into())
            }
            (Err(expected), Err(found)) if expected == found => None,
            _ => Some("bits".into()),
        }
    }

    fn outcome(&self, index: usize) -> Outcome {
        let case = &self.cases[index];
        let cuda = match &case.name {
            name if name.starts_with(pool::WIDE) => &self.wide,
            name if name.starts_with(pool::BF16) => &self.bf16,
            name if name.starts_with(pool::FAST) => &self.fast,
            _ => &self.narrow,
        };
        case.run(cuda).map_err(|error| error.to_string())
    }
}
