//! Memory for weights: in huge pages where the system has them, and never written before it is needed.
//!
//! A matrix-vector product reads all weights once. In pages of 4 KiB it stops for a look into the page table at each of
//! them; in huge ones a sequential read was 1.25 times as fast (15.4 to 12.4 GB/s on one core of a Xeon), and first touches
//! 2.7 times. A weight of a small model is smaller than a huge page, so weights share them.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::{MmapMut, MmapRaw};

/// Bytes that are asked of the system at a time, of which only those in use take memory.
const CHUNK: usize = 32 << 20;

/// Blocks start at multiples of this, so that vectors are loaded from one cache line.
const ALIGNMENT: usize = 64;

/// Gives out blocks of zeroed memory, one after the other. A chunk goes back to the system with the last of its blocks.
#[derive(Default)]
pub struct Arena {
    open: Mutex<Option<Rest>>,
}

/// What is left of a chunk.
struct Rest {
    chunk: Arc<MmapRaw>,
    start: usize,
}

/// Bytes of an [`Arena`].
pub struct Block {
    chunk: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Arena {
    /// `len` zeros, aligned to 64 bytes.
    ///
    /// # Errors
    /// If the system has no more memory to give.
    pub fn zeroed(&self, len: usize) -> io::Result<Block> {
        if len > CHUNK / 2 {
            return Ok(Block { chunk: Arc::new(map(len)?), start: 0, len });
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = match open.take() {
            Some(rest) if rest.chunk.len() - rest.start >= len => rest,
            _ => Rest { chunk: Arc::new(map(CHUNK)?), start: 0 },
        };
        let block = Block { chunk: rest.chunk.clone(), start: rest.start, len };
        let start = (rest.start + len).next_multiple_of(ALIGNMENT).min(rest.chunk.len());
        *open = Some(Rest { start, ..rest });
        Ok(block)
    }
}

/// Zeros that take no memory yet.
fn map(len: usize) -> io::Result<MmapRaw> {
    let map = MmapMut::map_anon(len.max(1))?;
    // It is advice: without huge pages reading is slower.
    #[cfg(all(target_os = "linux", not(miri)))]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map.into())
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the chunk, which lives as long as the block; only this block has the range.
        unsafe { std::slice::from_raw_parts(self.chunk.as_ptr().add(self.start), self.len) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the block is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.as_mut_ptr().add(self.start), self.len) }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "slow")]
    fn blocks_are_aligned_zeros_of_their_own() {
        let arena = Arena::default();
        let sizes = [0, 1, 63, 64, 65, CHUNK / 2, CHUNK / 2 - 64, 100, CHUNK / 2 + 1, 7];
        let mut blocks: Vec<_> = sizes.iter().map(|&len| arena.zeroed(len).expect("memory")).collect();
        for (i, (block, len)) in blocks.iter_mut().zip(sizes).enumerate() {
            assert!(block.len() == len && block.as_ptr().addr().is_multiple_of(ALIGNMENT), "block {i}");
            let ends = [block.first().copied(), block.last().copied()];
            assert!(ends.into_iter().flatten().all(|byte| byte == 0), "block {i}");
            block.fill(i as u8 + 1);
        }
        for (i, block) in blocks.iter().enumerate() {
            assert!(block.iter().all(|&byte| byte == i as u8 + 1), "block {i}");
        }
    }

    #[test]
    fn a_chunk_outlives_its_arena() {
        let arena = Arena::default();
        let mut block = arena.zeroed(100).expect("memory");
        drop(arena);
        block[99] = 1;
        assert_eq!(block.iter().map(|&byte| u32::from(byte)).sum::<u32>(), 1);
    }
}
