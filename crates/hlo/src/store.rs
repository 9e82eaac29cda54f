use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use blake3::{Hash, Hasher};

/// Compiled programs on disk, each in a file of its own.
///
/// A file is found by a [`Key`] of all that decides what the compiler makes. It is written whole or not at all, and one that
/// was damaged since is as good as none. Several processes may share a directory. Its files are run: keep it where only those
/// you trust may write.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    extension: &'static str,
}

/// A hash of everything that decides what a compiler makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(Hash);

impl Key {
    /// The key of these parts, in this order.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Hasher::new();
        for part in parts {
            // Behind its length, so that no two lists of parts are the same bytes.
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Key(hasher.finalize())
    }
}

impl Store {
    /// Uses `directory`, which is made if there is none, for files of this extension.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(directory: impl Into<PathBuf>, extension: &'static str) -> io::Result<Self> {
        let directory = directory.into();
        fs::create_dir_all(&directory).and_then(|()| fs::read_dir(&directory))?;
        Ok(Store { directory, extension })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the program of a key is, or would be.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{}.{}", key.0, self.extension))
    }

    /// The program of a key; nothing if there is none, or its file is damaged.
    ///
    /// # Errors
    /// If a file is there that cannot be read.
    pub fn read(&self, key: &Key) -> io::Result<Option<Vec<u8>>> {
        let mut file = match fs::read(self.path(key)) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(why),
        };
        let whole =
            file.split_at_checked(HEADER).is_some_and(|(found, program)| found == header(key, program));
        Ok(whole.then(|| file.split_off(HEADER)))
    }

    /// Keeps the program of a key.
    ///
    /// # Errors
    /// If it cannot be written; nothing is left then.
    pub fn write(&self, key: &Key, program: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&header(key, program))?;
        file.write_all(program)?;
        file.persist(self.path(key)).map(drop).map_err(|error| error.error)
    }
}

/// Marks a file of this layout: this, the program's length in 8 bytes (little-endian), its checksum, the program.
const MAGIC: [u8; 8] = *b"SBPROG\0\x01";
const HEADER: usize = MAGIC.len() + 8 + blake3::OUT_LEN;

/// The checksum is keyed, so that a file under another's name does not pass either.
fn header(key: &Key, program: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let checksum = blake3::keyed_hash(key.0.as_bytes(), program);
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&(program.len() as u64).to_le_bytes());
    header[16..].copy_from_slice(checksum.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_whole_is_read_and_nothing_else() {
        let directory = tempfile::TempDir::new().unwrap();
        let store = Store::open(directory.path().join("made/on/demand"), "bin").unwrap();
        let (key, other) = (Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
        assert_ne!(key, other);
        assert_eq!(store.read(&key).unwrap(), None);
        store.write(&key, b"program").unwrap();
        assert_eq!(store.read(&key).unwrap().as_deref(), Some(&b"program"[..]));
        fs::copy(store.path(&key), store.path(&other)).unwrap();
        assert_eq!(store.read(&other).unwrap(), None, "under another's name");
        let whole = fs::read(store.path(&key)).unwrap();
        for length in 0..whole.len() {
            fs::write(store.path(&key), &whole[..length]).unwrap();
            assert_eq!(store.read(&key).unwrap(), None, "cut at {length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(store.path(&key), damaged).unwrap();
            assert_eq!(store.read(&key).unwrap(), None, "damaged at {at}");
        }
    }
}
