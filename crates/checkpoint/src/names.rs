//! Which tensors a decoder has, and what they are called in either kind of file.

use samebits_nn::{Architecture, Config};

/// Modules of a layer: Hugging Face's name, and GGUF's (`gguf-py/gguf/tensor_mapping.py`).
const PROJECTIONS: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
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

/// Whether a model of `config` has a tensor that Hugging Face calls `name`.
pub(crate) fn is_known(config: &Config, name: &str) -> bool {
    OUTSIDE_OF_LAYERS.iter().any(|(hf, _)| *hf == name)
        || split(name, "model.layers.", config)
            .is_some_and(|(_, module, kind)| modules(config.architecture, kind).any(|(hf, _)| *hf == module))
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
    let projections = match kind {
        "weight" => &PROJECTIONS[..],
        "bias" => &PROJECTIONS[..4],
        _ => &[],
    };
    let norms = if architecture.is_gemma() { &GEMMA_NORMS[..] } else { &NORMS[..] };
    let qk_norms = if architecture.has_qk_norm() { &QK_NORMS[..] } else { &[] };
    let norms = norms.iter().chain(qk_norms).filter(move |_| projections.len() == PROJECTIONS.len());
    projections.iter().chain(norms)
}
