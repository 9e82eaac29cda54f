//! Asynchronous copies: what they copy is read at once and lands at the wait, and until then their place must not be used.

use super::{Ran, block::Block, lanes, registers::Kind, shared::Use, warp::Warp};
use crate::{
    decode::{AsyncCopy, Register},
    fault::{FaultKind, MemorySpace},
    ptx::Space,
};

#[derive(Debug, Clone)]
struct Copy {
    lane: usize,
    to: u64,
    bytes: u32,
    value: [u8; 16],
    /// Groups of its lane before its own; none until it is committed.
    group: Option<u32>,
}

/// The copies of a warp that have not landed, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    copies: Vec<Copy>,
    /// Groups that each lane committed.
    committed: [u32; 32],
}

impl Pending {
    pub(super) fn clear(&mut self) {
        self.copies.clear();
        self.committed = [0; 32];
    }

    pub(super) fn commit(&mut self, mask: u32) {
        for copy in self.copies.iter_mut().filter(|copy| mask >> copy.lane & 1 != 0) {
            copy.group.get_or_insert(self.committed[copy.lane]);
        }
        lanes(mask).for_each(|lane| self.committed[lane] += 1);
    }

    /// Takes the copies of these lanes but those of the last groups; without a number, all, committed or not.
    fn take(&mut self, mask: u32, keep: Option<u32>) -> Vec<Copy> {
        let committed = self.committed;
        let lands = |copy: &Copy| match (copy.group, keep) {
            _ if mask >> copy.lane & 1 == 0 => false,
            (_, None) => true,
            (Some(group), Some(keep)) => group + keep < committed[copy.lane],
            (None, Some(_)) => false,
        };
        let (landed, left) = std::mem::take(&mut self.copies).into_iter().partition(lands);
        self.copies = left;
        landed
    }
}

impl Block<'_> {
    pub(super) fn async_copy(&mut self, warp: &mut Warp, copy: &AsyncCopy, mask: u32) -> Ran {
        let to = self.addresses(warp, &copy.to, mask)?;
        let to = to.map(|address| address & 0xffff_ffff);
        self.check(warp, Space::Shared, &to, mask, copy.bytes)?;
        let ignored = copy.ignore.map_or(0, |slot| warp.registers.pred(slot));
        let taken = match copy.source_bytes {
            Some(slot) => self.source(warp, Register { kind: Kind::Narrow, slot }, mask)?,
            None => [copy.bytes.into(); 32],
        };
        let from = self.addresses(warp, &copy.from, mask)?;
        let reads = |lane: &usize| ignored >> lane & 1 == 0 && taken[*lane] > 0;
        let reading = lanes(mask).filter(reads).fold(0, |reading, lane| reading | 1 << lane);
        if reading != 0 {
            self.check(warp, Space::Global, &from, reading, copy.bytes)?;
            self.count_access(warp.pc, Space::Global, &from, reading, copy.bytes);
            self.note_blocks(Space::Global, &from, reading, copy.bytes, false)?;
        }
        for lane in lanes(mask) {
            let taken = if reading >> lane & 1 != 0 { taken[lane] as u32 } else { 0 };
            if taken > copy.bytes {
                return Err(FaultKind::WrongCopy { taken, bytes: copy.bytes }.of(lane));
            }
            let value = self.read_global(from[lane], taken, lane)?;
            let thread = warp.index * 32 + lane as u32;
            self.shared
                .note(to[lane], copy.bytes, thread, Use::Write, false)
                .map_err(|kind| kind.of(lane))?;
            self.shared.expect(to[lane], copy.bytes);
            warp.pending.copies.push(Copy { lane, to: to[lane], bytes: copy.bytes, value, group: None });
        }
        Ok(())
    }

    /// Up to 16 bytes, zeros behind them.
    fn read_global(&self, from: u64, bytes: u32, lane: usize) -> Ran<[u8; 16]> {
        let mut value = [0; 16];
        let checked = self.launch.settings.checks.global;
        let unwritten =
            |address, bytes| FaultKind::Uninitialised { space: MemorySpace::Global, address, bytes }.of(lane);
        let (words, rest) = (bytes / 4 * 4, bytes % 4);
        for at in (0..words).step_by(4) {
            let address = from + u64::from(at);
            // SAFETY: the whole source was checked to lie in an allocation, and to be aligned to at least 4 bytes.
            let (read, written) =
                unsafe { (self.launch.arena.read::<4>(address), self.launch.arena.is_written::<4>(address)) };
            if checked && !written {
                return Err(unwritten(address, 4));
            }
            value[at as usize..at as usize + 4].copy_from_slice(&(read as u32).to_le_bytes());
        }
        for at in words..words + rest {
            let address = from + u64::from(at);
            // SAFETY: as above.
            let (read, written) =
                unsafe { (self.launch.arena.read::<1>(address), self.launch.arena.is_written::<1>(address)) };
            if checked && !written {
                return Err(unwritten(address, 1));
            }
            value[at as usize] = read as u8;
        }
        Ok(value)
    }

    pub(super) fn async_wait(&mut self, warp: &mut Warp, keep: Option<u32>, mask: u32) -> Ran {
        for copy in warp.pending.take(mask, keep) {
            let thread = warp.index * 32 + copy.lane as u32;
            self.shared.came(copy.to, copy.bytes);
            self.shared
                .note(copy.to, copy.bytes, thread, Use::Write, false)
                .map_err(|kind| kind.of(copy.lane))?;
            self.shared.slice_mut(copy.to, copy.bytes).copy_from_slice(&copy.value[..copy.bytes as usize]);
        }
        Ok(())
    }
}
