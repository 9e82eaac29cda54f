//! The serving core: a pure state machine for continuous batching.
