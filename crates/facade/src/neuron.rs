use std::{env, path::PathBuf};

use samebits_hlo::{Chip, Target};
use samebits_neuron::{
    CacheMode, Compiler, NeffCache, NeuronDevice, NeuronError, OfflineDevice, Runtime,
    cores_per_logical_core, host_chip,
};
use samebits_tensor::{Capabilities, Format, contract};

use crate::device;

/// How NeuronCores are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeuronOptions {
    /// `libnrt.so.1`; what `SAMEBITS_LIBNRT` names if `None`, or where AWS installs it.
    pub runtime: Option<PathBuf>,
    /// `neuronx-cc`; what `SAMEBITS_NEURONX_CC` names if `None`, or the one in `PATH`.
    pub compiler: Option<PathBuf>,
    /// The chip to compile for; this host's if `None`.
    pub chip: Option<Chip>,
    /// Physical cores of a logical one; as the runtime has it if `None`.
    pub cores_per_logical_core: Option<u32>,
    /// Whether a program that is not compiled yet is an error, so that no request waits minutes for a compiler.
    pub require_compiled: bool,
}

impl NeuronOptions {
    /// What programs are compiled for.
    ///
    /// # Errors
    /// If no chip is named, and the host does not tell.
    pub fn target(&self) -> Result<Target, NeuronError> {
        let chip = self.chip.map_or_else(host_chip, Ok)?;
        let cores = self.cores_per_logical_core.map_or_else(|| cores_per_logical_core(chip), Ok)?;
        Ok(Target { chip, cores_per_logical_core: cores })
    }

    /// So many cores from one on, with the compiled programs that are kept.
    ///
    /// # Errors
    /// If the runtime, a core or the compiler is not there.
    pub(crate) fn open(&self, core: u32, ranks: usize) -> Result<NeuronDevice, NeuronError> {
        let mode = if self.require_compiled { CacheMode::Require } else { CacheMode::Fill };
        let cache = NeffCache::open(device::programs(), mode)?;
        let compiler = self.compiler_for(&cache)?;
        let cores = core..core.saturating_add(ranks as u32);
        Ok(NeuronDevice::group(self.open_runtime()?, cores, compiler)?.with_cache(cache))
    }

    /// A device that fills the directory of compiled programs, on any host.
    ///
    /// # Errors
    /// If the compiler is not there.
    pub(crate) fn offline(&self, ranks: usize) -> Result<OfflineDevice, NeuronError> {
        let cache = NeffCache::open(device::programs(), CacheMode::Fill)?;
        Ok(OfflineDevice::new(self.open_compiler()?, cache, ranks))
    }

    pub(crate) fn capabilities(&self, core: u32, ranks: usize) -> Result<Capabilities, NeuronError> {
        let runtime = self.open_runtime()?;
        let ([major, minor, patch], cores) = (runtime.version(), runtime.core_count()?);
        let compiler = match self.open_compiler() {
            Ok(compiler) => compiler.version().to_owned(),
            Err(why) => format!("no compiler: {why}"),
        };
        let path = runtime.path().display();
        Ok(Capabilities {
            name: format!("neuron:{core}"),
            device: format!("{cores} cores through {path}, runtime {major}.{minor}.{patch}; {compiler}"),
            numerics: contract::exact(),
            formats: Format::ALL.to_vec(),
            memory_bytes: Some(runtime.memory(core)?.bytes_limit * ranks as u64),
        })
    }

    fn open_runtime(&self) -> Result<Runtime, NeuronError> {
        match self.runtime.clone().or_else(|| path("SAMEBITS_LIBNRT")) {
            Some(path) => Runtime::open(path),
            None => Runtime::installed(),
        }
    }

    fn open_compiler(&self) -> Result<Compiler, NeuronError> {
        let program = self.compiler.clone().or_else(|| path("SAMEBITS_NEURONX_CC"));
        Compiler::open(program.unwrap_or_else(|| "neuronx-cc".into()), self.target()?)
    }

    /// The compiler; where nothing is to be compiled, that which filled the cache will do, though it is not here.
    fn compiler_for(&self, cache: &NeffCache) -> Result<Compiler, NeuronError> {
        match (self.open_compiler(), cache.compiler_version()) {
            (Err(NeuronError::NoCompiler { .. }), Some(version)) if self.require_compiled => {
                Ok(Compiler::elsewhere(version, self.target()?))
            }
            (opened, _) => opened,
        }
    }
}

fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
