//! Whole models on NeuronCores that share each layer: the bits of one core, which are those of the CPU, and one clear error if a
//! core among them fails.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;
#[path = "../../../tests/common/mod.rs"]
mod shared;

use common::{Sim, compiler, group, runtime};
use samebits_hlo::Device;
use samebits_neuron::{NeuronDevice, NeuronError};
use shared::{
    compiled::{crowded, engine, on, on_cpu, serve, serve_on},
    tiny,
};

#[test]
fn cores_that_share_layers_change_no_bit() {
    let sim = Sim::alone();
    for (name, cores) in [("mistral", 0..2), ("gguf/llama.Q4_0.gguf", 3..5)] {
        let checkpoint = tiny(name);
        let plan = crowded(&checkpoint);
        let (expected, ..) = serve(on_cpu(&checkpoint, &plan));
        let device = group(cores);
        assert_eq!((device.ranks(), device.memory_bytes()), (2, Some(32 << 30)), "{}", device.name());
        let (found, errors, stats) = serve(on(device, &checkpoint, &plan));
        assert!(errors.is_empty() && stats.preemptions > 0, "{name}: {errors:?}");
        assert_eq!(expected, found, "{name}");
    }
    assert_eq!((sim.misuses(), sim.live(0), sim.live(4)), (0, 0, 0));
}

/// The other core waits in vain, which is not what is told.
#[test]
fn a_core_that_fails_is_the_cause() {
    let sim = Sim::alone();
    let checkpoint = tiny("gguf/llama.Q4_0.gguf");
    let plan = crowded(&checkpoint);
    let (expected, ..) = serve(on_cpu(&checkpoint, &plan));
    let mut engine = engine(on(group(5..7), &checkpoint, &plan));
    assert_eq!(serve_on(&mut engine), (expected.clone(), vec![]));
    // The embedding's execution on either core: numerical error, which will not pass.
    sim.plan("nrt_execute:1=1003");
    let (found, errors) = serve_on(&mut engine);
    assert!(!errors.is_empty(), "the requests of that step");
    for error in errors.iter().map(ToString::to_string) {
        assert!(error.contains("NUM_ERR") && error.contains("neuron:5-6"), "{error}");
    }
    found.iter().for_each(|(id, output)| assert_eq!(output, &expected[id]));
    sim.plan("");
    assert_eq!(serve_on(&mut engine), (expected, vec![]), "afterwards");
    assert_eq!(sim.misuses(), 0);
}

#[test]
fn cores_that_are_not_there_are_named() {
    let error = NeuronDevice::group(runtime(), 30..34, compiler()).unwrap_err();
    assert!(matches!(error, NeuronError::Core { index: 32, count: 32 }), "{error}");
}
