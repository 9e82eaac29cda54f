//! What cuxray reckons from machine code: how many warps a multiprocessor has, conflicts of shared memory's banks, cycles of loops.

use std::fs;

use anyhow::Context;
use serde_json::Value;

use super::{
    ESTIMATED,
    assembly::{body, cubin},
    tools::Tools,
};

/// Threads of a block where a kernel sets no bound of its own.
const THREADS: u64 = 256;

/// Of one kernel on [`ESTIMATED`]. All are reckoned, not measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Estimate {
    /// Warps that a multiprocessor has at once, of 64.
    pub(super) warps: u64,
    /// Passes over the banks that the worst access to shared memory takes, of those that can be reckoned.
    pub(super) conflict_ways: u64,
    /// Issue and fixed stalls of one turn of the longest innermost loop, or any if there is none inside.
    pub(super) cycles: u64,
}

/// The estimates of every kernel.
pub(super) fn estimate(
    tools: &Tools,
    modules: &[(String, String)],
) -> anyhow::Result<Vec<(String, Estimate)>> {
    let mut found = Vec::new();
    for (name, ptx) in modules {
        let (cubin, _) = cubin(tools, name, ptx, ESTIMATED)?;
        let cubin = cubin.to_str().context("a path of text")?.to_owned();
        let sched = cached(tools, "sched", &[&cubin], || tools.cuxray(&["sched", &cubin, "--json"]))?;
        let mut counts: Vec<u64> = crate::ptx::entries(ptx).map(|kernel| threads(ptx, kernel)).collect();
        counts.sort_unstable();
        counts.dedup();
        for count in counts {
            let threads_text = count.to_string();
            let report = cached(tools, "report", &[&cubin, &threads_text], || {
                tools.cuxray(&["report", &cubin, "--threads", &threads_text, "--json"])
            })?;
            let kernels = report["units"].as_array().into_iter().flatten();
            let kernels = kernels.flat_map(|unit| unit["kernels"].as_array().into_iter().flatten());
            for kernel in kernels {
                let name = kernel["name"].as_str().unwrap_or_default();
                if threads(ptx, name) == count {
                    found.push((name.to_owned(), of(kernel, &sched)));
                }
            }
        }
    }
    Ok(found)
}

fn cached(
    tools: &Tools,
    name: &str,
    inputs: &[&str],
    make: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<Value> {
    let path = tools.result(name, inputs);
    if !path.exists() {
        fs::write(&path, make()?)?;
    }
    serde_json::from_str(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())
}

/// Threads of a block: the kernel's bound, if it has one.
fn threads(ptx: &str, kernel: &str) -> u64 {
    let bound = body(ptx, kernel).split_once(".maxntid ").map(|(_, rest)| rest);
    let bound = bound.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    bound.unwrap_or(THREADS)
}

fn of(kernel: &Value, sched: &Value) -> Estimate {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let of_name = |result: &&Value| result["kernel"] == kernel["name"];
    let results = sched["results"].as_array().into_iter().flatten();
    let loops: Vec<&Value> =
        results.filter(of_name).flat_map(|result| result["loops"].as_array().into_iter().flatten()).collect();
    let deepest = loops.iter().map(|it| number(&it["loop_depth"])).max();
    let inner = loops.iter().filter(|it| Some(number(&it["loop_depth"])) == deepest);
    Estimate {
        warps: number(&kernel["occupancy"]["active_warps"]),
        conflict_ways: number(&kernel["access"]["worst_bank_conflict_ways"]).max(1),
        cycles: inner.map(|it| number(&it["est_issue_stall_cycles_per_iter"])).max().unwrap_or_default(),
    }
}
