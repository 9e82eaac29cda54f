//! Agreement with other implementations, on fixtures that `fixtures/make.py` wrote with them.

use std::{fs, path::PathBuf};

use samebits_checkpoint::{Array, Gguf, GgufError, Value, config_from_json};
use samebits_nn::{Config, LayerType, RopeScaling};
use samebits_tensor::Format;
use serde_json::Value as Json;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// The configuration in the terms of `make.py`, without its rotary parameters.
fn in_terms_of_transformers(config: &Config) -> Json {
    let name = |layer: &LayerType| match layer {
        LayerType::Full => "full_attention",
        LayerType::Sliding => "sliding_attention",
    };
    let eos = match config.eos_token_ids.as_slice() {
        [] => Json::Null,
        [id] => (*id).into(),
        ids => ids.into(),
    };
    // Through its shortest decimal, so that 1e-6 stays 1e-6.
    let eps: f64 = config.rms_norm_eps.to_string().parse().unwrap();
    serde_json::json!({
        "layer_types": config.layer_types.iter().map(name).collect::<Vec<_>>(),
        "sliding_window": config.sliding_window,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_experts": config.experts.map(|experts| experts.num_experts),
        "num_experts_per_tok": config.experts.map(|experts| experts.num_experts_per_tok),
        "norm_topk_prob": config.experts.map(|experts| experts.norm_topk_prob),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": eps,
        "max_position_embeddings": config.max_position_embeddings,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "query_pre_attn_scalar": config.query_pre_attn_scalar.map(|scalar| scalar as u64),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos,
    })
}

fn check_rope(name: &str, config: &Config, expected: &Json) {
    let full = expected.get("full_attention").unwrap_or(expected);
    assert_eq!(Some(config.rope_theta), full["rope_theta"].as_f64(), "{name}");
    assert_eq!(config.rope_local_base_freq, expected["sliding_attention"]["rope_theta"].as_f64(), "{name}");
    let number = |field: &str| full[field].as_f64().unwrap();
    let floats = |field: &str| -> Vec<f32> {
        full[field].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let original = || full["original_max_position_embeddings"].as_u64().unwrap() as usize;
    let scaling = match full["rope_type"].as_str().unwrap() {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor") },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original_max_position_embeddings: original(),
        },
        "yarn" => RopeScaling::Yarn {
            factor: number("factor"),
            original_max_position_embeddings: original(),
            beta_fast: 32.0,
            beta_slow: 1.0,
            // 0.1 ln 4 + 1
            attention_factor: 1.138_629_436_111_989,
            truncate: true,
        },
        "longrope" => RopeScaling::LongRope {
            short_factor: floats("short_factor"),
            long_factor: floats("long_factor"),
            original_max_position_embeddings: original(),
            // sqrt(1 + ln 4 / ln 1024)
            attention_factor: 1.095_445_115_010_332_1,
        },
        other => panic!("{other}"),
    };
    assert_eq!(config.rope_scaling, scaling, "{name}");
}

#[test]
fn configs_mean_what_transformers_reads_from_them() {
    let cases: Vec<Json> = serde_json::from_slice(&fixture("configs.json")).unwrap();
    assert!(cases.len() > 20);
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let config = config_from_json(&case["config"]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut expected = case["expected"].clone();
        check_rope(name, &config, &expected["rope_parameters"]);
        let fields = expected.as_object_mut().unwrap();
        fields.remove("rope_parameters");
        if name == "gemma3 4b, text inside" {
            // Generation ends at the tokens of the whole model; transformers keeps them outside of its text part.
            fields.insert("eos_token_id".into(), case["config"]["eos_token_id"].clone());
        }
        let found = in_terms_of_transformers(&config);
        for (field, expected) in fields.iter() {
            let same = match (expected.as_f64(), found[field].as_f64()) {
                (Some(expected), Some(found)) => expected == found,
                _ => *expected == found[field],
            };
            assert!(same, "{name}: {field} is {}, transformers has {expected}", found[field]);
        }
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (config, says) in [
        (r#"{"model_type":"grok"}"#, &["model_type", "grok", "qwen3_moe"][..]),
        (r#"{"model_type":"llama","num_local_experts":4}"#, &["num_local_experts", "4"]),
        (r#"{"model_type":"qwen3_moe","decoder_sparse_step":2}"#, &["decoder_sparse_step", "2"]),
        (r#"{"model_type":"qwen3_moe","mlp_only_layers":[0]}"#, &["mlp_only_layers", "[0]"]),
        (r#"{"model_type":"qwen3_moe","num_experts_per_tok":200}"#, &["num_experts_per_tok", "200"]),
        (
            r#"{"model_type":"qwen3_moe","shared_expert_intermediate_size":64}"#,
            &["shared_expert_intermediate_size"],
        ),
        (r#"{"model_type":"mixtral","router_jitter_noise":0.1}"#, &["router_jitter_noise", "0.1"]),
        (r#"{"model_type":"olmoe","clip_qkv":8.0}"#, &["clip_qkv"]),
        (r#"{"hidden_size":8}"#, &["model_type", "missing"]),
        (r#"[]"#, &["an object"]),
        (
            r#"{"model_type":"llama","rope_scaling":{"type":"dynamic","factor":2}}"#,
            &["rope_scaling.rope_type", "dynamic"],
        ),
        (r#"{"model_type":"qwen2","rope_scaling":{"type":"mrope"}}"#, &["mrope"]),
        (r#"{"model_type":"llama","hidden_act":"relu2"}"#, &["hidden_act", "relu2", "silu"]),
        (r#"{"model_type":"gemma2","hidden_activation":"gelu"}"#, &["hidden_activation", "gelu"]),
        (r#"{"model_type":"llama","mlp_bias":true}"#, &["mlp_bias"]),
        (r#"{"model_type":"llama","partial_rotary_factor":0.5}"#, &["partial_rotary_factor", "0.5"]),
        (r#"{"model_type":"llama","quantization_config":{"quant_method":"awq"}}"#, &["quantization_config"]),
        (
            r#"{"model_type":"gemma3","text_config":{"use_bidirectional_attention":true}}"#,
            &["text_config.use_bidirectional_attention"],
        ),
        (
            r#"{"model_type":"mistral","num_hidden_layers":2,"layer_types":["full_attention","sliding_attention"]}"#,
            &["layer_types"],
        ),
        (
            r#"{"model_type":"qwen3","layer_types":["chunked_attention"]}"#,
            &["layer_types", "chunked_attention"],
        ),
        (r#"{"model_type":"qwen3","layer_types":["full_attention"]}"#, &["layer_types", "list of 1"]),
        (r#"{"model_type":"llama","num_attention_heads":0}"#, &["num_attention_heads", "0"]),
        (r#"{"model_type":"llama","num_key_value_heads":5}"#, &["num_key_value_heads", "divisor"]),
        (r#"{"model_type":"llama","hidden_size":"4096"}"#, &["hidden_size", "\"4096\"", "whole number"]),
        (r#"{"model_type":"llama","num_hidden_layers":-1}"#, &["num_hidden_layers", "-1"]),
        (r#"{"model_type":"llama","num_hidden_layers":1e9}"#, &["num_hidden_layers"]),
        (
            r#"{"model_type":"llama","rope_scaling":{"rope_type":"llama3","factor":8}}"#,
            &["rope_scaling.low_freq_factor", "missing"],
        ),
        (r#"{"model_type":"llama","rope_theta":0}"#, &["rope_theta", "0"]),
        (r#"{"model_type":"llama","eos_token_id":[2,99999]}"#, &["eos_token_id", "99999"]),
        (r#"{"model_type":"llama","final_logit_softcapping":30}"#, &["final_logit_softcapping"]),
        (r#"{"model_type":"gemma3_text","sliding_window_pattern":0}"#, &["sliding_window"]),
    ] {
        match config_from_json(&serde_json::from_str(config).unwrap()) {
            Ok(_) => panic!("{config} was read"),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    says.iter().all(|part| error.contains(part)),
                    "{config}: {error} lacks one of {says:?}"
                );
            }
        }
    }
}

#[test]
fn values_of_every_type_are_what_python_wrote() {
    let gguf = Gguf::parse(fixture("values.gguf").into()).unwrap();
    let value = |name: &str| gguf.metadata.get(&format!("test.{name}")).unwrap().clone();
    for (name, expected) in [
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60000)),
        ("i16", Value::I16(-30000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("f32", Value::F32(0.5)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("grüße".into())),
        ("u64", Value::U64(1 << 63)),
        ("i64", Value::I64(-(1 << 62))),
        ("f64", Value::F64(1.0 / 3.0)),
        ("i32s", Value::Array(Array::I32(vec![-2_000_000_000; 2]))),
        ("f32s", Value::Array(Array::F32(vec![0.5; 2]))),
        ("bools", Value::Array(Array::Bool(vec![true; 2]))),
        ("strings", Value::Array(Array::String(vec!["grüße".into(); 2]))),
    ] {
        assert_eq!(value(name), expected);
    }
    let matrix = gguf.tensor("matrix").unwrap();
    assert_eq!((matrix.format, matrix.shape.as_slice(), matrix.bytes.len()), (Format::F32, &[2, 3][..], 24));
    assert_eq!(gguf.tensor("half").unwrap().format, Format::F16);
}

#[test]
fn a_value_of_another_type_is_named() {
    let gguf = Gguf::parse(fixture("values.gguf").into()).unwrap();
    let error = gguf.metadata.u32("test.string").unwrap_err();
    let (expected, found) = ("unsigned 32-bit integer", "string");
    assert_eq!(error, GgufError::ValueType { key: "test.string".into(), expected, found });
    assert_eq!(gguf.metadata.u32("test.u8"), Ok(Some(200)));
    assert!(gguf.metadata.u32("test.i8").is_err(), "negative");
    assert!(gguf.metadata.u32("test.u64").is_err(), "too large");
    assert_eq!(gguf.metadata.u32("absent"), Ok(None));
}
