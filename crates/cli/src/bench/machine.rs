use std::sync::atomic::{AtomicUsize, Ordering};

use samebits::{CpuOptions, Isa, runner::StepWork};
use samebits_cpu::Cpu;
use samebits_kernels::cpu as kernels;

/// The processors that a model runs on, to measure what they could do.
pub(crate) struct Machine {
    cpu: Cpu,
    threads: usize,
    buffer: Vec<[u8; 64]>,
}

/// What the machine could do in a second, on all threads that a model uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ceilings<T = f64> {
    /// Bytes read in sequence.
    pub(crate) read: T,
    /// Operations of int8, two a multiply-add.
    pub(crate) int8: T,
    /// Operations of f32, two a multiply-add.
    pub(crate) f32: T,
}

impl<T> Ceilings<T> {
    pub(crate) fn map<U>(self, f: impl Fn(T) -> U) -> Ceilings<U> {
        Ceilings { read: f(self.read), int8: f(self.int8), f32: f(self.f32) }
    }
}

impl Machine {
    /// The processors, used as `options` say, with a buffer of about `bytes` to read.
    pub(crate) fn new(options: &CpuOptions, bytes: u64) -> anyhow::Result<Machine> {
        let builder = Cpu::builder().threads(options.threads.unwrap_or_default()).pin(options.pin);
        let cpu = options.isa.map_or(builder, |isa| builder.isa(isa)).build()?;
        let threads = AtomicUsize::new(0);
        cpu.on_every_thread(|| {
            threads.fetch_add(1, Ordering::Relaxed);
        });
        let buffer = vec![[1; 64]; bytes.div_ceil(64) as usize];
        Ok(Machine { cpu, threads: threads.into_inner(), buffer })
    }

    pub(crate) fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    pub(crate) fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Measures what can be done now.
    pub(crate) fn ceilings(&self) -> Ceilings {
        let (int8, f32) = self.peaks();
        Ceilings { read: self.read(self.buffer.len() * 64), int8, f32 }
    }

    /// Operations a second of int8 and of f32.
    pub(crate) fn peaks(&self) -> (f64, f64) {
        let everywhere = |f: &(dyn Fn() + Sync)| self.cpu.on_every_thread(f);
        (kernels::int8_peak(self.isa(), &everywhere), kernels::f32_peak(self.isa(), &everywhere))
    }

    /// Bytes read in a second from as many as `bytes` of the buffer.
    pub(crate) fn read(&self, bytes: usize) -> f64 {
        let lines = bytes.div_ceil(64).min(self.buffer.len());
        let everywhere = |f: &(dyn Fn() + Sync)| self.cpu.on_every_thread(f);
        kernels::read_bandwidth(self.isa(), &everywhere, &self.buffer[..lines])
    }
}

/// What a step's time would be if nothing but memory, or nothing but arithmetic, took any.
pub(crate) struct Floor {
    pub(crate) memory_seconds: f64,
    pub(crate) compute_seconds: f64,
}

impl Floor {
    pub(crate) fn of(work: &StepWork, ceilings: &Ceilings) -> Floor {
        let ops = |macs: u64, peak: f64| if macs == 0 { 0.0 } else { 2.0 * macs as f64 / peak };
        Floor {
            memory_seconds: (work.weight_bytes + work.cache_bytes) as f64 / ceilings.read,
            compute_seconds: ops(work.int8_macs, ceilings.int8) + ops(work.f32_macs, ceilings.f32),
        }
    }

    /// The ceiling that is hit first.
    pub(crate) fn bound(&self) -> &'static str {
        if self.memory_seconds >= self.compute_seconds { "memory" } else { "compute" }
    }

    /// How much of a time is due to that ceiling.
    pub(crate) fn share(&self, seconds: f64) -> f64 {
        self.memory_seconds.max(self.compute_seconds) / seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_ceiling_counts() {
        let ceilings = Ceilings { read: 100.0, int8: 50.0, f32: 10.0 };
        let work = StepWork { weight_bytes: 150, cache_bytes: 50, int8_macs: 25, f32_macs: 0 };
        let floor = Floor::of(&work, &ceilings);
        assert_eq!((floor.memory_seconds, floor.compute_seconds), (2.0, 1.0));
        assert_eq!((floor.bound(), floor.share(8.0)), ("memory", 0.25));
        let floor = Floor::of(&StepWork { f32_macs: 10, ..work }, &ceilings);
        assert_eq!((floor.bound(), floor.share(3.0)), ("compute", 1.0));
    }

    #[test]
    fn threads_are_those_asked_for() {
        let options = CpuOptions { threads: Some(2), isa: Some(Isa::SCALAR), pin: false };
        let machine = Machine::new(&options, 100_000).unwrap();
        assert_eq!((machine.threads(), machine.isa()), (2, Isa::SCALAR));
        let ceilings = machine.ceilings();
        assert!([ceilings.read, ceilings.int8, ceilings.f32].iter().all(|rate| *rate > 1e6));
    }
}
