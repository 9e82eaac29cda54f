//! Runs kernels: warps of 32 lanes in lockstep, blocks one after the other on several threads of the host.

mod access;
mod async_copy;
mod barrier;
mod block;
mod collective;
mod compute;
mod execute;
mod launch;
mod matrix;
mod registers;
mod shared;
mod tables;
mod traffic;
mod warp;
mod window;

pub(crate) use compute::{Compute, Run, Slots, compute};
pub(crate) use launch::{Counted, Launch};
pub(crate) use registers::{Counts, Kind, Registers, Slot};

use crate::fault::FaultKind;

/// A fault, and the lane it happened in.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) kind: FaultKind,
    pub(crate) lane: Option<u32>,
}

impl From<FaultKind> for Trouble {
    fn from(kind: FaultKind) -> Self {
        Trouble { kind, lane: None }
    }
}

impl FaultKind {
    pub(crate) fn of(self, lane: usize) -> Trouble {
        Trouble { kind: self, lane: Some(lane as u32) }
    }
}

pub(crate) type Ran<T = ()> = Result<T, Trouble>;

/// The lanes of a mask, lowest first.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros() as usize;
        rest &= rest.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}
