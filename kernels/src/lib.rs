//! Kernels as plain functions over slices and bytes: no tensors, no allocation in their loops.
//!
//! [`cpu`] holds the kernels of the CPU backend. Each is written once, over a small vector type that every
//! instruction set implements, so that an instruction set is one file and cannot have an order of operations of
//! its own. [`pool`] shares their work out to threads, in [`parts`] of what they write; the kernels themselves start none.
//! [`cuda`] holds those of NVIDIA's GPUs, as PTX.

pub mod cpu;
pub mod cuda;
pub mod memory;
pub mod parts;
pub mod pool;
