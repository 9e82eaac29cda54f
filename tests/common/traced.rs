//! A model recorded once for a bucket of shapes, and replayed.

use samebits_checkpoint::Checkpoint;
use samebits_engine::Batch;
use samebits_graph::{Graph, Program, Trace};
use samebits_models::Model;
use samebits_nn::{Loader, Step};
use samebits_runner::step_inputs;
use samebits_tensor::{AttentionBatch, Backend, DType, KvCache, Tensor};

/// Extents of a recorded step.
#[derive(Clone, Copy)]
pub(crate) struct Bucket {
    pub(crate) tokens: usize,
    pub(crate) pages: usize,
    pub(crate) page_size: usize,
}

/// Records one step of one sequence: inputs are the step and the caches, outputs the logits and the caches.
pub(crate) fn record(checkpoint: &Checkpoint, bucket: Bucket) -> Graph {
    let trace = Trace::new();
    let loader = Loader::new(&trace, &*checkpoint.weights, &checkpoint.config, &|_| {});
    let max_context = bucket.pages * bucket.page_size;
    let model = Model::load(&loader, max_context).unwrap();
    let indices = |name: &str, extent| trace.input(name, [extent], DType::I32).unwrap();
    let step = Step {
        tokens: indices("tokens", bucket.tokens),
        slots: indices("slots", bucket.tokens),
        attention: AttentionBatch {
            positions: indices("positions", bucket.tokens),
            sequences: indices("sequences", bucket.tokens),
            block_tables: trace.input("block_tables", [1, bucket.pages], DType::I32).unwrap(),
            max_context,
        },
        logits: indices("logits", 1),
    };
    let mut caches = model.caches(&trace, bucket.pages, bucket.page_size).unwrap();
    for (layer, cache) in caches.iter_mut().enumerate() {
        for (name, part) in parts(cache) {
            *part = trace.input(&format!("{name}.{layer}"), part.shape().clone(), part.dtype()).unwrap();
        }
    }
    let before = caches.clone();
    let logits = model.forward(&step, &mut caches).unwrap();
    let inputs = step_parts(&step).into_iter().chain(before.iter().flat_map(cache_parts)).collect::<Vec<_>>();
    let names: Vec<String> = (0..4 * caches.len()).map(|i| format!("cache.{i}")).collect();
    let after = names.iter().map(String::as_str).zip(caches.iter().flat_map(cache_parts));
    let outputs: Vec<_> = [("logits", &logits)].into_iter().chain(after).collect();
    trace.graph(&inputs, &outputs).unwrap()
}

/// A recorded model and its caches on a backend.
pub(crate) struct Replay<'a, B: Backend> {
    backend: B,
    program: Program<'a, B>,
    caches: Vec<Tensor<B>>,
    bucket: Bucket,
}

impl<'a, B: Backend> Replay<'a, B> {
    pub(crate) fn new(backend: B, graph: &'a Graph, checkpoint: &Checkpoint, bucket: Bucket) -> Self {
        let loader = Loader::new(&backend, &*checkpoint.weights, &checkpoint.config, &|_| {});
        let caches =
            Model::load(&loader, 2).unwrap().caches(&backend, bucket.pages, bucket.page_size).unwrap();
        let caches = caches.iter().flat_map(|cache| cache_parts(cache).map(Clone::clone)).collect();
        let program = graph.prepare(&backend).unwrap();
        Replay { backend, program, caches, bucket }
    }

    /// Logits of the last token of a batch of one sequence that fills the bucket.
    pub(crate) fn step(&mut self, batch: &Batch) -> Vec<f32> {
        let step = step_inputs(&self.backend, batch, self.bucket.page_size).unwrap();
        let inputs = step_parts(&step).into_iter().cloned().chain(self.caches.drain(..)).collect();
        drop(step);
        let mut outputs = self.program.run(inputs).unwrap();
        self.caches = outputs.split_off(1);
        outputs[0].to_vec().unwrap()
    }
}

fn step_parts<B: Backend>(step: &Step<B>) -> [&Tensor<B>; 6] {
    let attention = &step.attention;
    [
        &step.tokens,
        &step.slots,
        &attention.positions,
        &attention.sequences,
        &attention.block_tables,
        &step.logits,
    ]
}

fn cache_parts<B: Backend>(cache: &KvCache<B>) -> [&Tensor<B>; 4] {
    [&cache.k, &cache.k_scale, &cache.v, &cache.v_scale]
}

fn parts<B: Backend>(cache: &mut KvCache<B>) -> [(&'static str, &mut Tensor<B>); 4] {
    [
        ("k", &mut cache.k),
        ("k_scale", &mut cache.k_scale),
        ("v", &mut cache.v),
        ("v_scale", &mut cache.v_scale),
    ]
}
