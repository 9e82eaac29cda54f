use std::path::PathBuf;

use samebits::{Device, Isa, NUMERICS_VERSION};
use serde_json::{Value, json};

use super::{
    machine::{Ceilings, Floor},
    stats::Spread,
    steps::{Prepared, Test},
};
use crate::output;

/// What was measured.
pub(crate) struct Results {
    pub(crate) model: String,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) device: Device,
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    pub(crate) tests: Vec<Prepared>,
    /// At least one.
    pub(crate) rounds: Vec<Round>,
    pub(crate) rounds_asked: usize,
    /// The program that was measured in turn.
    pub(crate) peer: Option<String>,
}

/// One round: the machine's limits, and a figure for each test.
pub(crate) struct Round {
    pub(crate) ceilings: Ceilings,
    pub(crate) seconds: Vec<f64>,
    /// The peer's tokens a second.
    pub(crate) peer: Option<Vec<f64>>,
}

/// One test over all rounds.
pub(crate) struct Summary {
    /// Tokens a second.
    pub(crate) speed: Spread,
    pub(crate) step_seconds: Spread,
    /// Bytes of weights and cache read in a second.
    bytes: Spread,
    /// Operations a second.
    ops: Spread,
    /// Part of the nearer ceiling, each round's figure against that round's ceiling.
    share: Spread,
    bound: &'static str,
    /// The peer's tokens a second, and our speed over its speed, round by round.
    pub(crate) peer: Option<(Spread, Spread)>,
}

impl Test {
    /// For people.
    pub(crate) fn name(&self) -> String {
        match self {
            Test::Prefill { tokens } => format!("prefill {tokens}"),
            Test::Decode { batch, context, .. } => format!("decode {batch} at {context}"),
        }
    }

    fn json(&self) -> Value {
        match self {
            Test::Prefill { tokens } => {
                json!({"test": "prefill", "batch": 1, "context": 0, "tokens": tokens})
            }
            Test::Decode { batch, context, tokens } => {
                json!({"test": "decode", "batch": batch, "context": context, "tokens": batch * tokens})
            }
        }
    }
}

impl Results {
    /// Every test and what came of it.
    pub(crate) fn summaries(&self) -> Vec<(&Prepared, Summary)> {
        let numbered = self.tests.iter().enumerate();
        numbered.filter_map(|(i, prepared)| Some((prepared, self.summary(i, prepared)?))).collect()
    }

    fn summary(&self, i: usize, prepared: &Prepared) -> Option<Summary> {
        let (tokens, steps, work) = (prepared.test.tokens() as f64, prepared.steps() as f64, prepared.work);
        let spread = |of: &dyn Fn(&Round) -> f64| Spread::of(self.rounds.iter().map(of));
        let peer_speed = |round: &Round| round.peer.as_ref().map(|speeds| speeds[i]);
        let peer = Spread::of(self.rounds.iter().filter_map(peer_speed));
        let ratio = |round: &Round| Some(tokens / round.seconds[i] / peer_speed(round)?);
        let ratio = Spread::of(self.rounds.iter().filter_map(ratio));
        Some(Summary {
            speed: spread(&|round| tokens / round.seconds[i])?,
            step_seconds: spread(&|round| round.seconds[i] / steps)?,
            bytes: spread(&|round| (work.weight_bytes + work.cache_bytes) as f64 / round.seconds[i])?,
            ops: spread(&|round| 2.0 * (work.int8_macs + work.f32_macs) as f64 / round.seconds[i])?,
            share: spread(&|round| Floor::of(&work, &round.ceilings).share(round.seconds[i]))?,
            bound: Floor::of(&work, &self.ceilings()?.map(|ceiling| ceiling.median)).bound(),
            peer: peer.zip(ratio),
        })
    }

    fn ceilings(&self) -> Option<Ceilings<Spread>> {
        let spread =
            |of: fn(&Ceilings) -> f64| Spread::of(self.rounds.iter().map(|round| of(&round.ceilings)));
        Some(Ceilings { read: spread(|c| c.read)?, int8: spread(|c| c.int8)?, f32: spread(|c| c.f32)? })
    }

    /// A table for people.
    pub(crate) fn text(&self) -> String {
        let mut columns = vec!["test", "tok/s", "quartiles", "ms/step", "GB/s", "GOP/s", "of ceiling"];
        if self.peer.is_some() {
            columns.extend(["llama.cpp", "ratio", "range"]);
        }
        let mut rows = vec![columns.into_iter().map(String::from).collect()];
        rows.extend(self.summaries().iter().map(|(prepared, summary)| summary.row(&prepared.test)));
        format!("{}\n{}", self.heading(), output::grid(&rows))
    }

    fn heading(&self) -> String {
        let (done, asked) = (self.rounds.len(), self.rounds_asked);
        let rounds = if done < asked { format!("{done} of {asked}, interrupted") } else { done.to_string() };
        let isa = self.isa.title();
        let mut rows = vec![
            ("model", self.model.clone()),
            ("device", format!("{}: {isa}, {}", self.device, threads(self.threads))),
            ("rounds", rounds),
        ];
        if let Some(Ceilings { read, int8, f32 }) = self.ceilings() {
            rows.push(("reads", format!("{} GB/s ({})", giga(read.median), quartiles(&read, giga))));
            rows.push(("int8", format!("{} GOP/s ({})", giga(int8.median), quartiles(&int8, giga))));
            rows.push(("f32", format!("{} GOP/s ({})", giga(f32.median), quartiles(&f32, giga))));
        }
        if let Some(peer) = &self.peer {
            rows.push(("llama.cpp", peer.clone()));
        }
        output::table(&rows)
    }

    /// The object that docs/benchmarks.md describes.
    pub(crate) fn json(&self) -> Value {
        let tests = self.summaries().into_iter().map(|(prepared, summary)| summary.json(prepared));
        let ceilings = self.ceilings().map(|ceilings| {
            json!({
                "read_bytes_per_second": ceilings.read.json(),
                "int8_ops_per_second": ceilings.int8.json(),
                "f32_ops_per_second": ceilings.f32.json(),
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "numerics_version": NUMERICS_VERSION,
            "model": self.model,
            "files": self.files,
            "device": self.device.name(),
            "instruction_set": self.isa.name(),
            "threads": self.threads,
            "rounds": self.rounds.len(),
            "rounds_asked": self.rounds_asked,
            "ceilings": ceilings,
            "against": self.peer.as_ref().map(|path| json!({"program": "llama.cpp", "path": path})),
            "tests": tests.collect::<Vec<_>>(),
        })
    }
}

impl Summary {
    fn row(&self, test: &Test) -> Vec<String> {
        let mut row = vec![
            test.name(),
            digits(self.speed.median),
            quartiles(&self.speed, digits),
            digits(self.step_seconds.median * 1e3),
            giga(self.bytes.median),
            giga(self.ops.median),
            format!("{:.0}% {}", self.share.median * 100.0, self.bound),
        ];
        if let Some((peer, ratio)) = &self.peer {
            row.push(digits(peer.median));
            row.push(format!("{:.2}", ratio.median));
            row.push(format!("{:.2} to {:.2}", ratio.min, ratio.max));
        }
        row
    }

    fn json(&self, prepared: &Prepared) -> Value {
        let (work, steps) = (prepared.work, prepared.steps() as u64);
        let mut test = prepared.test.json();
        test["steps"] = json!(steps);
        test["tokens_per_second"] = self.speed.json();
        test["seconds_per_step"] = self.step_seconds.json();
        test["weight_bytes"] = json!(work.weight_bytes);
        test["cache_bytes"] = json!(work.cache_bytes);
        test["int8_ops"] = json!(2 * work.int8_macs);
        test["f32_ops"] = json!(2 * work.f32_macs);
        test["bytes_per_second"] = self.bytes.json();
        test["ops_per_second"] = self.ops.json();
        test["share_of_ceiling"] = self.share.json();
        test["bound"] = json!(self.bound);
        let peer = self.peer.as_ref();
        test["against"] = json!(
            peer.map(|(speed, ratio)| json!({"tokens_per_second": speed.json(), "ratio": ratio.json()}))
        );
        test
    }
}

pub(crate) fn threads(n: usize) -> String {
    format!("{n} thread{}", if n == 1 { "" } else { "s" })
}

/// Three significant digits, or all before the point.
pub(crate) fn digits(x: f64) -> String {
    let before_point = if x >= 1.0 { x.log10() as usize + 1 } else { 1 };
    format!("{x:.*}", 3usize.saturating_sub(before_point))
}

pub(crate) fn giga(x: f64) -> String {
    digits(x / 1e9)
}

fn quartiles(spread: &Spread, show: fn(f64) -> String) -> String {
    format!("{} to {}", show(spread.lower_quartile), show(spread.upper_quartile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(
            [0.0, 0.456, 1.0, 12.345, 123.4, 12345.6].map(digits),
            ["0.00", "0.46", "1.00", "12.3", "123", "12346"]
        );
        assert_eq!(giga(2.5e9), "2.50");
    }
}
