use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use blake3::{Hash, Hasher};

use crate::{Client, CompileOptions, Executable, Format, PjrtError};

/// Compiled programs on disk, so that a program is compiled once for each plugin and kind of machine.
///
/// A file is found by a hash of all that decides what the compiler makes: program, options, plugin, platform and machine.
/// It is written whole or not at all, and one that was damaged since is compiled anew, never loaded. Several processes
/// may share a directory. Its files are machine code: keep it where only those you trust may write.
#[derive(Clone, Debug)]
pub struct ExecutableCache {
    directory: PathBuf,
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
        let opened = fs::create_dir_all(&directory).and_then(|()| fs::read_dir(&directory));
        match opened {
            Ok(_) => Ok(ExecutableCache { directory }),
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
        let path = self.directory.join(format!("{key}.pjrt"));
        // A plugin that refuses its own bytes is asked to make them anew.
        if let Some(executable) = read(&path, &key)?.and_then(|bytes| client.load(&bytes).ok()) {
            return Ok((executable, Cached::Loaded));
        }
        let executable = client.compile(program, format, options)?;
        let stored = executable.serialise().and_then(|bytes| self.write(&path, &key, &bytes));
        Ok((executable, stored.map_or_else(Cached::NotStored, |()| Cached::Stored)))
    }

    fn write(&self, path: &Path, key: &Hash, bytes: &[u8]) -> Result<(), PjrtError> {
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            file.write_all(&header(key, bytes))?;
            file.write_all(bytes)?;
            file.persist(path).map(drop).map_err(|error| error.error)
        };
        write().map_err(|why| PjrtError::Cache { path: path.into(), why })
    }
}

/// Marks a file of this layout: this, the payload's length in 8 bytes (little-endian), its checksum, the payload.
const MAGIC: [u8; 8] = *b"SBPJRT\0\x01";
const HEADER: usize = MAGIC.len() + 8 + blake3::OUT_LEN;

/// The checksum is keyed, so that a file under another's name does not pass either.
fn header(key: &Hash, payload: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let checksum = blake3::keyed_hash(key.as_bytes(), payload);
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    header[16..].copy_from_slice(checksum.as_bytes());
    header
}

/// The payload of a file; nothing if there is none, or it is damaged.
fn read(path: &Path, key: &Hash) -> Result<Option<Vec<u8>>, PjrtError> {
    let mut file = match fs::read(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(PjrtError::Cache { path: path.into(), why }),
    };
    let whole = file.split_at_checked(HEADER).is_some_and(|(found, payload)| found == header(key, payload));
    Ok(whole.then(|| file.split_off(HEADER)))
}

/// A hash of everything that decides what the compiler makes.
fn key(client: &Client, program: &[u8], format: Format, options: &CompileOptions) -> Result<Hash, PjrtError> {
    let library = client.plugin().path();
    let metadata = fs::metadata(library).map_err(|why| PjrtError::Cache { path: library.into(), why })?;
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let (major, minor) = client.plugin().api_version();
    let mut hasher = Hasher::new();
    // Each part behind its length, so that no two lists of parts are the same bytes.
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    part(format.name().as_bytes());
    part(program);
    part(&client.encode(options)?);
    part(client.platform().as_bytes());
    part(client.platform_version().as_bytes());
    part(format!("{major}.{minor}").as_bytes());
    part(format!("{} {modified:?}", metadata.len()).as_bytes());
    client.devices().iter().for_each(|device| part(format!("{} {}", device.id, device.kind).as_bytes()));
    part(host_features().as_bytes());
    Ok(hasher.finalize())
}

/// What this machine's processor can do, as Linux tells: a CPU plugin compiles for it, and other machines may share the
/// directory.
fn host_features() -> String {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let features = told.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    format!("{} {}", std::env::consts::ARCH, features.unwrap_or_default())
}
