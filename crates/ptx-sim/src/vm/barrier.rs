//! Barriers of a block.

use super::{
    Ran,
    block::Block,
    lanes,
    warp::{Waiting, Warp},
};
use crate::{
    decode::{Barrier, BarrierAct},
    fault::FaultKind,
};

/// One of the 16 barriers of a block.
#[derive(Debug, Clone, Default)]
pub(super) struct BarrierState {
    /// Warps that arrived without waiting.
    pub(super) arrivals: u32,
    /// What those that arrived are ordered behind.
    pub(super) joined: Vec<u32>,
    /// The instruction at which the first one waits.
    pub(super) pc: Option<u32>,
    /// Over the threads that arrived: how many hold, and whether all do.
    pub(super) count: u32,
    pub(super) all: bool,
}

impl BarrierState {
    pub(super) fn clear(&mut self, warps: usize) {
        let mut joined = std::mem::take(&mut self.joined);
        joined.clear();
        joined.resize(warps, 0);
        *self = BarrierState { joined, all: true, ..BarrierState::default() };
    }
}

impl Block<'_> {
    /// Whether the warp waits from now on.
    pub(super) fn barrier(&mut self, warp: &mut Warp, barrier: &Barrier, mask: u32) -> Ran<bool> {
        let divergent = FaultKind::DivergentBarrier { arrived: mask, expected: warp.alive() };
        if !warp.meet(mask, warp.alive()).map_err(|_| divergent)? {
            return Ok(false);
        }
        let lane = mask.trailing_zeros() as usize;
        let id = warp.registers.narrow(barrier.id)[lane];
        let threads = barrier.threads.map(|slot| warp.registers.narrow(slot)[lane]);
        let possible = threads.is_none_or(|threads| {
            threads > 0 && threads % 32 == 0 && threads <= self.threads().next_multiple_of(32)
        });
        if id >= 16 || !possible {
            return Err(FaultKind::WrongBarrier { id, threads: threads.unwrap_or(0) }.of(lane));
        }
        let state = &mut self.barriers[id as usize];
        self.shared.arrive(warp.index, &mut state.joined);
        let source = match barrier.act {
            BarrierAct::Arrive => {
                state.arrivals += 1;
                warp.pc += 1;
                return Ok(false);
            }
            BarrierAct::Sync => 0,
            BarrierAct::Count { source, .. }
            | BarrierAct::All { source, .. }
            | BarrierAct::Any { source, .. } => warp.registers.pred(source) & mask,
        };
        // Where all threads of the block are meant, they are at the same instruction, or the text has no such barrier.
        if threads.is_none() && *state.pc.get_or_insert(warp.pc) != warp.pc {
            return Err(FaultKind::DivergentBarrier { arrived: mask, expected: warp.alive() }.of(lane));
        }
        state.count += source.count_ones();
        state.all &= source == mask;
        warp.waiting = Some(Waiting { id, threads });
        Ok(true)
    }

    /// Whether the barrier has all that it waits for: as many warps as the threads are, or all that have not ended.
    pub(super) fn complete(&self, id: u32, waiting: usize, threads: Option<u32>, alive: usize) -> bool {
        let arrivals = self.barriers[id as usize].arrivals;
        match threads {
            Some(threads) => (waiting as u32 + arrivals) * 32 >= threads,
            None => waiting == alive,
        }
    }

    /// Gives the result of a barrier to a warp that waited, which goes on.
    pub(super) fn pass(&mut self, warp: &mut Warp, id: u32) {
        let state = &self.barriers[id as usize];
        self.shared.leave(warp.index, &state.joined);
        let step = &self.kernel().steps[warp.pc as usize];
        if let crate::decode::Inst::Barrier(barrier) = &step.inst {
            let mask = warp.mask;
            match barrier.act {
                BarrierAct::Count { result, .. } => {
                    warp.registers.set_narrow(result, &[state.count; 32], mask)
                }
                BarrierAct::All { result, .. } => {
                    warp.registers.set_pred(result, if state.all { !0 } else { 0 }, mask)
                }
                BarrierAct::Any { result, .. } => {
                    warp.registers.set_pred(result, if state.count > 0 { !0 } else { 0 }, mask);
                }
                BarrierAct::Sync | BarrierAct::Arrive => {}
            }
        }
        warp.waiting = None;
        warp.pc += 1;
    }

    /// `bar.warp.sync`.
    pub(super) fn sync_warp(&mut self, warp: &mut Warp, slot: u32, mask: u32) -> Ran {
        if let Some(mask) = convene(warp, slot, mask)? {
            self.shared.sync_lanes(warp.index, mask, warp.alive());
            warp.pc += 1;
        }
        Ok(())
    }
}

/// The lanes that execute an instruction together: those that give the same mask as the first one, if all of the mask are there; else
/// they wait. Lanes that give another mask have their turn later.
pub(super) fn convene(warp: &mut Warp, slot: u32, mask: u32) -> Ran<Option<u32>> {
    let values = *warp.registers.narrow(slot);
    let first = mask.trailing_zeros() as usize % 32;
    let named = values[first];
    let together =
        lanes(mask).filter(|&lane| values[lane] == named).fold(0, |together, lane| together | 1 << lane);
    if together & !named != 0 {
        let lane = (together & !named).trailing_zeros() as usize;
        return Err(FaultKind::WrongMask { mask: named }.of(lane));
    }
    warp.defer(mask & !together);
    Ok(warp.meet(together, named)?.then_some(together))
}
