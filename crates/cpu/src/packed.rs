//! Weights in panels of 16 rows, as the kernels read them.

use std::{io, sync::Arc};

use samebits_kernels::{
    cpu::{DenseLayout, DensePanels, LANES, PanelLayout},
    memory::Arena,
    parts::Chunks,
};
use samebits_tensor::{Bytes, Error, Format, FormatKind, HostWeight, PlainRowMut, PlainRows, Result};

use crate::threads::Threads;

/// A weight matrix `[rows, cols]` in panels. Values are those of the file; a block format takes about its file's bits:
/// exactly for the formats in blocks of 32, for Q6_K and MXFP4, an eighth of a bit a weight more for Q3_K, Q4_K and Q5_K, half
/// a bit more for Q2_K.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    format: Format,
    rows: usize,
    cols: usize,
    panel_bytes: usize,
    panels: Bytes,
}

/// Bytes of a weight that are worth a task of their own, and the most of a file that is kept in memory for it.
const TASK_BYTES: usize = 1 << 18;

impl PackedWeight {
    /// Packs a weight, reading its bytes once and releasing them.
    ///
    /// # Errors
    /// As [`HostWeight::matrix`], and if there is no memory.
    pub(crate) fn pack(threads: &Threads, arena: &Arena, weight: &HostWeight) -> Result<Self> {
        let (rows, cols) = weight.matrix()?;
        let format = weight.format;
        let panel_bytes = panel_bytes(format, cols);
        let mut block =
            arena.zeroed(rows.div_ceil(LANES) * panel_bytes).map_err(|error| out_of_memory(&error))?;
        let row_bytes = format.row_bytes(cols)?;
        if let Some(step) = TASK_BYTES.checked_div(panel_bytes) {
            let step = step.max(1);
            threads.each(Chunks::new(&mut block, step * panel_bytes), |i, panels| {
                let start = i * step * LANES * row_bytes;
                let end = weight.bytes.len().min(start + step * LANES * row_bytes);
                let rows = weight.bytes[start..end].chunks(LANES * row_bytes);
                for (panel, rows) in panels.chunks_exact_mut(panel_bytes).zip(rows) {
                    pack_panel(format, cols, rows, panel);
                }
                weight.bytes.release(start..end);
            });
        }
        Ok(PackedWeight { format, rows, cols, panel_bytes, panels: Bytes::new(Arc::new(block)) })
    }

    /// A weight that was packed before, if its panels are `panels`.
    pub(crate) fn stored(format: Format, rows: usize, cols: usize, panels: Bytes) -> Option<Self> {
        format.row_bytes(cols).ok()?;
        let panel_bytes = panel_bytes(format, cols);
        let fits = rows.div_ceil(LANES).checked_mul(panel_bytes) == Some(panels.len());
        fits.then_some(PackedWeight { format, rows, cols, panel_bytes, panels })
    }

    /// The block format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of memory that the panels take.
    pub fn bytes(&self) -> usize {
        self.panels.len()
    }

    /// The weight of the rows of some panels, whose memory it shares.
    ///
    /// # Panics
    /// If there are no such panels.
    pub(crate) fn of_panels(&self, range: std::ops::Range<usize>) -> PackedWeight {
        let bytes = range.start * self.panel_bytes..range.end * self.panel_bytes;
        let panels = self.panels.slice(bytes).expect("some of the panels");
        PackedWeight { rows: range.len() * LANES, panels, ..*self }
    }

    /// Panels of 16 rows.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    pub(crate) fn all_panels(&self) -> &[u8] {
        &self.panels
    }

    /// The panels in `range`.
    pub(crate) fn panel_range(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.panels[range.start * self.panel_bytes..range.end * self.panel_bytes]
    }

    pub(crate) fn layout(&self) -> PanelLayout {
        PanelLayout::new(self.format, self.cols)
    }

    pub(crate) fn dense(&self, range: std::ops::Range<usize>) -> DensePanels<'_> {
        DensePanels { format: self.format, cols: self.cols, bytes: self.panel_range(range) }
    }

    /// The bytes of row `row` of a float weight, in order.
    pub(crate) fn dense_row(&self, row: usize, out: &mut [u8]) {
        let panel = self.panel_range(row / LANES..row / LANES + 1);
        DenseLayout::new(self.format, self.cols).unpack_row(panel, row % LANES, out);
    }

    /// The integers and scales of row `row` of a weight in blocks.
    pub(crate) fn block_row(&self, row: usize, out: &mut PlainRowMut<'_>) {
        self.layout().unpack_row(self.panel_range(row / LANES..row / LANES + 1), row % LANES, out);
    }

    /// All rows of a float weight.
    pub(crate) fn dense_bytes(&self) -> Vec<u8> {
        let row_bytes = self.cols * self.format.block_bytes();
        let mut bytes = vec![0; self.rows * row_bytes];
        if row_bytes > 0 {
            let rows = bytes.chunks_exact_mut(row_bytes).enumerate();
            rows.for_each(|(row, out)| self.dense_row(row, out));
        }
        bytes
    }

    /// All rows of a weight in blocks.
    pub(crate) fn block_rows(&self) -> PlainRows {
        let mut plain = Parts::of(self.format).rows(self.rows, self.cols);
        for row in 0..self.rows {
            self.block_row(row, &mut Parts::of(self.format).row(&mut plain, row, self.cols));
        }
        plain
    }
}

fn panel_bytes(format: Format, cols: usize) -> usize {
    match format.kind() {
        FormatKind::Dense => DenseLayout::new(format, cols).bytes(),
        _ => PanelLayout::new(format, cols).bytes(),
    }
}

fn pack_panel(format: Format, cols: usize, rows: &[u8], panel: &mut [u8]) {
    match format.kind() {
        FormatKind::Dense => DenseLayout::new(format, cols).pack(rows, panel),
        _ => PanelLayout::new(format, cols).pack(rows, panel),
    }
}

fn out_of_memory(error: &io::Error) -> Error {
    Error::Backend { backend: "cpu".into(), op: "pack", detail: error.to_string() }
}

/// Which parts the rows of a block format have, and how many columns an entry of each covers; 0 for a part it lacks.
pub(crate) struct Parts {
    block: usize,
    min: bool,
    sub: usize,
}

impl Parts {
    pub(crate) fn of(format: Format) -> Self {
        let block = format.block_len();
        match format.kind() {
            FormatKind::Blocks256 { sub_len, min } => Parts { block, min, sub: sub_len },
            FormatKind::Blocks32 { min } => Parts { block, min, sub: 0 },
            FormatKind::Dense => Parts { block, min: false, sub: 0 },
        }
    }

    /// Room for `rows` rows.
    pub(crate) fn rows(&self, rows: usize, cols: usize) -> PlainRows {
        let subs = rows * cols.checked_div(self.sub).unwrap_or(0);
        PlainRows {
            q: vec![0; rows * cols],
            scale: vec![0.0; rows * cols / self.block],
            min: self.min.then(|| vec![0.0; rows * cols / self.block]),
            sub_scale: (self.sub > 0).then(|| vec![0; subs]),
            sub_min: (self.sub > 0 && self.min).then(|| vec![0; subs]),
        }
    }

    /// Row `row` of rows of `cols` columns.
    pub(crate) fn row<'a>(&self, rows: &'a mut PlainRows, row: usize, cols: usize) -> PlainRowMut<'a> {
        fn part<T>(values: &mut [T], row: usize, len: usize) -> &mut [T] {
            &mut values[row * len..(row + 1) * len]
        }
        let (blocks, subs) = (cols / self.block, cols.checked_div(self.sub).unwrap_or(0));
        PlainRowMut {
            q: part(&mut rows.q, row, cols),
            scale: part(&mut rows.scale, row, blocks),
            min: rows.min.as_mut().map_or(&mut [], |values| part(values, row, blocks)),
            sub_scale: rows.sub_scale.as_mut().map_or(&mut [], |values| part(values, row, subs)),
            sub_min: rows.sub_min.as_mut().map_or(&mut [], |values| part(values, row, subs)),
        }
    }
}
