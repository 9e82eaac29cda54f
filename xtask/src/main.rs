//! Developer tasks; without arguments it lists them.
#![deny(unsafe_code)]

mod device_check;
mod gates;
mod instructions;
mod mutate;
mod pinned;
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
cargo xtask gates [--bless] [--json]
                     assemble that PTX for five architectures and compare registers, memory, instructions and estimates
                     with the committed ones, or write them; installs NVIDIA's assembler and cuxray from PyPI
cargo xtask device-check cuda [--json PATH] [--minutes M] [--simulator]
                     on a machine with a GPU: what it is, its bits, its memory checked by compute-sanitizer, its rates and
                     the time of each operation; with the stand-in it only shows that this works
cargo xtask mutate cuda [--module M] [--kernel NAME] [--operator O] [--sample N] [--seed S] [--minutes M] [--json PATH]
                     change an instruction of that PTX at a time and see whether the tests notice; writes
                     docs/cuda-mutation.md where all mutants are chosen
";

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let result = match task.as_deref() {
        Some("tidy") => tidy::check(&root()),
        Some("bless") => bless(),
        Some("instructions") => option("--bless").and_then(|bless| instructions::check(&root(), bless)),
        Some("device-check") => device_check::run(&root(), &std::env::args().skip(2).collect::<Vec<_>>()),
        Some("gates") => gates::run(&root(), &std::env::args().skip(2).collect::<Vec<_>>()),
        Some("mutate") => mutate::run(&root(), &std::env::args().skip(2).collect::<Vec<_>>()),
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
