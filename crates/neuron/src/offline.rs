use samebits_hlo::{Argument, Device, DeviceError, Options, Program, Target};
use samebits_tensor::HostTensor;

use crate::{Compiler, NeffCache, NeuronError, core_memory_bytes};

/// A device that compiles and runs nothing: it fills a cache on any host, for those with NeuronCores.
#[derive(Debug)]
pub struct OfflineDevice {
    compiler: Compiler,
    cache: NeffCache,
    ranks: usize,
    name: String,
}

impl OfflineDevice {
    /// A device that keeps what this compiler makes in this cache, for so many cores that run each module together.
    pub fn new(compiler: Compiler, cache: NeffCache, ranks: usize) -> Self {
        let name = format!("neuron ({} offline)", compiler.target().chip);
        OfflineDevice { compiler, cache, ranks, name }
    }

    /// What it compiles for.
    pub fn target(&self) -> Target {
        self.compiler.target()
    }

    fn failed(&self, op: String, detail: String) -> DeviceError {
        DeviceError::Failed { op, device: self.name.clone(), detail, retriable: false }
    }
}

impl Device for OfflineDevice {
    type Buffer = ();
    type Executable = ();

    fn name(&self) -> &str {
        &self.name
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn options(&self, module: String) -> Options {
        Options { ranks: self.ranks, ..Options::neuron(module) }
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(core_memory_bytes(self.target()) * self.ranks as u64)
    }

    fn compile(&self, program: &Program) -> Result<(), DeviceError> {
        let kept = self.cache.compile(&self.compiler, &program.module).and_then(|(_, done)| done.kept());
        let op = || format!("compile {}", program.module.name);
        kept.map_err(|error: NeuronError| self.failed(op(), error.to_string()))
    }

    fn upload(&self, _rank: usize, _value: &HostTensor) -> Result<(), DeviceError> {
        Ok(())
    }

    fn run(&self, (): &(), _arguments: Vec<Vec<Argument<'_, ()>>>) -> Result<Vec<Vec<()>>, DeviceError> {
        Err(self.failed("run".into(), "it only compiles; run on a host with NeuronCores".into()))
    }

    fn download(&self, (): &(), _out: &mut [u8]) -> Result<(), DeviceError> {
        Err(self.failed("download".into(), "it only compiles and holds nothing".into()))
    }
}
