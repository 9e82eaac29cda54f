use std::{io, path::PathBuf};

use samebits_nn::{ConfigError, WeightError};

use crate::{GgufError, ResolveError, SafetensorsError};

/// Result of reading a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when a model is opened; every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A path that holds no model.
    #[error("{}: {detail}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// Why, and what would do.
        detail: String,
    },
    /// A damaged or unsupported GGUF file.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A damaged or unsupported safetensors file.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafetensorsError,
    },
    /// A file that should be JSON and is not.
    #[error("{}: not valid JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Hyperparameters that no model can have, or that are not supported.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which one.
        source: ConfigError,
    },
    /// A weight that is missing or wrong.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// A model that is nowhere to be had.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}
