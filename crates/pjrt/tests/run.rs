//! Programs through real plugins, of every version that is supported.

use samebits_pjrt::{
    Argument, Buffer, Client, Code, CompileOptions, ElementType, Executable, Format, PjrtError, Plugin,
    Signature, Value,
    testing::{CPU_PLUGINS, CpuPlugin},
};

const ADD: &str = r"
module @add {
  func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
    %sum = stablehlo.add %a, %b : tensor<4xf32>
    return %sum : tensor<4xf32>
  }
}";

/// Its first argument may become its first result.
const STEP: &str = r"
module @step {
  func.func @main(%state: tensor<1024xi32> {tf.aliasing_output = 0 : i32}, %by: tensor<i32>)
      -> (tensor<1024xi32>, tensor<1024xi32>) {
    %all = stablehlo.broadcast_in_dim %by, dims = [] : (tensor<i32>) -> tensor<1024xi32>
    %next = stablehlo.add %state, %all : tensor<1024xi32>
    %square = stablehlo.multiply %all, %all : tensor<1024xi32>
    return %next, %square : tensor<1024xi32>, tensor<1024xi32>
  }
}";

const ALL_REDUCE: &str = r#"
module @sum attributes {mhlo.num_replicas = 2 : i32} {
  func.func @main(%x: tensor<3xi32>) -> tensor<3xi32> {
    %sum = "stablehlo.all_reduce"(%x) ({
      ^bb0(%a: tensor<i32>, %b: tensor<i32>):
        %0 = stablehlo.add %a, %b : tensor<i32>
        stablehlo.return %0 : tensor<i32>
    }) {replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>} : (tensor<3xi32>) -> tensor<3xi32>
    return %sum : tensor<3xi32>
  }
}"#;

const INTEGER_DOT: &str = r"
module @dot {
  func.func @main(%a: tensor<2x3xi8>, %b: tensor<3x2xi8>) -> tensor<2x2xi32> {
    %dot = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]
      : (tensor<2x3xi8>, tensor<3x2xi8>) -> tensor<2x2xi32>
    return %dot : tensor<2x2xi32>
  }
}";

/// Runs a check with each plugin.
fn with_each(devices: i64, check: impl Fn(&CpuPlugin, &Client)) {
    for published in &CPU_PLUGINS {
        let plugin = Plugin::open(published.path()).unwrap();
        let client = plugin.client(&[("cpu_device_count", Value::Int64(devices))]).unwrap();
        check(published, &client);
    }
}

fn compile(client: &Client, text: &str) -> Executable {
    client.compile(text.as_bytes(), Format::Mlir, &CompileOptions::default()).unwrap()
}

fn bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

fn f32s(client: &Client, values: &[f32]) -> Buffer {
    client.upload(0, &bytes(values, f32::to_le_bytes), ElementType::F32, &[values.len()]).unwrap()
}

fn i32s(client: &Client, device: usize, values: &[i32], dims: &[usize]) -> Buffer {
    client.upload(device, &bytes(values, i32::to_le_bytes), ElementType::S32, dims).unwrap()
}

fn run(program: &Executable, arguments: Vec<Argument<'_>>) -> Vec<Buffer> {
    program.execute(vec![arguments]).unwrap().wait().unwrap().remove(0)
}

fn read_i32(buffer: &Buffer) -> Vec<i32> {
    let bytes = buffer.to_vec().unwrap();
    bytes.chunks_exact(4).map(|chunk| i32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

#[test]
fn adds() {
    with_each(1, |published, client| {
        assert_eq!(client.plugin().api_version(), (0, published.api_minor));
        assert_eq!(client.platform(), "cpu");
        assert_eq!(client.devices().len(), 1);
        let program = compile(client, ADD);
        let tensor = Signature::new(ElementType::F32, &[4]).unwrap();
        assert_eq!(program.outputs(), [tensor.clone()]);
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
