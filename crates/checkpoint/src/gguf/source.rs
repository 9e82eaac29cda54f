use std::{collections::HashMap, sync::Arc};

use samebits_nn::{Architecture, Config, ConfigError, WeightError, WeightSource};
use samebits_tensor::{Bytes, Format, HostWeight};

use super::{Gguf, GgufTensor};
use crate::names::hf_name_of_gguf;

/// The weights of a GGUF file under Hugging Face's names and in its row order.
pub struct GgufWeights {
    gguf: Arc<Gguf>,
    origin: String,
    config: Config,
    /// Index of the tensor of each Hugging Face name.
    by_name: HashMap<String, usize>,
}

impl GgufWeights {
    /// The weights of `gguf`, read from `origin`, for a model of `config`.
    ///
    /// # Errors
    /// If there is a tensor that the architecture has no place for: ignoring it would change the model.
    pub fn new(gguf: Arc<Gguf>, origin: impl Into<String>, config: &Config) -> Result<Self, ConfigError> {
        let mut by_name = HashMap::new();
        for (i, tensor) in gguf.tensors().iter().enumerate() {
            if ROPE_TENSORS.contains(&tensor.name.as_str()) {
                continue;
            }
            let name = hf_name_of_gguf(config, &tensor.name).ok_or_else(|| {
                let field = format!("tensor {}", tensor.name);
                let supported = format!(
                    "a {} model of {} layers has no such tensor",
                    config.architecture, config.num_hidden_layers
                );
                ConfigError::unsupported(field, "present", supported)
            })?;
            by_name.insert(name, i);
        }
        Ok(GgufWeights { gguf, origin: origin.into(), config: config.clone(), by_name })
    }

    fn tensor(&self, name: &str) -> Result<&GgufTensor, WeightError> {
        match self.by_name.get(name) {
            Some(&i) => Ok(&self.gguf.tensors()[i]),
            None => Err(WeightError::Missing { name: name.into(), origin: self.origin.clone() }),
        }
    }

    /// Heads whose rows llama.cpp's converter interleaved, so that its rotary embedding finds a pair side by side.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        if self.config.architecture.gguf_name() != Architecture::Llama.name() {
            return None;
        }
        let (module, _) = name.rsplit_once('.')?;
        match module.rsplit_once('.')?.1 {
            "q_proj" => Some(self.config.num_attention_heads),
            "k_proj" => Some(self.config.num_key_value_heads),
            _ => None,
        }
    }

    /// Rows in half-split order: row `half * head_dim / 2 + i` of a head is row `2 * i + half` in the file. The
    /// inverse of `LlamaModel.permute` of llama.cpp's converter; whole rows move, so blocks stay as they are.
    fn deinterleave(&self, name: &str, heads: usize, tensor: &GgufTensor) -> Result<HostWeight, WeightError> {
        let (rows, head_dim) = (tensor.shape[0], self.config.head_dim);
        if rows != heads * head_dim || tensor.shape.len() > 2 {
            let mut expected = tensor.shape.clone();
            expected[0] = heads * head_dim;
            expected.truncate(2);
            let (origin, found) = (self.origin.clone(), tensor.shape.clone());
            return Err(WeightError::Shape { name: name.into(), origin, expected, found });
        }
        if tensor.shape.len() == 1 && tensor.format.block_len() > 1 {
            let detail = format!("a vector of {}; expected F32, F16 or BF16", tensor.format);
            return Err(WeightError::Invalid { name: name.into(), origin: self.origin.clone(), detail });
        }
        let row_bytes = tensor.bytes.len() / rows;
        let mut bytes = Vec::with_capacity(tensor.bytes.len());
        for row in 0..rows {
            let (head, channel) = (row / head_dim, row % head_dim);
            let (half, i) = (channel / (head_dim / 2), channel % (head_dim / 2));
            let from = (head * head_dim + 2 * i + half) * row_bytes;
            bytes.extend_from_slice(&tensor.bytes[from..from + row_bytes]);
        }
        tensor.bytes.release(0..tensor.bytes.len());
        Ok(host_weight(name, tensor, bytes.into()))
    }
}

impl WeightSource for GgufWeights {
    fn get(&self, name: &str) -> Result<HostWeight, WeightError> {
        let tensor = self.tensor(name)?;
        match self.interleaved_heads(name) {
            Some(heads) => self.deinterleave(name, heads, tensor),
            None => Ok(host_weight(name, tensor, tensor.bytes.clone())),
        }
    }

    fn layout(&self, name: &str) -> Result<(Format, Vec<usize>), WeightError> {
        self.tensor(name).map(|tensor| (tensor.format, tensor.shape.clone()))
    }

    fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.by_name.iter().collect();
        names.sort_by_key(|&(_, i)| i);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    fn origin(&self) -> String {
        self.origin.clone()
    }
}

fn host_weight(name: &str, tensor: &GgufTensor, bytes: Bytes) -> HostWeight {
    HostWeight { name: name.into(), format: tensor.format, shape: tensor.shape.clone(), bytes }
}

/// Tensors that are part of the configuration.
const ROPE_TENSORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
