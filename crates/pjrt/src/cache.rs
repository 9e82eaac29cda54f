use std::{fs, path::PathBuf, time::UNIX_EPOCH};

use samebits_hlo::{Key, Store};

use crate::{Client, CompileOptions, Executable, Format, PjrtError};

/// Compiled programs on disk, so that a program is compiled once for each plugin and kind of machine.
///
/// A file is found by program, options, plugin, platform and machine; [`Store`] says how it is kept. One that was damaged
/// since is compiled anew, never loaded.
#[derive(Clone, Debug)]
pub struct ExecutableCache {
    store: Store,
}

/// What the cache did for a program.
#[derive(Debug)]
pub enum Cached {
    /// Loaded from a file.
    Loaded,
    /// Compiled, and kept in a file.
    Stored,
    /// Compiled, but not kept, as in a directory that may only be read.
    NotStored(PjrtError),
}

impl ExecutableCache {
    /// Uses `directory`, which is made if there is none.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, PjrtError> {
        let directory = directory.into();
        match Store::open(&directory, "pjrt") {
            Ok(store) => Ok(ExecutableCache { store }),
            Err(why) => Err(PjrtError::Cache { path: directory, why }),
        }
    }

    /// Loads the program if it has been compiled before, and compiles it otherwise: [`Client::compile`] with a memory.
    ///
    /// # Errors
    /// As [`Client::compile`]; if a file is there that cannot be read for another reason than that it is damaged.
    pub fn compile(
        &self,
        client: &Client,
        program: &[u8],
        format: Format,
        options: &CompileOptions,
    ) -> Result<(Executable, Cached), PjrtError> {
        let key = key(client, program, format, options)?;
        let failed = |why| PjrtError::Cache { path: self.store.path(&key), why };
        // A plugin that refuses its own bytes is asked to make them anew.
        let known = self.store.read(&key).map_err(failed)?;
        if let Some(executable) = known.and_then(|bytes| client.load(&bytes).ok()) {
            return Ok((executable, Cached::Loaded));
        }
        let executable = client.compile(program, format, options)?;
        let stored = executable.serialise();
        let stored = stored.and_then(|bytes| self.store.write(&key, &bytes).map_err(failed));
        Ok((executable, stored.map_or_else(Cached::NotStored, |()| Cached::Stored)))
    }
}

/// A hash of everything that decides what the compiler makes.
fn key(client: &Client, program: &[u8], format: Format, options: &CompileOptions) -> Result<Key, PjrtError> {
    let library = client.plugin().path();
    let metadata = fs::metadata(library).map_err(|why| PjrtError::Cache { path: library.into(), why })?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let (major, minor) = client.plugin().api_version();
    let devices = client.devices().iter().map(|device| format!("{} {}\n", device.id, device.kind));
    Ok(Key::of(&[
        format.name().as_bytes(),
        program,
        &client.encode(options)?,
        client.platform().as_bytes(),
        client.platform_version().as_bytes(),
        format!("{major}.{minor} {} {modified:?}", metadata.len()).as_bytes(),
        devices.collect::<String>().as_bytes(),
        host_features().as_bytes(),
    ]))
}

/// What this machine's processor can do, as Linux tells: a CPU plugin compiles for it, and other machines may share the
/// directory.
fn host_features() -> String {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let features = told.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    format!("{} {}", std::env::consts::ARCH, features.unwrap_or_default())
}
