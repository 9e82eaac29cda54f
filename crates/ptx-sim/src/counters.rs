//! What kernels executed, by their names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

use serde_json::{Value, json};

use crate::{decode::Kernel, vm::Counted};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By the kernel's address: it stays as long as it is here.
    kernels: HashMap<usize, KernelCounters>,
}

#[derive(Debug)]
struct KernelCounters {
    kernel: Arc<Kernel>,
    launches: u64,
    counted: Counted,
}

/// What kernels of a name did; modules may have kernels of the same name.
#[derive(Debug, Default)]
struct Sum {
    launches: u64,
    /// For each opcode: times that a warp executed it, and lanes that did.
    opcodes: BTreeMap<String, (u64, u64)>,
    counted: Counted,
}

impl Counters {
    pub(crate) fn add(&mut self, kernel: &Arc<Kernel>, counted: &Counted) {
        let new = || KernelCounters { kernel: kernel.clone(), launches: 0, counted: Counted::default() };
        let counters = self.kernels.entry(Arc::as_ptr(kernel) as usize).or_insert_with(new);
        counters.launches += 1;
        counters.counted.merge(counted);
    }

    /// Takes what others counted.
    pub(crate) fn absorb(&mut self, others: Counters) {
        for (address, other) in others.kernels {
            match self.kernels.entry(address) {
                Entry::Vacant(vacant) => _ = vacant.insert(other),
                Entry::Occupied(mut counters) => {
                    counters.get_mut().launches += other.launches;
                    counters.get_mut().counted.merge(&other.counted);
                }
            }
        }
    }

    /// For each kernel, the lines that a warp executed, in order.
    pub(crate) fn lines(&self) -> Value {
        let mut lines: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        for KernelCounters { kernel, counted, .. } in self.kernels.values() {
            let executed = kernel.steps.iter().zip(&counted.steps).filter(|(_, (warps, _))| *warps > 0);
            let executed = executed.map(|(step, _)| kernel.sources[step.source as usize].line);
            lines.entry(&kernel.name).or_default().extend(executed);
        }
        json!(lines)
    }

    pub(crate) fn json(&self) -> Value {
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        for counters in self.kernels.values() {
            sums.entry(&counters.kernel.name).or_default().add(counters);
        }
        sums.iter()
            .map(|(name, sum)| ((*name).to_owned(), sum.json()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

impl Sum {
    fn add(&mut self, counters: &KernelCounters) {
        self.launches += counters.launches;
        let mut last = None;
        for (step, &(warps, lanes)) in counters.kernel.steps.iter().zip(&counters.counted.steps) {
            // The first step of an instruction stands for all of it.
            if last.replace(step.source) != Some(step.source) && warps > 0 {
                let opcode = &counters.kernel.sources[step.source as usize].opcode;
                let sum = self.opcodes.entry(opcode.clone()).or_default();
                *sum = (sum.0 + warps, sum.1 + lanes);
            }
        }
        self.counted.merge(&Counted { steps: Vec::new(), ..counters.counted.clone() });
    }

    fn json(&self) -> Value {
        let sum = |pick: fn(&(u64, u64)) -> u64| self.opcodes.values().map(pick).sum::<u64>();
        let opcodes: serde_json::Map<_, _> =
            self.opcodes.iter().map(|(name, (warps, _))| (name.clone(), (*warps).into())).collect();
        json!({
            "launches": self.launches,
            "warp_instructions": sum(|counts| counts.0),
            "lane_instructions": sum(|counts| counts.1),
            "loaded_bytes": self.counted.loaded_bytes,
            "stored_bytes": self.counted.stored_bytes,
            "loaded_sectors": self.counted.loaded_sectors,
            "stored_sectors": self.counted.stored_sectors,
            "bank_conflicts": self.counted.bank_conflicts,
            "opcodes": opcodes,
        })
    }
}
