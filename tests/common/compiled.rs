//! Whole models on devices that compile ahead, beside the CPU.

use std::sync::Arc;

use samebits_checkpoint::Checkpoint;
use samebits_cpu::Cpu;
use samebits_engine::{Engine, EngineConfig, RequestError, Runner, Stats};
use samebits_hlo::Device;
use samebits_runner::{CompiledRunner, MemoryPlan, ModelRunner, RunnerConfig};

use super::{Letters, Outputs, batch, logits_by_token, pages, prompt, runner_config, serve_together, step};

pub(crate) fn cpu() -> Cpu {
    Cpu::builder().threads(2).build().unwrap()
}

/// Steps small enough that few buckets are compiled.
pub(crate) fn small() -> RunnerConfig {
    RunnerConfig { max_tokens_per_step: 16, max_seqs_per_step: 4, ..runner_config() }
}

pub(crate) fn plan(checkpoint: &Checkpoint) -> MemoryPlan {
    MemoryPlan::new(&checkpoint.config, &*checkpoint.weights, &small(), None).unwrap()
}

/// Pages for hardly three of the four requests of [`serve`].
pub(crate) fn crowded(checkpoint: &Checkpoint) -> MemoryPlan {
    MemoryPlan { pages: 8, max_context: 96, ..plan(checkpoint) }
}

pub(crate) fn compiled<D: Device>(
    device: D,
    checkpoint: &Checkpoint,
    plan: &MemoryPlan,
) -> CompiledRunner<D> {
    let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
    CompiledRunner::load(device, config, weights, &small(), plan, &|_| {}).unwrap()
}

pub(crate) fn on<D: Device>(device: D, checkpoint: &Checkpoint, plan: &MemoryPlan) -> Box<dyn Runner> {
    Box::new(compiled(device, checkpoint, plan))
}

pub(crate) fn on_cpu(checkpoint: &Checkpoint, plan: &MemoryPlan) -> Box<dyn Runner> {
    let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
    Box::new(ModelRunner::load(cpu(), config, weights, &small(), plan, &|_| {}).unwrap())
}

/// Chunks that fill a bucket and such that are padded have the bits of logits that the CPU has, token by token.
pub(crate) fn check_chunks(
    runner: &mut dyn Runner,
    checkpoint: &Checkpoint,
    name: &str,
    tokens: &[u32],
    lengths: &[usize],
) {
    let expected = logits_by_token(&mut super::runner(cpu(), checkpoint), tokens);
    let table = pages(runner, tokens.len(), 3, 7);
    let mut start = 0;
    for &length in lengths {
        let end = start + length;
        let found = step(runner, &batch(&[(&table, start, &tokens[start..end])]));
        assert_same(&format!("{name}, {start} to {end}"), &expected[end - 1], &found[0]);
        start = end;
    }
    assert_eq!(start, tokens.len());
}

/// Two sequences of one beginning, whose pages are shared, go on together as if each had computed all of its own.
pub(crate) fn check_shared_pages(runner: &mut dyn Runner, checkpoint: &Checkpoint, name: &str) {
    let prompt = prompt();
    let (common, mine, yours) = (&prompt[..32], &prompt[40..45], &prompt[60..63]);
    let table = pages(runner, 48, 3, 7);
    let other = [table[0], table[1], pages(runner, 16, 5, 1)[0]];
    for start in [0, 16] {
        step(runner, &batch(&[(&table, start, &common[start..start + 16])]));
    }
    let found = step(runner, &batch(&[(&table, 32, mine), (&other, 32, yours)]));
    for (found, rest) in found.iter().zip([mine, yours]) {
        let expected = logits_by_token(&mut super::runner(cpu(), checkpoint), &[common, rest].concat());
        assert_same(name, &expected[expected.len() - 1], found);
    }
}

pub(crate) fn assert_same(what: &str, expected: &[f32], found: &[f32]) {
    let differs = expected.iter().zip(found).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!((expected.len(), None), (found.len(), differs), "{what}");
}

pub(crate) fn engine(runner: Box<dyn Runner>) -> Engine {
    Engine::new(runner, Arc::new(Letters), EngineConfig::default()).unwrap()
}

/// What four requests that are served together give, and the errors of those that failed.
pub(crate) fn serve(runner: Box<dyn Runner>) -> (Outputs, Vec<RequestError>, Stats) {
    let mut engine = engine(runner);
    let (outputs, errors) = serve_on(&mut engine);
    (outputs, errors, engine.stats())
}

/// The same, on an engine that may have served before.
pub(crate) fn serve_on(engine: &mut Engine) -> (Outputs, Vec<RequestError>) {
    serve_together(engine, 4, 24)
}
