//! The engine without a thread, for a serving stack with a loop of its own: plan the memory, load a runner, add
//! requests, step. `cargo run --release -p samebits --example 03_engine_loop -- MODEL.gguf`.

use std::sync::Arc;

use samebits::{
    MemoryPlan, RunnerConfig,
    checkpoint::{Checkpoint, resolve},
    engine::{Engine, EngineConfig, Event, Request, RequestId, SamplingParams, TokenId, Vocabulary},
    runner::ModelRunner,
};
use samebits_cpu::Cpu;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "smollm2".into());
    let checkpoint = Checkpoint::open(resolve(&name)?.path)?;
    let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
    let serving = RunnerConfig { max_context: 512, ..RunnerConfig::default() };
    let plan = MemoryPlan::new(config, weights, &serving, samebits::available_memory())?;
    let runner = ModelRunner::load(Cpu::new()?, config, weights, &serving, &plan, &|_| {})?;
    let mut engine = Engine::new(Box::new(runner), Arc::new(NoText), EngineConfig::default())?;
    for id in 0..4 {
        let request = Request::new(RequestId(id), vec![1, 2, 3 + id as TokenId], 8);
        engine.add(Request { sampling: SamplingParams::greedy(), ..request })?;
    }
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { id, token, .. } => println!("request {}: token {token}", id.0),
                end => println!("request {}: {:?}", end.id().0, end.finish_reason()),
            }
        }
    }
    Ok(())
}

/// A vocabulary for callers that want token ids alone.
struct NoText;

impl Vocabulary for NoText {
    fn token_bytes(&self, _: TokenId) -> &[u8] {
        &[]
    }

    fn is_special(&self, _: TokenId) -> bool {
        false
    }

    fn eos(&self) -> &[TokenId] {
        &[]
    }
}
