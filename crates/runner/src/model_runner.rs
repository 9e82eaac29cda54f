use std::collections::VecDeque;

use samebits_engine::{Batch, Limits, Logits, Runner, RunnerError};
use samebits_models::Model;
use samebits_nn::{Config, Loader, Result as LoadResult, WeightSource};
use samebits_tensor::{Backend, KvCache, Tensor};

use crate::{MemoryPlan, RunnerConfig, inputs::Inputs};

/// Runs a model eagerly on a backend. An asynchronous backend is given a step's operations in [`Runner::submit`]; another
/// computes in [`Runner::wait`], so that the caller hands out the last step's results first.
pub struct ModelRunner<B: Backend> {
    backend: B,
    model: Model<B>,
    caches: Vec<KvCache<B>>,
    limits: Limits,
    submitted: VecDeque<Submitted<B>>,
    /// Inputs of steps that are over, and logits that came back.
    spare_inputs: Vec<Inputs>,
    spare_logits: Vec<Vec<f32>>,
}

enum Submitted<B: Backend> {
    Inputs(Inputs),
    Logits(Tensor<B>),
}

impl<B: Backend> ModelRunner<B> {
    /// Loads a model and allocates the plan's pages. `on_weight` is told the bytes of each weight as it is placed.
    ///
    /// # Errors
    /// If a weight is missing, damaged, of another shape, or of a format that the backend does not take.
    pub fn load(
        backend: B,
        config: &Config,
        weights: &dyn WeightSource,
        runner: &RunnerConfig,
        plan: &MemoryPlan,
        on_weight: &dyn Fn(usize),
    ) -> LoadResult<Self> {
        let loader = Loader::new(&backend, weights, config, on_weight);
        let model = Model::load(&loader, plan.max_context)?;
        let caches = model.caches(&backend, plan.pages, plan.page_size)?;
        let limits = plan.limits(config, runner);
        Ok(ModelRunner {
            backend,
            model,
            caches,
            limits,
            submitted: VecDeque::new(),
            spare_inputs: Vec::new(),
            spare_logits: Vec::new(),
        })
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Computes a step's logits.
    fn forward(&mut self, inputs: Inputs) -> Result<Tensor<B>, RunnerError> {
        let step = inputs.upload(&self.backend);
        self.spare_inputs.push(inputs);
        let logits = step.and_then(|step| self.model.forward(&step, &mut self.caches));
        logits.map_err(|error| self.failed("forward", error))
    }

    fn failed(&self, op: &str, detail: impl ToString) -> RunnerError {
        RunnerError::Failed {
            op: op.into(),
            device: self.backend.capabilities().name.clone(),
            detail: detail.to_string(),
            retriable: false,
        }
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        let mut inputs = self.spare_inputs.pop().unwrap_or_default();
        inputs.fill(batch, self.limits.page_size);
        let submitted = match self.backend.is_asynchronous() {
            true => Submitted::Logits(self.forward(inputs)?),
            false => Submitted::Inputs(inputs),
        };
        self.submitted.push_back(submitted);
        Ok(())
    }

    fn wait(&mut self) -> Result<Logits, RunnerError> {
        let logits = match self.submitted.pop_front() {
            Some(Submitted::Logits(logits)) => logits,
            Some(Submitted::Inputs(inputs)) => self.forward(inputs)?,
            None => return Err(RunnerError::Protocol { detail: "wait without a submitted step".into() }),
        };
        let mut values = self.spare_logits.pop().unwrap_or_default();
        values.resize(logits.shape().elements(), 0.0);
        logits.read(&mut values).map_err(|error| self.failed("download", error))?;
        Logits::new(self.limits.vocab_size, values)
    }

    fn reuse(&mut self, logits: Logits) {
        self.spare_logits.push(logits.into_values());
    }
}
