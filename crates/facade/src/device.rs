//! Which backends exist: the one place that names them.

use std::{fmt, path::PathBuf, str::FromStr};

use samebits_candle::{Candle, Device as CandleDevice};
use samebits_checkpoint::Resolver;
use samebits_cpu::{Cpu, Host, Isa};
use samebits_cuda::{Cuda, Numerics};
use samebits_engine::Runner;
use samebits_nn::{Config, WeightSource};
use samebits_pjrt::{ExecutableCache, PjrtDevice, Plugin, Value, discover};
use samebits_runner::{CompiledRunner, DeviceMemory, MemoryPlan, ModelRunner, RunnerConfig};
use samebits_tensor::{Backend, Capabilities, Format, contract};

use crate::{Error, NeuronOptions, packed_cache::PackedCache};

/// A device that a model can be served on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The host's processors, with kernels chosen at run time.
    #[default]
    Cpu,
    /// The host's processors through candle: an independent implementation of the same bits. Slow.
    Candle,
    /// candle in plain f32: no bits are promised, only accuracy. The oracle of quality. Slow.
    CandleFloat,
    /// The host's processors through plain primitives: the reference that every backend is compared with. Slow.
    Reference,
    /// An NVIDIA GPU.
    Cuda {
        /// Its number among those that the driver shows, which `CUDA_VISIBLE_DEVICES` limits and orders.
        ordinal: u32,
    },
    /// The first devices of a PJRT plugin, which compiles the model ahead of time.
    Pjrt {
        /// The plugin's library; the first that [`samebits_pjrt::discover`] finds if `None`.
        plugin: Option<PathBuf>,
        /// How many of its devices share each layer.
        ranks: usize,
    },
    /// A NeuronCore of AWS Trainium or Inferentia, for which the model is compiled ahead of time.
    Neuron {
        /// Its place among those that are visible.
        core: u32,
        /// How many cores from there on share each layer.
        ranks: usize,
    },
}

impl Device {
    /// Devices that need nothing but this build.
    pub const BUILT_IN: [Device; 4] = [Device::Cpu, Device::Candle, Device::CandleFloat, Device::Reference];

    /// The device with so many ranks that share each layer, in place of one.
    ///
    /// # Errors
    /// [`Error::Ranks`] of a device that is one by nature.
    pub fn with_ranks(self, ranks: usize) -> Result<Self, Error> {
        match self {
            Device::Pjrt { plugin, .. } if ranks > 0 => Ok(Device::Pjrt { plugin, ranks }),
            Device::Neuron { core, .. } if ranks > 0 => Ok(Device::Neuron { core, ranks }),
            device if ranks == 1 => Ok(device),
            device => Err(Error::Ranks { device, ranks }),
        }
    }

    /// The name on a command line, without what follows a colon.
    pub fn name(&self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Candle => "candle",
            Device::CandleFloat => "candle-float",
            Device::Reference => "reference",
            Device::Cuda { .. } => "cuda",
            Device::Pjrt { .. } => "pjrt",
            Device::Neuron { .. } => "neuron",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Pjrt { plugin: Some(plugin), .. } => write!(f, "pjrt:{}", plugin.display()),
            Device::Cuda { ordinal } => write!(f, "cuda:{ordinal}"),
            Device::Neuron { core, .. } => write!(f, "neuron:{core}"),
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        if let Some(path) = name.strip_prefix("pjrt:").filter(|path| !path.is_empty()) {
            return Ok(Device::Pjrt { plugin: Some(path.into()), ranks: 1 });
        }
        if name == "pjrt" {
            return Ok(Device::Pjrt { plugin: None, ranks: 1 });
        }
        if let Some(core) = numbered(name, "neuron") {
            return Ok(Device::Neuron { core, ranks: 1 });
        }
        if let Some(ordinal) = numbered(name, "cuda") {
            return Ok(Device::Cuda { ordinal });
        }
        let known = Device::BUILT_IN.into_iter().find(|device| device.name() == name);
        known.ok_or_else(|| Error::UnknownDevice {
            name: name.into(),
            known: format!(
                "{}, cuda:NUMBER, pjrt:PATH, neuron:CORE",
                Device::BUILT_IN.map(|device| device.name()).join(", ")
            ),
        })
    }
}

/// The number of one of several devices of a kind, such as `cuda:1`; 0 of the kind's name alone.
fn numbered(name: &str, kind: &str) -> Option<u32> {
    let rest = name.strip_prefix(kind)?;
    if rest.is_empty() { Some(0) } else { rest.strip_prefix(':')?.parse().ok() }
}

/// How the host's processors are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads; one a processor if `None`.
    pub threads: Option<usize>,
    /// Instruction set; the best one here if `None`.
    pub isa: Option<Isa>,
    /// Whether each thread but the caller's stays on a core of its own; see [`samebits_cpu::Builder::pin`].
    pub pin: bool,
}

/// How an NVIDIA GPU is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// How linear layers are computed; every other device computes exactly, and refuses another choice.
    pub numerics: Numerics,
    /// The library of cuBLASLt, for [`Numerics::Fast`]; what `SAMEBITS_CUBLASLT` names if `None`, or the one that the system finds.
    pub cublaslt: Option<PathBuf>,
}

impl CudaOptions {
    pub(crate) fn builder(&self, ordinal: u32) -> samebits_cuda::Builder {
        let builder = Cuda::builder().ordinal(ordinal).numerics(self.numerics);
        let named = || std::env::var_os("SAMEBITS_CUBLASLT").filter(|it| !it.is_empty()).map(PathBuf::from);
        match self.cublaslt.clone().or_else(named) {
            Some(path) => builder.cublaslt(path),
            None => builder,
        }
    }
}

/// How devices are used; each takes what concerns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The host's processors.
    pub cpu: CpuOptions,
    /// NVIDIA GPUs.
    pub cuda: CudaOptions,
    /// NeuronCores.
    pub neuron: NeuronOptions,
}

impl DeviceOptions {
    /// Refuses numerics that a device does not have.
    fn check(&self, device: &Device) -> Result<(), Error> {
        match (self.cuda.numerics, device) {
            (Numerics::Exact, _) | (Numerics::Fast, Device::Cuda { .. }) => Ok(()),
            (Numerics::Fast, device) => Err(Error::Numerics { device: device.clone() }),
        }
    }
}

fn cpu(options: &CpuOptions) -> Result<Cpu, Error> {
    let builder = Cpu::builder().threads(options.threads.unwrap_or_default()).pin(options.pin);
    Ok(options.isa.map_or(builder, |isa| builder.isa(isa)).build()?)
}

/// What a device is and takes.
///
/// # Errors
/// If it cannot be opened, or has not the numerics that are asked for.
pub fn capabilities(device: &Device, options: &DeviceOptions) -> Result<Capabilities, Error> {
    options.check(device)?;
    Ok(match device {
        Device::Cpu => cpu(&options.cpu)?.capabilities().clone(),
        Device::Candle => Candle::exact(CandleDevice::Cpu).capabilities().clone(),
        Device::CandleFloat => Candle::float(CandleDevice::Cpu).capabilities().clone(),
        Device::Reference => Host.capabilities().clone(),
        Device::Cuda { ordinal } => options.cuda.builder(*ordinal).capabilities()?,
        Device::Pjrt { plugin, ranks } => {
            let device = pjrt(plugin.clone(), *ranks, None)?;
            let (major, minor) = device.client().plugin().api_version();
            let (path, platform) = (device.client().plugin().path(), device.client().platform_version());
            Capabilities {
                name: samebits_hlo::Device::name(&device).into(),
                device: format!("{platform} through {}, PJRT {major}.{minor}", path.display()),
                numerics: contract::exact(),
                formats: Format::ALL.to_vec(),
                memory_bytes: samebits_hlo::Device::memory_bytes(&device),
            }
        }
        Device::Neuron { core, ranks } => options.neuron.capabilities(*core, *ranks)?,
    })
}

/// Memory that a model has to fit in which is compiled ahead for a device: that of the device, which may not be here.
///
/// # Errors
/// If neither the device nor its options tell.
pub(crate) fn memory_of_compiled(device: &Device, options: &DeviceOptions) -> Result<Option<u64>, Error> {
    match device {
        Device::Neuron { ranks, .. } => {
            Ok(Some(samebits_neuron::core_memory_bytes(options.neuron.target()?) * *ranks as u64))
        }
        device => Ok(capabilities(device, options)?.memory_bytes),
    }
}

/// What a model takes of a device's memory, of which so many bytes are there.
pub(crate) fn memory(device: &Device, available: Option<u64>) -> DeviceMemory {
    let plain = DeviceMemory { available, ..DeviceMemory::default() };
    match device {
        Device::Cuda { .. } => DeviceMemory {
            weight_bytes: samebits_cuda::PackedWeight::bytes,
            recorded_steps: samebits_cuda::RECORDED_STEPS,
            ..plain
        },
        _ => plain,
    }
}

/// The first devices of a plugin.
fn pjrt(plugin: Option<PathBuf>, ranks: usize, programs: Option<PathBuf>) -> Result<PjrtDevice, Error> {
    let found = || discover().into_iter().next().map(|(path, _)| path);
    let path = plugin.or_else(found).ok_or(Error::NoPlugin)?;
    let plugin = Plugin::open(path)?;
    let mut client = plugin.client(&[])?;
    if client.platform() == "cpu" && client.devices().len() < ranks {
        // A host's processors are as many devices as are asked for.
        client = plugin.client(&[("cpu_device_count", Value::Int64(ranks as i64))])?;
    }
    let device = PjrtDevice::group(client, 0..ranks)?;
    Ok(match programs {
        Some(directory) => device.with_cache(ExecutableCache::open(directory)?),
        None => device,
    })
}

/// A model to be loaded.
#[derive(Clone, Copy)]
pub(crate) struct Loading<'a> {
    pub(crate) config: &'a Config,
    pub(crate) weights: &'a dyn WeightSource,
    pub(crate) runner: &'a RunnerConfig,
    pub(crate) plan: &'a MemoryPlan,
    /// Told the bytes of each weight as it is placed.
    pub(crate) on_weight: &'a dyn Fn(usize),
}

impl Loading<'_> {
    pub(crate) fn onto<B: Backend>(self, backend: B) -> Result<Box<dyn Runner>, Error> {
        let Loading { config, weights, runner, plan, on_weight } = self;
        Ok(Box::new(ModelRunner::load(backend, config, weights, runner, plan, on_weight)?))
    }

    pub(crate) fn compiled_for<D: samebits_hlo::Device>(self, device: D) -> Result<CompiledRunner<D>, Error> {
        let Loading { config, weights, runner, plan, on_weight } = self;
        Ok(CompiledRunner::load(device, config, weights, runner, plan, on_weight)?)
    }
}

/// Loads a model onto a device.
pub(crate) fn open(
    device: &Device,
    options: &DeviceOptions,
    packed: Option<&PackedCache>,
    model: Loading<'_>,
) -> Result<Box<dyn Runner>, Error> {
    options.check(device)?;
    match (device, packed) {
        (Device::Cpu, None) => model.onto(cpu(&options.cpu)?),
        (Device::Cpu, Some(packed)) => {
            let cpu = cpu(&options.cpu)?;
            packed.around(&cpu, || model.onto(cpu.clone()))
        }
        (_, Some(_)) => Err(Error::PackedCache { device: device.clone() }),
        (Device::Candle, None) => model.onto(Candle::exact(CandleDevice::Cpu)),
        (Device::CandleFloat, None) => model.onto(Candle::float(CandleDevice::Cpu)),
        (Device::Reference, None) => model.onto(Host),
        (Device::Cuda { ordinal }, None) => model.onto(options.cuda.builder(*ordinal).open()?),
        (Device::Pjrt { plugin, ranks }, None) => {
            Ok(Box::new(model.compiled_for(compiling(plugin, *ranks)?)?))
        }
        (Device::Neuron { core, ranks }, None) => {
            Ok(Box::new(model.compiled_for(options.neuron.open(*core, *ranks)?)?))
        }
    }
}

/// Compiles what a model needs on a device, and keeps it for later starts.
pub(crate) fn compile(
    device: &Device,
    options: &DeviceOptions,
    model: Loading<'_>,
    on_bucket: &dyn Fn(usize, usize),
) -> Result<(), Error> {
    options.check(device)?;
    match device {
        Device::Pjrt { plugin, ranks } => {
            Ok(model.compiled_for(compiling(plugin, *ranks)?)?.compile_all(on_bucket)?)
        }
        Device::Neuron { ranks, .. } => {
            Ok(model.compiled_for(options.neuron.offline(*ranks)?)?.compile_all(on_bucket)?)
        }
        other => Err(Error::NotCompiled { device: other.clone() }),
    }
}

/// A plugin's devices, with the compiled programs that are kept.
pub(crate) fn compiling(plugin: &Option<PathBuf>, ranks: usize) -> Result<PjrtDevice, Error> {
    pjrt(plugin.clone(), ranks, Some(programs()))
}

/// Where compiled programs are kept: beside the models.
pub(crate) fn programs() -> PathBuf {
    Resolver::from_env().cache.join("programs")
}
