//! Each way in which the runtime can fail is one clear error, says what to do, and leaves what the device promises.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::*;
use samebits_hlo::{Argument, Device, DeviceError};
use samebits_neuron::{NeuronDevice, Tensor, abi::Status};
use samebits_tensor::HostTensor;

/// Runs `replace` once. Returns how it ended, and whether the given tensor is still there.
fn replace_once(device: &NeuronDevice, ready: &Ready) -> (Result<Vec<Tensor>, DeviceError>, Option<Tensor>) {
    let mut given = Some(upload(device, &[8, 2], &[1.0f32; 16]));
    let (rows, values) = (upload(device, &[2], &[0, 1]), upload(device, &[2, 2], &[5.0f32; 4]));
    let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&values)];
    let done = run(device, ready, inputs);
    (done, given)
}

/// What the state begins with afterwards.
const AFTER: [f32; 5] = [5.0, 5.0, 5.0, 5.0, 1.0];

#[test]
fn each_status_of_an_execution() {
    let sim = Sim::alone();
    // Each on a core of its own, since some end it.
    for (core, status) in (0..).zip(Status::all()) {
        let device = device(core);
        let ready = Ready::new(&device, "replace", &replace());
        sim.plan(&format!("nrt_execute:*={}", status.raw()));
        let (done, given) = replace_once(&device, &ready);
        let error = done.unwrap_err();
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert!(error.to_string().contains(status.advice()), "{error}");
        match &error {
            DeviceError::Lost { .. } => assert!(status.is_fatal(), "{error}"),
            DeviceError::Failed { retriable, .. } => {
                assert_eq!((*retriable, false), (status.is_passing(), status.is_fatal()), "{error}");
            }
        }
        assert_eq!(given.is_some(), status.is_refusal(), "{status}");
        sim.plan("");
        if let Some(given) = &given {
            assert_eq!(floats(&device, given, 16), [1.0; 16], "{status}: what was given is as it was");
        }
        let again = device.upload(0, &HostTensor::of([1], &[0i32]).unwrap());
        assert_eq!(again.is_ok(), !status.is_fatal(), "{status}");
        if again.is_ok() {
            assert_eq!(
                floats(&device, &replace_once(&device, &ready).0.unwrap()[0], 16)[..5],
                AFTER,
                "{status}"
            );
        }
    }
    assert_eq!(sim.misuses(), 0);
}

#[test]
fn a_full_queue_is_waited_for() {
    let (sim, device) = (Sim::alone(), device(27));
    let ready = Ready::new(&device, "replace", &replace());
    sim.plan("nrt_execute:1=7,nrt_execute:2=7,nrt_execute:3=1005");
    let (done, _) = replace_once(&device, &ready);
    assert_eq!(floats(&device, &done.unwrap()[0], 16)[..5], AFTER);
    assert_eq!(sim.calls("nrt_execute"), 4);
}

#[test]
fn a_lost_core_stays_lost() {
    let (sim, device) = (Sim::alone(), device(28));
    let ready = Ready::new(&device, "replace", &replace());
    sim.plan("nrt_execute:1=101");
    let (done, _) = replace_once(&device, &ready);
    assert!(matches!(done, Err(DeviceError::Lost { .. })), "{done:?}");
    sim.plan("");
    let error = device.upload(0, &HostTensor::of([1], &[0i32]).unwrap()).unwrap_err();
    assert!(matches!(&error, DeviceError::Lost { detail, .. } if detail.contains("restart")), "{error}");
}

#[test]
fn whatever_fails_leaves_nothing_behind() {
    let sim = Sim::alone();
    let functions = [
        "nrt_load",
        "nrt_get_model_tensor_info",
        "nrt_free_model_tensor_info",
        "nrt_tensor_allocate",
        "nrt_tensor_write",
        "nrt_allocate_tensor_set",
        "nrt_add_tensor_to_tensor_set",
        "nrt_tensor_read",
    ];
    for function in functions {
        for nth in 1..=3 {
            sim.plan(&format!("{function}:{nth}=4"));
            let failed = all_of_it(&device(29));
            let due = sim.calls(function) >= nth;
            assert_eq!(failed.is_err(), due, "{function}, call {nth}");
            if let Err(error) = failed {
                assert!(error.to_string().contains(function), "{error}");
                assert!(matches!(error, DeviceError::Failed { retriable: true, .. }), "{error}");
            }
            sim.plan("");
            assert_eq!(sim.live(29), 0, "{function}, call {nth}");
        }
    }
    assert_eq!(sim.misuses(), 0);
}

fn all_of_it(device: &NeuronDevice) -> Result<(), DeviceError> {
    let program = program(device, "square", &square());
    let executable = device.compile(&program)?;
    let x = device.upload(0, &HostTensor::of([4], &[2.0f32; 4]).unwrap())?;
    let zero = device.upload(0, &HostTensor::of([], &[0i32]).unwrap())?;
    let outputs = device.run(&executable, vec![vec![Argument::Kept(&x), Argument::Kept(&zero)]])?;
    device.download(&outputs[0][0], &mut [0; 16])
}

#[test]
fn memory_that_does_not_suffice() {
    let (sim, device) = (Sim::alone(), device(30));
    sim.plan("nrt_tensor_allocate:1=4");
    let error = device.upload(0, &HostTensor::of([1], &[0i32]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("use a smaller model"), "{error}");
    assert!(matches!(error, DeviceError::Failed { retriable: true, .. }));
}
