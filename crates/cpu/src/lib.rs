//! The CPU backend: packed weights, threads, kernels chosen at run time.
//!
//! [`Cpu`] is the fast backend; [`Host`] is the reference that it equals bit for bit, whatever the instruction set, the
//! number of threads, or the treatment of subnormals. Work is cut only where the contract's order allows it: at rows of
//! weights, tokens and heads.
#![forbid(unsafe_code)]

mod attention;
mod backend;
mod experts;
mod feed_forward;
mod host;
mod linear;
mod memory;
mod packed;
mod packed_file;
mod threads;

pub use backend::{Builder, Cpu};
pub use host::{Buffer, Host};
pub use memory::Elements;
pub use packed::PackedWeight;
pub use packed_file::{Fingerprint, PackedFile, PackedFileError};
pub use samebits_kernels::cpu::{Isa, IsaError};
