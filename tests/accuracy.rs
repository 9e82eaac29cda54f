//! Tiny models of every architecture against logits that other implementations computed; see
//! `tests/fixtures/models/README.md`.

mod common;

use std::fs;

use common::{NAMES, fixtures, logits_by_token, runner, tiny};
use safetensors::SafeTensors;
use samebits_candle::{Candle, Device as CandleDevice};
use samebits_cpu::Cpu;
use samebits_tensor::Backend;

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

/// How far logits are from the golden ones.
struct Differences {
    max: f64,
    /// Root of the mean square.
    rms: f64,
    /// Of the root of the mean square of each position, the middle one.
    median: f64,
}

impl Differences {
    fn of(golden: &Golden, logits: &[Vec<f32>]) -> Self {
        let vocab = logits[0].len();
        let found = golden.positions.iter().flat_map(|&position| &logits[position]);
        let squares: Vec<f64> = found.zip(&golden.logits).map(|(a, b)| f64::from(a - b).powi(2)).collect();
        assert_eq!(squares.len(), golden.positions.len() * vocab);
        let rms = |squares: &[f64]| (squares.iter().sum::<f64>() / squares.len() as f64).sqrt();
        let mut positions: Vec<f64> = squares.chunks_exact(vocab).map(rms).collect();
        positions.sort_by(f64::total_cmp);
        let max = squares.iter().copied().fold(0.0, f64::max).sqrt();
        Differences { max, rms: rms(&squares), median: positions[positions.len() / 2] }
    }
}

/// Differences of a model from the golden of the same name, over the long prompt.
fn differences_on<B: Backend>(backend: B, model: &str, golden: &str) -> Differences {
    let golden = Golden::read(golden, "long");
    let logits = logits_by_token(&mut runner(backend, &tiny(model)), &golden.ids);
    let differences = Differences::of(&golden, &logits);
    let Differences { max, rms, median } = differences;
    println!("{model}: max {max:.2e}, rms {rms:.2e}, in the middle {median:.2e}");
    differences
}

/// GGUF files and the golden logits of the model that they describe.
const GGUF_GOLDENS: [(&str, &str); 16] = [
    ("gguf/llama.F16.gguf", "llama"),
    ("gguf/llama3.BF16.gguf", "llama3"),
    ("gguf/mistral.BF16.gguf", "mistral.gguf"),
    ("gguf/qwen2.F32.gguf", "qwen2"),
    ("gguf/qwen3.BF16.gguf", "qwen3"),
    ("gguf/qwen3_moe.BF16.gguf", "qwen3_moe"),
    ("gguf/mixtral.BF16.gguf", "mixtral"),
    ("gguf/olmoe.BF16.gguf", "olmoe"),
    ("gguf/gemma2.BF16.gguf", "gemma2.gguf"),
    ("gguf/gemma3.BF16.gguf", "gemma3"),
    ("gguf/llama.Q8_0.gguf", "llama.Q8_0"),
    ("gguf/llama.Q4_0.gguf", "llama.Q4_0"),
    ("gguf/llama.mixed32.gguf", "llama.mixed32"),
    ("gguf/wide.mixed256.gguf", "wide.mixed256"),
    ("gguf/mixtral.mixed32.gguf", "mixtral.mixed32"),
    ("gguf/wide_moe.mixed256.gguf", "wide_moe.mixed256"),
];

/// The model texts, without the contract's roundings. transformers, mlx-lm and llama.cpp leave each other by up to
/// 3e-5 in f32, in the order of their sums; a window that is off by one key moves a logit by more than 1.
#[test]
fn the_model_texts_are_right() {
    let float = || Candle::float(CandleDevice::Cpu);
    let safetensors = NAMES.map(|name| (name, name));
    for (model, golden) in safetensors.into_iter().chain(GGUF_GOLDENS) {
        let max = differences_on(float(), model, golden).max;
        assert!(max < 5e-5, "{model}: {max}");
    }
}

/// The contract rounds activations to 8 or 16 bits, and keys and values to 8. The yardstick is what other
/// implementations lose by the like: on these models llama.cpp's int8 activations leave the same goldens by rms 0.033
/// to 0.058 and mlx-lm's bf16 by 0.022 to 0.042, at most 0.33 and 0.48.
///
/// Where two experts are about equally likely, any rounding decides between them, and another expert's output is another number:
/// llama.cpp leaves the golden of Mixtral by 2.8 in its worst logit. So of models with experts the middle position counts.
#[test]
fn the_contract_is_as_accurate_as_others_roundings() {
    let cpu = || Cpu::new().unwrap();
    let safetensors = NAMES.map(|name| (name, name));
    for (model, golden) in safetensors.into_iter().chain(GGUF_GOLDENS) {
        let Differences { max, rms, median } = differences_on(cpu(), model, golden);
        match tiny(model).config.experts {
            None => assert!(rms < 0.08 && max < 0.6, "{model}: max {max}, rms {rms}"),
            Some(_) => assert!(median < 0.08, "{model}: in the middle {median}"),
        }
    }
}
