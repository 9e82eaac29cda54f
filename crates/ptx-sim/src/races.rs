//! Which block of a launch used each byte of global memory.

use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::fault::FaultKind;

/// A launch in the upper half, a block plus 1 in the lower; this instead of a block says several.
const SEVERAL: u64 = 0xffff_ffff;

/// Two records for each byte of a range of addresses: its last writer, and its readers.
pub(crate) struct Races {
    start: u64,
    writers: MmapRaw,
    readers: MmapRaw,
}

impl Races {
    /// None if the host has no address space for it.
    pub(crate) fn new(start: u64, bytes: usize) -> Option<Self> {
        let map = || {
            MmapOptions::new().len(bytes.checked_mul(8)?).no_reserve_swap().map_anon().ok().map(MmapRaw::from)
        };
        Some(Races { start, writers: map()?, readers: map()? })
    }

    /// Notes a use of bytes, which lie in the range, by a block of a launch.
    pub(crate) fn note(
        &self,
        address: u64,
        bytes: u32,
        launch: u32,
        block: u64,
        writes: bool,
    ) -> Result<(), FaultKind> {
        let mine = u64::from(launch) << 32 | (block + 1) & SEVERAL;
        (0..u64::from(bytes)).try_for_each(|byte| {
            let (writer, reader) =
                (self.record(&self.writers, address + byte), self.record(&self.readers, address + byte));
            let earlier = match writes {
                true => after_write(writer, reader, mine),
                false => after_read(writer, reader, mine),
            };
            let Some((earlier, record)) = earlier else { return Ok(()) };
            let access = if writes { "a write" } else { "a read" };
            let earlier = match record & SEVERAL {
                SEVERAL => format!("{earlier} by several blocks"),
                block => format!("{earlier} by block {}", block - 1),
            };
            Err(FaultKind::GlobalRace { address: address + byte, access, earlier })
        })
    }

    fn record(&self, map: &MmapRaw, address: u64) -> &AtomicU64 {
        let index = (address - self.start) as usize;
        // SAFETY: the address lies in the range, which has a record for each byte, and records are only used as atomics.
        unsafe { AtomicU64::from_ptr(map.as_mut_ptr().cast::<u64>().add(index)) }
    }
}

/// Whether a record is of this launch, and of another block.
fn other(record: u64, mine: u64) -> bool {
    record >> 32 == mine >> 32 && record != mine
}

/// Each of two blocks first writes its own record and then reads that of the other, so one of them sees the race.
fn after_write(writer: &AtomicU64, reader: &AtomicU64, mine: u64) -> Option<(&'static str, u64)> {
    let before = writer.swap(mine, Ordering::SeqCst);
    if other(before, mine) {
        return Some(("a write", before));
    }
    let read = reader.load(Ordering::SeqCst);
    other(read, mine).then_some(("a read", read))
}

fn after_read(writer: &AtomicU64, reader: &AtomicU64, mine: u64) -> Option<(&'static str, u64)> {
    let before = reader.load(Ordering::SeqCst);
    if before != mine {
        let several = mine & !SEVERAL | SEVERAL;
        reader.swap(if other(before, mine) { several } else { mine }, Ordering::SeqCst);
    }
    let written = writer.load(Ordering::SeqCst);
    other(written, mine).then_some(("a write", written))
}
