//! Programs and helpers of the tests.
#![allow(dead_code, reason = "each test takes what it needs")]

use samebits_pjrt::{
    Argument, Buffer, Client, CompileOptions, ElementType, Executable, Format, Plugin, Value,
    testing::{CPU_PLUGINS, CpuPlugin},
};

pub(crate) const ADD: &str = r"
module @add {
  func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
    %sum = stablehlo.add %a, %b : tensor<4xf32>
    return %sum : tensor<4xf32>
  }
}";

/// Its first argument may become its first result.
pub(crate) const STEP: &str = r"
module @step {
  func.func @main(%state: tensor<1024xi32> {tf.aliasing_output = 0 : i32}, %by: tensor<i32>)
      -> (tensor<1024xi32>, tensor<1024xi32>) {
    %all = stablehlo.broadcast_in_dim %by, dims = [] : (tensor<i32>) -> tensor<1024xi32>
    %next = stablehlo.add %state, %all : tensor<1024xi32>
    %square = stablehlo.multiply %all, %all : tensor<1024xi32>
    return %next, %square : tensor<1024xi32>, tensor<1024xi32>
  }
}";

pub(crate) const ALL_REDUCE: &str = r#"
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

pub(crate) const INTEGER_DOT: &str = r"
module @dot {
  func.func @main(%a: tensor<2x3xi8>, %b: tensor<3x2xi8>) -> tensor<2x2xi32> {
    %dot = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]
      : (tensor<2x3xi8>, tensor<3x2xi8>) -> tensor<2x2xi32>
    return %dot : tensor<2x2xi32>
  }
}";

/// Runs a check with each plugin.
pub(crate) fn with_each(devices: i64, check: impl Fn(&CpuPlugin, &Client)) {
    for published in &CPU_PLUGINS {
        let plugin = Plugin::open(published.path()).unwrap();
        let client = plugin.client(&[("cpu_device_count", Value::Int64(devices))]).unwrap();
        check(published, &client);
    }
}

pub(crate) fn compile(client: &Client, text: &str) -> Executable {
    client.compile(text.as_bytes(), Format::Mlir, &CompileOptions::default()).unwrap()
}

pub(crate) fn bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

pub(crate) fn f32s(client: &Client, values: &[f32]) -> Buffer {
    client.upload(0, &bytes(values, f32::to_le_bytes), ElementType::F32, &[values.len()]).unwrap()
}

pub(crate) fn i32s(client: &Client, device: usize, values: &[i32], dims: &[usize]) -> Buffer {
    client.upload(device, &bytes(values, i32::to_le_bytes), ElementType::S32, dims).unwrap()
}

pub(crate) fn run(program: &Executable, arguments: Vec<Argument<'_>>) -> Vec<Buffer> {
    program.execute(vec![arguments]).unwrap().wait().unwrap().remove(0)
}

pub(crate) fn read_i32(buffer: &Buffer) -> Vec<i32> {
    let bytes = buffer.to_vec().unwrap();
    bytes.chunks_exact(4).map(|chunk| i32::from_le_bytes(chunk.try_into().unwrap())).collect()
}
