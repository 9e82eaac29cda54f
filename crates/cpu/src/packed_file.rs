//! Packed weights in a file, so that another start maps them instead of packing again.
//!
//! The layout of panels is the same for every instruction set, and so is the file, little-endian: a header (`SAMEPACK`,
//! the version as u32, the number of weights as u32, 32 bytes that name the model's files, the length of the file, of the
//! index and the checksum of the index as u64); the index; and the panels of each weight at a multiple of 4096. An entry
//! of the index is the length of its name as u32, the name, ggml's number of its format as u32, its rows, columns, offset
//! in the file, length and checksum as u64.

use std::{
    collections::HashMap,
    io::{self, Write},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use samebits_kernels::parts::Chunks;
use samebits_tensor::{Bytes, Format};

use crate::{Cpu, packed::PackedWeight, threads::Threads};

const MAGIC: &[u8; 8] = b"SAMEPACK";

/// Changes with the layout of panels, and with what [`samebits_tensor::HostWeight`] holds of a file.
const VERSION: u32 = 3;

/// Panels start on a page, so that a vector's load is aligned.
const ALIGNMENT: usize = 4096;

/// What names the files that weights were packed from.
pub type Fingerprint = [u8; 32];

impl Cpu {
    /// Takes weights from a file where it has them, after checking all of its bytes.
    ///
    /// # Errors
    /// [`PackedFileError::Weight`], and the file is not used.
    pub fn use_packed(&self, file: PackedFile) -> Result<(), PackedFileError> {
        file.check(self.threads())?;
        *self.store().lock() = Stored::File(file);
        Ok(())
    }

    /// Keeps every weight that is packed from now on for [`Cpu::write_packed`].
    pub fn keep_packed(&self) {
        *self.store().lock() = Stored::Kept(Vec::new());
    }

    /// Writes the weights that were kept as a [`PackedFile`] of the files that `fingerprint` names, and keeps them no longer.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_packed(&self, fingerprint: &Fingerprint, out: &mut dyn Write) -> io::Result<()> {
        match mem::take(&mut *self.store().lock()) {
            Stored::Kept(weights) => write(self.threads(), &weights, fingerprint, out),
            Stored::Nothing | Stored::File(_) => write(self.threads(), &[], fingerprint, out),
        }
    }
}

/// Packed weights by name, on their way from a file or to one.
#[derive(Default)]
pub(crate) struct Store(Mutex<Stored>);

#[derive(Default)]
enum Stored {
    #[default]
    Nothing,
    Kept(Vec<(String, PackedWeight)>),
    File(PackedFile),
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a weight that was packed.
    pub(crate) fn packed(&self, name: &str, weight: &PackedWeight) {
        if let Stored::Kept(weights) = &mut *self.lock() {
            weights.push((name.into(), weight.clone()));
        }
    }

    /// The weight called `name`, where a file has it.
    pub(crate) fn weight(&self, name: &str) -> Option<PackedWeight> {
        match &*self.lock() {
            Stored::File(file) => file.weight(name),
            Stored::Nothing | Stored::Kept(_) => None,
        }
    }
}

/// A file of packed weights, opened.
#[derive(Debug)]
pub struct PackedFile {
    file: Bytes,
    entries: HashMap<String, Entry>,
}

/// Where a weight is.
#[derive(Clone, Copy, Debug)]
struct Entry {
    format: Format,
    rows: usize,
    cols: usize,
    offset: usize,
    len: usize,
    checksum: u64,
}

/// Why a file of packed weights is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackedFileError {
    /// Something else, or another version's.
    #[error("not a file of packed weights of version {VERSION}")]
    NotPacked,
    /// The model's files are others.
    #[error("packed from other files")]
    OtherModel,
    /// Less or more than was written.
    #[error("{found} bytes, but {expected} were written")]
    Length {
        /// What the header says.
        expected: u64,
        /// What is there.
        found: usize,
    },
    /// The list of weights.
    #[error("the list of weights is damaged")]
    Index,
    /// A weight.
    #[error("the weight `{name}` is damaged")]
    Weight {
        /// Its name.
        name: String,
    },
}

impl PackedFile {
    /// Reads the index of a file that was written for `fingerprint`, and checks that its weights are inside of the file.
    ///
    /// # Errors
    /// [`PackedFileError`]; the file is then to be written again.
    pub fn open(file: Bytes, fingerprint: &Fingerprint) -> Result<Self, PackedFileError> {
        let mut header = Reader(&file);
        if header.take(8) != Some(MAGIC) || header.u32() != Some(VERSION) {
            return Err(PackedFileError::NotPacked);
        }
        let count = header.u32().ok_or(PackedFileError::Index)?;
        if header.take(32) != Some(fingerprint) {
            return Err(PackedFileError::OtherModel);
        }
        let expected = header.u64().ok_or(PackedFileError::Index)?;
        if expected != file.len() as u64 {
            return Err(PackedFileError::Length { expected, found: file.len() });
        }
        let entries = header.index(count, &file).ok_or(PackedFileError::Index)?;
        Ok(PackedFile { file, entries })
    }

    /// Reads every weight once and compares it with its checksum.
    pub(crate) fn check(&self, threads: &Threads) -> Result<(), PackedFileError> {
        let damaged = |entry: &Entry| {
            let bytes = self.file.get(entry.offset..entry.offset + entry.len);
            bytes.is_none_or(|bytes| checksum(threads, bytes) != entry.checksum)
        };
        match self.entries.iter().find(|(_, entry)| damaged(entry)) {
            Some((name, _)) => Err(PackedFileError::Weight { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// The weight called `name`, if it is there.
    pub(crate) fn weight(&self, name: &str) -> Option<PackedWeight> {
        let entry = self.entries.get(name)?;
        let panels = self.file.slice(entry.offset..entry.offset + entry.len)?;
        PackedWeight::stored(entry.format, entry.rows, entry.cols, panels)
    }
}

/// Writes a file of packed weights.
pub(crate) fn write(
    threads: &Threads,
    weights: &[(String, PackedWeight)],
    fingerprint: &Fingerprint,
    out: &mut dyn Write,
) -> io::Result<()> {
    let index_len: usize = weights.iter().map(|(name, _)| 4 + name.len() + 4 + 5 * 8).sum();
    let mut end = HEADER + index_len;
    let mut index = Vec::with_capacity(index_len);
    for (name, weight) in weights {
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + weight.bytes();
        index.extend((name.len() as u32).to_le_bytes());
        index.extend(name.as_bytes());
        index.extend(weight.format().ggml_type().to_le_bytes());
        for value in [weight.rows(), weight.cols(), offset, weight.bytes()] {
            index.extend((value as u64).to_le_bytes());
        }
        index.extend(checksum(threads, weight.all_panels()).to_le_bytes());
    }
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&(weights.len() as u32).to_le_bytes())?;
    out.write_all(fingerprint)?;
    for value in [end as u64, index_len as u64, checksum(threads, &index)] {
        out.write_all(&value.to_le_bytes())?;
    }
    out.write_all(&index)?;
    let mut at = HEADER + index_len;
    for (_, weight) in weights {
        out.write_all(&[0; ALIGNMENT][..at.next_multiple_of(ALIGNMENT) - at])?;
        out.write_all(weight.all_panels())?;
        at = at.next_multiple_of(ALIGNMENT) + weight.bytes();
    }
    Ok(())
}

const HEADER: usize = 8 + 4 + 4 + 32 + 3 * 8;

/// What is left to be read; `None` where it ends too soon.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn usize(&mut self) -> Option<usize> {
        self.u64()?.try_into().ok()
    }

    /// The rest of the header and the index of `count` entries.
    fn index(&mut self, count: u32, file: &Bytes) -> Option<HashMap<String, Entry>> {
        let (len, sum) = (self.usize()?, self.u64()?);
        let index = self.take(len)?;
        if hash(index) != sum {
            return None;
        }
        let mut index = Reader(index);
        let mut entries = HashMap::new();
        for _ in 0..count {
            let name_len = index.u32()? as usize;
            let name = std::str::from_utf8(index.take(name_len)?).ok()?.to_owned();
            entries.insert(name, index.entry(file.len())?);
        }
        index.0.is_empty().then_some(entries)
    }

    fn entry(&mut self, file_len: usize) -> Option<Entry> {
        let format = Format::from_ggml_type(self.u32()?).ok()?;
        let (rows, cols) = (self.usize()?, self.usize()?);
        let (offset, len, checksum) = (self.usize()?, self.usize()?, self.u64()?);
        let fits = offset.checked_add(len)? <= file_len && offset.is_multiple_of(ALIGNMENT);
        fits.then_some(Entry { format, rows, cols, offset, len, checksum })
    }
}

/// Bytes of a checksum's task.
const CHUNK: usize = 1 << 18;

/// The [`hash`] of the hashes of chunks.
fn checksum(threads: &Threads, bytes: &[u8]) -> u64 {
    if bytes.len() <= CHUNK {
        return hash(bytes);
    }
    let mut hashes = vec![0; bytes.len().div_ceil(CHUNK)];
    threads.each(Chunks::new(&mut hashes, 1), |i, out| {
        out[0] = hash(&bytes[i * CHUNK..bytes.len().min((i + 1) * CHUNK)]);
    });
    hash(bytemuck::cast_slice(&hashes))
}

/// Eight sums side by side, each a bijection of every word in it, so that any change of one word is found. It is for
/// accidents, not for attacks, and keeps the pace of memory.
fn hash(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    let (words, tail) = bytes.as_chunks::<8>();
    let mut sums = [FACTOR; 8];
    let (groups, rest) = words.as_chunks::<8>();
    for group in groups {
        for (sum, word) in sums.iter_mut().zip(group) {
            *sum = mix(*sum, u64::from_le_bytes(*word));
        }
    }
    let rest =
        rest.iter().map(|word| u64::from_le_bytes(*word)).chain(tail.iter().map(|&byte| u64::from(byte)));
    let all = sums.into_iter().chain(rest).chain([bytes.len() as u64]);
    all.fold(FACTOR, mix)
}

#[cfg(test)]
mod tests {
    use samebits_tensor::{Backend, HostWeight, Weight, testing::random_blocks};

    use super::*;

    const FINGERPRINT: Fingerprint = [7; 32];

    fn host(format: Format, rows: usize, cols: usize) -> HostWeight {
        let bytes = random_blocks(format, rows, cols, 3).into();
        HostWeight { name: format.name().into(), format, shape: vec![rows, cols], bytes }
    }

    /// Weights of every format, one of them in several tasks, and the file that they are written to.
    fn written() -> (Vec<Weight<Cpu>>, Vec<u8>) {
        let cpu = Cpu::builder().threads(2).build().expect("a backend");
        cpu.keep_packed();
        let weight = |format| {
            let rows = if format == Format::Q8_0 { 1200 } else { 21 };
            Weight::pack(&cpu, &host(format, rows, 512)).expect("a weight")
        };
        let weights = Format::ALL.map(weight).into();
        let mut file = Vec::new();
        cpu.write_packed(&FINGERPRINT, &mut file).expect("written");
        (weights, file)
    }

    fn used(file: Vec<u8>) -> Result<Cpu, PackedFileError> {
        let cpu = Cpu::builder().threads(2).build().expect("a backend");
        cpu.use_packed(PackedFile::open(file.into(), &FINGERPRINT)?)?;
        Ok(cpu)
    }

    #[test]
    fn weights_come_back_as_they_were() {
        let (weights, file) = written();
        let cpu = used(file).expect("a good file");
        for weight in weights {
            let (packed, format, rows, cols) = cpu.stored(weight.name()).expect("a weight");
            assert_eq!((format, rows, cols), (weight.format(), weight.rows(), weight.cols()));
            assert!(packed.all_panels() == weight.packed().all_panels(), "{format}");
        }
        assert!(cpu.stored("another").is_none());
    }

    #[test]
    fn damage_is_found() {
        let (_, file) = written();
        let PackedFile { entries, .. } =
            PackedFile::open(file.clone().into(), &FINGERPRINT).expect("a good file");
        for (name, entry) in entries {
            for at in [entry.offset, entry.offset + entry.len / 2, entry.offset + entry.len - 1] {
                let mut damaged = file.clone();
                damaged[at] ^= 4;
                assert_eq!(used(damaged).err(), Some(PackedFileError::Weight { name: name.clone() }));
            }
        }
        let short = file[..file.len() - 1].to_vec();
        let length = PackedFileError::Length { expected: file.len() as u64, found: short.len() };
        assert_eq!(used(short).err(), Some(length));
        let other = PackedFile::open(file.into(), &[8; 32]).err();
        assert_eq!(other, Some(PackedFileError::OtherModel));
        assert_eq!(used(vec![0; 100]).err(), Some(PackedFileError::NotPacked));
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let (_, file) = written();
        for at in (HEADER..HEADER + 600).step_by(7).chain(48..HEADER) {
            let mut damaged = file.clone();
            damaged[at] ^= 0x40;
            let error = used(damaged).err().expect("damage at every byte of the index is found");
            assert!(
                matches!(error, PackedFileError::Index | PackedFileError::Length { .. }),
                "{at}: {error}"
            );
        }
    }
}
