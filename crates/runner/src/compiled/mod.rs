//! A model compiled ahead of time, one program for each bucket of shapes.

mod buckets;
mod programs;
mod record;
mod runner;

pub use buckets::Buckets;
pub use runner::CompiledRunner;
