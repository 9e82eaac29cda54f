//! A stand-in for the CUDA driver, which interprets PTX on CPUs: for tests of kernels, and of what launches them, where there is no
//! GPU.
//!
//! The crate is built as `libptx_sim.so` too, which carries the name `libcuda.so` and exports the driver API. [`install`] loads
//! it, and whoever opens the driver by its name after that, as cudarc does, finds it. [`Sim`] sets what is played and says
//! what was found. README.md has examples, the environment variables, and the list of what is interpreted and checked.
//!
//! # How it works
//!
//! - `ptx` reads text, `decode` turns each kernel into steps over numbered registers once, when a module is loaded. An instruction
//!   that is not known is an error there, with its line: nothing is skipped.
//! - `vm` runs steps for 32 lanes at once. What computes a register from registers is a table by name (`vm/tables`), as the PTX
//!   manual has it; loads, barriers and the like are code.
//! - Lanes that part go on by the lowest instruction and meet where they reach the same one (`vm/warp.rs`). Warps have their
//!   turns from barrier to barrier, in an order that tests choose; blocks run on several threads of the host.
//! - Memory of the device is address space of the host (`arena.rs`), with a byte of shadow for each byte that was written. Shared
//!   memory has a record of the last accesses to each byte, ordered by clocks of the warps (`vm/shared.rs`).
//! - `driver` is the API. Work is done when it is asked for; a fault of a kernel is the status of every call after it.
//!
//! It says nothing of a device's speed, and does not play what real hardware leaves open: the order of float sums in tensor cores and
//! atomics, approximate functions, and weakly ordered memory. It refuses these, or checks that they do not matter.

mod arena;
mod counters;
mod decode;
mod driver;
mod fault;
mod install;
mod mutate;
mod ptx;
mod races;
mod settings;
mod vm;

pub use fault::{Fault, FaultKind, MemorySpace};
pub use install::{InstallError, Sim, install, library};
pub use mutate::{Mutant, Mutation, mutants};
pub use ptx::PtxError;
pub use settings::{Checks, Order, Settings};
