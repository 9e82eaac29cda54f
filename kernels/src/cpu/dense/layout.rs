//! The packed layout.

use samebits_tensor::Format;

use super::super::panel::LANES;

/// The packed layout of float weights: panels of 16 rows, a step of columns after the other. A step of F32 and F16 is a
/// column; one of BF16 is two, lane after lane, the first column in the high half of a word of 32 bits. Rows and columns
/// past the matrix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseLayout {
    format: Format,
    cols: usize,
}

impl DenseLayout {
    /// The layout of panels of `cols` columns.
    ///
    /// # Panics
    /// If `format` is no float format.
    pub fn new(format: Format, cols: usize) -> Self {
        assert!(!format.is_quantized(), "{format} is not a float format");
        DenseLayout { format, cols }
    }

    /// Bytes of one panel, a multiple of 64.
    pub fn bytes(&self) -> usize {
        self.cols.next_multiple_of(2) * LANES * self.format.block_bytes()
    }

    /// Packs at most 16 rows, as their file holds them, into a panel of zeros.
    ///
    /// # Panics
    /// If there are more rows, or a size does not fit the layout.
    pub fn pack(&self, rows: &[u8], panel: &mut [u8]) {
        let row_bytes = self.row_bytes();
        assert!(panel.len() == self.bytes() && rows.len() <= LANES * row_bytes, "panel of {self:?}");
        for (lane, row) in rows.chunks_exact(row_bytes.max(1)).enumerate() {
            match self.format {
                Format::F32 => scatter::<4>(row, &mut panel[4 * lane..]),
                Format::F16 => scatter::<2>(row, &mut panel[2 * lane..]),
                _ => scatter_pairs(row, &mut panel[4 * lane..]),
            }
        }
    }

    /// The bytes of row `lane` of a panel, as its file holds them.
    ///
    /// # Panics
    /// If a size does not fit the layout.
    pub fn unpack_row(&self, panel: &[u8], lane: usize, row: &mut [u8]) {
        assert!(panel.len() == self.bytes() && row.len() == self.row_bytes(), "row of {self:?}");
        for (col, out) in row.chunks_exact_mut(self.format.block_bytes()).enumerate() {
            let at = self.element(lane, col);
            out.copy_from_slice(&panel[at..at + self.format.block_bytes()]);
        }
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.cols * self.format.block_bytes()
    }

    fn element(&self, lane: usize, col: usize) -> usize {
        match self.format {
            Format::BF16 => (col / 2 * LANES + lane) * 4 + 2 * (1 - col % 2),
            _ => (col * LANES + lane) * self.format.block_bytes(),
        }
    }
}

/// The elements of a row, to one lane.
fn scatter<const SIZE: usize>(row: &[u8], lane: &mut [u8]) {
    for (element, out) in row.as_chunks::<SIZE>().0.iter().zip(lane.chunks_mut(SIZE * LANES)) {
        out[..SIZE].copy_from_slice(element);
    }
}

/// The pairs of a row, to one lane.
fn scatter_pairs(row: &[u8], lane: &mut [u8]) {
    for (pair, out) in row.chunks(4).zip(lane.chunks_mut(4 * LANES)) {
        out[2..4].copy_from_slice(&pair[..2]);
        out[..pair.len() - 2].copy_from_slice(&pair[2..]);
    }
}
