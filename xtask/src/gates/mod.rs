//! What NVIDIA's assembler makes of the shipped PTX, against what it made before: no GPU is needed to see a spill.

mod assembly;
mod baseline;
mod estimates;
mod tools;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use serde_json::json;

use assembly::Assembled;
use baseline::Baseline;
use estimates::Estimate;
use tools::Tools;

/// Ampere's servers, Ada, Hopper, and Blackwell's servers and workstations.
const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];

/// The one whose estimates are compared.
const ESTIMATED: &str = "sm_90";

/// What is known of a kernel without running it.
#[derive(Debug, Default, Clone, PartialEq)]
struct Facts {
    assembled: BTreeMap<String, Assembled>,
    estimate: Option<Estimate>,
}

/// Assembles every module and compares what is known of its kernels with the committed facts, or writes these.
///
/// # Errors
/// If a tool cannot be had, a module does not assemble, or a kernel is worse than before; each problem is a line.
pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let is_given = |name: &str| arguments.iter().any(|argument| argument == name);
    if let Some(other) = arguments.iter().find(|it| !["--bless", "--json"].contains(&it.as_str())) {
        bail!("{other}: not an option; there are --bless and --json");
    }
    let start = std::time::Instant::now();
    let folder = root.join("kernels/cuda");
    let tools = Tools::open(&folder.join("gates.txt"))?;
    let modules = crate::ptx::modules(&folder)?;
    let mut kernels: BTreeMap<String, Facts> = BTreeMap::new();
    let mut problems = Vec::new();
    for (kernel, architecture, assembled) in assembly::assemble(&tools, &modules, &mut problems)? {
        kernels.entry(kernel).or_default().assembled.insert(architecture, assembled);
    }
    for (kernel, estimate) in estimates::estimate(&tools, &modules)? {
        kernels.entry(kernel).or_default().estimate = Some(estimate);
    }
    let path = folder.join("gates.json");
    if is_given("--bless") {
        Baseline::write(&path, &kernels)?;
    }
    let baseline = Baseline::read(&path)?;
    let mut better = Vec::new();
    baseline.compare(&kernels, &mut problems, &mut better);
    if is_given("--json") {
        let kernels = kernels.iter().map(|(name, facts)| (name.clone(), baseline::json(facts)));
        let kernels: serde_json::Map<_, _> = kernels.collect();
        println!("{:#}", json!({ "kernels": kernels, "problems": problems, "better": better }));
    } else {
        print!("{}", table(&kernels));
        println!("{} kernels, {} s", kernels.len(), start.elapsed().as_secs());
        better.iter().for_each(|line| println!("better: {line}"));
    }
    if !better.is_empty() {
        eprintln!("cargo xtask gates --bless keeps what is better");
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(anyhow::anyhow!(problems.join("\n"))).context(
            "kernels are worse than kernels/cuda/gates.json has them; cargo xtask gates --bless accepts what has a reason",
        ),
    }
}

/// A row for each kernel: of all architectures the most registers and spilled bytes, of one the estimates.
fn table(kernels: &BTreeMap<String, Facts>) -> String {
    let mut text = format!(
        "| kernel | registers ({}) | shared bytes | spilled bytes | warps of 64 ({ESTIMATED}) | bank conflicts | cycles of the longest loop |\n\
         | --- | --: | --: | --: | --: | --: | --: |\n",
        ARCHITECTURES.join(", ")
    );
    for (name, facts) in kernels {
        let of = |architecture: &&str| facts.assembled.get(*architecture);
        let registers: Vec<String> =
            ARCHITECTURES.iter().filter_map(of).map(|it| it.registers.to_string()).collect();
        let most = |pick: fn(&Assembled) -> u64| facts.assembled.values().map(pick).max().unwrap_or_default();
        let Estimate { warps, conflict_ways, cycles } = facts.estimate.clone().unwrap_or_default();
        text += &format!(
            "| `{name}` | {} | {} | {} | {warps} | {} | {cycles} |\n",
            registers.join(", "),
            most(|it| it.shared_bytes),
            most(|it| it.spilled_bytes),
            if conflict_ways > 1 { format!("{conflict_ways} ways") } else { "none".into() },
        );
    }
    text
}
