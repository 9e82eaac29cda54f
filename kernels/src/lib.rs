//! Kernels as plain functions over slices and bytes: no threads, no allocation, no tensors.
//!
//! [`cpu`] holds the kernels of the CPU backend. Each is written once, over a small vector type that every
//! instruction set implements, so that an instruction set is one file and cannot have an order of operations of
//! its own.

pub mod cpu;
