//! A language model runtime that gives the same bits on every chip.
//!
//! ```no_run
//! let model = samebits::Model::open("smollm2")?;
//! let answer = model.generate("The capital of France is", &samebits::Params::default())?;
//! println!("{}", answer.text);
//! # Ok::<(), samebits::Error>(())
//! ```
//!
//! [`Model::open`] finds the files, plans the memory, loads the weights onto a device and starts the serving core on a
//! thread. Requests from any number of threads are computed together, and none changes another's tokens:
//! [`Model::generate`] waits for an answer, [`Model::stream`] gives it piece by piece, [`Model::submit`] hands events to a
//! function and suits an async service. The parts are there to be used alone: [`engine`] without a thread, [`runner`]
//! without an engine, [`tensor`] without a model.
#![forbid(unsafe_code)]

mod device;
mod error;
mod memory;
mod model;
mod neuron;
mod packed_cache;
mod params;
mod self_test;
mod service;
mod stream;

pub use device::{CpuOptions, CudaOptions, Device, DeviceOptions, capabilities};
pub use error::Error;
pub use memory::available_memory;
pub use model::{Builder, Loaded, Model, Plan};
pub use neuron::NeuronOptions;
pub use params::{Message, Params, Prompt};
pub use samebits_cpu::Isa;
pub use samebits_cuda::Numerics;
pub use samebits_engine::{Event, FinishReason, RequestId, SamplingParams, Stats, Stop, Usage};
pub use samebits_hlo::Chip;
pub use samebits_runner::{MemoryPlan, RunnerConfig};
pub use samebits_tensor::contract::NUMERICS_VERSION;
pub use self_test::{SelfTest, self_test};
pub use service::{Service, ServiceError, Sink};
pub use stream::{Generation, Stream};

pub use samebits_checkpoint as checkpoint;
pub use samebits_engine as engine;
pub use samebits_nn as nn;
pub use samebits_runner as runner;
pub use samebits_tensor as tensor;
