use std::sync::Arc;

use crate::{Backend, DType, Error, Format, FormatKind, HostTensor, HostWeight, Result, Tensor, unpack_rows};

/// A weight matrix `[rows, cols]` packed for a backend: rows are output features.
#[derive(Clone)]
pub struct Weight<B: Backend> {
    name: Arc<str>,
    format: Format,
    rows: usize,
    cols: usize,
    packed: B::Weight,
}

impl<B: Backend> Weight<B> {
    /// Packs a matrix for `backend`.
    ///
    /// # Errors
    /// If it is no matrix, its bytes do not fill it, or the backend does not take its format.
    pub fn pack(backend: &B, host: &HostWeight) -> Result<Self> {
        let (rows, cols) = host.matrix()?;
        let capabilities = backend.capabilities();
        if !capabilities.formats.contains(&host.format) {
            return Err(Error::Format {
                name: host.name.clone(),
                format: host.format,
                backend: capabilities.name.clone(),
            });
        }
        let packed = backend.pack(host)?;
        Ok(Weight { name: host.name.as_str().into(), format: host.format, rows, cols, packed })
    }

    /// The weight called `name`, if the backend has it from an earlier start.
    pub fn stored(backend: &B, name: &str) -> Option<Self> {
        let (packed, format, rows, cols) = backend.stored(name)?;
        Some(Weight { name: name.into(), format, rows, cols, packed })
    }

    /// Name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Block format of the checkpoint, whose values the packed form keeps.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The backend's layout.
    pub fn packed(&self) -> &B::Weight {
        &self.packed
    }
}

/// The contract's view of a weight matrix: the integers and scales of its blocks, as tensors.
#[derive(Clone)]
pub enum PlainWeight<B: Backend> {
    /// Float weights `[rows, cols]` in their own type.
    Dense(Tensor<B>),
    /// `value = scale * q (+ min)`, in blocks of 32 columns.
    Blocks32 {
        /// i8 `[rows, cols]`.
        q: Tensor<B>,
        /// f32 `[rows, cols / 32]`.
        scale: Tensor<B>,
        /// f32 `[rows, cols / 32]`.
        min: Option<Tensor<B>>,
    },
    /// `value = scale * sub_scale * q (- min_scale * sub_min)`, in blocks of 256 columns.
    Blocks256 {
        /// i8 `[rows, cols]`.
        q: Tensor<B>,
        /// f32 `[rows, cols / 256]`.
        scale: Tensor<B>,
        /// i8 `[rows, cols / sub_len]`, with `sub_len` 16 or 32.
        sub_scale: Tensor<B>,
        /// f32 `[rows, cols / 256]` and u8 `[rows, cols / sub_len]`.
        min: Option<(Tensor<B>, Tensor<B>)>,
    },
}

impl<B: Backend> PlainWeight<B> {
    /// Unpacks the blocks of a weight on the host and uploads the parts.
    ///
    /// # Errors
    /// As [`HostWeight::matrix`].
    pub fn unpack(backend: &B, host: &HostWeight) -> Result<Self> {
        let (rows, cols) = host.matrix()?;
        let dtype = match host.format {
            Format::F32 => Some(DType::F32),
            Format::F16 => Some(DType::F16),
            Format::BF16 => Some(DType::BF16),
            _ => None,
        };
        if let Some(dtype) = dtype {
            let dense = HostTensor::new([rows, cols], dtype, host.bytes.clone())?;
            return Ok(PlainWeight::Dense(Tensor::upload(backend, &dense)?));
        }
        let plain = unpack_rows(host.format, rows, cols, &host.bytes)?;
        let q = Tensor::of(backend, [rows, cols], &plain.q)?;
        let blocks = [rows, cols / host.format.block_len()];
        let scale = Tensor::of(backend, blocks, &plain.scale)?;
        let min = plain.min.map(|min| Tensor::of(backend, blocks, &min)).transpose()?;
        let FormatKind::Blocks256 { sub_len, .. } = host.format.kind() else {
            return Ok(PlainWeight::Blocks32 { q, scale, min });
        };
        let subs = [rows, cols / sub_len];
        let sub_scale = Tensor::of(backend, subs, &plain.sub_scale.unwrap_or_default())?;
        let sub_min = plain.sub_min.map(|sub_min| Tensor::of(backend, subs, &sub_min)).transpose()?;
        Ok(PlainWeight::Blocks256 { q, scale, sub_scale, min: min.zip(sub_min) })
    }

    /// The same of `f` of every part, which must do alike with the rows of all.
    pub(crate) fn map(&self, f: impl Fn(&Tensor<B>) -> Result<Tensor<B>>) -> Result<Self> {
        Ok(match self {
            PlainWeight::Dense(values) => PlainWeight::Dense(f(values)?),
            PlainWeight::Blocks32 { q, scale, min } => {
                PlainWeight::Blocks32 { q: f(q)?, scale: f(scale)?, min: min.as_ref().map(f).transpose()? }
            }
            PlainWeight::Blocks256 { q, scale, sub_scale, min } => {
                let min = min.as_ref().map(|(min, sub_min)| Ok::<_, Error>((f(min)?, f(sub_min)?)));
                let (q, scale, sub_scale) = (f(q)?, f(scale)?, f(sub_scale)?);
                PlainWeight::Blocks256 { q, scale, sub_scale, min: min.transpose()? }
            }
        })
    }

    /// Rows (output features) and columns (input features).
    pub fn dims(&self) -> (usize, usize) {
        let (PlainWeight::Dense(q) | PlainWeight::Blocks32 { q, .. } | PlainWeight::Blocks256 { q, .. }) =
            self;
        (q.dims()[0], q.dims()[1])
    }
}
