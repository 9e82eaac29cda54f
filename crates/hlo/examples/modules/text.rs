use samebits_conformance::Case;
use samebits_graph::{Graph, GraphError, Trace};
use samebits_tensor::{Backend, HostTensor, Result, Tensor, Weight};

/// A computation that is written over any backend.
pub(crate) trait Text {
    /// What its module is called.
    fn name(&self) -> String;

    /// What it is computed from.
    fn inputs(&self) -> Vec<HostTensor>;

    /// Whether the contract leaves the sign of a zero result open.
    fn zero_sign_is_open(&self) -> bool {
        false
    }

    /// The computation, over inputs that are on the backend.
    fn apply<B: Backend>(&self, backend: &B, inputs: &[Tensor<B>]) -> Result<Vec<Tensor<B>>>;

    /// Its results on a backend.
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<HostTensor>> {
        let inputs = self.inputs();
        let inputs = inputs.iter().map(|host| Tensor::upload(backend, host)).collect::<Result<Vec<_>>>()?;
        self.apply(backend, &inputs)?.iter().map(Tensor::download).collect()
    }

    /// Its primitives.
    fn record(&self) -> Result<Graph, GraphError> {
        let trace = Trace::new();
        let inputs = self.inputs();
        let inputs = inputs.iter().enumerate();
        let inputs = inputs.map(|(i, x)| trace.input(&format!("input.{i}"), x.shape(), x.dtype()));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = self.apply(&trace, &inputs)?;
        let names: Vec<String> = (0..outputs.len()).map(|i| format!("output.{i}")).collect();
        let named: Vec<_> = names.iter().map(String::as_str).zip(&outputs).collect();
        trace.graph(&inputs.iter().collect::<Vec<_>>(), &named)
    }
}

/// A case of the conformance suite.
pub(crate) struct Suite<'a>(pub(crate) &'a Case);

impl Text for Suite<'_> {
    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn inputs(&self) -> Vec<HostTensor> {
        self.0.inputs.clone()
    }

    fn zero_sign_is_open(&self) -> bool {
        self.0.zero_sign_is_open()
    }

    fn apply<B: Backend>(&self, backend: &B, inputs: &[Tensor<B>]) -> Result<Vec<Tensor<B>>> {
        let weights = self.0.weights.iter().map(|host| Weight::pack(backend, host));
        self.0.apply(backend, inputs, &weights.collect::<Result<Vec<_>>>()?)
    }
}
