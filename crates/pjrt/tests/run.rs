//! Programs through real plugins, of every version that is supported.
// The plugins that others publish are for this alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::*;
use samebits_pjrt::{CompileOptions, ElementType, Format, PjrtError, Signature, Value};

#[test]
fn adds() {
    with_each(1, |published, client| {
        assert_eq!(client.plugin().api_version(), (0, published.api_minor));
        assert_eq!(client.platform(), "cpu");
        assert_eq!(client.devices().len(), 1);
        let program = compile(client, ADD);
        let tensor = Signature::new(ElementType::F32, &[4]).unwrap();
        assert_eq!(program.outputs(), std::slice::from_ref(&tensor));
        assert_eq!(program.parameters(), Some(&[tensor.clone(), tensor.clone()][..]));
        let (a, b) = (f32s(client, &[1.0, 2.0, 3.0, -0.0]), f32s(client, &[0.5, 0.25, 1e30, -0.0]));
        let outputs = run(&program, vec![(&a).into(), (&b).into()]);
        assert_eq!(outputs[0].signature(), &tensor);
        let expected = bytes(&[1.5_f32, 2.25, 1e30, -0.0], f32::to_le_bytes);
        assert_eq!(outputs[0].to_vec().unwrap(), expected);
    });
}

#[test]
fn multiplies_integers_exactly() {
    with_each(1, |_, client| {
        let program = compile(client, INTEGER_DOT);
        let upload = |values: &[i8], dims: &[usize]| {
            client.upload(0, &bytes(values, i8::to_le_bytes), ElementType::S8, dims).unwrap()
        };
        let (a, b) =
            (upload(&[-128, 127, 1, 2, 3, 4], &[2, 3]), upload(&[-128, 127, 127, -128, 5, 6], &[3, 2]));
        let outputs = run(&program, vec![(&a).into(), (&b).into()]);
        let expected = [16384 + 16129 + 5, -16256 - 16256 + 6, -256 + 381 + 20, 254 - 384 + 24];
        assert_eq!(read_i32(&outputs[0]), expected);
        assert_eq!(outputs[0].dims(), [2, 2]);
    });
}

#[test]
fn borrowed_state_stays_and_donated_state_moves_on() {
    with_each(1, |_, client| {
        let program = compile(client, STEP);
        let start = i32s(client, 0, &[7; 1024], &[1024]);
        let by = i32s(client, 0, &[3], &[]);
        let mut state = run(&program, vec![(&start).into(), (&by).into()]).remove(0);
        for _ in 0..10 {
            let mut outputs = run(&program, vec![state.into(), (&by).into()]);
            assert_eq!(read_i32(&outputs[1]), [9; 1024]);
            state = outputs.remove(0);
        }
        assert_eq!(read_i32(&state), [7 + 11 * 3; 1024]);
        assert_eq!(read_i32(&start), [7; 1024]);
        assert!(!start.is_deleted().unwrap());
    });
}

/// The runtime may not wait for one result before the next step is started.
#[test]
fn steps_are_chained_without_waiting() {
    with_each(1, |_, client| {
        let program = compile(client, STEP);
        let by = i32s(client, 0, &[1], &[]);
        let mut state = i32s(client, 0, &[0; 1024], &[1024]);
        let mut done = Vec::new();
        for _ in 0..50 {
            let mut step = program.execute(vec![vec![state.into(), (&by).into()]]).unwrap();
            state = step.outputs.remove(0).remove(0);
            done.append(&mut step.done);
        }
        drop((by, program));
        done.iter().for_each(|event| event.wait().unwrap());
        assert!(done.iter().all(|event| event.is_ready().unwrap()));
        assert_eq!(read_i32(&state), [50; 1024]);
        state.ready().unwrap().wait().unwrap();
    });
}

#[test]
fn two_devices_sum_over_both() {
    with_each(2, |_, client| {
        let options = CompileOptions { replicas: 2, devices: vec![0, 1], ..Default::default() };
        let program = client.compile(ALL_REDUCE.as_bytes(), Format::Mlir, &options).unwrap();
        assert_eq!(program.devices(), [0, 1]);
        let (x, y) = (i32s(client, 0, &[1, 2, 3], &[3]), i32s(client, 1, &[10, 20, -30], &[3]));
        let outputs = program.execute(vec![vec![(&x).into()], vec![(&y).into()]]).unwrap().wait().unwrap();
        for (device, list) in outputs.iter().enumerate() {
            assert_eq!(read_i32(&list[0]), [11, 22, -27]);
            assert_eq!(list[0].device(), device);
        }
        let error = program.execute(vec![vec![(&y).into()], vec![(&x).into()]]).unwrap_err().to_string();
        assert!(error.contains("argument 0 of device 0 is on device 1"), "{error}");
        let mixed = program.execute(vec![vec![(&x).into()], vec![y.into()]]).unwrap_err().to_string();
        assert!(mixed.contains("donated on some devices"), "{mixed}");
    });
}

#[test]
fn partitions_and_a_chosen_device() {
    with_each(2, |_, client| {
        let second = CompileOptions { devices: vec![1], ..Default::default() };
        let program = client.compile(INTEGER_DOT.as_bytes(), Format::Mlir, &second).unwrap();
        assert_eq!(program.devices(), [1]);
        let ones = |dims: &[usize]| client.upload(1, &[1; 6], ElementType::S8, dims).unwrap();
        let (a, b) = (ones(&[2, 3]), ones(&[3, 2]));
        assert_eq!(read_i32(&run(&program, vec![(&a).into(), (&b).into()])[0]), [3; 4]);
        let both = CompileOptions { partitions: 2, devices: vec![1, 0], ..Default::default() };
        let program = client.compile(STEP.as_bytes(), Format::Mlir, &both).unwrap();
        assert_eq!(program.devices().len(), 2);
        let upload =
            |device, value| (i32s(client, device, &[value; 1024], &[1024]), i32s(client, device, &[1], &[]));
        let pairs: Vec<_> = program.devices().iter().map(|&device| upload(device, 5)).collect();
        let lists = pairs.iter().map(|(state, by)| vec![state.into(), by.into()]).collect();
        let outputs = program.execute(lists).unwrap().wait().unwrap();
        assert!(outputs.iter().all(|list| read_i32(&list[0]) == [6; 1024]));
    });
}

/// Also checks how modules and buffers number the types, since the plugin tells both.
#[test]
fn every_element_type_passes_through() {
    use ElementType::*;
    let types = [
        (Pred, "i1"),
        (S8, "i8"),
        (S16, "i16"),
        (S32, "i32"),
        (S64, "i64"),
        (U8, "ui8"),
        (U16, "ui16"),
        (U32, "ui32"),
        (U64, "ui64"),
        (F16, "f16"),
        (F32, "f32"),
        (F64, "f64"),
        (Bf16, "bf16"),
        (F8E5M2, "f8E5M2"),
        (F8E4M3Fn, "f8E4M3FN"),
        (F8E4M3, "f8E4M3"),
        (F8E3M4, "f8E3M4"),
        (F8E8M0Fnu, "f8E8M0FNU"),
    ];
    with_each(1, |_, client| {
        for (element, name) in types {
            let text = format!(
                "func.func @main(%x: tensor<2x1x3x{name}>) -> tensor<3x2x1x{name}> {{
                %y = stablehlo.transpose %x, dims = [2, 0, 1]
                    : (tensor<2x1x3x{name}>) -> tensor<3x2x1x{name}>
                return %y : tensor<3x2x1x{name}>
            }}"
            );
            let program = compile(client, &text);
            let signature = Signature::new(element, &[2, 1, 3]).unwrap();
            assert_eq!(program.parameters(), Some(&[signature.clone()][..]));
            assert_eq!(program.outputs(), [Signature::new(element, &[3, 2, 1]).unwrap()]);
            let size = element.bytes();
            let value = |index: usize| {
                vec![if element == Pred { (index % 2) as u8 } else { index as u8 + 0x31 }; size]
            };
            let bytes = (0..6).flat_map(value).collect::<Vec<u8>>();
            let x = client.upload(0, &bytes, element, &[2, 1, 3]).unwrap();
            let y = run(&program, vec![(&x).into()]).remove(0).to_vec().unwrap();
            let expected = [0, 3, 1, 4, 2, 5].into_iter().flat_map(value).collect::<Vec<u8>>();
            assert_eq!(y, expected, "{element}");
            assert_eq!(x.to_vec().unwrap(), bytes, "{element}");
        }
    });
}

#[test]
fn empty_tensors_and_scalars() {
    with_each(1, |_, client| {
        let text = "func.func @main(%x: tensor<0x3xf32>, %y: tensor<i32>) -> (tensor<0x3xf32>, tensor<i32>) {
            %a = stablehlo.add %x, %x : tensor<0x3xf32>
            %b = stablehlo.add %y, %y : tensor<i32>
            return %a, %b : tensor<0x3xf32>, tensor<i32>
        }";
        let program = compile(client, text);
        let x = client.upload(0, &[], ElementType::F32, &[0, 3]).unwrap();
        let y = client.upload_owned(0, 21_i32.to_le_bytes(), ElementType::S32, &[]).unwrap();
        let outputs = run(&program, vec![(&x).into(), (&y).into()]);
        assert_eq!(outputs[0].to_vec().unwrap(), []);
        assert_eq!(outputs[0].dims(), [0, 3]);
        assert_eq!(read_i32(&outputs[1]), [42]);
    });
}

/// Memory that is uploaded without a copy at first must live until the plugin has read it, and no longer.
#[test]
fn owners_are_kept_until_their_bytes_are_taken() {
    use std::sync::mpsc;
    struct Owner(Vec<u8>, mpsc::Sender<()>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fill(0xee);
            self.1.send(()).unwrap();
        }
    }
    with_each(1, |_, client| {
        let (sender, dropped) = mpsc::channel();
        let bytes: Vec<u8> = (0..1 << 22).map(|index| (index / 7) as u8).collect();
        let owner = Owner(bytes.clone(), sender);
        let buffer = client.upload_owned(0, owner, ElementType::U8, &[1 << 11, 1 << 11]).unwrap();
        assert!(buffer.to_vec().unwrap() == bytes);
        dropped.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        assert!(buffer.to_vec().unwrap() == bytes);
        assert!(dropped.try_recv().is_err(), "dropped twice");
    });
}

#[test]
fn two_threads_execute_at_once() {
    with_each(1, |_, client| {
        let program = compile(client, STEP);
        let by = i32s(client, 0, &[2], &[]);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (program, by) = (&program, &by);
                scope.spawn(move || {
                    let mut state = i32s(client, 0, &[thread; 1024], &[1024]);
                    for _ in 0..100 {
                        state = run(program, vec![state.into(), by.into()]).remove(0);
                    }
                    assert_eq!(read_i32(&state), [thread + 200; 1024]);
                });
            }
        });
    });
}

#[test]
fn what_is_serialised_loads_and_computes_the_same() {
    with_each(2, |_, client| {
        let options = CompileOptions { replicas: 2, ..Default::default() };
        let program = client.compile(ALL_REDUCE.as_bytes(), Format::Mlir, &options).unwrap();
        let bytes = program.serialise().unwrap();
        drop(program);
        let program = client.load(&bytes).unwrap();
        assert_eq!(program.parameters(), Some(program.outputs()));
        let (x, y) = (i32s(client, 0, &[1, 2, 3], &[3]), i32s(client, 1, &[4, 5, 6], &[3]));
        let outputs = program.execute(vec![vec![(&x).into()], vec![(&y).into()]]).unwrap().wait().unwrap();
        assert_eq!(read_i32(&outputs[1][0]), [5, 7, 9]);
        let error = client.load(b"not an executable").unwrap_err();
        assert!(
            matches!(error, PjrtError::Call { function: "PJRT_Executable_DeserializeAndLoad", .. }),
            "{error}"
        );
    });
}

#[test]
fn everything_may_be_dropped_while_it_runs() {
    with_each(2, |_, client| {
        // A client of its own, so that its end is waited for too.
        let client = client.plugin().client(&[("cpu_device_count", Value::Int64(2))]).unwrap();
        let program = compile(&client, STEP);
        let (state, by) = (i32s(&client, 0, &[0; 1024], &[1024]), i32s(&client, 0, &[1], &[]));
        let execution = program.execute(vec![vec![state.into(), (&by).into()]]).unwrap();
        drop((client, program, by));
        assert_eq!(read_i32(&execution.outputs[0][0]), [1; 1024]);
        drop(execution);
    });
}

#[test]
fn a_client_tells_of_its_devices() {
    with_each(2, |published, client| {
        let ids: Vec<i32> = client.devices().iter().map(|device| device.id).collect();
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1]);
        assert!(client.devices().iter().all(|device| device.kind.contains("cpu")), "{:?}", client.devices());
        assert_ne!(client.devices()[0].description, client.devices()[1].description);
        assert!(matches!(client.memory_stats(2), Err(PjrtError::Device { index: 2, count: 2 })));
        // CPU plugins do not tell, or tell something plausible.
        if let Some(stats) = client.memory_stats(1).unwrap() {
            assert!(stats.limit.is_none_or(|limit| stats.in_use <= limit), "{stats:?}");
        }
        let attributes = client.plugin().attributes().unwrap();
        let version = attributes.iter().find(|(name, _)| name == "stablehlo_current_version");
        assert!(
            matches!(version, Some((_, Value::Int64List(list))) if list.len() == 3),
            "{published:?} {attributes:?}"
        );
    });
}
