//! Real plugins for tests: CPU plugins of several versions, from the Python package index. Not meant for programs.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

/// A plugin that others have built and published, for Linux on x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuPlugin {
    /// The Python package that has it.
    pub package: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// Minor version of its PJRT API.
    pub api_minor: u32,
    /// Path inside the wheel.
    member: &'static str,
    /// Hash of the file, in hexadecimal.
    blake3: &'static str,
}

/// The plugins that are tested, the oldest first.
pub const CPU_PLUGINS: [CpuPlugin; 3] = [
    CpuPlugin {
        package: "xla-cpu-pjrt",
        version: "0.0.1",
        api_minor: 81,
        member: "xla_plugins/xla_cpu_pjrt/xla_cpu_pjrt.so",
        blake3: "2b16e6d95b862adefb7dea3ba6ffd485101588ff8f410306251b1b74814ab295",
    },
    CpuPlugin {
        package: "fastatomstruct-xla-cpu",
        version: "2026.6.23",
        api_minor: 106,
        member: "fastatomstruct_xla_cpu/libpjrt_cpu.so",
        blake3: "49075aec8c5b57dd49f66798b5211cf11d7e474778561c60fda2089b30cb5714",
    },
    CpuPlugin {
        package: "lammps-jax-pjrt-cpu",
        version: "0.11.2",
        api_minor: 115,
        member: "lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so",
        blake3: "8ab554f9817e355a92ff578e09a8d0d3089e49ba0a165bbbefac60ad13f7816b",
    },
];

/// Path of the newest CPU plugin, downloaded the first time.
///
/// # Panics
/// If it cannot be had, saying why.
pub fn cpu_plugin() -> PathBuf {
    CPU_PLUGINS[2].path()
}

impl CpuPlugin {
    /// Path of the plugin, downloaded with `pip` the first time, so that its settings (index, proxy, certificates) hold,
    /// and kept in `SAMEBITS_CACHE`, or `samebits` in the user's cache directory.
    ///
    /// # Panics
    /// If it cannot be had, saying why.
    pub fn path(&self) -> PathBuf {
        let named = env::var_os("SAMEBITS_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = named.or_else(|| Some(dirs::cache_dir()?.join("samebits"))).unwrap_or_else(env::temp_dir);
        let file = cache.join("pjrt").join(format!("{}-{}.so", self.package, self.version));
        // One test downloads it, the others wait.
        static FETCHING: Mutex<()> = Mutex::new(());
        let _fetching = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
        if !file.is_file() {
            let fetched = self.fetch(&file);
            fetched.unwrap_or_else(|why| panic!("{} {} for tests: {why}", self.package, self.version));
        }
        file
    }

    /// Moves the plugin to `target`, whole and checked, or not at all.
    fn fetch(&self, target: &Path) -> Result<(), String> {
        let directory = target.parent().ok_or("no directory to keep it in")?;
        fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let temporary = tempfile::TempDir::new_in(directory).map_err(|error| error.to_string())?;
        self.download(temporary.path())?;
        let wheel = only_wheel(temporary.path())?;
        let unpacked = temporary.path().join("unpacked");
        python(&["-m".as_ref(), "zipfile".as_ref(), "-e".as_ref(), wheel.as_ref(), unpacked.as_ref()])?;
        let file = unpacked.join(self.member);
        self.check(&file)?;
        fs::rename(&file, target).map_err(|error| format!("{}: {error}", target.display()))
    }

    fn download(&self, directory: &Path) -> Result<(), String> {
        let requirement = format!("{}=={}", self.package, self.version);
        let fixed =
            ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"];
        let mut arguments: Vec<&OsStr> = fixed.map(OsStr::new).into();
        arguments.extend(["--platform=manylinux_2_27_x86_64", "--dest"].map(OsStr::new));
        arguments.extend([directory.as_os_str(), requirement.as_ref()]);
        python(&arguments)
    }

    fn check(&self, file: &Path) -> Result<(), String> {
        let mut hasher = blake3::Hasher::new();
        let opened = fs::File::open(file).map_err(|error| format!("{}: {error}", self.member))?;
        hasher.update_reader(opened).map_err(|error| format!("{}: {error}", self.member))?;
        let found = hasher.finalize().to_hex();
        if found.as_str() == self.blake3 {
            return Ok(());
        }
        Err(format!("{} has blake3 {found}, expected {}; it is not used", self.member, self.blake3))
    }
}

fn only_wheel(directory: &Path) -> Result<OsString, String> {
    let entries = fs::read_dir(directory).map_err(|error| error.to_string())?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    wheel.map(PathBuf::into_os_string).ok_or_else(|| "pip downloaded no wheel".into())
}

/// Runs Python; its last line of complaint if it fails.
fn python(arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new("python3").args(arguments).output();
    let output = output.map_err(|error| format!("python3 could not be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = complaints.lines().rev().find(|line| !line.trim().is_empty());
    Err(format!("python3: {}", last.unwrap_or("failed without a word")))
}
