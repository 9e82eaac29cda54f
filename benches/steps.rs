//! Whole steps of SmolLM2 on the CPU: prefill by length, decode by batch. `cargo bench -p samebits --bench steps`.
//!
//! Throughput is in tokens. For the machine's limits and the share of them that single kernels reach, see
//! `cargo bench -p samebits-cpu`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use samebits::{
    MemoryPlan, RunnerConfig,
    checkpoint::{Checkpoint, resolve},
    engine::{Batch, BatchSeq, PageId, Runner, Wanted},
    runner::ModelRunner,
};
use samebits_cpu::Cpu;

const CONTEXT: usize = 1024;

fn runner() -> ModelRunner<Cpu> {
    let path = resolve("smollm2").expect("the model can be had from no source").path;
    let checkpoint = Checkpoint::open(path).expect("a model");
    let (config, weights) = (&checkpoint.config, &*checkpoint.weights);
    let serving = RunnerConfig {
        max_context: CONTEXT,
        max_tokens_per_step: CONTEXT,
        kv_cache_memory_bytes: Some(1 << 29),
        ..RunnerConfig::default()
    };
    let plan = MemoryPlan::new(config, weights, &serving, None).expect("a plan");
    ModelRunner::load(Cpu::new().expect("a CPU"), config, weights, &serving, &plan, &|_| {})
        .expect("a runner")
}

/// `sequences` sequences, each computing `tokens` tokens after `past` tokens.
fn batch(runner: &dyn Runner, sequences: usize, past: usize, tokens: usize) -> Batch {
    let limits = runner.limits();
    let pages_each = (past + tokens).div_ceil(limits.page_size);
    let mut batch = Batch::default();
    for sequence in 0..sequences {
        let first = batch.tokens.len();
        batch.tokens.extend((0..tokens).map(|i| ((i * 37 + sequence * 101) % 40_000) as u32));
        batch.positions.extend((past..past + tokens).map(|position| position as u32));
        let pages = (0..pages_each).map(|i| PageId((sequence * pages_each + i) as u32)).collect();
        batch.seqs.push(BatchSeq { tokens: first..batch.tokens.len(), pages, logits: Wanted::Row });
    }
    batch
}

fn step(runner: &mut dyn Runner, batch: &Batch) {
    runner.submit(batch).expect("a step");
    black_box(runner.wait().expect("logits"));
}

fn steps(criterion: &mut Criterion) {
    let mut runner = runner();
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for tokens in [16, 128, 512] {
        let batch = batch(&runner, 1, 0, tokens);
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(BenchmarkId::from_parameter(tokens), |b| b.iter(|| step(&mut runner, &batch)));
    }
    group.finish();
    let mut group = criterion.benchmark_group("decode after 256");
    group.sample_size(20);
    for sequences in [1, 4, 16, 32] {
        let batch = batch(&runner, sequences, 256, 1);
        group.throughput(Throughput::Elements(sequences as u64));
        group
            .bench_function(BenchmarkId::from_parameter(sequences), |b| b.iter(|| step(&mut runner, &batch)));
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
