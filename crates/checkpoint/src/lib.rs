//! Model files: GGUF, safetensors, configuration, tokenizers, chat templates, and where to find them.
//!
//! A checkpoint becomes one [`Config`](samebits_nn::Config) and one
//! [`WeightSource`](samebits_nn::WeightSource), whatever its kind: what the kinds of file do differently (names,
//! the order of rotary channels, where Gemma's norms get their added one) is undone here, without changing the
//! value of a weight. Files are mapped, so that opening a model reads its headers only.
#![deny(unsafe_code)]

pub mod chat;
mod derived;
mod error;
mod gguf;
mod hf;
mod hub;
mod mmap;
mod names;
mod open;
mod safetensors;
pub mod tokenizer;

pub use error::{Error, Result};
pub use gguf::{Array, Gguf, GgufError, GgufTensor, GgufWeights, Metadata, Value, config_from_gguf};
pub use hf::{GenerationConfig, config_from_json};
pub use hub::{Failure, Failures, ModelPath, ResolveError, Resolver, resolve};
pub use mmap::map as map_file;
pub use open::{Checkpoint, FormatShare, TokenizerSource};
pub use safetensors::{SafetensorsError, SafetensorsTensor, SafetensorsWeights, parse as parse_safetensors};

pub(crate) use open::read_json;
