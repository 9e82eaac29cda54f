//! Runs programs on any device that has a PJRT plugin: CPU, TPU, GPU, Trainium.
//!
//! PJRT is the C API of OpenXLA between a framework and a device. A plugin is a shared library that exports `GetPjrtApi`;
//! it brings its own compiler and runtime, so nothing is linked and no vendor's toolkit is needed to build this crate.
//! A [`Plugin`] makes a [`Client`] of devices, which compiles a program (an HLO module or StableHLO) to an
//! [`Executable`], and uploads [`Buffer`]s for it:
//!
//! ```no_run
//! use samebits_pjrt::{CompileOptions, ElementType, Format, Plugin};
//!
//! # fn main() -> Result<(), samebits_pjrt::PjrtError> {
//! let client = Plugin::open("/opt/aws/neuron/lib/libneuronpjrt.so")?.client(&[])?;
//! let program = "func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {
//!     %y = stablehlo.add %x, %x : tensor<2xf32>
//!     return %y : tensor<2xf32>
//! }";
//! let twice = client.compile(program.as_bytes(), Format::Mlir, &CompileOptions::default())?;
//! let bytes: Vec<u8> = [1.0_f32, 2.0].into_iter().flat_map(f32::to_le_bytes).collect();
//! let x = client.upload(0, &bytes, ElementType::F32, &[2])?;
//! // One list of arguments for each device; `&x` is borrowed, and `x` would be donated.
//! let outputs = twice.execute(vec![vec![(&x).into()]])?.wait()?;
//! assert_eq!(outputs[0][0].to_vec()?.len(), 8);
//! # Ok(())
//! # }
//! ```
//!
//! # Versions
//!
//! Plugins of 0.64 and later 0.x are understood; 0.81, 0.106 and 0.115 are tested. Argument structures are sized for the
//! plugin's version. A function that a plugin lacks is an error that names it, when it is needed.
//!
//! # Ownership
//!
//! A buffer or executable keeps its client, so nothing outlives what it needs, and things are destroyed in order. A
//! donated buffer is moved into the call, so that it cannot be used again. Everything may be used by several threads.
//!
//! # What is not here
//!
//! There are no extensions of the API, no programs over several hosts, no element types below a byte, and no dynamic
//! shapes.

mod buffer;
mod cache;
mod client;
mod compiled;
mod discover;
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
pub use cache::{Cached, ExecutableCache};
pub use client::{Client, Device, MemoryStats};
pub use compiled::PjrtDevice;
pub use discover::discover;
pub use element::{ElementType, Signature};
pub use error::{Code, PjrtError};
pub use event::Event;
pub use executable::{Argument, Executable, Execution};
pub use options::{CompileOptions, Format};
pub use plugin::{Plugin, Value};
