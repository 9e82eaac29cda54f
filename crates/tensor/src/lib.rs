//! The tensor trait of Samebits, and the numerics contract in code.
//!
//! A backend implements a small set of [primitives](Backend), each exact in any order of execution. Every fused
//! operation is one function of [`decompose`], written over those primitives with the order of its float work
//! fixed: it is the contract, the reference and the fallback at once. A backend that overrides a fused operation
//! must return the same bits.
//!
//! The alternative, a float matmul primitive with a tolerance, is what other runtimes have: it is simpler to
//! implement and can promise nothing across chips.
#![forbid(unsafe_code)]

mod backend;
pub mod blocks;
pub mod contract;
pub mod decompose;
mod dtype;
mod error;
pub mod exp;
mod format;
mod host;
mod ops;
mod shape;
mod tensor;
pub mod testing;
mod weight;

pub use backend::{Backend, BinaryOp, Capabilities, CompareOp, Rank, StepInput, StepKey, UnaryOp, try_map};
pub use blocks::{PlainRowMut, PlainRows, dequantize_row, unpack_row, unpack_rows};
pub use dtype::{DType, Element, Scalar};
pub use error::{Error, Result};
pub use exp::{exp, gelu_tanh, sigmoid, silu, tanh};
pub use format::{Format, FormatError, FormatKind};
pub use host::{Bytes, HostTensor, HostWeight, Storage};
pub use ops::{
    Activation, AttentionBatch, AttentionParams, Experts, FeedForward, Heads, Input, KvCache, KvShape,
    RopeTable, Routes, Routing,
};
pub use shape::{Dims, Shape};
pub use tensor::Tensor;
pub use weight::{PlainWeight, Weight};
