//! Which backends exist: the one place that names them.

use std::{fmt, str::FromStr};

use samebits_candle::{Candle, Device as CandleDevice};
use samebits_cpu::{Cpu, Host, Isa};
use samebits_engine::Runner;
use samebits_nn::{Config, WeightSource};
use samebits_runner::{MemoryPlan, ModelRunner, RunnerConfig};
use samebits_tensor::{Backend, Capabilities};

use crate::{Error, packed_cache::PackedCache};

/// A device that a model can be served on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
}

impl Device {
    /// Every device of this build.
    pub const ALL: [Device; 4] = [Device::Cpu, Device::Candle, Device::CandleFloat, Device::Reference];

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Candle => "candle",
            Device::CandleFloat => "candle-float",
            Device::Reference => "reference",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Device::ALL.into_iter().find(|device| device.name() == name);
        known.ok_or_else(|| Error::UnknownDevice {
            name: name.into(),
            known: Device::ALL.map(Device::name).join(", "),
        })
    }
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

fn cpu(options: &CpuOptions) -> Result<Cpu, Error> {
    let builder = Cpu::builder().threads(options.threads.unwrap_or_default()).pin(options.pin);
    Ok(options.isa.map_or(builder, |isa| builder.isa(isa)).build()?)
}

/// What a device is and takes.
///
/// # Errors
/// If it cannot be opened.
pub fn capabilities(device: Device, options: &CpuOptions) -> Result<Capabilities, Error> {
    Ok(match device {
        Device::Cpu => cpu(options)?.capabilities().clone(),
        Device::Candle => Candle::exact(CandleDevice::Cpu).capabilities().clone(),
        Device::CandleFloat => Candle::float(CandleDevice::Cpu).capabilities().clone(),
        Device::Reference => Host.capabilities().clone(),
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
    fn onto<B: Backend>(self, backend: B) -> Result<Box<dyn Runner>, Error> {
        let Loading { config, weights, runner, plan, on_weight } = self;
        Ok(Box::new(ModelRunner::load(backend, config, weights, runner, plan, on_weight)?))
    }
}

/// Loads a model onto a device.
pub(crate) fn open(
    device: Device,
    options: &CpuOptions,
    packed: Option<&PackedCache>,
    model: Loading<'_>,
) -> Result<Box<dyn Runner>, Error> {
    match (device, packed) {
        (Device::Cpu, None) => model.onto(cpu(options)?),
        (Device::Cpu, Some(packed)) => {
            let cpu = cpu(options)?;
            packed.around(&cpu, || model.onto(cpu.clone()))
        }
        (_, Some(_)) => Err(Error::PackedCache { device }),
        (Device::Candle, None) => model.onto(Candle::exact(CandleDevice::Cpu)),
        (Device::CandleFloat, None) => model.onto(Candle::float(CandleDevice::Cpu)),
        (Device::Reference, None) => model.onto(Host),
    }
}
