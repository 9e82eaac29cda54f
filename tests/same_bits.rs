//! The promise, on tiny models of every architecture: whatever computes a token, and in whatever company, its logits
//! are the same bits.

mod common;

use std::sync::Arc;

use common::{
    GGUF, Letters, NAMES, Outputs, batch, logits_by_token, pages, prompt, runner, runner_with,
    serve_together, step, tiny,
    traced::{Bucket, Replay, record},
};
use samebits_candle::{Candle, Device as CandleDevice};
use samebits_checkpoint::Checkpoint;
use samebits_cpu::{Cpu, Host, Isa};
use samebits_engine::{Engine, EngineConfig, PageId, Runner};
use samebits_runner::{MemoryPlan, ModelRunner, RunnerConfig};

/// The portable kernels on one thread, a token at a time, alone: what everything else is compared with.
fn reference(checkpoint: &Checkpoint) -> Vec<Vec<f32>> {
    logits_by_token(&mut runner(cpu(Isa::SCALAR, 1), checkpoint), &prompt())
}

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::builder().isa(isa).threads(threads).build().unwrap()
}

/// Logits at the end of each chunk, and where the chunk ended.
fn logits_by_chunk(runner: &mut dyn Runner, tokens: &[u32], chunk: usize) -> Vec<(usize, Vec<f32>)> {
    let pages = pages(runner, tokens.len(), 3, 7);
    let starts = (0..tokens.len()).step_by(chunk);
    let ends = starts.map(|start| (start, (start + chunk).min(tokens.len())));
    ends.map(|(start, end)| (end, step(runner, &batch(&[(&pages, start, &tokens[start..end])])).remove(0)))
        .collect()
}

fn assert_same(what: &str, expected: &[f32], found: &[f32]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let differs = expected.iter().zip(found).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(token) = differs {
        panic!("{what}: logit {token} is {} and not {}", found[token], expected[token]);
    }
}

fn check_chunks(what: &str, runner: &mut dyn Runner, expected: &[Vec<f32>], chunk: usize) {
    for (end, logits) in logits_by_chunk(runner, &prompt(), chunk) {
        assert_same(&format!("{what}, chunks of {chunk}, after {end} tokens"), &expected[end - 1], &logits);
    }
}

#[test]
fn every_instruction_set_thread_count_and_chunking() {
    for name in NAMES {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        for isa in Isa::available() {
            for threads in [1, 2] {
                let what = format!("{name} on {} with {threads} threads", isa.name());
                for chunk in [1, 16, 100, 150] {
                    check_chunks(&what, &mut runner(cpu(isa, threads), &checkpoint), &expected, chunk);
                }
            }
        }
    }
}

#[test]
fn flush_to_zero() {
    for name in NAMES.into_iter().chain(GGUF) {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        for isa in Isa::available() {
            let cpu = cpu(isa, 2);
            common::flushing(&cpu, || {
                let what = format!("{name} on {} without subnormals", isa.name());
                check_chunks(&what, &mut runner(cpu.clone(), &checkpoint), &expected, 64);
            });
        }
    }
}

#[test]
fn every_page_size() {
    for name in ["llama3", "gemma3"] {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        for page_size in [1, 32, 128] {
            let config = RunnerConfig { page_size, ..common::runner_config() };
            let what = format!("{name} with pages of {page_size}");
            check_chunks(&what, &mut runner_with(cpu(Isa::best(), 2), &checkpoint, &config), &expected, 100);
        }
    }
}

#[test]
fn quantised_files_on_every_instruction_set() {
    for name in GGUF {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        for isa in Isa::available() {
            check_chunks(name, &mut runner(cpu(isa, 2), &checkpoint), &expected, 64);
        }
    }
}

#[test]
fn seven_strangers_change_nothing() {
    for name in NAMES {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        let mut runner = runner(cpu(Isa::best(), 2), &checkpoint);
        let tokens = prompt();
        let strangers: Vec<Vec<u32>> =
            (1..8).map(|i| tokens.iter().skip(i * 3).copied().rev().collect()).collect();
        let tables: Vec<_> = (0..8).map(|i| pages(&runner, 24, 4 * i, 1)).collect();
        for (start, end) in [(0, 5), (5, 6), (6, 7), (7, 20)] {
            let mut parts = vec![(&*tables[0], start, &tokens[start..end])];
            for (i, stranger) in strangers.iter().enumerate() {
                // Each stranger is at its own position, and takes its own number of tokens in a step.
                let (from, to) = (start + start % 2, (end + i % 3).min(24).max(start + start % 2 + 1));
                parts.insert(i % (parts.len() + 1), (&*tables[i + 1], from, &stranger[from..to]));
            }
            let own = parts.iter().position(|part| std::ptr::eq(part.2, &tokens[start..end])).unwrap();
            let logits = step(&mut runner, &batch(&parts));
            assert_same(&format!("{name} among strangers"), &expected[end - 1], &logits[own]);
        }
    }
}

#[test]
fn candle_and_plain_primitives() {
    for name in NAMES.into_iter().chain(GGUF) {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        let what = format!("{name} on the reference");
        check_chunks(&what, &mut runner(Host, &checkpoint), &expected, 100);
        let candle = Candle::exact(CandleDevice::Cpu);
        check_chunks(&format!("{name} on candle"), &mut runner(candle, &checkpoint), &expected, 100);
    }
}

/// The graph is recorded for more context than the prompt needs, which must not matter.
#[test]
fn a_recorded_graph() {
    let bucket = Bucket { tokens: 50, pages: 12, page_size: 16 };
    for name in NAMES.into_iter().chain(GGUF) {
        let checkpoint = tiny(name);
        let expected = reference(&checkpoint);
        let graph = record(&checkpoint, bucket);
        let tokens = prompt();
        let table: Vec<PageId> = (0..bucket.pages as u32).rev().map(PageId).collect();
        let mut replay = Replay::new(cpu(Isa::best(), 2), &graph, &checkpoint, bucket);
        for start in (0..tokens.len()).step_by(bucket.tokens) {
            let end = start + bucket.tokens;
            let logits = replay.step(&batch(&[(&table, start, &tokens[start..end])]));
            assert_same(&format!("{name} replayed, after {end}"), &expected[end - 1], &logits);
        }
    }
}

/// Logits that the engine's log-probabilities show, with pages for all requests and with pages for hardly two.
#[test]
fn preemption_and_recomputation() {
    for name in ["llama3", "gemma3"] {
        let checkpoint = tiny(name);
        let (calm, none) = serve(&checkpoint, 64);
        let (crowded, preemptions) = serve(&checkpoint, 9);
        assert_eq!(none, 0, "{name}");
        assert!(preemptions > 0, "{name}");
        assert_eq!(calm, crowded, "{name}");
    }
}

/// Tokens and log-probabilities (as bits) of six requests served together, and how often one was preempted.
fn serve(checkpoint: &Checkpoint, pages: usize) -> (Outputs, u64) {
    let config = RunnerConfig { max_tokens_per_step: 24, max_context: 96, ..common::runner_config() };
    let plan = MemoryPlan::new(&checkpoint.config, &*checkpoint.weights, &config, None).unwrap();
    let plan = MemoryPlan { pages, ..plan };
    let weights = &*checkpoint.weights;
    let runner = ModelRunner::load(cpu(Isa::best(), 2), &checkpoint.config, weights, &config, &plan, &|_| {});
    let engine = Engine::new(Box::new(runner.unwrap()), Arc::new(Letters), EngineConfig::default());
    let mut engine = engine.unwrap();
    let (outputs, errors) = serve_together(&mut engine, 6, 40);
    assert!(errors.is_empty(), "{errors:?}");
    (outputs, engine.stats().preemptions)
}

#[test]
fn both_kinds_of_file() {
    // What GGUF has no key for (Mistral's window, Gemma 2's scale) makes another model of these two.
    for (name, gguf) in [
        ("llama", "gguf/llama.F16.gguf"),
        ("llama3", "gguf/llama3.BF16.gguf"),
        ("qwen2", "gguf/qwen2.F32.gguf"),
        ("qwen3", "gguf/qwen3.BF16.gguf"),
        ("qwen3_moe", "gguf/qwen3_moe.BF16.gguf"),
        ("mixtral", "gguf/mixtral.BF16.gguf"),
        ("olmoe", "gguf/olmoe.BF16.gguf"),
        ("gemma3", "gguf/gemma3.BF16.gguf"),
    ] {
        let (from_gguf, from_safetensors) = (tiny(gguf), tiny(name));
        let same_format =
            from_gguf.formats().unwrap()[0].format == from_safetensors.formats().unwrap()[0].format;
        let expected = reference(&from_safetensors);
        let found = reference(&from_gguf);
        for (position, (a, b)) in expected.iter().zip(&found).enumerate() {
            if same_format {
                assert_same(&format!("{gguf} at {position}"), a, b);
            } else {
                // Activations are rounded to the weights' type, so the types differ as roundings do.
                let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(largest < 0.5, "{gguf} at {position}: {largest}");
            }
        }
    }
}
