//! Developer tasks: `cargo xtask tidy`, `cargo xtask bless`, `cargo xtask instructions`, `cargo xtask ptx`.
#![deny(unsafe_code)]

mod instructions;
mod ptx;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, anyhow, bail};

const HELP: &str = "\
cargo xtask tidy     check the architecture invariants that can be read off the tree
cargo xtask bless    write the golden bits of the numerics contract anew; raise NUMERICS_VERSION first
cargo xtask instructions [--bless]
                     count the instructions of the hot kernels, and compare with the committed counts or write them
cargo xtask ptx [--check]
                     compile the CUDA kernels to the PTX that the tree ships, or compare it; installs NVRTC from PyPI
";

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let result = match task.as_deref() {
        Some("tidy") => tidy::check(&root()),
        Some("bless") => bless(),
        Some("instructions") => option("--bless").and_then(|bless| instructions::check(&root(), bless)),
        Some("ptx") => option("--check").and_then(|check| ptx::run(&root(), check)),
        _ => {
            print!("{HELP}");
            return ExitCode::from(u8::from(task.is_some()));
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether a task has the one option that it may have.
fn option(name: &str) -> anyhow::Result<bool> {
    match std::env::args().nth(2) {
        None => Ok(false),
        Some(given) if given == name => Ok(true),
        Some(other) => Err(anyhow!("{other}: not an option; there is {name}")),
    }
}

fn bless() -> anyhow::Result<()> {
    let status = Command::new("cargo")
        .args(["test", "-p", "samebits-conformance", "--test", "golden"])
        .env("SAMEBITS_BLESS", "1")
        .current_dir(root())
        .status()
        .context("cargo")?;
    if status.success() { Ok(()) } else { bail!("the golden test failed") }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
