//! A block: its warps take turns, each up to a barrier, its end, or a long time.

use super::{
    Registers, Trouble,
    barrier::BarrierState,
    launch::{Counted, Launch},
    shared::Shared,
    warp::{Waiting, Warp},
};
use crate::{
    decode::{DYNAMIC_SHARED, Kernel, LaneMask, Special},
    fault::{Fault, FaultKind},
};

/// What runs the blocks of a thread of the host, one after the other.
pub(super) struct Block<'l> {
    pub(super) launch: &'l Launch<'l>,
    pub(super) index: [u32; 3],
    pub(super) number: u64,
    pub(super) shared: Shared,
    pub(super) barriers: Vec<BarrierState>,
    pub(super) counted: Counted,
    /// The allocation that each instruction accessed last: start and end.
    pub(super) recent: Vec<(u64, u64)>,
}

impl<'l> Block<'l> {
    pub(super) fn new(launch: &'l Launch<'l>) -> Self {
        let shared_bytes = launch.kernel.shared_bytes + launch.dynamic_shared;
        Block {
            launch,
            index: [0; 3],
            number: 0,
            shared: Shared::new(shared_bytes, launch.warps(), launch.settings.checks),
            barriers: vec![BarrierState::default(); 16],
            counted: Counted::new(launch.kernel.steps.len()),
            recent: vec![(0, 0); launch.kernel.steps.len()],
        }
    }

    pub(super) fn kernel(&self) -> &'l Kernel {
        self.launch.kernel
    }

    pub(super) fn threads(&self) -> u32 {
        self.launch.block.iter().product()
    }

    /// Runs one block of the grid.
    pub(super) fn run(&mut self, number: u64, warps: &mut [Warp]) -> Result<(), Box<Fault>> {
        let grid = self.launch.grid.map(u64::from);
        self.number = number;
        self.index =
            [number % grid[0], number / grid[0] % grid[1], number / grid[0] / grid[1]].map(|at| at as u32);
        self.shared.restart();
        self.barriers.iter_mut().for_each(|barrier| barrier.clear(warps.len()));
        for warp in &mut *warps {
            self.restart(warp);
        }
        loop {
            let mut turns = 0;
            for &index in &self.launch.warp_order {
                let warp = &mut warps[index];
                if warp.alive() == 0 || warp.waiting.is_some() {
                    continue;
                }
                turns += 1;
                if let Err(trouble) = self.turn(warp) {
                    return Err(Box::new(self.fault(trouble, &warps[index])));
                }
                self.release(warps);
            }
            if warps.iter().all(|warp| warp.alive() == 0) {
                return Ok(());
            }
            if turns == 0 {
                return Err(Box::new(self.deadlock(warps)));
            }
        }
    }

    /// Lets those go on whose barrier is complete.
    fn release(&mut self, warps: &mut [Warp]) {
        let alive = warps.iter().filter(|warp| warp.alive() != 0).count();
        let mut ids =
            warps.iter().filter_map(|warp| warp.waiting).fold(0u32, |ids, waiting| ids | 1 << waiting.id);
        while ids != 0 {
            let id = ids.trailing_zeros();
            ids &= ids - 1;
            let waits = |warp: &Warp| warp.waiting.filter(|waiting| waiting.id == id);
            let (mut count, mut threads) = (0, None);
            for waiting in warps.iter().filter_map(waits) {
                (count, threads) = (count + 1, waiting.threads);
            }
            if self.complete(id, count, threads, alive) {
                for warp in warps.iter_mut().filter(|warp| waits(warp).is_some()) {
                    self.pass(warp, id);
                }
                self.barriers[id as usize].clear(warps.len());
            }
        }
    }

    fn deadlock(&self, warps: &[Warp]) -> Fault {
        let mut waiting = String::new();
        for warp in warps {
            if let Some(Waiting { id, .. }) = warp.waiting {
                let line = self.source_line(warp.pc);
                waiting += &format!(
                    "{}warp {} at {id}, line {line}",
                    if waiting.is_empty() { "" } else { "; " },
                    warp.index
                );
            }
        }
        let first = warps.iter().find(|warp| warp.waiting.is_some()).unwrap_or(&warps[0]);
        self.fault(FaultKind::Deadlock { waiting }.into(), first)
    }

    fn source_line(&self, pc: u32) -> u32 {
        let kernel = self.kernel();
        kernel.steps.get(pc as usize).map_or(0, |step| kernel.sources[step.source as usize].line)
    }

    fn fault(&self, trouble: Trouble, warp: &Warp) -> Fault {
        let kernel = self.kernel();
        let source = kernel.steps.get(warp.pc as usize).map(|step| &kernel.sources[step.source as usize]);
        let thread = trouble.lane.map(|lane| self.thread_index(warp.index * 32 + lane));
        Fault {
            kind: trouble.kind,
            kernel: kernel.name.clone(),
            block: self.index,
            thread,
            line: source.map_or(0, |source| source.line),
            opcode: source.map_or(String::new(), |source| source.opcode.clone()),
        }
    }

    fn thread_index(&self, thread: u32) -> [u32; 3] {
        let block = self.launch.block;
        [thread % block[0], thread / block[0] % block[1], thread / block[0] / block[1]]
    }

    /// A warp with the registers that are the same in every block.
    pub(super) fn warp(&self, index: usize) -> Warp {
        let kernel = self.kernel();
        let mut warp = Warp::new(index as u32, kernel.counts, kernel.local_bytes);
        let registers: &mut Registers = &mut warp.registers;
        for &(slot, value) in &kernel.pred_constants {
            registers.set_pred(slot, if value { u32::MAX } else { 0 }, u32::MAX);
        }
        for &(slot, value) in &kernel.narrow_constants {
            registers.set_narrow(slot, &[value; 32], u32::MAX);
        }
        for &(slot, value) in &kernel.wide_constants {
            registers.set_wide(slot, &[value; 32], u32::MAX);
        }
        for &(slot, special) in &kernel.specials {
            let values = std::array::from_fn(|lane| self.special(special, index as u32, lane as u32));
            registers.set_narrow(slot, &values, u32::MAX);
        }
        registers.keep();
        warp
    }

    fn restart(&self, warp: &mut Warp) {
        warp.restart(self.threads() - warp.index * 32);
        warp.registers.clear();
        for &(slot, special) in &self.kernel().specials {
            if let Special::Block(axis) = special {
                warp.registers.set_narrow(slot, &[self.index[axis]; 32], u32::MAX);
            }
        }
    }

    fn special(&self, special: Special, warp: u32, lane: u32) -> u32 {
        let upto = u32::MAX >> (31 - lane);
        let equal = 1 << lane;
        match special {
            Special::Thread(axis) => self.thread_index(warp * 32 + lane)[axis],
            Special::Threads(axis) => self.launch.block[axis],
            Special::Block(axis) => self.index[axis],
            Special::Blocks(axis) => self.launch.grid[axis],
            Special::Lane => lane,
            Special::LaneMask(LaneMask::Equal) => equal,
            Special::LaneMask(LaneMask::Below) => upto ^ equal,
            Special::LaneMask(LaneMask::UpTo) => upto,
            Special::LaneMask(LaneMask::Above) => !upto,
            Special::LaneMask(LaneMask::From) => !(upto ^ equal),
            Special::Warp => warp,
            Special::Warps => self.launch.warps() as u32,
            Special::SharedBytes => self.shared.len() as u32,
            Special::SharedBytesDynamic => self.launch.dynamic_shared as u32,
            DYNAMIC_SHARED => self.kernel().shared_bytes as u32,
            Special::Fixed(value) => value,
        }
    }

    pub(super) fn count_lanes(&mut self, pc: u32, mask: u32) {
        self.counted.add(pc, mask);
    }
}
