//! What became of mutants, as tables and as JSON.

use std::{collections::BTreeMap, fmt::Write, fs};

use ptx_sim::Mutant;
use serde_json::{Value, json};

use crate::{accepted, run::Options};

/// A mutant that was run.
pub(crate) struct Tried {
    pub(crate) mutant: Mutant,
    /// What noticed it: `bits`, `timeout`, or the name of a check.
    pub(crate) killed: Option<String>,
    /// Cases that execute its line; 0 if none does.
    pub(crate) cases: usize,
}

pub(crate) struct Report {
    pub(crate) tried: Vec<Tried>,
    /// Mutants that were chosen and not run for want of time.
    pub(crate) left: usize,
    /// Mutants that there are.
    pub(crate) all: usize,
    pub(crate) seconds: f64,
}

/// A row of a table: mutants, and those noticed by checks, bits and time.
#[derive(Default)]
struct Row {
    mutants: usize,
    checks: usize,
    bits: usize,
    time: usize,
}

impl Row {
    fn add(&mut self, tried: &Tried) {
        self.mutants += 1;
        match tried.killed.as_deref() {
            None => {}
            Some("bits") => self.bits += 1,
            Some("timeout" | "instruction limit") => self.time += 1,
            Some(_) => self.checks += 1,
        }
    }

    fn killed(&self) -> usize {
        self.checks + self.bits + self.time
    }
}

impl Report {
    /// The share of mutants that were noticed.
    pub(crate) fn share(&self) -> f64 {
        let killed = self.tried.iter().filter(|tried| tried.killed.is_some()).count();
        killed as f64 / self.tried.len().max(1) as f64
    }

    /// By operator and by kernel.
    pub(crate) fn table(&self) -> String {
        let by_operator = self.rows(|tried| tried.mutant.mutation.operator.clone());
        let by_kernel = self.rows(|tried| tried.mutant.mutation.kernel.clone());
        let by_check = self.rows(|tried| tried.killed.clone().unwrap_or_else(|| "nothing".into()));
        let mut text = format!("{}\n\n", self.summary());
        for (title, rows) in [("operator", by_operator), ("kernel", by_kernel)] {
            text += &format!(
                "| {title} | mutants | by checks | by bits | by time | survive | noticed |\n| --- | --: | --: | --: | --: | --: | --: |\n"
            );
            for (name, row) in rows {
                let Row { mutants, checks, bits, time } = row;
                let (killed, share) = (row.killed(), 100.0 * row.killed() as f64 / mutants as f64);
                let _ = writeln!(
                    text,
                    "| `{name}` | {mutants} | {checks} | {bits} | {time} | {} | {share:.1}% |",
                    mutants - killed
                );
            }
            text.push('\n');
        }
        text += "| noticed first by | mutants |\n| --- | --: |\n";
        for (name, row) in by_check {
            let _ = writeln!(text, "| {name} | {} |", row.mutants);
        }
        text
    }

    fn summary(&self) -> String {
        let (tried, killed) = (self.tried.len(), self.tried.iter().filter(|it| it.killed.is_some()).count());
        let left = if self.left == 0 {
            String::new()
        } else {
            format!(", {} more were chosen and not run", self.left)
        };
        format!(
            "{tried} of {} mutants ran, {killed} ({:.1}%) were noticed, {} were not; {:.0} s{left}.",
            self.all,
            100.0 * self.share(),
            tried - killed,
            self.seconds
        )
    }

    fn rows(&self, name: impl Fn(&Tried) -> String) -> BTreeMap<String, Row> {
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        for tried in &self.tried {
            rows.entry(name(tried)).or_default().add(tried);
        }
        rows
    }

    /// Mutants that nothing noticed, a line each, and why, where that is known.
    pub(crate) fn survivors(&self) -> String {
        let mut text = format!(
            "{}\n\n| kernel | line | operator | instruction | why |\n| --- | --: | --- | --- | --- |\n",
            self.summary()
        );
        for tried in self.tried.iter().filter(|tried| tried.killed.is_none()) {
            let mutation = &tried.mutant.mutation;
            let why = match (accepted::reason(&tried.mutant), tried.cases) {
                (Some(reason), _) => reason,
                (None, 0) => "no case executes this line",
                (None, _) => "not examined",
            };
            let code = tried.mutant.text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
            let _ = writeln!(
                text,
                "| `{}` | {} | `{}` | `{code}` | {why} |",
                mutation.kernel, mutation.line, mutation.operator
            );
        }
        text
    }

    /// Writes what the options ask for.
    pub(crate) fn write(&self, options: &Options) {
        if let Some(path) = &options.json {
            fs::write(path, format!("{:#}\n", self.json()))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        if let Some(path) = &options.document {
            let text = format!(
                "{}\n\nThis is of `cargo xtask mutate cuda{}`.\n\n## What they are\n\n{}\n## What is not noticed\n\n{}",
                HEAD,
                options.arguments(),
                self.table(),
                self.survivors()
            );
            fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    fn json(&self) -> Value {
        let mutants = self.tried.iter().map(|tried| {
            let mutation = &tried.mutant.mutation;
            json!({
                "kernel": mutation.kernel,
                "line": mutation.line,
                "operator": mutation.operator,
                "instruction": tried.mutant.text,
                "noticed_by": tried.killed,
                "cases": tried.cases,
                "accepted": accepted::reason(&tried.mutant),
            })
        });
        let mutants: Vec<Value> = mutants.collect();
        json!({ "all": self.all, "not_run": self.left, "share": self.share(), "seconds": self.seconds, "mutants": mutants })
    }
}

const HEAD: &str = "# Mutants of the CUDA kernels

Written by `cargo xtask mutate cuda`, from PTX as the tree ships it. A mutant is one instruction of one kernel, changed by one
operator (crates/ptx-sim/README.md has the list). It runs on the cases of the op suite that execute its line, and some more, on the
stand-in for the driver with every check on and each tensor in memory of its own, warps from the first and then from the last. It is
noticed by a check, by other bits, or since it does not end. One that is not shows a case that is missing, or changes nothing that
a result depends on. Float arithmetic rounded otherwise than to nearest is not tried: a test of the tree refuses such PTX
before anything runs (`cargo xtask ptx`).";
