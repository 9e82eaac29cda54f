//! The assembler, the disassembler and cuxray, as `gates.txt` pins them; what they write is kept by its input's hash.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use crate::pinned;

/// Of NVIDIA's packages, what is used; the rest is hundreds of megabytes.
const PROGRAMS: [&str; 3] = ["ptxas", "nvdisasm", "cuobjdump"];

pub(super) struct Tools {
    folder: PathBuf,
    programs: PathBuf,
    results: PathBuf,
    /// Of the pinned versions, since other tools write other results.
    versions: String,
}

impl Tools {
    /// Installs the tools if need be.
    pub(super) fn open(requirements: &Path) -> anyhow::Result<Self> {
        let elsewhere = "the other tasks do without them";
        let folder = pinned::packages(requirements, "gates", "nvidia/cu13/bin/ptxas", elsewhere)?;
        let programs = folder.join("nvidia/cu13/bin");
        prune(&programs)?;
        let results = pinned::cache()?.join("gates-results");
        fs::create_dir_all(&results).with_context(|| results.display().to_string())?;
        let versions = fs::read_to_string(requirements)?;
        Ok(Tools { folder, programs, results, versions })
    }

    /// Where a result of these inputs is, or will be.
    pub(super) fn result(&self, name: &str, inputs: &[&str]) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        for input in inputs.iter().chain([&self.versions.as_str()]) {
            hasher.update(&(input.len() as u64).to_le_bytes()).update(input.as_bytes());
        }
        self.results.join(format!("{}.{name}", &hasher.finalize().to_hex()[..24]))
    }

    /// What a program prints, on stdout and stderr.
    pub(super) fn output(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        run(Command::new(self.programs.join(program)).args(arguments), program)
    }

    /// What cuxray prints.
    pub(super) fn cuxray(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let path = env::var_os("PATH").unwrap_or_default();
        let places = [self.programs.clone()].into_iter().chain(env::split_paths(&path));
        let path: OsString = env::join_paths(places)?;
        let mut command = Command::new("python3");
        command.args(["-m", "cuxray"]).args(arguments);
        // It would download tools of other versions where it does not find these.
        command.env("PYTHONPATH", &self.folder).env("PATH", path).env("CUXRAY_NO_FETCH", "1");
        let output = command.output().context("python3")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cuxray {}: {errors}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn run(command: &mut Command, name: &str) -> anyhow::Result<String> {
    let output = command.output().with_context(|| name.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {text}");
    Ok(text.into_owned())
}

/// Deletes what is beside the programs that are used.
fn prune(programs: &Path) -> anyhow::Result<()> {
    let is_kept = |path: &Path| PROGRAMS.iter().any(|name| path.ends_with(name)) || path == programs;
    let package = programs.parent().context("a folder of programs")?;
    for entry in fs::read_dir(package)?.chain(fs::read_dir(programs)?) {
        let path = entry?.path();
        match (is_kept(&path), path.is_dir()) {
            (true, _) => {}
            (false, true) => fs::remove_dir_all(&path).with_context(|| path.display().to_string())?,
            (false, false) => fs::remove_file(&path).with_context(|| path.display().to_string())?,
        }
    }
    Ok(())
}
