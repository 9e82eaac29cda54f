use samebits_graph::{Graph, GraphError, Trace};
use samebits_models::Model;
use samebits_nn::Step;
use samebits_tensor::{AttentionBatch, DType, KvCache, KvShape, Result, Tensor};

use crate::compiled::buckets::Bucket;

/// Records the parts of a model for buckets of shapes.
pub(crate) struct Recorder {
    pub(crate) trace: Trace,
    pub(crate) model: Model<Trace>,
    pub(crate) cache: KvShape,
    /// Rows of the block tables.
    pub(crate) sequences: usize,
    pub(crate) hidden_size: usize,
}

impl Recorder {
    /// `tokens [t]` to `x [t, hidden_size]`.
    pub(crate) fn embed(&self, bucket: Bucket) -> Result<Graph, GraphError> {
        let step = self.step(bucket)?;
        let x = self.model.embed(&step)?;
        self.trace.graph(&[&step.tokens], &[("x", &x)])
    }

    /// `x`, slots, positions, sequences, block tables and the cache's four tensors to `x` and those four.
    pub(crate) fn layer(&self, index: usize, bucket: Bucket) -> Result<Graph, GraphError> {
        let step = self.step(bucket)?;
        let x = self.x(bucket)?;
        let before = self.cache()?;
        let mut after = before.clone();
        let out = self.model.layer(index, &x, &step, &mut after)?;
        let AttentionBatch { positions, sequences, block_tables, .. } = &step.attention;
        let inputs = [&x, &step.slots, positions, sequences, block_tables].into_iter();
        let inputs: Vec<_> = inputs.chain(parts(&before)).collect();
        let [k, k_scale, v, v_scale] = parts(&after);
        let outputs = [("x", &out), ("k", k), ("k_scale", k_scale), ("v", v), ("v_scale", v_scale)];
        self.trace.graph(&inputs, &outputs)
    }

    /// `x` and the indices of tokens to logits `[r, vocab_size]`.
    pub(crate) fn head(&self, bucket: Bucket) -> Result<Graph, GraphError> {
        let (x, step) = (self.x(bucket)?, self.step(bucket)?);
        let logits = self.model.head(&x, &step)?;
        self.trace.graph(&[&x, &step.logits], &[("logits", &logits)])
    }

    fn x(&self, bucket: Bucket) -> Result<Tensor<Trace>> {
        self.trace.input("x", [bucket.tokens, self.hidden_size], DType::F32)
    }

    fn step(&self, bucket: Bucket) -> Result<Step<Trace>> {
        let indices = |name, extent| self.trace.input(name, [extent], DType::I32);
        let tables = [self.sequences, bucket.context / self.cache.page_size];
        Ok(Step {
            tokens: indices("tokens", bucket.tokens)?,
            slots: indices("slots", bucket.tokens)?,
            attention: AttentionBatch {
                positions: indices("positions", bucket.tokens)?,
                sequences: indices("sequences", bucket.tokens)?,
                block_tables: self.trace.input("block_tables", tables, DType::I32)?,
                max_context: bucket.context,
            },
            logits: indices("logits", bucket.logits)?,
        })
    }

    fn cache(&self) -> Result<KvCache<Trace>> {
        let (shape, rows) = (self.cache, self.cache.rows());
        let bytes = |name| self.trace.input(name, [rows, shape.head_dim], DType::I8);
        let floats = |name, cols| self.trace.input(name, [rows, cols], DType::F32);
        Ok(KvCache {
            shape,
            k: bytes("k")?,
            k_scale: floats("k_scale", shape.head_blocks())?,
            v: bytes("v")?,
            v_scale: floats("v_scale", 1)?,
        })
    }
}

fn parts(cache: &KvCache<Trace>) -> [&Tensor<Trace>; 4] {
    [&cache.k, &cache.k_scale, &cache.v, &cache.v_scale]
}
