use samebits_nn::{Architecture, Config, ConfigError, ExpertsConfig, LayerType, RopeScaling};
use samebits_tensor::Activation;
use serde_json::Value;

use super::fields::Fields;
use crate::derived::{
    derived_head_dim, long_rope_attention_factor, yarn_attention_factor, yarn_attention_factor_of,
};

/// The hyperparameters that a `config.json` states, in the spellings of transformers 4 and 5, with the defaults
/// of its `configuration_*.py` for what it leaves out.
///
/// # Errors
/// Naming the field that is wrong, or that changes the model's mathematics in a way that is not supported.
pub fn config_from_json(json: &Value) -> Result<Config, ConfigError> {
    let map = json.as_object().ok_or_else(|| ConfigError::invalid("the file", "no object", "an object"))?;
    let outer = Fields::new(map);
    let architecture = architecture(&outer)?;
    let inner = outer.object("text_config", "text_config.")?;
    let fields = inner.unwrap_or(outer);
    refuse_other_mathematics(&outer)?;
    refuse_other_mathematics(&fields)?;
    read(architecture, &fields, &outer)?.validated()
}

fn architecture(fields: &Fields) -> Result<Architecture, ConfigError> {
    let field = "model_type";
    let name = fields.str(field)?.ok_or_else(|| ConfigError::Missing { field: field.into() })?;
    let bare = if name == "gemma3_text" { "gemma3" } else { name };
    Architecture::ALL.into_iter().find(|a| a.name() == bare).ok_or_else(|| {
        let supported =
            "llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, olmoe, gemma2, gemma3 and gemma3_text are";
        ConfigError::unsupported(field, format!("{name:?}"), supported)
    })
}

/// What transformers assumes for a field that is not there.
struct Defaults {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// `None`: as many as query heads.
    num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    sliding_window: Option<usize>,
    experts: Option<ExpertsConfig>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let experts = |num_experts, num_experts_per_tok, norm_topk_prob| {
            Some(ExpertsConfig { num_experts, num_experts_per_tok, norm_topk_prob })
        };
        let llama = Defaults {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            sliding_window: None,
            experts: None,
            bos_token_id: Some(1),
            eos_token_id: Some(2),
        };
        let qwen2 = Defaults {
            vocab_size: 151936,
            intermediate_size: 22016,
            num_key_value_heads: Some(32),
            max_position_embeddings: 32768,
            sliding_window: Some(4096),
            bos_token_id: None,
            eos_token_id: None,
            ..llama
        };
        let gemma2 = Defaults {
            vocab_size: 256000,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: Some(4),
            head_dim: Some(256),
            max_position_embeddings: 8192,
            sliding_window: Some(4096),
            bos_token_id: Some(2),
            eos_token_id: Some(1),
            ..llama
        };
        match architecture {
            Architecture::Llama => llama,
            Architecture::Mistral => Defaults {
                intermediate_size: 14336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 131072,
                sliding_window: Some(4096),
                ..llama
            },
            Architecture::Qwen2 => qwen2,
            Architecture::Qwen3 => Defaults { head_dim: Some(128), ..qwen2 },
            Architecture::Qwen3Moe => Defaults {
                hidden_size: 2048,
                intermediate_size: 768,
                num_hidden_layers: 24,
                num_key_value_heads: Some(4),
                experts: experts(128, 8, false),
                ..qwen2
            },
            Architecture::Mixtral => Defaults {
                intermediate_size: 14336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 131072,
                rms_norm_eps: 1e-5,
                rope_theta: 1e6,
                experts: experts(8, 2, true),
                ..llama
            },
            Architecture::Olmoe => Defaults {
                vocab_size: 50304,
                hidden_size: 2048,
                intermediate_size: 2048,
                num_hidden_layers: 16,
                num_attention_heads: 16,
                max_position_embeddings: 4096,
                rms_norm_eps: 1e-5,
                experts: experts(64, 8, false),
                bos_token_id: None,
                eos_token_id: Some(50279),
                ..llama
            },
            Architecture::Gemma2 => gemma2,
            Architecture::Gemma3 => {
                let (vocab_size, max_position_embeddings, rope_theta) = (262208, 131072, 1e6);
                Defaults { vocab_size, max_position_embeddings, rope_theta, ..gemma2 }
            }
        }
    }
}

fn read(architecture: Architecture, fields: &Fields, outer: &Fields) -> Result<Config, ConfigError> {
    let defaults = Defaults::of(architecture);
    let gemma = architecture.is_gemma();
    let size = |field, default| Ok::<_, ConfigError>(fields.size(field)?.unwrap_or(default));
    let hidden_size = size("hidden_size", defaults.hidden_size)?;
    let num_hidden_layers = size("num_hidden_layers", defaults.num_hidden_layers)?;
    let num_attention_heads = size("num_attention_heads", defaults.num_attention_heads)?;
    let key_value_heads = match fields.has("num_key_value_heads") {
        true => fields.size("num_key_value_heads")?,
        false => defaults.num_key_value_heads,
    };
    let max_position_embeddings = size("max_position_embeddings", defaults.max_position_embeddings)?;
    let head_dim = match fields.size("head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None => derived_head_dim(hidden_size, num_attention_heads)?,
    };
    let (sliding_window, layer_types) = windows(architecture, fields, &defaults, num_hidden_layers)?;
    let rope = Rope::read(architecture, fields, defaults.rope_theta, max_position_embeddings)?;
    let is_qwen3_moe = architecture == Architecture::Qwen3Moe;
    let inner_field = if is_qwen3_moe { "moe_intermediate_size" } else { "intermediate_size" };
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let tied = fields.bool("tie_word_embeddings")?.or(outer.bool("tie_word_embeddings")?);
    Ok(Config {
        architecture,
        hidden_size,
        intermediate_size: size(inner_field, defaults.intermediate_size)?,
        experts: experts(architecture, fields, defaults.experts)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: key_value_heads.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: size("vocab_size", defaults.vocab_size)?,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
        rope_theta: rope.theta,
        rope_local_base_freq: rope.local_theta,
        rope_scaling: rope.scaling,
        max_position_embeddings,
        sliding_window,
        layer_types,
        attn_logit_softcapping: cap(architecture, fields, "attn_logit_softcapping", 50.0)?,
        final_logit_softcapping: cap(architecture, fields, "final_logit_softcapping", 30.0)?,
        query_pre_attn_scalar: match gemma {
            true => Some(fields.number("query_pre_attn_scalar")?.unwrap_or(256.0)),
            false => None,
        },
        tie_word_embeddings: tied.unwrap_or(gemma),
        attention_bias: attention_bias || architecture == Architecture::Qwen2,
        attention_output_bias: attention_bias && architecture != Architecture::Qwen2,
        hidden_activation: activation(architecture, fields)?,
        bos_token_id: token(fields, outer, "bos_token_id", defaults.bos_token_id)?.first().copied(),
        eos_token_ids: token(fields, outer, "eos_token_id", defaults.eos_token_id)?,
    })
}

/// Fields whose value would change the model, unless it is the neutral one.
fn refuse_other_mathematics(fields: &Fields) -> Result<(), ConfigError> {
    for (field, neutral) in [
        ("mlp_bias", false),
        ("use_bidirectional_attention", false),
        ("is_causal", true),
        ("is_encoder_decoder", false),
        ("add_cross_attention", false),
        ("alibi", false),
        ("use_mrope", false),
        ("use_qk_norm", false),
        ("parallel_attn", false),
    ] {
        if let Some(found) = fields.bool(field)?
            && found != neutral
        {
            return Err(ConfigError::unsupported(fields.name(field), found, format!("{neutral} is")));
        }
    }
    for (field, neutral) in [
        ("partial_rotary_factor", 1.0),
        ("embedding_multiplier", 1.0),
        ("residual_multiplier", 1.0),
        ("logits_scaling", 1.0),
        ("logit_scale", 1.0),
        ("decoder_sparse_step", 1.0),
        ("first_k_dense_replace", 0.0),
        ("n_shared_experts", 0.0),
        ("num_shared_experts", 0.0),
        ("shared_expert_intermediate_size", 0.0),
        ("routed_scaling_factor", 1.0),
        ("router_jitter_noise", 0.0),
        ("no_rope_layer_interval", 0.0),
    ] {
        if let Some(found) = fields.number(field)?
            && found != neutral
        {
            return Err(ConfigError::unsupported(fields.name(field), found, format!("{neutral} is")));
        }
    }
    if let Some(layers) =
        fields.get("mlp_only_layers").filter(|layers| layers.as_array() != Some(&Vec::new()))
    {
        let supported = "only an empty list is";
        return Err(ConfigError::unsupported(fields.name("mlp_only_layers"), layers, supported));
    }
    for field in ["quantization_config", "attention_multiplier", "clip_qkv", "no_rope_layers"] {
        if fields.get(field).is_some() {
            let supported = "only checkpoints without it are";
            return Err(ConfigError::unsupported(fields.name(field), "present", supported));
        }
    }
    Ok(())
}

/// Spelled `num_local_experts` by Mixtral, and for others `num_experts`; transformers 5 takes either.
fn experts(
    architecture: Architecture,
    fields: &Fields,
    default: Option<ExpertsConfig>,
) -> Result<Option<ExpertsConfig>, ConfigError> {
    let counts = ["num_experts", "num_local_experts"].map(|field| (field, fields.size(field)));
    let Some(default) = default else {
        for (field, found) in counts {
            if let Some(found) = found?.filter(|&count| count > 0) {
                let supported = format!("a {architecture} has no experts");
                return Err(ConfigError::unsupported(fields.name(field), found, supported));
            }
        }
        return Ok(None);
    };
    let [(_, stated), (_, local)] = counts;
    let norm = if architecture == Architecture::Mixtral { None } else { fields.bool("norm_topk_prob")? };
    Ok(Some(ExpertsConfig {
        num_experts: stated?.or(local?).unwrap_or(default.num_experts),
        num_experts_per_tok: fields.size("num_experts_per_tok")?.unwrap_or(default.num_experts_per_tok),
        norm_topk_prob: norm.unwrap_or(default.norm_topk_prob),
    }))
}

fn cap(
    architecture: Architecture,
    fields: &Fields,
    field: &str,
    gemma2: f32,
) -> Result<Option<f32>, ConfigError> {
    if architecture == Architecture::Gemma2 && !fields.has(field) {
        return Ok(Some(gemma2));
    }
    let cap = fields.number(field)?.map(|cap| cap as f32);
    match cap {
        Some(found) if !architecture.is_gemma() => {
            Err(ConfigError::unsupported(fields.name(field), found, "only Gemma caps its logits"))
        }
        cap => Ok(cap),
    }
}

fn activation(architecture: Architecture, fields: &Fields) -> Result<Activation, ConfigError> {
    let (field, default) = match architecture.is_gemma() {
        true => ("hidden_activation", "gelu_pytorch_tanh"),
        false => ("hidden_act", "silu"),
    };
    match fields.str(field)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => {
            let supported = "silu and gelu_pytorch_tanh are";
            Err(ConfigError::unsupported(fields.name(field), format!("{other:?}"), supported))
        }
    }
}

fn token(
    fields: &Fields,
    outer: &Fields,
    field: &str,
    default: Option<u32>,
) -> Result<Vec<u32>, ConfigError> {
    let stated = fields.tokens(field)?.or(outer.tokens(field)?);
    let default = if fields.has(field) { None } else { default };
    Ok(stated.unwrap_or_else(|| default.into_iter().collect()))
}

type Windows = (Option<usize>, Vec<LayerType>);

fn windows(
    architecture: Architecture,
    fields: &Fields,
    defaults: &Defaults,
    layers: usize,
) -> Result<Windows, ConfigError> {
    let window = match fields.has("sliding_window") {
        true => fields.size("sliding_window")?,
        false => defaults.sliding_window,
    };
    let is_sliding: Box<dyn Fn(usize) -> bool> = match architecture {
        Architecture::Llama | Architecture::Olmoe => Box::new(|_| false),
        Architecture::Qwen3Moe => {
            let used = fields.bool("use_sliding_window")?.unwrap_or(false) && window.is_some();
            Box::new(move |_| used)
        }
        Architecture::Mistral | Architecture::Mixtral => Box::new(|_| window.is_some()),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let used = fields.bool("use_sliding_window")?.unwrap_or(false) && window.is_some();
            let first = fields.size("max_window_layers")?.unwrap_or(28);
            Box::new(move |layer| used && layer >= first)
        }
        Architecture::Gemma2 => Box::new(|layer| layer % 2 == 0),
        Architecture::Gemma3 => {
            let period = fields.size("sliding_window_pattern")?.unwrap_or(6);
            if period == 0 {
                return Err(ConfigError::invalid(fields.name("sliding_window_pattern"), 0, "1 or more"));
            }
            Box::new(move |layer| !(layer + 1).is_multiple_of(period))
        }
    };
    // The number of layers is not validated yet, and a list of them must not be larger than a model can be.
    let by_rule = (0..layers.min(1 << 12)).map(|layer| layer_type(is_sliding(layer))).collect();
    let types = stated_layer_types(architecture, fields, by_rule)?;
    Ok((window.filter(|_| types.contains(&LayerType::Sliding)), types))
}

fn layer_type(is_sliding: bool) -> LayerType {
    if is_sliding { LayerType::Sliding } else { LayerType::Full }
}

/// The list in the file if there is one; most follow their rule alone, so that it must agree.
fn stated_layer_types(
    architecture: Architecture,
    fields: &Fields,
    by_rule: Vec<LayerType>,
) -> Result<Vec<LayerType>, ConfigError> {
    let field = "layer_types";
    let Some(names) = fields.strings(field)? else { return Ok(by_rule) };
    let types = names.into_iter().map(|name| match name {
        "full_attention" => Ok(LayerType::Full),
        "sliding_attention" => Ok(LayerType::Sliding),
        other => {
            let supported = "full_attention and sliding_attention are";
            Err(ConfigError::unsupported(fields.name(field), format!("{other:?}"), supported))
        }
    });
    let types: Vec<_> = types.collect::<Result<_, _>>()?;
    use Architecture::{Llama, Mistral, Mixtral, Olmoe, Qwen3Moe};
    let has_one_type = matches!(architecture, Llama | Mistral | Mixtral | Olmoe | Qwen3Moe);
    if has_one_type && types != by_rule {
        let supported = format!("all layers of a {architecture} are alike");
        return Err(ConfigError::unsupported(fields.name(field), "mixed", supported));
    }
    Ok(types)
}

/// Rotary embedding as the file states it.
struct Rope {
    theta: f64,
    local_theta: Option<f64>,
    scaling: RopeScaling,
}

impl Rope {
    fn read(
        architecture: Architecture,
        fields: &Fields,
        default_theta: f64,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        let stated = match fields.object("rope_parameters", "rope_parameters.")? {
            Some(parameters) => Some(parameters),
            None => fields.object("rope_scaling", "rope_scaling.")?,
        };
        let (full, sliding) = match stated {
            Some(nested) if nested.has("full_attention") || nested.has("sliding_attention") => (
                nested.object("full_attention", "rope_parameters.full_attention.")?,
                nested.object("sliding_attention", "rope_parameters.sliding_attention.")?,
            ),
            flat => (flat, None),
        };
        let theta = |of: Option<Fields>| of.map_or(Ok(None), |of| of.number("rope_theta"));
        let local = theta(sliding)?.or(fields.number("rope_local_base_freq")?);
        if let Some(sliding) = sliding {
            refuse_scaling_of_sliding_layers(&sliding)?;
        }
        Ok(Rope {
            theta: theta(full)?.or(fields.number("rope_theta")?).unwrap_or(default_theta),
            local_theta: local.or((architecture == Architecture::Gemma3).then_some(10000.0)),
            scaling: match full {
                Some(full) => rope_scaling(&full, fields, max_position_embeddings)?,
                None => RopeScaling::None,
            },
        })
    }
}

fn rope_type<'a>(rope: &Fields<'a>) -> Result<&'a str, ConfigError> {
    Ok(rope.str("rope_type")?.or(rope.str("type")?).unwrap_or("default"))
}

fn refuse_scaling_of_sliding_layers(sliding: &Fields) -> Result<(), ConfigError> {
    match rope_type(sliding)? {
        "default" => Ok(()),
        other => Err(ConfigError::unsupported(sliding.name("rope_type"), other, "default is")),
    }
}

fn rope_scaling(
    rope: &Fields,
    fields: &Fields,
    max_position_embeddings: usize,
) -> Result<RopeScaling, ConfigError> {
    let needed = |field: &str| -> Result<f64, ConfigError> {
        rope.number(field)?.ok_or_else(|| ConfigError::Missing { field: rope.name(field) })
    };
    if let Some(partial) = rope.number("partial_rotary_factor")?
        && partial != 1.0
    {
        return Err(ConfigError::unsupported(rope.name("partial_rotary_factor"), partial, "1 is"));
    }
    let stated = fields.size("original_max_position_embeddings")?;
    let stated = stated.or(rope.size("original_max_position_embeddings")?);
    let original_max_position_embeddings = stated.unwrap_or(max_position_embeddings);
    match rope_type(rope)? {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: needed("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_max_position_embeddings,
        }),
        "yarn" => yarn(rope, needed("factor")?, original_max_position_embeddings),
        "longrope" | "su" => long_rope(rope, max_position_embeddings, original_max_position_embeddings),
        other => {
            let supported = "default, linear, llama3, yarn and longrope are";
            Err(ConfigError::unsupported(rope.name("rope_type"), format!("{other:?}"), supported))
        }
    }
}

fn yarn(
    rope: &Fields,
    factor: f64,
    original_max_position_embeddings: usize,
) -> Result<RopeScaling, ConfigError> {
    let scales = rope.number("mscale")?.zip(rope.number("mscale_all_dim")?);
    let default = match scales.filter(|&(all, dim)| all != 0.0 && dim != 0.0) {
        Some((scale, scale_all_dim)) => {
            yarn_attention_factor_of(factor, scale) / yarn_attention_factor_of(factor, scale_all_dim)
        }
        None => yarn_attention_factor(factor),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
        attention_factor: rope.number("attention_factor")?.unwrap_or(default),
        truncate: rope.bool("truncate")?.unwrap_or(true),
    })
}

fn long_rope(rope: &Fields, context: usize, original: usize) -> Result<RopeScaling, ConfigError> {
    let factors =
        |field: &str| rope.floats(field)?.ok_or_else(|| ConfigError::Missing { field: rope.name(field) });
    let extension = rope.number("factor")?.unwrap_or(context as f64 / original as f64);
    let default = long_rope_attention_factor(extension, original);
    Ok(RopeScaling::LongRope {
        short_factor: factors("short_factor")?,
        long_factor: factors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor: rope.number("attention_factor")?.unwrap_or(default),
    })
}
