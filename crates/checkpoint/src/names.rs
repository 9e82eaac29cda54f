//! Which tensors a decoder has, and what they are called in either kind of file.

use samebits_nn::{Architecture, Config};

/// Modules of a layer: Hugging Face's name, and GGUF's (`gguf-py/gguf/tensor_mapping.py`).
const PROJECTIONS: [(&str, &str); 4] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
];
const MLP: [(&str, &str); 3] =
    [("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")];
const EXPERTS: [(&str, &str); 4] = [
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
];
const QK_NORMS: [(&str, &str); 2] =
    [("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")];
const NORMS: [(&str, &str); 2] = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")];
const GEMMA_NORMS: [(&str, &str); 4] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
const OUTSIDE_OF_LAYERS: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Hugging Face's name of what a GGUF file calls `name`, if a model of `config` has such a tensor.
pub(crate) fn hf_name_of_gguf(config: &Config, name: &str) -> Option<String> {
    if let Some((hf, _)) = OUTSIDE_OF_LAYERS.iter().find(|(_, gguf)| *gguf == name) {
        return Some((*hf).into());
    }
    let (layer, module, kind) = split(name, "blk.", config)?;
    let (hf, _) = modules(config.architecture, kind).find(|(_, gguf)| *gguf == module)?;
    Some(format!("model.layers.{layer}.{hf}.{kind}"))
}

/// Where a tensor of a file of Hugging Face's belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The weight's name.
    pub(crate) name: String,
    /// Which expert's part of it the tensor is, where a file has a tensor for each.
    pub(crate) expert: Option<usize>,
}

/// The place of a tensor that Hugging Face calls `name`, if a model of `config` has one.
pub(crate) fn place(config: &Config, name: &str) -> Option<Place> {
    if OUTSIDE_OF_LAYERS.iter().any(|(hf, _)| *hf == name) {
        return Some(Place { name: name.into(), expert: None });
    }
    let (layer, module, kind) = split(name, "model.layers.", config)?;
    let (module, expert) = expert_of(config, module).unwrap_or_else(|| (module.into(), None));
    modules(config.architecture, kind).find(|(hf, _)| *hf == module)?;
    Some(Place { name: format!("model.layers.{layer}.{module}.{kind}"), expert })
}

/// What of a module's name that concerns experts is ours, and the number of the expert: `mlp.experts.3.up_proj`, which Mixtral
/// calls `block_sparse_moe.experts.3.w3`, is `mlp.experts.up_proj` of expert 3.
fn expert_of(config: &Config, module: &str) -> Option<(String, Option<usize>)> {
    let count = config.experts?.num_experts;
    if module == "block_sparse_moe.gate" {
        return Some(("mlp.gate".into(), None));
    }
    let rest = module.strip_prefix("block_sparse_moe.").or(module.strip_prefix("mlp."))?;
    let (expert, projection) = rest.strip_prefix("experts.")?.split_once('.')?;
    let number: usize = expert.parse().ok()?;
    let projection = match projection {
        "w1" => "gate_proj",
        "w2" => "down_proj",
        "w3" => "up_proj",
        other => other,
    };
    let is_canonical = number.to_string() == expert && number < count;
    is_canonical.then(|| (format!("mlp.experts.{projection}"), Some(number)))
}

/// Layer, module and kind (`weight` or `bias`) of a name that starts with `prefix` and a layer of the model.
fn split<'a>(name: &'a str, prefix: &str, config: &Config) -> Option<(usize, &'a str, &'a str)> {
    let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let number: usize = layer.parse().ok()?;
    let is_canonical = number.to_string() == layer && number < config.num_hidden_layers;
    is_canonical.then_some((number, module, kind))
}

/// Modules of a layer that have a tensor of this kind: all have weights, the attention's projections biases too.
fn modules(
    architecture: Architecture,
    kind: &str,
) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let projections = if matches!(kind, "weight" | "bias") { &PROJECTIONS[..] } else { &[] };
    let feed_forward = if architecture.has_experts() { &EXPERTS[..] } else { &MLP[..] };
    let norms = if architecture.is_gemma() { &GEMMA_NORMS[..] } else { &NORMS[..] };
    let qk_norms = if architecture.has_qk_norm() { &QK_NORMS[..] } else { &[] };
    let without_bias = feed_forward.iter().chain(norms).chain(qk_norms);
    projections.iter().chain(without_bias.filter(move |_| kind == "weight"))
}
