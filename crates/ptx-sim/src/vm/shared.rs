//! Shared memory of a block, with who wrote and read each byte, and when.
//!
//! A warp has a time, which goes on where it is ordered with others: at a barrier of the block and at `bar.warp.sync`. A warp knows
//! up to which time of every other warp it is ordered behind it, and from which time on its own lanes are ordered.
//! Two accesses to a byte, of which one writes, race if the later one is not ordered behind the earlier one. Of the readers of a byte
//! the last is kept, the last of another lane and the last of another warp, so that a race is missed if only another one of the readers
//! is not ordered.

use crate::{
    fault::{FaultKind, MemorySpace},
    settings::Checks,
};

/// Who accessed a byte: the time above, whether it was an atomic operation, and ten bits of the thread below. 0 is nobody.
type Record = u32;

const ATOMIC: u32 = 1 << 10;
const TIME_SHIFT: u32 = 11;
/// A warp's time ends here, and with it the checks of its accesses.
const TIME_MAX: u32 = u32::MAX >> TIME_SHIFT;

fn time(record: Record) -> u32 {
    record >> TIME_SHIFT
}

fn thread(record: Record) -> u32 {
    record & (ATOMIC - 1)
}

fn warp(record: Record) -> usize {
    (thread(record) / 32) as usize
}

/// The bytes of a word have shadows of their own.
const SPLIT: u8 = 1;
/// The word waits for an asynchronous copy.
const PENDING: u8 = 2;

/// Of a byte, or of four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shadow {
    writer: Record,
    /// The last, the last of another lane of its warp, and the last of another warp.
    readers: [Record; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
    /// It orders itself with other atomic accesses.
    Atomic,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Use::Read => "a read",
            Use::Write => "a write",
            Use::Atomic => "an atomic access",
        }
    }
}

#[derive(Debug)]
struct Clock {
    /// Of this warp.
    now: u32,
    /// Up to which time of each warp this one is ordered behind it.
    known: Vec<u32>,
    /// Since when all lanes are ordered.
    lanes: u32,
    /// Since when two lanes are ordered, by `bar.warp.sync` of some lanes.
    pairs: Option<Box<[[u32; 32]; 32]>>,
}

/// What orders the accesses of a block.
#[derive(Debug)]
struct Clocks {
    warps: Vec<Clock>,
    /// The time at which the block began.
    began: u32,
}

#[derive(Debug)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    /// Of each four bytes together, unless they are split.
    words: Vec<Shadow>,
    /// Of each byte, where four are split; empty until one is.
    split: Vec<Shadow>,
    /// [`SPLIT`] and [`PENDING`] for each four bytes.
    flags: Vec<u8>,
    flagged: bool,
    clocks: Clocks,
    checked: bool,
}

impl Shared {
    pub(crate) fn new(bytes: u64, warps: usize, checks: Checks) -> Self {
        let bytes = bytes as usize;
        let words = bytes.div_ceil(4);
        let clock = |_| Clock { now: 1, known: vec![0; warps], lanes: 0, pairs: None };
        Shared {
            bytes: vec![0; bytes],
            words: vec![Shadow::default(); if checks.shared { words } else { 0 }],
            split: Vec::new(),
            flags: vec![0; words],
            flagged: false,
            clocks: Clocks { warps: (0..warps).map(clock).collect(), began: 1 },
            checked: checks.shared,
        }
    }

    /// The memory of the next block.
    pub(crate) fn restart(&mut self) {
        let latest = self.clocks.warps.iter().map(|clock| clock.now).max().unwrap_or(0);
        self.clocks.began = latest + 1;
        if self.clocks.began > TIME_MAX / 2 {
            self.clocks.began = 1;
            self.words.fill(Shadow::default());
        }
        for clock in &mut self.clocks.warps {
            clock.now = self.clocks.began;
            clock.known.fill(0);
            (clock.lanes, clock.pairs) = (0, None);
        }
        if std::mem::take(&mut self.flagged) {
            self.flags.fill(0);
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Reads 1, 2, 4 or 8 bytes, which lie in the memory.
    #[inline]
    pub(crate) fn read<const BYTES: usize>(&self, at: u64) -> u64 {
        let mut value = [0; 8];
        value[..BYTES].copy_from_slice(&self.bytes[at as usize..at as usize + BYTES]);
        u64::from_le_bytes(value)
    }

    /// Writes 1, 2, 4 or 8 bytes, which lie in the memory.
    #[inline]
    pub(crate) fn write<const BYTES: usize>(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..at as usize + BYTES].copy_from_slice(&value.to_le_bytes()[..BYTES]);
    }

    pub(crate) fn slice_mut(&mut self, at: u64, bytes: u32) -> &mut [u8] {
        &mut self.bytes[at as usize..at as usize + bytes as usize]
    }

    pub(crate) fn slice(&self, at: u64, bytes: u32) -> &[u8] {
        &self.bytes[at as usize..at as usize + bytes as usize]
    }

    /// Notes an access of a thread to bytes that lie in the memory. `same` says that a write changes nothing, so that lanes that
    /// write the same value by one instruction do not race.
    pub(crate) fn note(
        &mut self,
        at: u64,
        bytes: u32,
        thread: u32,
        way: Use,
        same: bool,
    ) -> Result<(), FaultKind> {
        let words = at as usize / 4..(at + u64::from(bytes)).div_ceil(4) as usize;
        let flags = match self.flagged {
            true => self.flags[words.clone()].iter().fold(0, |all, flags| all | flags),
            false => 0,
        };
        if flags & PENDING != 0 {
            return Err(FaultKind::PendingCopy { address: at });
        }
        if !self.checked {
            return Ok(());
        }
        let atomic = if way == Use::Atomic { ATOMIC } else { 0 };
        let mine = self.clocks.warps[(thread / 32) as usize].now << TIME_SHIFT | atomic | thread;
        let done = match flags & SPLIT == 0 && (at | u64::from(bytes)).is_multiple_of(4) {
            true => self.words[words].iter_mut().try_for_each(|word| {
                *word = self.clocks.next(*word, mine, way, same)?;
                Ok(())
            }),
            false => self.note_bytes(at, bytes, mine, way, same),
        };
        done.map_err(|(earlier, record)| fault(at, bytes, way, earlier, record))
    }

    /// Where not all four bytes of a word are accessed, or were before.
    fn note_bytes(
        &mut self,
        at: u64,
        bytes: u32,
        mine: Record,
        way: Use,
        same: bool,
    ) -> Result<(), (Use, Record)> {
        self.flagged = true;
        self.split.resize(self.flags.len() * 4, Shadow::default());
        let end = at + u64::from(bytes);
        for word in at as usize / 4..end.div_ceil(4) as usize {
            let four = 4 * word..4 * word + 4;
            if self.flags[word] & SPLIT == 0 {
                self.flags[word] |= SPLIT;
                self.split[four.clone()].fill(self.words[word]);
            }
            let accessed = four.start.max(at as usize)..four.end.min(end as usize);
            for shadow in &mut self.split[accessed.clone()] {
                *shadow = self.clocks.next(*shadow, mine, way, same)?;
            }
            if accessed == four && way != Use::Read {
                self.flags[word] &= !SPLIT;
                self.words[word] = self.split[word * 4];
            }
        }
        Ok(())
    }

    /// `bar.warp.sync`: `mask` of the lanes that are `alive`.
    pub(crate) fn sync_lanes(&mut self, warp: u32, mask: u32, alive: u32) {
        let clock = &mut self.clocks.warps[warp as usize];
        clock.now = (clock.now + 1).min(TIME_MAX);
        if mask & alive == alive {
            clock.lanes = clock.now;
            return;
        }
        let pairs = clock.pairs.get_or_insert_with(|| Box::new([[0; 32]; 32]));
        for a in super::lanes(mask) {
            for b in super::lanes(mask) {
                pairs[a][b] = clock.now;
            }
        }
    }

    /// What a warp brings to a barrier: all that it is ordered behind, itself included.
    pub(crate) fn arrive(&mut self, warp: u32, joined: &mut [u32]) {
        let clock = &mut self.clocks.warps[warp as usize];
        clock.known[warp as usize] = clock.now;
        clock.now = (clock.now + 1).min(TIME_MAX);
        clock.lanes = clock.now;
        for (joined, &known) in joined.iter_mut().zip(&clock.known) {
            *joined = (*joined).max(known);
        }
    }

    /// What a warp takes from a barrier.
    pub(crate) fn leave(&mut self, warp: u32, joined: &[u32]) {
        let clock = &mut self.clocks.warps[warp as usize];
        for (known, &joined) in clock.known.iter_mut().zip(joined) {
            *known = (*known).max(joined);
        }
    }

    /// Words that an asynchronous copy will write.
    pub(crate) fn expect(&mut self, at: u64, bytes: u32) {
        self.flagged = true;
        self.flags[at as usize / 4..(at + u64::from(bytes)) as usize / 4]
            .iter_mut()
            .for_each(|flags| *flags |= PENDING);
    }

    /// The copy came.
    pub(crate) fn came(&mut self, at: u64, bytes: u32) {
        self.flags[at as usize / 4..(at + u64::from(bytes)) as usize / 4]
            .iter_mut()
            .for_each(|flags| *flags &= !PENDING);
    }
}

fn fault(at: u64, bytes: u32, way: Use, earlier: Use, record: Record) -> FaultKind {
    match record {
        0 => FaultKind::Uninitialised { space: MemorySpace::Shared, address: at, bytes },
        _ => FaultKind::SharedRace {
            address: at,
            access: way.name(),
            earlier: earlier.name(),
            other: thread(record),
        },
    }
}

impl Clocks {
    /// What is known of a byte after an access; the earlier access that it races with, or a record of 0 if it reads what nobody wrote.
    #[inline]
    fn next(&self, shadow: Shadow, mine: Record, way: Use, same: bool) -> Result<Shadow, (Use, Record)> {
        let Shadow { writer, readers } = shadow;
        let [last, other_lane, other_warp] = readers;
        let written = time(writer) >= self.began;
        if way != Use::Write && !written {
            return Err((Use::Write, 0));
        }
        let both_atomic = mine & writer & ATOMIC != 0;
        let together = same && way == Use::Write && time(writer) == time(mine) && warp(writer) == warp(mine);
        if written && !both_atomic && !together && !self.ordered(writer, mine) {
            return Err((if writer & ATOMIC != 0 { Use::Atomic } else { Use::Write }, writer));
        }
        if way == Use::Read {
            let readers = match last {
                _ if thread(last) == thread(mine) => [mine, other_lane, other_warp],
                _ if warp(last) == warp(mine) => [mine, last, other_warp],
                _ => [mine, 0, last],
            };
            return Ok(Shadow { writer, readers });
        }
        let races = |reader: &&Record| time(**reader) >= self.began && !self.ordered(**reader, mine);
        match readers.iter().find(races) {
            Some(&reader) => Err((Use::Read, reader)),
            // Whoever is ordered behind this write is so behind those before it.
            None => Ok(Shadow { writer: mine, readers: [0; 3] }),
        }
    }

    /// Whether an access of this block is ordered before another.
    #[inline]
    fn ordered(&self, earlier: Record, later: Record) -> bool {
        if thread(earlier) == thread(later) {
            return true;
        }
        let clock = &self.warps[warp(later)];
        if warp(earlier) != warp(later) {
            return clock.known[warp(earlier)] >= time(earlier);
        }
        time(earlier) < clock.lanes
            || clock.now == TIME_MAX
            || clock.pairs.as_ref().is_some_and(|pairs| {
                time(earlier) < pairs[(thread(earlier) % 32) as usize][(thread(later) % 32) as usize]
            })
    }
}
