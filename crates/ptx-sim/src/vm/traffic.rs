//! What accesses of a warp cost a device: sectors of global memory, and conflicts over banks of shared memory.

use super::{block::Block, lanes, registers::Lanes};
use crate::{decode::Inst, ptx::Space};

const SECTOR: u64 = 32;
const BANKS: u64 = 32;

impl Block<'_> {
    /// Counts an access of `bytes` in each lane of a mask.
    #[inline]
    pub(super) fn count_access(&mut self, pc: u32, space: Space, at: &Lanes<u64>, mask: u32, bytes: u32) {
        let counting = self.launch.settings.count_memory;
        let total = u64::from(mask.count_ones() * bytes);
        match space {
            Space::Shared if counting => self.counted.bank_conflicts += conflicts(at, mask, bytes),
            Space::Global => {
                let loads = !matches!(self.kernel().steps[pc as usize].inst, Inst::Store(_));
                let sectors = if counting { sectors(at, mask, bytes) } else { 0 };
                if loads {
                    self.counted.loaded_bytes += total;
                    self.counted.loaded_sectors += sectors;
                } else {
                    self.counted.stored_bytes += total;
                    self.counted.stored_sectors += sectors;
                }
            }
            _ => {}
        }
    }
}

/// Pieces of 32 bytes that are touched.
fn sectors(at: &Lanes<u64>, mask: u32, bytes: u32) -> u64 {
    let mut touched: Vec<u64> = lanes(mask).map(|lane| at[lane] / SECTOR).collect();
    // Accesses are aligned, and at most 16 bytes: none spans two sectors.
    debug_assert!(u64::from(bytes) <= SECTOR);
    touched.sort_unstable();
    touched.dedup();
    touched.len() as u64
}

/// Passes beyond the first: of the lanes whose words are moved together, as many as make 128 bytes, those that want different words
/// of a bank wait for each other.
pub(super) fn conflicts(at: &Lanes<u64>, mask: u32, bytes: u32) -> u64 {
    let together = (128 / bytes.max(4)) as usize;
    let mut conflicts = 0;
    for first in (0..32).step_by(together) {
        let group = mask & (u32::MAX >> (32 - together)) << first;
        let words_of = |lane: usize| at[lane] / 4..(at[lane] + u64::from(bytes)).div_ceil(4);
        let mut words: Vec<u64> = lanes(group).flat_map(words_of).collect();
        words.sort_unstable();
        words.dedup();
        let in_bank = |bank: u64| words.iter().filter(|&&word| word % BANKS == bank).count() as u64;
        conflicts += (0..BANKS).map(in_bank).max().unwrap_or(0).saturating_sub(1);
    }
    conflicts
}
