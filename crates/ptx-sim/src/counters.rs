//! What kernels executed, by their names.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{decode::Kernel, vm::Counted};

#[derive(Debug, Default)]
struct KernelCounters {
    launches: u64,
    /// For each opcode: times that a warp executed it, and lanes that did.
    opcodes: BTreeMap<String, (u64, u64)>,
    counted: Counted,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    kernels: BTreeMap<String, KernelCounters>,
}

impl Counters {
    pub(crate) fn add(&mut self, kernel: &Kernel, counted: &Counted) {
        let counters = self.kernels.entry(kernel.name.clone()).or_default();
        counters.launches += 1;
        let mut last = None;
        for (step, &(warps, lanes)) in kernel.steps.iter().zip(&counted.steps) {
            // The first step of an instruction stands for all of it.
            if last.replace(step.source) != Some(step.source) && warps > 0 {
                let opcode = &kernel.sources[step.source as usize].opcode;
                let sum = counters.opcodes.entry(opcode.clone()).or_default();
                *sum = (sum.0 + warps, sum.1 + lanes);
            }
        }
        counters.counted.merge(&Counted { steps: Vec::new(), ..counted.clone() });
    }

    pub(crate) fn json(&self) -> Value {
        self.kernels
            .iter()
            .map(|(name, counters)| (name.clone(), counters.json()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

impl KernelCounters {
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
