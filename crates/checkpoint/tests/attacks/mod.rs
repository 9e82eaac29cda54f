//! Model files made to hurt a reader, each with words that the error must say.

#![allow(dead_code)]

use std::sync::Arc;

use samebits_checkpoint::{
    GenerationConfig, Gguf, GgufWeights, config_from_gguf, parse_safetensors,
    tokenizer::{GgufVocab, Tokenizer},
};
use samebits_nn::{WeightSource, check_finite};

/// Everything that opening a GGUF file and reading its weights does.
pub(crate) fn read_gguf(bytes: &[u8]) -> Result<(), String> {
    let gguf = Arc::new(Gguf::parse(bytes.to_vec().into()).map_err(|error| error.to_string())?);
    let config = config_from_gguf(&gguf).map_err(|error| error.to_string())?;
    GenerationConfig::from_gguf(&gguf.metadata).map_err(|error| error.to_string())?;
    let weights = GgufWeights::new(gguf, "file", &config).map_err(|error| error.to_string())?;
    for name in weights.names() {
        let weight = weights.get(&name).map_err(|error| error.to_string())?;
        check_finite(&weight).map_err(|error| error.to_string())?;
    }
    Ok(())
}

pub(crate) fn read_safetensors(bytes: &[u8]) -> Result<(), String> {
    parse_safetensors(&bytes.to_vec().into()).map(drop).map_err(|error| error.to_string())
}

/// A tokenizer, and a text through it.
pub(crate) fn read_tokenizer(bytes: &[u8]) -> Result<(), String> {
    let gguf = Gguf::parse(bytes.to_vec().into()).map_err(|error| error.to_string())?;
    let vocab = GgufVocab::from_metadata(&gguf.metadata).map_err(|error| error.to_string())?;
    let tokenizer = Tokenizer::from_gguf(vocab).map_err(|error| error.to_string())?;
    if let Ok(ids) = tokenizer.encode("ab ba\n</s>", true, false) {
        tokenizer.decode(&ids, false);
    }
    Ok(())
}

/// A hostile file.
pub(crate) struct Attack {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Parts of the error's text; empty where the file is valid.
    pub(crate) says: Vec<String>,
}

fn attack(name: &str, bytes: Vec<u8>, says: &[&str]) -> Attack {
    Attack { name: name.into(), bytes, says: says.iter().map(|part| part.to_string()).collect() }
}

/// Writes GGUF files, right or wrong, as it is told.
#[derive(Clone)]
pub(crate) struct GgufWriter {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) key_count: Option<u64>,
    pub(crate) tensor_count: Option<u64>,
    /// Key, type code, and the value's bytes.
    pub(crate) keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    /// Name, extents innermost first, type code, offset.
    pub(crate) tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    pub(crate) data: Vec<u8>,
}

impl GgufWriter {
    /// A valid Llama of one layer and 8 channels, in F32.
    pub(crate) fn llama() -> Self {
        let mut writer = GgufWriter {
            magic: *b"GGUF",
            version: 3,
            key_count: None,
            tensor_count: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        };
        writer.key("general.architecture", 8, string(b"llama"));
        for (key, value) in [
            ("embedding_length", 8u32),
            ("block_count", 1),
            ("feed_forward_length", 4),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("context_length", 16),
        ] {
            writer.key(&format!("llama.{key}"), 4, value.to_le_bytes().into());
        }
        writer.key("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f32.to_le_bytes().into());
        for (name, extents) in [
            ("token_embd.weight", &[8, 3][..]),
            ("output_norm.weight", &[8]),
            ("blk.0.attn_norm.weight", &[8]),
            ("blk.0.attn_q.weight", &[8, 8]),
            ("blk.0.attn_k.weight", &[8, 4]),
            ("blk.0.attn_v.weight", &[8, 4]),
            ("blk.0.attn_output.weight", &[8, 8]),
            ("blk.0.ffn_norm.weight", &[8]),
            ("blk.0.ffn_gate.weight", &[8, 4]),
            ("blk.0.ffn_up.weight", &[8, 4]),
            ("blk.0.ffn_down.weight", &[4, 8]),
        ] {
            writer.tensor(name, extents);
        }
        writer
    }

    pub(crate) fn key(&mut self, key: &str, code: u32, value: Vec<u8>) {
        self.keys.push((key.into(), code, value));
    }

    /// Replaces the value of a key.
    pub(crate) fn set(&mut self, key: &str, code: u32, value: Vec<u8>) {
        self.keys.retain(|(name, _, _)| name != key.as_bytes());
        self.key(key, code, value);
    }

    /// Adds an F32 tensor whose values count up.
    pub(crate) fn tensor(&mut self, name: &str, extents: &[u64]) {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors.push((name.into(), extents.into(), 0, self.data.len() as u64));
        let values = (0..extents.iter().product::<u64>()).flat_map(|i| (i as f32).to_le_bytes());
        self.data.extend(values);
    }

    pub(crate) fn find(&mut self, name: &str) -> &mut (Vec<u8>, Vec<u64>, u32, u64) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name.as_bytes()).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, code, value) in &self.keys {
            out.extend(string(key));
            out.extend(code.to_le_bytes());
            out.extend(value);
        }
        for (name, extents, code, offset) in &self.tensors {
            out.extend(string(name));
            out.extend((extents.len() as u32).to_le_bytes());
            extents.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(code.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// A string as GGUF writes it.
pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// An array as GGUF writes it.
pub(crate) fn array(code: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    [&code.to_le_bytes()[..], &len.to_le_bytes(), elements].concat()
}

/// The valid file, changed.
fn changed(change: impl FnOnce(&mut GgufWriter)) -> Vec<u8> {
    let mut writer = GgufWriter::llama();
    change(&mut writer);
    writer.bytes()
}

pub(crate) fn gguf_attacks() -> Vec<Attack> {
    [container_attacks(), value_attacks(), tensor_attacks(), config_attacks()].into_iter().flatten().collect()
}

fn container_attacks() -> Vec<Attack> {
    vec![
        attack("valid", changed(|_| {}), &[]),
        attack("valid-v2", changed(|w| w.version = 2), &[]),
        attack("empty", Vec::new(), &["empty"]),
        attack("short-magic", b"GGU".to_vec(), &["\"GGU\"", "not with \"GGUF\""]),
        attack("zip", b"PK\x03\x04 and so on".to_vec(), &["PK", ".gguf"]),
        attack("big-endian", changed(|w| w.version = 3u32.swap_bytes()), &["big-endian"]),
        attack("v1", changed(|w| w.version = 1), &["version 1", "convert"]),
        attack("v4", changed(|w| w.version = 4), &["version 4"]),
        attack("header-only", b"GGUF\x03\0\0\0".to_vec(), &["tensor count", "cut short"]),
        attack("huge-key-count", changed(|w| w.key_count = Some(u64::MAX)), &["key count", "cannot fit"]),
        attack(
            "huge-tensor-count",
            changed(|w| w.tensor_count = Some(1 << 60)),
            &["tensor count", "cannot fit"],
        ),
        attack("one-key-too-many", changed(|w| w.key_count = Some(w.keys.len() as u64 + 1)), &[""]),
        attack("split", changed(|w| w.key("split.count", 2, vec![3, 0])), &["one part of 3", "--merge"]),
        attack(
            "duplicate-key",
            changed(|w| w.key("llama.block_count", 4, vec![1, 0, 0, 0])),
            &["llama.block_count", "twice"],
        ),
        attack(
            "alignment-zero",
            changed(|w| w.key("general.alignment", 4, vec![0; 4])),
            &["general.alignment", "0"],
        ),
        attack(
            "alignment-24",
            changed(|w| w.key("general.alignment", 4, vec![24, 0, 0, 0])),
            &["24", "power of two"],
        ),
        attack(
            "alignment-huge",
            changed(|w| w.key("general.alignment", 10, (1u64 << 63).to_le_bytes().into())),
            &["general.alignment"],
        ),
        attack(
            "alignment-string",
            changed(|w| w.key("general.alignment", 8, string(b"32"))),
            &["general.alignment", "string"],
        ),
    ]
}

fn value_attacks() -> Vec<Attack> {
    let nested = |depth: usize| (0..depth).fold(array(0, 1, &[7]), |inner, _| array(9, 1, &inner));
    let with = |code: u32, value: Vec<u8>| changed(|w| w.key("x.y", code, value));
    vec![
        attack("every-type", every_type(), &[]),
        attack("unknown-type", with(13, vec![0; 8]), &["`x.y`", "type 13"]),
        attack("unknown-element-type", with(9, array(77, 1, &[0; 8])), &["`x.y`", "type 77"]),
        attack("bool-two", with(7, vec![2]), &["`x.y`", "2"]),
        attack("bool-array", with(9, array(7, 3, &[0, 1, 9])), &["`x.y`", "9"]),
        attack("huge-string", with(8, u64::MAX.to_le_bytes().into()), &["x.y", "cannot fit"]),
        attack("long-string", with(8, 100_000u64.to_le_bytes().into()), &["x.y", "cannot fit"]),
        attack("huge-array", with(9, array(10, u64::MAX / 8, &[])), &["x.y", "cannot fit"]),
        attack("huge-string-array", with(9, array(8, 1 << 40, &[])), &["x.y", "cannot fit"]),
        attack("huge-nested-array", with(9, array(9, 1 << 40, &[])), &["x.y", "cannot fit"]),
        attack("nested-3", with(9, nested(3)), &[]),
        attack("nested-5", with(9, nested(5)), &["x.y", "deeper"]),
        attack("nested-1000", with(9, nested(1000)), &["x.y", "deeper"]),
        attack("not-utf8-value", with(8, string(b"ab\xff")), &["x.y", "byte 2"]),
        attack(
            "not-utf8-key",
            changed(|w| w.keys.push((b"a\xc0".to_vec(), 0, vec![0]))),
            &["name of key 8", "UTF-8"],
        ),
        attack("not-utf8-in-array", with(9, array(8, 1, &string(b"\x80"))), &["x.y", "UTF-8"]),
    ]
}

/// A file with a value of each of the thirteen types, and arrays of them.
fn every_type() -> Vec<u8> {
    changed(|w| {
        for (code, width) in
            [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (10, 8), (11, 8), (12, 8)]
        {
            w.key(&format!("x.{code}"), code, vec![1; width]);
            w.key(&format!("x.array.{code}"), 9, array(code, 2, &vec![1; 2 * width]));
        }
        w.key("x.8", 8, string("ünï".as_bytes()));
        w.key("x.array.8", 9, array(8, 2, &[string(b"a"), string(b"")].concat()));
        w.key("x.array.empty", 9, array(8, 0, &[]));
    })
}

/// Name, extents, type and offset of a tensor.
type TensorFields = (Vec<u8>, Vec<u64>, u32, u64);

fn tensor_attacks() -> Vec<Attack> {
    let q = "blk.0.attn_q.weight";
    let with = |change: &dyn Fn(&mut TensorFields)| changed(|w| change(w.find(q)));
    vec![
        attack("rank-0", with(&|t| t.1.clear()), &[q, "0 dimensions"]),
        attack("rank-5", with(&|t| t.1 = vec![1; 5]), &[q, "5 dimensions"]),
        attack("rank-huge", changed_rank(), &[q, "dimensions"]),
        attack("extent-zero", with(&|t| t.1 = vec![8, 0]), &[q, "zero"]),
        attack("extents-overflow", with(&|t| t.1 = vec![u64::MAX, u64::MAX]), &[q, "too large"]),
        attack("extents-wrap-to-small", with(&|t| t.1 = vec![1 << 33, 1 << 31]), &[q, "too large"]),
        attack("extents-past-the-end", with(&|t| t.1 = vec![8, 1 << 30]), &[q, "ends at"]),
        attack("iq2-xs", with(&|t| t.2 = 17), &[q, "IQ2_XS", "Q4_K"]),
        attack("f64", with(&|t| t.2 = 28), &[q, "F64"]),
        attack("unknown-tensor-type", with(&|t| t.2 = 999), &[q, "999"]),
        attack("half-a-block", with(&|t| t.2 = 2), &[q, "Q4_0", "32"]),
        attack("misaligned", with(&|t| t.3 += 4), &[q, "alignment"]),
        attack("overlap", changed(|w| w.find(q).3 -= 32), &["overlaps"]),
        attack("same-place", changed(|w| w.find("blk.0.attn_v.weight").3 = w.tensors[4].3), &["overlaps"]),
        attack("offset-past-the-end", with(&|t| t.3 = 1 << 40), &[q, "ends at"]),
        attack("offset-overflow", with(&|t| t.3 = u64::MAX - 31), &[q, "ends at"]),
        attack("duplicate-tensor", changed(|w| w.find("blk.0.attn_v.weight").0 = q.into()), &[q, "twice"]),
        attack(
            "data-cut-short",
            changed(|w| w.data.truncate(w.data.len() - 1)),
            &["blk.0.ffn_down.weight", "cut short"],
        ),
        attack("no-data", changed(|w| w.data.clear()), &["cut short"]),
        attack("not-utf8-tensor", with(&|t| t.0 = b"\xff".to_vec()), &["name of tensor 3", "UTF-8"]),
    ]
}

fn changed_rank() -> Vec<u8> {
    let mut bytes = GgufWriter::llama().bytes();
    let name = b"blk.0.attn_q.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes
}

fn config_attacks() -> Vec<Attack> {
    let with = |key: &str, code: u32, value: Vec<u8>| changed(|w| w.set(key, code, value));
    let u32_ = |key: &str, value: u32| with(&format!("llama.{key}"), 4, value.to_le_bytes().into());
    let experts = |count: u32, used: u32| {
        changed(|w| {
            w.set("llama.expert_count", 4, count.to_le_bytes().into());
            w.set("llama.expert_used_count", 4, used.to_le_bytes().into());
        })
    };
    vec![
        attack("no-architecture", changed(|w| drop(w.keys.remove(0))), &["general.architecture", "missing"]),
        attack("bert", with("general.architecture", 8, string(b"bert")), &["\"bert\"", "llama"]),
        attack("zero-heads", u32_("attention.head_count", 0), &["num_attention_heads", "0"]),
        attack(
            "three-heads",
            u32_("attention.head_count", 3),
            &["num_attention_heads", "divisor of hidden_size, 8"],
        ),
        attack("more-kv-heads", u32_("attention.head_count_kv", 4), &["num_key_value_heads"]),
        attack("huge-layers", u32_("block_count", u32::MAX), &["num_hidden_layers"]),
        attack(
            "negative-layers",
            with("llama.block_count", 5, (-1i32).to_le_bytes().into()),
            &["llama.block_count"],
        ),
        attack("missing-layers", u32_("block_count", 0), &["num_hidden_layers"]),
        attack("experts-without-choices", u32_("expert_count", 8), &["llama.expert_used_count", "missing"]),
        attack("choices-without-experts", u32_("expert_used_count", 2), &["llama.expert_used_count", "2"]),
        attack("too-many-experts", experts(u32::MAX, 2), &["num_experts", "4294967295"]),
        attack("more-choices-than-experts", experts(4, 5), &["num_experts_per_tok", "5"]),
        attack("experts-without-tensors", experts(4, 2), &["blk.0.ffn_gate.weight", "mixtral"]),
        attack(
            "sigmoid-experts",
            changed(|w| {
                w.set("llama.expert_count", 4, 4u32.to_le_bytes().into());
                w.set("llama.expert_gating_func", 4, 2u32.to_le_bytes().into());
            }),
            &["expert_gating_func", "2"],
        ),
        attack("shared-experts", u32_("expert_shared_count", 1), &["expert_shared_count", "1"]),
        attack("partial-rotary", u32_("rope.dimension_count", 2), &["llama.rope.dimension_count"]),
        attack("unknown-key", u32_("swin_norm", 1), &["llama.swin_norm", "not known"]),
        attack(
            "heads-by-layer",
            with("llama.attention.head_count", 9, array(4, 2, &[2, 0, 0, 0, 1, 0, 0, 0])),
            &["head_count", "every layer"],
        ),
        attack(
            "eps-nan",
            with("llama.attention.layer_norm_rms_epsilon", 6, f32::NAN.to_le_bytes().into()),
            &["rms_norm_eps", "NaN"],
        ),
        attack(
            "alibi",
            with("llama.attention.max_alibi_bias", 6, 8f32.to_le_bytes().into()),
            &["max_alibi_bias"],
        ),
        attack(
            "dynamic-rope",
            with("llama.rope.scaling.type", 8, string(b"dynamic")),
            &["rope.scaling.type", "dynamic"],
        ),
        attack(
            "no-embedding",
            changed(|w| w.find("token_embd.weight").0 = b"embd".to_vec()),
            &["token_embd.weight"],
        ),
        attack("mlp-bias", changed(|w| w.tensor("blk.0.ffn_up.bias", &[4])), &["blk.0.ffn_up.bias"]),
        attack(
            "layer-too-many",
            changed(|w| w.tensor("blk.1.attn_norm.weight", &[8])),
            &["blk.1.attn_norm.weight", "1 layers"],
        ),
        attack(
            "rope-freqs-short",
            changed(|w| w.tensor("rope_freqs.weight", &[1])),
            &["rope_freqs.weight", "2 of them"],
        ),
        attack(
            "rope-freqs-zero",
            changed(|w| w.tensor("rope_freqs.weight", &[2])),
            &["rope_freqs.weight[0]"],
        ),
        attack(
            "bos-past-vocabulary",
            with("tokenizer.ggml.bos_token_id", 4, vec![9, 0, 0, 0]),
            &["bos_token_id", "9"],
        ),
    ]
}

/// The valid file with a vocabulary of tokens that SentencePiece or a byte-level model could have.
fn with_vocabulary(model: &str, change: impl FnOnce(&mut GgufWriter)) -> Vec<u8> {
    changed(|w| {
        let tokens = ["<unk>", "a", "b", "ab", "\u{2581}", "\u{0120}", "</s>", "<0x0A>"];
        let listed: Vec<u8> = tokens.iter().flat_map(|token| string(token.as_bytes())).collect();
        let scores: Vec<u8> = (0..8).flat_map(|i| (-(i as f32)).to_le_bytes()).collect();
        let kinds: Vec<u8> = [2u32, 1, 1, 1, 1, 1, 3, 6].iter().flat_map(|kind| kind.to_le_bytes()).collect();
        w.find("token_embd.weight").1 = vec![8, 8];
        w.tensors.rotate_left(1);
        w.data.resize(w.data.len().next_multiple_of(32), 0);
        w.tensors.last_mut().unwrap().3 = w.data.len() as u64;
        w.data.resize(w.data.len() + 256, 0);
        w.key("tokenizer.ggml.model", 8, string(model.as_bytes()));
        w.key("tokenizer.ggml.tokens", 9, array(8, 8, &listed));
        w.key("tokenizer.ggml.scores", 9, array(6, 8, &scores));
        w.key("tokenizer.ggml.token_type", 9, array(5, 8, &kinds));
        w.key("tokenizer.ggml.merges", 9, array(8, 1, &string(b"a b")));
        w.key("tokenizer.ggml.eos_token_id", 4, 6u32.to_le_bytes().into());
        change(w);
    })
}

pub(crate) fn tokenizer_attacks() -> Vec<Attack> {
    let key = |key: &str| format!("tokenizer.ggml.{key}");
    let with =
        |name: &str, code: u32, value: Vec<u8>| with_vocabulary("gpt2", |w| w.set(&key(name), code, value));
    let without = |name: &str| with_vocabulary("gpt2", |w| w.keys.retain(|k| k.0 != key(name).as_bytes()));
    vec![
        attack("valid", with_vocabulary("gpt2", |_| {}), &[]),
        attack("valid-llama", with_vocabulary("llama", |_| {}), &[]),
        attack("valid-t5", with_vocabulary("t5", |_| {}), &[]),
        attack("model-unknown", with_vocabulary("rwkv", |_| {}), &["tokenizer.ggml.model", "rwkv"]),
        attack("model-number", with("model", 4, vec![0; 4]), &["tokenizer.ggml.model"]),
        attack("no-model", without("model"), &["tokenizer.ggml.model"]),
        attack("no-tokens", without("tokens"), &["tokenizer.ggml.tokens"]),
        attack("tokens-empty", with("tokens", 9, array(8, 0, &[])), &["tokenizer.ggml."]),
        attack(
            "tokens-twice",
            with("tokens", 9, array(8, 8, &string(b"a").repeat(8))),
            &["tokenizer.ggml.tokens"],
        ),
        attack(
            "types-short",
            with("token_type", 9, array(5, 1, &[1, 0, 0, 0])),
            &["tokenizer.ggml.token_type"],
        ),
        attack("types-unknown", with("token_type", 9, array(5, 8, &[9; 32])), &["tokenizer.ggml.token_type"]),
        attack("merge-of-nothing", with("merges", 9, array(8, 1, &string(b"a"))), &["tokenizer.ggml.merges"]),
        attack(
            "merge-of-unknown",
            with("merges", 9, array(8, 1, &string(b"x y"))),
            &["tokenizer.ggml.merges"],
        ),
        attack(
            "eos-past-the-end",
            with("eos_token_id", 4, vec![8, 0, 0, 0]),
            &["tokenizer.ggml.eos_token_id"],
        ),
        attack("pre-unknown", with("pre", 8, string(b"no-such-split")), &["tokenizer.ggml.pre"]),
        attack(
            "scores-nan",
            with_vocabulary("llama", |w| {
                w.set(&key("scores"), 9, array(6, 8, &f32::NAN.to_le_bytes().repeat(8)));
            }),
            &["tokenizer.ggml.scores"],
        ),
        attack(
            "scores-short",
            with_vocabulary("t5", |w| {
                w.set(&key("scores"), 9, array(6, 1, &[0; 4]));
            }),
            &["tokenizer.ggml.scores"],
        ),
        attack(
            "charsmap-noise",
            with_vocabulary("t5", |w| {
                w.key(&key("precompiled_charsmap"), 9, array(0, 9, &[255; 9]));
            }),
            &["tokenizer.ggml.precompiled_charsmap"],
        ),
    ]
}

/// A safetensors file of this header and so many bytes of data.
pub(crate) fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

pub(crate) fn safetensors_attacks() -> Vec<Attack> {
    let one = |info: &str, data| safetensors(&format!(r#"{{"w":{info}}}"#), data);
    vec![
        attack("valid", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 8), &[]),
        attack("empty", Vec::new(), &["header"]),
        attack("header-length-huge", u64::MAX.to_le_bytes().to_vec(), &["header"]),
        attack("header-length-past-the-end", 100u64.to_le_bytes().to_vec(), &["header"]),
        attack("not-json", safetensors("{", 0), &["header"]),
        attack("not-utf8", [&1u64.to_le_bytes()[..], b"\xff"].concat(), &["header"]),
        attack(
            "offsets-past-the-end",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 4),
            &["header"],
        ),
        attack(
            "offsets-reversed",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8),
            &["header"],
        ),
        attack(
            "offsets-huge",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]}"#, 8),
            &["header"],
        ),
        attack(
            "shape-overflow",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#, 0),
            &["header"],
        ),
        attack("trailing-bytes", one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 9), &["header"]),
        attack(
            "overlap",
            safetensors(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
            ),
            &["header"],
        ),
        attack(
            "twice",
            safetensors(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
                8,
            ),
            &["header"],
        ),
        attack("deep-json", safetensors(&"[".repeat(100_000), 0), &["header"]),
        attack(
            "unknown-dtype",
            one(r#"{"dtype":"F128","shape":[1],"data_offsets":[0,16]}"#, 16),
            &["header"],
        ),
    ]
}
