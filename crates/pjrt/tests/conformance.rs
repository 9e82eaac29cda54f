//! Cases of the suite, lowered to HLO and compiled by plugins that others have built, have the reference's bits.
// The plugins that others publish are for this alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use samebits_conformance::{Case, Group, Subject, check_every};
use samebits_graph::{GraphError, Trace};
use samebits_hlo::{Argument, Device, DeviceError, Source, lower};
use samebits_pjrt::{
    PjrtDevice, Plugin,
    testing::{self, CpuPlugin},
};
use samebits_tensor::{Error, Format, HostTensor, Result, Weight};

struct Compiled<'a>(&'a PjrtDevice);

impl Subject for Compiled<'_> {
    fn name(&self) -> String {
        self.0.name().into()
    }

    fn takes(&self, _format: Format) -> bool {
        true
    }

    fn run(&self, case: &Case) -> Result<Vec<HostTensor>> {
        run(self.0, case).map_err(|error| match error {
            Failure::Graph(GraphError::Tensor(error)) => error,
            Failure::Graph(other) => Error::shape("pjrt", other.to_string()),
            Failure::Device(other) => Error::shape("pjrt", other.to_string()),
        })
    }
}

enum Failure {
    Graph(GraphError),
    Device(DeviceError),
}

impl From<GraphError> for Failure {
    fn from(error: GraphError) -> Self {
        Failure::Graph(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Graph(error.into())
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Failure::Device(error)
    }
}

fn run(device: &PjrtDevice, case: &Case) -> Result<Vec<HostTensor>, Failure> {
    let trace = Trace::new();
    let inputs = case.inputs.iter().enumerate();
    let inputs = inputs.map(|(i, x)| trace.input(&format!("input.{i}"), x.shape(), x.dtype()));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let weights = case.weights.iter().map(|host| Weight::pack(&trace, host)).collect::<Result<Vec<_>>>()?;
    let outputs = case.apply(&trace, &inputs, &weights)?;
    let names: Vec<String> = (0..outputs.len()).map(|i| format!("output.{i}")).collect();
    let named: Vec<_> = names.iter().map(String::as_str).zip(&outputs).collect();
    let graph = trace.graph(&inputs.iter().collect::<Vec<_>>(), &named)?;

    let program = lower(&graph, &device.options(case.name.clone()));
    let executable = device.compile(&program)?;
    let zero = HostTensor::of([], &[0i32])?;
    let values = program.parameters.iter().map(|parameter| match parameter.source {
        Source::Input(index) => device.upload(0, &case.inputs[index]),
        Source::Constant(index) => {
            device.upload(0, graph.constants()[index].value.as_ref().expect("a value"))
        }
        Source::Zero => device.upload(0, &zero),
    });
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let results = device.run(&executable, vec![values.iter().map(Argument::Kept).collect()])?.remove(0);
    let download = |(result, output): (_, &samebits_tensor::Tensor<Trace>)| {
        let mut bytes = vec![0; output.shape().elements() * output.dtype().size()];
        device.download(result, &mut bytes)?;
        Ok(HostTensor::new(output.shape(), output.dtype(), bytes.into())?)
    };
    results.iter().zip(&outputs).map(download).collect()
}

/// Every so many-th case, on a plugin; all of them with `SAMEBITS_CASE_STRIDE=1`, which takes the better part of an hour.
fn check(plugin: CpuPlugin, stride: usize) {
    let chosen = std::env::var("SAMEBITS_CASE_STRIDE").ok().map(|it| it.parse().expect("a number"));
    let plugin = Plugin::open(plugin.path()).expect("a plugin");
    let device = PjrtDevice::new(plugin.client(&[]).expect("a client"), 0).expect("a device");
    for &group in Group::ALL {
        check_every(chosen.unwrap_or(stride), &Compiled(&device), group, &[]).expect_clean();
    }
}

#[test]
fn newest_plugin() {
    check(testing::CPU_PLUGINS[2], 32);
}

#[test]
fn plugin_of_another_version() {
    check(testing::CPU_PLUGINS[1], 64);
}

#[test]
fn oldest_plugin() {
    check(testing::CPU_PLUGINS[0], 64);
}
