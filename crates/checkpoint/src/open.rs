use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use samebits_nn::{Config, WeightError, WeightSource};
use samebits_tensor::Format;
use serde_json::Value;

use crate::{
    Error, GenerationConfig, Gguf, GgufWeights, Result, SafetensorsWeights, config_from_gguf,
    config_from_json, mmap,
};

/// A model's files, opened: everything that is needed to run it, its weights still in their files.
#[derive(Clone)]
pub struct Checkpoint {
    /// Hyperparameters.
    pub config: Config,
    /// Weights by their Hugging Face names.
    pub weights: Arc<dyn WeightSource>,
    /// The files that the weights are in.
    pub files: Vec<PathBuf>,
    /// What the tokenizer is made from.
    pub tokenizer: TokenizerSource,
    /// Jinja text of the chat template, if the model has one.
    pub chat_template: Option<String>,
    /// How the authors suggest to sample.
    pub generation: GenerationConfig,
}

/// What a model's tokenizer is made from.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// The keys `tokenizer.ggml.*` of a GGUF file.
    Gguf(Arc<Gguf>),
    /// A Hugging Face `tokenizer.json`.
    Json {
        /// The tokenizer.
        tokenizer: PathBuf,
        /// `tokenizer_config.json` beside it, if there is one.
        config: Option<PathBuf>,
    },
}

/// How much of a model is in one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatShare {
    /// The format.
    pub format: Format,
    /// Tensors in it.
    pub tensors: usize,
    /// Values in them.
    pub parameters: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens a GGUF file, or a directory with `config.json` and safetensors or with exactly one GGUF file.
    ///
    /// # Errors
    /// Naming the file, and the field or tensor in it, that is missing, damaged or not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let metadata = fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
        if metadata.is_file() {
            return open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return open_directory(path);
        }
        open_gguf(&only_gguf(path)?)
    }

    /// What tells the model's files from others without reading them whole: a hash of this library's version and, of each
    /// file, its length, the time of its last change, its first MiB and its last 64 KiB.
    ///
    /// # Errors
    /// Those of reading the files.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        let mut hash = blake3::Hasher::new();
        hash.update(env!("CARGO_PKG_VERSION").as_bytes());
        for path in &self.files {
            let added = add_fingerprint(path, &mut hash);
            added.map_err(|source| Error::Io { path: path.clone(), source })?;
        }
        Ok(*hash.finalize().as_bytes())
    }

    /// Formats of the weights, the largest share of the bytes first. Reads no weight.
    ///
    /// # Errors
    /// As [`WeightSource::layout`].
    pub fn formats(&self) -> Result<Vec<FormatShare>, WeightError> {
        let mut shares: Vec<FormatShare> = Vec::new();
        for name in self.weights.names() {
            let (format, shape) = self.weights.layout(&name)?;
            let parameters = shape.iter().map(|&extent| extent as u64).product();
            let bytes = parameters / format.block_len() as u64 * format.block_bytes() as u64;
            match shares.iter_mut().find(|share| share.format == format) {
                Some(share) => {
                    share.tensors += 1;
                    share.parameters += parameters;
                    share.bytes += bytes;
                }
                None => shares.push(FormatShare { format, tensors: 1, parameters, bytes }),
            }
        }
        shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        Ok(shares)
    }
}

fn add_fingerprint(path: &Path, hash: &mut blake3::Hasher) -> io::Result<()> {
    const HEAD: u64 = 1 << 20;
    const TAIL: u64 = 1 << 16;
    let mut file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    hash.update(&metadata.len().to_le_bytes());
    hash.update(&changed.as_nanos().to_le_bytes());
    let mut bytes = Vec::new();
    (&mut file).take(HEAD).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(TAIL)))?;
    file.take(TAIL).read_to_end(&mut bytes)?;
    hash.update(&bytes);
    Ok(())
}

fn open_gguf(path: &Path) -> Result<Checkpoint> {
    let io = |source| Error::Io { path: path.into(), source };
    let gguf = Gguf::parse(mmap::map(path).map_err(io)?);
    let gguf = Arc::new(gguf.map_err(|source| Error::Gguf { path: path.into(), source })?);
    let wrong = |source| Error::Config { path: path.into(), source };
    let config = config_from_gguf(&gguf).map_err(wrong)?;
    let weights = GgufWeights::new(gguf.clone(), path.display().to_string(), &config).map_err(wrong)?;
    let template = gguf.metadata.str("tokenizer.chat_template");
    let template = template.map_err(|source| Error::Gguf { path: path.into(), source })?;
    let generation = GenerationConfig::from_gguf(&gguf.metadata).map_err(wrong)?;
    Ok(Checkpoint {
        generation: generation.with_eos(&config.eos_token_ids),
        config,
        weights: Arc::new(weights),
        files: vec![path.into()],
        chat_template: template.map(str::to_owned),
        tokenizer: TokenizerSource::Gguf(gguf),
    })
}

fn open_directory(directory: &Path) -> Result<Checkpoint> {
    let path = directory.join("config.json");
    let config = config_from_json(&read_json(&path)?).map_err(|source| Error::Config { path, source })?;
    let (weights, files) = SafetensorsWeights::open(directory, &config)?;
    let tokenizer_config = Some(directory.join("tokenizer_config.json")).filter(|path| path.is_file());
    Ok(Checkpoint {
        generation: generation(directory)?.with_eos(&config.eos_token_ids),
        config,
        weights: Arc::new(weights),
        files,
        chat_template: chat_template(directory)?,
        tokenizer: TokenizerSource::Json {
            tokenizer: directory.join("tokenizer.json"),
            config: tokenizer_config,
        },
    })
}

/// The only GGUF file of a directory.
fn only_gguf(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).map_err(|source| Error::Io { path: directory.into(), source })?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf") && path.is_file())
        .collect();
    found.sort();
    let detail = match found.as_slice() {
        [only] => return Ok(only.clone()),
        [] => "no model here: expected config.json with model.safetensors, or a .gguf file".into(),
        [first, ..] => format!("{} GGUF files here; name one, such as {}", found.len(), first.display()),
    };
    Err(Error::NotAModel { path: directory.into(), detail })
}

fn generation(directory: &Path) -> Result<GenerationConfig> {
    let path = directory.join("generation_config.json");
    if !path.is_file() {
        return Ok(GenerationConfig::default());
    }
    let json = read_json(&path)?;
    GenerationConfig::from_json(&json).map_err(|source| Error::Config { path, source })
}

/// The chat template: a file of its own, or a string in one of two JSON files, where it may also be the one
/// called `default` in a list.
fn chat_template(directory: &Path) -> Result<Option<String>> {
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        return fs::read_to_string(&path).map(Some).map_err(|source| Error::Io { path, source });
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = directory.join(name);
        if !path.is_file() {
            continue;
        }
        match &read_json(&path)?["chat_template"] {
            Value::String(text) => return Ok(Some(text.clone())),
            Value::Array(list) => {
                let default = list.iter().find(|template| template["name"] == "default");
                let text = default.and_then(|template| template["template"].as_str());
                return Ok(text.map(str::to_owned));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// A JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.into(), source })
}
