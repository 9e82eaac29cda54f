//! The header of a safetensors file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use samebits_checkpoint::parse_safetensors;

fuzz_target!(|data: &[u8]| {
    if let Ok(tensors) = parse_safetensors(&data.to_vec().into()) {
        let held: usize = tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        assert!(held <= data.len());
    }
});
