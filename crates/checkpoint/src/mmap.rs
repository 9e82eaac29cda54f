//! The one place that maps files.
#![allow(unsafe_code)]

use std::{fs::File, io, ops::Range, path::Path, sync::Arc};

use samebits_tensor::{Bytes, Storage};

/// A file mapped read-only.
struct Mapped(memmap2::Mmap);

impl Storage for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Unmaps the pages that hold the range until they are read again; the kernel keeps them as its own cache of the file.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if !range.is_empty() {
            // SAFETY: the pages are those of a file and were never written, so that they come back as they were.
            let done = unsafe {
                self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // It is advice: a system that does not take it only keeps the memory.
            let _ = done;
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// The bytes of the regular file at `path`, mapped read-only: pages are read when they are first touched.
///
/// # Errors
/// As [`File::open`], and if it is not a regular file.
pub fn map(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() == 0 {
        return Ok(Vec::new().into());
    }
    // SAFETY: the mapping is read-only and lives as long as any view of it. Its bytes are read as plain integers,
    // for which every pattern is valid. As with every mapped file, the caller must not change or truncate the
    // file while the model is open; files that this crate downloads are renamed into place and never written again.
    let mapped = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::new(Arc::new(Mapped(mapped))))
}
