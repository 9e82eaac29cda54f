use samebits_tensor::{AttentionParams, Backend, Heads, Input, KvCache, Result, RopeTable, Tensor};

use crate::{Config, Linear, Loader, RmsNorm, Step, loader};

/// What the norms of q and k, where a model has them, are norms of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head.
    Heads,
    /// All heads together.
    Whole,
}

/// What distinguishes one model's attention from another's.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpec {
    /// Whether q, k and v have biases.
    pub bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// What of q and k is normalised before rotary embedding.
    pub qk_norm: Option<QkNorm>,
    /// Keys that a query sees, its own included; all if `None`.
    pub window: Option<usize>,
    /// Cap of the scores.
    pub soft_cap: Option<f32>,
}

impl AttentionSpec {
    /// The plain attention of Llama, with the biases that the configuration asks for.
    pub fn plain(config: &Config) -> Self {
        AttentionSpec {
            bias: config.attention_bias,
            output_bias: config.attention_output_bias,
            qk_norm: None,
            window: None,
            soft_cap: None,
        }
    }
}

/// Grouped-query attention with rotary positions over a paged cache. Where ranks share it, each has its heads, and the cache
/// of its key-value heads.
#[derive(Clone)]
pub struct Attention<B: Backend> {
    /// `[heads * head_dim, hidden_size]`.
    pub q_proj: Linear<B>,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub k_proj: Linear<B>,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub v_proj: Linear<B>,
    /// `[hidden_size, heads * head_dim]`.
    pub o_proj: Linear<B>,
    /// Norms of q and of k, `[head_dim]` where they are of each head, else `[heads * head_dim]`.
    pub qk_norm: Option<[RmsNorm<B>; 2]>,
    /// Angles by position.
    pub rope: RopeTable<B>,
    /// Channels of a head.
    pub head_dim: usize,
    /// Scale, window and cap of the scores.
    pub params: AttentionParams,
}

impl<B: Backend> Attention<B> {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj`, and `q_norm` and `k_norm` where the model has them.
    pub fn load(weights: &Loader<'_, B>, spec: AttentionSpec, rope: &RopeTable<B>) -> loader::Result<Self> {
        let config = weights.config();
        let norm = |of, name, heads| match of {
            QkNorm::Heads => weights.norm(name, config.head_dim),
            QkNorm::Whole => weights.norm(name, heads * config.head_dim),
        };
        let qk_norm = spec.qk_norm.map(|of| -> loader::Result<_> {
            let q_norm = norm(of, "q_norm", config.num_attention_heads)?;
            Ok([q_norm, norm(of, "k_norm", config.num_key_value_heads)?])
        });
        Ok(Attention {
            q_proj: weights.linear_heads("q_proj", config.num_attention_heads, spec.bias)?,
            k_proj: weights.linear_heads("k_proj", config.num_key_value_heads, spec.bias)?,
            v_proj: weights.linear_heads("v_proj", config.num_key_value_heads, spec.bias)?,
            o_proj: weights.linear_part("o_proj", config.hidden_size, config.q_size(), spec.output_bias)?,
            qk_norm: qk_norm.transpose()?,
            rope: rope.clone(),
            head_dim: config.head_dim,
            params: AttentionParams {
                scale: config.attention_scale(),
                window: spec.window,
                soft_cap: spec.soft_cap,
            },
        })
    }

    /// `x [t, hidden_size]` to the same shape; the tokens' keys and values go to the cache first.
    pub fn forward(&self, x: Input<'_, B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<Tensor<B>> {
        let [q, k, v] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x)?;
        let (q, k, v) = (self.queries(&q)?, self.keys(&k)?, self.heads(&v)?);
        let (positions, slots) = (&step.attention.positions, &step.slots);
        let q = cache.rotate_and_store(Heads { q: &q, k: &k, v: &v, positions, slots }, &self.rope)?;
        let out = q.attention(cache, &step.attention, &self.params)?;
        let out = out.reshape([out.dims()[0], out.dims()[1] * self.head_dim])?;
        self.o_proj.forward(&out.all_gather(1)?)?.all_gather(1)
    }

    /// Only the keys and values of `x [t, hidden_size]`, to the cache.
    pub fn store(&self, x: Input<'_, B>, step: &Step<B>, cache: &mut KvCache<B>) -> Result<()> {
        let [k, v] = Linear::forward_all([&self.k_proj, &self.v_proj], x)?;
        let k = self.keys(&k)?.rope(&step.attention.positions, &self.rope)?;
        cache.store(&k, &self.heads(&v)?, &step.slots)
    }

    /// Heads of q, normalised where the model does so.
    fn queries(&self, q: &Tensor<B>) -> Result<Tensor<B>> {
        self.normed(q, self.qk_norm.as_ref().map(|[q_norm, _]| q_norm))
    }

    /// Heads of k, likewise.
    fn keys(&self, k: &Tensor<B>) -> Result<Tensor<B>> {
        self.normed(k, self.qk_norm.as_ref().map(|[_, k_norm]| k_norm))
    }

    fn normed(&self, x: &Tensor<B>, norm: Option<&RmsNorm<B>>) -> Result<Tensor<B>> {
        match norm {
            Some(norm) if norm.weight.dims()[0] == self.head_dim => norm.forward_heads(&self.heads(x)?),
            Some(norm) => self.heads(&norm.forward(x)?),
            None => self.heads(x),
        }
    }

    /// `x [t, heads * head_dim]` as `[t, heads, head_dim]`.
    fn heads(&self, x: &Tensor<B>) -> Result<Tensor<B>> {
        x.reshape([x.dims()[0], x.dims()[1] / self.head_dim, self.head_dim])
    }
}
