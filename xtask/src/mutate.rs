//! `cargo xtask mutate cuda`: the test that runs mutants, with options, and the document of what it finds.

use std::{path::Path, process::Command};

use anyhow::{Context, bail, ensure};

const OPTIONS: [&str; 8] = ["kernel", "module", "operator", "sample", "seed", "minutes", "workers", "json"];

/// Options that choose some of the mutants, of which there is no document.
const CHOICES: [&str; 4] = ["kernel", "module", "operator", "sample"];

/// Runs mutants of the kernels, all of them unless options say otherwise.
///
/// # Errors
/// An option is not one, or the test does not run; that mutants live is none.
pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let [backend, rest @ ..] = arguments else { bail!("mutate what? cargo xtask mutate cuda") };
    ensure!(backend == "cuda", "{backend} has no mutants; cuda has");
    let mut options = Vec::new();
    for pair in rest.chunks(2) {
        let [name, value] = pair else { bail!("{}: a value is missing", pair[0]) };
        let name = name.strip_prefix("--").filter(|name| OPTIONS.contains(name));
        let name =
            name.with_context(|| format!("{} is no option; there are {}", pair[0], OPTIONS.join(", ")))?;
        let value =
            if name == "json" { std::path::absolute(value)?.display().to_string() } else { value.clone() };
        options.push(format!("{name}={value}"));
    }
    let chooses = |option: &String| CHOICES.iter().any(|name| option.starts_with(&format!("{name}=")));
    if !options.iter().any(chooses) {
        options.push(format!("document={}", root.join("docs/cuda-mutation.md").display()));
    }
    let status = Command::new("cargo")
        .args(["test", "--quiet", "-p", "samebits-cuda", "--test", "mutation", "--"])
        .args(["--ignored", "--exact", "mutants", "--nocapture"])
        .env("SAMEBITS_MUTATE", options.join(","))
        .current_dir(root)
        .status()
        .context("cargo")?;
    ensure!(status.success(), "the mutants did not run");
    Ok(())
}
