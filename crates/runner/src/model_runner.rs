use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use samebits_engine::{Batch, Candidate, Limits, Logits, Runner, RunnerError, TokenId, Wanted};
use samebits_models::Model;
use samebits_nn::{Config, Loader, Result as LoadResult, WeightSource};
use samebits_tensor::{Backend, KvCache, Result, Tensor};

use crate::{MemoryPlan, RunnerConfig, inputs::Inputs};

/// Runs a model eagerly on a backend. An asynchronous backend is given a step's operations in [`Runner::submit`]; another
/// computes in [`Runner::wait`], so that the caller hands out the last step's results first.
pub struct ModelRunner<B: Backend> {
    /// Tells the steps of runners on one backend apart.
    number: u64,
    backend: B,
    model: Model<B>,
    caches: Vec<KvCache<B>>,
    limits: Limits,
    submitted: VecDeque<Submitted<B>>,
    /// Inputs of steps that are over, and logits that came back.
    spare_inputs: Vec<Inputs>,
    spare_logits: Vec<Vec<f32>>,
}

/// Positions up to which all steps of one token each are alike; after that, up to twice as many each time.
const ALIKE: usize = 512;

enum Submitted<B: Backend> {
    Inputs(Inputs),
    Logits(Answer<B>),
}

/// What is wanted of the logits of a step, still on the backend.
struct Answer<B: Backend> {
    /// f32 `[rows, vocab_size]`.
    whole: Tensor<B>,
    /// i32 `[rows, 2, k]`: the greatest of other rows, as [`Tensor::top_k`] tells them.
    leading: Option<Tensor<B>>,
    /// Of each row whether it is whole; empty where all are.
    is_whole: Vec<bool>,
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
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Ok(ModelRunner {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
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
        let (model, caches) = (&self.model, &mut self.caches);
        let owner =
            self.backend.records_steps().then_some(self.number).filter(|_| inputs.is_one_token_each());
        let logits = inputs.run(&self.backend, owner, |step| model.forward(step, caches));
        self.spare_inputs.push(inputs);
        logits.map_err(|error| self.failed("forward", error))
    }

    /// Pages in a row of the block tables at least, so that steps of one token each are alike for many positions on where the
    /// backend records them.
    fn least_width(&self, batch: &Batch) -> usize {
        if !self.backend.records_steps() || batch.tokens.len() != batch.seqs.len() {
            return 0;
        }
        let Limits { page_size, max_context, .. } = self.limits;
        let longest = batch.seqs.iter().map(|seq| seq.pages.len()).max().unwrap_or(0);
        let positions = (longest * page_size).next_power_of_two().max(ALIKE);
        positions.min(max_context).div_ceil(page_size)
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

impl<B: Backend> Drop for ModelRunner<B> {
    fn drop(&mut self) {
        self.backend.forget_steps(self.number);
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        let mut inputs = self.spare_inputs.pop().unwrap_or_default();
        inputs.fill(batch, self.limits.page_size, self.least_width(batch));
        let submitted = match self.backend.is_asynchronous() {
            true => {
                let logits = self.forward(inputs)?;
                let answer = Answer::of(logits, batch).map_err(|error| self.failed("top_k", error))?;
                Submitted::Logits(answer)
            }
            false => Submitted::Inputs(inputs),
        };
        self.submitted.push_back(submitted);
        Ok(())
    }

    fn wait(&mut self) -> Result<Logits, RunnerError> {
        let answer = match self.submitted.pop_front() {
            Some(Submitted::Logits(answer)) => answer,
            Some(Submitted::Inputs(inputs)) => Answer::from(self.forward(inputs)?),
            None => return Err(RunnerError::Protocol { detail: "wait without a submitted step".into() }),
        };
        let mut values = self.spare_logits.pop().unwrap_or_default();
        values.resize(answer.whole.shape().elements(), 0.0);
        let leading = answer.read(&mut values).map_err(|error| self.failed("download", error))?;
        match answer.leading {
            None => Logits::new(self.limits.vocab_size, values),
            Some(found) => {
                Logits::mixed(self.limits.vocab_size, answer.is_whole, values, found.dims()[2], leading)
            }
        }
    }

    fn reuse(&mut self, logits: Logits) {
        self.spare_logits.push(logits.into_values());
    }
}

impl<B: Backend> From<Tensor<B>> for Answer<B> {
    fn from(whole: Tensor<B>) -> Self {
        Answer { whole, leading: None, is_whole: Vec::new() }
    }
}

impl<B: Backend> Answer<B> {
    /// Finds the greatest of the rows of which no more is wanted, all as many as any of them wants.
    fn of(logits: Tensor<B>, batch: &Batch) -> Result<Self> {
        let most = batch.wanted().filter_map(|wanted| match wanted {
            Wanted::Leading(count) => Some(count),
            _ => None,
        });
        let Some(most) = most.max() else { return Ok(logits.into()) };
        let is_whole: Vec<bool> = batch.wanted().map(|wanted| wanted == Wanted::Row).collect();
        let those = |whole: bool| -> Result<Tensor<B>> {
            let rows = (0..).zip(&is_whole).filter(|&(_, &is_whole)| is_whole == whole).map(|(row, _)| row);
            let rows: Vec<i32> = rows.collect();
            if rows.len() == is_whole.len() {
                return Ok(logits.clone());
            }
            logits.gather(&Tensor::of(logits.backend(), [rows.len()], &rows)?)
        };
        let leading = those(false)?.top_k(most.min(logits.dims()[1]))?;
        Ok(Answer { whole: those(true)?, leading: Some(leading), is_whole })
    }

    /// Copies the whole rows to the host, and returns the greatest of the others, row after row.
    fn read(&self, whole: &mut [f32]) -> Result<Vec<Candidate>> {
        if !whole.is_empty() {
            self.whole.read(whole)?;
        }
        let Some(leading) = &self.leading else { return Ok(Vec::new()) };
        let found = leading.to_vec::<i32>()?;
        let pairs = found.chunks_exact(2 * leading.dims()[2]).flat_map(|row| {
            let (tokens, bits) = row.split_at(row.len() / 2);
            tokens.iter().zip(bits)
        });
        Ok(pairs.map(|(&token, &bits)| (token as TokenId, f32::from_bits(bits as u32))).collect())
    }
}
