use std::{fs, io, io::Write, path::PathBuf};

use prost::Message;
use samebits_hlo::{Key, Store, Target, proto::HloModule};
use tempfile::NamedTempFile;

use crate::{Compiler, NeuronError};

/// NEFFs on disk, so that a module is compiled once for each compiler and chip, by whatever process on whatever host.
///
/// A file is found by module, compiler version, flags and target; [`Store`] says how it is kept. One that was damaged since is
/// as good as none.
#[derive(Clone, Debug)]
pub struct NeffCache {
    store: Store,
    mode: CacheMode,
}

/// What is done about a module that is not in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// It is compiled and kept.
    Fill,
    /// It is an error, so that no request waits minutes for a compiler.
    Require,
}

/// What the cache did for a module.
#[derive(Debug)]
pub enum Cached {
    /// Read from a file.
    Loaded,
    /// Compiled, and kept in a file.
    Stored,
    /// Compiled, but not kept, as in a directory that may only be read.
    NotStored(NeuronError),
}

impl Cached {
    /// Nothing if it is in the cache now.
    ///
    /// # Errors
    /// Why it is not.
    pub fn kept(self) -> Result<(), NeuronError> {
        match self {
            Cached::Loaded | Cached::Stored => Ok(()),
            Cached::NotStored(why) => Err(why),
        }
    }
}

/// Names the compiler whose programs are in a directory, for hosts that have none.
const VERSION: &str = "neuronx-cc.version";

impl NeffCache {
    /// Uses `directory`, which is made if there is none.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(directory: impl Into<PathBuf>, mode: CacheMode) -> Result<Self, NeuronError> {
        let path = directory.into();
        match Store::open(&path, "neff") {
            Ok(store) => Ok(NeffCache { store, mode }),
            Err(why) => Err(NeuronError::Cache { path, why }),
        }
    }

    /// Version of the compiler that filled the cache last.
    pub fn compiler_version(&self) -> Option<String> {
        let told = fs::read_to_string(self.store.directory().join(VERSION)).ok()?;
        Some(told.trim().to_owned()).filter(|version| !version.is_empty())
    }

    fn note(&self, version: &str) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(self.store.directory())?;
        writeln!(file, "{version}")?;
        file.persist(self.store.directory().join(VERSION)).map(drop).map_err(|error| error.error)
    }

    /// The NEFF of a module: read if it was compiled before, and compiled otherwise, if the mode allows.
    ///
    /// # Errors
    /// [`NeuronError::NotCompiled`] if the mode does not; as [`Compiler::compile`]; if a file is there that cannot be read.
    pub fn compile(&self, compiler: &Compiler, module: &HloModule) -> Result<(Vec<u8>, Cached), NeuronError> {
        let key = key(compiler, module);
        let failed = |why| NeuronError::Cache { path: self.store.path(&key), why };
        if let Some(neff) = self.store.read(&key).map_err(failed)? {
            return Ok((neff, Cached::Loaded));
        }
        if self.mode == CacheMode::Require {
            return Err(NeuronError::NotCompiled {
                module: module.name.clone(),
                target: describe(compiler.target()),
                version: compiler.version().into(),
                path: self.store.path(&key),
            });
        }
        let neff = compiler.compile(module)?;
        let stored = self.store.write(&key, &neff).and_then(|()| self.note(compiler.version()));
        let stored = stored.map_err(failed);
        Ok((neff, stored.map_or_else(Cached::NotStored, |()| Cached::Stored)))
    }
}

fn key(compiler: &Compiler, module: &HloModule) -> Key {
    let flags = compiler.flags();
    let module = module.encode_to_vec();
    let target = describe(compiler.target());
    let fixed: [&[u8]; 4] = [b"neff", &module, compiler.version().as_bytes(), target.as_bytes()];
    let parts: Vec<&[u8]> = fixed.into_iter().chain(flags.iter().map(String::as_bytes)).collect();
    Key::of(&parts)
}

fn describe(target: Target) -> String {
    format!("{} lnc={}", target.chip, target.cores_per_logical_core)
}
