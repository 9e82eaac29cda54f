//! The hot operations, once each on one thread, for callgrind to count their instructions: `cargo xtask instructions`.
//!
//! A count does not depend on what else the machine does, so that a kernel which lost its vectors or its inlining shows
//! in CI. It says nothing of ports, caches or latencies: for those there is the bench `ops`. Valgrind knows
//! no AVX-512, so the counts are of the portable kernels and of AVX2, which are the same text.

use std::hint::black_box;

use samebits_cpu::{Cpu, Isa};
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Format, HostWeight, KvCache, KvShape, Tensor, Weight,
    testing::random_blocks,
};

const FORMATS: [Format; 5] = [Format::Q4_0, Format::Q8_0, Format::Q4K, Format::Q6K, Format::BF16];

/// SmolLM2's heads: 9 queries over 3 kv heads of 64 channels.
const HEADS: usize = 9;
const KV: KvShape = KvShape { pages: 8, page_size: 32, kv_heads: 3, head_dim: 64 };

fn main() {
    let names = std::env::args().nth(1).filter(|name| !name.starts_with('-'));
    for isa in Isa::available().filter(|isa| names.as_deref().is_none_or(|name| name == isa.name())) {
        let bench = Bench { cpu: Cpu::builder().threads(1).isa(isa).build().expect("a backend"), isa };
        bench.linear("matvec", 1, 256, 2048);
        bench.linear("matmul", 32, 64, 512);
        bench.attention("decode", 1);
        bench.attention("prefill", 32);
        bench.rows();
    }
}

struct Bench {
    cpu: Cpu,
    isa: Isa,
}

impl Bench {
    /// `[m, cols]` by `[rows, cols]`, the quantisation of the activations included; `quantize` is that of a weight so
    /// small that little else is left.
    fn linear(&self, name: &str, m: usize, rows: usize, cols: usize) {
        let x = self.values(&[m, cols]);
        for format in FORMATS {
            let weight = self.weight(format, rows, cols);
            self.count(&format!("{name}/{format}"), || x.linear(&weight).expect("a product"));
        }
        for format in [Format::Q4_0, Format::Q4K] {
            let weight = self.weight(format, 1, cols);
            self.count(&format!("quantize {m}/{format}"), || x.linear(&weight).expect("a product"));
        }
    }

    fn attention(&self, name: &str, tokens: usize) {
        let context = KV.pages * KV.page_size;
        let mut cache = KvCache::new(&self.cpu, KV).expect("a cache");
        let kv = self.values(&[context, KV.kv_heads, KV.head_dim]);
        let slots = Tensor::iota(&self.cpu, [context], 0).expect("slots");
        cache.store(&kv, &kv, &slots).expect("stored");
        let positions: Vec<i32> = ((context - tokens) as i32..context as i32).collect();
        let batch = AttentionBatch {
            positions: Tensor::of(&self.cpu, [tokens], &positions).expect("positions"),
            sequences: Tensor::full(&self.cpu, [tokens], 0).expect("sequences"),
            block_tables: Tensor::iota(&self.cpu, [1, KV.pages], 1).expect("tables"),
            max_context: context,
        };
        let params = AttentionParams { scale: 0.125, window: None, soft_cap: None };
        let q = self.values(&[tokens, HEADS, KV.head_dim]);
        self.count(&format!("attention/{name}"), || q.attention(&cache, &batch, &params).expect("attention"));
    }

    fn rows(&self) {
        let (x, weight) = (self.values(&[8, 2048]), self.values(&[2048]));
        self.count("rms_norm", || x.rms_norm(&weight, 1e-5).expect("a norm"));
        self.count("glu/silu", || x.glu(&x, Activation::Silu).expect("a product"));
        self.count("glu/gelu", || x.glu(&x, Activation::GeluTanh).expect("a product"));
        self.count("softmax", || x.softmax().expect("a softmax"));
    }

    /// The first run of an operation may allocate what later ones reuse, so the second is counted. The counts come in the
    /// order of the names.
    fn count<T>(&self, name: &str, mut run: impl FnMut() -> T) {
        black_box(run());
        samebits_counted(&mut || drop(black_box(run())));
        println!("{} {name}", self.isa.name());
    }

    fn values(&self, shape: &[usize]) -> Tensor<Cpu> {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        Tensor::of(&self.cpu, shape, &values).expect("a tensor")
    }

    fn weight(&self, format: Format, rows: usize, cols: usize) -> Weight<Cpu> {
        let host = HostWeight {
            name: "weight".into(),
            format,
            shape: vec![rows, cols],
            bytes: random_blocks(format, rows, cols, 1).into(),
        };
        Weight::pack(&self.cpu, &host).expect("a weight")
    }
}

/// Callgrind counts what happens inside of this function.
#[inline(never)]
fn samebits_counted(run: &mut dyn FnMut()) {
    run();
    black_box(());
}
