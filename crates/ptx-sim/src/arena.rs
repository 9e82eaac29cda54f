//! The memory of a device: address space of the host with allocations in it, gaps between them, and a byte of shadow for each
//! byte, which says whether it was written.

use std::{
    collections::BTreeMap,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};

use crate::{
    fault::{FaultKind, MemorySpace},
    races::Races,
};

/// Between allocations, so that an address just out of one is in no other.
const GAP: u64 = 64 << 10;
/// Of each allocation, as the driver gives it at least.
const ALIGN: u64 = 512;
/// The address space is some times the memory, so that what is freed is not soon used again.
const SPACES: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) read_only: bool,
}

impl Allocation {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

pub(crate) struct Arena {
    memory: MmapRaw,
    shadow: MmapRaw,
    allocations: BTreeMap<u64, Allocation>,
    freed: BTreeMap<u64, Allocation>,
    cursor: u64,
    used: u64,
    limit: u64,
    races: OnceLock<Option<Races>>,
}

impl Arena {
    /// None if the host has no address space for it.
    pub(crate) fn new(limit: u64) -> Option<Self> {
        let space = usize::try_from(limit.checked_mul(SPACES)?.next_multiple_of(1 << 21)).ok()?;
        let map = || MmapOptions::new().len(space).no_reserve_swap().map_anon().ok().map(MmapRaw::from);
        let (memory, shadow) = (map()?, map()?);
        let cursor = memory.as_ptr() as u64 + GAP;
        Some(Arena {
            memory,
            shadow,
            allocations: BTreeMap::new(),
            freed: BTreeMap::new(),
            cursor,
            used: 0,
            limit,
            races: OnceLock::new(),
        })
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn live(&self) -> usize {
        self.allocations.len()
    }

    /// None if there is not as much left.
    pub(crate) fn allocate(&mut self, bytes: u64, read_only: bool) -> Option<u64> {
        if bytes > self.limit - self.used {
            return None;
        }
        let room = (bytes + GAP).next_multiple_of(GAP);
        let start =
            self.place(self.cursor, room).or_else(|| self.place(self.memory.as_ptr() as u64 + GAP, room))?;
        self.cursor = start + room;
        self.forget(start, bytes);
        // What was freed does not overlap, so what is overwritten lies at the end of this range.
        while let Some((&old, _)) =
            self.freed.range(..start + bytes).next_back().filter(|(_, old)| old.end() > start)
        {
            self.freed.remove(&old);
        }
        self.used += bytes;
        self.allocations.insert(start, Allocation { start, bytes, read_only });
        Some(start)
    }

    /// The first place from an address on that is as large.
    fn place(&self, from: u64, room: u64) -> Option<u64> {
        let end = self.memory.as_ptr() as u64 + self.memory.len() as u64;
        let mut start = from.next_multiple_of(ALIGN);
        if let Some((_, before)) = self.allocations.range(..start).next_back() {
            start = start.max((before.end() + GAP).next_multiple_of(ALIGN));
        }
        for (_, next) in self.allocations.range(start..) {
            if start + room <= next.start {
                break;
            }
            start = (next.end() + GAP).next_multiple_of(ALIGN);
        }
        (start.checked_add(room)? <= end).then_some(start)
    }

    /// Whether there was an allocation that begins there.
    pub(crate) fn free(&mut self, start: u64) -> bool {
        let Some(allocation) = self.allocations.remove(&start) else { return false };
        self.used -= allocation.bytes;
        self.freed.insert(start, allocation);
        self.release(&allocation);
        true
    }

    /// Gives whole pages back to the host.
    fn release(&self, allocation: &Allocation) {
        const PAGE: u64 = 4096;
        let offset = (allocation.start - self.memory.as_ptr() as u64).next_multiple_of(PAGE);
        let end = (allocation.end() - self.memory.as_ptr() as u64) / PAGE * PAGE;
        if end <= offset || end - offset < 64 * PAGE {
            return;
        }
        for map in [&self.memory, &self.shadow] {
            // SAFETY: private anonymous pages of this map, which nothing refers to; they read as zeros from now on.
            let done = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    offset as usize,
                    (end - offset) as usize,
                )
            };
            // Pages that stay cost memory and nothing else: what is allocated there forgets them.
            drop(done);
        }
    }

    /// The allocation that holds these bytes.
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<&Allocation> {
        let (_, allocation) = self.allocations.range(..=address).next_back()?;
        let end = address.checked_add(bytes)?;
        (end <= allocation.end()).then_some(allocation)
    }

    /// What is wrong with an access that [`find`](Self::find) does not find.
    pub(crate) fn explain(&self, address: u64, bytes: u32) -> FaultKind {
        let before =
            |map: &BTreeMap<u64, Allocation>| map.range(..=address).next_back().map(|(_, found)| *found);
        if let Some(freed) = before(&self.freed)
            && address < freed.end()
        {
            let near = format!(
                "; they were byte {} of {} at {:#x}",
                address - freed.start,
                freed.bytes,
                freed.start
            );
            return FaultKind::UseAfterFree { address, bytes, near };
        }
        let after = self.allocations.range(address..).next().map(|(_, found)| *found);
        let mut near = String::new();
        if let Some(before) = before(&self.allocations) {
            near += &format!(
                "; {} bytes at {:#x} begin {} before",
                before.bytes,
                before.start,
                address - before.start
            );
        }
        if let Some(after) = after {
            near += &format!(
                "; {} bytes at {:#x} begin {} after",
                after.bytes,
                after.start,
                after.start - address
            );
        }
        FaultKind::OutOfBounds { space: MemorySpace::Global, address, bytes, near }
    }

    /// The records of blocks, if the host has room for them.
    pub(crate) fn races(&self) -> Option<&Races> {
        self.races.get_or_init(|| Races::new(self.memory.as_ptr() as u64, self.memory.len())).as_ref()
    }

    fn shadow_of(&self, address: u64) -> *mut u8 {
        let offset = address - self.memory.as_ptr() as u64;
        self.shadow.as_mut_ptr().wrapping_add(offset as usize)
    }

    /// Bytes that nobody wrote.
    pub(crate) fn forget(&self, address: u64, bytes: u64) {
        self.mark(address, bytes, 0);
    }

    /// Bytes that the host wrote.
    pub(crate) fn written(&self, address: u64, bytes: u64) {
        self.mark(address, bytes, 1);
    }

    fn mark(&self, address: u64, bytes: u64, value: u8) {
        // Untouched pages of the shadow stay untouched.
        let mut at = address;
        while at < address + bytes {
            let chunk = (4096 - at % 4096).min(address + bytes - at);
            // SAFETY: the range is within the map, as callers give ranges of allocations; bytes of atomics may be shared.
            let shadow =
                unsafe { std::slice::from_raw_parts(self.shadow_of(at) as *const AtomicU8, chunk as usize) };
            if value != 0 || shadow.iter().any(|byte| byte.load(Ordering::Relaxed) != 0) {
                shadow.iter().for_each(|byte| byte.store(value, Ordering::Relaxed));
            }
            at += chunk;
        }
    }

    /// Copies what the bytes hold, and whether they were written.
    ///
    /// # Safety
    ///
    /// Both ranges lie in allocations, and no kernel runs.
    pub(crate) unsafe fn copy(&self, to: u64, from: u64, bytes: u64) {
        // SAFETY: as the caller promises.
        unsafe {
            std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize);
            std::ptr::copy(self.shadow_of(from), self.shadow_of(to), bytes as usize);
        }
    }

    /// Reads 1, 2, 4 or 8 bytes.
    ///
    /// # Safety
    ///
    /// They lie in an allocation, and the address is aligned.
    #[inline]
    pub(crate) unsafe fn read<const BYTES: u32>(&self, address: u64) -> u64 {
        // SAFETY: as the caller promises; other threads access this memory by atomics too.
        unsafe { read::<BYTES>(address as *mut u8) }
    }

    /// Writes 1, 2, 4 or 8 bytes.
    ///
    /// # Safety
    ///
    /// They lie in an allocation, and the address is aligned.
    #[inline]
    pub(crate) unsafe fn write<const BYTES: u32>(&self, address: u64, value: u64) {
        // SAFETY: as the caller promises; the shadow is as large and as aligned as the memory.
        unsafe {
            write::<BYTES>(address as *mut u8, value);
            write::<BYTES>(self.shadow_of(address), 0x0101_0101_0101_0101);
        }
    }

    /// Whether all of 1, 2, 4 or 8 bytes were written.
    ///
    /// # Safety
    ///
    /// They lie in an allocation, and the address is aligned.
    #[inline]
    pub(crate) unsafe fn is_written<const BYTES: u32>(&self, address: u64) -> bool {
        // SAFETY: as the caller promises.
        unsafe { read::<BYTES>(self.shadow_of(address)) == 0x0101_0101_0101_0101 >> (64 - 8 * BYTES) }
    }

    /// A word for atomic operations, which counts as written from now on.
    ///
    /// # Safety
    ///
    /// It lies in an allocation, and the address is aligned.
    pub(crate) unsafe fn atomic_32(&self, address: u64) -> &AtomicU32 {
        // SAFETY: as the caller promises.
        unsafe {
            write::<4>(self.shadow_of(address), 0x0101_0101);
            AtomicU32::from_ptr(address as *mut u32)
        }
    }

    /// As [`atomic_32`](Self::atomic_32), of 64 bits.
    ///
    /// # Safety
    ///
    /// It lies in an allocation, and the address is aligned.
    pub(crate) unsafe fn atomic_64(&self, address: u64) -> &AtomicU64 {
        // SAFETY: as the caller promises.
        unsafe {
            write::<8>(self.shadow_of(address), 0x0101_0101_0101_0101);
            AtomicU64::from_ptr(address as *mut u64)
        }
    }
}

#[inline]
unsafe fn read<const BYTES: u32>(at: *mut u8) -> u64 {
    // SAFETY: as the caller promises.
    unsafe {
        match BYTES {
            1 => AtomicU8::from_ptr(at).load(Ordering::Relaxed).into(),
            2 => AtomicU16::from_ptr(at.cast()).load(Ordering::Relaxed).into(),
            4 => AtomicU32::from_ptr(at.cast()).load(Ordering::Relaxed).into(),
            _ => AtomicU64::from_ptr(at.cast()).load(Ordering::Relaxed),
        }
    }
}

#[inline]
unsafe fn write<const BYTES: u32>(at: *mut u8, value: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        match BYTES {
            1 => AtomicU8::from_ptr(at).store(value as u8, Ordering::Relaxed),
            2 => AtomicU16::from_ptr(at.cast()).store(value as u16, Ordering::Relaxed),
            4 => AtomicU32::from_ptr(at.cast()).store(value as u32, Ordering::Relaxed),
            _ => AtomicU64::from_ptr(at.cast()).store(value, Ordering::Relaxed),
        }
    }
}
