//! GGUF vocabularies as JSON, one key for each field of [`GgufVocab`].

use samebits_checkpoint::tokenizer::GgufVocab;
use serde_json::Value;

pub(crate) fn vocab(json: &Value) -> GgufVocab {
    let id = |key: &str| json[key].as_u64().map(|id| id as u32);
    GgufVocab {
        model: json["model"].as_str().expect("model").to_owned(),
        pre: json["pre"].as_str().map(str::to_owned),
        tokens: strings(&json["tokens"]),
        scores: json["scores"]
            .as_array()
            .map(|list| list.iter().map(|s| s.as_f64().unwrap() as f32).collect()),
        token_types: numbers(&json["token_types"]).map(|n| n as i32).collect(),
        merges: strings(&json["merges"]),
        bos: id("bos"),
        eos: id("eos"),
        eot: id("eot"),
        unk: id("unk"),
        pad: id("pad"),
        add_bos: json["add_bos"].as_bool(),
        add_eos: json["add_eos"].as_bool(),
        add_space_prefix: json["add_space_prefix"].as_bool(),
        remove_extra_whitespaces: json["remove_extra_whitespaces"].as_bool(),
        precompiled_charsmap: json["precompiled_charsmap"].as_str().map(base64),
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn numbers(list: &Value) -> impl Iterator<Item = i64> + '_ {
    list.as_array().into_iter().flatten().map(|n| n.as_i64().unwrap())
}

fn base64(text: &str) -> Vec<u8> {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut bytes) = (0usize, 0, Vec::new());
    for digit in text.trim_end_matches('=').chars().map(|c| digits.find(c).expect("base64")) {
        bits = bits << 6 | digit;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
