//! Building a tokenizer, and encoding a mebibyte of ordinary and of awkward text.
//!
//! The vocabulary is a small one of the tests, or the file of `SAMEBITS_VOCAB`, as JSON.

#![allow(missing_docs)]

#[path = "../tests/common/vocab.rs"]
mod vocab;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use samebits_checkpoint::tokenizer::{GgufVocab, Tokenizer};
use serde_json::Value;

fn file(path: &str) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_slice(&text).unwrap()
}

fn vocabulary() -> GgufVocab {
    match std::env::var("SAMEBITS_VOCAB") {
        Ok(path) => vocab::vocab(&file(&path)),
        Err(_) => vocab::vocab(&file(&fixture("smollm.json"))["vocab"]),
    }
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/tokenizer/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn build(c: &mut Criterion) {
    let vocab = vocabulary();
    c.bench_function("build", |b| {
        b.iter_batched(|| vocab.clone(), |vocab| Tokenizer::from_gguf(vocab).unwrap(), BatchSize::LargeInput);
    });
}

fn encode(c: &mut Criterion) {
    let tokenizer = Tokenizer::from_gguf(vocabulary()).unwrap();
    let corpus: Vec<String> = serde_json::from_value(file(&fixture("corpus.json"))).unwrap();
    let prose = include_str!("../src/tokenizer/gguf.rs").to_owned();
    let texts = [
        ("source code", prose),
        ("corpus", corpus.concat()),
        ("one word", "x".to_owned()),
        ("spaces", " ".to_owned()),
    ];
    let mut group = c.benchmark_group("encode");
    group.sample_size(10);
    for (name, unit) in texts {
        for bytes in [1 << 16, 1 << 20] {
            let text = unit.repeat(bytes / unit.len() + 1);
            group.throughput(Throughput::Bytes(text.len() as u64));
            group.bench_with_input(BenchmarkId::new(name, bytes), &text, |b, text| {
                b.iter(|| tokenizer.encode(text, true, false).unwrap());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, build, encode);
criterion_main!(benches);
