//! The CPU backend: packed weights, threads, kernels chosen at run time.

mod host;

pub use host::{Buffer, Host};
