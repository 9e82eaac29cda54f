//! A matrix that threads write disjoint boxes of.

use std::marker::PhantomData;

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
