//! Architecture invariants that can be read off the tree; see ARCHITECTURE.md.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// Crates that may hold `unsafe`, each block with its reason.
const UNSAFE: [&str; 8] = [
    "crates/checkpoint",
    "crates/cuda",
    "crates/neuron",
    "crates/nrt-sim",
    "crates/pjrt",
    "crates/ptx-sim",
    "kernels",
    "xtask",
];

/// Crates that are written over any backend: no backend's name, no `cfg` but for tests.
const AGNOSTIC: [&str; 5] = ["models", "crates/nn", "crates/engine", "crates/runner", "crates/tensor"];

/// Lines past which a second concept is hiding in a file.
const LINES_MAX: usize = 900;

/// Checks every invariant.
///
/// # Errors
/// Listing what does not hold, a line each.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    for manifest in manifests(root)? {
        check_manifest(root, &manifest, &mut problems)?;
    }
    for source in sources(root)? {
        check_source(root, &source, &mut problems)?;
    }
    if problems.is_empty() { Ok(()) } else { bail!("the tree is not tidy:\n{}", problems.join("\n")) }
}

fn check_manifest(root: &Path, path: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let (text, name) = (read(path)?, relative(root, path));
    if !text.contains("[lints]\nworkspace = true") {
        problems.push(format!("{name}: does not take the workspace's lints"));
    }
    let tensors = ["samebits-tensor", "samebits-nn", "samebits-runner", "candle"];
    if name == "crates/engine/Cargo.toml" && tensors.iter().any(|dependency| text.contains(dependency)) {
        problems.push(format!("{name}: the engine knows no tensors"));
    }
    let library = path.with_file_name("src").join("lib.rs");
    let entry = if library.exists() { library } else { path.with_file_name("src").join("main.rs") };
    let may_be_unsafe = UNSAFE.iter().any(|folder| name.starts_with(folder));
    if !may_be_unsafe && !read(&entry)?.contains("#![forbid(unsafe_code)]") {
        problems.push(format!("{}: does not forbid unsafe code", relative(root, &entry)));
    }
    Ok(())
}

fn check_source(root: &Path, path: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
    let (text, name) = (read(path)?, relative(root, path));
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("{name}: {lines} lines; split it at its concepts"));
    }
    if AGNOSTIC.iter().any(|folder| name.starts_with(&format!("{folder}/src"))) {
        let other_cfg = |line: &&str| line.contains("cfg(") && !line.contains("cfg(test)");
        if let Some(line) = text.lines().find(other_cfg) {
            problems.push(format!("{name}: {} in a crate for every backend", line.trim()));
        }
        if text.contains("samebits_cpu") || text.contains("samebits_candle") {
            problems.push(format!("{name}: names a backend"));
        }
    }
    Ok(())
}

fn manifests(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let crates = entries(&root.join("crates"))?;
    let all = crates.into_iter().chain(["kernels", "models", "xtask"].map(|folder| root.join(folder)));
    Ok(all.map(|folder| folder.join("Cargo.toml")).filter(|manifest| manifest.exists()).collect())
}

/// Every Rust file of the project's own crates.
fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["crates", "kernels", "models", "xtask", "tests", "benches", "examples"]
        .map(|folder| root.join(folder))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder)? {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push(entry);
            }
        }
    }
    Ok(found)
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        check(&crate::root()).unwrap();
    }

    #[test]
    fn a_backend_in_a_model_is_noticed() {
        let root = std::env::temp_dir().join(format!("samebits-tidy-{}", std::process::id()));
        let folder = root.join("models/src");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("llama.rs");
        fs::write(&file, "use samebits_cpu::Cpu;\n#[cfg(unix)]\nfn f() {}\n").unwrap();
        let mut problems = Vec::new();
        check_source(&root, &file, &mut problems).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
