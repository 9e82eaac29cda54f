//! Memory of tensors, which is used again: a step makes the same tensors as the step before.

use std::{
    array,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// Bytes that start where a vector register's load is aligned.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

const LINE: usize = size_of::<Line>();

/// Classes of blocks between a power of two and the next.
const STEPS: usize = 8;

/// Classes of blocks by size, up to the largest that can be asked for.
const CLASSES: usize = STEPS * usize::BITS as usize;

/// Zeros that are worth asking the system for.
const LAZY_BYTES: usize = 1 << 20;

/// Where tensors' memory comes from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Blocks that were given back; `None` gives them back to the system.
    pool: Option<Arc<Blocks>>,
}

/// The memory of a tensor; writing to what others hold as well copies it first.
///
/// Cloning shares it. It goes back where it came from with the last clone.
#[derive(Clone, Debug)]
pub struct Elements<T> {
    lease: Lease,
    len: usize,
    of: PhantomData<T>,
}

impl Memory {
    /// Memory that is kept for the next tensor of about its size. All together never exceeds what was in use at once
    /// by more than an eighth.
    pub(crate) fn pooled() -> Self {
        Memory { pool: Some(Arc::new(Blocks::default())) }
    }

    /// Memory that comes from the system and goes back to it.
    pub(crate) const fn system() -> Self {
        Memory { pool: None }
    }

    /// `len` elements of any value, to be written.
    pub(crate) fn elements<T: Pod>(&self, len: usize) -> Elements<T> {
        let lines = (len * size_of::<T>()).div_ceil(LINE);
        let block = match &self.pool {
            Some(pool) => pool.take(lines),
            None => Arc::new(Block { lines: Lines::Heap(bytemuck::zeroed_vec(lines)), home: Weak::new() }),
        };
        Elements { lease: Lease { block: Some(block) }, len, of: PhantomData }
    }

    /// `len` zeros. Many come from the system as they are, and take no memory before they are written, as pages of a cache
    /// that no request has reached yet.
    pub(crate) fn zeros<T: Pod>(&self, len: usize) -> Elements<T> {
        let lines = (len * size_of::<T>()).div_ceil(LINE);
        if lines * LINE >= LAZY_BYTES
            && let Ok(fresh) = MmapMut::map_anon(lines * LINE)
        {
            let block = Arc::new(Block { lines: Lines::Fresh(fresh), home: Weak::new() });
            return Elements { lease: Lease { block: Some(block) }, len, of: PhantomData };
        }
        let mut elements = self.elements(len);
        elements.as_mut_slice().fill(T::zeroed());
        elements
    }

    /// The elements of an iterator of at least `len`.
    pub(crate) fn collect<T: Pod>(&self, len: usize, values: impl IntoIterator<Item = T>) -> Elements<T> {
        let mut elements = self.elements(len);
        elements.as_mut_slice().iter_mut().zip(values).for_each(|(out, value)| *out = value);
        elements
    }

    /// A copy.
    pub(crate) fn copy<T: Pod>(&self, values: &[T]) -> Elements<T> {
        let mut elements = self.elements(values.len());
        elements.as_mut_slice().copy_from_slice(values);
        elements
    }
}

impl<T: Pod> Elements<T> {
    /// The elements, to be written in place; copied first if shared.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        if self.lease.lines_mut().is_none() {
            *self = Memory::system().copy(self);
        }
        let lines = self.lease.lines_mut().unwrap_or_default();
        &mut bytemuck::cast_slice_mut(lines)[..self.len]
    }
}

impl<T: Pod> Deref for Elements<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(self.lease.lines())[..self.len]
    }
}

impl<T: Pod> From<Vec<T>> for Elements<T> {
    fn from(values: Vec<T>) -> Self {
        Memory::system().copy(&values)
    }
}

#[derive(Debug)]
struct Block {
    lines: Lines,
    home: Weak<Blocks>,
}

#[derive(Debug)]
enum Lines {
    Heap(Vec<Line>),
    /// Pages of the system, which are zero and take no memory before they are written.
    Fresh(MmapMut),
}

impl Deref for Lines {
    type Target = [Line];
    fn deref(&self) -> &[Line] {
        match self {
            Lines::Heap(lines) => lines,
            Lines::Fresh(pages) => bytemuck::cast_slice(pages),
        }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        match self {
            Lines::Heap(lines) => lines,
            Lines::Fresh(pages) => bytemuck::cast_slice_mut(pages),
        }
    }
}

/// A block until its last lease ends.
#[derive(Clone, Debug)]
struct Lease {
    /// Nothing only while it is dropped.
    block: Option<Arc<Block>>,
}

impl Lease {
    fn lines(&self) -> &[Line] {
        self.block.as_ref().map_or(&[], |block| &block.lines)
    }

    /// The lines, if nobody else has them.
    fn lines_mut(&mut self) -> Option<&mut [Line]> {
        Some(&mut Arc::get_mut(self.block.as_mut()?)?.lines)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mut block) = self.block.take()
            && Arc::get_mut(&mut block).is_some()
            && let Some(home) = block.home.upgrade()
        {
            home.give(block);
        }
    }
}

/// Blocks that wait for their next use.
#[derive(Debug, Default)]
struct Blocks {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// By class. A block here has no other owner.
    free: [Vec<Arc<Block>>; CLASSES],
    /// Lines in `free`.
    kept: usize,
    /// Lines in use.
    used: usize,
    /// The most lines that were in use at once.
    peak: usize,
}

impl Default for State {
    fn default() -> Self {
        State { free: array::from_fn(|_| Vec::new()), kept: 0, used: 0, peak: 0 }
    }
}

impl Blocks {
    fn take(self: &Arc<Self>, lines: usize) -> Arc<Block> {
        let mut state = self.state();
        if let Some(block) = state.find(lines) {
            state.kept -= block.lines.len();
            state.used(block.lines.len());
            return block;
        }
        state.used(lines);
        let excess = (state.used + state.kept).saturating_sub(state.peak + state.peak / 8);
        let spare = state.release(excess);
        drop(state);
        drop(spare);
        Arc::new(Block { lines: Lines::Heap(bytemuck::zeroed_vec(lines)), home: Arc::downgrade(self) })
    }

    fn give(&self, block: Arc<Block>) {
        let lines = block.lines.len();
        let mut state = self.state();
        state.used -= lines;
        state.kept += lines;
        state.free[class(lines)].push(block);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A free block of at least `lines`, and at most a quarter more.
    fn find(&mut self, lines: usize) -> Option<Arc<Block>> {
        let class = class(lines);
        let free = &mut self.free[class];
        match free.iter().rposition(|block| block.lines.len() >= lines) {
            Some(at) => Some(free.swap_remove(at)),
            None => self.free[class + 1].pop(),
        }
    }

    fn used(&mut self, lines: usize) {
        self.used += lines;
        self.peak = self.peak.max(self.used);
    }

    /// Takes out free blocks, large ones first, until `excess` lines are gone or none is left.
    fn release(&mut self, mut excess: usize) -> Vec<Arc<Block>> {
        let mut spare = Vec::new();
        for free in self.free.iter_mut().rev() {
            while excess > 0
                && let Some(block) = free.pop()
            {
                excess = excess.saturating_sub(block.lines.len());
                self.kept -= block.lines.len();
                spare.push(block);
            }
        }
        spare
    }
}

/// The class of blocks of `lines`; those of the next are all larger.
fn class(lines: usize) -> usize {
    let shift = lines.checked_ilog2().unwrap_or(0).saturating_sub(STEPS.ilog2());
    shift as usize * STEPS + (lines >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_by_an_eighth() {
        let mut first = 0;
        for lines in (0..5000).chain([1 << 20, (1 << 20) + 1, (1 << 40) - 1]) {
            let grown = class(lines) - class(first);
            assert!(class(lines) + 1 < CLASSES && (grown > 0 || lines - first <= first / STEPS));
            if grown > 0 {
                first = lines;
            }
        }
        assert!(class(usize::MAX / LINE) + 1 < CLASSES);
    }

    #[test]
    fn memory_is_used_again() {
        let memory = Memory::pooled();
        let first = memory.collect(100, 0..100i32);
        let (shared, at) = (first.clone(), first.as_ptr());
        drop(first);
        assert_ne!(memory.elements::<i32>(100).as_ptr(), at, "in use");
        drop(shared);
        assert_eq!(memory.elements::<f32>(97).as_ptr().cast(), at);
    }

    #[test]
    fn shared_elements_are_copied_before_they_change() {
        let memory = Memory::pooled();
        let mut a = memory.copy(&[1, 2, 3]);
        let b = a.clone();
        a.as_mut_slice()[0] = 7;
        assert_eq!((&*a, &*b), (&[7, 2, 3][..], &[1, 2, 3][..]));
    }

    #[test]
    fn no_more_is_kept_than_was_in_use() {
        let memory = Memory::pooled();
        let bytes = |memory: &Memory| {
            let state = memory.pool.as_ref().expect("a pool").state();
            (LINE * (state.used + state.kept), LINE * state.peak)
        };
        for n in 0..50 {
            drop(memory.elements::<u8>(n * 10_000));
            let (all, peak) = bytes(&memory);
            assert!(all <= peak + peak / 8, "{all} bytes of {peak}");
        }
        drop([memory.elements::<u8>(1000), memory.elements(100)]);
        assert!(bytes(&memory).0 > 0);
    }
}
