//! A matrix that threads write disjoint boxes of.

use std::{marker::PhantomData, ops::Range};

use crate::parts::Parts;

/// A box of a row-major matrix, to be written: rows and columns can be split off for another thread.
pub struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: a box is the only access to its elements while it lives, as a mutable slice is.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// All of `values [rows, cols]`.
    ///
    /// # Panics
    /// If there are not `rows * cols` of them.
    pub fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "a matrix of {rows} rows and {cols} columns");
        MatrixMut { start: values.as_mut_ptr(), rows, cols, stride: cols, owner: PhantomData }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row is inside the box, whose elements only `self` reaches; it is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.cols) }
    }

    /// `16 P` columns of `T` rows, from a row and a column on, if the box has them.
    #[inline(always)]
    pub(super) fn lanes<const T: usize, const P: usize>(
        &mut self,
        row: usize,
        col: usize,
    ) -> Option<[&mut [[f32; 16]; P]; T]> {
        if row + T > self.rows || col + 16 * P > self.cols {
            return None;
        }
        // SAFETY: rows and columns inside the box, whose elements only `self` reaches, are borrowed for as long; rows share
        // no element.
        Some(std::array::from_fn(|t| unsafe { &mut *self.start.add((row + t) * self.stride + col).cast() }))
    }

    /// The columns before `col`, and the others.
    pub fn split_cols(self, col: usize) -> (Self, Self) {
        assert!(col <= self.cols, "column {col} of {}", self.cols);
        // SAFETY: at most one past the last column of the first row, inside or one past the matrix.
        let start = unsafe { self.start.add(if self.rows == 0 { 0 } else { col }) };
        let right = MatrixMut { start, cols: self.cols - col, ..self };
        (MatrixMut { cols: col, ..self }, right)
    }

    /// The rows before `row`, and the others.
    pub fn split_rows(self, row: usize) -> (Self, Self) {
        assert!(row <= self.rows, "row {row} of {}", self.rows);
        let rest = self.rows - row;
        // SAFETY: the start of a row of the box; where none is left the start does not move.
        let start = unsafe { self.start.add(if rest == 0 { 0 } else { row * self.stride }) };
        let below = MatrixMut { start, rows: rest, ..self };
        (MatrixMut { rows: row, ..self }, below)
    }

    /// The box of some rows and columns.
    ///
    /// # Safety
    /// Nobody reaches the elements of that box in another way while the result is used.
    unsafe fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "{rows:?}, {cols:?} of a matrix");
        let (rows, cols, first) = (rows.len(), cols.len(), rows.start * self.stride + cols.start);
        // SAFETY: the first element of a box that is inside; where the box is empty the start does not move.
        let start = unsafe { self.start.add(if rows * cols == 0 { 0 } else { first }) };
        MatrixMut { start, rows, cols, ..*self }
    }
}

/// Matrices in bands of columns, numbered from one matrix to the next.
pub struct Bands<'m, 'a> {
    /// Each with how many columns a band of it has.
    matrices: &'m mut [(MatrixMut<'a>, usize)],
}

/// Some columns of one of several matrices.
pub struct Band<'a> {
    /// Which matrix.
    pub matrix: usize,
    /// The columns.
    pub cols: Range<usize>,
    /// The box to write.
    pub out: MatrixMut<'a>,
}

impl<'m, 'a> Bands<'m, 'a> {
    /// Matrices, each with how many columns a band of it has.
    ///
    /// # Panics
    /// If a band has no columns.
    pub fn new(matrices: &'m mut [(MatrixMut<'a>, usize)]) -> Self {
        assert!(matrices.iter().all(|(_, cols)| *cols > 0), "bands of no columns");
        Bands { matrices }
    }
}

// SAFETY: only boxes are given out, each once.
unsafe impl Sync for Bands<'_, '_> {}

// SAFETY: bands are disjoint, and the matrices are borrowed mutably for as long.
unsafe impl<'m> Parts for Bands<'m, '_> {
    type Part = Band<'m>;

    fn count(&self) -> usize {
        self.matrices.iter().map(|(out, cols)| out.cols().div_ceil(*cols)).sum()
    }

    unsafe fn part(&self, mut i: usize) -> Band<'m> {
        for (matrix, (out, step)) in self.matrices.iter().enumerate() {
            let bands = out.cols().div_ceil(*step);
            if i < bands {
                let cols = i * step..((i + 1) * step).min(out.cols());
                // SAFETY: each band is given out once, as the caller promises.
                return Band { matrix, cols: cols.clone(), out: unsafe { out.part(0..out.rows(), cols) } };
            }
            i -= bands;
        }
        unreachable!("a band below the count")
    }
}

/// A matrix cut into boxes, numbered row by row.
pub struct Grid<'a> {
    matrix: MatrixMut<'a>,
    ends: &'a [usize],
    cols: usize,
}

impl<'a> Grid<'a> {
    /// A matrix whose rows are cut at `ends`, which grow, and whose columns are cut every `cols`.
    ///
    /// # Panics
    /// If a box would have no columns.
    pub fn new(matrix: MatrixMut<'a>, ends: &'a [usize], cols: usize) -> Self {
        assert!(cols > 0 && ends.is_sorted(), "a grid of {cols} columns");
        Grid { matrix, ends, cols }
    }

    /// Boxes side by side.
    pub fn across(&self) -> usize {
        self.matrix.cols().div_ceil(self.cols)
    }

    /// The rows of band `band`.
    pub fn rows(ends: &[usize], band: usize) -> Range<usize> {
        band.checked_sub(1).map_or(0, |above| ends[above])..ends[band]
    }
}

// SAFETY: only boxes are given out, each once.
unsafe impl Sync for Grid<'_> {}

// SAFETY: boxes are disjoint, since the ends grow, and the matrix is borrowed mutably for as long.
unsafe impl<'a> Parts for Grid<'a> {
    type Part = MatrixMut<'a>;

    fn count(&self) -> usize {
        self.ends.len() * self.across()
    }

    unsafe fn part(&self, i: usize) -> MatrixMut<'a> {
        let (band, box_) = (i / self.across(), i % self.across());
        let cols = box_ * self.cols..((box_ + 1) * self.cols).min(self.matrix.cols());
        // SAFETY: each box is given out once, as the caller promises.
        unsafe { self.matrix.part(Self::rows(self.ends, band), cols) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts in each element how often a part covers it.
    fn visit<P: Parts>(parts: &P, add: impl Fn(P::Part)) {
        // SAFETY: each number once, one after the other.
        (0..parts.count()).for_each(|i| add(unsafe { parts.part(i) }));
    }

    fn increment(mut out: MatrixMut<'_>) {
        (0..out.rows()).for_each(|row| out.row(row).iter_mut().for_each(|x| *x += 1.0));
    }

    #[test]
    fn bands_cover_their_matrices() {
        let (mut a, mut b) = (vec![0.0; 2 * 7], vec![0.0; 2 * 4]);
        let mut matrices = [(MatrixMut::new(&mut a, 2, 7), 3), (MatrixMut::new(&mut b, 2, 4), 4)];
        let bands = Bands::new(&mut matrices);
        assert_eq!(bands.count(), 4);
        visit(&bands, |band| {
            assert_eq!((band.cols.len(), band.out.rows()), (band.out.cols(), 2));
            increment(band.out);
        });
        assert!(a.into_iter().chain(b).all(|x| x == 1.0));
    }

    #[test]
    fn a_grid_covers_its_matrix() {
        let mut values = vec![0.0; 5 * 7];
        let grid = Grid::new(MatrixMut::new(&mut values, 5, 7), &[2, 2, 5], 3);
        assert_eq!((grid.count(), grid.across()), (9, 3));
        visit(&grid, increment);
        assert!(values.into_iter().all(|x| x == 1.0));
    }

    #[test]
    fn boxes_are_disjoint_and_cover_the_matrix() {
        let mut values = vec![0.0; 5 * 7];
        let (top, bottom) = MatrixMut::new(&mut values, 5, 7).split_rows(2);
        let (top_left, top_right) = top.split_cols(3);
        let (bottom_left, bottom_right) = bottom.split_cols(7);
        let mut boxes = [top_left, top_right, bottom_left, bottom_right];
        for (i, part) in boxes.iter_mut().enumerate() {
            for row in 0..part.rows() {
                part.row(row).iter_mut().for_each(|x| *x += 1.0 + i as f32);
            }
        }
        assert!(values[..14].chunks(7).all(|row| row == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]));
        assert!(values[14..].iter().all(|&x| x == 3.0));
    }

    #[test]
    fn empty_matrices_split() {
        let (left, right) = MatrixMut::new(&mut [], 0, 7).split_cols(5);
        assert_eq!((left.cols(), right.cols()), (5, 2));
        let (top, bottom) = MatrixMut::new(&mut [], 4, 0).split_rows(4);
        assert_eq!((top.rows(), bottom.rows()), (4, 0));
    }
}
