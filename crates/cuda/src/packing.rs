//! The layout of weights in blocks on the device, as bytes: what `weights.cuh` reads.
//!
//! Integers lie in units of 32 columns, cut in two planes where their width is no power of two: see [`Codes`]. Rows of planes and
//! of scales are padded with zeros to whole groups of [`PADDED`], so that copies of 16 bytes end where rows do. Scales and minima are
//! f16, as every format with blocks has them, or bf16 for MXFP4's powers of two.

use half::{bf16, f16};
use samebits_tensor::{
    Format, FormatKind, PlainRows,
    blocks::{IQ4_NL_VALUES, MXFP4_VALUES},
    unpack_row,
};

/// Columns of a unit.
const UNIT: usize = 32;

/// Rows have a multiple of so many units, and of so many scales.
const PADDED: usize = 4;

/// A 1 in each byte of a word.
const BYTES: u32 = 0x0101_0101;

/// The columns of a unit, as words of four.
type Unit = [u32; 8];

/// How a format's integers are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Codes {
    /// Their `upper` highest bits, and the `lower` bits below them. A plane of `w` bits has, in `w` words for each unit, those of
    /// columns `4 i..` in bits `w * (i / w)..` of the bytes of word `i % w`.
    Planes { upper: u32, lower: u32 },
    /// Places in a table: word `t` of four has four bits for each of columns `4 t..4 t + 4`, then `16 + 4 t..`.
    Places(&'static [i8; 16]),
}

impl Codes {
    fn of(format: Format) -> Self {
        let planes = |upper, lower| Codes::Planes { upper, lower };
        match format {
            Format::Q4_0 | Format::Q4_1 | Format::Q4K => planes(4, 0),
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => planes(4, 1),
            Format::Q2K => planes(2, 0),
            Format::Q3K => planes(2, 1),
            Format::Q6K => planes(4, 2),
            Format::Iq4Nl => Codes::Places(&IQ4_NL_VALUES),
            Format::Mxfp4 => Codes::Places(&MXFP4_VALUES),
            Format::Q8_0 | Format::F32 | Format::F16 | Format::BF16 => planes(8, 0),
        }
    }

    /// Bytes of a unit in both planes.
    fn bytes(self) -> (usize, usize) {
        match self {
            Codes::Planes { upper, lower } => (4 * upper as usize, 4 * lower as usize),
            Codes::Places(_) => (16, 0),
        }
    }

    fn pack(self, unit: &Unit, upper_out: &mut [u8], lower_out: &mut [u8]) {
        match self {
            Codes::Planes { upper, lower } => {
                write_plane(unit, upper, lower, upper_out);
                write_plane(unit, lower, 0, lower_out);
            }
            Codes::Places(table) => write_places(unit, table, upper_out),
        }
    }

    fn unpack(self, upper_bytes: &[u8], lower_bytes: &[u8], has_sign: bool) -> Unit {
        let mut unit = [0; 8];
        match self {
            Codes::Planes { upper, lower } => {
                read_plane(upper_bytes, upper, lower, &mut unit);
                read_plane(lower_bytes, lower, 0, &mut unit);
                if has_sign {
                    unit = unit.map(|word| extended(word, upper + lower));
                }
            }
            Codes::Places(table) => read_places(upper_bytes, table, &mut unit),
        }
        unit
    }
}

/// Bits `from..from + width` of each byte.
fn write_plane(unit: &Unit, width: u32, from: u32, out: &mut [u8]) {
    let mask = ((1u32 << width) - 1) * BYTES;
    for (place, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let words = unit.iter().skip(place).step_by(width as usize).enumerate();
        let word = words.map(|(field, word)| (word >> from & mask) << (width as usize * field));
        *out = word.fold(0, |a, b| a | b).to_le_bytes();
    }
}

fn read_plane(bytes: &[u8], width: u32, to: u32, unit: &mut Unit) {
    let mask = ((1u32 << width) - 1) * BYTES;
    for (place, &bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let plane = u32::from_le_bytes(bytes);
        for (field, word) in unit.iter_mut().skip(place).step_by(width as usize).enumerate() {
            *word |= (plane >> (width as usize * field) & mask) << to;
        }
    }
}

/// Integers of `bits` bits in each byte, with their sign in all bits above.
fn extended(word: u32, bits: u32) -> u32 {
    let unused = 8 - bits;
    u32::from_le_bytes(
        word.to_le_bytes().map(|byte| ((byte << unused).cast_signed() >> unused).cast_unsigned()),
    )
}

fn write_places(unit: &Unit, table: &[i8; 16], out: &mut [u8]) {
    let places = |word: u32| {
        let place =
            |byte: u8| table.iter().position(|&value| value == byte.cast_signed()).unwrap_or(0) as u32;
        word.to_le_bytes().into_iter().rev().fold(0, |places, byte| places << 4 | place(byte))
    };
    for (t, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *out = (places(unit[t]) | places(unit[4 + t]) << 16).to_le_bytes();
    }
}

fn read_places(bytes: &[u8], table: &[i8; 16], unit: &mut Unit) {
    let values = |places: u32| -> u32 {
        let value = |i| table[(places >> (4 * i) & 15) as usize].cast_unsigned();
        u32::from_le_bytes(std::array::from_fn(value))
    };
    for (t, &bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let word = u32::from_le_bytes(bytes);
        (unit[t], unit[4 + t]) = (values(word & 0xffff), values(word >> 16));
    }
}

/// Bytes of a row in each part; 0 where the format lacks it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowBytes {
    pub(crate) upper: usize,
    pub(crate) lower: usize,
    /// Scales, or pairs of a scale and a minimum.
    pub(crate) scale: usize,
    /// Of sub-blocks; in Q2_K, with minima in the high halves of bytes.
    pub(crate) sub_scale: usize,
    pub(crate) sub_min: usize,
}

impl RowBytes {
    /// Of rows of `cols` columns, whole blocks of a format with blocks.
    pub(crate) fn of(format: Format, cols: usize) -> Self {
        let (upper, lower) = Codes::of(format).bytes();
        let units = (cols / UNIT).next_multiple_of(PADDED);
        let blocks = (cols / format.block_len()).next_multiple_of(PADDED);
        let (values, sub_scale, sub_min) = match format.kind() {
            FormatKind::Blocks256 { sub_len, min } => {
                let subs = cols / sub_len;
                (1 + usize::from(min), subs, if min && format != Format::Q2K { subs } else { 0 })
            }
            kind => (1 + usize::from(kind == FormatKind::Blocks32 { min: true }), 0, 0),
        };
        RowBytes {
            upper: units * upper,
            lower: units * lower,
            scale: blocks * 2 * values,
            sub_scale,
            sub_min,
        }
    }

    /// In the order of [`Parts`].
    pub(crate) fn all(self) -> [usize; 5] {
        [self.upper, self.lower, self.scale, self.sub_scale, self.sub_min]
    }
}

/// The parts of some rows: codes, the codes' lower bits, scales, and those of sub-blocks.
pub(crate) type Parts = [Vec<u8>; 5];

/// Packs rows of `cols` columns, whole blocks of a format with blocks.
pub(crate) fn pack_rows(format: Format, cols: usize, bytes: &[u8]) -> Parts {
    let row_bytes = cols / format.block_len() * format.block_bytes();
    let rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
    let mut parts = RowBytes::of(format, cols).all().map(|bytes| vec![0; rows * bytes]);
    let mut row = PlainRows::zeros(format, cols);
    for (i, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
        unpack_row(format, bytes, &mut row.as_row());
        let parts = parts.each_mut().map(|part| {
            let len = part.len() / rows;
            &mut part[i * len..][..len]
        });
        pack_row(format, &row, parts);
    }
    parts
}

fn pack_row(format: Format, row: &PlainRows, [upper, lower, scale, sub_scale, sub_min]: [&mut [u8]; 5]) {
    let codes = Codes::of(format);
    let (upper_bytes, lower_bytes) = codes.bytes();
    for (i, q) in row.q.as_chunks::<4>().0.as_chunks::<8>().0.iter().enumerate() {
        let unit = q.map(|four| u32::from_le_bytes(four.map(i8::cast_unsigned)));
        let lower = if lower_bytes == 0 { &mut [][..] } else { &mut lower[i * lower_bytes..][..lower_bytes] };
        codes.pack(&unit, &mut upper[i * upper_bytes..][..upper_bytes], lower);
    }
    let step = if row.min.is_some() { 4 } else { 2 };
    for (i, &value) in row.scale.iter().enumerate() {
        scale[i * step..][..2].copy_from_slice(&half_of(format, value));
    }
    for (i, &value) in row.min.iter().flatten().enumerate() {
        scale[i * step + 2..][..2].copy_from_slice(&half_of(format, value));
    }
    for (out, &value) in sub_scale.iter_mut().zip(row.sub_scale.iter().flatten()) {
        *out = value.cast_unsigned();
    }
    let mins = row.sub_min.iter().flatten();
    if format == Format::Q2K {
        sub_scale.iter_mut().zip(mins).for_each(|(out, &min)| *out |= min << 4);
    } else {
        sub_min.iter_mut().zip(mins).for_each(|(out, &min)| *out = min);
    }
}

/// The integers and scales of packed rows.
pub(crate) fn unpack_rows(format: Format, cols: usize, parts: &Parts) -> PlainRows {
    let row_bytes = RowBytes::of(format, cols).all();
    let rows = parts[0].len().checked_div(row_bytes[0]).unwrap_or(0);
    let mut all = PlainRows::zeros(format, 0);
    for i in 0..rows {
        let part = |part: usize| &parts[part][i * row_bytes[part]..][..row_bytes[part]];
        let row = unpack_packed(format, cols, [part(0), part(1), part(2), part(3), part(4)]);
        all.q.extend(row.q);
        all.scale.extend(row.scale);
        all.min.iter_mut().for_each(|it| it.extend(row.min.iter().flatten()));
        all.sub_scale.iter_mut().for_each(|it| it.extend(row.sub_scale.iter().flatten()));
        all.sub_min.iter_mut().for_each(|it| it.extend(row.sub_min.iter().flatten()));
    }
    all
}

fn unpack_packed(format: Format, cols: usize, parts: [&[u8]; 5]) -> PlainRows {
    let [upper, lower, scale, sub_scale, sub_min] = parts;
    let codes = Codes::of(format);
    let (upper_bytes, lower_bytes) = codes.bytes();
    let mut row = PlainRows::zeros(format, cols);
    for (i, q) in row.q.as_chunks_mut::<4>().0.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let lower = if lower_bytes == 0 { &[][..] } else { &lower[i * lower_bytes..][..lower_bytes] };
        let unit = codes.unpack(&upper[i * upper_bytes..][..upper_bytes], lower, row.min.is_none());
        *q = unit.map(|word| word.to_le_bytes().map(u8::cast_signed));
    }
    let step = if row.min.is_some() { 4 } else { 2 };
    let read = |at: usize| float_of(format, [scale[at], scale[at + 1]]);
    row.scale.iter_mut().enumerate().for_each(|(i, out)| *out = read(i * step));
    row.min.iter_mut().flatten().enumerate().for_each(|(i, out)| *out = read(i * step + 2));
    let is_pair = format == Format::Q2K;
    let scales = row.sub_scale.iter_mut().flatten().zip(sub_scale);
    scales.for_each(|(out, &byte)| *out = if is_pair { byte & 15 } else { byte }.cast_signed());
    let mins = row.sub_min.iter_mut().flatten().zip(if is_pair { sub_scale } else { sub_min });
    mins.for_each(|(out, &byte)| *out = if is_pair { byte >> 4 } else { byte });
    row
}

/// A scale's 16 bits, which have its value.
fn half_of(format: Format, value: f32) -> [u8; 2] {
    let bytes = match format {
        Format::Mxfp4 => bf16::from_f32(value).to_le_bytes(),
        _ => f16::from_f32(value).to_le_bytes(),
    };
    debug_assert!(value.is_nan() || float_of(format, bytes) == value, "{format}: a scale of {value}");
    bytes
}

fn float_of(format: Format, bytes: [u8; 2]) -> f32 {
    match format {
        Format::Mxfp4 => bf16::from_le_bytes(bytes).to_f32(),
        _ => f16::from_le_bytes(bytes).to_f32(),
    }
}

#[cfg(test)]
mod tests {
    use samebits_tensor::testing::{extreme_blocks, infinite_blocks, random_blocks};

    use super::*;

    fn formats() -> impl Iterator<Item = Format> {
        Format::ALL.into_iter().filter(|format| format.is_quantized())
    }

    #[test]
    fn packing_keeps_every_value() {
        for format in formats() {
            let (rows, cols) = (3, 5 * format.block_len());
            for bytes in [
                random_blocks(format, rows, cols, 1),
                extreme_blocks(format, rows, cols),
                infinite_blocks(format, rows, cols),
            ] {
                let expected = samebits_tensor::unpack_rows(format, rows, cols, &bytes).unwrap();
                let found = unpack_rows(format, cols, &pack_rows(format, cols, &bytes));
                let bits = |row: &PlainRows| {
                    let floats = row.scale.iter().chain(row.min.iter().flatten());
                    floats
                        .map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() })
                        .collect::<Vec<_>>()
                };
                assert_eq!(bits(&found), bits(&expected), "{format}");
                assert_eq!(found.q, expected.q, "{format}");
                assert_eq!(
                    (found.sub_scale, found.sub_min),
                    (expected.sub_scale, expected.sub_min),
                    "{format}"
                );
            }
        }
    }

    #[test]
    fn weights_take_what_they_take_in_a_file() {
        for format in formats() {
            let packed: usize = RowBytes::of(format, 4096).all().iter().sum();
            let file = format.row_bytes(4096).unwrap();
            let more = match format {
                // Sub-blocks' scales of six bits take bytes.
                Format::Q3K | Format::Q4K | Format::Q5K => 16 * 4,
                // Exponents take two bytes.
                Format::Mxfp4 => 128,
                _ => 0,
            };
            assert_eq!(packed, file + more, "{format}");
        }
    }
}
