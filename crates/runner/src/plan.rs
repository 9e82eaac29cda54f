use samebits_engine::Limits;
use samebits_nn::{Config, WeightSource};
use samebits_tensor::{Format, KvShape};

/// How a model is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerConfig {
    /// Longest context of a request; the model's own at most.
    pub max_context: usize,
    /// Bytes for the pages of the cache; what one request of the longest context takes, times two, if `None`.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Tokens of a page; a power of two up to 128.
    pub page_size: usize,
    /// Most tokens in one step.
    pub max_tokens_per_step: usize,
    /// Most sequences in one step.
    pub max_seqs_per_step: usize,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        RunnerConfig {
            max_context: 4096,
            kv_cache_memory_bytes: None,
            page_size: 32,
            max_tokens_per_step: 512,
            max_seqs_per_step: 64,
        }
    }
}

/// The memory of a device, and what a model takes of it that its file does not tell.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Bytes that there are, if the device tells.
    pub available: Option<u64>,
    /// Bytes of a weight matrix of so many rows and columns, whole blocks of its format.
    pub weight_bytes: fn(Format, usize, usize) -> u64,
    /// How often the tensors of a decoding step are there once more, for steps that the device records.
    pub recorded_steps: u64,
}

impl Default for DeviceMemory {
    /// A device that keeps weights as files do, and records no steps.
    fn default() -> Self {
        let weight_bytes = |format: Format, rows, cols| {
            let blocks = rows as u64 * (cols / format.block_len()) as u64;
            blocks * format.block_bytes() as u64
        };
        DeviceMemory { available: None, weight_bytes, recorded_steps: 0 }
    }
}

/// Bytes that serving a model takes, known before any is allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights, as the device keeps them.
    pub weights: u64,
    /// Rotary tables.
    pub tables: u64,
    /// Cache of one token, over all layers.
    pub kv_per_token: u64,
    /// Pages of the cache.
    pub pages: usize,
    /// Tokens of a page.
    pub page_size: usize,
    /// All pages.
    pub kv_cache: u64,
    /// Tensors of the largest step that are alive at once.
    pub activations: u64,
    /// Those of decoding steps that the device records.
    pub recorded_steps: u64,
    /// Longest context of a request.
    pub max_context: usize,
}

/// Why a model cannot be served as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A field of [`RunnerConfig`] that makes no sense.
    #[error("{field} is {found}; expected {expected}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        found: usize,
        /// What would do.
        expected: String,
    },
    /// A cache too small for a single request.
    #[error(
        "the cache of {given} bytes holds {tokens} tokens, fewer than one request of {needed}; \
         give kv_cache_memory_bytes at least {least}, or lower max_context"
    )]
    CacheTooSmall {
        /// Bytes given.
        given: u64,
        /// Tokens that they hold.
        tokens: usize,
        /// Longest context asked for.
        needed: usize,
        /// Bytes that would do.
        least: u64,
    },
    /// More memory than the device has.
    #[error(
        "{needed} bytes are needed and {available} are there; lower max_context or kv_cache_memory_bytes"
    )]
    OutOfMemory {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        available: u64,
    },
}

impl MemoryPlan {
    /// Plans a model on a device that keeps weights as files do, with so many bytes of memory, if it tells.
    ///
    /// # Errors
    /// [`PlanError`], naming the field, or the bytes that are short.
    pub fn new(
        config: &Config,
        weights: &dyn WeightSource,
        runner: &RunnerConfig,
        available: Option<u64>,
    ) -> Result<Self, PlanError> {
        let device = DeviceMemory { available, ..DeviceMemory::default() };
        Self::on_device(config, weights, runner, &device)
    }

    /// Plans a model on a device.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn on_device(
        config: &Config,
        weights: &dyn WeightSource,
        runner: &RunnerConfig,
        device: &DeviceMemory,
    ) -> Result<Self, PlanError> {
        let max_context = runner.max_context.min(config.max_position_embeddings);
        check("max_context", max_context, max_context > 1, "at least 2")?;
        let page_size = runner.page_size;
        check(
            "page_size",
            page_size,
            page_size > 0 && 128usize.is_multiple_of(page_size),
            "a power of two up to 128",
        )?;
        check(
            "max_tokens_per_step",
            runner.max_tokens_per_step,
            runner.max_tokens_per_step > 0,
            "at least 1",
        )?;
        check("max_seqs_per_step", runner.max_seqs_per_step, runner.max_seqs_per_step > 0, "at least 1")?;
        let page_bytes = (page_shape(config, page_size).bytes() * config.num_hidden_layers) as u64;
        let pages_of_one = max_context.div_ceil(page_size);
        let pages = match runner.kv_cache_memory_bytes {
            None => 2 * pages_of_one,
            Some(bytes) => (bytes / page_bytes) as usize,
        };
        if pages < pages_of_one {
            return Err(PlanError::CacheTooSmall {
                given: runner.kv_cache_memory_bytes.unwrap_or_default(),
                tokens: pages * page_size,
                needed: max_context,
                least: pages_of_one as u64 * page_bytes,
            });
        }
        let plan = MemoryPlan {
            weights: weights_bytes(config, weights, device),
            tables: tables_bytes(config, max_context),
            kv_per_token: page_bytes / page_size as u64,
            pages,
            page_size,
            kv_cache: pages as u64 * page_bytes,
            activations: activation_bytes(config, runner, runner.max_tokens_per_step),
            recorded_steps: device.recorded_steps
                * activation_bytes(config, runner, runner.max_seqs_per_step),
            max_context,
        };
        match device.available {
            Some(available) if plan.total() > available => {
                Err(PlanError::OutOfMemory { needed: plan.total(), available })
            }
            _ => Ok(plan),
        }
    }

    /// What a runner of this plan can hold and do.
    pub(crate) fn limits(&self, config: &Config, runner: &RunnerConfig) -> Limits {
        Limits {
            pages: self.pages,
            page_size: self.page_size,
            max_tokens_per_step: runner.max_tokens_per_step,
            max_seqs_per_step: runner.max_seqs_per_step,
            max_context: self.max_context,
            vocab_size: config.vocab_size,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.tables + self.kv_cache + self.activations + self.recorded_steps
    }
}

fn check(field: &'static str, found: usize, fits: bool, expected: &str) -> Result<(), PlanError> {
    if fits { Ok(()) } else { Err(PlanError::Invalid { field, found, expected: expected.into() }) }
}

pub(crate) fn page_shape(config: &Config, page_size: usize) -> KvShape {
    KvShape { pages: 1, page_size, kv_heads: config.num_key_value_heads, head_dim: config.head_dim }
}

fn weights_bytes(config: &Config, weights: &dyn WeightSource, device: &DeviceMemory) -> u64 {
    let bytes = |name: &String| match weights.layout(name).ok()? {
        (format, shape) if format.is_quantized() && shape.len() > 1 => {
            let (cols, rows) = shape.split_last().expect("two extents or more");
            Some((device.weight_bytes)(format, rows.iter().product(), *cols))
        }
        // A router is kept in f32.
        (format, shape) if name.ends_with(".mlp.gate.weight") && !format.is_quantized() => {
            Some(4 * shape.iter().product::<usize>() as u64)
        }
        _ => weights.size(name),
    };
    weights.names().iter().filter(|name| is_used(config, name)).filter_map(bytes).sum()
}

/// Whether the model reads the weight: a head of its own beside a tied embedding is passed over.
pub(crate) fn is_used(config: &Config, name: &str) -> bool {
    !(config.tie_word_embeddings && name.starts_with("lm_head."))
}

fn tables_bytes(config: &Config, max_context: usize) -> u64 {
    let bases = 1 + u64::from(config.rope_local_base_freq.is_some());
    bases * (max_context * config.head_dim * 4) as u64
}

/// Of a step of so many tokens. The feed-forward layer is the widest place: the residual, its norm, gate, up and their product, in
/// f32, of every expert that a token is given to; and the logits of every sequence at the end.
fn activation_bytes(config: &Config, runner: &RunnerConfig, tokens: usize) -> u64 {
    let tokens = tokens.min(runner.max_tokens_per_step);
    let choices = config.experts.map_or(1, |experts| experts.num_experts_per_tok);
    let inner = choices * config.intermediate_size + (choices - 1) * config.hidden_size;
    let wide = 3 * inner.max(config.q_size() + config.kv_size());
    let step = tokens * (3 * config.hidden_size + wide);
    let logits = runner.max_seqs_per_step.min(tokens) * config.vocab_size;
    4 * step.max(logits) as u64
}
