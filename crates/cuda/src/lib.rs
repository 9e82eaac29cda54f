//! The CUDA backend: the contract's bits on NVIDIA GPUs of compute capability 8.0 and later.
//!
//! A build needs no toolkit: the kernels are shipped as PTX (`samebits_kernels::cuda`), which the driver compiles for the
//! GPU that it finds, and the driver's library is loaded when a device is opened ([`Cuda::open`]).
//!
//! # One stream, one allocation
//!
//! All work goes to one stream, in order, and operations return before it is done. There are no events between operations,
//! and none of the driver's allocations: the first tensor reserves nearly all free memory in one piece, of which tensors are
//! parts. What one gives back, the next may use at once, because the stream gets to it later. So a step
//! costs the driver launches and copies alone, an operation cannot fail for memory that something else took after the
//! start, and a step may be captured as it is. The driver's own pool (`cuMemAllocAsync`) would do the second half of this,
//! but at the price of two calls a tensor, and it may grow, and fail, at any time.
//!
//! # Steps
//!
//! Where every sequence of a step decodes one token, the step is hundreds of kernels of a few microseconds, and issuing them takes
//! as long. So a step that comes again, with the same shapes and the same bound on positions, is recorded as a graph: once by
//! the same text that computes it, on a stream of its own, so that nothing is done; and from then on it is one copy of all
//! inputs to where the graph reads them, one call, and one copy of the logits to memory of their own. What a recorded step makes and
//! drops is in memory of its own that all recorded steps share, since the tensors of others may lie anywhere else. A step that
//! cannot be recorded is run as before: it has the same bits.
//!
//! # Errors
//!
//! A kernel that is given an index outside of its tensor writes nothing there and leaves a note, which the next download
//! returns as [`samebits_tensor::Error::Index`]. Where the driver reports an error of work that it did long after it was
//! issued, the message says which kernel was issued last.
#![deny(unsafe_code)]

mod attention;
mod backend;
mod blas;
mod dense;
mod driver;
mod error;
mod experts;
mod fast;
mod kernels;
mod layout;
mod linear;
mod memory;
mod packing;
mod probe;
mod rows;
mod spans;
mod staging;
mod steps;
mod top_k;
mod weight;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cudarc::driver::DriverError;
use samebits_tensor::{Capabilities, DType, Error, Format, Result, Shape, contract};

pub use error::OpenError;
pub use fast::{FAST_FROM, FAST_FROM_OF_BLOCKS, FAST_VERSION, Numerics};
pub use memory::Buffer;
pub use probe::{Hardware, Rates};
pub use steps::RECORDED_STEPS;
pub use weight::PackedWeight;

use blas::Blas;
use driver::{Driver, Grid};
use error::words;
use kernels::Kernels;
use memory::Memory;
use staging::Staging;
use steps::Steps;

const NAME: &str = "cuda";

/// What of the free memory is left to the driver, for what kernels spill and its own needs: a sixteenth.
const SPARED: u64 = 16;

/// Operations that take indices; a kernel is given the place of its operation here, from 1.
const INDEXED: [&str; 6] = ["gather", "scatter", "rope", "store_kv", "embedding", "experts"];

/// A GPU. Cloning shares its stream and its memory.
#[derive(Clone)]
pub struct Cuda {
    shared: Arc<Shared>,
}

struct Shared {
    driver: Arc<Driver>,
    kernels: Kernels,
    memory: Arc<Memory>,
    steps: Mutex<Steps>,
    staging: Mutex<Staging>,
    /// Where kernels note an index outside of its tensor.
    fault: u64,
    /// The kernel issued last, and its result's shape.
    last: Mutex<Option<(&'static str, Shape)>>,
    /// Of a grid whose threads go on in strides.
    blocks_max: u32,
    capabilities: Capabilities,
    /// Compute capability.
    capability: (i32, i32),
    /// Of [`Numerics::Fast`].
    blas: Option<Blas>,
}

/// A driver, and what its device is.
struct Opened {
    driver: Arc<Driver>,
    capabilities: Capabilities,
    capability: (i32, i32),
    blas: Option<Blas>,
}

/// How a [`Cuda`] is opened.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    ordinal: u32,
    memory_bytes: Option<u64>,
    is_apart: bool,
    blocks_max: Option<u32>,
    numerics: Numerics,
    blas: Option<PathBuf>,
    scratch_bytes: Option<usize>,
}

impl Builder {
    /// The device's number among those that the driver shows, which `CUDA_VISIBLE_DEVICES` limits and orders; 0 by default.
    pub fn ordinal(mut self, ordinal: u32) -> Self {
        self.ordinal = ordinal;
        self
    }

    /// Bytes of the device's memory to reserve for tensors; fifteen sixteenths of what is free by default.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// Makes each tensor an allocation of its own, whose end a checker of memory can see; slow, and for tests.
    pub fn tensors_apart(mut self) -> Self {
        self.is_apart = true;
        self
    }

    /// Most blocks of a launch whose threads may each have several pieces of work; for tests that they go on.
    pub fn blocks_max(mut self, blocks: u32) -> Self {
        self.blocks_max = Some(blocks.max(1));
        self
    }

    /// How linear layers are computed; exactly by default.
    pub fn numerics(mut self, numerics: Numerics) -> Self {
        self.numerics = numerics;
        self
    }

    /// The library of cuBLASLt, for [`Numerics::Fast`]; the one that the system finds by default.
    pub fn cublaslt(mut self, path: impl Into<PathBuf>) -> Self {
        self.blas = Some(path.into());
        self
    }

    /// Bytes of weights that [`Numerics::Fast`] unpacks at once, 64 rows at least; 64 MiB by default.
    pub fn scratch_bytes(mut self, bytes: usize) -> Self {
        self.scratch_bytes = Some(bytes);
        self
    }

    /// Opens the device. Memory is reserved when the first tensor is made.
    ///
    /// # Errors
    /// [`OpenError`], which says what was looked for, and what to do.
    pub fn open(self) -> Result<Cuda, OpenError> {
        let (is_apart, blocks_max) = (self.is_apart, self.blocks_max.unwrap_or(layout::BLOCKS));
        let Opened { driver, capabilities, capability, blas } = self.driver()?;
        let bytes = capabilities.memory_bytes.unwrap_or_default();
        let memory = Memory::new(driver.clone(), bytes, is_apart);
        let staging =
            Staging::new(driver.clone()).map_err(|error| OpenError::driver("cuMemHostAlloc", error))?;
        let kernels = Kernels::load(&driver)?;
        let shared = Shared {
            driver,
            kernels,
            memory,
            steps: Mutex::default(),
            fault: staging.fault(),
            staging: staging.into(),
            last: None.into(),
            blocks_max,
            capabilities,
            capability,
            blas,
        };
        Ok(Cuda { shared: Arc::new(shared) })
    }

    /// What the device is and takes, without the time that its kernels take to load.
    ///
    /// # Errors
    /// As [`Builder::open`], but for what kernels and copies need.
    pub fn capabilities(self) -> Result<Capabilities, OpenError> {
        self.driver().map(|opened| opened.capabilities)
    }

    fn driver(self) -> Result<Opened, OpenError> {
        let (driver, description) = Driver::open(self.ordinal)?;
        let driver = Arc::new(driver);
        let blas = match self.numerics {
            Numerics::Exact => None,
            Numerics::Fast => {
                let scratch_bytes = self.scratch_bytes.unwrap_or(fast::SCRATCH_BYTES);
                Some(Blas::open(driver.clone(), self.blas.as_deref(), scratch_bytes)?)
            }
        };
        let free = driver.free_memory().map_err(|error| OpenError::driver("cuMemGetInfo", error))? as u64;
        let (major, minor) = description.capability;
        let version = driver::version(description.driver_version);
        let capabilities = Capabilities {
            name: NAME.into(),
            device: format!("{}, sm_{major}{minor}, driver {version}", description.name),
            numerics: blas
                .as_ref()
                .map_or_else(contract::exact, |blas| fast::name(blas, description.capability)),
            formats: Format::ALL.to_vec(),
            memory_bytes: Some(self.memory_bytes.unwrap_or(free - free / SPARED)),
        };
        Ok(Opened { driver, capabilities, capability: description.capability, blas })
    }
}

impl Cuda {
    /// Opens a device by its number among those that the driver shows.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(ordinal: u32) -> Result<Self, OpenError> {
        Self::builder().ordinal(ordinal).open()
    }

    /// Choices before the device is opened.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Room for a result of `op`, which is not written yet.
    pub(crate) fn buffer(&self, op: &'static str, bytes: usize) -> Result<Buffer> {
        self.shared.memory.buffer(op, bytes)
    }

    /// Room for a tensor.
    pub(crate) fn room(&self, op: &'static str, shape: &Shape, dtype: DType) -> Result<Buffer> {
        self.buffer(op, shape.elements() * dtype.size())
    }

    /// Issues a kernel, unless there is nothing to do; see [`Kernels::launch`].
    pub(crate) fn launch(
        &self,
        kernel: &'static str,
        grid: Grid,
        arguments: &[&[u8]],
        shape: &Shape,
    ) -> Result<()> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        self.note(kernel, shape);
        self.shared.kernels.launch(&self.shared.driver, kernel, grid, arguments, shape)
    }

    /// Issues a copy to the device.
    pub(crate) fn write(&self, to: &Buffer, bytes: &[u8]) -> Result<()> {
        let copied = lock(&self.shared.staging).upload(to.address(), bytes);
        copied.map_err(|error| self.failed("upload", error))
    }

    /// Copies to the host, and returns what went wrong on the device until then.
    pub(crate) fn read(&self, from: &Buffer, bytes: &mut [u8]) -> Result<()> {
        let copied = lock(&self.shared.staging).download(from.address(), bytes);
        match copied.map_err(|error| self.failed("download", error))? {
            None => Ok(()),
            Some([op, index, len]) => Err(Error::Index {
                op: INDEXED.get((op as usize).wrapping_sub(1)).copied().unwrap_or("kernel"),
                index: index.cast_signed().into(),
                len: len as usize,
            }),
        }
    }

    /// Remembers what is issued, for messages.
    pub(crate) fn note(&self, kernel: &'static str, shape: &Shape) {
        *lock(&self.shared.last) = Some((kernel, shape.clone()));
    }

    /// Issues a copy inside the device.
    pub(crate) fn copy_from(&self, to: &Buffer, from: u64, bytes: usize) -> Result<()> {
        let copied = self.shared.driver.copy(to.address(), from, bytes);
        copied.map_err(|error| self.failed("copy", error))
    }

    /// Where kernels note an index outside of its tensor, as their argument.
    pub(crate) fn fault(&self) -> &[u8] {
        bytemuck::bytes_of(&self.shared.fault)
    }

    pub(crate) fn failed(&self, op: &'static str, error: DriverError) -> Error {
        let last = lock(&self.shared.last);
        let last = last.as_ref().map_or(String::new(), |(kernel, shape)| {
            format!("; the kernel issued last was {kernel} of {shape}")
        });
        Error::Backend { backend: NAME.into(), op, detail: format!("{}{last}", words(error)) }
    }
}

/// The number by which kernels note that an index of `op` is outside of its tensor.
pub(crate) fn indexed(op: &str) -> u32 {
    INDEXED.iter().position(|it| *it == op).map_or(0, |place| place as u32 + 1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
