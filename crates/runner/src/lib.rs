//! Runs a model for the serving core.
//!
//! [`ModelRunner`] is the eager runner: it turns a batch of the engine into tensors, runs the model text on a backend,
//! and hands logits back. [`CompiledRunner`] does the same on devices that compile whole programs ahead. [`MemoryPlan`] says beforehand what a model will take, [`StepWork`] what a step has to do.
#![forbid(unsafe_code)]

mod compiled;
mod inputs;
mod model_runner;
mod plan;
mod work;

pub use compiled::{Buckets, CompiledRunner};
pub use inputs::step_inputs;
pub use model_runner::ModelRunner;
pub use plan::{DeviceMemory, MemoryPlan, PlanError, RunnerConfig};
pub use work::{StepPart, StepWork};
