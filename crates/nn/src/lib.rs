//! Layers over any backend: what model files are written with.
//!
//! A layer knows shapes and names, not devices: every computation is a call on a [`samebits_tensor::Tensor`].
#![forbid(unsafe_code)]

mod attention;
mod config;
mod experts;
mod layers;
mod loader;
mod rope;
mod step;
mod weights;

pub use attention::{Attention, AttentionSpec, QkNorm};
pub use config::{Architecture, Config, ConfigError, ExpertsConfig, LayerType, RopeScaling};
pub use experts::{FeedForward, SparseMoe};
pub use layers::{Embedding, Linear, Mlp, RmsNorm};
pub use loader::{Error, Loader, Result};
pub use rope::{inverse_frequencies, rope_table};
pub use step::Step;
pub use weights::{WeightError, WeightSource, check_finite};
