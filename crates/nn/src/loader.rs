use std::ops::Range;

use samebits_tensor::{Backend, HostWeight, Tensor, Weight};

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

    /// This rank's rows of `name.weight [rows, cols]`, and of `name.bias [rows]` if `bias`: all of them where a backend is
    /// alone. Every rank has as many, in the order of the ranks.
    pub fn linear_part(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear<B>> {
        self.linear_rows(name, self.backend.rank().part(rows)?, rows, cols, bias)
    }

    /// The rows of this rank's heads of `name.weight [heads * head_dim, hidden_size]`, and of `name.bias` if `bias`. Where there
    /// are fewer heads than ranks, several ranks have the same.
    pub fn linear_heads(&self, name: &str, heads: usize, bias: bool) -> Result<Linear<B>> {
        let Config { head_dim, hidden_size, .. } = *self.config;
        let part = self.backend.rank().heads(heads)?;
        let part = part.start * head_dim..part.end * head_dim;
        self.linear_rows(name, part, heads * head_dim, hidden_size, bias)
    }

    /// Rows `part` of `name.weight [rows, cols]`, and of `name.bias [rows]` if `bias`.
    fn linear_rows(
        &self,
        name: &str,
        part: Range<usize>,
        rows: usize,
        cols: usize,
        bias: bool,
    ) -> Result<Linear<B>> {
        if part.len() == rows {
            return self.linear(name, rows, cols, bias);
        }
        let host = self.source.get_shaped(&format!("{}{name}.weight", self.prefix), &[rows, cols])?;
        let weight = self.pack(&host.rows(part.clone())?)?;
        let bias = bias.then(|| self.values(&format!("{name}.bias"), rows)).transpose()?;
        let bias = bias.map(|bias| Tensor::of(self.backend, [part.len()], &bias[part])).transpose()?;
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
        self.pack(&self.source.get_shaped(&name, &[rows, cols])?)
    }

    fn pack(&self, host: &HostWeight) -> Result<Weight<B>> {
        check_finite_on(host, |tasks, run| self.backend.on_host(tasks, run))?;
        (self.on_weight)(host.bytes.len());
        let weight = Weight::pack(self.backend, host)?;
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
        Ok(Tensor::of(self.backend, [len], &self.values(name, len)?)?)
    }

    fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let host = self.source.get_shaped(&format!("{}{name}", self.prefix), &[len])?;
        check_finite(&host)?;
        (self.on_weight)(host.bytes.len());
        Ok(host.to_f32()?)
    }
}
