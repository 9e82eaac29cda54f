//! The packed layout of quantised weights.
//!
//! A panel holds 16 rows, in spans of 512 columns, so that memory is read in order. A span has the integers of its columns, in
//! units of 32 (see [`super::codec`]); then, for each block in order, its scales: 16 f16 (MXFP4: 16 exponent bytes); 16 f16
//! minima where the format has them; for each sub-block 16 i8 scales; for each pair of sub-blocks 16 pairs of u8 minima. Rows
//! past the matrix are zero. The size is rounded up to 64 bytes, so that aligned panels stay aligned; that of a whole span is
//! a multiple of it.

use half::f16;
use samebits_tensor::{Format, FormatKind, PlainRowMut, contract::DOT_SPAN};

use super::{codec::Codec, pack::Packing};

/// Rows of a panel.
pub const LANES: usize = 16;

/// Runs `$body` with `$codec` standing for the codec of a quantised format.
macro_rules! with_codec {
    ($format:expr, $codec:ident => $body:expr) => {{
        use samebits_tensor::Format;
        use $crate::cpu::codec;
        match $format {
            Format::Q4_0 => with_codec!(@ $codec, codec::Signed4, $body),
            Format::Q4_1 | Format::Q4K => with_codec!(@ $codec, codec::Unsigned4, $body),
            Format::Q5_0 => with_codec!(@ $codec, codec::Signed5, $body),
            Format::Q5_1 | Format::Q5K => with_codec!(@ $codec, codec::Unsigned5, $body),
            Format::Q8_0 => with_codec!(@ $codec, codec::Signed8, $body),
            Format::Q2K => with_codec!(@ $codec, codec::Unsigned2, $body),
            Format::Q3K => with_codec!(@ $codec, codec::Signed3, $body),
            Format::Q6K => with_codec!(@ $codec, codec::Signed6, $body),
            Format::Iq4Nl => with_codec!(@ $codec, codec::Iq4Nl, $body),
            Format::Mxfp4 => with_codec!(@ $codec, codec::Mxfp4, $body),
            Format::F32 | Format::F16 | Format::BF16 => panic!("{} has no blocks", $format),
        }
    }};
    (@ $codec:ident, $type:ty, $body:expr) => {{
        type $codec = $type;
        $body
    }};
}
pub(super) use with_codec;

/// Where the parts of a panel of a quantised format are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    format: Format,
    cols: usize,
    pub(super) unit: usize,
    pub(super) side: Side,
}

/// Offsets in the scales of one block of 16 rows, and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) min: usize,
    pub(super) sub_scale: usize,
    pub(super) sub_min: usize,
    pub(super) bytes: usize,
    subs: usize,
    has_min: bool,
}

impl Side {
    pub(super) const fn of(exponents: bool, subs: usize, has_min: bool) -> Side {
        let min = if exponents { LANES } else { 2 * LANES };
        let sub_scale = if has_min { min + 2 * LANES } else { min };
        let sub_min = sub_scale + LANES * subs;
        let bytes = if has_min { sub_min + LANES * subs } else { sub_min };
        Side { min, sub_scale, sub_min, bytes, subs, has_min }
    }
}

impl PanelLayout {
    /// The layout of panels of `cols` columns, which must be whole blocks of a quantised format.
    ///
    /// # Panics
    /// If they are not.
    pub fn new(format: Format, cols: usize) -> Self {
        assert!(cols.is_multiple_of(format.block_len()), "{cols} columns of {format}");
        let side = match format.kind() {
            FormatKind::Dense => panic!("{format} has no blocks"),
            FormatKind::Blocks32 { min } => Side::of(format == Format::Mxfp4, 0, min),
            FormatKind::Blocks256 { sub_len, min } => Side::of(false, 256 / sub_len, min),
        };
        PanelLayout { format, cols, unit: with_codec!(format, C => C::UNIT), side }
    }

    /// The block format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Columns of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one panel, a multiple of 64.
    pub fn bytes(&self) -> usize {
        (self.cols / 32 * self.unit + self.blocks() * self.side.bytes).next_multiple_of(64)
    }

    /// Blocks in a row.
    pub fn blocks(&self) -> usize {
        self.cols / self.format.block_len()
    }

    /// Bytes of the integers and of the scales of span `span`.
    fn span_bytes(&self, span: usize) -> [usize; 2] {
        let cols = (self.cols - span * DOT_SPAN).min(DOT_SPAN);
        [cols / 32 * self.unit, cols / self.format.block_len() * self.side.bytes]
    }

    /// Packs at most 16 rows, encoded as their file holds them, into a panel of zeros.
    ///
    /// # Panics
    /// If there are more rows, or a size does not fit the layout.
    pub fn pack(&self, rows: &[u8], panel: &mut [u8]) {
        let row_bytes = self.blocks() * self.format.block_bytes();
        assert!(panel.len() == self.bytes() && rows.len() <= LANES * row_bytes, "panel of {self:?}");
        if row_bytes == 0 {
            return;
        }
        let mut rest = panel;
        for span in 0..self.cols.div_ceil(DOT_SPAN) {
            let [units, side] =
                self.span_bytes(span).map(|len| rest.split_off_mut(..len).expect("a whole span"));
            let first = span * DOT_SPAN / self.format.block_len();
            Packing { rows, row_bytes, first, units, side, at: self.side }.run(self.format);
        }
    }

    /// The integers and scales of row `lane` of a panel, bit for bit what [`samebits_tensor::unpack_row`] gives.
    ///
    /// # Panics
    /// If a size does not fit the layout.
    pub fn unpack_row(&self, panel: &[u8], lane: usize, row: &mut PlainRowMut<'_>) {
        assert!(panel.len() == self.bytes() && lane < LANES, "lane {lane} of a panel of {self:?}");
        let mut rest = panel;
        for span in 0..self.cols.div_ceil(DOT_SPAN) {
            let [units, side] = self.span_bytes(span).map(|len| rest.split_off(..len).expect("a whole span"));
            self.unpack_units(units, lane, &mut row.q[span * DOT_SPAN..]);
            let first = span * DOT_SPAN / self.format.block_len();
            for (block, side) in side.chunks_exact(self.side.bytes).enumerate() {
                self.unpack_side(side, lane, first + block, row);
            }
        }
    }

    fn unpack_units(&self, units: &[u8], lane: usize, q: &mut [i8]) {
        with_codec!(self.format, C => {
            for (q, unit) in q.chunks_exact_mut(32).zip(units.chunks_exact(C::UNIT)) {
                for (i, q) in q.iter_mut().enumerate() {
                    *q = (i32::from(C::get(unit, i / 4, 4 * lane + i % 4)) - C::OFFSET) as i8;
                }
            }
        });
    }

    fn unpack_side(&self, side: &[u8], lane: usize, block: usize, row: &mut PlainRowMut<'_>) {
        let exponents = self.format == Format::Mxfp4;
        row.scale[block] = if exponents { power(side[lane]) } else { get_f16(side, lane) };
        if let Some(min) = row.min.get_mut(block) {
            *min = get_f16(&side[self.side.min..], lane);
        }
        let subs = self.side.subs;
        for sub in 0..subs {
            row.sub_scale[block * subs + sub] = side[self.side.sub_scale + LANES * sub + lane] as i8;
            if self.side.has_min {
                let at = self.side.sub_min + 2 * LANES * (sub / 2) + 2 * lane + sub % 2;
                row.sub_min[block * subs + sub] = side[at];
            }
        }
    }
}

fn get_f16(values: &[u8], lane: usize) -> f32 {
    f16::from_le_bytes([values[2 * lane], values[2 * lane + 1]]).to_f32()
}

fn power(exponent: u8) -> f32 {
    f32::from_bits(u32::from(exponent) << 23)
}
