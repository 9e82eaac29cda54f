//! SmolLM2-135M-Instruct, a real model in mixed block formats. It is fetched once and cached outside of the tree.

mod common;

use std::{fs, sync::OnceLock, time::Instant};

use common::{
    batch, fixtures, pages, runner_with, step,
    traced::{Bucket, Replay, record},
};
use samebits_candle::{Candle, Device as CandleDevice};
use samebits_checkpoint::{
    Checkpoint, TokenizerSource,
    tokenizer::{GgufVocab, Tokenizer},
};
use samebits_cpu::{Cpu, Host, Isa};
use samebits_engine::{Batch, BatchSeq, PageId, Runner, Wanted};
use samebits_models::Model;
use samebits_nn::{Loader, Step};
use samebits_runner::{RunnerConfig, step_inputs};
use samebits_tensor::{Backend, Tensor};

fn smollm2() -> &'static Checkpoint {
    static MODEL: OnceLock<Checkpoint> = OnceLock::new();
    MODEL.get_or_init(|| {
        let found = samebits_checkpoint::resolve("smollm2").expect("the model can be had from no source");
        Checkpoint::open(found.path).unwrap()
    })
}

fn config() -> RunnerConfig {
    RunnerConfig {
        max_context: 256,
        max_tokens_per_step: 256,
        max_seqs_per_step: 8,
        ..RunnerConfig::default()
    }
}

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::builder().isa(isa).threads(threads).build().unwrap()
}

/// Token ids of the reference text.
fn text() -> Vec<u32> {
    let TokenizerSource::Gguf(gguf) = &smollm2().tokenizer else { panic!("not a GGUF file") };
    let tokenizer = Tokenizer::from_gguf(GgufVocab::from_metadata(&gguf.metadata).unwrap()).unwrap();
    let text = fs::read_to_string(fixtures().join("text/alice.txt")).unwrap();
    tokenizer.encode(&text, false, false).unwrap()
}

/// Digests of the logits after `end` tokens for each of `ends`, computed in chunks that end there.
fn digests(runner: &mut dyn Runner, tokens: &[u32], ends: &[usize]) -> Vec<u64> {
    let table = pages(runner, tokens.len(), 1, 5);
    let starts = [0].iter().chain(ends);
    let chunks = starts.zip(ends).map(|(&start, &end)| (start, end));
    chunks
        .map(|(start, end)| digest(&step(runner, &batch(&[(&table, start, &tokens[start..end])]))[0]))
        .collect()
}

/// FNV-1a over the bits.
fn digest(logits: &[f32]) -> u64 {
    let bytes = logits.iter().flat_map(|logit| logit.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The expected digest after 24 and after 130 tokens: best kernels, one piece each.
fn expected() -> [u64; 2] {
    static EXPECTED: OnceLock<[u64; 2]> = OnceLock::new();
    *EXPECTED.get_or_init(|| {
        let tokens = text();
        let mut runner = runner_with(cpu(Isa::best(), 2), smollm2(), &config());
        let short = digests(&mut runner, &tokens, &[24])[0];
        [short, digests(&mut runner, &tokens, &[130])[0]]
    })
}

#[test]
fn every_instruction_set_and_thread_count() {
    let tokens = text();
    for isa in Isa::available() {
        for threads in [1, 2] {
            let start = Instant::now();
            let mut runner = runner_with(cpu(isa, threads), smollm2(), &config());
            assert_eq!(digests(&mut runner, &tokens, &[24, 130]), expected(), "{} x {threads}", isa.name());
            println!("{} x {threads}: {:.1} s", isa.name(), start.elapsed().as_secs_f64());
        }
    }
}

#[test]
fn chunks_of_1_16_and_100() {
    let tokens = text();
    let mut runner = runner_with(cpu(Isa::best(), 2), smollm2(), &config());
    for chunk in [1, 16, 100] {
        let mut ends: Vec<usize> = (chunk..130).step_by(chunk).chain([24, 130]).collect();
        ends.sort_unstable();
        ends.dedup();
        let found = digests(&mut runner, &tokens, &ends);
        let at = |end: usize| found[ends.iter().position(|&e| e == end).unwrap()];
        assert_eq!([at(24), at(130)], expected(), "chunks of {chunk}");
    }
}

#[test]
fn flush_to_zero() {
    let cpu = cpu(Isa::best(), 2);
    common::flushing(&cpu, || {
        let mut runner = runner_with(cpu.clone(), smollm2(), &config());
        assert_eq!(digests(&mut runner, &text(), &[24, 130]), expected());
    });
}

#[test]
fn after_a_preemption() {
    let tokens = text();
    let mut runner = runner_with(cpu(Isa::best(), 2), smollm2(), &config());
    // The sequence loses its pages to another after 17 tokens, and is recomputed in other ones.
    digests(&mut runner, &tokens, &[17]);
    let table = pages(&runner, 32, 1, 5);
    step(&mut runner, &batch(&[(&table, 0, &tokens[500..532])]));
    assert_eq!(digests(&mut runner, &tokens, &[24]), expected()[..1]);
}

#[test]
fn seven_strangers() {
    let tokens = text();
    let mut runner = runner_with(cpu(Isa::best(), 2), smollm2(), &config());
    let table = |i: usize| vec![PageId(i as u32)];
    let tables: Vec<_> = (0..8).map(table).collect();
    let mut parts: Vec<(&[PageId], usize, &[u32])> =
        (1..8).map(|i| (&*tables[i], 0, &tokens[40 * i..40 * i + 3 * i])).collect();
    parts.insert(3, (&*tables[0], 0, &tokens[..24]));
    assert_eq!(digest(&step(&mut runner, &batch(&parts))[3]), expected()[0]);
}

#[test]
fn candle_and_plain_primitives() {
    let tokens = text();
    let mut candle = runner_with(Candle::exact(CandleDevice::Cpu), smollm2(), &config());
    assert_eq!(digests(&mut candle, &tokens, &[24]), expected()[..1], "candle");
    let mut host = runner_with(Host, smollm2(), &config());
    assert_eq!(digests(&mut host, &tokens, &[24]), expected()[..1], "reference");
}

#[test]
fn a_recorded_graph() {
    let (tokens, bucket) = (text(), Bucket { tokens: 24, pages: 2, page_size: 32 });
    let graph = record(smollm2(), bucket);
    let table = [PageId(1), PageId(0)];
    let mut replay = Replay::new(cpu(Isa::best(), 2), &graph, smollm2(), bucket);
    let logits = replay.step(&batch(&[(&table, 0, &tokens[..24])]));
    assert_eq!(digest(&logits), expected()[0]);
}

/// Perplexity over the second half of windows of 512 tokens, as llama.cpp's tool computes it, and the likeliest token
/// after each of those positions.
fn perplexity<B: Backend>(backend: B) -> (f64, Vec<usize>) {
    let checkpoint = smollm2();
    let loader = Loader::new(&backend, &*checkpoint.weights, &checkpoint.config, &|_| {});
    let model = Model::load(&loader, 512).unwrap();
    let mut caches = model.caches(&backend, 16, 32).unwrap();
    let (mut surprise, mut likeliest) = (0.0, Vec::new());
    for window in text().chunks_exact(512) {
        let seq = BatchSeq { tokens: 0..512, pages: (0..16).map(PageId).collect(), logits: Wanted::Row };
        let batch = Batch { tokens: window.to_vec(), positions: (0..512).collect(), seqs: vec![seq] };
        let rows: Vec<i32> = (256..511).collect();
        let logits = Tensor::of(&backend, [rows.len()], &rows).unwrap();
        let step = Step { logits, ..step_inputs(&backend, &batch, 32).unwrap() };
        let logits: Vec<f32> = model.forward(&step, &mut caches).unwrap().to_vec().unwrap();
        for (row, &next) in logits.chunks_exact(checkpoint.config.vocab_size).zip(&window[257..]) {
            let greatest = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|&logit| f64::from(logit - greatest).exp()).sum();
            surprise += sum.ln() - f64::from(row[next as usize] - greatest);
            likeliest.push(row.iter().position(|&logit| logit == greatest).unwrap());
        }
    }
    ((surprise / likeliest.len() as f64).exp(), likeliest)
}

/// The contract's roundings cost less than 1% of perplexity against plain f32 over the same weights.
#[test]
fn quality_is_kept() {
    let (exact, exact_likeliest) = perplexity(Cpu::new().unwrap());
    let (float, float_likeliest) = perplexity(Candle::float(CandleDevice::Cpu));
    let agree = exact_likeliest.iter().zip(&float_likeliest).filter(|(a, b)| a == b).count();
    let agreement = agree as f64 / exact_likeliest.len() as f64;
    println!("perplexity: exact {exact:.4}, f32 {float:.4}; top-1 agreement {:.1}%", 100.0 * agreement);
    assert!((exact / float - 1.0).abs() < 0.01, "exact {exact}, f32 {float}");
    assert!(agreement > 0.9, "{agreement}");
}
