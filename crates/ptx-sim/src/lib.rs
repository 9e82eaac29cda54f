//! A stand-in for the CUDA driver.
mod arena;
mod counters;
mod decode;
mod driver;
mod fault;
mod install;
mod ptx;
mod races;
mod settings;
mod vm;

pub use fault::{Fault, FaultKind, MemorySpace};
pub use install::{InstallError, Sim, install, library};
pub use ptx::PtxError;
pub use settings::{Checks, Order, Settings};
