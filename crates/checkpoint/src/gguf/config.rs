use std::{cell::RefCell, collections::HashSet};

use samebits_nn::{Architecture, Config, ConfigError, ExpertsConfig, LayerType, RopeScaling};
use samebits_tensor::{Activation, HostWeight};

use super::{Array, Gguf, GgufError, Metadata, Value};
use crate::derived::{derived_head_dim, long_rope_attention_factor, yarn_attention_factor};

/// The hyperparameters that a GGUF file's metadata and tensors state.
///
/// # Errors
/// Naming the key that is missing, wrong, or says something that is not supported; a key of the model's own
/// namespace that is not known here counts as such.
pub fn config_from_gguf(gguf: &Gguf) -> Result<Config, ConfigError> {
    let architecture = architecture(&gguf.metadata)?;
    let keys = Keys::new(&gguf.metadata, architecture);
    refuse_other_mathematics(&keys)?;
    let config = read(gguf, architecture, &keys)?;
    keys.refuse_unread()?;
    config.validated()
}

fn architecture(metadata: &Metadata) -> Result<Architecture, ConfigError> {
    let field = "general.architecture";
    let name = metadata.str(field).map_err(wrong_type)?;
    let name = name.ok_or_else(|| ConfigError::Missing { field: field.into() })?;
    let experts = metadata.u64(&format!("{name}.expert_count")).map_err(wrong_type)?.unwrap_or(0);
    let known = Architecture::ALL.into_iter().find(|a| a.gguf_name() == name).ok_or_else(|| {
        let supported = "llama, qwen2, qwen3, qwen3moe, olmoe, gemma2 and gemma3 are";
        ConfigError::unsupported(field, format!("{name:?}"), supported)
    })?;
    // A Mistral is written as a Llama, and so is a Mixtral, with experts.
    Ok(if known == Architecture::Llama && experts > 0 { Architecture::Mixtral } else { known })
}

fn read(gguf: &Gguf, architecture: Architecture, keys: &Keys) -> Result<Config, ConfigError> {
    let hidden_size = keys.size("embedding_length")?;
    let num_hidden_layers = keys.size("block_count")?;
    let num_attention_heads = keys.size("attention.head_count")?;
    let head_dim = head_dim(keys, hidden_size, num_attention_heads)?;
    let (sliding_window, layer_types) = windows(keys, architecture, num_hidden_layers)?;
    let is_27b = num_hidden_layers == if architecture == Architecture::Gemma2 { 46 } else { 62 };
    // The file does not state the scalar; llama.cpp knows the two models that differ by their number of layers.
    let scalar = if is_27b { hidden_size.checked_div(num_attention_heads).unwrap_or(0) } else { head_dim };
    let gemma2_cap = |cap| (architecture == Architecture::Gemma2).then_some(cap);
    Ok(Config {
        architecture,
        hidden_size,
        intermediate_size: intermediate_size(keys, architecture)?,
        experts: experts(keys, architecture)?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: keys.optional_size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: vocab_size(gguf, keys)?,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")? as f32,
        rope_theta: keys.optional_number("rope.freq_base")?.unwrap_or(10000.0),
        rope_local_base_freq: rope_local_base_freq(keys, architecture)?,
        rope_scaling: rope_scaling(gguf, keys)?,
        max_position_embeddings: keys.size("context_length")?,
        sliding_window,
        layer_types,
        attn_logit_softcapping: cap(keys, "attn_logit_softcapping")?.or(gemma2_cap(50.0)),
        final_logit_softcapping: cap(keys, "final_logit_softcapping")?.or(gemma2_cap(30.0)),
        query_pre_attn_scalar: architecture.is_gemma().then_some(scalar as f64),
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        attention_bias: gguf.tensor("blk.0.attn_q.bias").is_some(),
        attention_output_bias: gguf.tensor("blk.0.attn_output.bias").is_some(),
        hidden_activation: if architecture.is_gemma() { Activation::GeluTanh } else { Activation::Silu },
        bos_token_id: gguf.metadata.u32("tokenizer.ggml.bos_token_id").map_err(wrong_type)?,
        eos_token_ids: eos_token_ids(&gguf.metadata)?,
    })
}

/// Keys whose value would change the model, unless it is the neutral one.
fn refuse_other_mathematics(keys: &Keys) -> Result<(), ConfigError> {
    for (key, neutral) in [
        ("expert_shared_count", 0.0),
        ("expert_group_count", 0.0),
        ("expert_weights_scale", 1.0),
        // A softmax over the experts, in llama.cpp's numbers.
        ("expert_gating_func", 1.0),
        ("leading_dense_block_count", 0.0),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_attn_factor", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.0),
        ("attention.max_alibi_bias", 0.0),
        ("attention.clamp_kqv", 0.0),
        ("logit_scale", 1.0),
        ("residual_scale", 1.0),
        ("embedding_scale", 1.0),
        ("nextn_predict_layers", 0.0),
    ] {
        if let Some(found) = keys.optional_number(key)?
            && found != neutral
        {
            let supported = format!("only models without it, or with {neutral}, are");
            return Err(ConfigError::unsupported(keys.full(key), found, supported));
        }
    }
    for (key, neutral) in [("attention.causal", true), ("use_parallel_residual", false)] {
        if let Some(found) = keys.bool(key)?
            && found != neutral
        {
            return Err(ConfigError::unsupported(keys.full(key), found, format!("{neutral} is")));
        }
    }
    Ok(())
}

/// Channels inside a feed-forward layer, or inside an expert where the file states those.
fn intermediate_size(keys: &Keys, architecture: Architecture) -> Result<usize, ConfigError> {
    let dense = keys.size("feed_forward_length")?;
    match architecture.has_experts() {
        true => Ok(keys.optional_size("expert_feed_forward_length")?.unwrap_or(dense)),
        false => Ok(dense),
    }
}

/// The file states whether weights are normalised for none of these; llama.cpp knows it of each architecture.
fn experts(keys: &Keys, architecture: Architecture) -> Result<Option<ExpertsConfig>, ConfigError> {
    let default = architecture != Architecture::Olmoe;
    if architecture.has_experts() {
        return Ok(Some(ExpertsConfig {
            num_experts: keys.size("expert_count")?,
            num_experts_per_tok: keys.size("expert_used_count")?,
            norm_topk_prob: keys.bool("expert_weights_norm")?.unwrap_or(default),
        }));
    }
    for key in ["expert_count", "expert_used_count"] {
        if let Some(found) = keys.optional_size(key)?.filter(|&count| count > 0) {
            let supported = format!("a {architecture} has no experts");
            return Err(ConfigError::unsupported(keys.full(key), found, supported));
        }
    }
    Ok(None)
}

fn head_dim(keys: &Keys, hidden_size: usize, heads: usize) -> Result<usize, ConfigError> {
    let head_dim = match keys.optional_size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => derived_head_dim(hidden_size, heads)?,
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.optional_size(key)?.unwrap_or(head_dim);
        if found != head_dim {
            return Err(ConfigError::unsupported(keys.full(key), found, format!("the head's {head_dim} is")));
        }
    }
    Ok(head_dim)
}

fn vocab_size(gguf: &Gguf, keys: &Keys) -> Result<usize, ConfigError> {
    let Some(embedding) = gguf.tensor("token_embd.weight") else {
        return Err(ConfigError::Missing { field: "tensor token_embd.weight".into() });
    };
    let rows = embedding.shape[0];
    let tokens = gguf.metadata.strings("tokenizer.ggml.tokens").map_err(wrong_type)?;
    let stated = [
        (keys.full("vocab_size"), keys.optional_size("vocab_size")?),
        ("tokenizer.ggml.tokens".into(), tokens.map(<[_]>::len)),
    ];
    for (field, found) in stated {
        if let Some(found) = found
            && found > rows
        {
            let expected = format!("at most the {rows} rows of token_embd.weight");
            return Err(ConfigError::invalid(field, found, expected));
        }
    }
    Ok(rows)
}

fn cap(keys: &Keys, key: &str) -> Result<Option<f32>, ConfigError> {
    Ok(keys.optional_number(key)?.map(|cap| cap as f32).filter(|&cap| cap != 0.0))
}

fn rope_local_base_freq(keys: &Keys, architecture: Architecture) -> Result<Option<f64>, ConfigError> {
    let found = keys.optional_number("rope.freq_base_swa")?;
    Ok(if architecture == Architecture::Gemma3 { found.or(Some(10000.0)) } else { found })
}

type Windows = (Option<usize>, Vec<LayerType>);

fn windows(keys: &Keys, architecture: Architecture, layers: usize) -> Result<Windows, ConfigError> {
    let default = (architecture == Architecture::Gemma2).then_some(4096);
    let window = keys.optional_size("attention.sliding_window")?.filter(|&window| window > 0).or(default);
    let period = match architecture {
        Architecture::Gemma2 => 2,
        Architecture::Gemma3 => 6,
        Architecture::Llama | Architecture::Mistral | Architecture::Mixtral => 0,
        Architecture::Qwen2 | Architecture::Qwen3 | Architecture::Qwen3Moe | Architecture::Olmoe => 1,
    };
    if let (Some(window), 1) = (window, period)
        && keys.get("attention.sliding_window_pattern").is_none()
    {
        let field = keys.full("attention.sliding_window");
        return Err(ConfigError::unsupported(field, window, "it needs attention.sliding_window_pattern"));
    }
    let types = layer_types(keys, layers, period)?;
    Ok(match window {
        Some(window) => (Some(window), types),
        None => (None, vec![LayerType::Full; types.len()]),
    })
}

/// Which layers are sliding: as the file says, or all but every `period`th; a period of 0 means all.
fn layer_types(keys: &Keys, layers: usize, period: usize) -> Result<Vec<LayerType>, ConfigError> {
    // The number of layers is not validated yet, and a list of them must not be larger than a model can be.
    let layers = layers.min(1 << 12);
    let of = |sliding| if sliding { LayerType::Sliding } else { LayerType::Full };
    let period = match keys.get("attention.sliding_window_pattern") {
        Some(Value::Array(Array::Bool(pattern))) => return Ok(pattern.iter().map(|&s| of(s)).collect()),
        Some(_) => keys.size("attention.sliding_window_pattern")?,
        None => period,
    };
    Ok((0..layers).map(|layer| of(period == 0 || layer % period < period - 1)).collect())
}

fn rope_scaling(gguf: &Gguf, keys: &Keys) -> Result<RopeScaling, ConfigError> {
    let original = keys.optional_size("rope.scaling.original_context_length")?;
    let linear = keys.optional_number("rope.scale_linear")?.filter(|&factor| factor != 1.0);
    let factor = keys.optional_number("rope.scaling.factor")?.or(linear);
    let attention_factor = keys.optional_number("rope.scaling.attn_factor")?;
    let kind = keys.str("rope.scaling.type")?.unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let missing = |key: &str| ConfigError::Missing { field: keys.full(key) };
    let original = || original.ok_or_else(|| missing("rope.scaling.original_context_length"));
    let factor = || factor.ok_or_else(|| missing("rope.scaling.factor"));
    let scaling = match kind {
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "yarn" => RopeScaling::Yarn {
            factor: factor()?,
            original_max_position_embeddings: original()?,
            beta_fast: keys.optional_number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.optional_number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: attention_factor.unwrap_or(1.0) * yarn_attention_factor(factor()?),
            truncate: true,
        },
        "longrope" => {
            let (context, original) = (keys.size("context_length")?, original()?);
            let default = long_rope_attention_factor(context as f64 / original as f64, original);
            RopeScaling::LongRope {
                short_factor: factors(gguf, "rope_factors_short.weight")?,
                long_factor: factors(gguf, "rope_factors_long.weight")?,
                original_max_position_embeddings: original,
                attention_factor: attention_factor.unwrap_or(default),
            }
        }
        other => {
            let field = keys.full("rope.scaling.type");
            return Err(ConfigError::unsupported(field, other, "none, linear, yarn and longrope are"));
        }
    };
    if gguf.tensor("rope_freqs.weight").is_none() {
        return Ok(scaling);
    }
    match scaling {
        RopeScaling::None => Ok(RopeScaling::Factors(factors(gguf, "rope_freqs.weight")?)),
        _ => Err(ConfigError::unsupported(
            "tensor rope_freqs.weight",
            format!("present next to {kind} scaling"),
            "either alone is",
        )),
    }
}

fn factors(gguf: &Gguf, name: &str) -> Result<Vec<f32>, ConfigError> {
    let tensor = gguf.tensor(name).ok_or_else(|| ConfigError::Missing { field: format!("tensor {name}") })?;
    let (name, format, shape, bytes) =
        (tensor.name.clone(), tensor.format, tensor.shape.clone(), tensor.bytes.clone());
    let weight = HostWeight { name, format, shape, bytes };
    weight.to_f32().map_err(|error| ConfigError::invalid(&tensor.name, error, "numbers"))
}

fn eos_token_ids(metadata: &Metadata) -> Result<Vec<u32>, ConfigError> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        let id = metadata.u32(&format!("tokenizer.ggml.{key}")).map_err(wrong_type)?;
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

/// Keys of the model's namespace that say nothing about its mathematics.
const WITHOUT_MEANING: [&str; 5] = [
    "tensor_data_layout",
    "rope.scaling.finetuned",
    // A norm of this kind is in none of these models.
    "attention.layer_norm_epsilon",
    // Concerns embeddings of whole texts.
    "pooling_type",
    "embedding_length_out",
];

/// Reads of `{architecture}.{key}` that remember what was read.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
    read: RefCell<HashSet<String>>,
}

impl<'a> Keys<'a> {
    fn new(metadata: &'a Metadata, architecture: Architecture) -> Self {
        Keys { metadata, prefix: architecture.gguf_name(), read: RefCell::default() }
    }

    fn full(&self, key: &str) -> String {
        let full = format!("{}.{key}", self.prefix);
        self.read.borrow_mut().insert(full.clone());
        full
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&self.full(key))
    }

    /// A size, or a list of one for each layer that are all the same.
    fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let full = self.full(key);
        let Some(Value::Array(_)) = self.metadata.get(&full) else {
            let size = self.metadata.u64(&full).map_err(wrong_type)?;
            return Ok(size.map(|size| usize::try_from(size).unwrap_or(usize::MAX)));
        };
        let sizes = self.metadata.i64s(&full).map_err(wrong_type)?.unwrap_or_default();
        match sizes.split_first() {
            Some((&first, rest)) if rest.iter().all(|&size| size == first) => {
                let size = usize::try_from(first);
                size.map(Some).map_err(|_| ConfigError::invalid(full, first, "zero or more"))
            }
            _ => Err(ConfigError::unsupported(full, "not the same in every layer", "one size for all is")),
        }
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| ConfigError::Missing { field: self.full(key) })
    }

    fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.metadata.f64(&self.full(key)).map_err(wrong_type)
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| ConfigError::Missing { field: self.full(key) })
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.metadata.bool(&self.full(key)).map_err(wrong_type)
    }

    fn str(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.metadata.str(&self.full(key)).map_err(wrong_type)
    }

    fn refuse_unread(&self) -> Result<(), ConfigError> {
        let read = self.read.borrow();
        for (key, value) in self.metadata.iter() {
            let Some(rest) = key.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            if !read.contains(key) && !WITHOUT_MEANING.contains(&rest) {
                let supported = "it is not known here and might change the model's mathematics";
                return Err(ConfigError::unsupported(key, value.type_name(), supported));
            }
        }
        Ok(())
    }
}

fn wrong_type(error: GgufError) -> ConfigError {
    match error {
        GgufError::ValueType { key, expected, found } => ConfigError::invalid(key, found, expected),
        other => ConfigError::invalid("metadata", other, "a readable file"),
    }
}
