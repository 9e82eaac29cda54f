//! The committed facts, `kernels/cuda/gates.json`: a line for each kernel, so that a change of one is a line of a diff.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::Context;
use serde_json::{Value, json};

use super::{Facts, assembly::Assembled, estimates::Estimate};

/// A loop may take so much longer than before without being worse: a schedule is not exact.
const SLACK: f64 = 1.05;

pub(super) struct Baseline(BTreeMap<String, Facts>);

impl Baseline {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let kernels: BTreeMap<String, Value> =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Baseline(kernels.into_iter().map(|(name, value)| (name, facts(&value))).collect()))
    }

    pub(super) fn write(path: &Path, kernels: &BTreeMap<String, Facts>) -> anyhow::Result<()> {
        let mut text = String::from("{");
        for (i, (name, facts)) in kernels.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(text, "{comma}\n\"{name}\": {}", json(facts))?;
        }
        fs::write(path, text + "\n}\n").with_context(|| path.display().to_string())
    }

    /// What is worse than before, and what is better.
    pub(super) fn compare(
        &self,
        kernels: &BTreeMap<String, Facts>,
        worse: &mut Vec<String>,
        better: &mut Vec<String>,
    ) {
        for (name, found) in kernels {
            let Some(expected) = self.0.get(name) else {
                worse.push(format!("{name} is not in the baseline"));
                continue;
            };
            for (what, before, now) in numbers(expected, found) {
                let slack = if what.ends_with("cycles") { SLACK } else { 1.0 };
                let (most, least) = (before as f64 * slack, before as f64 / slack);
                let line = || format!("{name}: {what}: {now}, before {before}");
                // More warps are better, and less of everything else.
                let is_more_better = what.ends_with("warps");
                if now as f64 > most {
                    if is_more_better { better.push(line()) } else { worse.push(line()) }
                } else if (now as f64) < least {
                    if is_more_better { worse.push(line()) } else { better.push(line()) }
                }
            }
        }
        let gone = self.0.keys().filter(|name| !kernels.contains_key(*name));
        better.extend(gone.map(|name| format!("{name} is no kernel any more")));
    }
}

/// What is compared: its name, as it was and as it is.
fn numbers(expected: &Facts, found: &Facts) -> Vec<(String, u64, u64)> {
    let mut numbers = Vec::new();
    for (arch, now) in &found.assembled {
        let before = expected.assembled.get(arch).copied().unwrap_or_default();
        numbers.extend([
            (format!("{arch} registers"), before.registers, now.registers),
            (format!("{arch} shared bytes"), before.shared_bytes, now.shared_bytes),
            (format!("{arch} stack bytes"), before.stack_bytes, now.stack_bytes),
            (format!("{arch} spilled bytes"), before.spilled_bytes, now.spilled_bytes),
        ]);
    }
    if let (Some(before), Some(now)) = (&expected.estimate, &found.estimate) {
        numbers.extend([
            ("warps".into(), before.warps, now.warps),
            ("ways of bank conflicts".into(), before.conflict_ways, now.conflict_ways),
            ("cycles".into(), before.cycles, now.cycles),
        ]);
    }
    numbers
}

/// Facts as they are committed: by architecture registers, bytes of shared memory, of stack, and spilled.
pub(super) fn json(facts: &Facts) -> Value {
    let assembled = facts.assembled.iter().map(|(arch, it)| {
        (arch.clone(), json!([it.registers, it.shared_bytes, it.stack_bytes, it.spilled_bytes]))
    });
    let mut value: serde_json::Map<String, Value> = assembled.collect();
    if let Some(Estimate { warps, conflict_ways, cycles }) = &facts.estimate {
        value.insert("warps".into(), json!(warps));
        value.insert("conflict_ways".into(), json!(conflict_ways));
        value.insert("cycles".into(), json!(cycles));
    }
    value.into()
}

fn facts(value: &Value) -> Facts {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let of_arch = value.as_object().into_iter().flatten().filter_map(|(name, value)| {
        let [registers, shared, stack, spilled] = value.as_array()?.as_slice() else { return None };
        let [registers, shared_bytes, stack_bytes, spilled_bytes] =
            [registers, shared, stack, spilled].map(number);
        Some((name.clone(), Assembled { registers, shared_bytes, stack_bytes, spilled_bytes }))
    });
    let estimate = value.get("warps").map(|warps| Estimate {
        warps: number(warps),
        conflict_ways: number(&value["conflict_ways"]),
        cycles: number(&value["cycles"]),
    });
    Facts { assembled: of_arch.collect(), estimate }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(registers: u64, warps: u64, cycles: u64) -> Facts {
        let assembled = Assembled { registers, shared_bytes: 8, stack_bytes: 0, spilled_bytes: 0 };
        Facts {
            assembled: [("sm_90".to_owned(), assembled)].into(),
            estimate: Some(Estimate { warps, conflict_ways: 1, cycles }),
        }
    }

    #[test]
    fn facts_are_read_as_they_were_written() {
        let facts_written = kernel(40, 32, 100);
        assert_eq!(facts(&json(&facts_written)), facts_written);
    }

    #[test]
    fn worse_and_better_are_told_apart() {
        let baseline =
            Baseline([("a".to_owned(), kernel(40, 32, 100)), ("gone".to_owned(), kernel(1, 1, 1))].into());
        let compare = |found: Facts| {
            let (mut worse, mut better) = (Vec::new(), Vec::new());
            baseline.compare(&[("a".to_owned(), found)].into(), &mut worse, &mut better);
            (worse, better.len())
        };
        assert_eq!(compare(kernel(40, 32, 104)), (vec![], 1));
        assert_eq!(compare(kernel(41, 32, 100)), (vec!["a: sm_90 registers: 41, before 40".to_owned()], 1));
        assert_eq!(compare(kernel(39, 48, 100)), (vec![], 3));
        assert_eq!(compare(kernel(40, 16, 120)).0.len(), 2);
        let (mut worse, mut better) = (Vec::new(), Vec::new());
        baseline.compare(&[("new".to_owned(), kernel(1, 1, 1))].into(), &mut worse, &mut better);
        assert_eq!(worse, ["new is not in the baseline"]);
    }
}
