//! Samebits.
