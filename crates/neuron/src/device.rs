use std::{fmt, ops::Range, sync::Arc};

use samebits_hlo::{Argument, Device, DeviceError, Interface, Options, Program, Target};
use samebits_tensor::HostTensor;

use crate::{
    Compiler, Executable, NeffCache, NeuronError, Runtime, Tensor, abi::Status, cores::Core,
    host::cores_per_logical_core,
};

/// A NeuronCore, or several that run each module together, for modules of [`samebits_hlo`].
pub struct NeuronDevice {
    /// By rank.
    cores: Vec<Arc<Core>>,
    compiler: Compiler,
    cache: Option<NeffCache>,
    name: String,
}

impl NeuronDevice {
    /// The core of this index among those that are visible.
    ///
    /// # Errors
    /// As [`NeuronDevice::group`].
    pub fn open(runtime: Runtime, index: u32, compiler: Compiler) -> Result<Self, NeuronError> {
        Self::group(runtime, index..index + 1, compiler)
    }

    /// The cores of these indices, as ranks.
    ///
    /// # Errors
    /// If there is none, or one of them is not there; [`NeuronError::LogicalCores`] if the compiler's target has others than the
    /// runtime makes.
    pub fn group(runtime: Runtime, cores: Range<u32>, compiler: Compiler) -> Result<Self, NeuronError> {
        let Target { chip, cores_per_logical_core: expected } = compiler.target();
        let found = cores_per_logical_core(chip)?;
        if found != expected {
            return Err(NeuronError::LogicalCores { found: found.to_string(), expected: Some(expected) });
        }
        if cores.is_empty() {
            return Err(NeuronError::Core { index: cores.start, count: 0 });
        }
        let name = match cores.len() {
            1 => format!("neuron:{}", cores.start),
            _ => format!("neuron:{}-{}", cores.start, cores.end - 1),
        };
        let cores: Vec<_> = cores.map(|index| Core::open(runtime, index)).collect::<Result<_, _>>()?;
        Ok(NeuronDevice { cores, compiler, cache: None, name })
    }

    /// The runtime.
    pub fn runtime(&self) -> Runtime {
        self.cores[0].runtime
    }

    /// The compiler.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// The device, which looks for compiled modules in `cache`.
    pub fn with_cache(self, cache: NeffCache) -> Self {
        NeuronDevice { cache: Some(cache), ..self }
    }

    fn failed(&self, op: String, error: &NeuronError) -> DeviceError {
        let (device, detail) = (self.name.clone(), error.to_string());
        let retriable = error.status().is_some_and(Status::is_passing);
        match self.cores.iter().find_map(|core| core.lost()) {
            Some(why) => DeviceError::Lost { device, detail: why.into() },
            None => DeviceError::Failed { op, device, detail, retriable },
        }
    }

    fn neff(&self, program: &Program) -> Result<Vec<u8>, NeuronError> {
        match &self.cache {
            Some(cache) => cache.compile(&self.compiler, &program.module).map(|(neff, _)| neff),
            None => self.compiler.compile(&program.module),
        }
    }

    fn load(&self, program: &Program) -> Result<Executable, NeuronError> {
        let interface = Interface::of(&program.module)?;
        Executable::load(&self.cores, program.module.name.clone(), interface, self.neff(program)?.into())
    }
}

impl Device for NeuronDevice {
    type Buffer = Tensor;
    type Executable = Executable;

    fn name(&self) -> &str {
        &self.name
    }

    fn ranks(&self) -> usize {
        self.cores.len()
    }

    fn options(&self, module: String) -> Options {
        Options { ranks: self.ranks(), ..Options::neuron(module) }
    }

    fn memory_bytes(&self) -> Option<u64> {
        let of = |core: &Arc<Core>| {
            let index = core.index;
            Some(core.call(move |runtime| runtime.memory(index)).ok()?.bytes_limit)
        };
        self.cores.iter().map(of).sum()
    }

    fn compile(&self, program: &Program) -> Result<Executable, DeviceError> {
        self.load(program).map_err(|error| self.failed(format!("compile {}", program.module.name), &error))
    }

    fn upload(&self, rank: usize, value: &HostTensor) -> Result<Tensor, DeviceError> {
        let op = || format!("upload {} {}", value.dtype(), value.shape());
        Tensor::place(&self.cores[rank], value.clone()).map_err(|error| self.failed(op(), &error))
    }

    fn run(
        &self,
        executable: &Executable,
        arguments: Vec<Vec<Argument<'_, Tensor>>>,
    ) -> Result<Vec<Vec<Tensor>>, DeviceError> {
        let op = || format!("run {}", executable.module());
        executable.run(arguments).map_err(|error| self.failed(op(), &error))
    }

    fn download(&self, buffer: &Tensor, out: &mut [u8]) -> Result<(), DeviceError> {
        buffer.fetch(out).map_err(|error| self.failed("download".into(), &error))
    }
}

impl fmt::Debug for NeuronDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("NeuronDevice");
        debug.field("name", &self.name).field("runtime", &self.cores[0].runtime).field("cache", &self.cache);
        debug.finish_non_exhaustive()
    }
}
