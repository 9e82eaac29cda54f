//! Decoding of weight blocks, without loss, to the integers and scales that the contract computes with.

use half::{bf16, f16};

use crate::{Format, FormatError, FormatKind, contract::TINY};

/// The table of `IQ4_NL` (`kvalues_iq4nl` in `ggml-common.h`).
pub const IQ4_NL_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of FP4 e2m1 (OCP Microscaling Formats 1.0); the scale is halved in return.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Rows of a quantised weight as integers and scales; every array is row-major.
///
/// With `block` and `sub` the block and the sub-block of column `c`, the value at `[r, c]` is
/// `scale[r, block] * q[r, c] (+ min[r, block])` in blocks of 32, and
/// `(scale[r, block] * sub_scale[r, sub]) * q[r, c] (- min[r, block] * sub_min[r, sub])` in blocks of 256, each
/// operation rounded. Scales and minima below [`TINY`] in magnitude are +0; infinite ones, which a sound file does not
/// have, are NaN.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlainRows {
    /// `[rows, cols]`: the integers, their offset or table applied.
    pub q: Vec<i8>,
    /// `[rows, cols / block_len]`.
    pub scale: Vec<f32>,
    /// `[rows, cols / block_len]`: the minimum of a block of 32; the scale of the minima of a block of 256.
    pub min: Option<Vec<f32>>,
    /// `[rows, cols / sub_len]`, in blocks of 256.
    pub sub_scale: Option<Vec<i8>>,
    /// `[rows, cols / sub_len]`, in blocks of 256 that have minima.
    pub sub_min: Option<Vec<u8>>,
}

/// One row of [`PlainRows`], to be written. Parts that the format lacks are empty.
#[derive(Debug, Default)]
pub struct PlainRowMut<'a> {
    /// `[cols]`.
    pub q: &'a mut [i8],
    /// `[cols / block_len]`.
    pub scale: &'a mut [f32],
    /// `[cols / block_len]`.
    pub min: &'a mut [f32],
    /// `[cols / sub_len]`.
    pub sub_scale: &'a mut [i8],
    /// `[cols / sub_len]`.
    pub sub_min: &'a mut [u8],
}

/// Decodes `rows` rows of `cols` columns.
///
/// # Errors
/// If the format is a float format, the columns are not whole blocks, or the bytes are not those of the rows.
pub fn unpack_rows(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Result<PlainRows, FormatError> {
    if !format.is_quantized() {
        return Err(FormatError::Dense { format });
    }
    let row_bytes = format.row_bytes(cols)?;
    if rows.checked_mul(row_bytes) != Some(bytes.len()) {
        return Err(FormatError::Length { format, rows, cols, found: bytes.len() });
    }
    // Rows are whole blocks, so a matrix decodes as one long row.
    let mut plain = PlainRows::zeros(format, rows * cols);
    unpack_row(format, bytes, &mut plain.as_row());
    Ok(plain)
}

impl PlainRows {
    /// Zeros for so many values, whole blocks of the format.
    pub fn zeros(format: Format, values: usize) -> Self {
        let (blocks, subs) = (values / format.block_len(), SubBlocks::of(format));
        let has_min = matches!(
            format.kind(),
            FormatKind::Blocks32 { min: true } | FormatKind::Blocks256 { min: true, .. }
        );
        PlainRows {
            q: vec![0; values],
            scale: vec![0.0; blocks],
            min: has_min.then(|| vec![0.0; blocks]),
            sub_scale: (subs.scales > 0).then(|| vec![0; blocks * subs.scales]),
            sub_min: (subs.mins > 0).then(|| vec![0; blocks * subs.mins]),
        }
    }

    /// All parts, as one row.
    pub fn as_row(&mut self) -> PlainRowMut<'_> {
        PlainRowMut {
            q: &mut self.q,
            scale: &mut self.scale,
            min: self.min.as_deref_mut().unwrap_or_default(),
            sub_scale: self.sub_scale.as_deref_mut().unwrap_or_default(),
            sub_min: self.sub_min.as_deref_mut().unwrap_or_default(),
        }
    }
}

/// Decodes one row, or any whole blocks of one, without allocating.
///
/// # Panics
/// If the format is a float format, or a part of `row` is not as long as the blocks in `bytes` make it.
pub fn unpack_row(format: Format, bytes: &[u8], row: &mut PlainRowMut<'_>) {
    let (len, subs) = (format.block_len(), SubBlocks::of(format));
    assert_eq!(row.q.len() / len * format.block_bytes(), bytes.len(), "{format}: bytes of the row");
    for (b, block) in bytes.chunks_exact(format.block_bytes()).enumerate() {
        let mut parts = BlockMut {
            q: &mut row.q[b * len..(b + 1) * len],
            sub_scale: &mut row.sub_scale[b * subs.scales..(b + 1) * subs.scales],
            sub_min: &mut row.sub_min[b * subs.mins..(b + 1) * subs.mins],
        };
        let (scale, min) = unpack_block(format, block, &mut parts);
        row.scale[b] = scale;
        if let Some(slot) = row.min.get_mut(b) {
            *slot = min;
        }
    }
}

/// The f32 values of one row, or of any whole blocks of one, in the order of operations that [`PlainRows`] states.
/// Float formats convert exactly, with no value treated as zero.
///
/// # Panics
/// If `out` is not as long as the blocks in `bytes` make it.
pub fn dequantize_row(format: Format, bytes: &[u8], out: &mut [f32]) {
    let blocks = out.len() / format.block_len();
    assert_eq!(blocks * format.block_bytes(), bytes.len(), "{format}: bytes of the row");
    match format {
        Format::F32 => convert(bytes, out, f32::from_le_bytes),
        Format::F16 => convert(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Format::BF16 => convert(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => {
            let blocks = bytes.chunks_exact(format.block_bytes());
            for (block, out) in blocks.zip(out.chunks_exact_mut(format.block_len())) {
                dequantize_block(format, block, out);
            }
        }
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (&bytes, out) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *out = read(bytes);
    }
}

fn dequantize_block(format: Format, block: &[u8], out: &mut [f32]) {
    let (mut q, mut sub_scale, mut sub_min) = ([0; 256], [0; 16], [0; 16]);
    let subs = SubBlocks::of(format);
    let mut parts = BlockMut {
        q: &mut q[..out.len()],
        sub_scale: &mut sub_scale[..subs.scales],
        sub_min: &mut sub_min[..subs.mins],
    };
    let (scale, min) = unpack_block(format, block, &mut parts);
    match format.kind() {
        FormatKind::Blocks256 { sub_len, min: has_min } => {
            for (sub, out) in out.chunks_exact_mut(sub_len).enumerate() {
                let d = scale * f32::from(sub_scale[sub]);
                let m = min * f32::from(sub_min[sub]);
                for (out, &q) in out.iter_mut().zip(&q[sub * sub_len..]) {
                    let value = d * f32::from(q);
                    *out = if has_min { value - m } else { value };
                }
            }
        }
        kind => {
            let has_min = kind == FormatKind::Blocks32 { min: true };
            for (out, &q) in out.iter_mut().zip(&q) {
                let value = scale * f32::from(q);
                *out = if has_min { value + min } else { value };
            }
        }
    }
}

/// Integer scales and minima in one block.
struct SubBlocks {
    scales: usize,
    mins: usize,
}

impl SubBlocks {
    fn of(format: Format) -> Self {
        match format.kind() {
            FormatKind::Blocks256 { sub_len, min } => {
                let scales = 256 / sub_len;
                SubBlocks { scales, mins: if min { scales } else { 0 } }
            }
            _ => SubBlocks { scales: 0, mins: 0 },
        }
    }
}

/// The integers of one block.
struct BlockMut<'a> {
    q: &'a mut [i8],
    sub_scale: &'a mut [i8],
    sub_min: &'a mut [u8],
}

/// Decodes one block; returns its scale and its minimum, the latter +0 where the format has none.
fn unpack_block(format: Format, block: &[u8], parts: &mut BlockMut<'_>) -> (f32, f32) {
    let half = |offset: usize| f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32();
    let (scale, min) = match format {
        Format::F32 | Format::F16 | Format::BF16 => panic!("{format} has no blocks"),
        Format::Q4_0 => {
            nibbles(&block[2..18], parts.q, |q| q as i8 - 8);
            (half(0), 0.0)
        }
        Format::Q4_1 => {
            nibbles(&block[4..20], parts.q, |q| q as i8);
            (half(0), half(2))
        }
        Format::Q5_0 => {
            nibbles(&block[6..22], parts.q, |q| q as i8 - 16);
            add_fifth_bits(&block[2..6], parts.q);
            (half(0), 0.0)
        }
        Format::Q5_1 => {
            nibbles(&block[8..24], parts.q, |q| q as i8);
            add_fifth_bits(&block[4..8], parts.q);
            (half(0), half(2))
        }
        Format::Q8_0 => {
            copy_signed(&block[2..34], parts.q);
            (half(0), 0.0)
        }
        Format::Iq4Nl => {
            nibbles(&block[2..18], parts.q, |q| IQ4_NL_VALUES[usize::from(q)]);
            (half(0), 0.0)
        }
        Format::Mxfp4 => {
            nibbles(&block[1..17], parts.q, |q| MXFP4_VALUES[usize::from(q)]);
            (half_of_e8m0(block[0]), 0.0)
        }
        Format::Q2K => {
            unpack_q2k(block, parts);
            (half(80), half(82))
        }
        Format::Q3K => {
            unpack_q3k(block, parts);
            (half(108), 0.0)
        }
        Format::Q4K => {
            unpack_q4k(block, parts);
            (half(0), half(2))
        }
        Format::Q5K => {
            unpack_q5k(block, parts);
            (half(0), half(2))
        }
        Format::Q6K => {
            unpack_q6k(block, parts);
            (half(208), 0.0)
        }
    };
    (usable(scale), usable(min))
}

/// A scale or a minimum as the contract takes it.
fn usable(x: f32) -> f32 {
    match x.abs() {
        magnitude if magnitude < TINY => 0.0,
        f32::INFINITY => f32::NAN,
        _ => x,
    }
}

/// `2^(e - 128)`; zero where that would be subnormal, which is far below [`TINY`].
fn half_of_e8m0(e: u8) -> f32 {
    f32::from_bits(u32::from(e.saturating_sub(1)) << 23)
}

/// Nibble pairs: the low halves of `bytes`, then the high halves.
fn nibbles(bytes: &[u8], q: &mut [i8], value: impl Fn(u8) -> i8) {
    let (low, high) = q.split_at_mut(bytes.len());
    for ((&byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

fn add_fifth_bits(bits: &[u8], q: &mut [i8]) {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    for (i, q) in q.iter_mut().enumerate() {
        *q += ((bits >> i & 1) << 4) as i8;
    }
}

/// Bit fields in planes of 32: plane `i` of `q` reads the field `i % (8 / width)` of 32 bytes, the bytes moving on when
/// their fields are used up.
fn planes(bytes: &[u8], width: usize, q: &mut [i8], set: impl Fn(&mut i8, u8)) {
    let fields = 8 / width;
    for (i, q) in q.chunks_exact_mut(32).enumerate() {
        let shift = width * (i % fields);
        let mask = (1 << width) - 1;
        for (q, &byte) in q.iter_mut().zip(&bytes[32 * (i / fields)..]) {
            set(q, byte >> shift & mask);
        }
    }
}

fn copy_signed(bytes: &[u8], out: &mut [i8]) {
    for (&byte, out) in bytes.iter().zip(out) {
        *out = byte as i8;
    }
}

fn unpack_q2k(block: &[u8], parts: &mut BlockMut<'_>) {
    for (i, &pair) in block[..16].iter().enumerate() {
        parts.sub_scale[i] = (pair & 15) as i8;
        parts.sub_min[i] = pair >> 4;
    }
    planes(&block[16..80], 2, parts.q, |q, low| *q = low as i8);
}

fn unpack_q3k(block: &[u8], parts: &mut BlockMut<'_>) {
    let scales = &block[96..108];
    for (i, sub_scale) in parts.sub_scale.iter_mut().enumerate() {
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        *sub_scale = (high << 4 | low) as i8 - 32;
    }
    planes(&block[32..96], 2, parts.q, |q, low| *q = low as i8 - 4);
    planes(&block[..32], 1, parts.q, |q, high| *q += (high << 2) as i8);
}

fn unpack_q4k(block: &[u8], parts: &mut BlockMut<'_>) {
    six_bit_pairs(&block[4..16], parts);
    planes(&block[16..144], 4, parts.q, |q, low| *q = low as i8);
}

fn unpack_q5k(block: &[u8], parts: &mut BlockMut<'_>) {
    six_bit_pairs(&block[4..16], parts);
    planes(&block[48..176], 4, parts.q, |q, low| *q = low as i8);
    planes(&block[16..48], 1, parts.q, |q, high| *q += (high << 4) as i8);
}

fn unpack_q6k(block: &[u8], parts: &mut BlockMut<'_>) {
    copy_signed(&block[192..208], parts.sub_scale);
    for (bytes, q) in block[..128].chunks_exact(64).zip(parts.q.chunks_exact_mut(128)) {
        nibbles(bytes, q, |q| q as i8 - 32);
    }
    planes(&block[128..192], 2, parts.q, |q, high| *q += (high << 4) as i8);
}

/// The eight 6-bit scales and minima of `Q4K` and `Q5K`.
fn six_bit_pairs(bytes: &[u8], parts: &mut BlockMut<'_>) {
    for i in 0..4 {
        let (sc, sm, low) = (bytes[i], bytes[4 + i], bytes[8 + i]);
        parts.sub_scale[i] = (sc & 63) as i8;
        parts.sub_min[i] = sm & 63;
        parts.sub_scale[4 + i] = (sc >> 6 << 4 | low & 15) as i8;
        parts.sub_min[4 + i] = sm >> 6 << 4 | low >> 4;
    }
}
