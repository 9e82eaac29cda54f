//! Opens the models under `tests/fixtures/models`, which Python's `gguf` and `safetensors` packages wrote, and
//! compares the two kinds of file with each other.

use std::path::PathBuf;

use samebits_checkpoint::Checkpoint;
use samebits_nn::{Config, LayerType, RopeScaling, WeightError, check_finite};
use samebits_tensor::Format;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(fixture(name)).unwrap()
}

/// A model in both kinds of file, whose weights are the same numbers.
const PAIRS: [(&str, &str); 10] = [
    ("llama", "gguf/llama.F16.gguf"),
    ("llama3", "gguf/llama3.BF16.gguf"),
    ("mistral", "gguf/mistral.BF16.gguf"),
    ("qwen2", "gguf/qwen2.F32.gguf"),
    ("qwen3", "gguf/qwen3.BF16.gguf"),
    ("qwen3_moe", "gguf/qwen3_moe.BF16.gguf"),
    ("mixtral", "gguf/mixtral.BF16.gguf"),
    ("olmoe", "gguf/olmoe.BF16.gguf"),
    ("gemma2", "gguf/gemma2.BF16.gguf"),
    ("gemma3", "gguf/gemma3.BF16.gguf"),
];

#[test]
fn both_kinds_of_file_hold_the_same_weights_under_the_same_names() {
    for (directory, gguf) in PAIRS {
        let (directory, gguf) = (open(directory), open(gguf));
        let (mut left, mut right) = (directory.weights.names(), gguf.weights.names());
        left.sort();
        right.sort();
        assert_eq!(left, right);
        for name in &left {
            let left = directory.weights.get(name).unwrap();
            let right = gguf.weights.get_shaped(name, &left.shape).unwrap();
            assert_eq!(left.to_f32().unwrap(), right.to_f32().unwrap(), "{name}");
            check_finite(&right).unwrap();
            assert_eq!(gguf.weights.layout(name), Ok((right.format, right.shape)));
            assert_eq!(directory.weights.layout(name), Ok((left.format, left.shape)));
        }
    }
}

/// Undoes the differences that the formats themselves make: see the fixtures' README.
fn in_gguf_terms(directory: &str, mut config: Config) -> Config {
    match directory {
        "llama3" => config.rope_scaling = RopeScaling::None,
        "mistral" => {
            config.architecture = samebits_nn::Architecture::Llama;
            config.layer_types.fill(LayerType::Full);
            config.sliding_window = None;
        }
        "gemma2" => config.query_pre_attn_scalar = Some(config.head_dim as f64),
        _ => {}
    }
    config
}

#[test]
fn both_kinds_of_file_state_the_same_configuration() {
    for (directory, gguf) in PAIRS {
        let stated = in_gguf_terms(directory, open(directory).config);
        let mut found = open(gguf).config;
        if let RopeScaling::Factors(factors) = &found.rope_scaling {
            assert_eq!((directory, factors.len()), ("llama3", 12));
            found.rope_scaling = RopeScaling::None;
        }
        assert_eq!(stated, found, "{directory}");
    }
}

#[test]
fn what_a_directory_states_arrives() {
    let gemma3 = open("gemma3").config;
    assert_eq!((gemma3.rope_theta, gemma3.rope_local_base_freq), (1e6, Some(20000.0)));
    assert_eq!((gemma3.window(0), gemma3.window(5)), (Some(32), None));
    let mistral = open("mistral").config;
    assert_eq!(mistral.window(1), Some(40));
    let llama3 = open("llama3");
    let RopeScaling::Llama3 { factor, original_max_position_embeddings, .. } = llama3.config.rope_scaling
    else {
        panic!("{:?}", llama3.config.rope_scaling)
    };
    assert_eq!((factor, original_max_position_embeddings), (8.0, 64));
    assert!(llama3.chat_template.unwrap().contains("messages"));
    let qwen2 = open("qwen2");
    assert_eq!(qwen2.files.len(), 2);
    assert!(qwen2.config.attention_bias && !qwen2.config.attention_output_bias);
}

#[test]
fn experts_are_stacked_in_their_order() {
    let model = open("mixtral");
    let experts = model.config.experts.unwrap();
    assert_eq!((experts.num_experts, experts.num_experts_per_tok, experts.norm_topk_prob), (5, 2, true));
    let file = std::fs::read(&model.files[0]).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    for (ours, theirs) in [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")] {
        let stacked = model.weights.get(&format!("model.layers.1.mlp.experts.{ours}.weight")).unwrap();
        let parts = (0..5).flat_map(|expert| {
            let name = format!("model.layers.1.block_sparse_moe.experts.{expert}.{theirs}.weight");
            tensors.tensor(&name).unwrap().data().to_vec()
        });
        assert_eq!((stacked.shape[0], &*stacked.bytes), (5, parts.collect::<Vec<_>>().as_slice()), "{ours}");
    }
    let qwen3 = open("qwen3_moe").config;
    assert_eq!((qwen3.intermediate_size, qwen3.experts.unwrap().num_experts), (32, 8));
    assert!(!open("olmoe").config.experts.unwrap().norm_topk_prob);
}

#[test]
fn quantised_rows_move_whole() {
    let (directory, quantised) = (open("llama"), open("gguf/llama.Q8_0.gguf"));
    for projection in ["q", "k"] {
        let name = format!("model.layers.1.self_attn.{projection}_proj.weight");
        let exact = directory.weights.get(&name).unwrap().to_f32().unwrap();
        let weight = quantised.weights.get(&name).unwrap();
        assert_eq!(weight.format, Format::Q8_0);
        for (x, y) in exact.iter().zip(weight.to_f32().unwrap()) {
            assert!((x - y).abs() < 0.02, "{name}: {x} {y}");
        }
    }
}

#[test]
fn formats_sum_to_the_file() {
    let model = open("gguf/llama.mixed32.gguf");
    let shares = model.formats().unwrap();
    let bytes: u64 = shares.iter().map(|share| share.bytes).sum();
    let file = std::fs::metadata(&model.files[0]).unwrap().len();
    assert!(bytes < file && bytes > file / 2, "{bytes} of {file}");
    assert!(shares.iter().any(|share| share.format == Format::Mxfp4));
}

#[test]
fn a_wrong_shape_and_a_missing_tensor_are_named() {
    let weights = open("llama").weights;
    let error = weights.get_shaped("model.norm.weight", &[7]).unwrap_err();
    assert!(matches!(&error, WeightError::Shape { expected, .. } if expected == &[7]), "{error}");
    let error = weights.get("model.layers.9.mlp.up_proj.weight").unwrap_err().to_string();
    assert!(error.contains("model.layers.9.mlp.up_proj.weight") && error.contains("llama"), "{error}");
}
