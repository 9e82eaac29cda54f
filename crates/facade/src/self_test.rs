//! What owners of a device run to see that it gives the bits it has to.

use std::{
    fs, iter,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use samebits_checkpoint::Checkpoint;
use samebits_conformance::{Compiled, Group, Report, Subject, check_sample};
use samebits_cpu::Cpu;
use samebits_cuda::Cuda;
use samebits_engine::{Batch, BatchSeq, PageId, Runner, RunnerError, Wanted};
use samebits_hlo::{Argument, Device as Compiles, DeviceError, Options, Program};
use samebits_runner::{MemoryPlan, RunnerConfig};
use samebits_tensor::{HostTensor, contract::NUMERICS_VERSION};
use serde_json::{Value, json};

use crate::{
    Device, DeviceOptions, Error, capabilities,
    device::{self, Loading},
};

/// What a device did with a part of the op suite and with a small model.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// The device.
    pub device: String,
    /// What it is: runtime, compiler, versions.
    pub description: String,
    /// Cases of the op suite, bit for bit.
    pub conformance: Report,
    /// A small model beside the CPU, or why it could not be run.
    pub model: Result<ModelTest, String>,
    /// Each module of a device that compiles ahead, and the seconds until it was compiled, or found compiled, and loaded.
    pub programs: Vec<(String, f64)>,
}

/// What a device did with a small model.
#[derive(Clone, Debug)]
pub struct ModelTest {
    /// Tokens that were computed.
    pub tokens: usize,
    /// Tokens a second, one a step.
    pub tokens_per_second: f64,
    /// The first token whose logits have other bits than on the CPU.
    pub differs_at: Option<usize>,
}

/// Tests a device. Of the op suite, so many cases of each operation are run. `on_group` is told how many operations are done, and
/// how many there are.
///
/// # Errors
/// If the device cannot be opened, or has no self-test. What fails later is part of the result.
pub fn self_test(
    device: &Device,
    options: &DeviceOptions,
    cases: usize,
    on_group: &dyn Fn(usize, usize),
) -> Result<SelfTest, Error> {
    let description = capabilities(device, options)?.device;
    let test = match device {
        Device::Cuda { ordinal } => test_cuda(&options.cuda.builder(*ordinal).open()?, cases, on_group),
        Device::Pjrt { plugin, ranks: 1 } => test(device::compiling(plugin, 1)?, cases, on_group),
        Device::Neuron { core, ranks: 1 } => test(options.neuron.open(*core, 1)?, cases, on_group),
        other => return Err(Error::NoSelfTest { device: other.clone() }),
    };
    Ok(SelfTest { description, ..test })
}

impl SelfTest {
    /// Whether everything had the bits that it has to have.
    pub fn passed(&self) -> bool {
        self.conformance.is_clean() && self.model.as_ref().is_ok_and(|model| model.differs_at.is_none())
    }

    /// All of it as JSON; docs/neuron.md has the fields.
    pub fn to_json(&self) -> Value {
        let failures = self.conformance.groups.iter().flat_map(|group| &group.failures);
        let failures = failures.map(|failure| json!({"case": failure.case, "detail": failure.detail}));
        let programs = self.programs.iter().map(|(name, seconds)| json!({"name": name, "seconds": seconds}));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "numerics_version": NUMERICS_VERSION,
            "device": self.device,
            "description": self.description,
            "passed": self.passed(),
            "conformance": {
                "cases": self.conformance.cases(),
                "failures": failures.collect::<Vec<_>>(),
            },
            "model": match &self.model {
                Ok(model) => json!({
                    "tokens": model.tokens,
                    "tokens_per_second": model.tokens_per_second,
                    "differs_at": model.differs_at,
                }),
                Err(why) => json!({"error": why}),
            },
            "programs": programs.collect::<Vec<_>>(),
        })
    }
}

fn test<D: Compiles>(device: D, cases: usize, on_group: &dyn Fn(usize, usize)) -> SelfTest {
    let timed = Timed { device: Arc::new(device), programs: Arc::default() };
    let device = timed.name().to_owned();
    let conformance = test_operations(&device, &Compiled(&timed), cases, on_group);
    let model = test_model(|model| {
        let mut runner = model.compiled_for(timed.clone())?;
        runner.compile(PROMPT, TOKENS, 1)?;
        runner.compile(1, TOKENS, 1)?;
        Ok(Box::new(runner))
    });
    let model = model.map_err(|error| error.to_string());
    SelfTest { device, description: String::new(), conformance, model, programs: timed.programs() }
}

fn test_cuda(cuda: &Cuda, cases: usize, on_group: &dyn Fn(usize, usize)) -> SelfTest {
    let device = "cuda".to_owned();
    let conformance = test_operations(&device, cuda, cases, on_group);
    let model = test_model(|model| model.onto(cuda.clone())).map_err(|error| error.to_string());
    SelfTest { device, description: String::new(), conformance, model, programs: Vec::new() }
}

fn test_operations(
    name: &str,
    subject: &impl Subject,
    cases: usize,
    on_group: &dyn Fn(usize, usize),
) -> Report {
    let mut groups = Vec::with_capacity(Group::ALL.len());
    for &group in Group::ALL {
        on_group(groups.len(), Group::ALL.len());
        groups.push(check_sample(cases, subject, group, &[]));
    }
    on_group(groups.len(), Group::ALL.len());
    Report { subject: name.into(), groups }
}

/// A model of two small layers in Q4_0, which this repository's tests use too.
const MODEL: &[u8] = include_bytes!("../../../tests/fixtures/models/gguf/llama.Q4_0.gguf");

/// The first step has this many tokens, each other one.
const PROMPT: usize = 4;
const TOKENS: usize = 36;

/// The model beside the CPU, on the device that `load` loads it onto.
fn test_model(load: impl FnOnce(Loading<'_>) -> Result<Box<dyn Runner>, Error>) -> Result<ModelTest, Error> {
    let directory = tempfile::TempDir::new()?;
    let path = directory.path().join("model.gguf");
    fs::write(&path, MODEL)?;
    let Checkpoint { config, weights, .. } = Checkpoint::open(&path)?;
    let runner = RunnerConfig {
        max_context: 128,
        kv_cache_memory_bytes: None,
        page_size: 32,
        max_tokens_per_step: PROMPT,
        max_seqs_per_step: 1,
    };
    let plan = MemoryPlan::new(&config, &*weights, &runner, None)?;
    let model =
        Loading { config: &config, weights: &*weights, runner: &runner, plan: &plan, on_weight: &|_| {} };
    let mut expected = model.onto(Cpu::builder().build()?)?;
    let mut found = load(model)?;
    compare(&mut *expected, &mut *found)
}

fn compare(expected: &mut dyn Runner, found: &mut dyn Runner) -> Result<ModelTest, Error> {
    let (mut differs_at, mut seconds) = (None, 0.0);
    let steps = iter::once(0..PROMPT).chain((PROMPT..TOKENS).map(|i| i..i + 1));
    for step in steps {
        let tokens: Vec<u32> = step.clone().map(|i| (i * i * 7 + 5) as u32 % 300).collect();
        let batch = Batch {
            positions: step.clone().map(|position| position as u32).collect(),
            seqs: vec![BatchSeq {
                tokens: 0..tokens.len(),
                pages: vec![PageId(0), PageId(1)],
                logits: Wanted::Row,
            }],
            tokens,
        };
        let start = Instant::now();
        let logits = bits(found, &batch)?;
        if step.len() == 1 {
            seconds += start.elapsed().as_secs_f64();
        }
        if bits(expected, &batch)? != logits {
            differs_at = differs_at.or(Some(step.end - 1));
        }
    }
    let tokens_per_second = (TOKENS - PROMPT) as f64 / seconds;
    Ok(ModelTest { tokens: TOKENS, tokens_per_second, differs_at })
}

fn bits(runner: &mut dyn Runner, batch: &Batch) -> Result<Vec<u32>, RunnerError> {
    runner.submit(batch)?;
    Ok(runner.wait()?.row(0).iter().map(|logit| logit.to_bits()).collect())
}

/// A device, and how long each of its programs took to compile.
struct Timed<D> {
    device: Arc<D>,
    programs: Arc<Mutex<Vec<(String, f64)>>>,
}

impl<D> Clone for Timed<D> {
    fn clone(&self) -> Self {
        Timed { device: self.device.clone(), programs: self.programs.clone() }
    }
}

impl<D> Timed<D> {
    fn programs(&self) -> Vec<(String, f64)> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<D: Compiles> Compiles for Timed<D> {
    type Buffer = D::Buffer;
    type Executable = D::Executable;

    fn name(&self) -> &str {
        self.device.name()
    }

    fn options(&self, module: String) -> Options {
        self.device.options(module)
    }

    fn compile(&self, program: &Program) -> Result<D::Executable, DeviceError> {
        let start = Instant::now();
        let executable = self.device.compile(program)?;
        let timed = (program.module.name.clone(), start.elapsed().as_secs_f64());
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).push(timed);
        Ok(executable)
    }

    fn upload(&self, rank: usize, value: &HostTensor) -> Result<D::Buffer, DeviceError> {
        self.device.upload(rank, value)
    }

    fn run(
        &self,
        executable: &D::Executable,
        arguments: Vec<Vec<Argument<'_, D::Buffer>>>,
    ) -> Result<Vec<Vec<D::Buffer>>, DeviceError> {
        self.device.run(executable, arguments)
    }

    fn download(&self, buffer: &D::Buffer, out: &mut [u8]) -> Result<(), DeviceError> {
        self.device.download(buffer, out)
    }
}
