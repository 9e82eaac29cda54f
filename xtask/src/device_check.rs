//! `cargo xtask device-check cuda`: all that a machine with a GPU can tell, in parts that each have a time limit and fail alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

/// Minutes for all parts, but for the build before them.
const MINUTES: f64 = 10.0;

/// Before the answer of a part, on a line of what its test prints.
const ANSWER: &str = "=answer ";

/// Tests of which the sanitizer runs some.
const TESTS: [&str; 4] = ["conformance", "linear", "device", "device_check"];

/// The tools of compute-sanitizer.
const TOOLS: [&str; 3] = ["memcheck", "racecheck", "synccheck"];

struct Options {
    json: Option<PathBuf>,
    minutes: f64,
    is_simulator: bool,
}

/// What is run, and for how long at most, as a share of the time.
struct Part {
    name: String,
    command: Command,
    share: f64,
}

/// Runs every part, prints a table and writes JSON. A part that fails is a finding.
///
/// # Errors
/// If the tests do not build, or a finding is that bits differ or a part failed; the report is written before.
pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let options = options(arguments)?;
    let tests = build(root)?;
    let start = Instant::now();
    let mut findings = Map::new();
    findings.insert("simulator".into(), options.is_simulator.into());
    findings.insert("system".into(), system());
    let mut failed = Vec::new();
    for part in parts(&tests, options.is_simulator)? {
        let left = Duration::from_secs_f64(options.minutes * 60.0).saturating_sub(start.elapsed());
        let limit = left.min(Duration::from_secs_f64(options.minutes * 60.0 * part.share));
        eprintln!("[{} s] {}, {} s at most", start.elapsed().as_secs(), part.name, limit.as_secs());
        let begin = Instant::now();
        let mut finding = finish(part.command, limit);
        finding["seconds"] = json!(begin.elapsed().as_secs_f64());
        if finding["ok"] != true {
            failed.push(part.name.clone());
        }
        findings.insert(part.name, finding);
    }
    let findings = Value::Object(findings);
    print!("{}", table(&findings));
    if let Some(path) = &options.json {
        fs::write(path, format!("{findings:#}\n")).with_context(|| path.display().to_string())?;
    }
    ensure!(failed.is_empty(), "these parts have findings: {}", failed.join(", "));
    Ok(())
}

fn options(arguments: &[String]) -> anyhow::Result<Options> {
    let [backend, rest @ ..] = arguments else { bail!("check which device? cargo xtask device-check cuda") };
    ensure!(backend == "cuda", "{backend} has no device check; cuda has");
    let mut options = Options { json: None, minutes: MINUTES, is_simulator: false };
    let mut rest = rest.iter();
    while let Some(name) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{name}: a value is missing"));
        match name.as_str() {
            "--json" => options.json = Some(value()?.into()),
            "--minutes" => options.minutes = value()?.parse().context("--minutes")?,
            "--simulator" => options.is_simulator = true,
            _ => bail!("{name}: not an option; there are --json, --minutes and --simulator"),
        }
    }
    Ok(options)
}

/// Builds the tests, and returns where each is: they are run without cargo, so that one that hangs can be ended.
fn build(root: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut command = Command::new("cargo");
    command.args(["test", "--no-run", "--message-format=json", "-p", "samebits-cuda"]).current_dir(root);
    for test in TESTS {
        command.args(["--test", test]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let messages = String::from_utf8(output.stdout)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let test = |message: Value| {
        let name = message["target"]["name"].as_str()?;
        let path = message["executable"].as_str()?;
        TESTS.contains(&name).then(|| (name.to_owned(), PathBuf::from(path)))
    };
    Ok(messages.filter_map(test).collect())
}

fn parts(tests: &[(String, PathBuf)], is_simulator: bool) -> anyhow::Result<Vec<Part>> {
    let of = |test: &str| {
        let found = tests.iter().find(|(name, _)| name == test).map(|(_, path)| path.clone());
        found.with_context(|| format!("cargo built no test {test}"))
    };
    let mut parts = Vec::new();
    let prefix = if is_simulator { "simulator:" } else { "" };
    for (name, share) in [("device", 0.1), ("rates", 0.1), ("golden", 0.3), ("timings", 0.4)] {
        let mut command = Command::new(of("device_check")?);
        command.args(["--exact", "part", "--ignored", "--nocapture"]);
        command.env("SAMEBITS_DEVICE_PART", format!("{prefix}{name}"));
        parts.push(Part { name: name.into(), command, share });
    }
    for test in ["linear", "device", "conformance"] {
        let mut command = Command::new(of(test)?);
        on_device(&mut command, is_simulator);
        if is_simulator {
            command.env("SAMEBITS_CASE_STRIDE", "64").env("SAMEBITS_CASE", "rms_norm/");
        }
        parts.push(Part { name: format!("test {test}"), command, share: 0.3 });
    }
    for tool in TOOLS.into_iter().filter(|_| !is_simulator && is_there("compute-sanitizer")) {
        let mut command = Command::new("compute-sanitizer");
        command.args(["--tool", tool, "--error-exitcode", "9"]).arg(of("conformance")?);
        command.args(["--exact", "primitives_rows_blocks_and_attention"]);
        on_device(&mut command, false);
        // A case of each kernel family, since a sanitizer is a hundred times slower.
        command.env("SAMEBITS_CUDA_APART", "1").env("SAMEBITS_CASE", "m=17");
        parts.push(Part { name: format!("sanitizer {tool}"), command, share: 0.1 });
    }
    Ok(parts)
}

fn on_device(command: &mut Command, is_simulator: bool) {
    if !is_simulator {
        command.env("SAMEBITS_CUDA_DRIVER", "1");
    }
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// What the system says: the processor's architecture, and the GPUs as NVIDIA's tool lists them.
fn system() -> Value {
    let query = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu,mig.mode.current";
    let output = Command::new("nvidia-smi").args([&format!("--query-gpu={query}"), "--format=csv"]).output();
    let gpus = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let gpus: Vec<String> = gpus.unwrap_or_default().lines().map(str::to_owned).collect();
    json!({ "architecture": std::env::consts::ARCH, "nvidia_smi": gpus })
}

/// Runs a command to its end or its limit: whether it went well, its answer if it has one, and the end of what it printed if not.
fn finish(command: Command, limit: Duration) -> Value {
    let output = match limited(&command, limit).output() {
        Ok(output) => output,
        Err(error) => return json!({ "ok": false, "why": format!("timeout, of GNU coreutils: {error}") }),
    };
    let [text, errors] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let answer = text.lines().find_map(|line| serde_json::from_str::<Value>(line.strip_prefix(ANSWER)?).ok());
    let mut finding = json!({ "ok": output.status.success() });
    if !output.status.success() {
        finding["why"] = match output.status.code() {
            Some(124 | 137) => json!(format!("ended after {} s", limit.as_secs())),
            _ => json!(output.status.to_string()),
        };
        let lines: Vec<&str> = text.lines().chain(errors.lines()).collect();
        finding["output"] = json!(lines[lines.len().saturating_sub(60)..]);
    }
    if let Some(answer) = answer {
        if answer["differ"].as_array().is_some_and(|differ| !differ.is_empty()) {
            finding["ok"] = false.into();
            finding["why"] = json!("bits differ");
        }
        finding["answer"] = answer;
    }
    finding
}

/// The command under one that ends it, and what it started, when its time is over.
fn limited(command: &Command, limit: Duration) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=5", &format!("{:.1}", limit.as_secs_f64().max(0.1))]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// The findings for people.
fn table(findings: &Value) -> String {
    let mut text = String::new();
    if findings["simulator"] == true {
        text += "On the stand-in: times and rates below say nothing of a device.\n\n";
    }
    for line in findings["system"]["nvidia_smi"].as_array().into_iter().flatten() {
        text += &format!("{}\n", line.as_str().unwrap_or_default());
    }
    text +=
        &format!("{}\n\n| part | result | seconds |\n| --- | --- | --: |\n", findings["device"]["answer"]);
    for (name, finding) in findings.as_object().into_iter().flatten() {
        if let Some(is_ok) = finding["ok"].as_bool() {
            let why = finding["why"].as_str().unwrap_or("failed");
            let result = if is_ok { "passed" } else { why };
            text +=
                &format!("| {name} | {result} | {:.1} |\n", finding["seconds"].as_f64().unwrap_or_default());
        }
    }
    let rates = &findings["rates"]["answer"];
    let rate = |name: &str, unit: f64| rates[name].as_f64().unwrap_or_default() / unit;
    text += &format!(
        "\nA copy moves {:.0} GB/s; int8 matrices {:.1} TOP/s.\n\n",
        rate("bytes_per_second", 1e9),
        rate("int8_operations_per_second", 1e12)
    );
    text += "| model | operation | tokens | µs | of the bytes | of int8 |\n| --- | --- | --: | --: | --: | --: |\n";
    for timing in findings["timings"]["answer"].as_array().into_iter().flatten() {
        let word = |name: &str| timing[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| timing[name].as_f64().unwrap_or_default();
        text += &format!(
            "| {} | {} | {} | {:.1} | {:.0}% | {:.0}% |\n",
            word("model"),
            word("what"),
            timing["tokens"],
            number("seconds") * 1e6,
            number("share_of_bytes") * 100.0,
            number("share_of_int8") * 100.0
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn parts_end_with_what_they_found() {
        let second = Duration::from_secs(5);
        let found = finish(shell("echo noise; echo '=answer {\"x\": 1}'"), second);
        assert_eq!(found, json!({ "ok": true, "answer": { "x": 1 } }));
        let found = finish(shell("echo why >&2; exit 3"), second);
        assert_eq!((&found["ok"], &found["output"]), (&json!(false), &json!(["why"])));
        let found = finish(shell("echo '=answer {\"differ\": [\"linear\"]}'"), second);
        assert_eq!((&found["ok"], &found["why"]), (&json!(false), &json!("bits differ")));
        let found = finish(shell("echo begun; exec sleep 60"), Duration::from_millis(200));
        assert_eq!((&found["ok"], &found["output"]), (&json!(false), &json!(["begun"])));
    }

    #[test]
    fn a_report_is_made_of_what_there_is() {
        let timing = json!({ "model": "m", "what": "linear", "tokens": 1, "seconds": 2e-6, "share_of_bytes": 0.5, "share_of_int8": 0.0 });
        let report = table(&json!({
            "simulator": true,
            "golden": { "ok": false, "why": "bits differ", "seconds": 1.0 },
            "timings": { "ok": true, "seconds": 1.0, "answer": [timing] },
        }));
        for line in
            ["On the stand-in", "| golden | bits differ | 1.0 |", "| m | linear | 1 | 2.0 | 50% | 0% |"]
        {
            assert!(report.contains(line), "{report}");
        }
    }
}
