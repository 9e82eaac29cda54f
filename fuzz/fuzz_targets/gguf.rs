//! Everything that opening a GGUF file and reading its weights does.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use samebits_checkpoint::{GenerationConfig, Gguf, GgufWeights, config_from_gguf};
use samebits_nn::{WeightSource, check_finite};

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::parse(data.to_vec().into()) else { return };
    let _ = GenerationConfig::from_gguf(&gguf.metadata);
    let Ok(config) = config_from_gguf(&gguf) else { return };
    let Ok(weights) = GgufWeights::new(Arc::new(gguf), "fuzz", &config) else { return };
    for name in weights.names() {
        let _ = weights.get(&name).map(|weight| check_finite(&weight));
    }
});
