//! CPU kernels, each written once over `Simd` and run on the instruction set that [`Isa`] names.

#![allow(clippy::needless_range_loop, reason = "an index names the same register of several arrays")]

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod ceilings;
mod codec;
mod dense;
mod elementwise;
mod isa;
mod linear;
mod matrix;
mod mode;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norm;
mod pack;
mod panel;
mod quantize;
mod scalar;
mod simd;

pub use attention::{
    AttentionScratch, AttentionTask, KvHeads, KvRows, KvRowsMut, Lanes, NewKv, attend, attend_tiles,
    merge_tiles,
};
pub use ceilings::{Everywhere, f32_peak, int8_peak, read_bandwidth};
pub use dense::{DenseLayout, DensePanels, FloatPiece, FloatPieces, Floats, linear_dense};
pub use elementwise::{activate, add_weighed, glu, rope, soft_cap};
pub use isa::{Isa, IsaError};
pub use linear::linear_blocks;
pub use matrix::{Band, Bands, Grid, MatrixMut};
pub use mode::flush_subnormals;
pub use norm::{layer_norm, rms_norm, softmax};
pub use panel::{LANES, PanelLayout};
pub use quantize::{Activations, BandPieces, Piece, Pieces, Rows};
