//! A NeuronCore that is stood in for: programs, memory that is shared, and what the device promises about it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::*;
use samebits_graph::Trace;
use samebits_hlo::{Argument, Device, DeviceError};
use samebits_neuron::{NeuronDevice, NeuronError, Tensor};
use samebits_tensor::{DType, HostTensor};

#[test]
fn a_program_runs() {
    let device = device(0);
    let ready = Ready::new(&device, "square", &square());
    let x = upload(&device, &[4], &[1.0f32, -2.0, 0.5, f32::NAN]);
    let outputs = run(&device, &ready, vec![Argument::Kept(&x)]).unwrap();
    let squares = floats(&device, &outputs[0], 4);
    assert_eq!(squares[..3], [1.0, 4.0, 0.25]);
    assert!(squares[3].is_nan());
    assert_eq!(device.name(), "neuron:0");
    assert_eq!(device.memory_bytes(), Some(16 << 30));
    assert_eq!(Sim::open().misuses(), 0);
}

fn state(device: &NeuronDevice) -> Tensor {
    let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
    upload(device, &[8, 2], &values)
}

const AFTER: [f32; 16] =
    [0.0, 1.0, -3.0, -4.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, -1.0, -2.0];

#[test]
fn a_given_tensor_becomes_the_output_in_its_memory() {
    let (device, sim) = (device(1), Sim::open());
    let ready = Ready::new(&device, "replace", &replace());
    let (rows, values) =
        (upload(&device, &[2], &[7, 1]), upload(&device, &[2, 2], &[-1.0f32, -2.0, -3.0, -4.0]));
    let mut given = Some(state(&device));
    let live = sim.live(1);
    let mut results = {
        let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&values)];
        run(&device, &ready, inputs).unwrap()
    };
    assert!(given.is_none());
    assert_eq!(sim.live(1), live + 1, "only `before` is new");
    assert_eq!(floats(&device, &results[1], 4), [14.0, 15.0, 2.0, 3.0]);
    assert_eq!(floats(&device, &results[0], 16), AFTER);
    // And again, with what came out.
    let mut given = Some(results.remove(0));
    let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&values)];
    let again = run(&device, &ready, inputs).unwrap();
    assert_eq!(floats(&device, &again[1], 4), [-1.0, -2.0, -3.0, -4.0]);
    assert_eq!(sim.misuses(), 0);
}

#[test]
fn a_kept_tensor_stays_as_it_was() {
    let device = device(2);
    let ready = Ready::new(&device, "replace", &replace());
    let (rows, values) =
        (upload(&device, &[2], &[7, 1]), upload(&device, &[2, 2], &[-1.0f32, -2.0, -3.0, -4.0]));
    let kept = state(&device);
    let inputs = [&kept, &rows, &values].map(Argument::Kept).into();
    let outputs = run(&device, &ready, inputs).unwrap();
    assert_eq!(floats(&device, &outputs[0], 16), AFTER);
    assert_eq!(floats(&device, &kept, 16)[14], 14.0);
    assert_eq!(Sim::open().misuses(), 0);
}

#[test]
fn memory_is_used_again_and_then_freed() {
    let sim = Sim::open();
    {
        let device = device(3);
        let ready = Ready::new(&device, "square", &square());
        let x = upload(&device, &[4], &[1.0f32; 4]);
        let square = || run(&device, &ready, vec![Argument::Kept(&x)]).unwrap();
        drop(square());
        let live = sim.live(3);
        for _ in 0..3 {
            drop(square());
            drop(upload(&device, &[4], &[2.0f32; 4]));
        }
        assert_eq!(sim.live(3), live, "a run like one before it allocates nothing");
    }
    assert_eq!(sim.live(3), 0);
}

#[test]
fn tensors_without_bytes_have_no_memory() {
    let (device, sim) = (device(4), Sim::open());
    let live = sim.live(4);
    let empty = device.upload(0, &HostTensor::of::<f32>([0, 3], &[]).unwrap()).unwrap();
    assert_eq!(sim.live(4), live);
    device.download(&empty, &mut []).unwrap();
    let trace = Trace::new();
    let (x, y) = (trace.input("x", [0, 3], DType::F32).unwrap(), trace.input("y", [2], DType::F32).unwrap());
    let (a, b) = (x.mul(&x).unwrap(), y.mul(&y).unwrap());
    let graph = trace.graph(&[&x, &y], &[("a", &a), ("b", &b)]).unwrap();
    let ready = Ready::new(&device, "empty", &graph);
    let y = upload(&device, &[2], &[3.0f32, -1.0]);
    let inputs = vec![Argument::Kept(&empty), Argument::Kept(&y)];
    let outputs = run(&device, &ready, inputs).unwrap();
    device.download(&outputs[0], &mut []).unwrap();
    assert_eq!(floats(&device, &outputs[1], 2), [9.0, 1.0]);
    assert_eq!(sim.misuses(), 0);
}

#[test]
fn arguments_that_do_not_fit_are_named() {
    let device = device(5);
    let ready = Ready::new(&device, "replace", &replace());
    let short = upload(&device, &[2], &[0.0f32; 2]);
    let few = refused(&device, &ready, vec![Argument::Kept(&short)]);
    assert!(few.contains("1 arguments for"), "{few}");
    let rows = upload(&device, &[2], &[0i32; 2]);
    let mut given = Some(state(&device));
    let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&short)];
    let wrong = refused(&device, &ready, ready.arguments(inputs));
    assert!(wrong.contains("argument 2: 8 bytes for values of 16"), "{wrong}");
    assert!(given.is_some(), "nothing was taken");
    let values = upload(&device, &[2, 2], &[0.0f32; 4]);
    let mut gone = None;
    let inputs = vec![Argument::Given(&mut gone), Argument::Kept(&rows), Argument::Kept(&values)];
    let gone = refused(&device, &ready, ready.arguments(inputs));
    assert!(gone.contains("argument 0: it was given away before"), "{gone}");
    let elsewhere = upload(&common::device(30), &[2, 2], &[0.0f32; 4]);
    let mut given = Some(state(&device));
    let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&elsewhere)];
    let other = refused(&device, &ready, ready.arguments(inputs));
    assert!(other.contains("argument 2: it is on core 30 and not on 5"), "{other}");
    let error = device.download(&short, &mut [0; 9]).unwrap_err().to_string();
    assert!(error.contains("9 bytes for a tensor of 8"), "{error}");
}

fn refused(device: &NeuronDevice, ready: &Ready, arguments: Vec<Argument<'_, Tensor>>) -> String {
    device.run(&ready.executable, vec![arguments]).unwrap_err().to_string()
}

#[test]
fn an_index_out_of_range_is_an_error() {
    let device = device(6);
    let ready = Ready::new(&device, "replace", &replace());
    for rows in [[7, 8], [-1, 0]] {
        let (rows, values) = (upload(&device, &[2], &rows), upload(&device, &[2, 2], &[0.0f32; 4]));
        let mut given = Some(state(&device));
        let inputs = vec![Argument::Given(&mut given), Argument::Kept(&rows), Argument::Kept(&values)];
        let error = run(&device, &ready, inputs).unwrap_err();
        assert!(error.to_string().contains("NRT_EXEC_OOB"), "{error}");
        assert!(matches!(error, DeviceError::Failed { retriable: false, .. }), "{error}");
        assert!(given.is_none(), "what it holds is not to be trusted");
    }
    assert_eq!(Sim::open().misuses(), 0);
}

#[test]
fn a_core_that_is_not_there_is_named() {
    let error = NeuronDevice::open(runtime(), 32, compiler()).unwrap_err();
    assert!(matches!(error, NeuronError::Core { index: 32, count: 32 }), "{error}");
}

#[test]
fn two_devices_of_a_core_share_its_thread() {
    let devices = [device(7), device(7)];
    let ready = Ready::new(&devices[0], "square", &square());
    std::thread::scope(|scope| {
        for device in &devices {
            let ready = &ready;
            scope.spawn(move || {
                for i in 0..20 {
                    let x = upload(device, &[4], &[i as f32; 4]);
                    let outputs = run(device, ready, vec![Argument::Kept(&x)]).unwrap();
                    assert_eq!(floats(device, &outputs[0], 4), [(i * i) as f32; 4]);
                }
            });
        }
    });
    assert_eq!(Sim::open().misuses(), 0);
}
