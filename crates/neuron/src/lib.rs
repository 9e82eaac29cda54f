//! Compiles and runs programs on AWS Trainium and Inferentia.
//!
//! neuronx-cc, a program of AWS's, compiles an HLO module to a NEFF; libnrt, a library of AWS's, loads and runs that on a
//! NeuronCore. Neither is needed to build this crate, and nothing of either is in it: the compiler is a process
//! ([`Compiler`]), and the library is opened when a [`Runtime`] is.
//!
//! ```no_run
//! use samebits_hlo::{Chip, Device, Target};
//! use samebits_neuron::{CacheMode, Compiler, NeffCache, NeuronDevice, Runtime};
//!
//! # fn main() -> Result<(), samebits_neuron::NeuronError> {
//! let target = Target { chip: Chip::Trn2, cores_per_logical_core: 2 };
//! let compiler = Compiler::open("neuronx-cc", target)?;
//! let cache = NeffCache::open("/var/cache/neff", CacheMode::Fill)?;
//! let device = NeuronDevice::open(Runtime::installed()?, 0, compiler)?.with_cache(cache);
//! println!("{} has {:?} bytes", device.name(), device.memory_bytes());
//! # Ok(())
//! # }
//! ```
//!
//! # Compiling takes minutes
//!
//! So a module is first checked by [`samebits_hlo::lint`], and one that the compiler would refuse is a [`NeuronError::Lint`] at
//! once. What was compiled is kept in a [`NeffCache`]; where [`CacheMode::Require`] holds, nothing is compiled, and what is
//! missing is an error that says how to fill the cache. An [`OfflineDevice`] fills it on hosts without NeuronCores.
//!
//! # Cores
//!
//! Each core has one thread, which makes all calls that have to do with it, one after the other. Which cores a process sees is
//! chosen by `NEURON_RT_VISIBLE_CORES` and `NEURON_RT_NUM_CORES`. Stochastic rounding has no reproducible bits: where
//! `NEURON_RT_STOCHASTIC_ROUNDING_EN` is anything but 0 or unset, the runtime is not opened.
//!
//! Several cores can share each layer ([`NeuronDevice::group`]): the same NEFF is loaded on each of them as a rank, and their threads
//! execute it together.
//!
//! # What was run
//!
//! Only stand-ins for the compiler and the library, which run programs on CPUs (`crates/nrt-sim`): never a Neuron device.
//!
//! # What is not here
//!
//! There are no programs over several instances, no kernels of NKI and no asynchronous calls (`nrta_*`), whose ABI changed between
//! runtimes 2.30 and 2.31.

pub mod abi;
mod cache;
mod compiler;
mod cores;
mod device;
mod error;
mod executable;
mod host;
mod neff;
mod offline;
mod runtime;
mod tensor;

pub use cache::{CacheMode, Cached, NeffCache};
pub use compiler::{Compilation, Compiler};
pub use device::NeuronDevice;
pub use error::NeuronError;
pub use executable::Executable;
pub use host::{core_memory_bytes, cores_per_logical_core, host_chip};
pub use neff::{HEADER_BYTES, Header, Neff, NeffError};
pub use offline::OfflineDevice;
pub use runtime::Runtime;
pub use tensor::Tensor;
