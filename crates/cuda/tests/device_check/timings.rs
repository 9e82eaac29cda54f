//! How long each operation of a model takes, and what share that is of what the device can do.

use std::time::Duration;

use samebits_cuda::{Cuda, Rates};
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Format, HostWeight, KvCache, KvShape, Result, RopeTable,
    Tensor, Weight, testing::random_blocks,
};
use serde_json::{Value, json};

use crate::Size;

/// The extents of a model that its operations have.
struct Model {
    name: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    vocabulary: usize,
}

const SMOLLM2: Model = Model {
    name: "SmolLM2-135M",
    hidden: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    feed_forward: 1536,
    vocabulary: 49152,
};
const LLAMA_3_8B: Model = Model {
    name: "Llama-3-8B",
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    feed_forward: 14336,
    vocabulary: 128_256,
};
const TINY: Model = Model {
    name: "tiny",
    hidden: 256,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    feed_forward: 512,
    vocabulary: 32,
};

/// Formats that the linear layers of most files have.
const FORMATS: [Format; 4] = [Format::Q4_0, Format::Q8_0, Format::Q4K, Format::BF16];

/// Weights are as many as the second cache of no device holds, and are read in turn.
const WEIGHT_BYTES: usize = 192 << 20;

/// A measurement goes on until this, or as often as it may be repeated.
const LONG_ENOUGH: Duration = Duration::from_millis(15);
const REPEATS_MAX: usize = 200;

/// What is measured, and where it goes.
struct Timings<'a> {
    cuda: &'a Cuda,
    size: Size,
    rates: Rates,
    found: Vec<Value>,
}

/// Every operation, of models' shapes or of the least.
pub(crate) fn all(cuda: &Cuda, size: Size, rates: Rates) -> Value {
    let mut timings = Timings { cuda, size, rates, found: Vec::new() };
    let (models, tokens, contexts): (&[Model], &[usize], &[usize]) = match size {
        Size::Device => (&[SMOLLM2, LLAMA_3_8B], &[1, 8, 512], &[1024, 8192]),
        Size::Simulator => (&[TINY], &[1, 9], &[160]),
    };
    for model in models {
        timings.model(model, tokens, contexts).unwrap_or_else(|error| panic!("{}: {error}", model.name));
    }
    timings.found.into()
}

impl Timings<'_> {
    fn model(&mut self, model: &Model, tokens: &[usize], contexts: &[usize]) -> Result<()> {
        let heads = (model.heads + 2 * model.kv_heads) * model.head_dim;
        let layers = [
            ("qkv", heads, model.hidden),
            ("gate and up", 2 * model.feed_forward, model.hidden),
            ("down", model.hidden, model.feed_forward),
        ];
        for (layer, rows, cols) in layers {
            for format in FORMATS.into_iter().filter(|format| cols.is_multiple_of(format.block_len())) {
                self.linear(model, layer, format, [rows, cols], tokens)?;
            }
        }
        for &tokens in tokens {
            self.rows(model, tokens)?;
            for &context in contexts {
                self.attention(model, tokens, context)?;
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        model: &Model,
        layer: &str,
        format: Format,
        [rows, cols]: [usize; 2],
        tokens: &[usize],
    ) -> Result<()> {
        let bytes = format.row_bytes(cols).expect("whole blocks") * rows;
        let copies = if self.size == Size::Device { WEIGHT_BYTES.div_ceil(bytes).min(64) } else { 1 };
        let stored: Vec<u8> = random_blocks(format, rows, cols, 1);
        let host = HostWeight { name: layer.into(), format, shape: vec![rows, cols], bytes: stored.into() };
        let weights = (0..copies).map(|_| Weight::pack(self.cuda, &host)).collect::<Result<Vec<_>>>()?;
        for &m in tokens {
            let x = Tensor::full(self.cuda, [m, cols], 0.5)?;
            let work = Work { bytes: bytes + 4 * m * (rows + cols), operations: 2 * m * rows * cols };
            let what = format!("linear {layer} {format} [{rows}, {cols}]");
            self.measure(model, &what, m, work, |turn| x.linear(&weights[turn % copies]).map(drop))?;
        }
        Ok(())
    }

    /// Operations of rows.
    fn rows(&mut self, model: &Model, m: usize) -> Result<()> {
        let cuda = self.cuda;
        let &Model { hidden, heads, head_dim, feed_forward, .. } = model;
        let floats = |shape: &[usize]| Tensor::full(cuda, shape, 0.5);
        let work = |elements: usize| Work { bytes: 4 * elements, operations: 0 };
        let (x, weight) = (floats(&[m, hidden])?, floats(&[hidden])?);
        self.measure(model, "rms_norm", m, work(2 * m * hidden), |_| x.rms_norm(&weight, 1e-5).map(drop))?;
        let (gate, up) = (floats(&[m, feed_forward])?, floats(&[m, feed_forward])?);
        let glu = |_| gate.glu(&up, Activation::Silu).map(drop);
        self.measure(model, "glu", m, work(3 * m * feed_forward), glu)?;
        let q = floats(&[m, heads, head_dim])?;
        let positions = Tensor::of(cuda, [m], &(0..m as i32).collect::<Vec<_>>())?;
        let table = RopeTable { cos: floats(&[m, head_dim / 2])?, sin: floats(&[m, head_dim / 2])? };
        let rope = |_| q.rope(&positions, &table).map(drop);
        self.measure(model, "rope", m, work(2 * m * heads * head_dim), rope)?;
        self.measure(model, "softmax", m, work(2 * m * hidden), |_| x.softmax().map(drop))?;
        let rows = model.vocabulary.min(4096);
        let host = HostWeight {
            name: "embedding".into(),
            format: Format::Q8_0,
            shape: vec![rows, hidden],
            bytes: random_blocks(Format::Q8_0, rows, hidden, 1).into(),
        };
        let table = Weight::pack(cuda, &host)?;
        let ids = Tensor::of(cuda, [m], &(0..m).map(|i| (i * 31 % rows) as i32).collect::<Vec<_>>())?;
        self.measure(model, "embedding", m, work(m * hidden), |_| ids.embedding(&table).map(drop))
    }

    /// `m` tokens: of one sequence where they are many, each of its own where they are few. The cache holds `context` positions.
    fn attention(&mut self, model: &Model, m: usize, context: usize) -> Result<()> {
        const PAGE: usize = 16;
        let &Model { heads, kv_heads, head_dim, .. } = model;
        let is_prefill = m > 8;
        let sequences = if is_prefill { 1 } else { m };
        let pages = context.div_ceil(PAGE);
        let shape = KvShape { pages: sequences * pages, page_size: PAGE, kv_heads, head_dim };
        let mut cache = KvCache::new(self.cuda, shape)?;
        let integers = |values: Vec<i32>| Tensor::of(self.cuda, [values.len()], &values);
        let place = |token: usize| if is_prefill { context - m.min(context) + token } else { context - 1 };
        let sequence = |token: usize| if is_prefill { 0 } else { token };
        let tables: Vec<i32> = (0..(sequences * pages) as i32).collect();
        let batch = AttentionBatch {
            positions: integers((0..m).map(|token| place(token) as i32).collect())?,
            sequences: integers((0..m).map(|token| sequence(token) as i32).collect())?,
            block_tables: Tensor::of(self.cuda, [sequences, pages], &tables)?,
            max_context: context,
        };
        let slots =
            integers((0..m).map(|token| (sequence(token) * pages * PAGE + place(token)) as i32).collect())?;
        let kv = Tensor::full(self.cuda, [m, kv_heads, head_dim], 0.5)?;
        let stored = Work { bytes: m * kv_heads * head_dim * 10, operations: 0 };
        self.measure(model, "store_kv", m, stored, |_| cache.store(&kv, &kv, &slots))?;
        let q = Tensor::full(self.cuda, [m, heads, head_dim], 0.5)?;
        let params = AttentionParams { scale: 0.125, window: None, soft_cap: None };
        let work = Work {
            bytes: sequences * context * kv_heads * (2 * head_dim + 8),
            operations: 4 * (0..m).map(place).map(|position| position + 1).sum::<usize>() * heads * head_dim,
        };
        let what = format!("attention over {context}");
        self.measure(model, &what, m, work, |_| q.attention(&cache, &batch, &params).map(drop))
    }

    /// The best of three series, each long enough.
    fn measure(
        &mut self,
        model: &Model,
        what: &str,
        tokens: usize,
        work: Work,
        mut run: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let mut turn = 0;
        let mut series = |repeats: usize| -> Result<f64> {
            let ((), time) = self.cuda.timed(|| {
                (0..repeats).try_for_each(|_| {
                    turn += 1;
                    run(turn)
                })
            })?;
            Ok(time.as_secs_f64() / repeats as f64)
        };
        let mut seconds = series(1)?;
        if self.size == Size::Device {
            let repeats = (LONG_ENOUGH.as_secs_f64() / series(3)?.max(1e-7)) as usize;
            for _ in 0..3 {
                seconds = seconds.min(series(repeats.clamp(3, REPEATS_MAX))?);
            }
        }
        self.found.push(json!({
            "model": model.name,
            "what": what,
            "tokens": tokens,
            "seconds": seconds,
            "bytes": work.bytes,
            "operations": work.operations,
            "share_of_bytes": work.bytes as f64 / seconds / self.rates.bytes_per_second,
            "share_of_int8": work.operations as f64 / seconds / self.rates.int8_operations_per_second,
        }));
        Ok(())
    }
}

/// What an operation has to read and write at least, weights as their file has them, and to multiply and add.
#[derive(Clone, Copy)]
struct Work {
    bytes: usize,
    operations: usize,
}
