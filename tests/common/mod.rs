//! What the tests of whole models share.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod compiled;
pub(crate) mod traced;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use samebits_checkpoint::Checkpoint;
use samebits_cpu::Cpu;
use samebits_engine::{
    Batch, BatchSeq, Engine, Event, PageId, Request, RequestError, RequestId, Runner, SamplingParams,
    Vocabulary, Wanted,
};
use samebits_kernels::cpu::flush_subnormals;
use samebits_runner::{MemoryPlan, ModelRunner, RunnerConfig};
use samebits_tensor::Backend;

/// The folder of fixtures, from whichever of the workspace's packages.
pub(crate) fn fixtures() -> PathBuf {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find_map(|folder| Some(folder.join("tests/fixtures")).filter(|it| it.is_dir())).unwrap()
}

/// A tiny model: a directory, or `gguf/NAME.TYPE.gguf`.
pub(crate) fn tiny(name: &str) -> Checkpoint {
    Checkpoint::open(fixtures().join("models").join(name)).unwrap()
}

/// Tiny models in Hugging Face's layout.
pub(crate) const NAMES: [&str; 10] =
    ["llama", "llama3", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "olmoe", "gemma2", "gemma3"];

/// Quantised ones, which hold every block format between them.
pub(crate) const GGUF: [&str; 6] = [
    "gguf/llama.Q8_0.gguf",
    "gguf/llama.Q4_0.gguf",
    "gguf/llama.mixed32.gguf",
    "gguf/wide.mixed256.gguf",
    "gguf/mixtral.mixed32.gguf",
    "gguf/wide_moe.mixed256.gguf",
];

/// 150 tokens: longer than every window, and than a tile of attention.
pub(crate) fn prompt() -> Vec<u32> {
    (0..150u32).map(|i| (i * i * 7 + i * 13 + 5) % 300).collect()
}

/// How the tests serve: pages small enough that a sequence has many.
pub(crate) fn runner_config() -> RunnerConfig {
    RunnerConfig {
        max_context: 256,
        page_size: 16,
        max_tokens_per_step: 256,
        max_seqs_per_step: 16,
        kv_cache_memory_bytes: None,
    }
}

/// A runner of `checkpoint` on `backend`.
pub(crate) fn runner<B: Backend>(backend: B, checkpoint: &Checkpoint) -> ModelRunner<B> {
    runner_with(backend, checkpoint, &runner_config())
}

/// A runner with another configuration.
pub(crate) fn runner_with<B: Backend>(
    backend: B,
    checkpoint: &Checkpoint,
    config: &RunnerConfig,
) -> ModelRunner<B> {
    let plan = MemoryPlan::new(&checkpoint.config, &*checkpoint.weights, config, None).unwrap();
    ModelRunner::load(backend, &checkpoint.config, &*checkpoint.weights, config, &plan, &|_| {}).unwrap()
}

/// One step: logits `[vocab_size]` of the last token of each sequence.
pub(crate) fn step(runner: &mut dyn Runner, batch: &Batch) -> Vec<Vec<f32>> {
    runner.submit(batch).unwrap();
    let logits = runner.wait().unwrap();
    (0..logits.rows()).map(|row| logits.row(row).to_vec()).collect()
}

/// A batch of parts of sequences: block table, first position, tokens.
pub(crate) fn batch(parts: &[(&[PageId], usize, &[u32])]) -> Batch {
    let mut batch = Batch::default();
    for &(pages, start, tokens) in parts {
        let first = batch.tokens.len();
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend((start..start + tokens.len()).map(|position| position as u32));
        let tokens = first..batch.tokens.len();
        batch.seqs.push(BatchSeq { tokens, pages: pages.to_vec(), logits: Wanted::Row });
    }
    batch
}

/// Pages for `tokens` tokens, scattered: every `stride`th page from `first`.
pub(crate) fn pages(runner: &dyn Runner, tokens: usize, first: usize, stride: usize) -> Vec<PageId> {
    let limits = runner.limits();
    let count = tokens.div_ceil(limits.page_size);
    (0..count).map(|i| PageId(((first + i * stride) % limits.pages) as u32)).collect()
}

/// Runs `work` while the backend's threads, the caller's among them, flush subnormals to zero and take them as zero.
pub(crate) fn flushing(cpu: &Cpu, work: impl FnOnce()) {
    let switch = |on| {
        flush_subnormals(on);
        cpu.on_every_thread(|| flush_subnormals(on));
    };
    switch(true);
    work();
    switch(false);
}

/// Logits after every token of `tokens`, one token a step.
pub(crate) fn logits_by_token(runner: &mut dyn Runner, tokens: &[u32]) -> Vec<Vec<f32>> {
    let pages = pages(runner, tokens.len(), 0, 1);
    (0..tokens.len()).map(|i| step(runner, &batch(&[(&pages, i, &tokens[i..i + 1])])).remove(0)).collect()
}

/// Tokens and log-probabilities (as bits) by request.
pub(crate) type Outputs = BTreeMap<RequestId, Vec<(u32, u32)>>;

/// What so many requests for so many tokens give that are served together, and the errors of those that failed.
pub(crate) fn serve_together(
    engine: &mut Engine,
    requests: u64,
    tokens: usize,
) -> (Outputs, Vec<RequestError>) {
    for i in 0..requests {
        let prompt = prompt()[i as usize * 5..][..20 + i as usize].to_vec();
        let mut request = Request::new(RequestId(i), prompt, tokens);
        request.sampling = SamplingParams { seed: i, logprobs: Some(0), ..SamplingParams::default() };
        engine.add(request).unwrap();
    }
    let (mut outputs, mut errors) = (Outputs::new(), Vec::new());
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token, logprobs, .. } => {
                    outputs.entry(id).or_default().push((token, logprobs.unwrap().chosen.to_bits()));
                }
                Event::Finished { .. } => {}
                Event::Failed { error, .. } => errors.push(error),
            }
        }
        engine.check_invariants().unwrap();
    }
    (outputs, errors)
}

/// A vocabulary without an end, for which every token is a letter.
pub(crate) struct Letters;

impl Vocabulary for Letters {
    fn token_bytes(&self, _: u32) -> &[u8] {
        b"x"
    }

    fn is_special(&self, _: u32) -> bool {
        false
    }

    fn eos(&self) -> &[u32] {
        &[]
    }
}
