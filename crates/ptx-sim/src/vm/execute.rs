//! The steps of a warp, up to where it must wait.

use super::{Ran, block::Block, lanes, registers::Kind, warp::Warp};
use crate::{
    decode::{Guard, Inst, Register},
    fault::FaultKind,
};

/// After as many instructions another warp has its turn, in case this one waits for it.
const TURN: u64 = 1 << 20;

impl Block<'_> {
    /// Runs a warp until it waits at a barrier, ends, or had its turn.
    pub(super) fn turn(&mut self, warp: &mut Warp) -> Ran {
        let kernel = self.kernel();
        let checks = self.launch.settings.checks;
        let until = warp.executed + TURN;
        while warp.executed < until {
            if warp.must_choose() {
                match warp.choose() {
                    Some(true) => {}
                    Some(false) => return Ok(()),
                    None => return Err(self.stuck(warp)),
                }
            }
            let step = &kernel.steps[warp.pc as usize];
            let mask = match step.guard {
                Guard::Always => warp.mask,
                Guard::If(slot) => guarded(warp, slot, warp.registers.pred(slot))?,
                Guard::Unless(slot) => guarded(warp, slot, !warp.registers.pred(slot))?,
            };
            warp.executed += 1;
            self.count_lanes(warp.pc, mask);
            match &step.inst {
                Inst::Compute { run, slots } => {
                    if mask != 0 && !run(&mut warp.registers, slots, mask) && checks.registers {
                        return Err(FaultKind::UninitialisedRegister.into());
                    }
                    warp.pc += 1;
                }
                Inst::Branch(target) => warp.branch(*target, mask),
                _ if mask == 0 => warp.pc += 1,
                Inst::Barrier(barrier) => {
                    if self.barrier(warp, barrier, mask)? {
                        return Ok(());
                    }
                }
                Inst::Load(memory) => {
                    self.load(warp, memory, mask)?;
                    warp.pc += 1;
                }
                Inst::Store(memory) => {
                    self.store(warp, memory, mask)?;
                    warp.pc += 1;
                }
                inst => self.rare(warp, inst, mask)?,
            }
        }
        match warp.executed > self.launch.settings.instruction_limit {
            true => Err(FaultKind::InstructionLimit { limit: self.launch.settings.instruction_limit }.into()),
            false => Ok(()),
        }
    }

    /// What does not happen at every other step.
    fn rare(&mut self, warp: &mut Warp, inst: &Inst, mask: u32) -> Ran {
        match inst {
            Inst::Exit => {
                warp.exit(mask);
                return Ok(());
            }
            Inst::BranchIndexed { index, targets } => return branch_indexed(warp, *index, targets, mask),
            Inst::WarpSync { mask: named } => return self.sync_warp(warp, *named, mask),
            Inst::Shuffle(shuffle) => return self.shuffle(warp, shuffle, mask),
            Inst::Vote(vote) => return self.vote(warp, vote, mask),
            Inst::Match(matched) => return self.matched(warp, matched, mask),
            Inst::Reduce(reduce) => return self.reduce(warp, reduce, mask),
            Inst::Trap => return Err(FaultKind::Trap.of(mask.trailing_zeros() as usize)),
            Inst::Clock(Register { kind, slot }) => {
                let clock = warp.executed;
                warp.registers.set_bits(*kind, *slot, &[clock; 32], mask);
            }
            Inst::ActiveMask(slot) => {
                warp.registers.set_narrow(*slot, &[mask; 32], mask);
            }
            Inst::Atomic(atomic) => self.atomic(warp, atomic, mask)?,
            Inst::AsyncCopy(copy) => self.async_copy(warp, copy, mask)?,
            Inst::AsyncCommit => warp.pending.commit(mask),
            Inst::AsyncWait(groups) => self.async_wait(warp, Some(*groups), mask)?,
            Inst::AsyncWaitAll => self.async_wait(warp, None, mask)?,
            Inst::LoadMatrix(matrix) => return self.load_matrix(warp, matrix, mask),
            Inst::Multiply(multiply) => return self.multiply(warp, multiply, mask),
            _ => {}
        }
        warp.pc += 1;
        Ok(())
    }

    /// Lanes that wait for others which never come.
    fn stuck(&self, warp: &mut Warp) -> super::Trouble {
        let (pc, arrived) = warp.stuck();
        warp.pc = pc;
        let lane = arrived.trailing_zeros() as usize;
        let named = |slot: u32| warp.registers.narrow(slot)[lane];
        let expected = match &self.kernel().steps[pc as usize].inst {
            Inst::Barrier(_) => {
                return FaultKind::DivergentBarrier { arrived, expected: warp.alive() }.of(lane);
            }
            Inst::WarpSync { mask } => named(*mask),
            Inst::Shuffle(shuffle) => named(shuffle.mask),
            Inst::Vote(vote) => named(vote.mask),
            Inst::Match(matched) => named(matched.mask),
            Inst::Reduce(reduce) => named(reduce.mask),
            _ => warp.alive(),
        };
        FaultKind::IncompleteMask { arrived, expected }.of(lane)
    }
}

/// The current lanes in which a guard holds.
#[inline]
fn guarded(warp: &Warp, slot: u32, holds: u32) -> Ran<u32> {
    let unknown = warp.mask & !warp.registers.written(Kind::Pred, slot);
    match unknown {
        0 => Ok(warp.mask & holds),
        _ => Err(FaultKind::UninitialisedRegister.of(unknown.trailing_zeros() as usize)),
    }
}

fn branch_indexed(warp: &mut Warp, index: u32, targets: &[u32], mask: u32) -> Ran {
    let indices = *warp.registers.narrow(index);
    let first = mask.trailing_zeros() as usize;
    let Some(&target) = targets.get(indices[first] as usize) else {
        return Err(FaultKind::WrongTarget { index: indices[first], targets: targets.len() as u32 }.of(first));
    };
    let same =
        lanes(mask).filter(|&lane| indices[lane] == indices[first]).fold(0, |same, lane| same | 1 << lane);
    // The other lanes come here again.
    warp.split(target, same);
    Ok(())
}
