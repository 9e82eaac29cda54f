//! Whole models on a GPU that is stood in for: the same bits of logits and the same tokens as on the CPU, whether steps are
//! run or recorded, and errors where the device is lost.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod common;

use std::sync::Arc;

use common::{
    GGUF, Letters, NAMES, batch,
    compiled::{check_chunks, check_shared_pages, crowded, engine, on_cpu, plan, serve, serve_on, small},
    pages, prompt, step, tiny,
};
use ptx_sim::{Checks, Sim};
use samebits::{Device, DeviceOptions, self_test};
use samebits_checkpoint::Checkpoint;
use samebits_cuda::{Cuda, Numerics};
use samebits_engine::{Engine, EngineConfig, LogitsRow, Runner, Wanted};
use samebits_runner::{MemoryPlan, ModelRunner, RunnerConfig};

fn cuda() -> Cuda {
    Cuda::builder().memory_bytes(512 << 20).open().unwrap()
}

fn on_cuda(checkpoint: &Checkpoint, plan: &MemoryPlan) -> Box<dyn Runner> {
    let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
    Box::new(ModelRunner::load(cuda(), config, weights, &small(), plan, &|_| {}).unwrap())
}

/// Chunks, and single tokens between them that are run, recorded and done again.
fn check(name: &str, lengths: &[usize]) {
    let checkpoint = tiny(name);
    let tokens = &prompt()[..lengths.iter().sum()];
    check_chunks(&mut *on_cuda(&checkpoint, &plan(&checkpoint)), &checkpoint, name, tokens, lengths);
}

#[test]
fn every_architecture() {
    let sim = Sim::alone().unwrap();
    for name in NAMES {
        // Past a tile of attention and every window in one of them.
        let first = if name == "gemma3" { 130 } else { 20 };
        sim.faults("");
        check(name, &[first, 1, 1, 1, 1, 5]);
        assert_eq!((sim.calls("cuGraphInstantiateWithFlags"), sim.calls("cuGraphLaunch")), (1, 3), "{name}");
    }
}

#[test]
fn every_block_format() {
    let _sim = Sim::alone().unwrap();
    for name in GGUF {
        check(name, &[17, 1, 1, 1, 5]);
    }
}

/// Two steps of 16 tokens and some of one, run, recorded and done again: a real model in mixed block formats.
#[test]
fn smollm2() {
    let sim = Sim::alone().unwrap();
    // What is read and written is checked in the other tests.
    sim.checks(Checks { registers: false, shared: false, global: false, blocks: false });
    let found = samebits_checkpoint::resolve("smollm2").expect("the model can be had from no source");
    let checkpoint = Checkpoint::open(found.path).unwrap();
    let tokens: Vec<u32> = (0..37).map(|i| (i * i * 31 + 17) % 40_000).collect();
    let mut runner = on_cuda(&checkpoint, &plan(&checkpoint));
    check_chunks(&mut *runner, &checkpoint, "SmolLM2", &tokens, &[16, 16, 1, 1, 1, 2]);
}

/// Rows of which the host gets the greatest alone, beside one that it gets whole, with as many of each as are wanted of any.
#[test]
fn the_greatest_logits() {
    let _sim = Sim::alone().unwrap();
    let checkpoint = tiny("llama3");
    let (plan, tokens) = (plan(&checkpoint), prompt());
    let wanted = [Wanted::Leading(1), Wanted::Row, Wanted::Leading(5)];
    let answer = |mut runner: Box<dyn Runner>, wanted: [Wanted; 3]| {
        let pages: Vec<_> = (0..3).map(|i| pages(&*runner, 5, i, 3)).collect();
        let parts: Vec<_> =
            pages.iter().zip([1, 3, 5]).map(|(pages, n)| (&pages[..], 0, &tokens[..n])).collect();
        let mut batch = batch(&parts);
        batch.seqs.iter_mut().zip(wanted).for_each(|(seq, wanted)| seq.logits = wanted);
        runner.submit(&batch).unwrap();
        runner.wait().unwrap()
    };
    let expected = answer(on_cpu(&checkpoint, &plan), [Wanted::Row; 3]);
    let mut found = answer(on_cuda(&checkpoint, &plan), wanted);
    assert_eq!((found.rows(), found.row(1)), (3, expected.row(1)));
    for row in [0, 2] {
        let mut sorted: Vec<_> = (0..).zip(expected.row(row).iter().copied()).collect();
        sorted.sort_by(|a: &(u32, f32), b| b.1.total_cmp(&a.1));
        assert_eq!(found.row_mut(row), LogitsRow::Leading(&sorted[..5]));
    }
}

#[test]
fn pages_of_a_common_beginning_are_shared() {
    let _sim = Sim::alone().unwrap();
    for name in ["llama3", "gguf/wide.mixed256.gguf"] {
        let checkpoint = tiny(name);
        check_shared_pages(&mut *on_cuda(&checkpoint, &plan(&checkpoint)), &checkpoint, name);
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

/// Requests that are served again find what their prompts begin with, and give the same tokens.
#[test]
fn beginnings_that_are_cached() {
    let sim = Sim::alone().unwrap();
    sim.checks(Checks { registers: false, shared: false, global: false, blocks: false });
    let checkpoint = tiny("qwen3");
    let plan = plan(&checkpoint);
    let mut without = Engine::new(
        on_cpu(&checkpoint, &plan),
        Arc::new(Letters),
        EngineConfig { prefix_caching: false, ..EngineConfig::default() },
    )
    .unwrap();
    let (expected, _) = serve_on(&mut without);
    let mut engine = engine(on_cuda(&checkpoint, &plan));
    for hits in [false, true] {
        let before = engine.stats().prefix_hit_tokens;
        let (found, errors) = serve_on(&mut engine);
        assert_eq!((found, errors.len()), (expected.clone(), 0));
        assert_eq!(engine.stats().prefix_hit_tokens > before, hits);
    }
    assert_eq!(without.stats().prefix_hit_tokens, 0);
    assert!(sim.calls("cuGraphLaunch") > 0);
}

/// Prompts of more tokens together than are computed exactly, by a model of floats and by one in mixed block formats.
#[test]
fn fast_numerics_are_close() {
    let sim = Sim::alone().unwrap();
    let config = RunnerConfig { max_tokens_per_step: 300, ..small() };
    for (name, sequences, tokens) in [("qwen3", 1, 70), ("gguf/llama.mixed32.gguf", 2, 140)] {
        let checkpoint = tiny(name);
        let plan = MemoryPlan::new(&checkpoint.config, &*checkpoint.weights, &config, None).unwrap();
        let logits = |cuda: Cuda| {
            let (of_model, weights) = (&checkpoint.config, &*checkpoint.weights);
            let mut runner = ModelRunner::load(cuda, of_model, weights, &config, &plan, &|_| {}).unwrap();
            let pages: Vec<_> = (0..sequences).map(|i| pages(&runner, tokens, i, sequences)).collect();
            let prompt = prompt();
            let parts: Vec<_> = pages.iter().map(|pages| (&pages[..], 0, &prompt[..tokens])).collect();
            step(&mut runner, &batch(&parts)).remove(0)
        };
        let builder = Cuda::builder().memory_bytes(512 << 20).numerics(Numerics::Fast);
        let (fast, exact) = (builder.cublaslt(ptx_sim::library().unwrap()).open().unwrap(), cuda());
        let before = sim.calls("cublasLtMatmul");
        let (found, expected) = (logits(fast), logits(exact));
        assert!(sim.calls("cublasLtMatmul") > before, "{name} was computed exactly");
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
        let relative = (error / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
        // Products of BF16 are exact either way, and their sums differ in last bits alone, which the next rounding to BF16 may hide.
        // Blocks: what docs/numerics.md has for activations of 8 bits, which one of the two rounds them to.
        let bound = if name == "qwen3" { 1e-3 } else { 0.06 };
        assert!(relative < bound, "{name}: {relative}");
    }
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
    check("llama3", &[5]);
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
