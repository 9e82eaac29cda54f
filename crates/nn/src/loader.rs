use samebits_tensor::{Backend, Tensor, Weight};

use crate::{
    Config, ConfigError, Embedding, Linear, RmsNorm, WeightError, WeightSource, check_finite,
    weights::check_finite_on,
};

/// Result of building a layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a layer could not be built.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A weight is missing or damaged.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backend refused a weight.
    #[error(transparent)]
    Tensor(#[from] samebits_tensor::Error),
}

/// Takes weights from a checkpoint to a backend, below one prefix of names.
pub struct Loader<'a, B: Backend> {
    backend: &'a B,
    source: &'a dyn WeightSource,
    config: &'a Config,
    on_weight: &'a dyn Fn(usize),
    prefix: String,
}

impl<'a, B: Backend> Loader<'a, B> {
    /// A loader of whole names. `on_weight` is told the bytes of each weight as it is placed.
    pub fn new(
        backend: &'a B,
        source: &'a dyn WeightSource,
        config: &'a Config,
        on_weight: &'a dyn Fn(usize),
    ) -> Self {
        Loader { backend, source, config, on_weight, prefix: String::new() }
    }

    /// The loader of names below `name`.
    pub fn at(&self, name: impl std::fmt::Display) -> Loader<'a, B> {
        Loader { prefix: format!("{}{name}.", self.prefix), ..*self }
    }

    /// The backend.
    pub fn backend(&self) -> &'a B {
        self.backend
    }

    /// The model's hyperparameters.
    pub fn config(&self) -> &'a Config {
        self.config
    }

    /// `name.weight [rows, cols]`, and `name.bias [rows]` if `bias`.
    pub fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear<B>> {
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), rows)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// `name.weight [vocab_size, hidden_size]`.
    pub fn embedding(&self, name: &str) -> Result<Embedding<B>> {
        let Config { vocab_size, hidden_size, .. } = *self.config;
        Ok(Embedding { weight: self.matrix(&format!("{name}.weight"), vocab_size, hidden_size)? })
    }

    /// `name.weight [size]`, with the configuration's `rms_norm_eps`.
    pub fn norm(&self, name: &str, size: usize) -> Result<RmsNorm<B>> {
        Ok(RmsNorm { weight: self.vector(&format!("{name}.weight"), size)?, eps: self.config.rms_norm_eps })
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight<B>> {
        let name = format!("{}{name}", self.prefix);
        if let Some(weight) = self.stored(&name, rows, cols)? {
            return Ok(weight);
        }
        let host = self.source.get_shaped(&name, &[rows, cols])?;
        check_finite_on(&host, |tasks, run| self.backend.on_host(tasks, run))?;
        (self.on_weight)(host.bytes.len());
        let weight = Weight::pack(self.backend, &host)?;
        host.bytes.release(0..host.bytes.len());
        Ok(weight)
    }

    /// A weight that was packed, and found to be finite, at an earlier start.
    fn stored(&self, name: &str, rows: usize, cols: usize) -> Result<Option<Weight<B>>> {
        let Some(weight) = Weight::stored(self.backend, name) else { return Ok(None) };
        let (format, shape) = self.source.layout(name)?;
        if weight.format() != format
            || [weight.rows(), weight.cols()] != [rows, cols]
            || shape != [rows, cols]
        {
            return Ok(None);
        }
        (self.on_weight)(format.row_bytes(cols).map_err(samebits_tensor::Error::from)? * rows);
        Ok(Some(weight))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor<B>> {
        let host = self.source.get_shaped(&format!("{}{name}", self.prefix), &[len])?;
        check_finite(&host)?;
        (self.on_weight)(host.bytes.len());
        Ok(Tensor::of(self.backend, [len], &host.to_f32()?)?)
    }
}
