//! The CPU backend: packed weights, threads, kernels chosen at run time.
