//! Every case of the suite, traced and then replayed on the reference, has the reference's bits.

use samebits_conformance::{Case, Subject};
use samebits_cpu::Host;
use samebits_graph::{GraphError, Trace};
use samebits_tensor::{Error, Format, HostTensor, Result, Tensor, Weight};

struct Replay;

impl Subject for Replay {
    fn name(&self) -> String {
        "a graph replayed on the reference".into()
    }

    fn takes(&self, _format: Format) -> bool {
        true
    }

    fn run(&self, case: &Case) -> Result<Vec<HostTensor>> {
        replay(case).map_err(|error| match error {
            GraphError::Tensor(error) => error,
            other => Error::shape("graph", other.to_string()),
        })
    }
}

fn replay(case: &Case) -> Result<Vec<HostTensor>, GraphError> {
    let trace = Trace::new();
    let inputs = case.inputs.iter().enumerate();
    let inputs = inputs.map(|(i, x)| trace.input(&format!("input.{i}"), x.shape(), x.dtype()));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let weights = case.weights.iter().map(|host| Weight::pack(&trace, host)).collect::<Result<Vec<_>>>()?;
    let outputs = case.apply(&trace, &inputs, &weights)?;
    let names: Vec<String> = (0..outputs.len()).map(|i| format!("output.{i}")).collect();
    let outputs: Vec<_> = names.iter().map(String::as_str).zip(&outputs).collect();
    let graph = trace.graph(&inputs.iter().collect::<Vec<_>>(), &outputs)?;
    let values = case.inputs.iter().map(|host| Tensor::upload(&Host, host)).collect::<Result<Vec<_>>>()?;
    let results = graph.run(&Host, values)?;
    Ok(results.iter().map(Tensor::download).collect::<Result<Vec<_>>>()?)
}

samebits_conformance::conformance_tests!(Replay);
