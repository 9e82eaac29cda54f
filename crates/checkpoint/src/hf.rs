//! The JSON files of a Hugging Face model directory.

mod config;
mod fields;
mod generation;

pub use config::config_from_json;
pub use generation::GenerationConfig;
