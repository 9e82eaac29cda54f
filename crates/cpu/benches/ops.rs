//! Speed of the fused operations against what the machine can do: `cargo bench -p samebits-cpu`.
//!
//! `SAMEBITS_ISA` chooses the instruction set, `SAMEBITS_BENCH_THREADS` the number of threads (1). Throughput is bytes of
//! packed weights for a matrix-vector product, and elements (two operations each) for the others.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use samebits_cpu::Cpu;
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Experts, FeedForward, Format, HostWeight, Input, KvCache,
    KvShape, Routes, Tensor, Weight, testing::random_blocks,
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

/// A model's heads: query heads, kv heads, channels.
const HEADS: [(&str, usize, usize, usize); 3] =
    [("SmolLM2-135M", 9, 3, 64), ("TinyLlama-1.1B", 32, 4, 64), ("Llama-3-8B", 32, 8, 128)];

/// Sequences, and the tokens of each that end a context.
const STEPS: [(&str, usize, usize, usize); 7] = [
    ("decode", 1, 1, 256),
    ("decode", 1, 1, 1024),
    ("decode", 1, 1, 4096),
    ("decode", 1, 1, 16384),
    ("decode 32", 32, 1, 256),
    ("prefill", 1, 512, 512),
    ("prefill", 1, 256, 4096),
];

/// Operations on visible keys, and bytes of cache that one pass over it reads.
fn attention(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("attention");
    for (model, heads, kv_heads, head_dim) in HEADS {
        for (name, sequences, tokens, context) in STEPS {
            let step = Step::new(&cpu, [heads, kv_heads, head_dim], sequences, tokens, context);
            group.throughput(step.throughput(heads, tokens, context));
            group.bench_function(BenchmarkId::new(format!("{model}/{name}"), context), |b| {
                b.iter(|| step.q.attention(black_box(&step.cache), &step.batch, &step.params));
            });
        }
    }
}

struct Step {
    q: Tensor<Cpu>,
    cache: KvCache<Cpu>,
    batch: AttentionBatch<Cpu>,
    params: AttentionParams,
}

impl Step {
    fn new(cpu: &Cpu, heads: [usize; 3], sequences: usize, tokens: usize, context: usize) -> Self {
        let [heads, kv_heads, head_dim] = heads;
        let page_size = 32;
        let pages = context / page_size;
        let shape = KvShape { pages: sequences * pages, page_size, kv_heads, head_dim };
        let mut cache = KvCache::new(cpu, shape).expect("a cache");
        let kv = values(cpu, &[sequences * context, kv_heads, head_dim]);
        cache.store(&kv, &kv, &Tensor::iota(cpu, [sequences * context], 0).expect("slots")).expect("stored");
        let t = sequences * tokens;
        let positions: Vec<i32> = (0..t).map(|i| (context - tokens + i % tokens) as i32).collect();
        let of: Vec<i32> = (0..t).map(|i| (i / tokens) as i32).collect();
        // Pages far from one another, as they are after a while.
        let table: Vec<i32> = (0..shape.pages).map(|page| ((page * 7919) % shape.pages) as i32).collect();
        let batch = AttentionBatch {
            positions: Tensor::of(cpu, [t], &positions).expect("positions"),
            sequences: Tensor::of(cpu, [t], &of).expect("sequences"),
            block_tables: Tensor::of(cpu, [sequences, pages], &table).expect("tables"),
            max_context: context,
        };
        let params = AttentionParams { scale: 1.0 / (head_dim as f32).sqrt(), window: None, soft_cap: None };
        Step { q: values(cpu, &[t, heads, head_dim]), cache, batch, params }
    }

    fn throughput(&self, heads: usize, tokens: usize, context: usize) -> Throughput {
        let shape = self.cache.shape;
        let sequences = self.batch.block_tables.dims()[0];
        let visible = sequences * (tokens * (2 * context - tokens + 1) / 2);
        Throughput::ElementsAndBytes {
            elements: (4 * visible * heads * shape.head_dim) as u64,
            bytes: shape.bytes() as u64,
        }
    }
}

/// A feed-forward layer of SmolLM2 and of a model of a billion weights, after its norm.
fn feed_forward(c: &mut Criterion) {
    let cpu = cpu();
    let mut group = c.benchmark_group("feed_forward");
    for (format, hidden, inner) in
        [(Format::Q4_1, 576, 1536), (Format::Q4_0, 2048, 5632), (Format::Q4K, 2048, 5632)]
    {
        let [gate, up] = [(); 2].map(|()| weight(&cpu, format, inner, hidden));
        let down = weight(&cpu, format, hidden, inner);
        let norm = values(&cpu, &[hidden]);
        for m in [1, 16, 512] {
            let x = values(&cpu, &[m, hidden]);
            group.throughput(Throughput::Elements((6 * m * hidden * inner) as u64));
            group.bench_function(BenchmarkId::new(format.name(), format!("{m}x{hidden}x{inner}")), |b| {
                let layer = FeedForward { gate: &gate, up: &up, down: &down, activation: Activation::Silu };
                let input = Input { x: &x, norm: Some((&norm, 1e-5)) };
                b.iter(|| black_box(input).feed_forward(layer).expect("a layer"));
            });
        }
    }
}

/// 64 experts of the size of OLMoE's, of which each token has 8: bytes of weights that are read for one token, and operations of
/// more. Steps take turns, so that one token's experts are not in a cache from the step before.
fn experts(c: &mut Criterion) {
    let cpu = cpu();
    let (count, top_k, hidden, inner) = (64, 8, 2048, 1024);
    let mut group = c.benchmark_group("experts");
    for format in [Format::Q4_0, Format::Q4K, Format::BF16] {
        let [gate, up] = [(); 2].map(|()| weight(&cpu, format, count * inner, hidden));
        let down = weight(&cpu, format, count * hidden, inner);
        let layer = Experts { gate: &gate, up: &up, down: &down, count, activation: Activation::Silu };
        let bytes: usize = [&gate, &up, &down].iter().map(|weight| weight.packed().bytes()).sum();
        for t in [1, 8, 512] {
            let x = values(&cpu, &[t, hidden]);
            let routes: Vec<_> = (0..8).map(|turn| routes(&cpu, t, top_k, count, turn)).collect();
            group.throughput(match t {
                1 => Throughput::Bytes((bytes / count * top_k) as u64),
                _ => Throughput::Elements((6 * t * top_k * hidden * inner) as u64),
            });
            let mut turns = routes.iter().cycle();
            group.bench_function(BenchmarkId::new(format.name(), format!("{t}x{top_k}of{count}")), |b| {
                b.iter(|| Input::from(black_box(&x)).experts(layer, turns.next().expect("routes")));
            });
        }
    }
}

/// Every expert is as busy as the others.
fn routes(cpu: &Cpu, t: usize, top_k: usize, count: usize, turn: usize) -> Routes<Cpu> {
    let ids: Vec<i32> = (0..t * top_k).map(|i| ((i + turn * top_k) * 29 % count) as i32).collect();
    let weights = vec![1.0 / top_k as f32; ids.len()];
    Routes {
        experts: Tensor::of(cpu, [t, top_k], &ids).expect("experts"),
        weights: Tensor::of(cpu, [t, top_k], &weights).expect("weights"),
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
    targets = bandwidth, matvec, matmul, feed_forward, experts, attention, rows
}
criterion_main!(benches);
