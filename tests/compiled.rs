//! Whole models compiled ahead, through a PJRT plugin that others have built: the same tokens and the same bits of logits
//! as on the CPU, however a step is padded.

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use common::{GGUF, NAMES, batch, logits_by_token, pages, prompt, runner, runner_config, step, tiny};
use samebits_checkpoint::Checkpoint;
use samebits_cpu::Cpu;
use samebits_engine::{
    Engine, EngineConfig, Event, Request, RequestId, Runner, SamplingParams, TokenId, Vocabulary,
};
use samebits_pjrt::{Client, PjrtDevice, Plugin, testing};
use samebits_runner::{CompiledRunner, MemoryPlan, RunnerConfig};

fn client() -> Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let open = || Plugin::open(testing::cpu_plugin()).expect("a plugin").client(&[]).expect("a client");
    CLIENT.get_or_init(open).clone()
}

fn cpu() -> Cpu {
    Cpu::builder().threads(2).build().unwrap()
}

fn compiled(
    checkpoint: &Checkpoint,
    config: &RunnerConfig,
    pages: Option<usize>,
) -> CompiledRunner<PjrtDevice> {
    let device = PjrtDevice::new(client(), 0).unwrap();
    let plan = MemoryPlan::new(&checkpoint.config, &*checkpoint.weights, config, None).unwrap();
    let plan = MemoryPlan { pages: pages.unwrap_or(plan.pages), ..plan };
    CompiledRunner::load(device, &checkpoint.config, &*checkpoint.weights, config, &plan, &|_| {}).unwrap()
}

fn small() -> RunnerConfig {
    RunnerConfig { max_tokens_per_step: 16, max_seqs_per_step: 4, ..runner_config() }
}

fn assert_same(what: &str, expected: &[f32], found: &[f32]) {
    let differs = expected.iter().zip(found).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!((expected.len(), differs), (found.len(), None), "{what}");
}

/// Chunks that fill a bucket and such that are padded, beyond one tile of attention.
#[test]
fn chunks_of_every_model() {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    for name in NAMES.into_iter().chain(GGUF) {
        let checkpoint = tiny(name);
        let tokens = prompt();
        let expected = logits_by_token(&mut runner(cpu(), &checkpoint), &tokens);
        let mut runner = compiled(&checkpoint, &small(), None);
        let table = pages(&runner, tokens.len(), 3, 7);
        let mut start = 0;
        for length in [1, 16, 16, 16, 16, 16, 16, 16, 13, 16, 8] {
            let end = start + length;
            let found = step(&mut runner, &batch(&[(&table, start, &tokens[start..end])]));
            assert_same(&format!("{name}, {start} to {end}"), &expected[end - 1], &found[0]);
            start = end;
        }
        assert_eq!(start, tokens.len());
    }
}
