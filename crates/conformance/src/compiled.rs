use samebits_graph::{Graph, GraphError, Trace};
use samebits_hlo::{Argument, Device, DeviceError, Source, lower};
use samebits_tensor::{Error, Format, HostTensor, HostWeight, Result, Tensor, Weight};

use crate::{Case, Subject};

/// A device that compiles, as a subject: each case is recorded, compiled and run.
#[derive(Clone, Copy, Debug)]
pub struct Compiled<'a, D>(pub &'a D);

impl<D: Device> Subject for Compiled<'_, D> {
    fn name(&self) -> String {
        self.0.name().into()
    }

    fn takes(&self, _format: Format) -> bool {
        true
    }

    fn run(&self, case: &Case) -> Result<Vec<HostTensor>> {
        let backend = || self.0.name().to_owned();
        let (graph, outputs) = record(case).map_err(|error| match error {
            GraphError::Tensor(error) => error,
            other => Error::Backend { backend: backend(), op: "record", detail: other.to_string() },
        })?;
        let failed = |error: DeviceError| Error::Backend {
            backend: backend(),
            op: "run a case",
            detail: error.to_string(),
        };
        let bytes = run(self.0, case, &graph, &outputs).map_err(failed)?;
        let tensors = outputs.iter().zip(bytes);
        tensors.map(|(output, bytes)| HostTensor::new(output.shape(), output.dtype(), bytes.into())).collect()
    }
}

fn record(case: &Case) -> Result<(Graph, Vec<Tensor<Trace>>), GraphError> {
    let trace = Trace::new();
    let inputs = case.inputs.iter().enumerate();
    let inputs = inputs.map(|(i, x)| trace.input(&format!("input.{i}"), x.shape(), x.dtype()));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let weights = case.weights.iter().enumerate().map(|(i, host)| {
        // Those of a case may be called the same, and tensors of a program may not.
        Weight::pack(&trace, &HostWeight { name: format!("{i}.{}", host.name), ..host.clone() })
    });
    let weights = weights.collect::<Result<Vec<_>>>()?;
    let outputs = case.apply(&trace, &inputs, &weights)?;
    let names: Vec<String> = (0..outputs.len()).map(|i| format!("output.{i}")).collect();
    let named: Vec<_> = names.iter().map(String::as_str).zip(&outputs).collect();
    Ok((trace.graph(&inputs.iter().collect::<Vec<_>>(), &named)?, outputs))
}

/// The bytes of each output.
fn run<D: Device>(
    device: &D,
    case: &Case,
    graph: &Graph,
    outputs: &[Tensor<Trace>],
) -> Result<Vec<Vec<u8>>, DeviceError> {
    let program = lower(graph, &device.options(case.name.clone()));
    let executable = device.compile(&program)?;
    let zero = HostTensor::of([], &[0i32]).expect("four bytes fill one i32");
    let values = program.parameters.iter().map(|parameter| match parameter.source {
        Source::Input(index) => device.upload(0, &case.inputs[index]),
        Source::Constant(index) => {
            device.upload(0, graph.constants()[index].value.as_ref().expect("a recorded value"))
        }
        Source::Zero => device.upload(0, &zero),
    });
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let results = device.run(&executable, vec![values.iter().map(Argument::Kept).collect()])?;
    let download = |(result, output): (_, &Tensor<Trace>)| {
        let mut bytes = vec![0; output.shape().elements() * output.dtype().size()];
        device.download(result, &mut bytes).map(|()| bytes)
    };
    results.iter().flatten().zip(outputs).map(download).collect()
}
