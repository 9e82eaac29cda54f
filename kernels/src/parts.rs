//! What a job writes, cut into parts for its tasks.

use std::marker::PhantomData;

/// Values that tasks write disjoint parts of, by number. See [`crate::pool::Pool::each`].
///
/// # Safety
/// Parts of different numbers must not overlap, and may be used on any thread.
pub unsafe trait Parts: Sync {
    /// What a task is given.
    type Part;

    /// How many parts there are.
    fn count(&self) -> usize;

    /// Part `i`.
    ///
    /// # Safety
    /// `i` is below the count, and no part is asked for twice.
    unsafe fn part(&self, i: usize) -> Self::Part;
}

/// A slice in chunks of one length, of which the last may be shorter.
pub struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    owner: PhantomData<&'a mut [T]>,
}

impl<'a, T> Chunks<'a, T> {
    /// `values` in chunks of `chunk`.
    ///
    /// # Panics
    /// If `chunk` is 0 and there are values.
    pub fn new(values: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0 || values.is_empty(), "chunks of no values");
        Chunks { start: values.as_mut_ptr(), len: values.len(), chunk: chunk.max(1), owner: PhantomData }
    }
}

// SAFETY: only whole chunks are given out, each once: as if a mutable slice were sent for each.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

// SAFETY: chunks are disjoint ranges of a slice that is borrowed mutably for as long.
unsafe impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    unsafe fn part(&self, i: usize) -> &'a mut [T] {
        let first = i * self.chunk;
        // SAFETY: the number is below the count, so that the range is inside the slice; nobody else has this range.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.chunk.min(self.len - first)) }
    }
}

macro_rules! side_by_side {
    ($($name:ident)*) => {
        // SAFETY: parts of each are disjoint.
        unsafe impl<$($name: Parts),*> Parts for ($($name,)*) {
            type Part = ($($name::Part,)*);

            /// The fewest of them.
            #[allow(non_snake_case, reason = "named as their types")]
            fn count(&self) -> usize {
                let ($($name,)*) = self;
                usize::MAX$(.min($name.count()))*
            }

            #[allow(non_snake_case, reason = "named as their types")]
            unsafe fn part(&self, i: usize) -> Self::Part {
                let ($($name,)*) = self;
                // SAFETY: as the caller promises; the number is below each one's count.
                ($(unsafe { $name.part(i) },)*)
            }
        }
    };
}
side_by_side!(A B);
side_by_side!(A B C);
side_by_side!(A B C D);
side_by_side!(A B C D E);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_slice() {
        let mut values = [1, 2, 3, 4, 5];
        let chunks = Chunks::new(&mut values, 2);
        // SAFETY: each once.
        let parts: Vec<_> = (0..chunks.count()).map(|i| unsafe { chunks.part(i) }.to_vec()).collect();
        assert_eq!(parts, [vec![1, 2], vec![3, 4], vec![5]]);
        assert_eq!(Chunks::<u8>::new(&mut [], 0).count(), 0);
    }

    #[test]
    fn side_by_side_ends_with_the_shortest() {
        let (mut a, mut b) = ([1, 2, 3, 4, 5], [0; 4]);
        let both = (Chunks::new(&mut a, 2), Chunks::new(&mut b, 2));
        assert_eq!(both.count(), 2);
        // SAFETY: below the count, once.
        let (a, b) = unsafe { both.part(1) };
        b.copy_from_slice(a);
        assert_eq!(b, [3, 4]);
    }
}
