//! Loads, stores and atomic operations of the lanes of a warp.

use std::sync::atomic::Ordering;

use super::{
    Ran,
    block::Block,
    lanes,
    registers::{Kind, Lanes},
    shared::Use,
    warp::Warp,
    window::{self, window},
};
use crate::{
    decode::{Address, Atomic, AtomicOp, Memory, Register},
    fault::{FaultKind, MemorySpace},
    ptx::Space,
};

/// Calls a function with the number of bytes as its constant.
macro_rules! of_bytes {
    ($bytes:expr, $function:ident, $($argument:expr),*) => {
        match $bytes {
            1 => $function::<1>($($argument),*),
            2 => $function::<2>($($argument),*),
            4 => $function::<4>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}

impl Block<'_> {
    pub(super) fn load(&mut self, warp: &mut Warp, memory: &Memory, mask: u32) -> Ran {
        let bytes = memory.bytes * memory.elements.len() as u32;
        let addresses = self.addresses(warp, &memory.address, mask)?;
        for (space, mask) in spaces(memory.address.space, &addresses, mask) {
            let at = within(space, &addresses);
            self.check(warp, space, &at, mask, bytes)?;
            self.count_access(warp.pc, space, &at, mask, bytes);
            self.note_blocks(space, &at, mask, bytes, false)?;
            self.note_read(warp, space, &at, mask, memory.bytes, memory.elements.len() as u32)?;
            for (index, element) in memory.elements.iter().enumerate() {
                let Some(register) = element else { continue };
                let offset = index as u64 * u64::from(memory.bytes);
                let mut values = of_bytes!(memory.bytes, values_at, self, warp, space, &at, offset, mask);
                if memory.signed {
                    let unused = 64 - 8 * memory.bytes;
                    values = values.map(|value| ((value << unused) as i64 >> unused) as u64);
                }
                warp.registers.set_bits(register.kind, register.slot, &values, mask);
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, memory: &Memory, mask: u32) -> Ran {
        let bytes = memory.bytes * memory.elements.len() as u32;
        let addresses = self.addresses(warp, &memory.address, mask)?;
        for (space, mask) in spaces(memory.address.space, &addresses, mask) {
            let at = within(space, &addresses);
            self.check(warp, space, &at, mask, bytes)?;
            self.check_writable(warp.pc, space, &at, mask, bytes)?;
            self.count_access(warp.pc, space, &at, mask, bytes);
            self.note_blocks(space, &at, mask, bytes, true)?;
            for (index, element) in memory.elements.iter().enumerate() {
                let Some(register) = element else { continue };
                let values = self.source(warp, *register, mask)?;
                let offset = index as u64 * u64::from(memory.bytes);
                of_bytes!(memory.bytes, store_at, self, warp, space, &at, offset, mask, &values)?;
            }
        }
        Ok(())
    }

    /// A register that must have been written, as bits.
    pub(super) fn source(&self, warp: &Warp, register: Register, mask: u32) -> Ran<Lanes<u64>> {
        let unknown = mask & !warp.registers.written(register.kind, register.slot);
        if unknown != 0 && self.launch.settings.checks.registers {
            return Err(FaultKind::UninitialisedRegister.of(unknown.trailing_zeros() as usize));
        }
        Ok(warp.registers.bits(register.kind, register.slot))
    }

    #[inline]
    pub(super) fn addresses(&self, warp: &Warp, address: &Address, mask: u32) -> Ran<Lanes<u64>> {
        let offset = address.offset as u64;
        match address.base {
            None => Ok([offset; 32]),
            Some(register) => Ok(self.source(warp, register, mask)?.map(|base| base.wrapping_add(offset))),
        }
    }

    /// Whether each lane's bytes are aligned and in bounds.
    #[inline]
    pub(super) fn check(&mut self, warp: &Warp, space: Space, at: &Lanes<u64>, mask: u32, bytes: u32) -> Ran {
        let (mut low, mut high, mut all) = (u64::MAX, 0, 0);
        for (lane, &address) in at.iter().enumerate() {
            if mask >> lane & 1 != 0 {
                (low, high, all) = (low.min(address), high.max(address), all | address);
            }
        }
        if all & u64::from(bytes - 1) != 0 {
            return Err(misaligned(space, at, mask, bytes));
        }
        let end = high.saturating_add(bytes.into());
        let limit = match space {
            Space::Shared => self.shared.len(),
            Space::Local => self.kernel().local_bytes,
            Space::Param => self.launch.parameters.len() as u64,
            _ => {
                let recent = self.recent[warp.pc as usize];
                return match low >= recent.0 && end <= recent.1 {
                    true => Ok(()),
                    false => self.check_global(warp.pc, at, mask, bytes),
                };
            }
        };
        if end <= limit {
            return Ok(());
        }
        let lane = lanes(mask).find(|&lane| at[lane].saturating_add(bytes.into()) > limit).unwrap_or(0);
        let near = format!("; there are {limit:#x}");
        Err(FaultKind::OutOfBounds { space: name(space), address: at[lane], bytes, near }.of(lane))
    }

    #[cold]
    fn check_global(&mut self, pc: u32, at: &Lanes<u64>, mask: u32, bytes: u32) -> Ran {
        for lane in lanes(mask) {
            match self.launch.arena.find(at[lane], bytes.into()) {
                Some(allocation) => self.recent[pc as usize] = (allocation.start, allocation.end()),
                None => return Err(self.launch.arena.explain(at[lane], bytes).of(lane)),
            }
        }
        Ok(())
    }

    /// Constants and parameters are not written.
    fn check_writable(&self, pc: u32, space: Space, at: &Lanes<u64>, mask: u32, bytes: u32) -> Ran {
        let lane = mask.trailing_zeros() as usize;
        let fault = FaultKind::ReadOnly { space: name(space), address: at[lane], bytes };
        match space {
            Space::Param | Space::Const => Err(fault.of(lane)),
            Space::Global => {
                let (start, end) = self.recent[pc as usize];
                match self.launch.arena.find(start, end - start) {
                    Some(allocation) if allocation.read_only => Err(fault.of(lane)),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Notes what is read, byte for byte where that is checked.
    fn note_read(
        &mut self,
        warp: &Warp,
        space: Space,
        at: &Lanes<u64>,
        mask: u32,
        bytes: u32,
        count: u32,
    ) -> Ran {
        let total = bytes * count;
        match space {
            Space::Shared => {
                for lane in lanes(mask) {
                    let thread = warp.index * 32 + lane as u32;
                    self.shared
                        .note(at[lane], total, thread, Use::Read, false)
                        .map_err(|kind| kind.of(lane))?;
                }
            }
            Space::Local => {
                for lane in lanes(mask) {
                    let start = self.local_index(lane, at[lane]);
                    if !warp.local_written[start..start + total as usize].iter().all(|&written| written) {
                        return Err(FaultKind::Uninitialised {
                            space: MemorySpace::Local,
                            address: at[lane],
                            bytes: total,
                        }
                        .of(lane));
                    }
                }
            }
            Space::Param => {}
            _ => {
                if self.launch.settings.checks.global {
                    self.note_global_read(at, mask, bytes, count)?;
                }
            }
        }
        Ok(())
    }

    /// Notes which block used global memory, where that is checked.
    pub(super) fn note_blocks(
        &self,
        space: Space,
        at: &Lanes<u64>,
        mask: u32,
        bytes: u32,
        writes: bool,
    ) -> Ran {
        if !self.launch.settings.checks.blocks || !matches!(space, Space::Global | Space::Generic) {
            return Ok(());
        }
        let Some(races) = self.launch.arena.races() else { return Ok(()) };
        for lane in lanes(mask) {
            races
                .note(at[lane], bytes, self.launch.number, self.number, writes)
                .map_err(|kind| kind.of(lane))?;
        }
        Ok(())
    }

    fn note_global_read(&self, at: &Lanes<u64>, mask: u32, bytes: u32, count: u32) -> Ran {
        for index in 0..count {
            let offset = u64::from(index * bytes);
            let unwritten = of_bytes!(bytes, unwritten, self, at, offset, mask);
            if unwritten != 0 {
                let lane = unwritten.trailing_zeros() as usize;
                let address = at[lane] + offset;
                return Err(FaultKind::Uninitialised { space: MemorySpace::Global, address, bytes }.of(lane));
            }
        }
        Ok(())
    }

    fn local_index(&self, lane: usize, at: u64) -> usize {
        lane * self.kernel().local_bytes as usize + at as usize
    }

    pub(super) fn atomic(&mut self, warp: &mut Warp, atomic: &Atomic, mask: u32) -> Ran {
        let bytes = if atomic.kind == Kind::Wide { 8 } else { 4 };
        let addresses = self.addresses(warp, &atomic.address, mask)?;
        let operand = |slot| self.source(warp, Register { kind: atomic.kind, slot }, mask);
        let a = operand(atomic.a)?;
        let b = atomic.b.map(operand).transpose()?.unwrap_or([0; 32]);
        let mut before = [0; 32];
        for (space, mask) in spaces(atomic.address.space, &addresses, mask) {
            let at = within(space, &addresses);
            self.check(warp, space, &at, mask, bytes)?;
            self.check_writable(warp.pc, space, &at, mask, bytes)?;
            for lane in lanes(mask) {
                before[lane] = match space {
                    Space::Shared => self.atomic_shared(warp, atomic, at[lane], lane, [a[lane], b[lane]])?,
                    Space::Local => return Err(misaligned(space, &at, mask, bytes)),
                    _ => self.atomic_global(atomic, at[lane], lane, [a[lane], b[lane]])?,
                };
            }
        }
        if let Some(slot) = atomic.result {
            warp.registers.set_bits(atomic.kind, slot, &before, mask);
        }
        Ok(())
    }

    fn atomic_shared(
        &mut self,
        warp: &Warp,
        atomic: &Atomic,
        at: u64,
        lane: usize,
        [a, b]: [u64; 2],
    ) -> Ran<u64> {
        let bytes = if atomic.kind == Kind::Wide { 8 } else { 4 };
        let thread = warp.index * 32 + lane as u32;
        self.shared.note(at, bytes, thread, Use::Atomic, false).map_err(|kind| kind.of(lane))?;
        if bytes == 8 {
            let before = self.shared.read::<8>(at);
            self.shared.write::<8>(at, apply_64(atomic, before, a, b));
            return Ok(before);
        }
        let before = self.shared.read::<4>(at);
        self.shared
            .write::<4>(at, apply_32(atomic.op, atomic.signed, before as u32, a as u32, b as u32).into());
        Ok(before)
    }

    fn atomic_global(&self, atomic: &Atomic, at: u64, lane: usize, [a, b]: [u64; 2]) -> Ran<u64> {
        let arena = self.launch.arena;
        let bytes = if atomic.kind == Kind::Wide { 8 } else { 4 };
        if self.launch.settings.checks.global {
            let mut only = [0; 32];
            only[lane] = at;
            self.note_global_read(&only, 1 << lane, bytes, 1)?;
        }
        let order = Ordering::Relaxed;
        // SAFETY: the address was checked to lie in an allocation and to be aligned.
        unsafe {
            if bytes == 8 {
                let word = arena.atomic_64(at);
                return Ok(word
                    .fetch_update(order, order, |before| Some(apply_64(atomic, before, a, b)))
                    .unwrap_or(0));
            }
            let next = |before| Some(apply_32(atomic.op, atomic.signed, before, a as u32, b as u32));
            Ok(arena.atomic_32(at).fetch_update(order, order, next).unwrap_or(0).into())
        }
    }
}

/// What an atomic operation puts in the place of `before`.
pub(super) fn apply_32(op: AtomicOp, signed: bool, before: u32, a: u32, b: u32) -> u32 {
    match op {
        AtomicOp::Add => before.wrapping_add(a),
        AtomicOp::Min if signed => (before as i32).min(a as i32) as u32,
        AtomicOp::Max if signed => (before as i32).max(a as i32) as u32,
        AtomicOp::Min => before.min(a),
        AtomicOp::Max => before.max(a),
        AtomicOp::And => before & a,
        AtomicOp::Or => before | a,
        AtomicOp::Xor => before ^ a,
        AtomicOp::Exchange => a,
        AtomicOp::CompareAndSwap => {
            if before == a {
                b
            } else {
                before
            }
        }
        AtomicOp::Increment => {
            if before >= a {
                0
            } else {
                before + 1
            }
        }
        AtomicOp::Decrement => {
            if before == 0 || before > a {
                a
            } else {
                before - 1
            }
        }
    }
}

fn apply_64(atomic: &Atomic, before: u64, a: u64, b: u64) -> u64 {
    match atomic.op {
        AtomicOp::Add => before.wrapping_add(a),
        AtomicOp::Min if atomic.signed => (before as i64).min(a as i64) as u64,
        AtomicOp::Max if atomic.signed => (before as i64).max(a as i64) as u64,
        AtomicOp::Min => before.min(a),
        AtomicOp::Max => before.max(a),
        AtomicOp::And => before & a,
        AtomicOp::Or => before | a,
        AtomicOp::Xor => before ^ a,
        AtomicOp::CompareAndSwap if before == a => b,
        AtomicOp::CompareAndSwap => before,
        // Increment and decrement are of 32 bits.
        AtomicOp::Exchange | AtomicOp::Increment | AtomicOp::Decrement => a,
    }
}

/// What each lane of a mask reads; addresses were checked.
#[inline]
fn values_at<const BYTES: u32>(
    block: &Block<'_>,
    warp: &Warp,
    space: Space,
    at: &Lanes<u64>,
    offset: u64,
    mask: u32,
) -> Lanes<u64> {
    let mut values = [0; 32];
    let read_slice = |slice: &[u8], start: usize| {
        let mut value = [0; 8];
        value[..BYTES as usize].copy_from_slice(&slice[start..start + BYTES as usize]);
        u64::from_le_bytes(value)
    };
    for lane in lanes(mask) {
        let address = at[lane] + offset;
        values[lane] = match space {
            Space::Shared => read_slice(block.shared.slice(address, BYTES), 0),
            Space::Local => read_slice(&warp.local, block.local_index(lane, address)),
            Space::Param => read_slice(block.launch.parameters, address as usize),
            // SAFETY: the address was checked to lie in an allocation and to be aligned.
            _ => unsafe { block.launch.arena.read::<BYTES>(address) },
        };
    }
    values
}

/// Writes what each lane of a mask stores; addresses were checked.
#[inline]
fn store_at<const BYTES: u32>(
    block: &mut Block<'_>,
    warp: &mut Warp,
    space: Space,
    at: &Lanes<u64>,
    offset: u64,
    mask: u32,
    values: &Lanes<u64>,
) -> Ran {
    let size = BYTES as usize;
    for lane in lanes(mask) {
        let (address, bytes) = (at[lane] + offset, values[lane].to_le_bytes());
        match space {
            Space::Shared => {
                let thread = warp.index * 32 + lane as u32;
                let same = block.shared.slice(address, BYTES) == &bytes[..size];
                block.shared.note(address, BYTES, thread, Use::Write, same).map_err(|kind| kind.of(lane))?;
                block.shared.slice_mut(address, BYTES).copy_from_slice(&bytes[..size]);
            }
            Space::Local => {
                let start = block.local_index(lane, address);
                warp.local[start..start + size].copy_from_slice(&bytes[..size]);
                warp.local_written[start..start + size].fill(true);
            }
            // SAFETY: the address was checked to lie in an allocation and to be aligned.
            _ => unsafe { block.launch.arena.write::<BYTES>(address, values[lane]) },
        }
    }
    Ok(())
}

/// The lanes of a mask whose bytes nobody wrote; addresses were checked.
#[inline]
fn unwritten<const BYTES: u32>(block: &Block<'_>, at: &Lanes<u64>, offset: u64, mask: u32) -> u32 {
    let mut unwritten = 0;
    for lane in lanes(mask) {
        // SAFETY: the address was checked to lie in an allocation and to be aligned.
        let written = unsafe { block.launch.arena.is_written::<BYTES>(at[lane] + offset) };
        unwritten |= u32::from(!written) << lane;
    }
    unwritten
}

/// The lanes of a mask by the space that their addresses are in.
fn spaces(space: Space, addresses: &Lanes<u64>, mask: u32) -> impl Iterator<Item = (Space, u32)> {
    let all = match space {
        Space::Generic => [
            (Space::Global, of_window(addresses, mask, 0)),
            (Space::Shared, of_window(addresses, mask, window::SHARED)),
            (Space::Local, of_window(addresses, mask, window::LOCAL)),
            (Space::Param, of_window(addresses, mask, window::PARAM)),
        ],
        known => [(known, mask), (known, 0), (known, 0), (known, 0)],
    };
    all.into_iter().filter(|(_, mask)| *mask != 0)
}

fn of_window(addresses: &Lanes<u64>, mask: u32, base: u64) -> u32 {
    lanes(mask)
        .filter(|&lane| window(addresses[lane]).min(window::PARAM) == base)
        .fold(0, |mask, lane| mask | 1 << lane)
}

/// Addresses in their space. Those of shared, local and parameter memory may be generic ones.
#[inline]
fn within(space: Space, addresses: &Lanes<u64>) -> Lanes<u64> {
    let base = match space {
        Space::Shared => window::SHARED,
        Space::Local => window::LOCAL,
        Space::Param => window::PARAM,
        _ => return *addresses,
    };
    addresses.map(|address| if window(address) == base { address - base } else { address })
}

fn name(space: Space) -> MemorySpace {
    match space {
        Space::Shared => MemorySpace::Shared,
        Space::Local => MemorySpace::Local,
        Space::Param => MemorySpace::Param,
        _ => MemorySpace::Global,
    }
}

fn misaligned(space: Space, at: &Lanes<u64>, mask: u32, bytes: u32) -> super::Trouble {
    let lane = lanes(mask).find(|&lane| at[lane] & u64::from(bytes - 1) != 0).unwrap_or(0);
    FaultKind::Misaligned { space: name(space), address: at[lane], bytes }.of(lane)
}
