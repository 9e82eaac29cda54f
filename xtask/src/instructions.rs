//! Instructions of the hot operations, counted by callgrind and compared with the committed counts.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};

/// The committed counts, beside the bench whose operations they are of.
const COUNTS: &str = "crates/cpu/benches/instructions.txt";

/// The function of the bench inside of which callgrind counts.
const COUNTED: &str = "instructions::samebits_counted";

/// Growth of a count that passes: small changes elsewhere move the compiler's inlining by less.
const TOLERANCE: f64 = 0.03;

/// Counts, and compares them with the committed ones or, to bless, writes these.
///
/// # Errors
/// If a count grew by more than [`TOLERANCE`], an operation has no committed count or lost it, or valgrind is missing.
pub(crate) fn check(root: &Path, bless: bool) -> anyhow::Result<()> {
    let counts = count(root, &build(root)?)?;
    let file = root.join(COUNTS);
    if bless {
        fs::write(&file, text(&counts)?).with_context(|| file.display().to_string())?;
        println!("wrote {} counts to {COUNTS}", counts.len());
        return Ok(());
    }
    let committed = parse(&fs::read_to_string(&file).with_context(|| file.display().to_string())?)?;
    let (report, failures) = compare(&committed, &counts);
    print!("{report}");
    if failures > 0 {
        bail!(
            "{failures} of {} counts are not as committed; find out why, or take the new ones by \
             `cargo xtask instructions --bless`",
            counts.len()
        );
    }
    println!("{} counts are within {:.0}% of the committed ones", counts.len(), 100.0 * TOLERANCE);
    Ok(())
}

/// Builds the bench, and finds its executable in cargo's messages.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["bench", "-p", "samebits-cpu", "--bench", "instructions", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo")?;
    ensure!(output.status.success(), "the bench does not build");
    let messages = String::from_utf8(output.stdout).context("cargo's messages")?;
    let mut executables =
        messages.lines().filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next());
    let found = executables.rfind(|path| path.contains("instructions"));
    found.map(PathBuf::from).context("cargo names no executable of the bench")
}

/// Runs the bench in callgrind, which writes a file each time that the counted function returns, numbered from 1 on.
fn count(root: &Path, bench: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let folder = root.join("target/instructions");
    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    fs::create_dir_all(&folder)?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--callgrind-out-file=counts"])
        .args([format!("--toggle-collect={COUNTED}"), format!("--dump-after={COUNTED}")])
        .arg(bench)
        .current_dir(&folder)
        .stderr(Stdio::inherit())
        .output()
        .context("valgrind; install it by the system's package manager")?;
    ensure!(output.status.success(), "the bench failed in valgrind");
    let names = String::from_utf8(output.stdout).context("the bench's names")?;
    let counts = names.lines().zip(1..).map(|(name, n)| {
        let dump = fs::read_to_string(folder.join(format!("counts.{n}"))).context("callgrind's counts")?;
        let total =
            dump.lines().find_map(|line| line.strip_prefix("totals: ")).context("callgrind's total")?;
        Ok((name.into(), total.trim().parse()?))
    });
    let counts = counts.collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(counts.iter().all(|(_, count)| *count > 0), "callgrind counted nothing in {COUNTED}");
    Ok(counts)
}

fn text(counts: &[(String, u64)]) -> anyhow::Result<String> {
    let version = Command::new("rustc").arg("--version").output().context("rustc")?.stdout;
    let mut text = format!(
        "# Instructions of each operation of instructions.rs; by `cargo xtask instructions --bless`.\n# {}\n",
        String::from_utf8_lossy(&version).trim()
    );
    for (name, count) in counts {
        writeln!(text, "{name:32} {count:>10}")?;
    }
    Ok(text)
}

fn parse(text: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let counts = lines.map(|line| {
        let (name, count) = line.rsplit_once(' ').with_context(|| format!("{COUNTS}: {line}"))?;
        Ok((name.trim().into(), count.parse().with_context(|| format!("{COUNTS}: {line}"))?))
    });
    counts.collect()
}

/// A table of what moved, and how much of it fails. Fewer instructions pass.
fn compare(committed: &[(String, u64)], counts: &[(String, u64)]) -> (String, usize) {
    let (mut report, mut failures) = (String::new(), 0);
    let mut row = |name: &str, old: Option<u64>, new: Option<u64>| {
        let change = match (old, new) {
            (Some(old), Some(new)) => new as f64 / old as f64 - 1.0,
            _ => f64::INFINITY,
        };
        if change.abs() <= TOLERANCE {
            return;
        }
        let verdict = match change {
            f64::INFINITY => "only on one side".into(),
            change => format!("{:+.1}%", 100.0 * change),
        };
        let number = |count: Option<u64>| count.map_or("-".into(), |count| count.to_string());
        report += &format!("{name:32} {:>10} {:>10}  {verdict}\n", number(old), number(new));
        failures += usize::from(change > 0.0);
    };
    let find = |list: &[(String, u64)], name: &str| list.iter().find(|(other, _)| other == name).map(|c| c.1);
    for (name, new) in counts {
        row(name, find(committed, name), Some(*new));
    }
    for (name, old) in committed.iter().filter(|(name, _)| find(counts, name).is_none()) {
        row(name, Some(*old), None);
    }
    (report, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(values: &[(&str, u64)]) -> Vec<(String, u64)> {
        values.iter().map(|&(name, count)| (name.into(), count)).collect()
    }

    #[test]
    fn growth_and_missing_operations_fail_and_savings_do_not() {
        let committed = counts(&[("avx2 a", 1000), ("avx2 b", 1000), ("avx2 c", 1000), ("avx2 gone", 1)]);
        let now = counts(&[("avx2 a", 1029), ("avx2 b", 1031), ("avx2 c", 500), ("avx2 new", 1)]);
        let (report, failures) = compare(&committed, &now);
        assert_eq!(failures, 3, "{report}");
        assert!(
            !report.contains("avx2 a") && report.contains("+3.1%") && report.contains("-50.0%"),
            "{report}"
        );
    }

    #[test]
    fn counts_survive_their_file() {
        let all = counts(&[("scalar quantize 1/Q4_0", 7), ("avx2 glu/silu", 12345)]);
        assert_eq!(parse(&text(&all).unwrap()).unwrap(), all);
        assert!(parse("avx2 matvec many\n").is_err());
    }
}
