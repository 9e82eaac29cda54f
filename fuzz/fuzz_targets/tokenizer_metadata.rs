//! A tokenizer from the keys of a GGUF file, and a text through it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use samebits_checkpoint::{
    Gguf,
    tokenizer::{GgufVocab, Tokenizer},
};

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::parse(data.to_vec().into()) else { return };
    let Ok(vocab) = GgufVocab::from_metadata(&gguf.metadata) else { return };
    let Ok(tokenizer) = Tokenizer::from_gguf(vocab) else { return };
    if let Ok(ids) = tokenizer.encode("Hello, wörld!\n\t<s> 123", true, false) {
        let _ = tokenizer.decode(&ids, false);
    }
});
