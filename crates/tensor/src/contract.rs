//! The constants of the numerics contract. A change of any of them changes bits, and so [`NUMERICS_VERSION`].

/// Version of the contract that this build computes; part of every fingerprint.
pub const NUMERICS_VERSION: u32 = 3;

/// The name of this contract's bits, `exact-` and the version.
pub fn exact() -> String {
    format!("exact-{NUMERICS_VERSION}")
}

/// A scale below this magnitude, and an operand of a float dot product below it, counts as zero (rule R4):
/// products of two such values, and every sum of them, then stay clear of the subnormal range.
pub const TINY: f32 = 1.0 / (1u64 << 48) as f32;

/// Lanes of `sum` (rule R5): lane `l` adds `x[l], x[l + 128], …` in order, then a halving tree.
pub const SUM_LANES: usize = 128;

/// Length of one sequential span of `dot` (rule R5); spans are added in order.
pub const DOT_SPAN: usize = 512;

/// Keys in one attention tile, aligned to absolute position.
pub const ATTENTION_TILE: usize = 128;

/// Channels that share one scale of a quantised query or key; the last block of a head may be shorter.
pub const HEAD_BLOCK: usize = 32;

/// Largest magnitude of a quantised activation.
pub const Q8_MAX: f32 = 127.0;

/// `1 / 127` rounded to f32; the contract multiplies where one would divide by a constant (rule R3).
pub const Q8_MAX_RECIPROCAL: f32 = 1.0 / 127.0;

/// Largest 16-bit attention weight.
pub const W16_MAX: f32 = 65535.0;

/// `1 / 65535` rounded to f32.
pub const W16_MAX_RECIPROCAL: f32 = 1.0 / 65535.0;

/// The score of a masked key, and the running maximum before the first tile. Finite, so that no NaN arises
/// from the difference of two infinities.
pub const MASKED: f32 = f32::MIN;

/// Most elements of a row that [`crate::Tensor::top_k`] tells.
pub const TOP_K_MAX: usize = 64;
