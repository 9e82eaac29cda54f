//! Instructions that the lanes of a mask execute together.

use super::{Ran, access::apply_32, barrier::convene, block::Block, lanes, registers::Kind, warp::Warp};
use crate::{
    decode::{Match, Reduce, Register, Shuffle, ShuffleMode, Vote, VoteMode},
    fault::FaultKind,
};

impl Block<'_> {
    /// `shfl.sync`, as the manual's pseudocode has it: the clamp's upper bits say where segments are.
    pub(super) fn shuffle(&mut self, warp: &mut Warp, shuffle: &Shuffle, mask: u32) -> Ran {
        let Some(mask) = convene(warp, shuffle.mask, mask)? else { return Ok(()) };
        let narrow = |slot| self.source(warp, Register { kind: Kind::Narrow, slot }, mask);
        let (values, by, clamps) = (narrow(shuffle.value)?, narrow(shuffle.by)?, narrow(shuffle.clamp)?);
        let (mut results, mut in_range) = ([0; 32], 0u32);
        for lane in lanes(mask) {
            let (by, clamp, segments) =
                (by[lane] as u32 & 31, clamps[lane] as u32 & 31, clamps[lane] as u32 >> 8 & 31);
            let here = lane as u32;
            let last = here & segments | clamp & !segments;
            let first = here & segments;
            let (from, inside) = match shuffle.mode {
                ShuffleMode::Up => (here.wrapping_sub(by), here as i32 - by as i32 >= last as i32),
                ShuffleMode::Down => (here + by, here + by <= last),
                ShuffleMode::Butterfly => (here ^ by, here ^ by <= last),
                ShuffleMode::Index => (first | by & !segments, first | by & !segments <= last),
            };
            let from = if inside { from } else { here };
            if mask >> from & 1 == 0 {
                return Err(FaultKind::InactiveSource { lane: from }.of(lane));
            }
            results[lane] = values[from as usize] as u32;
            in_range |= u32::from(inside) << lane;
        }
        if let Some(slot) = shuffle.result {
            warp.registers.set_narrow(slot, &results, mask);
        }
        if let Some(slot) = shuffle.in_range {
            warp.registers.set_pred(slot, in_range, mask);
        }
        warp.pc += 1;
        Ok(())
    }

    pub(super) fn vote(&mut self, warp: &mut Warp, vote: &Vote, mask: u32) -> Ran {
        let Some(mask) = convene(warp, vote.mask, mask)? else { return Ok(()) };
        self.source(warp, Register { kind: Kind::Pred, slot: vote.source }, mask)?;
        let holds = warp.registers.pred(vote.source) & mask;
        let result = match vote.mode {
            VoteMode::Ballot => {
                warp.registers.set_narrow(vote.result, &[holds; 32], mask);
                warp.pc += 1;
                return Ok(());
            }
            VoteMode::All => holds == mask,
            VoteMode::Any => holds != 0,
            VoteMode::Uniform => holds == mask || holds == 0,
        };
        warp.registers.set_pred(vote.result, if result { u32::MAX } else { 0 }, mask);
        warp.pc += 1;
        Ok(())
    }

    pub(super) fn matched(&mut self, warp: &mut Warp, matched: &Match, mask: u32) -> Ran {
        let Some(mask) = convene(warp, matched.mask, mask)? else { return Ok(()) };
        let values = self.source(warp, matched.value, mask)?;
        let equal = |to: u64| {
            lanes(mask).filter(|&lane| values[lane] == to).fold(0u32, |equal, lane| equal | 1 << lane)
        };
        let mut results = [0; 32];
        lanes(mask).for_each(|lane| results[lane] = equal(values[lane]));
        if let Some(agree) = matched.all {
            let all = lanes(mask).all(|lane| results[lane] == mask);
            lanes(mask).for_each(|lane| results[lane] = if all { mask } else { 0 });
            if let Some(slot) = agree {
                warp.registers.set_pred(slot, if all { u32::MAX } else { 0 }, mask);
            }
        }
        warp.registers.set_narrow(matched.result, &results, mask);
        warp.pc += 1;
        Ok(())
    }

    pub(super) fn reduce(&mut self, warp: &mut Warp, reduce: &Reduce, mask: u32) -> Ran {
        let Some(mask) = convene(warp, reduce.mask, mask)? else { return Ok(()) };
        let values = self.source(warp, Register { kind: Kind::Narrow, slot: reduce.value }, mask)?;
        let all = lanes(mask).map(|lane| values[lane] as u32);
        let result = all.reduce(|a, b| apply_32(reduce.op, reduce.signed, a, b, 0)).unwrap_or(0);
        warp.registers.set_narrow(reduce.result, &[result; 32], mask);
        warp.pc += 1;
        Ok(())
    }
}
