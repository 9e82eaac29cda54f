use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
};

use samebits_engine::{Batch, Limits, Logits, Runner, RunnerError};
use samebits_graph::{GraphError, Trace};
use samebits_hlo::{Argument, Device, DeviceError};
use samebits_models::Model;
use samebits_nn::{Config, Loader, Result as LoadResult, WeightSource};
use samebits_tensor::{DType, Error, HostTensor, KvShape, Shape};

use crate::{
    MemoryPlan, RunnerConfig,
    compiled::{
        Buckets,
        buckets::Bucket,
        programs::{CompileError, Constants, Programs, StepPrograms, locked, zero},
        record::Recorder,
    },
    inputs::{Inputs, Padding},
};

/// Runs a model on a device that compiles whole programs ahead: each step is padded to a bucket, with tokens that write to a
/// page of their own, and the programs of that bucket are run: the embedding, each layer, the head. Layers of one kind
/// share a program, so the time to compile does not grow with the depth of a model.
///
/// Programs of a bucket are compiled when a step first needs them, or ahead by [`CompiledRunner::compile`].
pub struct CompiledRunner<D: Device> {
    device: Arc<D>,
    programs: Programs<D>,
    constants: HashMap<usize, D::Buffer>,
    zero: D::Buffer,
    cache: KvShape,
    caches: Vec<[Option<D::Buffer>; 4]>,
    limits: Limits,
    buckets: Buckets,
    submitted: VecDeque<Submitted<D::Buffer>>,
}

struct Submitted<B> {
    /// `[rows of the bucket, vocab_size]`.
    logits: Option<B>,
    bucket: Bucket,
    rows: usize,
}

impl<D: Device> CompiledRunner<D> {
    /// Places a model's weights on the device, and the plan's pages and one more for padding. `on_weight` is told the bytes
    /// of each weight as it is placed.
    ///
    /// # Errors
    /// If a weight is missing, damaged, of another shape, or the device cannot hold it.
    pub fn load(
        device: D,
        config: &Config,
        weights: &dyn WeightSource,
        runner: &RunnerConfig,
        plan: &MemoryPlan,
        on_weight: &dyn Fn(usize),
    ) -> LoadResult<Self> {
        let device = Arc::new(device);
        let constants: Constants<D> = Arc::default();
        let trace = placing(&device, &constants);
        let model = Model::load(&Loader::new(&trace, weights, config, on_weight), plan.max_context)?;
        let limits = plan.limits(config, runner);
        let cache = KvShape {
            pages: plan.pages + 1,
            page_size: plan.page_size,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let sequences = limits.max_seqs_per_step + 1;
        let recorder = Recorder { trace, model, cache, sequences, hidden_size: config.hidden_size };
        let buckets = Buckets::new(&limits);
        let smallest = buckets.of(1, 1, 1).expect("limits of at least one token");
        let programs = Programs::new(&*device, recorder, config.num_hidden_layers, smallest);
        let programs = programs.map_err(|error| tensor_error(&*device, error))?;
        let failed = |error| backend_error(&*device, "place", error);
        let caches = (0..config.num_hidden_layers).map(|_| empty_cache(&*device, cache));
        Ok(CompiledRunner {
            caches: caches.collect::<Result<_, _>>().map_err(failed)?,
            zero: zero(&*device).map_err(failed)?,
            constants: mem::take(&mut *locked::<D>(&constants)),
            device,
            programs,
            cache,
            limits,
            buckets,
            submitted: VecDeque::new(),
        })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The buckets that steps are padded to.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// Compiles what a step of `tokens` tokens at positions below `context` that wants `logits` rows of logits will need.
    ///
    /// # Errors
    /// If the step is beyond the limits, or the compiler refuses a program.
    pub fn compile(&mut self, tokens: usize, context: usize, logits: usize) -> Result<(), RunnerError> {
        let bucket = self.bucket(tokens, context, logits)?;
        self.step_programs(bucket).map(drop)
    }

    /// Compiles everything that steps within the limits may need, so that none waits for the compiler. `on_bucket` is told how
    /// many buckets are done, and how many there are.
    ///
    /// # Errors
    /// If the compiler refuses a program.
    pub fn compile_all(&mut self, on_bucket: &dyn Fn(usize, usize)) -> Result<(), RunnerError> {
        let all = self.buckets.all(self.limits.max_seqs_per_step);
        for (done, &bucket) in all.iter().enumerate() {
            on_bucket(done, all.len());
            self.step_programs(bucket)?;
        }
        on_bucket(all.len(), all.len());
        Ok(())
    }

    fn bucket(&self, tokens: usize, context: usize, logits: usize) -> Result<Bucket, RunnerError> {
        self.buckets.of(tokens, context, logits).ok_or_else(|| RunnerError::Protocol {
            detail: format!("no bucket for {tokens} tokens at positions below {context}, {logits} logits"),
        })
    }

    fn step_programs(&mut self, bucket: Bucket) -> Result<StepPrograms<D>, RunnerError> {
        self.programs.step(&self.device, bucket).map_err(|error| match error {
            CompileError::Device(error) => runner_error(error),
            error => self.failed("record", error),
        })
    }

    /// Starts a step's programs; the logits are not computed yet.
    fn start(&mut self, inputs: &Inputs, bucket: Bucket) -> Result<Option<D::Buffer>, RunnerError> {
        let programs = self.step_programs(bucket)?;
        let padding = Padding {
            tokens: bucket.tokens,
            logits: bucket.logits,
            sequences: self.limits.max_seqs_per_step + 1,
            width: bucket.context / self.cache.page_size,
            page: self.limits.pages,
            page_size: self.cache.page_size,
        };
        let padded = inputs.padded(&padding).map_err(|error| self.failed("pad", error))?;
        self.run(&programs, padded).map_err(|error| self.recovered(error))
    }

    fn run(
        &mut self,
        programs: &StepPrograms<D>,
        [tokens, slots, positions, sequences, tables, logits]: [HostTensor; 6],
    ) -> Result<Option<D::Buffer>, DeviceError> {
        let CompiledRunner { device, constants, zero, caches, .. } = self;
        let placed = [&slots, &positions, &sequences, &tables].map(|tensor| device.upload(tensor));
        let [slots, positions, sequences, tables] = placed;
        let step = [slots?, positions?, sequences?, tables?];
        let tokens = device.upload(&tokens)?;
        let (embed, numbers) = &programs.embed;
        let mut x = only(embed.run(device, vec![Argument::Kept(&tokens)], numbers, constants, zero)?);
        for ((layer, numbers), cache) in programs.layers.iter().zip(caches) {
            let mut arguments = vec![Argument::Kept(&x)];
            arguments.extend(step.iter().map(Argument::Kept));
            arguments.extend(cache.iter_mut().map(Argument::Given));
            let mut outputs = layer.run(device, arguments, numbers, constants, zero)?.into_iter();
            let out = outputs.next().expect("a layer's first output");
            cache.iter_mut().zip(outputs).for_each(|(part, output)| *part = Some(output));
            x = out;
        }
        let Some((head, numbers)) = &programs.head else { return Ok(None) };
        let logits = device.upload(&logits)?;
        let arguments = vec![Argument::Kept(&x), Argument::Kept(&logits)];
        Ok(Some(only(head.run(device, arguments, numbers, constants, zero)?)))
    }

    /// After a failed run: caches whose memory went with it are made anew, and nobody's pages hold anything then.
    fn recovered(&mut self, error: DeviceError) -> RunnerError {
        let is_lost = |cache: &[Option<D::Buffer>; 4]| cache.iter().any(Option::is_none);
        let lost: Vec<usize> = (0..self.caches.len()).filter(|&i| is_lost(&self.caches[i])).collect();
        for &layer in &lost {
            match empty_cache(&*self.device, self.cache) {
                Ok(cache) => self.caches[layer] = cache,
                Err(error) => return lost_device(&*self.device, &error),
            }
        }
        match error {
            DeviceError::Failed { op, device, detail, .. } if !lost.is_empty() => {
                RunnerError::PagesLost { op, device, detail }
            }
            error => runner_error(error),
        }
    }

    fn failed(&self, op: &str, detail: impl ToString) -> RunnerError {
        RunnerError::Failed {
            op: op.into(),
            device: self.device.name().into(),
            detail: detail.to_string(),
            retriable: false,
        }
    }
}

impl<D: Device> Runner for CompiledRunner<D> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        let mut inputs = Inputs::default();
        inputs.fill(batch, self.limits.page_size);
        let rows = batch.seqs.iter().filter(|seq| seq.logits).count();
        let context = batch.positions.iter().max().map_or(0, |&last| last as usize + 1);
        let bucket = self.bucket(batch.tokens.len(), context, rows)?;
        let logits = self.start(&inputs, bucket)?;
        self.submitted.push_back(Submitted { logits, bucket, rows });
        Ok(())
    }

    fn wait(&mut self) -> Result<Logits, RunnerError> {
        let Some(Submitted { logits, bucket, rows }) = self.submitted.pop_front() else {
            return Err(RunnerError::Protocol { detail: "wait without a submitted step".into() });
        };
        let vocab_size = self.limits.vocab_size;
        let mut values = vec![0.0f32; bucket.logits * vocab_size];
        if let Some(logits) = logits {
            let bytes = bytemuck::cast_slice_mut(&mut values);
            // The step's writes to the caches are not to be trusted either, nor what was written before.
            self.device.download(&logits, bytes).map_err(pages_lost)?;
        }
        values.truncate(rows * vocab_size);
        Logits::new(vocab_size, values)
    }
}

/// A trace whose constants go to the device at once.
fn placing<D: Device>(device: &Arc<D>, constants: &Constants<D>) -> Trace {
    let (device, constants) = (device.clone(), constants.clone());
    Trace::placing(move |number, value| {
        let buffer = device.upload(value).map_err(|error| backend_error(&*device, "upload", error))?;
        locked::<D>(&constants).insert(number, buffer);
        Ok(())
    })
}

/// Zeroed tensors of one layer's cache: keys, their scales, values, their scales.
fn empty_cache<D: Device>(device: &D, shape: KvShape) -> Result<[Option<D::Buffer>; 4], DeviceError> {
    let rows = shape.rows();
    let zeros = |cols, dtype: DType| {
        let extents: Shape = [rows, cols].into();
        let bytes = vec![0u8; extents.elements() * dtype.size()];
        device.upload(&HostTensor::new(extents, dtype, bytes.into()).expect("bytes fill the shape")).map(Some)
    };
    let (bytes, floats) = (DType::I8, DType::F32);
    Ok([
        zeros(shape.head_dim, bytes)?,
        zeros(shape.head_blocks(), floats)?,
        zeros(shape.head_dim, bytes)?,
        zeros(1, floats)?,
    ])
}

fn only<B>(outputs: Vec<B>) -> B {
    outputs.into_iter().next().expect("a program with one output")
}

fn backend_error<D: Device>(device: &D, op: &'static str, error: DeviceError) -> Error {
    Error::Backend { backend: device.name().into(), op, detail: error.to_string() }
}

fn tensor_error<D: Device>(device: &D, error: GraphError) -> Error {
    match error {
        GraphError::Tensor(error) => error,
        other => Error::Backend { backend: device.name().into(), op: "record", detail: other.to_string() },
    }
}

fn lost_device<D: Device>(device: &D, error: &DeviceError) -> RunnerError {
    RunnerError::DeviceLost { device: device.name().into(), detail: error.to_string() }
}

fn runner_error(error: DeviceError) -> RunnerError {
    match error {
        DeviceError::Failed { op, device, detail, retriable } => {
            RunnerError::Failed { op, device, detail, retriable }
        }
        DeviceError::Lost { device, detail } => RunnerError::DeviceLost { device, detail },
    }
}

fn pages_lost(error: DeviceError) -> RunnerError {
    match error {
        DeviceError::Failed { op, device, detail, .. } => RunnerError::PagesLost { op, device, detail },
        error => runner_error(error),
    }
}
