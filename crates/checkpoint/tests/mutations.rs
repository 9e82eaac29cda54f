//! No change of a model file's bytes ends in a panic, or makes its reader allocate more than in proportion to the
//! file. One test, because it counts what the whole process allocates.

mod attacks;

use std::{alloc::System, fs, path::PathBuf};

use attacks::{
    Attack, gguf_attacks, read_gguf, read_safetensors, read_tokenizer, safetensors_attacks, tokenizer_attacks,
};
use cap::Cap;
use samebits_checkpoint::config_from_json;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

#[test]
fn no_variant_of_an_attack_panics_or_takes_memory() {
    const KIB: usize = 1024;
    survive(20_000, 256 * KIB, gguf_attacks(), read_gguf);
    survive(20_000, 256 * KIB, safetensors_attacks(), read_safetensors);
    survive(20_000, 256 * KIB, configs(), read_config);
    // A pre-tokenizer's patterns are compiled for every tokenizer.
    survive(2_000, 64 * KIB * KIB, tokenizer_attacks(), read_tokenizer);
}

fn configs() -> Vec<Attack> {
    let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    let names = ["llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"];
    let of = |name: &str| Attack {
        name: name.into(),
        bytes: fs::read(models.join(name).join("config.json")).unwrap(),
        says: Vec::new(),
    };
    names.map(of).into()
}

fn read_config(bytes: &[u8]) -> Result<(), String> {
    let json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    config_from_json(&json).map(drop).map_err(|error| error.to_string())
}

/// Reads variants of attacks. Reading one may allocate, in all, `base_bytes` and a multiple of its size: its copy, what
/// it says, and the errors' texts.
fn survive(variants: u64, base_bytes: usize, attacks: Vec<Attack>, read: fn(&[u8]) -> Result<(), String>) {
    let mut were_read = 0;
    for seed in 1..=variants {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Half of the variants are of the first file, which is valid.
        let attack = &attacks[random.below(2) * random.below(attacks.len())];
        let mut bytes = attack.bytes.clone();
        mutate(&mut bytes, &mut random);
        let before = ALLOCATOR.total_allocated();
        were_read += u64::from(read(&bytes).is_ok());
        let allocated = ALLOCATOR.total_allocated() - before;
        let limit = base_bytes + 64 * bytes.len();
        assert!(
            allocated <= limit,
            "{} varied by seed {seed}: {allocated} bytes, {limit} allowed",
            attack.name
        );
    }
    assert!(were_read > 100 && were_read < variants - 100, "{were_read} variants were read");
}

/// A small generator (Vigna's xorshift64*), so that a failing variant has a number.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % end.max(1)
    }
}

/// Changes a file in one to four places: a bit, a byte, an integer, its length, or a piece moved elsewhere.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const INTEGERS: [u64; 8] = [0, 1, 31, 255, 1 << 31, u32::MAX as u64, 1 << 63, u64::MAX];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            _ if bytes.is_empty() => bytes.push(random.below(256) as u8),
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 | 3 => {
                let width = [4, 8][random.below(2)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&INTEGERS[random.below(8)].to_le_bytes()[..width]);
            }
            4 => bytes.truncate(at),
            _ => {
                let piece = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
}
