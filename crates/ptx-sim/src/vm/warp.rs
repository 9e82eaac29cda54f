//! A warp: its registers, and where its lanes are.
//!
//! Lanes that are at the same instruction execute it together. Where they are apart, those at the lowest instruction go on, until
//! they reach others, with which they go on together: in code as compilers lay it out, that is where the branches meet again.
//! Lanes that must wait for others of a mask stay where they are while the others go on.

use crate::fault::FaultKind;

use super::{
    async_copy::Pending,
    registers::{Counts, Registers},
};

/// Lanes at one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    pc: u32,
    mask: u32,
    /// It waits for other lanes.
    waits: bool,
}

/// What a warp waits for at a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) id: u32,
    pub(crate) threads: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    pub(crate) index: u32,
    pub(crate) pc: u32,
    /// The lanes that are at `pc`.
    pub(crate) mask: u32,
    /// The lanes that there are.
    pub(crate) all: u32,
    pub(crate) exited: u32,
    /// Where the current lanes may reach others.
    limit: u32,
    parked: Vec<Group>,
    /// Whether lanes left or went on together since those that wait were last asked.
    moved: bool,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) executed: u64,
    /// Memory of each lane, one lane behind the other, and which bytes were written.
    pub(crate) local: Vec<u8>,
    pub(crate) local_written: Vec<bool>,
    pub(crate) pending: Pending,
}

impl Warp {
    pub(crate) fn new(index: u32, counts: Counts, local_bytes: u64) -> Self {
        Warp {
            registers: Registers::new(counts),
            index,
            pc: 0,
            mask: 0,
            all: 0,
            exited: 0,
            limit: u32::MAX,
            parked: Vec::new(),
            moved: false,
            waiting: None,
            executed: 0,
            local: vec![0; local_bytes as usize * 32],
            local_written: vec![false; local_bytes as usize * 32],
            pending: Pending::default(),
        }
    }

    /// At the first instruction of the next block, with as many lanes.
    pub(crate) fn restart(&mut self, lanes: u32) {
        self.all = if lanes >= 32 { u32::MAX } else { (1 << lanes) - 1 };
        (self.pc, self.mask, self.exited, self.limit) = (0, self.all, 0, u32::MAX);
        self.parked.clear();
        (self.moved, self.waiting, self.executed) = (false, None, 0);
        self.local_written.fill(false);
        self.pending.clear();
    }

    pub(crate) fn alive(&self) -> u32 {
        self.all & !self.exited
    }

    /// Whether the lanes at `pc` must be chosen anew.
    #[inline]
    pub(crate) fn must_choose(&self) -> bool {
        self.pc >= self.limit || self.mask == 0
    }

    /// Some of the current lanes jump, the others go on behind the branch.
    #[inline]
    pub(crate) fn branch(&mut self, target: u32, mask: u32) {
        let others = self.mask & !mask;
        if others == 0 {
            self.pc = target;
        } else if mask == 0 {
            self.pc += 1;
            return;
        } else {
            self.parked.push(Group { pc: self.pc + 1, mask: others, waits: false });
            (self.pc, self.mask) = (target, mask);
        }
        if !self.parked.is_empty() {
            self.limit = 0;
        }
    }

    /// Some of the current lanes jump, the others execute the same instruction again.
    pub(crate) fn split(&mut self, target: u32, mask: u32) {
        let others = self.mask & !mask;
        if others != 0 {
            self.parked.push(Group { pc: self.pc, mask: others, waits: false });
        }
        (self.pc, self.mask, self.limit) = (target, mask, 0);
    }

    /// Some of the current lanes stay for a while, to execute the same instruction by themselves.
    pub(crate) fn defer(&mut self, mask: u32) {
        if mask != 0 {
            self.parked.push(Group { pc: self.pc, mask, waits: false });
            self.mask &= !mask;
            self.limit = 0;
        }
    }

    /// Some of the current lanes end.
    pub(crate) fn exit(&mut self, mask: u32) {
        self.exited |= mask;
        self.mask &= !mask;
        self.moved = true;
        self.pc += 1;
    }

    /// Whether all `needed` lanes that have not ended are among `arrived`, which are of the current ones; else those wait here.
    ///
    /// # Errors
    ///
    /// A needed lane is here too, and its guard does not hold: it goes on without the others.
    pub(crate) fn meet(&mut self, arrived: u32, needed: u32) -> Result<bool, FaultKind> {
        let missing = needed & self.alive() & !arrived;
        if missing & self.mask != 0 {
            return Err(FaultKind::IncompleteMask { arrived, expected: needed });
        }
        if missing == 0 {
            self.moved = true;
            return Ok(true);
        }
        self.parked.push(Group { pc: self.pc, mask: arrived, waits: true });
        self.mask &= !arrived;
        self.pc += 1;
        self.limit = 0;
        Ok(false)
    }

    /// Chooses the lanes at the lowest instruction. False if all have ended; none if those that are left wait for each other.
    pub(crate) fn choose(&mut self) -> Option<bool> {
        if self.mask != 0 {
            self.parked.push(Group { pc: self.pc, mask: self.mask, waits: false });
        }
        if self.parked.is_empty() {
            return Some(false);
        }
        if self.lowest().is_none() {
            if !std::mem::take(&mut self.moved) {
                self.mask = 0;
                return None;
            }
            self.parked.iter_mut().for_each(|group| group.waits = false);
        }
        self.pc = self.lowest()?;
        self.mask = 0;
        let (pc, mask) = (self.pc, &mut self.mask);
        self.parked.retain(|group| {
            *mask |= if group.pc == pc { group.mask } else { 0 };
            group.pc != pc
        });
        self.limit =
            self.parked.iter().map(|group| group.pc).filter(|&other| other > pc).min().unwrap_or(u32::MAX);
        Some(true)
    }

    fn lowest(&self) -> Option<u32> {
        self.parked.iter().filter(|group| !group.waits).map(|group| group.pc).min()
    }

    /// The lanes that wait at the lowest instruction, and it, when [`choose`](Self::choose) finds that none can go on.
    pub(crate) fn stuck(&self) -> (u32, u32) {
        self.parked.iter().map(|group| (group.pc, group.mask)).min().unwrap_or((self.pc, 0))
    }
}
