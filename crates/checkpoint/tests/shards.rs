//! Safetensors directories that do not fit together: each error names the shard or tensor.

mod attacks;

use std::{
    fs,
    path::{Path, PathBuf},
};

use attacks::safetensors;
use samebits_checkpoint::Checkpoint;
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

/// A copy of the model in two shards, changed.
fn error_of(change: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", INDEX, SHARDS[0], SHARDS[1]] {
        fs::copy(fixture("qwen2").join(file), directory.path().join(file)).unwrap();
    }
    change(directory.path());
    Checkpoint::open(directory.path()).err().unwrap().to_string()
}

fn edit_index(directory: &Path, edit: impl FnOnce(String) -> String) {
    let path = directory.join(INDEX);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, edit(text)).unwrap();
}

#[test]
fn shards_that_do_not_fit_the_index_are_named() {
    let missing = error_of(|d| fs::remove_file(d.join(SHARDS[1])).unwrap());
    assert!(missing.contains(SHARDS[1]) && missing.contains("is missing"), "{missing}");
    let twice = error_of(|d| {
        fs::copy(d.join(SHARDS[0]), d.join(SHARDS[1])).unwrap();
    });
    assert!(twice.contains("is there twice") && twice.contains(SHARDS[1]), "{twice}");
    let emptied = error_of(|d| fs::write(d.join(SHARDS[1]), safetensors("{}", 0)).unwrap());
    assert!(emptied.contains("listed in the index"), "{emptied}");
    let cut = error_of(|d| fs::write(d.join(SHARDS[1]), b"\x10").unwrap());
    assert!(cut.contains(SHARDS[1]) && cut.contains("header"), "{cut}");
}

#[test]
fn an_index_cannot_lead_out_of_its_directory() {
    for path in ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""] {
        let error = error_of(|d| edit_index(d, |text| text.replace(SHARDS[1], path)));
        assert!(error.contains("leaves the directory") && error.contains(INDEX), "{path}: {error}");
    }
    let error = error_of(|d| edit_index(d, |_| r#"{"weight_map":{"a":1}}"#.into()));
    assert!(error.contains("weight_map"), "{error}");
}

/// A directory with one file of one tensor.
fn with_tensor(name: &str, dtype: &str, element_bytes: usize) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(fixture("llama/config.json"), directory.path().join("config.json")).unwrap();
    let header =
        format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{}]}}}}"#, 4 * element_bytes);
    let bytes = safetensors(&header, 4 * element_bytes);
    fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    directory
}

#[test]
fn types_and_tensors_that_are_not_supported_are_named() {
    for (name, dtype, element_bytes, says) in [
        ("model.norm.weight", "F64", 8, "F64"),
        ("model.norm.weight", "F8_E4M3", 1, "F8_E4M3"),
        ("model.norm.weight", "I8", 1, "I8"),
        ("model.layers.0.mlp.up_proj.bias", "F32", 4, "model.layers.0.mlp.up_proj.bias"),
        ("model.layers.99.input_layernorm.weight", "F32", 4, "model.layers.99."),
        ("model.layers.0.self_attn.q_norm.weight", "F32", 4, "q_norm"),
        ("lm_head.weight_scale", "F32", 4, "weight_scale"),
    ] {
        let directory = with_tensor(name, dtype, element_bytes);
        let error = Checkpoint::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains(says) && error.contains("not supported"), "{error}");
    }
}

/// The model of experts, with its one file changed.
fn weights_with_experts(change: impl FnOnce(&mut Vec<u8>)) -> Checkpoint {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixture("olmoe").join(file), directory.path().join(file)).unwrap();
    }
    let path = directory.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(directory.path()).unwrap()
}

/// Replaces text of the header by as much other text.
fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn experts_that_are_missing_or_differ_are_named() {
    let name = "model.layers.0.mlp.experts.up_proj.weight";
    let missing = weights_with_experts(|bytes| {
        let tensor = "model.layers.0.mlp.experts.5.up_proj.weight";
        replace(bytes, tensor, &format!("vision_tower.{}", "x".repeat(tensor.len() - 13)));
    });
    for error in [missing.weights.get(name).err(), missing.weights.layout(name).err()] {
        let error = error.unwrap().to_string();
        assert!(error.contains(name) && error.contains("expert 5 is missing"), "{error}");
    }
    let differs = weights_with_experts(|bytes| {
        let info = r#""model.layers.0.mlp.experts.3.up_proj.weight":{"dtype":"BF16","shape":[32,64]"#;
        replace(bytes, info, &info.replace("[32,64]", "[64,32]"));
    });
    let error = differs.weights.get(name).unwrap_err().to_string();
    assert!(error.contains("expert 3 is BF16 [64, 32]"), "{error}");
}

#[test]
fn tables_and_vision_parts_are_passed_over() {
    for name in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "vision_tower.vision_model.post_layernorm.weight",
        "model.vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.mm_soft_emb_norm.weight",
    ] {
        let directory = with_tensor(name, "F64", 8);
        assert!(Checkpoint::open(directory.path()).unwrap().weights.names().is_empty(), "{name}");
    }
    for name in ["language_model.model.norm.weight", "model.language_model.norm.weight"] {
        let directory = with_tensor(name, "BF16", 2);
        assert_eq!(Checkpoint::open(directory.path()).unwrap().weights.names(), ["model.norm.weight"]);
    }
}
