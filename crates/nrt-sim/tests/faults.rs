//! Each way in which the runtime can fail is one clear error, says what to do, and leaves what the device promises.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::*;
use samebits_hlo::{Argument, Device, DeviceError};
use samebits_neuron::{NeuronDevice, Tensor, abi::Status};
use samebits_tensor::HostTensor;

/// Every status that AWS documents.
const STATUSES: [i32; 23] =
    [1, 2, 3, 4, 5, 6, 7, 9, 10, 13, 14, 15, 101, 1002, 1003, 1004, 1005, 1006, 1200, 1201, 1202, 1203, 1206];

/// Runs `replace` once. Returns how it ended, and whether the given tensor is still there.
fn run(device: &NeuronDevice, ready: &Ready) -> (Result<Vec<Tensor>, DeviceError>, Option<Tensor>) {
    let mut given = Some(upload(device, &[8, 2], &[1.0f32; 16]));
    let (rows, values) = (upload(device, &[2], &[0, 1]), upload(device, &[2, 2], &[5.0f32; 4]));
    let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&values)];
    let done = device.run(&ready.executable, ready.arguments(inputs));
    (done, given)
}

#[test]
fn each_status_of_an_execution() {
    let sim = Sim::open();
    for raw in STATUSES {
        let status = Status::of(raw).unwrap();
        let device = device(match status {
            Status::Unrecoverable => 9,
            _ => 8,
        });
        let ready = Ready::new(&device, "replace", &replace());
        let planned = sim.faults(&format!("nrt_execute:*={raw}"));
        let (done, given) = run(&device, &ready);
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
        planned.plan("");
        if let Some(given) = &given {
            assert_eq!(floats(&device, given, 16), [1.0; 16], "{status}: what was given is as it was");
        }
        let (again, _) = run_if_not_lost(&device, &ready);
        assert_eq!(again, !status.is_fatal(), "{status}");
    }
}

/// Whether a run works now.
fn run_if_not_lost(device: &NeuronDevice, ready: &Ready) -> (bool, Option<DeviceError>) {
    let probe = device.upload(&HostTensor::of([1], &[0i32]).unwrap());
    match probe {
        Ok(_) => (run(device, ready).0.is_ok(), None),
        Err(error) => (false, Some(error)),
    }
}

#[test]
fn a_full_queue_is_waited_for() {
    let (device, sim) = (device(10), Sim::open());
    let ready = Ready::new(&device, "replace", &replace());
    let _planned = sim.faults("nrt_execute:1=7,nrt_execute:2=7,nrt_execute:3=1005");
    let (done, _) = run(&device, &ready);
    assert_eq!(floats(&device, &done.unwrap()[0], 4), [5.0; 4]);
    assert_eq!(sim.calls("nrt_execute"), 4);
}

#[test]
fn a_lost_core_stays_lost() {
    let (device, sim) = (device(11), Sim::open());
    let ready = Ready::new(&device, "replace", &replace());
    let planned = sim.faults("nrt_execute:1=101");
    let (done, _) = run(&device, &ready);
    assert!(matches!(done, Err(DeviceError::Lost { .. })), "{done:?}");
    planned.plan("");
    let error = device.upload(&HostTensor::of([1], &[0i32]).unwrap()).unwrap_err();
    assert!(matches!(&error, DeviceError::Lost { detail, .. } if detail.contains("restart")), "{error}");
}

#[test]
fn whatever_fails_leaves_nothing_behind() {
    let sim = Sim::open();
    let device = device(12);
    let functions = [
        "nrt_load",
        "nrt_get_model_tensor_info",
        "nrt_free_model_tensor_info",
        "nrt_tensor_allocate",
        "nrt_tensor_write",
        "nrt_allocate_tensor_set",
        "nrt_add_tensor_to_tensor_set",
    ];
    for function in functions {
        for nth in 1..=3 {
            let planned = sim.faults(&format!("{function}:{nth}=4"));
            let failed = all_of_it(&device);
            let due = sim.calls(function) >= nth;
            assert_eq!(failed.is_err(), due, "{function}, call {nth}");
            if let Err(error) = failed {
                assert!(error.to_string().contains(function), "{error}");
                assert!(matches!(error, DeviceError::Failed { retriable: true, .. }), "{error}");
            }
            planned.plan("");
            device.memory_bytes();
            assert_eq!(sim.live(12), 0, "{function}, call {nth}");
        }
    }
    assert_eq!(sim.misuses(), 0);
}

fn all_of_it(device: &NeuronDevice) -> Result<(), DeviceError> {
    let program = program(device, "square", &square());
    let executable = device.compile(&program)?;
    let x = device.upload(&HostTensor::of([4], &[2.0f32; 4]).unwrap())?;
    let zero = device.upload(&HostTensor::of([], &[0i32]).unwrap())?;
    let outputs = device.run(&executable, vec![Argument::Kept(&x), Argument::Kept(&zero)])?;
    device.download(&outputs[0], &mut [0; 16])
}

#[test]
fn memory_that_does_not_suffice() {
    let (device, sim) = (device(13), Sim::open());
    let _planned = sim.faults("nrt_tensor_allocate:1=4");
    let error = device.upload(&HostTensor::of([1], &[0i32]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("use a smaller model"), "{error}");
    assert!(matches!(error, DeviceError::Failed { retriable: true, .. }));
}
