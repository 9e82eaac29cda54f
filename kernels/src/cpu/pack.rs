//! From the blocks of a file to panels, a word of four columns at a time.
//!
//! A vector of a unit holds one word of each row (see [`super::codec`]), and files keep their integers in planes of whole
//! words as well. So packing a unit is a few shifts of words of the block, and a transposition of 16 rows of them. Block
//! layouts are those of `ggml-common.h`; [`samebits_tensor::unpack_row`] is the reference that tests compare with.

use samebits_tensor::Format;

use super::panel::{LANES, Side};

/// Bytes of a word for each of the 16 rows.
type Vector = [[u8; 4]; LANES];

const NIBBLES: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;
const SIGNS: u32 = 0x8080_8080;

/// At most 16 rows of blocks of a quantised format, and the span of a panel that some of them go to.
pub(super) struct Packing<'a> {
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    /// The first block of the span in a row.
    pub(super) first: usize,
    /// The integers.
    pub(super) units: &'a mut [u8],
    /// The scales.
    pub(super) side: &'a mut [u8],
    pub(super) at: Side,
}

impl Packing<'_> {
    pub(super) fn run(self, format: Format) {
        match format {
            Format::Q4_0 => self.blocks(|b: &[u8; 18], _| words::<4>(&b[2..]), half_scale),
            Format::Iq4Nl => self.blocks(|b: &[u8; 18], _| words::<4>(&b[2..]), half_scale),
            Format::Mxfp4 => self.blocks(|b: &[u8; 17], _| words::<4>(&b[1..]), power_scale),
            Format::Q4_1 => self.blocks(|b: &[u8; 20], _| words::<4>(&b[4..]), half_scale_and_min),
            Format::Q5_0 => self.blocks(
                |b: &[u8; 22], _| with_bits(words::<4>(&b[6..]), by_column(words::<1>(&b[2..])[0])),
                half_scale,
            ),
            Format::Q5_1 => self.blocks(
                |b: &[u8; 24], _| with_bits(words::<4>(&b[8..]), by_column(words::<1>(&b[4..])[0])),
                half_scale_and_min,
            ),
            Format::Q8_0 => {
                self.blocks(|b: &[u8; 34], _| words::<8>(&b[2..]).map(|word| word ^ SIGNS), half_scale);
            }
            Format::Q2K => self.blocks(|b: &[u8; 84], unit| pairs_of(&b[16..80], unit), q2k_side),
            Format::Q3K => self.blocks(q3k_unit, q3k_side),
            Format::Q4K => self.blocks(|b: &[u8; 144], unit| nibbles_of(&b[16..], unit), q4k_side),
            Format::Q5K => self.blocks(q5k_unit, q5k_side),
            Format::Q6K => self.blocks(q6k_unit, q6k_side),
            Format::F32 | Format::F16 | Format::BF16 => panic!("{format} has no blocks"),
        }
    }

    /// Packs blocks of `BYTES` bytes: `unit` gives the words of a unit of 32 columns, `side` writes the scales of a lane.
    #[inline(always)]
    fn blocks<const BYTES: usize, const WORDS: usize>(
        self,
        unit: impl Fn(&[u8; BYTES], usize) -> [u32; WORDS],
        side: impl Fn(&[u8; BYTES], &Side, usize, &mut [u8]),
    ) {
        let vectors = self.units.as_chunks_mut::<4>().0.as_chunks_mut::<LANES>().0;
        let sides = self.side.chunks_exact_mut(self.at.bytes);
        let units_of_block = (vectors.len() / WORDS).checked_div(sides.len()).unwrap_or(0);
        for (block, out) in sides.enumerate() {
            let start = block * units_of_block * WORDS;
            let vectors = &mut vectors[start..start + units_of_block * WORDS];
            for (lane, row) in self.rows.chunks_exact(self.row_bytes).enumerate().take(LANES) {
                let bytes = &row.as_chunks::<BYTES>().0[self.first + block];
                side(bytes, &self.at, lane, out);
                for (i, vectors) in vectors.as_chunks_mut::<WORDS>().0.iter_mut().enumerate() {
                    store(vectors, lane, unit(bytes, i));
                }
            }
        }
    }
}

#[inline(always)]
fn store<const WORDS: usize>(vectors: &mut [Vector; WORDS], lane: usize, words: [u32; WORDS]) {
    for (vector, word) in vectors.iter_mut().zip(words) {
        vector[lane] = word.to_le_bytes();
    }
}

/// The first words of `bytes`.
#[inline(always)]
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let bytes = bytes.as_chunks::<4>().0;
    std::array::from_fn(|i| u32::from_le_bytes(bytes[i]))
}

/// Unit `unit` of nibbles in planes of 32 columns: the low halves of 32 bytes, then their high ones.
#[inline(always)]
fn nibbles_of(bytes: &[u8], unit: usize) -> [u32; 4] {
    let plane = words::<8>(&bytes[32 * (unit / 2)..]);
    let shift = 4 * (unit % 2);
    std::array::from_fn(|i| plane[i] >> shift & NIBBLES | (plane[4 + i] >> shift & NIBBLES) << 4)
}

/// Unit `unit` of pairs of bits in planes of 32 columns: bits 0 and 1 of 32 bytes, then bits 2 and 3, and so on.
#[inline(always)]
fn pairs_of(bytes: &[u8], unit: usize) -> [u32; 2] {
    let plane = words::<8>(&bytes[32 * (unit / 4)..]);
    let shift = 2 * (unit % 4);
    std::array::from_fn(|v| (0..4).fold(0, |word, j| word | (plane[4 * v + j] >> shift & PAIRS) << (2 * j)))
}

/// Unit `unit` of single bits in planes of 32 columns: bit `unit` of 32 bytes.
#[inline(always)]
fn bits_of(bytes: &[u8], unit: usize) -> u32 {
    let plane = words::<8>(bytes);
    (0..8).fold(0, |word, g| word | (plane[g] >> unit & BITS) << g)
}

/// One bit a column, in order, moved so that bit `g` of byte `i` is that of column `4g + i`.
#[inline(always)]
fn by_column(bits: u32) -> u32 {
    let swap = |x: u32, mask: u32, shift: u32| {
        let moved = (x ^ x >> shift) & mask;
        x ^ moved ^ moved << shift
    };
    // The digits of a bit's index, g2 g1 g0 i1 i0, become i1 i0 g2 g1 g0: four exchanges of two of them.
    let x = swap(swap(bits, 0x2222_2222, 1), 0x0a0a_0a0a, 3);
    swap(swap(x, 0x00cc_00cc, 6), 0x0000_f0f0, 12)
}

#[inline(always)]
fn with_bits(low: [u32; 4], high: u32) -> [u32; 5] {
    let [a, b, c, d] = low;
    [a, b, c, d, high]
}

#[inline(always)]
fn q3k_unit(block: &[u8; 110], unit: usize) -> [u32; 3] {
    let [a, b] = pairs_of(&block[32..96], unit);
    [a, b, bits_of(&block[..32], unit)]
}

#[inline(always)]
fn q5k_unit(block: &[u8; 176], unit: usize) -> [u32; 5] {
    with_bits(nibbles_of(&block[48..], unit), bits_of(&block[16..48], unit))
}

/// Each half of a block has the low nibbles of its first 64 columns in its bytes' low halves, those of the others in the
/// high ones.
#[inline(always)]
fn q6k_unit(block: &[u8; 210], unit: usize) -> [u32; 6] {
    let plane = words::<8>(&block[64 * (unit / 4) + 32 * (unit % 2)..128]);
    let shift = 4 * (unit / 2 % 2);
    let [a, b, c, d] =
        std::array::from_fn(|i| plane[i] >> shift & NIBBLES | (plane[4 + i] >> shift & NIBBLES) << 4);
    let [e, f] = pairs_of(&block[128..192], unit);
    [a, b, c, d, e, f]
}

/// The bytes of an f16 scale, of which only zero is smaller than the contract's least: it loses its sign. An infinite one is NaN.
#[inline(always)]
fn put_half(block: &[u8], from: usize, out: &mut [u8], lane: usize) {
    let half = u16::from_le_bytes([block[from], block[from + 1]]);
    let half = match half {
        0x8000 => 0,
        0x7c00 | 0xfc00 => 0x7e00,
        other => other,
    };
    out[2 * lane..2 * lane + 2].copy_from_slice(&half.to_le_bytes());
}

#[inline(always)]
fn half_scale<const BYTES: usize>(block: &[u8; BYTES], _: &Side, lane: usize, out: &mut [u8]) {
    put_half(block, 0, out, lane);
}

#[inline(always)]
fn half_scale_and_min<const BYTES: usize>(block: &[u8; BYTES], at: &Side, lane: usize, out: &mut [u8]) {
    put_half(block, 0, out, lane);
    put_half(block, 2, &mut out[at.min..], lane);
}

/// The exponent of `2^(e - 128)`, and 0 for what is below the contract's least scale, `2^-48`.
#[inline(always)]
fn power_scale(block: &[u8; 17], _: &Side, lane: usize, out: &mut [u8]) {
    out[lane] = if block[0] < 80 { 0 } else { block[0] - 1 };
}

#[inline(always)]
fn put_sub_scales<const N: usize>(scales: [u8; N], at: &Side, lane: usize, out: &mut [u8]) {
    for (out, scale) in out[at.sub_scale..].as_chunks_mut::<LANES>().0.iter_mut().zip(scales) {
        out[lane] = scale;
    }
}

#[inline(always)]
fn put_sub_mins<const N: usize>(mins: [u8; N], at: &Side, lane: usize, out: &mut [u8]) {
    let pairs = out[at.sub_min..].as_chunks_mut::<2>().0.as_chunks_mut::<LANES>().0;
    for (out, pair) in pairs.iter_mut().zip(mins.as_chunks::<2>().0) {
        out[lane] = *pair;
    }
}

#[inline(always)]
fn q2k_side(block: &[u8; 84], at: &Side, lane: usize, out: &mut [u8]) {
    put_half(block, 80, out, lane);
    put_half(block, 82, &mut out[at.min..], lane);
    put_sub_scales::<16>(std::array::from_fn(|i| block[i] & 15), at, lane, out);
    put_sub_mins::<16>(std::array::from_fn(|i| block[i] >> 4), at, lane, out);
}

#[inline(always)]
fn q3k_side(block: &[u8; 110], at: &Side, lane: usize, out: &mut [u8]) {
    put_half(block, 108, out, lane);
    let scales = &block[96..108];
    let scale = |i: usize| {
        let low = scales[i % 8] >> (4 * (i / 8)) & 15;
        let high = scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        (high << 4 | low).wrapping_sub(32)
    };
    put_sub_scales::<16>(std::array::from_fn(scale), at, lane, out);
}

#[inline(always)]
fn q4k_side(block: &[u8; 144], at: &Side, lane: usize, out: &mut [u8]) {
    six_bit_side(block, at, lane, out);
}

#[inline(always)]
fn q5k_side(block: &[u8; 176], at: &Side, lane: usize, out: &mut [u8]) {
    six_bit_side(block, at, lane, out);
}

/// Scale, minimum, and eight 6-bit scales and minima of sub-blocks in twelve bytes.
#[inline(always)]
fn six_bit_side(block: &[u8], at: &Side, lane: usize, out: &mut [u8]) {
    put_half(block, 0, out, lane);
    put_half(block, 2, &mut out[at.min..], lane);
    let [scales, mins, low] = words::<3>(&block[4..16]);
    let six = 0x3f3f_3f3f;
    let high = |word: u32| (word >> 6 & PAIRS) << 4;
    let eight = |first: u32, second: u32| (u64::from(first) | u64::from(second) << 32).to_le_bytes();
    put_sub_scales(eight(scales & six, high(scales) | low & NIBBLES), at, lane, out);
    put_sub_mins(eight(mins & six, high(mins) | low >> 4 & NIBBLES), at, lane, out);
}

#[inline(always)]
fn q6k_side(block: &[u8; 210], at: &Side, lane: usize, out: &mut [u8]) {
    put_half(block, 208, out, lane);
    put_sub_scales::<16>(std::array::from_fn(|i| block[192 + i]), at, lane, out);
}

#[cfg(test)]
mod tests {
    use samebits_tensor::{
        PlainRowMut,
        testing::{extreme_blocks, random_blocks},
        unpack_rows,
    };

    use super::super::panel::PanelLayout;
    use super::*;

    #[test]
    fn panels_hold_the_values_of_their_rows() {
        for format in Format::ALL.into_iter().filter(|format| format.is_quantized()) {
            let cols = 3 * format.block_len();
            for rows in [0, 1, 5, 16] {
                check(format, rows, cols, &random_blocks(format, rows, cols, rows as u64));
                check(format, rows, cols, &extreme_blocks(format, rows, cols));
            }
        }
    }

    fn check(format: Format, rows: usize, cols: usize, bytes: &[u8]) {
        let layout = PanelLayout::new(format, cols);
        let mut panel = vec![0; layout.bytes()];
        layout.pack(bytes, &mut panel);
        let row_bytes = format.row_bytes(cols).expect("whole blocks");
        for (lane, row) in bytes.chunks_exact(row_bytes).enumerate() {
            let expected = unpack_rows(format, 1, cols, row).expect("a row");
            let mut found = expected.clone();
            found.q.fill(99);
            found.scale.fill(f32::NAN);
            let mut parts = PlainRowMut {
                q: &mut found.q,
                scale: &mut found.scale,
                min: found.min.as_deref_mut().unwrap_or_default(),
                sub_scale: found.sub_scale.as_deref_mut().unwrap_or_default(),
                sub_min: found.sub_min.as_deref_mut().unwrap_or_default(),
            };
            parts.min.fill(f32::NAN);
            parts.sub_scale.fill(99);
            parts.sub_min.fill(99);
            layout.unpack_row(&panel, lane, &mut parts);
            assert_eq!(found, expected, "{format}, row {lane} of {rows}");
        }
    }

    #[test]
    fn bits_are_gathered_by_column() {
        for column in 0..32 {
            assert_eq!(by_column(1 << column), 1 << (8 * (column % 4) + column / 4), "column {column}");
        }
    }
}
