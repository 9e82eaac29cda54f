//! A grid: its blocks run on several threads of the host.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{block::Block, warp::Warp};
use crate::{arena::Arena, decode::Kernel, fault::Fault, settings::Settings};

/// Fewer instructions than a thread of the host costs.
const BLOCKS_PER_THREAD: u64 = 4;

pub(crate) struct Launch<'l> {
    pub(crate) kernel: &'l Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u64,
    pub(crate) parameters: &'l [u8],
    pub(crate) arena: &'l Arena,
    pub(crate) settings: &'l Settings,
    /// The warps of a block, in the order of their turns.
    pub(crate) warp_order: Vec<usize>,
    /// Another one for each launch.
    pub(crate) number: u32,
}

/// What was executed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counted {
    /// For each step: times that a warp executed it, and lanes that did.
    pub(crate) steps: Vec<(u64, u64)>,
    /// Bytes of global memory that were asked for.
    pub(crate) loaded_bytes: u64,
    pub(crate) stored_bytes: u64,
    /// Pieces of 32 bytes that these accesses touched.
    pub(crate) loaded_sectors: u64,
    pub(crate) stored_sectors: u64,
    /// Passes over the banks of shared memory beyond what the bytes need.
    pub(crate) bank_conflicts: u64,
}

impl Counted {
    pub(crate) fn new(steps: usize) -> Self {
        Counted { steps: vec![(0, 0); steps], ..Counted::default() }
    }

    #[inline]
    pub(super) fn add(&mut self, step: u32, mask: u32) {
        let (warps, lanes) = &mut self.steps[step as usize];
        *warps += 1;
        *lanes += u64::from(mask.count_ones());
    }

    pub(crate) fn merge(&mut self, other: &Counted) {
        self.steps.resize(self.steps.len().max(other.steps.len()), (0, 0));
        for (sum, step) in self.steps.iter_mut().zip(&other.steps) {
            *sum = (sum.0 + step.0, sum.1 + step.1);
        }
        self.loaded_bytes += other.loaded_bytes;
        self.stored_bytes += other.stored_bytes;
        self.loaded_sectors += other.loaded_sectors;
        self.stored_sectors += other.stored_sectors;
        self.bank_conflicts += other.bank_conflicts;
    }
}

impl Launch<'_> {
    pub(crate) fn warps(&self) -> usize {
        self.block.iter().product::<u32>().div_ceil(32) as usize
    }

    /// Runs all blocks. After a fault no more are begun.
    pub(crate) fn run(&self) -> (Counted, Result<(), Box<Fault>>) {
        let blocks: u64 = self.grid.iter().map(|&size| u64::from(size)).product();
        let next = AtomicU64::new(0);
        let done = Mutex::new((Counted::default(), None));
        let work = || {
            let (counted, fault) = self.run_blocks(&next, blocks);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.0.merge(&counted);
            done.1 = done.1.take().or(fault);
        };
        let threads = (self.settings.threads as u64).min(blocks / BLOCKS_PER_THREAD).max(1);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let (counted, fault) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        (counted, fault.map_or(Ok(()), Err))
    }

    fn run_blocks(&self, next: &AtomicU64, blocks: u64) -> (Counted, Option<Box<Fault>>) {
        let mut block = Block::new(self);
        let mut warps: Vec<Warp> = (0..self.warps()).map(|index| block.warp(index)).collect();
        let mut fault = None;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= blocks {
                break;
            }
            if let Err(found) = block.run(self.settings.order.position(number, blocks), &mut warps) {
                next.store(blocks, Ordering::Relaxed);
                fault = Some(found);
                break;
            }
        }
        (block.counted, fault)
    }
}
