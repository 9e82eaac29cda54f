//! Tiny models of every architecture against logits that other implementations computed; see
//! `tests/fixtures/models/README.md`.

mod common;

use std::fs;

use common::{fixtures, logits_by_token, runner, tiny};
use safetensors::SafeTensors;
use samebits_cpu::Host;

/// Logits of one prompt after some of its positions.
struct Golden {
    ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<f32>,
}

impl Golden {
    fn read(name: &str, prompt: &str) -> Golden {
        let bytes = fs::read(fixtures().join(format!("models/golden/{name}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |part: &str| -> Vec<u32> {
            let data = file.tensor(&format!("{prompt}.{part}")).unwrap().data().to_vec();
            data.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
        };
        Golden {
            ids: words("ids"),
            positions: words("positions").into_iter().map(|position| position as usize).collect(),
            logits: words("logits").into_iter().map(f32::from_bits).collect(),
        }
    }
}

/// Largest and root-mean-square difference of logits from the golden ones.
fn differences(golden: &Golden, logits: &[Vec<f32>]) -> (f64, f64) {
    let vocab = logits[0].len();
    let found = golden.positions.iter().flat_map(|&position| &logits[position]);
    let squares: Vec<f64> = found.zip(&golden.logits).map(|(a, b)| f64::from(a - b).powi(2)).collect();
    assert_eq!(squares.len(), golden.positions.len() * vocab);
    let mean = squares.iter().sum::<f64>() / squares.len() as f64;
    (squares.iter().copied().fold(0.0, f64::max).sqrt(), mean.sqrt())
}

#[test]
fn print_exact_differences() {
    for name in ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"] {
        let golden = Golden::read(name, "long");
        let checkpoint = tiny(name);
        let logits = logits_by_token(&mut runner(Host::default(), &checkpoint), &golden.ids);
        let (max, rms) = differences(&golden, &logits);
        println!("{name}: max {max:.4}, rms {rms:.4}");
    }
}
