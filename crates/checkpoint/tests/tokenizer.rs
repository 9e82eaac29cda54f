//! Token ids against Hugging Face's tokenizers and against SentencePiece; see fixtures/make_text_goldens.py.

#[path = "common/vocab.rs"]
mod vocab;

use proptest::prelude::*;
use samebits_checkpoint::tokenizer::{GgufVocab, Tokenizer, TokenizerError};
use serde_json::Value;

const BYTE_LEVEL: [&str; 7] = ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3"];
const SENTENCEPIECE: [&str; 5] = ["llama", "gemma", "unused", "unk", "t5"];
const HUGGING_FACE: [&str; 3] = ["prepend", "metaspace", "unigram"];

fn read(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/tokenizer/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&read(&format!("{name}.json"))).unwrap()
}

fn gguf(name: &str) -> Tokenizer {
    Tokenizer::from_gguf(vocab::vocab(&json(name)["vocab"])).unwrap()
}

fn hugging_face(name: &str) -> Tokenizer {
    Tokenizer::from_json(&read(&format!("{name}.tokenizer.json")), None).unwrap()
}

fn corpus() -> Vec<String> {
    serde_json::from_slice(&read("corpus.json")).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Compares every text of the corpus; `differing` are the places where the ids are not `golden["ids"]`.
fn check(name: &str, tokenizer: &Tokenizer, golden: &Value, differing: Option<&str>, parse_special: bool) {
    for (place, text) in corpus().iter().enumerate() {
        let other = differing.and_then(|key| golden[key].get(place.to_string()));
        let expected = ids(other.unwrap_or(&golden["ids"][place]));
        let found = tokenizer.encode(text, false, parse_special).unwrap();
        assert_eq!(found, expected, "{name}: ids of {text:?}");
        if differing.is_none() {
            // SentencePiece shows what it does not know, Hugging Face and we leave it out.
            let decoded =
                golden["decoded"].get(place.to_string()).map_or(text.as_str(), |text| text.as_str().unwrap());
            assert_eq!(
                tokenizer.decode(&found, true),
                decoded.replace(" \u{2047} ", ""),
                "{name}: text of {found:?}"
            );
        }
    }
}

#[test]
fn byte_level_vocabularies_of_gguf_files() {
    for name in BYTE_LEVEL {
        let (tokenizer, golden) = (gguf(name), json(name));
        check(name, &tokenizer, &golden, None, true);
        check(name, &tokenizer, &golden, Some("untrusted"), false);
    }
}

#[test]
fn byte_level_tokenizer_json() {
    for name in BYTE_LEVEL {
        check(name, &hugging_face(name), &json(name), Some("normalized"), true);
    }
}

#[test]
fn sentencepiece_vocabularies_of_gguf_files() {
    for name in SENTENCEPIECE {
        check(name, &gguf(name), &json(name), None, false);
    }
}

#[test]
fn piece_tokenizer_json() {
    for name in HUGGING_FACE {
        let (tokenizer, golden) = (hugging_face(name), json(name));
        check(name, &tokenizer, &golden, None, true);
        assert_eq!(tokenizer.encode("", true, false).unwrap(), ids(&golden["around"]), "{name}");
    }
}

#[test]
fn what_surrounds_a_text() {
    let tokenizer = gguf("llama-bpe");
    assert!(tokenizer.add_bos());
    assert_eq!(tokenizer.encode("", true, false).unwrap(), [tokenizer.bos().unwrap()]);
    let config =
        br#"{"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": false}"#;
    let mut tokenizer = Tokenizer::from_json(&read("llama-bpe.tokenizer.json"), Some(config)).unwrap();
    assert!(!tokenizer.add_bos());
    assert_eq!(tokenizer.eos_ids(), [2]);
    tokenizer.add_eos_ids(&[2, 0]).unwrap();
    assert_eq!(tokenizer.eos_ids(), [2, 0]);
    assert!(tokenizer.add_eos_ids(&[902]).unwrap_err().to_string().contains("generation_config.json"));
}

#[test]
fn tokens_are_bytes() {
    let tokenizer = gguf("smollm");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("Ġt").unwrap()), b" t");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("<|im_end|>").unwrap()), b"");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("\n\n\n").unwrap()), b"\n\n\n");
    assert_eq!(tokenizer.token_bytes(tokenizer.vocab_size() as u32), b"");
    let tokenizer = gguf("llama");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("<0x0A>").unwrap()), b"\n");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("▁t").unwrap()), b" t");
}

/// A vocabulary with one thing wrong, and what the error must name.
fn refused(spoil: impl FnOnce(&mut GgufVocab), field: &str) {
    let mut vocab = vocab::vocab(&json("gpt-2")["vocab"]);
    spoil(&mut vocab);
    let error = Tokenizer::from_gguf(vocab).unwrap_err().to_string();
    assert!(error.contains(field), "{error} does not name {field}");
}

#[test]
fn bad_vocabularies_are_refused_by_name() {
    refused(|v| v.tokens[500] = v.tokens[400].clone(), "tokenizer.ggml.tokens: tokens 400 and 500");
    refused(
        |v| (v.tokens, v.bos, v.eos, v.pad) = (Vec::new(), None, None, None),
        "tokenizer.ggml.tokens: 0 tokens",
    );
    refused(|v| v.tokens[500] = "x".repeat(70_000), "token 500 has 70000 bytes");
    refused(|v| v.token_types[7] = 9, "tokenizer.ggml.token_type: token 7 has type 9");
    refused(|v| v.token_types.truncate(901), "901 token types for 902 tokens");
    refused(|v| v.merges[3] = "nospace".into(), "tokenizer.ggml.merges: \"nospace\"");
    refused(|v| v.merges[3] = "a nosuchtoken".into(), "tokenizer.ggml.merges: merge 3");
    refused(|v| v.merges[3] = "<|im_ end|>".into(), "tokenizer.ggml.merges: merge 3");
    refused(|v| v.bos = Some(902), "tokenizer.ggml.bos_token_id: token 902 of a vocabulary of 902");
    refused(|v| v.pad = Some(u32::MAX), "tokenizer.ggml.padding_token_id");
    refused(|v| (v.add_bos, v.bos) = (Some(true), None), "tokenizer.ggml.add_bos_token");
    refused(|v| v.pre = Some("no-such".into()), "tokenizer.ggml.pre: \"no-such\"");
    refused(|v| v.model = "bert".into(), "tokenizer.ggml.model: \"bert\"");
    refused(|v| v.model = "llama".into(), "tokenizer.ggml.scores: 0 scores for 902 tokens");
    let nan = |v: &mut GgufVocab| (v.model, v.scores) = ("t5".into(), Some(vec![f32::NAN; 902]));
    refused(nan, "tokenizer.ggml.scores: the score of token 0 is NaN");
}

#[test]
fn bad_tokenizer_json_is_refused_by_name() {
    let text = String::from_utf8(read("gpt-2.tokenizer.json")).unwrap();
    let refused = |from: &str, to: &str, field: &str| {
        assert!(text.contains(from), "{from}");
        let error =
            Tokenizer::from_json(text.replacen(from, to, 1).as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains(field), "{error} does not name {field}");
    };
    refused(r#""dropout":null"#, r#""dropout":0.1"#, "model.dropout: \"0.1\"");
    refused(r#""type":"BPE""#, r#""type":"WordPiece""#, "model.type: \"WordPiece\"");
    refused(r#""end_of_word_suffix":null"#, r#""end_of_word_suffix":"</w>""#, "model.end_of_word_suffix");
    refused(r#"["Ġ","t"]"#, r#"["Ġ","no such"]"#, "model.merges: merge");
    refused(r#"["Ġ","t"]"#, r#"["Ġ"]"#, "fewer than two");
    refused(r#""!":3"#, r#""!":3000000"#, "model.vocab: 3000001 tokens");
    refused(r#""!":3"#, r#""!":4"#, "model.vocab: token 4 is both");
    refused(r#""decoder":{"type":"ByteLevel""#, r#""decoder":{"type":"Frob""#, "tokenizer.json");
}

#[test]
fn a_byte_without_a_token_is_an_error_not_a_gap() {
    let mut vocab = vocab::vocab(&json("gpt-2")["vocab"]);
    let at = vocab.tokens.iter().position(|token| token == "!").unwrap();
    vocab.tokens[at] = "unreachable".into();
    vocab.merges.retain(|merge| !merge.contains('!'));
    let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
    let error = tokenizer.encode("no!", false, false).unwrap_err();
    assert!(matches!(&error, TokenizerError::Unencodable { piece, .. } if piece == "\\x21"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn untrusted_text_has_no_control_tokens(
        parts in prop::collection::vec(prop_oneof![
            Just("<|im_start|>"), Just("<|im_end|>"), Just("</s>"), Just("<unk>"), Just("<s>"), Just("<|"), Just("|>"), Just(" "), Just("x"), Just("<pad>"),
        ], 0..12),
    ) {
        let text = parts.concat();
        for tokenizer in [gguf("smollm"), gguf("gemma"), gguf("t5"), hugging_face("unigram"), hugging_face("prepend")] {
            let ids = tokenizer.encode(&text, false, false).unwrap();
            prop_assert!(ids.iter().all(|&id| !tokenizer.is_special(id) || tokenizer.id_to_token(id) == Some("<unk>")));
        }
    }

    #[test]
    fn byte_level_text_comes_back(text in "\\PC*|[\\s\\w!-~]*") {
        for name in ["smollm", "llama-bpe", "deepseek-v3"] {
            let tokenizer = gguf(name);
            let ids = tokenizer.encode(&text, false, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
        }
    }
}
