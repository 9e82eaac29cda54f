//! Weight blocks for the tests of backends. Not meant for programs.

use half::{bf16, f16};

use crate::{Format, FormatKind};

/// Random blocks of `[rows, cols]`: scales and minima of moderate size, every bit pattern of the integers.
///
/// The bytes depend on nothing but the arguments. Float formats hold values within [-1, 1].
///
/// # Panics
/// If the columns are not whole blocks of the format.
pub fn random_blocks(format: Format, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = SplitMix64(seed ^ u64::from(format.ggml_type()) << 48);
    blocks(format, rows, cols, |block| fill_random(format, &mut random, block))
}

/// Blocks of `[rows, cols]` at the edges of a format: scales that are zero, negative, the smallest subnormal of f16 or
/// large, together with integers of all zeros, all ones, or alternating bits. Every value is finite.
///
/// # Panics
/// If the columns are not whole blocks of the format.
pub fn extreme_blocks(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut index = 0;
    blocks(format, rows, cols, |block| {
        let step = index / FILLS.len() + index;
        let scale = |slot| EXTREME_SCALES[(step + 5 * slot) % EXTREME_SCALES.len()];
        block.fill(FILLS[index % FILLS.len()]);
        write_scales(format, block, scale);
        write_float(format, block, scale(0));
        if format == Format::Mxfp4 {
            block[0] = EXTREME_EXPONENTS[step % EXTREME_EXPONENTS.len()];
        }
        index += 1;
    })
}

/// [`random_blocks`] whose f16 scales are infinite in every third row, and minima in the next.
///
/// # Panics
/// If the columns are not whole blocks of the format.
pub fn infinite_blocks(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = random_blocks(format, rows, cols, 1);
    let row = bytes.len() / rows.max(1);
    for (i, row) in bytes.chunks_exact_mut(row.max(1)).enumerate() {
        for block in row.chunks_exact_mut(format.block_bytes()) {
            if let Some(&offset) = f16_offsets(format).get(i % 3) {
                block[offset..offset + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
            }
        }
    }
    bytes
}

const FILLS: [u8; 6] = [0xff, 0x00, 0x55, 0xaa, 0x80, 0x7f];

/// Both sides of the bound under which a scale is zero: an exponent of 80 is a scale of 2^-48.
const EXTREME_EXPONENTS: [u8; 8] = [0, 1, 2, 79, 80, 81, 127, 200];

/// Every magnitude and sign that f16 treats differently; 2^-24 is its smallest subnormal.
const EXTREME_SCALES: [f32; 8] = [0.0, 5.960_464_5e-8, -5.960_464_5e-8, 1.0, -1.0, 6.1e-5, 30000.0, -30000.0];

fn blocks(format: Format, rows: usize, cols: usize, mut fill: impl FnMut(&mut [u8])) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols).unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = vec![0; rows * row_bytes];
    bytes.chunks_exact_mut(format.block_bytes()).for_each(&mut fill);
    bytes
}

fn fill_random(format: Format, random: &mut SplitMix64, block: &mut [u8]) {
    block.iter_mut().for_each(|byte| *byte = (random.next() >> 56) as u8);
    write_scales(format, block, |_| {
        let magnitude = 0.001 + 0.02 * random.unit();
        if random.next() >> 63 == 1 { -magnitude } else { magnitude }
    });
    match format {
        Format::Mxfp4 => block[0] = 115 + (random.next() >> 61) as u8,
        _ => write_float(format, block, random.unit() * 2.0 - 1.0),
    }
}

/// Overwrites a value of a float format; other formats stay as they are.
fn write_float(format: Format, block: &mut [u8], value: f32) {
    match format {
        Format::F32 => block.copy_from_slice(&value.to_le_bytes()),
        Format::F16 => block.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        Format::BF16 => block.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        _ => {}
    }
}

/// Overwrites the f16 scales of a block: slot 0 is the scale, slot 1 the minimum or its scale.
fn write_scales(format: Format, block: &mut [u8], mut value: impl FnMut(usize) -> f32) {
    for (slot, offset) in f16_offsets(format).iter().enumerate() {
        block[*offset..offset + 2].copy_from_slice(&f16::from_f32(value(slot)).to_le_bytes());
    }
}

fn f16_offsets(format: Format) -> &'static [usize] {
    match format {
        Format::Q2K => &[80, 82],
        Format::Q3K => &[108],
        Format::Q6K => &[208],
        Format::Mxfp4 => &[],
        _ => match format.kind() {
            FormatKind::Dense => &[],
            FormatKind::Blocks32 { min: false } => &[0],
            _ => &[0, 2],
        },
    }
}

/// The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}
