//! The op suite that every backend must pass bit for bit.
