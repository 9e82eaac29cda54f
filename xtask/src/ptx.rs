//! The CUDA kernels' PTX, which the tree holds so that a build needs no compiler of NVIDIA's.

mod lint;
mod nvrtc;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

const SOURCES: &str = "kernels/cuda";

/// Any driver since CUDA 12.0 takes this version of the language; the kernels use nothing newer.
const VERSION: &str = ".version 8.0";

/// Compute capability 8.0 is the first with everything that the kernels use; drivers compile it for every later one.
const OPTIONS: [&str; 3] = ["-arch=compute_80", "--std=c++17", "--fmad=false"];

/// Compiles every kernel and writes its PTX, or compares it with what the tree has.
///
/// # Errors
/// If the compiler cannot be had, a source does not compile, its PTX breaks the contract, or, where it is compared, is
/// not what the tree has.
pub(crate) fn run(root: &Path, is_check: bool) -> anyhow::Result<()> {
    let folder = root.join(SOURCES);
    let compiler = nvrtc::Compiler::open(&folder)?;
    let headers = files(&folder, "cuh")?;
    let mut modules = BTreeMap::new();
    for (name, source) in files(&folder, "cu")? {
        let ptx = compiler.compile(&name, &source, &headers, &OPTIONS)?;
        let ptx = portable(&ptx).with_context(|| name.clone())?;
        let problems = lint::problems(&ptx);
        ensure!(problems.is_empty(), "{name} breaks the numerics contract:\n{}", problems.join("\n"));
        modules.insert(name.replace(".cu", ".ptx"), ptx);
    }
    check_names(&modules)?;
    write_or_compare(&folder.join("ptx"), &modules, is_check)?;
    let kernels: usize = modules.values().map(|ptx| entries(ptx).count()).sum();
    let lines: usize = modules.values().map(|ptx| ptx.lines().count()).sum();
    println!("{kernels} kernels in {} modules, {lines} lines of PTX", modules.len());
    Ok(())
}

/// Makes the files of `output` those modules and no others, or fails where they are not.
fn write_or_compare(output: &Path, modules: &BTreeMap<String, String>, is_check: bool) -> anyhow::Result<()> {
    let old = files(output, "ptx")?;
    let mut stale = Vec::new();
    for (name, ptx) in modules {
        let path = output.join(name);
        match is_check {
            true if old.iter().any(|(other, text)| other == name && text == ptx) => {}
            true => stale.push(name.as_str()),
            false => fs::write(&path, ptx).with_context(|| path.display().to_string())?,
        }
    }
    for (name, _) in old.iter().filter(|(name, _)| !modules.contains_key(name)) {
        match is_check {
            true => stale.push(name),
            false => fs::remove_file(output.join(name))?,
        }
    }
    if !stale.is_empty() {
        bail!("{SOURCES}/ptx: not what the sources give: {}; run `cargo xtask ptx`", stale.join(", "));
    }
    Ok(())
}

/// The text without the compiler's greeting and constants that no kernel reads, for the oldest version of the language that
/// it fits.
fn portable(ptx: &str) -> anyhow::Result<String> {
    let start = ptx.find(".version ").context("PTX without a version")?;
    let rest = ptx[start..].split_once('\n').context("PTX of one line")?.1;
    let mentions =
        |name: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|it| *it == name).count();
    let is_read = |line: &&str| constant(line).is_none_or(|name| mentions(name) > 1);
    let rest = rest.lines().filter(is_read).collect::<Vec<_>>().join("\n");
    Ok(format!(
        "// By `cargo xtask ptx`, from the source of the same name.\n{VERSION}\n{}\n",
        rest.trim_end()
    ))
}

/// The name in a line that defines a constant, such as `.global .align 4 .u32 WARP = 32;`.
fn constant(line: &str) -> Option<&str> {
    line.strip_prefix(".global ")?.split(" = ").next()?.split(' ').next_back()
}

/// Kernels are looked up by their names alone.
fn check_names(modules: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut homes = BTreeMap::new();
    for (module, ptx) in modules {
        for entry in entries(ptx) {
            if let Some(other) = homes.insert(entry, module) {
                bail!("{module} and {other} both have a kernel {entry}");
            }
        }
    }
    Ok(())
}

/// Names and texts of the modules in the folder of the kernels.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn modules(folder: &Path) -> anyhow::Result<Vec<(String, String)>> {
    files(&folder.join("ptx"), "ptx")
}

/// The names of a module's kernels.
pub(crate) fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")?.split('(').next())
}

/// Names and texts of the files with an extension, in order.
fn files(folder: &Path, extension: &str) -> anyhow::Result<Vec<(String, String)>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|it| it == extension));
    paths.sort();
    let named = paths.into_iter().map(|path| {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_ptx_keeps_the_contract() {
        let modules = files(&crate::root().join(SOURCES).join("ptx"), "ptx").unwrap();
        assert!(modules.len() >= 5);
        for (name, ptx) in modules {
            assert_eq!(lint::problems(&ptx), Vec::<String>::new(), "{name}");
            assert_eq!(ptx.lines().nth(1), Some(VERSION), "{name}");
        }
    }

    #[test]
    fn each_source_has_its_ptx() {
        let folder = crate::root().join(SOURCES);
        let names = |extension| -> Vec<String> {
            let folder = if extension == "cu" { folder.clone() } else { folder.join("ptx") };
            let stem = |(name, _): (String, String)| name.split('.').next().unwrap().to_owned();
            files(&folder, extension).unwrap().into_iter().map(stem).collect()
        };
        assert_eq!(names("cu"), names("ptx"));
    }

    #[test]
    fn headers_are_replaced_and_names_are_unique() {
        let ptx = "//\n// Compiler Build ID: CL-1\n\n.version 9.5\n.target sm_80\n.global .align 4 .u32 UNREAD = 1;\n\
                   .global .align 4 .u32 READ = 2;\n.visible .entry a(\n)\n{\nld.global.u32 %r1, [READ];\n}\n\n\n";
        let portable = portable(ptx).unwrap();
        assert!(portable.contains("\n.version 8.0\n.target sm_80\n") && !portable.contains("Build"));
        assert!(portable.contains(" READ = 2;") && !portable.contains("UNREAD"));
        let module = |name: &str| (name.to_owned(), portable.clone());
        assert!(check_names(&BTreeMap::from([module("x.ptx")])).is_ok());
        let error = check_names(&BTreeMap::from([module("x.ptx"), module("y.ptx")])).unwrap_err();
        assert!(error.to_string().contains("kernel a"));
    }
}
