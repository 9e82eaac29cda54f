//! Runs programs on any device that has a PJRT plugin: CPU, TPU, GPU, Trainium.

mod buffer;
mod client;
mod compiled;
mod element;
mod error;
mod event;
mod executable;
mod ffi;
mod options;
mod plugin;
mod proto;
pub mod testing;

pub use buffer::Buffer;
pub use client::{Client, Device, MemoryStats};
pub use compiled::PjrtDevice;
pub use element::{ElementType, Signature};
pub use error::{Code, PjrtError};
pub use event::Event;
pub use executable::{Argument, Executable, Execution};
pub use options::{CompileOptions, Format};
pub use plugin::{Plugin, Value};
