//! Kernels as plain functions over slices and bytes.
