//! The library of this crate in the place of the driver, for tests of programs that open the driver by its name.

use std::{
    env,
    ffi::{CString, c_char},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use thiserror::Error;

use crate::{
    mutate::Mutation,
    settings::{Checks, Order},
};

/// Why the stand-in is not in the place of the driver.
#[derive(Debug, Error)]
pub enum InstallError {
    /// There is no such library.
    #[error(
        "libptx_sim.so is not beside {0} nor in the folder above: is samebits-ptx-sim among the dependencies?"
    )]
    Missing(PathBuf),
    /// The library could not be loaded.
    #[error("{path}: {source}")]
    Load {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        source: libloading::Error,
    },
    /// Another library was loaded under the name before.
    #[error(
        "libcuda.so is another library already: the stand-in must be installed before the driver is opened"
    )]
    Taken,
}

/// Loads the stand-in, so that whoever opens `libcuda.so` after this finds it, and returns its path. It stays as long as the
/// process.
///
/// # Errors
///
/// The library is not there or does not load, or the driver was opened before.
pub fn install() -> Result<PathBuf, InstallError> {
    static DONE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*done {
        return Ok(path.clone());
    }
    let path = library()?;
    let stand_in = open(&path)?;
    // A library of this name that is loaded is found before any on disk: the stand-in carries the name.
    let named = open(Path::new("libcuda.so")).map_err(|_| InstallError::Taken)?;
    let same = stand_in.into_raw() == named.into_raw();
    if !same {
        return Err(InstallError::Taken);
    }
    Ok(done.insert(path).clone())
}

/// Loads a library for good.
fn open(path: &Path) -> Result<Library, InstallError> {
    // SAFETY: the library of this crate, whose start-up code is empty, or the driver, which is made to be opened so.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|source| InstallError::Load { path: path.into(), source })
}

/// The library, beside the program or one folder above: cargo builds it with whatever depends on this crate.
///
/// # Errors
///
/// It is not there.
pub fn library() -> Result<PathBuf, InstallError> {
    let program = env::current_exe().unwrap_or_default();
    let mut places = program.ancestors().skip(1).take(2).map(|folder| folder.join("libptx_sim.so"));
    places.find(|path| path.is_file()).ok_or(InstallError::Missing(program))
}

/// The stand-in in the hands of one test: settings, faults and errors are those of the process. What is set ends with it.
pub struct Sim {
    library: &'static Library,
    _alone: MutexGuard<'static, ()>,
}

impl Sim {
    /// Waits until no other test has it.
    ///
    /// # Errors
    ///
    /// As [`install`].
    pub fn alone() -> Result<Self, InstallError> {
        static ALONE: Mutex<()> = Mutex::new(());
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = open(&install()?)?;
        let sim = Sim { library: LIBRARY.get_or_init(|| loaded), _alone: alone };
        sim.reset();
        Ok(sim)
    }

    /// Forgets an error of the device, and settings.
    pub fn reset(&self) {
        let reset = self.function::<extern "C" fn() -> i32>(b"ptx_sim_reset\0");
        assert_eq!(reset(), 0);
    }

    /// Plans statuses of calls: `cuMemAllocAsync:3=2` lets the third call return 2, `:3+=2` all from the third on, and `=999!` lets
    /// every call of any function return 999 from then on.
    pub fn faults(&self, plan: &str) {
        assert_eq!(self.with_text(b"ptx_sim_faults\0", plan), 0, "{plan} is no plan");
    }

    /// The order of warps and blocks.
    pub fn order(&self, order: Order) {
        let value = match order {
            Order::Ascending => "ascending".into(),
            Order::Descending => "descending".into(),
            Order::Seeded(seed) => seed.to_string(),
        };
        self.set("PTX_SIM_WARPS", &value);
    }

    /// The checks.
    pub fn checks(&self, checks: Checks) {
        let names = [
            (checks.registers, "registers"),
            (checks.shared, "shared"),
            (checks.global, "global"),
            (checks.blocks, "blocks"),
        ];
        let names: Vec<&str> = names.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        self.set("PTX_SIM_CHECKS", &names.join(","));
    }

    /// Sets what an environment variable of this name would. A device that is open keeps the memory that it has, but less than that
    /// may be set.
    pub fn set(&self, name: &str, value: &str) {
        assert_eq!(
            self.with_text(b"ptx_sim_set\0", &format!("{name}={value}")),
            0,
            "{name}={value} is not understood"
        );
    }

    /// The first fault of a kernel since the test began.
    pub fn fault(&self) -> Option<String> {
        Some(self.text(b"ptx_sim_fault\0")).filter(|text| !text.is_empty())
    }

    /// The name of the check that found it, as [`FaultKind::name`](crate::FaultKind::name).
    pub fn fault_name(&self) -> Option<String> {
        Some(self.text(b"ptx_sim_fault_name\0")).filter(|text| !text.is_empty())
    }

    /// The lines of the PTX text that warps executed since the test began or [`reset`](Self::reset), by kernel, as JSON.
    pub fn lines(&self) -> serde_json::Value {
        serde_json::from_str(&self.text(b"ptx_sim_lines\0")).unwrap_or_default()
    }

    /// Changes a kernel from its next launch on, or none, whether its module is loaded or will be.
    ///
    /// # Errors
    ///
    /// What is interpreted has no such instruction.
    pub fn mutate(&self, mutation: Option<&Mutation>) -> Result<(), String> {
        let value = mutation.map_or(String::new(), ToString::to_string);
        match self.with_text(b"ptx_sim_set\0", &format!("PTX_SIM_MUTATE={value}")) {
            0 => Ok(()),
            _ => Err(self.refused().unwrap_or(value)),
        }
    }

    /// Why a module was refused last.
    pub fn refused(&self) -> Option<String> {
        Some(self.text(b"ptx_sim_refused\0")).filter(|text| !text.is_empty())
    }

    /// Counters by kernel, as JSON.
    pub fn report(&self) -> serde_json::Value {
        serde_json::from_str(&self.text(b"ptx_sim_report\0")).unwrap_or_default()
    }

    /// How often a function was called since [`faults`](Self::faults).
    pub fn calls(&self, function: &str) -> u64 {
        let calls = self.function::<unsafe extern "C" fn(*const c_char) -> u64>(b"ptx_sim_calls\0");
        let text = CString::new(function).unwrap_or_default();
        // SAFETY: the text ends with 0.
        unsafe { calls(text.as_ptr()) }
    }

    /// Allocations of device memory that are not freed.
    pub fn live(&self) -> u64 {
        self.function::<extern "C" fn() -> u64>(b"ptx_sim_live\0")()
    }

    fn with_text(&self, name: &[u8], text: &str) -> i32 {
        let function = self.function::<unsafe extern "C" fn(*const c_char) -> i32>(name);
        let text = CString::new(text).unwrap_or_default();
        // SAFETY: the text ends with 0.
        unsafe { function(text.as_ptr()) }
    }

    fn text(&self, name: &[u8]) -> String {
        let function = self.function::<unsafe extern "C" fn(*mut u8, usize) -> usize>(name);
        let mut bytes = vec![0; 1 << 10];
        loop {
            // SAFETY: there is as much room.
            let length = unsafe { function(bytes.as_mut_ptr(), bytes.len()) };
            if length <= bytes.len() {
                bytes.truncate(length);
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            bytes.resize(length, 0);
        }
    }

    fn function<F: Copy>(&self, name: &[u8]) -> F {
        // SAFETY: the callers know the types of the functions, which are those of this crate.
        *unsafe { self.library.get::<F>(name) }.expect("the library has the functions of this crate")
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.reset();
    }
}
