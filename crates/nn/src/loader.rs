use std::ops::Range;

use samebits_tensor::{Backend, Format, HostWeight, Tensor, Weight};

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
        let weight = self.matrix(&format!("{name}.weight"), &[rows, cols])?;
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

    /// `name.weight [rows, cols]` of a router, in F32 if it is in floats: activations that were rounded to fewer bits would choose
    /// other experts, and GGUF files have it in F32 already.
    pub fn router(&self, name: &str, rows: usize, cols: usize) -> Result<Linear<B>> {
        let name = format!("{}{name}.weight", self.prefix);
        if let Some(weight) = self.stored(&name, &[rows, cols], of_router)? {
            return Ok(Linear { weight, bias: None });
        }
        let mut host = self.source.get_shaped(&name, &[rows, cols])?;
        if of_router(host.format) != host.format {
            let bytes: Vec<u8> = host.to_f32()?.into_iter().flat_map(f32::to_le_bytes).collect();
            host = HostWeight { format: Format::F32, bytes: bytes.into(), ..host };
        }
        Ok(Linear { weight: self.pack(&host)?, bias: None })
    }

    /// This rank's rows of every expert of `name.weight [experts, rows, cols]`, as `[experts * part, cols]`: all of them where a
    /// backend is alone.
    pub fn experts_part(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Result<Weight<B>> {
        let (name, part) = (format!("{name}.weight"), self.backend.rank().part(rows)?);
        if part.len() == rows {
            return self.matrix(&name, &[experts, rows, cols]);
        }
        let host = self.source.get_shaped(&format!("{}{name}", self.prefix), &[experts, rows, cols])?;
        let host = flat(host);
        let mut bytes = Vec::with_capacity(host.bytes.len() / rows.max(1) * part.len());
        for expert in 0..experts {
            bytes.extend_from_slice(&host.rows(expert * rows + part.start..expert * rows + part.end)?.bytes);
        }
        host.bytes.release(0..host.bytes.len());
        self.pack(&HostWeight { shape: vec![experts * part.len(), cols], bytes: bytes.into(), ..host })
    }

    /// `name.weight [vocab_size, hidden_size]`.
    pub fn embedding(&self, name: &str) -> Result<Embedding<B>> {
        let Config { vocab_size, hidden_size, .. } = *self.config;
        Ok(Embedding { weight: self.matrix(&format!("{name}.weight"), &[vocab_size, hidden_size])? })
    }

    /// `name.weight [size]`, with the configuration's `rms_norm_eps`.
    pub fn norm(&self, name: &str, size: usize) -> Result<RmsNorm<B>> {
        Ok(RmsNorm { weight: self.vector(&format!("{name}.weight"), size)?, eps: self.config.rms_norm_eps })
    }

    /// A weight of this shape, as a matrix whose columns are its last extent.
    fn matrix(&self, name: &str, shape: &[usize]) -> Result<Weight<B>> {
        let name = format!("{}{name}", self.prefix);
        if let Some(weight) = self.stored(&name, shape, |format| format)? {
            return Ok(weight);
        }
        self.pack(&flat(self.source.get_shaped(&name, shape)?))
    }

    fn pack(&self, host: &HostWeight) -> Result<Weight<B>> {
        check_finite_on(host, |tasks, run| self.backend.on_host(tasks, run))?;
        (self.on_weight)(host.bytes.len());
        let weight = Weight::pack(self.backend, host)?;
        host.bytes.release(0..host.bytes.len());
        Ok(weight)
    }

    /// A weight that was packed, and found to be finite, at an earlier start, in the format that its file's becomes.
    fn stored(
        &self,
        name: &str,
        shape: &[usize],
        becomes: impl Fn(Format) -> Format,
    ) -> Result<Option<Weight<B>>> {
        let Some(weight) = Weight::stored(self.backend, name) else { return Ok(None) };
        let (format, found) = self.source.layout(name)?;
        let [rows, cols] = flat_shape(shape);
        if weight.format() != becomes(format)
            || [weight.rows(), weight.cols()] != [rows, cols]
            || found != shape
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

/// The format in which a router is kept.
fn of_router(format: Format) -> Format {
    if format.is_quantized() { format } else { Format::F32 }
}

/// The weight as a matrix whose columns are its last extent.
fn flat(host: HostWeight) -> HostWeight {
    HostWeight { shape: flat_shape(&host.shape).into(), ..host }
}

fn flat_shape(shape: &[usize]) -> [usize; 2] {
    let (cols, rows) = shape.split_last().map_or((1, &[][..]), |(&cols, rows)| (cols, rows));
    [rows.iter().product(), cols]
}
