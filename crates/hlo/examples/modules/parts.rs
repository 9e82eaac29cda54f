use std::path::Path;

use anyhow::{Context, Result};
use samebits_checkpoint::Checkpoint;
use samebits_cpu::Host;
use samebits_models::Model;
use samebits_nn::{Loader, Step};
use samebits_tensor::{self as tensor, AttentionBatch, Backend, Error, HostTensor, KvCache, KvShape, Tensor};

use crate::text::Text;

/// The models, in `tests/fixtures/models`: every architecture, and every block format.
pub(crate) const NAMES: [&str; 11] = [
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gguf/llama.Q8_0.gguf",
    "gguf/llama.Q4_0.gguf",
    "gguf/llama.mixed32.gguf",
    "gguf/wide.mixed256.gguf",
];

const PAGES: usize = 8;
const PAGE_SIZE: usize = 16;
const MAX_CONTEXT: usize = PAGES * PAGE_SIZE;

/// Embedding, first layer and head of a model in the middle of a sequence: three tokens after five that are in the cache.
pub(crate) fn each(name: &str, mut take: impl FnMut(&Part<'_>) -> Result<()>) -> Result<()> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    let checkpoint = Checkpoint::open(models.join(name)).with_context(|| name.to_owned())?;
    let part = |kind, inputs| Part { name, checkpoint: &checkpoint, kind, inputs };
    let run = |kind, inputs: Vec<HostTensor>| part(kind, inputs).run(&Host);

    let before = step(0..5)?;
    let x = run(Kind::Embed, before.clone())?;
    let inputs = [before, x, empty_cache(&checkpoint)?].concat();
    let cache = run(Kind::Layer, inputs)?.split_off(1);

    let now = step(5..8)?;
    let embed = part(Kind::Embed, now.clone());
    let x = embed.run(&Host)?;
    let layer = part(Kind::Layer, [now.clone(), x, cache].concat());
    let x = layer.run(&Host)?.swap_remove(0);
    let head = part(Kind::Head, [now, vec![x]].concat());
    [embed, layer, head].iter().try_for_each(&mut take)
}

/// A part of a model, with what it is computed from: the six tensors of a step, `x`, and the cache, as far as it takes them.
pub(crate) struct Part<'a> {
    name: &'a str,
    checkpoint: &'a Checkpoint,
    kind: Kind,
    inputs: Vec<HostTensor>,
}

#[derive(Clone, Copy)]
enum Kind {
    Embed,
    Layer,
    Head,
}

impl Text for Part<'_> {
    fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Embed => "embed",
            Kind::Layer => "layer",
            Kind::Head => "head",
        };
        format!("model/{}/{kind}", self.name)
    }

    fn inputs(&self) -> Vec<HostTensor> {
        self.inputs.clone()
    }

    fn apply<B: Backend>(&self, backend: &B, inputs: &[Tensor<B>]) -> tensor::Result<Vec<Tensor<B>>> {
        let Checkpoint { weights, config, .. } = self.checkpoint;
        let model = Model::load(&Loader::new(backend, &**weights, config, &|_| {}), MAX_CONTEXT);
        let model = model.map_err(|error| Error::shape("load", error.to_string()))?;
        let (step, rest) = inputs.split_at(6);
        let step = Step {
            tokens: step[0].clone(),
            slots: step[1].clone(),
            attention: AttentionBatch {
                positions: step[2].clone(),
                sequences: step[3].clone(),
                block_tables: step[4].clone(),
                max_context: MAX_CONTEXT,
            },
            logits: step[5].clone(),
        };
        match self.kind {
            Kind::Embed => Ok(vec![model.embed(&step)?]),
            Kind::Head => Ok(vec![model.head(&rest[0], &step)?]),
            Kind::Layer => {
                let [x, k, k_scale, v, v_scale] = [0, 1, 2, 3, 4].map(|i| rest[i].clone());
                let mut cache = KvCache { shape: shape(self.checkpoint), k, k_scale, v, v_scale };
                let x = model.layer(0, &x, &step, &mut cache)?;
                Ok(vec![x, cache.k, cache.k_scale, cache.v, cache.v_scale])
            }
        }
    }
}

/// Tokens, slots, positions, sequences, block tables and indices of logits of one sequence whose pages are in order.
fn step(positions: std::ops::Range<i32>) -> tensor::Result<Vec<HostTensor>> {
    let positions: Vec<i32> = positions.collect();
    let count = positions.len();
    let tokens: Vec<i32> = positions.iter().map(|position| (position * position * 7 + 5) % 300).collect();
    let pages: Vec<i32> = (0..PAGES as i32).collect();
    Ok(vec![
        HostTensor::of([count], &tokens)?,
        HostTensor::of([count], &positions)?,
        HostTensor::of([count], &positions)?,
        HostTensor::of([count], &vec![0; count])?,
        HostTensor::of([1, PAGES], &pages)?,
        HostTensor::of([1], &[count as i32 - 1])?,
    ])
}

fn shape(checkpoint: &Checkpoint) -> KvShape {
    let (kv_heads, head_dim) = (checkpoint.config.num_key_value_heads, checkpoint.config.head_dim);
    KvShape { pages: PAGES, page_size: PAGE_SIZE, kv_heads, head_dim }
}

fn empty_cache(checkpoint: &Checkpoint) -> tensor::Result<Vec<HostTensor>> {
    let KvCache { k, k_scale, v, v_scale, .. } = KvCache::new(&Host, shape(checkpoint))?;
    [k, k_scale, v, v_scale].iter().map(Tensor::download).collect()
}
