//! GGUF, versions 2 and 3, little-endian. Format: `docs/gguf.md` of the ggml project.
//!
//! A file is taken to be hostile: every count, length and offset is checked against the bytes that are there
//! before anything is allocated or read for it, so that parsing needs memory in proportion to the file's header.

mod config;
mod reader;
mod source;
mod value;

use std::collections::HashMap;

use samebits_tensor::{Bytes, Format, FormatError};

use reader::Reader;

pub use config::config_from_gguf;
pub use source::GgufWeights;
pub use value::{Array, Metadata, Value};

const ALIGNMENT_DEFAULT: usize = 32;
const DIMS_MAX: u32 = 4;

/// A parsed GGUF file: its metadata, and views of its tensors' bytes.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// Key-value pairs.
    pub metadata: Metadata,
    tensors: Vec<GgufTensor>,
    by_name: HashMap<String, usize>,
}

/// A tensor of a GGUF file, under the file's own name.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    /// Name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How the bytes encode values.
    pub format: Format,
    /// Extents, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// The encoded rows.
    pub bytes: Bytes,
}

impl Gguf {
    /// Parses a file's bytes. Tensors stay views of them.
    ///
    /// # Errors
    /// Naming the key or tensor that is wrong, and what to do about it.
    pub fn parse(file: Bytes) -> Result<Gguf, GgufError> {
        let mut reader = Reader::new(&file);
        let version = read_version(&mut reader, &file)?;
        let tensor_count = reader.u64("tensor count")?;
        let key_count = reader.count("key count", KEY_BYTES_MIN)?;
        let metadata = read_metadata(&mut reader, key_count)?;
        check_whole(&metadata)?;
        let alignment = alignment(&metadata)?;
        let (infos, by_name) = read_tensor_infos(&mut reader, tensor_count)?;
        let data_at = reader.position().next_multiple_of(alignment);
        let data = file.slice(data_at.min(file.len())..file.len()).unwrap_or_else(|| Vec::new().into());
        check_layout(&infos, &data, alignment)?;
        let tensors = infos.into_iter().map(|info| info.view(&data)).collect::<Result<Vec<_>, _>>()?;
        Ok(Gguf { version, metadata, tensors, by_name })
    }

    /// The tensors, in the file's order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor that the file calls `name`.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

/// What is wrong with a GGUF file; every variant names the key or tensor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum GgufError {
    #[error("the file is empty; download or convert it again")]
    Empty,
    #[error(
        "the file starts with {found:?}, not with \"GGUF\"; give a .gguf file, or a directory with config.json"
    )]
    Magic { found: String },
    #[error("the file is big-endian; convert it again for a little-endian machine")]
    BigEndian,
    #[error(
        "the file is of GGUF version {version}; versions 2 and 3 are read: convert it again with a current tool"
    )]
    Version { version: u32 },
    #[error(
        "{what}: {needed} bytes needed at offset {at}, but {left} are left; the file is cut short: download it again"
    )]
    Truncated { what: String, at: usize, needed: usize, left: usize },
    #[error(
        "{what}: a count of {count} at offset {at} cannot fit the {left} bytes that are left; the file is damaged"
    )]
    Count { what: String, count: u64, at: usize, left: usize },
    #[error(
        "{what}: not UTF-8 at byte {at} of the string; the file is damaged or was written by a broken tool"
    )]
    NotUtf8 { what: String, at: usize },
    #[error("key `{key}`: value type {code} is unknown; the file is damaged or newer than this program")]
    UnknownValueType { key: String, code: u32 },
    #[error("key `{key}`: arrays nest deeper than {depth_max}")]
    TooDeep { key: String, depth_max: usize },
    #[error("key `{key}`: a bool is {found}; 0 or 1 are valid")]
    Bool { key: String, found: u8 },
    #[error("key `{key}` is there twice; the file is damaged or was written by a broken tool")]
    DuplicateKey { key: String },
    #[error("key `{key}` is {found}; expected {expected}")]
    ValueType { key: String, expected: &'static str, found: &'static str },
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    #[error("key `general.alignment` is {found}; a power of two from 8 to 1048576 is valid")]
    Alignment { found: u64 },
    #[error(
        "the file is one part of {count}; join the parts with `llama-gguf-split --merge FIRST_PART WHOLE`"
    )]
    Split { count: u64 },
    #[error("tensor `{tensor}` is there twice; the file is damaged or was written by a broken tool")]
    DuplicateTensor { tensor: String },
    #[error("tensor `{tensor}`: {source}")]
    Format { tensor: String, source: FormatError },
    #[error("tensor `{tensor}` has extents {found}; {expected}")]
    Extents { tensor: String, found: String, expected: String },
    #[error("tensor `{tensor}` at offset {offset} of the data: {detail}")]
    Place { tensor: String, offset: u64, detail: String },
}

/// Length of a key, a type code and one byte.
const KEY_BYTES_MIN: usize = 8 + 4 + 1;
/// Length of a name, number of extents, one extent, a type code and an offset.
const TENSOR_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;

fn read_version(reader: &mut Reader, file: &[u8]) -> Result<u32, GgufError> {
    if file.is_empty() {
        return Err(GgufError::Empty);
    }
    if !file.starts_with(b"GGUF") {
        let found = file[..file.len().min(4)].escape_ascii().to_string();
        return Err(GgufError::Magic { found });
    }
    reader.u32("magic")?;
    match reader.u32("version")? {
        version @ (2 | 3) => Ok(version),
        version if (1..=3).contains(&version.swap_bytes()) => Err(GgufError::BigEndian),
        version => Err(GgufError::Version { version }),
    }
}

fn read_metadata(reader: &mut Reader, count: usize) -> Result<Metadata, GgufError> {
    let mut metadata = Metadata::default();
    for i in 0..count {
        let key = reader.string(&format!("name of key {i}"))?;
        let value = reader.value(&key)?;
        if metadata.get(&key).is_some() {
            return Err(GgufError::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn check_whole(metadata: &Metadata) -> Result<(), GgufError> {
    match metadata.u64("split.count")? {
        Some(count) if count > 1 => Err(GgufError::Split { count }),
        _ => Ok(()),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, GgufError> {
    let Some(found) = metadata.u64("general.alignment")? else { return Ok(ALIGNMENT_DEFAULT) };
    if (8..=1 << 20).contains(&found) && found.is_power_of_two() {
        return Ok(found as usize);
    }
    Err(GgufError::Alignment { found })
}

/// A tensor whose place in the data is not checked yet.
struct TensorInfo {
    name: String,
    format: Format,
    shape: Vec<usize>,
    bytes: usize,
    offset: u64,
}

impl TensorInfo {
    fn view(self, data: &Bytes) -> Result<GgufTensor, GgufError> {
        let start = self.offset as usize;
        match data.slice(start..start + self.bytes) {
            Some(bytes) => Ok(GgufTensor { name: self.name, format: self.format, shape: self.shape, bytes }),
            None => Err(self.misplaced("it ends past the end of the file".into())),
        }
    }

    fn misplaced(&self, detail: String) -> GgufError {
        GgufError::Place { tensor: self.name.clone(), offset: self.offset, detail }
    }
}

type NamedInfos = (Vec<TensorInfo>, HashMap<String, usize>);

fn read_tensor_infos(reader: &mut Reader, count: u64) -> Result<NamedInfos, GgufError> {
    let count = reader.check_count("tensor count", count, TENSOR_BYTES_MIN)?;
    let mut infos = Vec::with_capacity(count);
    let mut by_name = HashMap::with_capacity(count);
    for i in 0..count {
        let info = read_tensor_info(reader, i)?;
        if by_name.insert(info.name.clone(), i).is_some() {
            return Err(GgufError::DuplicateTensor { tensor: info.name });
        }
        infos.push(info);
    }
    Ok((infos, by_name))
}

fn read_tensor_info(reader: &mut Reader, i: usize) -> Result<TensorInfo, GgufError> {
    let name = reader.string(&format!("name of tensor {i}"))?;
    let rank = reader.u32(&name)?;
    if rank == 0 || rank > DIMS_MAX {
        let (found, expected) = (format!("in {rank} dimensions"), format!("1 to {DIMS_MAX} are valid"));
        return Err(GgufError::Extents { tensor: name, found, expected });
    }
    let mut extents = (0..rank).map(|_| reader.u64(&name)).collect::<Result<Vec<u64>, _>>()?;
    extents.reverse();
    let format = Format::from_ggml_type(reader.u32(&name)?);
    let format = format.map_err(|source| GgufError::Format { tensor: name.clone(), source })?;
    let offset = reader.u64(&name)?;
    let (shape, bytes) = shape_and_bytes(&name, format, &extents)?;
    Ok(TensorInfo { name, format, shape, bytes, offset })
}

/// Extents as sizes, and the bytes of the whole tensor.
fn shape_and_bytes(tensor: &str, format: Format, extents: &[u64]) -> Result<(Vec<usize>, usize), GgufError> {
    let wrong = |expected: String| GgufError::Extents {
        tensor: tensor.into(),
        found: format!("{extents:?}"),
        expected,
    };
    if extents.contains(&0) {
        return Err(wrong("none may be zero".into()));
    }
    let too_large = || wrong("their product is too large".into());
    let shape = extents.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| too_large())?;
    let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
    let elements = elements.filter(|&n| n <= isize::MAX as usize / 4).ok_or_else(too_large)?;
    let cols = shape[shape.len() - 1];
    let row_bytes = format.row_bytes(cols);
    let row_bytes = row_bytes.map_err(|source| GgufError::Format { tensor: tensor.into(), source })?;
    Ok((shape, elements / cols * row_bytes))
}

fn check_layout(infos: &[TensorInfo], data: &[u8], alignment: usize) -> Result<(), GgufError> {
    let mut by_offset: Vec<&TensorInfo> = infos.iter().collect();
    by_offset.sort_by_key(|info| info.offset);
    let mut previous: Option<(&TensorInfo, u64)> = None;
    for info in by_offset {
        if !info.offset.is_multiple_of(alignment as u64) {
            return Err(info.misplaced(format!("not a multiple of the alignment, {alignment}")));
        }
        let end = info.offset.checked_add(info.bytes as u64).filter(|&end| end <= data.len() as u64);
        let Some(end) = end else {
            let (bytes, left) = (info.bytes, data.len());
            let detail = format!(
                "it needs {bytes} bytes, but the data ends at {left}; the file is cut short: download it again"
            );
            return Err(info.misplaced(detail));
        };
        if let Some((other, other_end)) = previous
            && info.offset < other_end
        {
            return Err(info.misplaced(format!("it overlaps tensor `{}`", other.name)));
        }
        previous = Some((info, end));
    }
    Ok(())
}
