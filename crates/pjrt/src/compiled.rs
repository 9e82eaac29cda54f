use std::ops::Range;

use samebits_hlo::{Argument as Given, Device as Compiles, DeviceError, Options, Program};
use samebits_tensor::{DType, HostTensor};

use crate::{
    Argument, Buffer, Client, Code, CompileOptions, ElementType, Executable, ExecutableCache, Format,
    PjrtError, Value,
};

/// A device of a client, or several that run each module together, for modules of [`samebits_hlo`].
pub struct PjrtDevice {
    client: Client,
    /// By rank.
    devices: Vec<usize>,
    name: String,
    cache: Option<ExecutableCache>,
}

impl PjrtDevice {
    /// The device of this place in [`Client::devices`].
    ///
    /// # Errors
    /// [`PjrtError::Device`] if there is none.
    pub fn new(client: Client, index: usize) -> Result<Self, PjrtError> {
        Self::group(client, index..index + 1)
    }

    /// The devices of these places, as ranks.
    ///
    /// # Errors
    /// [`PjrtError::Device`] if there are fewer.
    pub fn group(client: Client, devices: Range<usize>) -> Result<Self, PjrtError> {
        let count = client.devices().len();
        if devices.end > count {
            return Err(PjrtError::Device { index: devices.end - 1, count });
        }
        let places: Vec<String> = devices.clone().map(|index| index.to_string()).collect();
        let name = format!("pjrt:{}:{}", client.platform(), places.join(","));
        Ok(PjrtDevice { client, devices: devices.collect(), name, cache: None })
    }

    /// The device, which looks for compiled modules in `cache`, and keeps there what it compiles.
    pub fn with_cache(self, cache: ExecutableCache) -> Self {
        PjrtDevice { cache: Some(cache), ..self }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn failed(&self, op: impl Into<String>, error: &PjrtError) -> DeviceError {
        let (device, detail) = (self.name.clone(), error.to_string());
        match error {
            PjrtError::Call { code: Code::DataLoss, .. } => DeviceError::Lost { device, detail },
            _ => DeviceError::Failed { op: op.into(), device, detail, retriable: is_passing(error) },
        }
    }
}

impl Compiles for PjrtDevice {
    type Buffer = Buffer;
    type Executable = Executable;

    fn name(&self) -> &str {
        &self.name
    }

    fn ranks(&self) -> usize {
        self.devices.len()
    }

    fn options(&self, module: String) -> Options {
        Options { ranks: self.ranks(), ..Options::new(module) }
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.devices.iter().map(|&index| self.client.memory_stats(index).ok()??.limit).sum()
    }

    fn compile(&self, program: &Program) -> Result<Executable, DeviceError> {
        let flags = if self.client.platform() == "cpu" { exact_flags() } else { Vec::new() };
        let (replicas, devices) = (self.ranks(), self.devices.clone());
        let options = CompileOptions { replicas, devices, flags, ..CompileOptions::default() };
        let bytes = program.bytes();
        let executable = match &self.cache {
            Some(cache) => cache.compile(&self.client, &bytes, Format::Hlo, &options).map(|(it, _)| it),
            None => self.client.compile(&bytes, Format::Hlo, &options),
        };
        executable.map_err(|error| self.failed(format!("compile {}", program.module.name), &error))
    }

    fn upload(&self, rank: usize, value: &HostTensor) -> Result<Buffer, DeviceError> {
        let device = self.devices[rank];
        let buffer = self.client.upload(device, value.bytes(), element(value.dtype()), value.shape().dims());
        buffer.map_err(|error| self.failed(format!("upload {} {}", value.dtype(), value.shape()), &error))
    }

    fn run(
        &self,
        executable: &Executable,
        arguments: Vec<Vec<Given<'_, Buffer>>>,
    ) -> Result<Vec<Vec<Buffer>>, DeviceError> {
        let of_rank = |arguments: Vec<_>| arguments.into_iter().map(argument).collect::<Option<Vec<_>>>();
        let arguments: Option<Vec<Vec<Argument<'_>>>> = arguments.into_iter().map(of_rank).collect();
        let arguments = arguments.ok_or_else(|| DeviceError::Failed {
            op: "run".into(),
            device: self.name.clone(),
            detail: "an argument was given away before".into(),
            retriable: false,
        })?;
        let started = executable.execute(arguments).map_err(|error| self.failed("run", &error))?;
        Ok(started.outputs)
    }

    fn download(&self, buffer: &Buffer, out: &mut [u8]) -> Result<(), DeviceError> {
        buffer.download(out).map_err(|error| self.failed("download", &error))
    }
}

fn argument<'a>(given: Given<'a, Buffer>) -> Option<Argument<'a>> {
    match given {
        Given::Kept(buffer) => Some(Argument::Borrowed(buffer)),
        Given::Given(buffer) => buffer.take().map(Argument::Donated),
    }
}

/// What keeps XLA's compiler for CPUs to HLO's own meaning: its `maximum` loses a NaN otherwise.
fn exact_flags() -> Vec<(String, Value)> {
    vec![("xla_cpu_enable_fast_min_max".into(), Value::Bool(false))]
}

fn is_passing(error: &PjrtError) -> bool {
    let passing = [Code::ResourceExhausted, Code::Unavailable, Code::Aborted, Code::DeadlineExceeded];
    matches!(error, PjrtError::Call { code, .. } if passing.contains(code))
}

fn element(dtype: DType) -> ElementType {
    match dtype {
        DType::F32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::Bf16,
        DType::I8 => ElementType::S8,
        DType::U8 => ElementType::U8,
        DType::I32 => ElementType::S32,
        DType::Bool => ElementType::Pred,
    }
}
