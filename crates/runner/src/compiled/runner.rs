use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use samebits_engine::{Batch, Limits, Logits, Runner, RunnerError};
use samebits_graph::{GraphError, Trace};
use samebits_hlo::{Argument, Device, DeviceError};
use samebits_models::Model;
use samebits_nn::{Config, Loader, Result as LoadResult, WeightSource};
use samebits_tensor::{DType, Error, HostTensor, KvShape, Rank, Shape};

use crate::{
    MemoryPlan, RunnerConfig,
    compiled::{
        Buckets,
        buckets::Bucket,
        programs::{CompileError, Placed, Programs, StepPrograms},
        record::Recorder,
    },
    inputs::{Inputs, Padding},
};

/// Runs a model on a device that compiles whole programs ahead: each step is padded to a bucket, with tokens that write to a
/// page of their own, and the programs of that bucket are run: the embedding, each layer, the head. Layers of one kind
/// share a program, so the time to compile does not grow with the depth of a model.
///
/// A device of several ranks has its part of each layer's weights and of the cache on each of them. They exchange activations,
/// never partial sums, so how many there are changes no bit.
///
/// Programs of a bucket are compiled when a step first needs them, or ahead by [`CompiledRunner::compile`].
pub struct CompiledRunner<D: Device> {
    device: Arc<D>,
    programs: Programs<D>,
    ranks: Vec<Placed<D>>,
    /// Of one rank.
    cache: KvShape,
    /// By layer and rank.
    caches: Vec<Vec<[Option<D::Buffer>; 4]>>,
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
        config.check_ranks(device.ranks())?;
        let load = |rank| {
            let (trace, constants) = placing(&device, rank);
            let model = Model::load(&Loader::new(&trace, weights, config, on_weight), plan.max_context)?;
            LoadResult::Ok((trace, model, constants))
        };
        let (trace, model, first) = load(0)?;
        let others = (1..device.ranks()).map(|rank| load(rank).map(|(_, _, constants)| constants));
        let others: Vec<Constants<D>> = others.collect::<LoadResult<_>>()?;
        let limits = plan.limits(config, runner);
        let cache = KvShape {
            pages: plan.pages + 1,
            page_size: plan.page_size,
            kv_heads: config.num_key_value_heads.div_ceil(device.ranks()),
            head_dim: config.head_dim,
        };
        let sequences = limits.max_seqs_per_step + 1;
        let recorder = Recorder { trace, model, cache, sequences, hidden_size: config.hidden_size };
        let buckets = Buckets::new(&limits);
        let smallest = buckets.of(1, 1, 1).expect("limits of at least one token");
        let programs = Programs::new(&*device, recorder, config.num_hidden_layers, smallest);
        let programs = programs.map_err(|error| tensor_error(&*device, error))?;
        let failed = |error| backend_error(&*device, "place", error);
        let of_layer = |_| (0..device.ranks()).map(|rank| empty_cache(&*device, rank, cache)).collect();
        let caches = (0..config.num_hidden_layers).map(of_layer).collect::<Result<_, _>>().map_err(failed)?;
        let constants = [first].into_iter().chain(others).enumerate();
        let ranks = constants.map(|(rank, constants)| placed(&*device, rank, &constants));
        Ok(CompiledRunner {
            caches,
            ranks: ranks.collect::<Result<_, _>>().map_err(failed)?,
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
        let CompiledRunner { device, ranks, caches, .. } = self;
        let upload = |tensor: &HostTensor| -> Result<Vec<D::Buffer>, DeviceError> {
            (0..device.ranks()).map(|rank| device.upload(rank, tensor)).collect()
        };
        let step = [upload(&slots)?, upload(&positions)?, upload(&sequences)?, upload(&tables)?];
        let tokens = upload(&tokens)?;
        let (embed, numbers) = &programs.embed;
        let inputs = tokens.iter().map(|tokens| vec![Argument::Kept(tokens)]);
        let mut x = first_of_each(embed.run(device, inputs, numbers, ranks)?);
        for ((layer, numbers), caches) in programs.layers.iter().zip(caches) {
            let inputs = caches.iter_mut().enumerate().map(|(rank, cache)| {
                let mut inputs = vec![Argument::Kept(&x[rank])];
                inputs.extend(step.iter().map(|tensor| Argument::Kept(&tensor[rank])));
                inputs.extend(cache.iter_mut().map(Argument::Given));
                inputs
            });
            let mut outputs = layer.run(device, inputs, numbers, ranks)?;
            for (cache, outputs) in caches.iter_mut().zip(&mut outputs) {
                cache.iter_mut().zip(outputs.drain(1..)).for_each(|(part, output)| *part = Some(output));
            }
            x = first_of_each(outputs);
        }
        let Some((head, numbers)) = &programs.head else { return Ok(None) };
        let logits = upload(&logits)?;
        let inputs = x.iter().zip(&logits).map(|(x, logits)| vec![Argument::Kept(x), Argument::Kept(logits)]);
        Ok(first_of_each(head.run(device, inputs, numbers, ranks)?).into_iter().next())
    }

    /// After a failed run: caches whose memory went with it are made anew, and nobody's pages hold anything then.
    fn recovered(&mut self, error: DeviceError) -> RunnerError {
        let mut is_lost = false;
        for caches in &mut self.caches {
            for (rank, cache) in
                caches.iter_mut().enumerate().filter(|(_, it)| it.iter().any(Option::is_none))
            {
                is_lost = true;
                match empty_cache(&*self.device, rank, self.cache) {
                    Ok(empty) => *cache = empty,
                    Err(error) => return lost_device(&*self.device, &error),
                }
            }
        }
        match error {
            DeviceError::Failed { op, device, detail, .. } if is_lost => {
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
        inputs.fill(batch, self.limits.page_size, 0);
        let rows = batch.logit_rows();
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

/// Tensors of constants on a rank, by their numbers in its trace.
type Constants<D> = Arc<Mutex<HashMap<usize, <D as Device>::Buffer>>>;

/// A trace whose constants go to a rank at once.
fn placing<D: Device>(device: &Arc<D>, rank: usize) -> (Trace, Constants<D>) {
    let constants = Constants::<D>::default();
    let (on, placed) = (device.clone(), constants.clone());
    let trace = Trace::placing(move |number, value| {
        let buffer = on.upload(rank, value).map_err(|error| backend_error(&*on, "upload", error))?;
        placed.lock().unwrap_or_else(PoisonError::into_inner).insert(number, buffer);
        Ok(())
    });
    (trace.with_rank(Rank { index: rank, count: device.ranks() }), constants)
}

fn placed<D: Device>(device: &D, rank: usize, constants: &Constants<D>) -> Result<Placed<D>, DeviceError> {
    let zero = HostTensor::of([], &[0i32]).expect("four bytes fill one i32");
    let constants = mem::take(&mut *constants.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Placed { constants, zero: device.upload(rank, &zero)? })
}

/// Zeroed tensors of one layer's cache on a rank: keys, their scales, values, their scales.
fn empty_cache<D: Device>(
    device: &D,
    rank: usize,
    shape: KvShape,
) -> Result<[Option<D::Buffer>; 4], DeviceError> {
    let rows = shape.rows();
    let zeros = |cols, dtype: DType| {
        let extents: Shape = [rows, cols].into();
        let bytes = vec![0u8; extents.elements() * dtype.size()];
        let zeros = HostTensor::new(extents, dtype, bytes.into()).expect("bytes fill the shape");
        device.upload(rank, &zeros).map(Some)
    };
    let (bytes, floats) = (DType::I8, DType::F32);
    Ok([
        zeros(shape.head_dim, bytes)?,
        zeros(shape.head_blocks(), floats)?,
        zeros(shape.head_dim, bytes)?,
        zeros(1, floats)?,
    ])
}

/// Each rank's first output.
fn first_of_each<B>(outputs: Vec<Vec<B>>) -> Vec<B> {
    outputs.into_iter().filter_map(|outputs| outputs.into_iter().next()).collect()
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
