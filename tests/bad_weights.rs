//! Damaged and incomplete models are refused with the name of the tensor; see also `crates/checkpoint/tests`.

mod common;

use std::{collections::HashMap, sync::Arc};

use common::{runner_config, tiny};
use samebits_checkpoint::Checkpoint;
use samebits_cpu::Cpu;
use samebits_engine::{Engine, EngineConfig, Event, Request, RequestError, RequestId, Vocabulary};
use samebits_nn::{WeightError, WeightSource};
use samebits_runner::{MemoryPlan, ModelRunner};
use samebits_tensor::{Format, HostWeight};

/// A source with some weights missing or replaced.
struct Changed {
    source: Arc<dyn WeightSource>,
    missing: Vec<String>,
    replaced: HashMap<String, HostWeight>,
}

impl WeightSource for Changed {
    fn get(&self, name: &str) -> Result<HostWeight, WeightError> {
        if !self.contains(name) {
            return Err(WeightError::Missing { name: name.into(), origin: self.origin() });
        }
        self.replaced.get(name).cloned().map_or_else(|| self.source.get(name), Ok)
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name) && !self.missing.iter().any(|missing| missing == name)
    }

    fn names(&self) -> Vec<String> {
        self.source.names().into_iter().filter(|name| self.contains(name)).collect()
    }

    fn origin(&self) -> String {
        self.source.origin()
    }
}

fn changed(checkpoint: &Checkpoint, missing: &[&str], replaced: Vec<HostWeight>) -> Changed {
    Changed {
        source: checkpoint.weights.clone(),
        missing: missing.iter().map(|&name| name.into()).collect(),
        replaced: replaced.into_iter().map(|weight| (weight.name.clone(), weight)).collect(),
    }
}

fn load(checkpoint: &Checkpoint, weights: &Changed) -> samebits_nn::Result<ModelRunner<Cpu>> {
    let config = runner_config();
    let plan = MemoryPlan::new(&checkpoint.config, weights, &config, None).unwrap();
    ModelRunner::load(Cpu::new().unwrap(), &checkpoint.config, weights, &config, &plan, &|_| {})
}

fn refusal(checkpoint: &Checkpoint, weights: &Changed) -> String {
    load(checkpoint, weights).err().expect("a damaged model was loaded").to_string()
}

fn f32_weight(name: &str, shape: &[usize], value: impl Fn(usize) -> f32) -> HostWeight {
    let count: usize = shape.iter().product();
    let bytes: Vec<u8> = (0..count).flat_map(|i| value(i).to_le_bytes()).collect();
    HostWeight { name: name.into(), format: Format::F32, shape: shape.to_vec(), bytes: bytes.into() }
}

#[test]
fn every_missing_tensor_is_named() {
    let checkpoint = tiny("gemma3");
    for name in checkpoint.weights.names() {
        let message = refusal(&checkpoint, &changed(&checkpoint, &[&name], vec![]));
        assert!(message.contains(&format!("`{name}`")) && message.contains("gemma3"), "{message}");
    }
}

#[test]
fn a_nan_or_an_infinity_in_a_weight_is_found() {
    let checkpoint = tiny("llama");
    let name = "model.layers.1.mlp.up_proj.weight";
    let shape = checkpoint.weights.get(name).unwrap().shape;
    for bad in [f32::NAN, f32::INFINITY] {
        let weight = f32_weight(name, &shape, |i| if i == 77 { bad } else { 0.5 });
        let message = refusal(&checkpoint, &changed(&checkpoint, &[], vec![weight]));
        assert!(message.contains(name) && message.contains("77"), "{message}");
    }
}

#[test]
fn a_weight_of_another_shape_is_named_with_both() {
    let checkpoint = tiny("qwen3");
    let name = "model.layers.0.self_attn.q_norm.weight";
    let weight = f32_weight(name, &[8], |_| 1.0);
    let message = refusal(&checkpoint, &changed(&checkpoint, &[], vec![weight]));
    assert!(message.contains(name) && message.contains("[8]") && message.contains("[40]"), "{message}");
}

/// Finite weights whose logits overflow: the request ends, the engine goes on.
#[test]
fn a_numerical_error_ends_the_request_alone() {
    struct NoText;
    impl Vocabulary for NoText {
        fn token_bytes(&self, _: u32) -> &[u8] {
            &[]
        }
        fn is_special(&self, _: u32) -> bool {
            false
        }
        fn eos(&self) -> &[u32] {
            &[]
        }
    }

    let checkpoint = tiny("llama");
    let head =
        f32_weight("lm_head.weight", &checkpoint.weights.get("lm_head.weight").unwrap().shape, |_| 3e38);
    let runner = load(&checkpoint, &changed(&checkpoint, &[], vec![head])).unwrap();
    let mut engine = Engine::new(Box::new(runner), Arc::new(NoText), EngineConfig::default()).unwrap();
    for id in 0..2 {
        engine.add(Request::new(RequestId(id), vec![1, 2, 3], 4)).unwrap();
        let mut ends = Vec::new();
        while !engine.is_idle() {
            ends.extend(engine.step().unwrap());
        }
        let [Event::Failed { error: RequestError::Numerical { .. }, .. }] = &ends[..] else {
            panic!("{ends:?}")
        };
    }
}
