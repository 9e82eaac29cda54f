//! Safetensors, in one file or in shards. The header is parsed and its offsets are checked by the `safetensors`
//! crate; format: `README.md` of the safetensors project.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Component, Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use samebits_nn::{Config, WeightError, WeightSource};
use samebits_tensor::{Bytes, Format, HostWeight};

use crate::{
    Error, Result, mmap,
    names::{Place, place},
    read_json,
};

/// Name of the index of a sharded checkpoint.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Name of a checkpoint of one file.
pub(crate) const SINGLE: &str = "model.safetensors";

/// The weights of a directory of safetensors files.
pub struct SafetensorsWeights {
    origin: String,
    adds_one_to_norms: bool,
    weights: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

/// A weight, of one tensor or of one an expert.
enum Entry {
    Whole(HostWeight),
    Experts { name: String, parts: Vec<Option<HostWeight>> },
}

impl SafetensorsWeights {
    /// Maps the files of `directory` and takes the tensors that a model of `config` has. Also returns the files.
    ///
    /// # Errors
    /// Naming the file and tensor that is missing, damaged, there twice, of a type that is not supported, or
    /// without a place in the model.
    pub fn open(directory: &Path, config: &Config) -> Result<(Self, Vec<PathBuf>)> {
        let files = files(directory)?;
        let mut weights = SafetensorsWeights {
            origin: directory.display().to_string(),
            adds_one_to_norms: config.architecture.is_gemma(),
            weights: Vec::new(),
            by_name: HashMap::new(),
        };
        for path in &files {
            let bytes = mmap::map(path).map_err(|source| Error::Io { path: path.clone(), source })?;
            let failed = |source| Error::Safetensors { path: path.clone(), source };
            for tensor in parse(&bytes).map_err(failed)? {
                weights.add(tensor, config).map_err(failed)?;
            }
        }
        weights.check_index(directory, config)?;
        Ok((weights, files))
    }

    fn add(&mut self, tensor: SafetensorsTensor, config: &Config) -> Result<(), SafetensorsError> {
        let Some(name) = text_name(&tensor.name) else { return Ok(()) };
        let Some(place) = place(config, &name) else {
            let (architecture, layers) = (config.architecture.to_string(), config.num_hidden_layers);
            return Err(SafetensorsError::NoPlace { tensor: tensor.name, architecture, layers });
        };
        let format = match tensor.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            dtype => {
                let dtype = format!("{dtype:?}");
                return Err(SafetensorsError::Dtype { tensor: tensor.name, dtype });
            }
        };
        let weight = HostWeight { name: place.name, format, shape: tensor.shape, bytes: tensor.bytes };
        let is_new = match (place.expert, config.experts) {
            (Some(expert), Some(experts)) => self.add_part(weight, expert, experts.num_experts),
            _ => {
                let name = weight.name.clone();
                self.weights.push(Entry::Whole(weight));
                self.by_name.insert(name, self.weights.len() - 1).is_none()
            }
        };
        if is_new { Ok(()) } else { Err(SafetensorsError::Duplicate { tensor: name }) }
    }

    /// Whether the expert's part of a weight was not there yet.
    fn add_part(&mut self, weight: HostWeight, expert: usize, count: usize) -> bool {
        let next = self.weights.len();
        let index = *self.by_name.entry(weight.name.clone()).or_insert(next);
        if index == next {
            self.weights.push(Entry::Experts { name: weight.name.clone(), parts: vec![None; count] });
        }
        match &mut self.weights[index] {
            Entry::Experts { parts, .. } => parts[expert].replace(weight).is_none(),
            Entry::Whole(_) => false,
        }
    }

    /// Everything that the index lists must have been in one of the shards.
    fn check_index(&self, directory: &Path, config: &Config) -> Result<()> {
        let path = directory.join(INDEX);
        if !path.is_file() {
            return Ok(());
        }
        for (tensor, shard) in weight_map(&path)? {
            let place = text_name(&tensor).and_then(|name| place(config, &name));
            if place.is_some_and(|place| !self.has(&place)) {
                return Err(Error::Safetensors {
                    path,
                    source: SafetensorsError::NotInShard { tensor, shard },
                });
            }
        }
        Ok(())
    }

    fn has(&self, place: &Place) -> bool {
        let entry = self.by_name.get(&place.name).map(|&i| &self.weights[i]);
        match (entry, place.expert) {
            (Some(Entry::Experts { parts, .. }), Some(expert)) => parts[expert].is_some(),
            (entry, _) => entry.is_some(),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, WeightError> {
        match self.by_name.get(name) {
            Some(&i) => Ok(&self.weights[i]),
            None => Err(WeightError::Missing { name: name.into(), origin: self.origin.clone() }),
        }
    }

    /// The parts of all experts, which are alike.
    fn all_of<'a>(
        &self,
        name: &str,
        parts: &'a [Option<HostWeight>],
    ) -> Result<Vec<&'a HostWeight>, WeightError> {
        let wrong = |detail| WeightError::Invalid { name: name.into(), origin: self.origin.clone(), detail };
        let missing = |expert| wrong(format!("expert {expert} is missing; the file is incomplete"));
        let found = parts.iter().enumerate().map(|(i, part)| part.as_ref().ok_or_else(|| missing(i)));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let first = found.first().ok_or_else(|| missing(0))?;
        match found.iter().position(|part| (part.format, &part.shape) != (first.format, &first.shape)) {
            None => Ok(found),
            Some(expert) => Err(wrong(format!(
                "expert {expert} is {} {:?}, but expert 0 is {} {:?}",
                found[expert].format, found[expert].shape, first.format, first.shape
            ))),
        }
    }

    /// One weight of the parts of all experts, one after the other.
    fn stack(&self, name: &str, parts: &[Option<HostWeight>]) -> Result<HostWeight, WeightError> {
        let parts = self.all_of(name, parts)?;
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.bytes.len()).sum());
        for part in &parts {
            bytes.extend_from_slice(&part.bytes);
            part.bytes.release(0..part.bytes.len());
        }
        Ok(HostWeight {
            name: name.into(),
            format: parts[0].format,
            shape: stacked(&parts),
            bytes: bytes.into(),
        })
    }

    /// Whether the file holds this weight less the one that Gemma adds to its norms.
    fn is_less_one(&self, name: &str) -> bool {
        self.adds_one_to_norms && name.ends_with("norm.weight")
    }

    fn plus_one(&self, weight: &HostWeight) -> Result<HostWeight, WeightError> {
        let invalid =
            |detail| WeightError::Invalid { name: weight.name.clone(), origin: self.origin.clone(), detail };
        let values = weight.to_f32().map_err(|error| invalid(error.to_string()))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| (value + 1.0).to_le_bytes()).collect();
        Ok(HostWeight { format: Format::F32, bytes: bytes.into(), ..weight.clone() })
    }
}

impl WeightSource for SafetensorsWeights {
    fn get(&self, name: &str) -> Result<HostWeight, WeightError> {
        match self.entry(name)? {
            Entry::Whole(weight) if self.is_less_one(name) => self.plus_one(weight),
            Entry::Whole(weight) => Ok(weight.clone()),
            Entry::Experts { parts, .. } => self.stack(name, parts),
        }
    }

    fn layout(&self, name: &str) -> Result<(Format, Vec<usize>), WeightError> {
        match self.entry(name)? {
            Entry::Whole(weight) if self.is_less_one(name) => Ok((Format::F32, weight.shape.clone())),
            Entry::Whole(weight) => Ok((weight.format, weight.shape.clone())),
            Entry::Experts { parts, .. } => {
                let parts = self.all_of(name, parts)?;
                Ok((parts[0].format, stacked(&parts)))
            }
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn names(&self) -> Vec<String> {
        let name = |entry: &Entry| match entry {
            Entry::Whole(weight) => weight.name.clone(),
            Entry::Experts { name, .. } => name.clone(),
        };
        self.weights.iter().map(name).collect()
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }
}

/// The shape of a weight of these parts.
fn stacked(parts: &[&HostWeight]) -> Vec<usize> {
    [&[parts.len()], parts[0].shape.as_slice()].concat()
}

/// A tensor of a safetensors file, under the file's own name.
#[derive(Clone, Debug)]
pub struct SafetensorsTensor {
    /// Name in the file.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub bytes: Bytes,
}

/// Parses the bytes of a file, whose tensors stay views of them, in the order of their offsets.
///
/// # Errors
/// If the header is damaged or does not fit the file.
pub fn parse(file: &Bytes) -> Result<Vec<SafetensorsTensor>, SafetensorsError> {
    let (header_bytes, header) = SafeTensors::read_metadata(file)
        .map_err(|error| SafetensorsError::Header { detail: error.to_string() })?;
    let data = 8 + header_bytes;
    let names = header.offset_keys().into_iter();
    names
        .map(|name| {
            let info = header.info(&name);
            let view =
                info.and_then(|i| file.slice(data + i.data_offsets.0..data + i.data_offsets.1).zip(info));
            let (bytes, info) = view.ok_or_else(|| SafetensorsError::Header {
                detail: format!("tensor `{name}` is outside of the file"),
            })?;
            Ok(SafetensorsTensor { name, dtype: info.dtype, shape: info.shape.clone(), bytes })
        })
        .collect()
}

/// What is wrong with a safetensors checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SafetensorsError {
    #[error("the header is damaged: {detail}; download the file again")]
    Header { detail: String },
    #[error("tensor `{tensor}` is of type {dtype}, which is not supported; F32, F16 and BF16 are")]
    Dtype { tensor: String, dtype: String },
    #[error("tensor `{tensor}` is there twice; the checkpoint mixes two sets of shards")]
    Duplicate { tensor: String },
    #[error(
        "tensor `{tensor}` is not supported: a {architecture} model of {layers} layers has no such tensor"
    )]
    NoPlace { tensor: String, architecture: String, layers: usize },
    #[error("`weight_map` is missing or is not an object of file names")]
    Index,
    #[error("shard `{shard}` leaves the directory; shards are file names beside the index")]
    ShardPath { shard: String },
    #[error("shard `{shard}` is missing; download it")]
    MissingShard { shard: String },
    #[error("tensor `{tensor}` is listed in the index, but is not in shard `{shard}`; download it again")]
    NotInShard { tensor: String, shard: String },
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let (index, single) = (directory.join(INDEX), directory.join(SINGLE));
    if !index.is_file() {
        return Ok(vec![single]);
    }
    let shards: BTreeSet<String> = weight_map(&index)?.into_iter().map(|(_, shard)| shard).collect();
    let shards = shards.into_iter().map(|shard| shard_path(directory, shard));
    shards.collect::<Result<_, _>>().map_err(|source| Error::Safetensors { path: index, source })
}

fn shard_path(directory: &Path, shard: String) -> Result<PathBuf, SafetensorsError> {
    let mut components = Path::new(&shard).components();
    let is_file_name = matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
    let path = directory.join(&shard);
    match (is_file_name, path.is_file()) {
        (true, true) => Ok(path),
        (true, false) => Err(SafetensorsError::MissingShard { shard }),
        (false, _) => Err(SafetensorsError::ShardPath { shard }),
    }
}

/// Tensors and the shards that they are in.
fn weight_map(index: &Path) -> Result<Vec<(String, String)>> {
    let json = read_json(index)?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let pairs = map.and_then(|map| {
        map.iter().map(|(tensor, shard)| Some((tensor.clone(), shard.as_str()?.to_owned()))).collect()
    });
    pairs.ok_or_else(|| Error::Safetensors { path: index.into(), source: SafetensorsError::Index })
}

/// Name of a tensor in a model of text only; `None` for the vision parts of a multimodal checkpoint, and for
/// rotary tables, which are computed.
fn text_name(name: &str) -> Option<String> {
    let bare = name.strip_prefix("model.").unwrap_or(name);
    if bare.starts_with("vision_tower.")
        || bare.starts_with("multi_modal_projector.")
        || name.ends_with("rotary_emb.inv_freq")
    {
        return None;
    }
    Some(match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(rest), _) => rest.into(),
        (_, Some(rest)) => format!("model.{rest}"),
        _ => name.into(),
    })
}
