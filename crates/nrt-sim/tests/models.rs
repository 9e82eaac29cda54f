//! Whole models on NeuronCores that are stood in for: the same tokens and the same bits of logits as on the CPU, and
//! whatever the runtime reports while requests are served is told to those whose it is.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;
#[path = "../../../tests/common/mod.rs"]
mod shared;

use common::{Sim, device};
use samebits_checkpoint::Checkpoint;
use samebits_engine::{Request, RequestError, RequestId, RunnerError};
use samebits_neuron::abi::Status;
use shared::{
    NAMES, Outputs,
    compiled::{
        check_chunks, check_shared_pages, compiled, crowded, engine, on, on_cpu, plan, serve, serve_on,
    },
    prompt, tiny,
};

/// Steps that fill one bucket, and one that is padded; the tests over PJRT have more of them, on the same programs.
const CHUNKS: [usize; 3] = [16, 16, 8];

#[test]
fn chunks_of_every_architecture_and_of_blocks() {
    let sim = Sim::alone();
    for (core, name) in (0..).zip(NAMES.into_iter().chain(["gguf/llama.mixed32.gguf"])) {
        let checkpoint = tiny(name);
        let mut runner = compiled(device(core), &checkpoint, &plan(&checkpoint));
        check_chunks(&mut runner, &checkpoint, name, &prompt()[..40], &CHUNKS);
    }
    assert_eq!(sim.misuses(), 0);
}

#[test]
fn pages_of_a_common_beginning_are_shared() {
    let sim = Sim::alone();
    let checkpoint = tiny("llama3");
    check_shared_pages(&mut compiled(device(0), &checkpoint, &plan(&checkpoint)), &checkpoint, "llama3");
    assert_eq!(sim.misuses(), 0);
}

/// Steps of 16, of few and of one token: a real model in mixed block formats.
#[test]
fn smollm2() {
    let _sim = Sim::alone();
    let found = samebits_checkpoint::resolve("smollm2").expect("the model can be had from no source");
    let checkpoint = Checkpoint::open(found.path).unwrap();
    let tokens: Vec<u32> = (0..24).map(|i| (i * i * 31 + 17) % 40_000).collect();
    let mut runner = compiled(device(9), &checkpoint, &plan(&checkpoint));
    check_chunks(&mut runner, &checkpoint, "SmolLM2", &tokens, &[16, 3, 1, 1, 1, 1, 1]);
}

#[test]
fn batches_chunks_and_preemption_through_the_engine() {
    let sim = Sim::alone();
    let checkpoint = tiny("llama3");
    let plan = crowded(&checkpoint);
    let (expected, none, _) = serve(on_cpu(&checkpoint, &plan));
    let (found, errors, stats) = serve(on(device(10), &checkpoint, &plan));
    assert_eq!((none.len(), errors.len()), (0, 0));
    assert!(stats.preemptions > 0);
    assert_eq!(expected, found);
    assert_eq!(sim.misuses(), 0);
}

/// Executions of a step: the embedding's is the first, and the layers', which take the cache's tensors, follow.
const PLACES: [(&str, u64); 2] = [("embedding", 1), ("layer", 2)];

#[test]
fn each_status_while_requests_are_served() {
    let sim = Sim::alone();
    let checkpoint = tiny("gguf/llama.Q4_0.gguf");
    let plan = crowded(&checkpoint);
    let (expected, ..) = serve(on_cpu(&checkpoint, &plan));
    let mut engine = engine(on(device(12), &checkpoint, &plan));
    assert_eq!(serve_on(&mut engine), (expected.clone(), vec![]));
    for status in Status::all().filter(|status| !status.is_fatal()) {
        for (place, nth) in PLACES {
            let what = format!("{status} of the {place}");
            sim.plan(&format!("nrt_execute:{nth}={}", status.raw()));
            let (found, errors) = serve_on(&mut engine);
            check_told(&what, status, &errors);
            // A layer that failed half-way has spoiled the cache, and everything is computed anew.
            let is_told = !status.is_passing() && (status.is_refusal() || place == "embedding");
            assert_eq!(!errors.is_empty(), is_told, "{what}");
            check_others(&what, &expected, &found, errors.len());
        }
    }
    sim.plan("");
    assert_eq!(serve_on(&mut engine), (expected, vec![]), "after all of them");
    assert_eq!(sim.misuses(), 0);
}

/// Each error names the status and what to do.
fn check_told(what: &str, status: Status, errors: &[RequestError]) {
    for error in errors.iter().map(ToString::to_string) {
        assert!(error.contains(&status.to_string()) && error.contains(status.advice()), "{what}: {error}");
    }
}

/// Requests that did not fail have all their tokens.
fn check_others(what: &str, expected: &Outputs, found: &Outputs, failed: usize) {
    let whole = found.iter().filter(|(id, output)| expected[id] == **output).count();
    assert_eq!(whole + failed, expected.len(), "{what}");
}

#[test]
fn a_core_that_is_lost_while_requests_are_served() {
    let sim = Sim::alone();
    let checkpoint = tiny("gguf/llama.Q4_0.gguf");
    let plan = crowded(&checkpoint);
    for (core, status) in (13..).zip(Status::all().filter(|status| status.is_fatal())) {
        let mut engine = engine(on(device(core), &checkpoint, &plan));
        sim.plan(&format!("nrt_execute:9={}", status.raw()));
        let (_, errors) = serve_on(&mut engine);
        assert_eq!(errors.len(), 4, "{errors:?}");
        check_told("a lost core", status, &errors);
        let lost =
            |error: &RequestError| matches!(error, RequestError::Runner(RunnerError::DeviceLost { .. }));
        assert!(errors.iter().all(lost), "{errors:?}");
        sim.plan("");
        engine.add(Request::new(RequestId(9), prompt()[..20].to_vec(), 2)).unwrap_err();
    }
    assert_eq!(sim.misuses(), 0);
}
