//! llama.cpp's own benchmarks, run in turn with ours.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use samebits::checkpoint::{Checkpoint, TokenizerSource};
use serde_json::Value;

use super::{Interrupt, steps::Test};
use crate::args::Against;

const BENCH: &str = "llama-bench";
const BATCHED: &str = "llama-batched-bench";

/// Tokens that llama.cpp rounds the context of a sequence up to.
const CONTEXT_STEP: usize = 256;

/// How often a run is repeated that leaves out a test, as `llama-batched-bench` does when it ends before its log is written.
const TRIES: usize = 3;

/// llama.cpp's programs, and how they are to be run.
pub(crate) struct LlamaCpp {
    directory: PathBuf,
    model: PathBuf,
    threads: usize,
    max_tokens: usize,
    tests: Vec<Test>,
}

impl LlamaCpp {
    /// Finds the programs that `tests` need.
    ///
    /// # Errors
    /// If one is not found, or the model is no GGUF file.
    pub(crate) fn find(
        against: &Against,
        checkpoint: &Checkpoint,
        threads: usize,
        max_tokens: usize,
        tests: &[Test],
    ) -> anyhow::Result<LlamaCpp> {
        let (TokenizerSource::Gguf(_), [model]) = (&checkpoint.tokenizer, checkpoint.files.as_slice()) else {
            bail!("--against llama.cpp takes a model in one GGUF file; give such a file as the model");
        };
        let directory = directory(against.path.as_deref())?;
        if tests.iter().any(|test| test.batch() > 1) && !program(&directory, BATCHED).is_file() {
            let place = directory.display();
            bail!(
                "there is no {BATCHED} in {place}, which a batch above 1 needs; build it, or give --batch 1"
            );
        }
        Ok(LlamaCpp { directory, model: model.clone(), threads, max_tokens, tests: tests.to_vec() })
    }

    /// For people: the program and where it is.
    pub(crate) fn title(&self) -> String {
        program(&self.directory, BENCH).display().to_string()
    }

    /// Tokens a second of every test, each run once; `None` if interrupted.
    ///
    /// # Errors
    /// If a program fails, or leaves a test out.
    pub(crate) fn round(&self, interrupt: &Interrupt) -> anyhow::Result<Option<Vec<f64>>> {
        let mut measured = Vec::new();
        for run in self.runs() {
            let mut tries = 0..TRIES;
            measured.extend(loop {
                let output = self.run(&run);
                // It was sent the same signal.
                if interrupt.is_set() {
                    return Ok(None);
                }
                let found = run.parse(&output?).with_context(|| run.line())?;
                if run.tests.iter().all(|test| found.iter().any(|(found, _)| found == test)) {
                    break found;
                }
                if tries.next().is_none() {
                    bail!("{} leaves out a test of {:?}", run.line(), run.tests);
                }
            });
        }
        let speed = |test: &Test| measured.iter().find(|(found, _)| found == test).map(|&(_, speed)| speed);
        Ok(self.tests.iter().map(speed).collect())
    }

    /// As few runs as may be: prompts, single sequences, and the batches of each context.
    fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &test in &self.tests {
            match runs.iter_mut().find(|run| run.takes(&test)) {
                Some(run) => run.tests.push(test),
                None => runs.push(Run { tests: vec![test], arguments: Vec::new() }),
            }
        }
        for run in &mut runs {
            run.arguments = self.arguments(&run.options());
        }
        runs
    }

    /// What all runs have in common, and `options`: the same model, threads and largest step, on the host's processors.
    fn arguments(&self, options: &[String]) -> Vec<String> {
        let (model, threads) = (self.model.display().to_string(), self.threads.to_string());
        let (step, most) = (self.max_tokens.to_string(), self.max_tokens.max(2048).to_string());
        let common = ["-m", &model, "-t", &threads, "-ngl", "0", "-ub", &step, "-b", &most];
        common.iter().map(|option| option.to_string()).chain(options.iter().cloned()).collect()
    }

    fn run(&self, run: &Run) -> anyhow::Result<String> {
        let path = program(&self.directory, run.program());
        let mut command = Command::new(&path);
        command.args(&run.arguments).env("LD_LIBRARY_PATH", self.libraries());
        let output = command.output().with_context(|| format!("cannot run {}", path.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().count().saturating_sub(5);
            let last: Vec<_> = said.lines().skip(last).collect();
            bail!("{} failed ({}):\n{}", run.line(), output.status, last.join("\n"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A build that is not installed has its libraries beside its programs.
    fn libraries(&self) -> std::ffi::OsString {
        let others = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let others = env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
        env::join_paths([self.directory.clone()].into_iter().chain(others)).unwrap_or_default()
    }
}

/// One call of a program, for at least one test.
struct Run {
    tests: Vec<Test>,
    arguments: Vec<String>,
}

impl Run {
    /// Whether the program measures a test along with those of this run.
    fn takes(&self, test: &Test) -> bool {
        match (self.tests[0], test) {
            (Test::Prefill { .. }, Test::Prefill { .. }) => true,
            (Test::Decode { batch: 1, .. }, Test::Decode { batch, .. }) => *batch == 1,
            (Test::Decode { context, .. }, Test::Decode { batch, context: other, .. }) => {
                *batch > 1 && context == *other
            }
            _ => false,
        }
    }

    fn program(&self) -> &'static str {
        if self.tests[0].batch() > 1 { BATCHED } else { BENCH }
    }

    /// For people.
    fn line(&self) -> String {
        format!("{} {}", self.program(), self.arguments.join(" "))
    }

    /// What it is to measure, once.
    fn options(&self) -> Vec<String> {
        let list = |of: fn(&Test) -> usize| {
            self.tests.iter().map(|test| of(test).to_string()).collect::<Vec<_>>().join(",")
        };
        let options = match self.tests[0] {
            Test::Prefill { .. } => format!("-p {} -n 0 -r 1 -o json", list(Test::tokens)),
            Test::Decode { batch: 1, tokens, .. } => {
                format!("-p 0 -n {tokens} -d {} -r 1 -o json", list(Test::past))
            }
            Test::Decode { context, tokens, .. } => {
                let each = (context + tokens).next_multiple_of(CONTEXT_STEP);
                let room = each * self.tests.iter().map(Test::batch).max().unwrap_or(1);
                let batches = list(Test::batch);
                format!("-c {room} -npp {context} -ntg {tokens} -npl {batches} --output-format jsonl")
            }
        };
        options.split(' ').map(String::from).collect()
    }

    fn parse(&self, output: &str) -> anyhow::Result<Vec<(Test, f64)>> {
        if self.program() == BENCH { parse_bench(output) } else { parse_batched(output) }
    }
}

/// Where `llama-bench` is: in or under `path`, or in PATH.
fn directory(path: Option<&Path>) -> anyhow::Result<PathBuf> {
    let places: Vec<PathBuf> = match path {
        Some(path) if path.is_file() => path.parent().map(Path::to_path_buf).into_iter().collect(),
        Some(path) => [path.into(), path.join("bin"), path.join("build/bin")].into(),
        None => env::var_os("PATH").map(|paths| env::split_paths(&paths).collect()).unwrap_or_default(),
    };
    if let Some(found) = places.into_iter().find(|place| program(place, BENCH).is_file()) {
        return Ok(found);
    }
    match path {
        Some(path) => bail!("there is no {BENCH} at {}, nor in bin or build/bin of it", path.display()),
        None => bail!("there is no {BENCH} in PATH; say where it is: --against llama.cpp=DIRECTORY"),
    }
}

fn program(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}{}", env::consts::EXE_SUFFIX))
}

/// The tests in the output of `llama-bench -o json`, and their tokens a second.
fn parse_bench(output: &str) -> anyhow::Result<Vec<(Test, f64)>> {
    let rows: Vec<Value> = serde_json::from_str(output).context("its output is not the JSON expected")?;
    rows.iter()
        .map(|row| {
            let (prompt, decoded) = (count(row, "n_prompt")?, count(row, "n_gen")?);
            let test = match decoded {
                0 => Test::Prefill { tokens: prompt },
                _ => Test::Decode { batch: 1, context: count(row, "n_depth")?, tokens: decoded },
            };
            Ok((test, (prompt + decoded) as f64 / number(row, "avg_ns")? * 1e9))
        })
        .collect()
}

/// The tests in the output of `llama-batched-bench --output-format jsonl`, and their tokens a second. Where it divides by
/// zero, as it does without a prompt, it prints a number that is none.
fn parse_batched(output: &str) -> anyhow::Result<Vec<(Test, f64)>> {
    let lines = output.lines().map(str::trim).filter(|line| line.starts_with('{'));
    lines
        .map(|line| {
            let line = ["-nan", "nan", "-inf", "inf"]
                .iter()
                .fold(line.to_string(), |line, none| line.replace(&format!(": {none}"), ": null"));
            let row: Value = serde_json::from_str(&line).context("its output is not the JSON expected")?;
            let (batch, tokens) = (count(&row, "pl")?, count(&row, "tg")?);
            let test = Test::Decode { batch, context: count(&row, "pp")?, tokens };
            Ok((test, (batch * tokens) as f64 / number(&row, "t_tg")?))
        })
        .collect()
}

fn number(row: &Value, field: &str) -> anyhow::Result<f64> {
    let number = row[field].as_f64().filter(|number| *number > 0.0);
    number.with_context(|| format!("its output has no positive number {field:?}"))
}

fn count(row: &Value, field: &str) -> anyhow::Result<usize> {
    let count = row[field].as_u64().with_context(|| format!("its output has no count {field:?}"))?;
    Ok(count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(tests: &[Test]) -> LlamaCpp {
        LlamaCpp {
            directory: "/opt".into(),
            model: "m.gguf".into(),
            threads: 3,
            max_tokens: 256,
            tests: tests.to_vec(),
        }
    }

    #[test]
    fn output_of_llama_bench_is_read() {
        let rows = r#"[{"n_prompt": 64, "n_gen": 0, "n_depth": 0, "avg_ns": 500000000, "avg_ts": 128.0},
                       {"n_prompt": 0, "n_gen": 4, "n_depth": 32, "avg_ns": 2000000000}]"#;
        let decode = Test::Decode { batch: 1, context: 32, tokens: 4 };
        let expected = [(Test::Prefill { tokens: 64 }, 128.0), (decode, 2.0)];
        assert_eq!(parse_bench(rows).unwrap(), expected);
        assert!(parse_bench("error: no model").is_err());
        let error = parse_bench(r#"[{"n_prompt": 64, "n_gen": 0}]"#).unwrap_err();
        assert!(error.to_string().contains("avg_ns"), "{error}");
    }

    #[test]
    fn output_of_llama_batched_bench_is_read_though_it_holds_nan() {
        let line =
            r#"{"n_kv_max": 2048, "pp": 0, "tg": 4, "pl": 8, "t_pp": 0.0, "speed_pp": -nan, "t_tg": 0.5}"#;
        let expected = [(Test::Decode { batch: 8, context: 0, tokens: 4 }, 64.0)];
        assert_eq!(parse_batched(&format!("\nmain: starting\n{line}\n")).unwrap(), expected);
        assert!(parse_batched(r#"{"pl": 8, "tg": 4}"#).is_err());
    }

    #[test]
    fn tests_become_as_few_runs_as_may_be() {
        let decode = |batch, context| Test::Decode { batch, context, tokens: 16 };
        let tests = [Test::Prefill { tokens: 128 }, Test::Prefill { tokens: 512 }, decode(1, 0)];
        let more = [decode(4, 0), decode(32, 0), decode(1, 1024), decode(4, 1024)];
        let runs: Vec<String> = peer(&[&tests[..], &more].concat()).runs().iter().map(Run::line).collect();
        let common = "-m m.gguf -t 3 -ngl 0 -ub 256 -b 2048";
        let batched = "-ntg 16 -npl";
        let expected = [
            format!("llama-bench {common} -p 128,512 -n 0 -r 1 -o json"),
            format!("llama-bench {common} -p 0 -n 16 -d 0,1024 -r 1 -o json"),
            format!("llama-batched-bench {common} -c 8192 -npp 0 {batched} 4,32 --output-format jsonl"),
            format!("llama-batched-bench {common} -c 5120 -npp 1024 {batched} 4 --output-format jsonl"),
        ];
        assert_eq!(runs, expected);
    }

    #[test]
    fn what_is_not_found_is_said() {
        let error = directory(Some(Path::new("/nowhere"))).unwrap_err().to_string();
        assert!(error.contains("llama-bench") && error.contains("/nowhere"), "{error}");
    }
}
