//! Which parts of one long piece of memory are free. Numbers only; the memory may be anywhere.

use std::collections::{BTreeMap, BTreeSet};

/// Free spans of memory. The smallest that fits is taken, and what is given back is joined with its neighbours.
#[derive(Debug)]
pub(crate) struct Spans {
    /// Length of each free span, by its start.
    by_start: BTreeMap<u64, u64>,
    /// Length and start of each.
    by_len: BTreeSet<(u64, u64)>,
    free: u64,
    /// The fewest that were free since [`Self::watch`].
    fewest: u64,
}

impl Spans {
    /// `len` units, all of them free.
    pub(crate) fn new(len: u64) -> Self {
        let mut spans = Spans { by_start: BTreeMap::new(), by_len: BTreeSet::new(), free: 0, fewest: 0 };
        spans.give(0, len);
        spans.watch();
        spans
    }

    /// Units that are free, in all spans.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Begins to watch how many units are free.
    pub(crate) fn watch(&mut self) {
        self.fewest = self.free;
    }

    /// The fewest units that were free since they are watched.
    pub(crate) fn fewest_free(&self) -> u64 {
        self.fewest
    }

    /// The start of `len` units that are now taken, if a span has as many.
    pub(crate) fn take(&mut self, len: u64) -> Option<u64> {
        let &(found, start) = self.by_len.range((len, 0)..).next()?;
        self.remove(start, found);
        if found > len {
            self.insert(start + len, found - len);
        }
        self.fewest = self.fewest.min(self.free);
        Some(start)
    }

    /// Frees units that were taken.
    pub(crate) fn give(&mut self, start: u64, len: u64) {
        let (mut start, mut len) = (start, len);
        if let Some((&before, &before_len)) = self.by_start.range(..start).next_back() {
            debug_assert!(before + before_len <= start, "{start} was free");
            if before + before_len == start {
                self.remove(before, before_len);
                (start, len) = (before, before_len + len);
            }
        }
        if let Some(&after_len) = self.by_start.get(&(start + len)) {
            self.remove(start + len, after_len);
            len += after_len;
        }
        self.insert(start, len);
    }

    fn insert(&mut self, start: u64, len: u64) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
        self.free += len;
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_span_that_fits_is_taken() {
        let mut spans = Spans::new(100);
        let starts: Vec<_> = [10, 30, 10, 20].map(|len| spans.take(len).unwrap()).into();
        assert_eq!(starts, [0, 10, 40, 50]);
        spans.give(10, 30);
        spans.give(50, 20);
        assert_eq!((spans.take(15), spans.free()), (Some(10), 65));
        assert_eq!(spans.take(51), None);
        spans.watch();
        spans.give(0, 10);
        assert_eq!((spans.fewest_free(), spans.take(40), spans.fewest_free()), (65, Some(50), 35));
    }

    #[test]
    fn what_is_given_back_in_any_order_is_one_span() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut spans = Spans::new(40);
            let starts: Vec<u64> = (0..4).map(|_| spans.take(10).unwrap()).collect();
            assert_eq!((spans.take(1), spans.free()), (None, 0));
            order.into_iter().for_each(|i: usize| spans.give(starts[i], 10));
            assert_eq!((spans.take(40), spans.by_start.len()), (Some(0), 0), "{order:?}");
        }
    }

    #[test]
    fn taken_spans_never_overlap() {
        let (mut spans, mut taken, mut seed) = (Spans::new(1000), Vec::<(u64, u64)>::new(), 1u64);
        for _ in 0..5000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let random = seed >> 33;
            if random % 3 == 0 && !taken.is_empty() {
                let (start, len) = taken.swap_remove(random as usize % taken.len());
                spans.give(start, len);
            } else if let Some(start) = spans.take(1 + random % 40) {
                let len = 1 + random % 40;
                assert!(taken.iter().all(|&(other, n)| start + len <= other || other + n <= start));
                taken.push((start, len));
            }
            let used: u64 = taken.iter().map(|(_, len)| len).sum();
            assert_eq!(used + spans.free(), 1000);
        }
    }
}
