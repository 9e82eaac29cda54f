//! The one place that maps files.
#![allow(unsafe_code)]

use std::{fs::File, io, path::Path, sync::Arc};

use samebits_tensor::Bytes;

/// The bytes of the regular file at `path`, mapped read-only: pages are read when they are first touched.
pub(crate) fn map(path: &Path) -> io::Result<Bytes> {
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
    Ok(Bytes::new(Arc::new(mapped)))
}
