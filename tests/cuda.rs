//! Whole models on a GPU that is stood in for: the same bits of logits and the same tokens as on the CPU, whether steps are
//! run or recorded, and errors where the device is lost.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod common;

use common::{
    GGUF, NAMES, batch,
    compiled::{assert_same, cpu, crowded, engine, on_cpu, plan, serve, serve_on, small},
    logits_by_token, pages, prompt, runner, step, tiny,
};
use ptx_sim::{Checks, Sim};
use samebits::{Device, DeviceOptions, self_test};
use samebits_checkpoint::Checkpoint;
use samebits_cuda::Cuda;
use samebits_engine::Runner;
use samebits_runner::{MemoryPlan, ModelRunner};

fn cuda() -> Cuda {
    Cuda::builder().memory_bytes(512 << 20).open().unwrap()
}

fn on_cuda(checkpoint: &Checkpoint, plan: &MemoryPlan) -> Box<dyn Runner> {
    let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
    Box::new(ModelRunner::load(cuda(), config, weights, &small(), plan, &|_| {}).unwrap())
}

/// Chunks, and single tokens between them that are run, recorded and done again.
fn check_chunks(name: &str, lengths: &[usize]) {
    let checkpoint = tiny(name);
    let tokens = &prompt()[..lengths.iter().sum()];
    let expected = logits_by_token(&mut runner(cpu(), &checkpoint), tokens);
    let mut runner = on_cuda(&checkpoint, &plan(&checkpoint));
    let table = pages(&*runner, tokens.len(), 3, 7);
    let mut start = 0;
    for &length in lengths {
        let end = start + length;
        let found = step(&mut *runner, &batch(&[(&table, start, &tokens[start..end])]));
        assert_same(&format!("{name}, {start} to {end}"), &expected[end - 1], &found[0]);
        start = end;
    }
}

#[test]
fn every_architecture() {
    let sim = Sim::alone().unwrap();
    for name in NAMES {
        // Past a tile of attention and every window in one of them.
        let first = if name == "gemma3" { 130 } else { 20 };
        sim.faults("");
        check_chunks(name, &[first, 1, 1, 1, 1, 5]);
        assert_eq!((sim.calls("cuGraphInstantiateWithFlags"), sim.calls("cuGraphLaunch")), (1, 3), "{name}");
    }
}

#[test]
fn every_block_format() {
    let _sim = Sim::alone().unwrap();
    for name in GGUF {
        check_chunks(name, &[17, 1, 1, 1, 5]);
    }
}

#[test]
fn requests_that_are_served_together_and_preempted() {
    let _sim = Sim::alone().unwrap();
    let checkpoint = tiny("llama3");
    let plan = crowded(&checkpoint);
    let (expected, _, _) = serve(on_cpu(&checkpoint, &plan));
    let (found, errors, stats) = serve(on_cuda(&checkpoint, &plan));
    assert_eq!((found, errors.len()), (expected, 0));
    assert!(stats.preemptions > 0, "{stats:?}");
}

#[test]
fn a_device_that_is_lost_fails_its_requests_alone() {
    let sim = Sim::alone().unwrap();
    let checkpoint = tiny("llama3");
    let plan = plan(&checkpoint);
    let mut engine = engine(on_cuda(&checkpoint, &plan));
    sim.faults("cuStreamSynchronize:9=700!");
    let (_, errors) = serve_on(&mut engine);
    assert_eq!(errors.len(), 4);
    assert!(errors.iter().all(|error| error.to_string().contains("lost to this process")), "{errors:?}");
    drop(engine);
    sim.reset();
    check_chunks("llama3", &[5]);
}

#[test]
fn an_owners_test_passes() {
    let sim = Sim::alone().unwrap();
    // The other tests are checked.
    sim.checks(Checks { registers: false, shared: false, global: false, blocks: false });
    let test = self_test(&Device::Cuda { ordinal: 0 }, &DeviceOptions::default(), 1, &|_, _| {}).unwrap();
    assert!(test.passed(), "{:#}", test.to_json());
    assert!(test.description.contains("sm_90, driver 13.0"), "{}", test.description);
    assert!(test.conformance.cases() >= 36 && test.model.unwrap().tokens == 36);
}
