//! Speed of the fused operations against what the machine can do: `cargo bench -p samebits-cpu`.
//!
//! `SAMEBITS_ISA` chooses the instruction set, `SAMEBITS_BENCH_THREADS` the number of threads (1). Throughput is bytes of
//! packed weights for a matrix-vector product, and elements (two operations each) for the others.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use samebits_cpu::Cpu;
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Format, HostWeight, KvCache, KvShape, Tensor, Weight,
    testing::random_blocks,
};

const FORMATS: [Format; 15] = Format::ALL;

fn cpu() -> Cpu {
    let threads =
        std::env::var("SAMEBITS_BENCH_THREADS").map_or(1, |n| n.parse().expect("a number of threads"));
    Cpu::builder().threads(threads).build().expect("a backend")
}

fn values(cpu: &Cpu, shape: &[usize]) -> Tensor<Cpu> {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    Tensor::of(cpu, shape, &values).expect("a tensor")
}

fn weight(cpu: &Cpu, format: Format, rows: usize, cols: usize) -> Weight<Cpu> {
    let host = HostWeight {
        name: "weight".into(),
        format,
        shape: vec![rows, cols],
        bytes: random_blocks(format, rows, cols, 1).into(),
    };
    Weight::pack(cpu, &host).expect("a weight")
}

/// Reads of memory far larger than the caches, by the same number of threads.
fn bandwidth(c: &mut Criterion) {
    let threads: usize = std::env::var("SAMEBITS_BENCH_THREADS").map_or(1, |n| n.parse().expect("a number"));
    let words = vec![1u64; 64 << 20];
    let mut group = c.benchmark_group("bandwidth");
    group.throughput(Throughput::Bytes(8 * words.len() as u64));
    group.bench_function(BenchmarkId::new("read", threads), |b| {
        b.iter(|| {
            std::thread::scope(|scope| {
                let sums = words.chunks(words.len() / threads).map(|part| scope.spawn(|| sum(part)));
                sums.collect::<Vec<_>>().into_iter().map(|sum| sum.join().expect("a sum")).sum::<u64>()
            })
        });
    });
}

/// Eight independent sums, so that the loads set the pace.
fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 64];
    for words in words.as_chunks::<64>().0 {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.into_iter().fold(0, u64::wrapping_add)
}

fn matvec(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("matvec");
    for (rows, cols) in [(1536, 512), (16384, 4096)] {
        let x = values(&cpu, &[1, cols]);
        for format in FORMATS {
            let weight = weight(&cpu, format, rows, cols);
            group.throughput(Throughput::Bytes(weight.packed().bytes() as u64));
            group.bench_function(BenchmarkId::new(format.name(), format!("{rows}x{cols}")), |b| {
                b.iter(|| x.linear(black_box(&weight)).expect("a product"));
            });
        }
    }
}

fn matmul(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("matmul");
    let (m, rows, cols) = (256, 1536, 1536);
    let x = values(&cpu, &[m, cols]);
    for format in FORMATS {
        let weight = weight(&cpu, format, rows, cols);
        group.throughput(Throughput::Elements((2 * m * rows * cols) as u64));
        group.bench_function(BenchmarkId::new(format.name(), format!("{m}x{rows}x{cols}")), |b| {
            b.iter(|| x.linear(black_box(&weight)).expect("a product"));
        });
    }
}

/// SmolLM2's heads: 9 queries over 3 kv heads of 64 channels.
fn attention(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("attention");
    let (heads, context, page_size) = (9, 2048, 32);
    let shape = KvShape { pages: context / page_size, page_size, kv_heads: 3, head_dim: 64 };
    let mut cache = KvCache::new(&cpu, shape).expect("a cache");
    let kv = values(&cpu, &[context, shape.kv_heads, shape.head_dim]);
    let slots = Tensor::iota(&cpu, [context], 0).expect("slots");
    cache.store(&kv, &kv, &slots).expect("stored");
    let params = AttentionParams { scale: 0.125, window: None, soft_cap: None };
    for (name, tokens) in [("decode", 1), ("prefill", 256)] {
        let first = (context - tokens) as i32;
        let positions: Vec<i32> = (first..context as i32).collect();
        let batch = AttentionBatch {
            positions: Tensor::of(&cpu, [tokens], &positions).expect("positions"),
            sequences: Tensor::full(&cpu, [tokens], 0).expect("sequences"),
            block_tables: Tensor::iota(&cpu, [1, shape.pages], 1).expect("tables"),
            max_context: context,
        };
        let q = values(&cpu, &[tokens, heads, shape.head_dim]);
        group.throughput(Throughput::Elements((4 * tokens * heads * context * shape.head_dim) as u64));
        group.bench_function(BenchmarkId::new(name, context), |b| {
            b.iter(|| q.attention(black_box(&cache), &batch, &params).expect("attention"));
        });
    }
}

fn rows(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("rows");
    for (m, n) in [(1, 576), (256, 576)] {
        let (x, weight) = (values(&cpu, &[m, n]), values(&cpu, &[n]));
        group.throughput(Throughput::Elements((m * n) as u64));
        let size = format!("{m}x{n}");
        group.bench_function(BenchmarkId::new("rms_norm", &size), |b| {
            b.iter(|| x.rms_norm(black_box(&weight), 1e-5).expect("a norm"));
        });
        group.bench_function(BenchmarkId::new("swiglu", &size), |b| {
            b.iter(|| x.glu(black_box(&x), Activation::Silu).expect("a product"));
        });
        group.bench_function(BenchmarkId::new("softmax", &size), |b| {
            b.iter(|| black_box(&x).softmax().expect("a softmax"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = bandwidth, matvec, matmul, attention, rows
}
criterion_main!(benches);
