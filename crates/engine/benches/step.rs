//! What the engine itself costs: a step on a runner that is free, and a token from a row of logits.

use std::{hint::black_box, sync::Arc};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use samebits_engine::{
    Batch, Engine, EngineConfig, Limits, Logits, Request, RequestId, Runner, RunnerError, Sampler,
    SamplingParams, Scratch, TokenId, Vocabulary, random_bits,
};

criterion_group!(benches, step, prefix, sampler);
criterion_main!(benches);

/// Returns constant logits at once; with 16 tokens, what is measured is the engine and not the copy of logits.
struct FreeRunner {
    limits: Limits,
    rows: usize,
}

const VOCAB: usize = 16;

impl Runner for FreeRunner {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        self.rows = batch.logit_rows();
        Ok(())
    }

    fn wait(&mut self) -> Result<Logits, RunnerError> {
        Logits::new(VOCAB, vec![0.5; self.rows * VOCAB])
    }
}

struct Words;

impl Vocabulary for Words {
    fn token_bytes(&self, _: TokenId) -> &[u8] {
        b" word"
    }
    fn is_special(&self, _: TokenId) -> bool {
        false
    }
    fn eos(&self) -> &[TokenId] {
        &[]
    }
}

fn engine(sequences: usize) -> Engine {
    let limits = Limits {
        pages: 256 * 256,
        page_size: 16,
        max_tokens_per_step: 8192,
        max_seqs_per_step: 256,
        max_context: 4096,
        vocab_size: VOCAB,
    };
    let runner = Box::new(FreeRunner { limits, rows: 0 });
    let mut engine = Engine::new(runner, Arc::new(Words), EngineConfig::default()).unwrap();
    refill(&mut engine, sequences);
    engine
}

/// Sequences of 1,000 prompt tokens and 2,000 to come, their prompts computed.
fn refill(engine: &mut Engine, sequences: usize) {
    for id in 0..sequences as u64 {
        let mut request = Request::new(RequestId(id), vec![3; 1000], 2000);
        request.sampling = SamplingParams::greedy();
        request.stop.strings = vec!["\n\nUser:".into()];
        engine.add(request).unwrap();
    }
    while engine.stats().waiting > 0 {
        engine.step().unwrap();
    }
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    for sequences in [1, 32, 256] {
        let mut engine = engine(sequences);
        group.bench_function(BenchmarkId::from_parameter(sequences), |bencher| {
            bencher.iter(|| {
                if engine.is_idle() {
                    refill(&mut engine, sequences);
                }
                engine.step().unwrap()
            });
        });
    }
}

/// A request for one token after a long prompt, whose pages are all known but the last; or none are, since each is salted anew.
fn prefix(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prompt_of_4095_tokens");
    for name in ["known", "new"] {
        let mut engine = engine(1);
        engine.cancel(RequestId(0));
        let mut number = 0u64;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                number += 1;
                let mut request = Request::new(RequestId(number), (0..4095).map(|i| i % 13).collect(), 1);
                request.cache_salt = if name == "new" { number.to_string() } else { String::new() };
                engine.add(request).unwrap();
                while !engine.is_idle() {
                    black_box(engine.step().unwrap());
                }
            });
        });
    }
}

/// Logits shaped like a model's: a bell about 12 wide, one in 5,000 well above it.
fn logits(vocab: usize) -> Vec<f32> {
    let bell = |id: usize| -> f32 {
        let part = |salt: u64| (random_bits(salt, id as u64) >> 40) as f32 / 16_777_216.0 - 0.5;
        (part(1) + part(2) + part(3) + part(4)) * 5.0
    };
    (0..vocab).map(|id| bell(id) + if id % 4999 == 7 { 16.0 } else { 0.0 }).collect()
}

fn sampler(criterion: &mut Criterion) {
    let base = SamplingParams::default;
    let cases = [
        ("greedy", SamplingParams::greedy()),
        ("plain", base()),
        ("top_k_50", SamplingParams { top_k: 50, ..base() }),
        ("top_p_0.9", SamplingParams { top_p: 0.9, ..base() }),
        ("top_k_50_top_p_0.9", SamplingParams { top_k: 50, top_p: 0.9, ..base() }),
        ("min_p_0.05", SamplingParams { min_p: 0.05, ..base() }),
        ("greedy_logprobs_5", SamplingParams { logprobs: Some(5), ..SamplingParams::greedy() }),
    ];
    for vocab in [49_152, 151_936] {
        let mut group = criterion.benchmark_group(format!("sample_{vocab}"));
        let mut row = logits(vocab);
        for (name, params) in cases.clone() {
            let sampler = Sampler::new(params, &[]);
            let mut scratch = Scratch::default();
            let mut position = 0;
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.sample(black_box(&mut row), position, &[], &mut scratch).unwrap()
                });
            });
        }
    }
}
