//! Layers over any backend: Linear, Norm, Attention, Mlp, Embedding.
#![forbid(unsafe_code)]

mod config;
mod weights;

pub use config::{Architecture, Config, ConfigError, LayerType, RopeScaling};
pub use weights::{WeightError, WeightSource, check_finite};
