//! Packed weights kept on disk: one file a model, in a directory of the caller's choice.

use std::{
    fs, io,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use samebits_checkpoint::Checkpoint;
use samebits_cpu::{Cpu, Fingerprint, PackedFile, PackedFileError};

/// The file for one model. Nothing that is wrong with it or its directory keeps the model from being loaded: its weights are
/// packed as if there were no file, with a warning.
pub(crate) struct PackedCache {
    path: PathBuf,
    fingerprint: Fingerprint,
}

impl PackedCache {
    /// The file for `checkpoint` in `directory`.
    ///
    /// # Errors
    /// Those of reading the checkpoint's files.
    pub(crate) fn new(directory: &Path, checkpoint: &Checkpoint) -> samebits_checkpoint::Result<Self> {
        let fingerprint = checkpoint.fingerprint()?;
        let name: String = fingerprint[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(PackedCache { path: directory.join(name).with_extension("packed"), fingerprint })
    }

    /// Loads onto `cpu`: with the weights of the file, or else writing it afterwards.
    pub(crate) fn around<T, E>(&self, cpu: &Cpu, load: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        match self.read(cpu) {
            Ok(()) => return load(),
            Err(Miss::Absent) => tracing::info!(path = %self.path.display(), "no packed weights yet"),
            Err(Miss::Io(error)) => self.warn("cannot be read", &error),
            Err(Miss::Unfit(error)) => self.warn("is not used, and written again", &error),
        }
        cpu.keep_packed();
        let loaded = load()?;
        if let Err(error) = self.write(cpu) {
            self.warn("cannot be written", &error);
        }
        Ok(loaded)
    }

    fn read(&self, cpu: &Cpu) -> Result<(), Miss> {
        let file = samebits_checkpoint::map_file(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Miss::Absent,
            _ => Miss::Io(error),
        })?;
        let file = PackedFile::open(file, &self.fingerprint).map_err(Miss::Unfit)?;
        cpu.use_packed(file).map_err(Miss::Unfit)
    }

    /// Writes beside the file and renames, so that no other start ever sees a part of it.
    fn write(&self, cpu: &Cpu) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let file = tempfile::Builder::new().prefix("packed-").tempfile_in(directory)?;
        let mut out = BufWriter::new(file);
        cpu.write_packed(&self.fingerprint, &mut out)?;
        out.flush()?;
        out.into_inner()?.persist(&self.path)?;
        Ok(())
    }

    fn warn(&self, what: &str, error: &dyn std::fmt::Display) {
        tracing::warn!(path = %self.path.display(), %error, "a file of packed weights {what}");
    }
}

enum Miss {
    Absent,
    Io(io::Error),
    Unfit(PackedFileError),
}
