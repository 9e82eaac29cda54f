//! Published vocabularies, too large to keep here, against the ids that llama.cpp lists for them.
//!
//! `SAMEBITS_VOCABS` names a folder of `NAME.json` files with, optionally, llama.cpp's `NAME.inp` and `NAME.out`
//! (from its `models/ggml-vocab-NAME.gguf.*`).

#[path = "common/vocab.rs"]
mod vocab;

use std::path::Path;
use std::time::Instant;

use samebits_checkpoint::tokenizer::Tokenizer;

fn load(path: &Path) -> Tokenizer {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let vocab = vocab::vocab(&json);
    let start = Instant::now();
    let tokenizer = Tokenizer::from_gguf(vocab).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    println!("{}: {} tokens in {:?}", path.display(), tokenizer.vocab_size(), start.elapsed());
    tokenizer
}

#[test]
#[ignore = "needs published vocabularies in SAMEBITS_VOCABS"]
fn published_vocabularies_give_the_listed_ids() {
    let folder = std::env::var("SAMEBITS_VOCABS").expect("SAMEBITS_VOCABS");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut wrong = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "json")) {
        let tokenizer = load(path);
        let Ok(inputs) = std::fs::read_to_string(path.with_extension("inp")) else { continue };
        let outputs = std::fs::read_to_string(path.with_extension("out")).unwrap();
        for (text, ids) in inputs.split("\n__ggml_vocab_test__\n").zip(outputs.lines()) {
            let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text, false, false).unwrap();
            if found != expected {
                wrong.push(format!("{}: {text:?}\n  want {expected:?}\n  have {found:?}", path.display()));
            } else if tokenizer.decode(&found, true) != text {
                wrong.push(format!(
                    "{}: {text:?} decodes to {:?}",
                    path.display(),
                    tokenizer.decode(&found, true)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}
