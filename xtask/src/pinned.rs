//! Packages of PyPI that files in the tree pin by hash, installed into the user's cache and never into the tree.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow, bail, ensure};

/// The folder of packages that a requirements file pins, installed first if need be. `name` is that of the folder, beside the
/// first version in the file; `needed` is a file that has to be in it. Packages are for Linux on x86-64.
///
/// # Errors
/// If they are not there and cannot be installed; `elsewhere` says what else may be done.
pub(crate) fn packages(
    requirements: &Path,
    name: &str,
    needed: &str,
    elsewhere: &str,
) -> anyhow::Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("{name} is pinned for Linux on x86-64; {elsewhere}");
    }
    let text = fs::read_to_string(requirements).with_context(|| requirements.display().to_string())?;
    let version = text.split("==").nth(1).and_then(|rest| rest.split_whitespace().next());
    let version = version.with_context(|| format!("{} pins no version", requirements.display()))?;
    let folder = cache()?.join(format!("{name}-{version}"));
    if !folder.join(needed).exists() {
        install(requirements, &folder, elsewhere)?;
    }
    ensure!(folder.join(needed).exists(), "{needed} is not in the package; delete {}", folder.display());
    Ok(folder)
}

/// Where this project keeps what can be made again.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(cache.ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set"))?.join("samebits"))
}

/// Installs into a folder beside, so that what is at `folder` is whole.
fn install(requirements: &Path, folder: &Path, elsewhere: &str) -> anyhow::Result<()> {
    eprintln!("installing what {} pins into {}", requirements.display(), folder.display());
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--require-hashes", "--only-binary=:all:", "--requirement"])
        .arg(requirements)
        .arg("--target")
        .arg(&partial)
        .status()
        .with_context(|| format!("python3 is needed to install packages; {elsewhere}"))?;
    ensure!(status.success(), "pip could not install what {} pins; {elsewhere}", requirements.display());
    fs::rename(&partial, folder).with_context(|| folder.display().to_string())
}
