use samebits_tensor::HostTensor;

use crate::{Options, Program};

/// A device that compiles modules and runs them: a PJRT plugin's, or a NeuronCore. Or several, called ranks, that run each
/// module together.
///
/// Runs are in the order in which they were started, and may return before they are done; what fails later is told by
/// [`Device::download`].
pub trait Device: Send + Sync + 'static {
    /// A tensor on one rank.
    type Buffer: Send + Sync;
    /// A compiled module, loaded on all ranks.
    type Executable: Send + Sync;

    /// What it is called: `pjrt:cpu`.
    fn name(&self) -> &str;

    /// How many run each module together.
    fn ranks(&self) -> usize {
        1
    }

    /// How modules are lowered for it.
    fn options(&self, module: String) -> Options;

    /// Bytes of its memory, of all ranks, where it tells.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Compiles a module, or finds it compiled.
    ///
    /// # Errors
    /// What the compiler says.
    fn compile(&self, program: &Program) -> Result<Self::Executable, DeviceError>;

    /// Copies a tensor to a rank.
    ///
    /// # Errors
    /// If the rank cannot hold it.
    fn upload(&self, rank: usize, value: &HostTensor) -> Result<Self::Buffer, DeviceError>;

    /// Starts a run, with one argument for each parameter, for each rank. Returns the outputs of each.
    ///
    /// # Errors
    /// If it could not be started. A given argument that is still there then holds what it held.
    fn run(
        &self,
        executable: &Self::Executable,
        arguments: Vec<Vec<Argument<'_, Self::Buffer>>>,
    ) -> Result<Vec<Vec<Self::Buffer>>, DeviceError>;

    /// Copies a tensor to the host, after all that computes it.
    ///
    /// # Errors
    /// Those of the transfer, and of the runs before it that have to do with the tensor.
    fn download(&self, buffer: &Self::Buffer, out: &mut [u8]) -> Result<(), DeviceError>;
}

/// What a parameter is given.
pub enum Argument<'a, B> {
    /// A tensor that stays.
    Kept(&'a B),
    /// A tensor whose memory an output takes over; it is taken when the run starts.
    Given(&'a mut Option<B>),
}

/// Why a device did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// It failed, and still works.
    #[error("{op} failed on {device}: {detail}")]
    Failed {
        /// What was asked for: `compile layer of 4 tokens`.
        op: String,
        /// Which device.
        device: String,
        /// What it reported.
        detail: String,
        /// Whether the same may succeed later.
        retriable: bool,
    },
    /// Nothing will succeed any more.
    #[error("device {device} is lost: {detail}")]
    Lost {
        /// Which device.
        device: String,
        /// What it reported.
        detail: String,
    },
}
