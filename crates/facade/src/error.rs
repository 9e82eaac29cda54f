use samebits_runner::PlanError;

use crate::{Device, ServiceError};

/// Why a model could not be opened or a request not served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device of this name in this build.
    #[error("there is no device {name:?} in this build; it has {known}")]
    UnknownDevice {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No plugin was named, and none was found.
    #[error(
        "no PJRT plugin was found; name one as pjrt:PATH, or in the environment as PJRT_PLUGIN_LIBRARY_PATH"
    )]
    NoPlugin,
    /// Compiling ahead for a device that runs a model as it is.
    #[error("the device {device} compiles nothing ahead; it runs a model as it is")]
    NotCompiled {
        /// The device asked for.
        device: Device,
    },
    /// Numerics that a device does not have.
    #[error("the device {device} computes exactly and in no other way; `cuda` alone has fast numerics")]
    Numerics {
        /// The device asked for.
        device: Device,
    },
    /// A number of ranks that a device cannot have.
    #[error(
        "layers cannot be shared by {ranks} of the device {device}; `pjrt` and `neuron` take more than one, every device takes 1"
    )]
    Ranks {
        /// The device asked for.
        device: Device,
        /// The number asked for.
        ranks: usize,
    },
    /// A device that failed.
    #[error(transparent)]
    Runner(#[from] samebits_engine::RunnerError),
    /// An NVIDIA GPU, or its driver.
    #[error(transparent)]
    Cuda(#[from] samebits_cuda::OpenError),
    /// A PJRT plugin or its device.
    #[error(transparent)]
    Pjrt(#[from] samebits_pjrt::PjrtError),
    /// A NeuronCore, its runtime or its compiler.
    #[error(transparent)]
    Neuron(#[from] samebits_neuron::NeuronError),
    /// A self-test of a device that is tested where it is built, or of several at once.
    #[error(
        "the device {device} has no self-test; `cuda`, `pjrt` and `neuron` have one, the others are tested where they are built"
    )]
    NoSelfTest {
        /// The device asked for.
        device: Device,
    },
    /// The model is nowhere to be found.
    #[error(transparent)]
    Resolve(#[from] samebits_checkpoint::ResolveError),
    /// The files of the model.
    #[error(transparent)]
    Checkpoint(#[from] samebits_checkpoint::Error),
    /// The model's weights do not fit its configuration or the device.
    #[error(transparent)]
    Load(#[from] samebits_nn::Error),
    /// The model does not fit the memory, or is to be served in a way that makes no sense.
    #[error(transparent)]
    Plan(#[from] samebits_runner::PlanError),
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] samebits_tensor::Error),
    /// A directory of packed weights for a device that packs none.
    #[error("packed_cache is for the device cpu; {device} packs no weights")]
    PackedCache {
        /// The device asked for.
        device: Device,
    },
    /// The tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] samebits_checkpoint::tokenizer::TokenizerError),
    /// The chat template.
    #[error("chat template: {0}")]
    Template(#[from] samebits_checkpoint::chat::ChatError),
    /// A chat with a model that has no chat template.
    #[error("the model has no chat template; give one, or give the prompt as plain text")]
    NoTemplate,
    /// The engine cannot be started.
    #[error(transparent)]
    Engine(#[from] samebits_engine::EngineError),
    /// The operating system gave no thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The engine refused the request.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The request failed while it ran.
    #[error(transparent)]
    Request(#[from] samebits_engine::RequestError),
}

impl Error {
    /// Whether another device might do what this one cannot: it is not there, does not work, or has too little memory.
    pub(crate) fn is_of_device(&self) -> bool {
        match self {
            Error::Cuda(_) | Error::Pjrt(_) | Error::Neuron(_) | Error::NoPlugin | Error::Device(_) => true,
            Error::Plan(error) => matches!(error, PlanError::OutOfMemory { .. }),
            _ => false,
        }
    }
}
