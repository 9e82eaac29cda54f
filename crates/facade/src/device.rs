//! Which backends exist: the one place that names them.

use std::{fmt, str::FromStr};

use samebits_candle::{Candle, Device as CandleDevice};
use samebits_cpu::{Cpu, Host, Isa};
use samebits_engine::Runner;
use samebits_nn::{Config, WeightSource};
use samebits_runner::{MemoryPlan, ModelRunner, RunnerConfig};
use samebits_tensor::{Backend, Capabilities};

use crate::Error;

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
}

fn cpu(options: &CpuOptions) -> Result<Cpu, Error> {
    let builder = Cpu::builder().threads(options.threads.unwrap_or_default());
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

/// Loads a model onto a device. `on_weight` is told the bytes of each weight as it is placed.
pub(crate) fn open(
    device: Device,
    options: &CpuOptions,
    config: &Config,
    weights: &dyn WeightSource,
    runner: &RunnerConfig,
    plan: &MemoryPlan,
    on_weight: &dyn Fn(usize),
) -> Result<Box<dyn Runner>, Error> {
    fn load<B: Backend>(
        backend: B,
        (config, weights, runner, plan): (&Config, &dyn WeightSource, &RunnerConfig, &MemoryPlan),
        on_weight: &dyn Fn(usize),
    ) -> Result<Box<dyn Runner>, Error> {
        Ok(Box::new(ModelRunner::load(backend, config, weights, runner, plan, on_weight)?))
    }
    let model = (config, weights, runner, plan);
    match device {
        Device::Cpu => load(cpu(options)?, model, on_weight),
        Device::Candle => load(Candle::exact(CandleDevice::Cpu), model, on_weight),
        Device::CandleFloat => load(Candle::float(CandleDevice::Cpu), model, on_weight),
        Device::Reference => load(Host, model, on_weight),
    }
}
