//! The fused operations as methods that check their operands, and the types they take.

use std::ops::Range;

use crate::{
    Backend, DType, Error, Result, Tensor, Weight,
    contract::{ATTENTION_TILE, HEAD_BLOCK, TOP_K_MAX},
    tensor::{check, expect_dtype},
};

/// Activation function of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The tanh approximation of GELU, as `x * sigmoid(…)`.
    GeluTanh,
}

/// What linear layers are given: the rows of a matrix `[m, k]`, perhaps normalised first.
pub struct Input<'a, B: Backend> {
    /// f32 `[m, k]`.
    pub x: &'a Tensor<B>,
    /// Weight `[k]` and `eps` of the root-mean-square norm that comes before.
    pub norm: Option<(&'a Tensor<B>, f32)>,
}

impl<B: Backend> Copy for Input<'_, B> {}
impl<B: Backend> Clone for Input<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, B: Backend> From<&'a Tensor<B>> for Input<'a, B> {
    fn from(x: &'a Tensor<B>) -> Self {
        Input { x, norm: None }
    }
}

/// A gated feed-forward layer: `down(activation(gate(x)) * up(x))`. Where ranks share it, each has its rows of all three.
pub struct FeedForward<'a, B: Backend> {
    /// `[inner, k]`.
    pub gate: &'a Weight<B>,
    /// `[inner, k]`.
    pub up: &'a Weight<B>,
    /// `[n, inner]`.
    pub down: &'a Weight<B>,
    /// Activation of the gate.
    pub activation: Activation,
}

impl<B: Backend> Copy for FeedForward<'_, B> {}
impl<B: Backend> Clone for FeedForward<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

/// How tokens choose among experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Routing {
    /// Experts of a token.
    pub top_k: usize,
    /// Whether the weights of a token's experts are divided by their sum (`norm_topk_prob`).
    pub normalize: bool,
}

/// The experts that each token is given to, its first choice first.
#[derive(Clone)]
pub struct Routes<B: Backend> {
    /// i32 `[t, top_k]`.
    pub experts: Tensor<B>,
    /// f32 `[t, top_k]`: what the output of each is multiplied by.
    pub weights: Tensor<B>,
}

/// Gated feed-forward layers of one shape, the experts of a mixture: their rows one after the other in one weight. Where ranks
/// share them, each has its rows of every expert.
pub struct Experts<'a, B: Backend> {
    /// `[count * inner, k]`.
    pub gate: &'a Weight<B>,
    /// `[count * inner, k]`.
    pub up: &'a Weight<B>,
    /// `[count * n, inner]`.
    pub down: &'a Weight<B>,
    /// How many experts there are.
    pub count: usize,
    /// Activation of the gate.
    pub activation: Activation,
}

impl<B: Backend> Copy for Experts<'_, B> {}
impl<B: Backend> Clone for Experts<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

/// Cosines and sines of rotary embedding, by position: f32 `[positions, rotary_dim / 2]` each.
#[derive(Clone)]
pub struct RopeTable<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B>,
    /// Sines.
    pub sin: Tensor<B>,
}

/// Extents of a paged cache of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Pages.
    pub pages: usize,
    /// Tokens of a page; a power of two that divides [`ATTENTION_TILE`].
    pub page_size: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Rows of the cache's tensors: one for each slot and head, heads outside of slots within a page, so that
    /// a page of one head is contiguous. Row of slot `s` and head `h`:
    /// `((s / page_size) * kv_heads + h) * page_size + s % page_size`.
    pub fn rows(&self) -> usize {
        self.pages * self.kv_heads * self.page_size
    }

    /// Blocks of [`HEAD_BLOCK`] channels in a head, the last of which may be shorter.
    pub fn head_blocks(&self) -> usize {
        self.head_dim.div_ceil(HEAD_BLOCK)
    }

    /// The channels of block `block`.
    pub fn head_block(&self, block: usize) -> Range<usize> {
        block * HEAD_BLOCK..((block + 1) * HEAD_BLOCK).min(self.head_dim)
    }

    /// Bytes of one layer's cache.
    pub fn bytes(&self) -> usize {
        self.rows() * (2 * self.head_dim + 4 * (self.head_blocks() + 1))
    }
}

/// Keys and values of one layer, quantised to int8, in pages.
#[derive(Clone)]
pub struct KvCache<B: Backend> {
    /// Extents.
    pub shape: KvShape,
    /// i8 `[rows, head_dim]`.
    pub k: Tensor<B>,
    /// f32 `[rows, head_blocks]`.
    pub k_scale: Tensor<B>,
    /// i8 `[rows, head_dim]`.
    pub v: Tensor<B>,
    /// f32 `[rows, 1]`.
    pub v_scale: Tensor<B>,
}

impl<B: Backend> KvCache<B> {
    /// A zeroed cache.
    ///
    /// # Errors
    /// If the page size does not divide an attention tile, or an extent is zero or too large for i32 rows.
    pub fn new(backend: &B, shape: KvShape) -> Result<Self> {
        let KvShape { pages, page_size, kv_heads, head_dim } = shape;
        let divides = page_size > 0 && ATTENTION_TILE.is_multiple_of(page_size);
        check(divides, "kv_cache", || format!("page size {page_size} does not divide {ATTENTION_TILE}"))?;
        let rows = pages.checked_mul(kv_heads).and_then(|n| n.checked_mul(page_size));
        let fits = head_dim > 0 && rows.is_some_and(|rows| (1..=i32::MAX as usize).contains(&rows));
        check(fits, "kv_cache", || format!("no cache of {shape:?}"))?;
        let bytes = |cols| Tensor::full(backend, [shape.rows(), cols], 0i8);
        let floats = |cols| Tensor::full(backend, [shape.rows(), cols], 0.0);
        Ok(KvCache {
            shape,
            k: bytes(head_dim)?,
            k_scale: floats(shape.head_blocks())?,
            v: bytes(head_dim)?,
            v_scale: floats(1)?,
        })
    }

    /// Quantises new keys and values `[t, kv_heads, head_dim]` and writes them to `slots [t]` (i32:
    /// `page * page_size + offset`).
    pub fn store(&mut self, k: &Tensor<B>, v: &Tensor<B>, slots: &Tensor<B>) -> Result<()> {
        self.expect_stored(k, v, slots)?;
        k.backend().store_kv(self, k, v, slots)
    }

    /// Rotates queries and keys as [`Tensor::rope`] does, stores these keys with the values as [`KvCache::store`] does, and returns
    /// the queries, `[t, heads, head_dim]`.
    pub fn rotate_and_store(&mut self, heads: Heads<'_, B>, table: &RopeTable<B>) -> Result<Tensor<B>> {
        let Heads { q, k, v, positions, slots } = heads;
        q.expect_rotatable(positions, table)?;
        k.expect_rotatable(positions, table)?;
        check(q.dims()[2] == k.dims()[2], "rope", || format!("q {} and k {}", q.shape(), k.shape()))?;
        self.expect_stored(k, v, slots)?;
        q.backend().rotate_and_store(self, heads, table)
    }

    fn expect_stored(&self, k: &Tensor<B>, v: &Tensor<B>, slots: &Tensor<B>) -> Result<()> {
        expect_dtype("store_kv", k, DType::F32)?;
        expect_dtype("store_kv", v, DType::F32)?;
        expect_dtype("store_kv", slots, DType::I32)?;
        let expected = [slots.shape().elements(), self.shape.kv_heads, self.shape.head_dim];
        let fits = k.dims() == expected && v.dims() == expected && slots.shape().rank() == 1;
        check(fits, "store_kv", || {
            format!("k {}, v {}, slots {}, cache {:?}", k.shape(), v.shape(), slots.shape(), self.shape)
        })
    }
}

/// Queries, keys and values of a step's tokens before their rotary embedding, by heads.
pub struct Heads<'a, B: Backend> {
    /// f32 `[t, heads, head_dim]`.
    pub q: &'a Tensor<B>,
    /// f32 `[t, kv_heads, head_dim]`.
    pub k: &'a Tensor<B>,
    /// f32 `[t, kv_heads, head_dim]`.
    pub v: &'a Tensor<B>,
    /// i32 `[t]`: absolute position of each token.
    pub positions: &'a Tensor<B>,
    /// i32 `[t]`: cache slot of each token, `page * page_size + offset`.
    pub slots: &'a Tensor<B>,
}

impl<B: Backend> Copy for Heads<'_, B> {}
impl<B: Backend> Clone for Heads<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

/// Where the tokens of a step stand: each is a query of one sequence at one position.
#[derive(Clone)]
pub struct AttentionBatch<B: Backend> {
    /// i32 `[t]`: absolute position of each token, below `max_context`.
    pub positions: Tensor<B>,
    /// i32 `[t]`: row of `block_tables` of each token's sequence.
    pub sequences: Tensor<B>,
    /// i32 `[s, max_pages]`: pages of each sequence in order of position; entries past its end are any valid page.
    pub block_tables: Tensor<B>,
    /// Positions that may hold a visible key: at most `max_pages * page_size`.
    pub max_context: usize,
}

/// Attention's constants of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Factor of the scores, `1 / sqrt(head_dim)` for most models.
    pub scale: f32,
    /// A key is visible while `position - key_position < window`.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

impl<B: Backend> Input<'_, B> {
    /// The normalised rows `[m, k]`.
    pub fn rows(self) -> Result<Tensor<B>> {
        match self.norm {
            Some((weight, eps)) => self.x.rms_norm(weight, eps),
            None => Ok(self.x.clone()),
        }
    }

    /// Several linear layers of this input, as f32 `[m, n]` each.
    pub fn linears<const N: usize>(self, weights: [&Weight<B>; N]) -> Result<[Tensor<B>; N]> {
        self.expect_input_of(&weights)?;
        self.x.backend().linears(self, weights)
    }

    /// A gated feed-forward layer of this input, as f32 `[m, n]`.
    pub fn feed_forward(self, layer: FeedForward<'_, B>) -> Result<Tensor<B>> {
        let FeedForward { gate, up, down, .. } = layer;
        self.expect_input_of(&[gate, up])?;
        let inner = gate.rows() * self.x.backend().rank().count;
        let fits = gate.rows() == up.rows() && inner == down.cols();
        check(fits, "feed_forward", || {
            format!("gate of {} rows, up of {}, down of {} columns", gate.rows(), up.rows(), down.cols())
        })?;
        self.x.backend().feed_forward(self, layer)
    }

    /// For each token of this input the sum of what its experts make of it, weighed, as f32 `[t, n]`.
    ///
    /// # Errors
    /// If shapes or dtypes do not fit, and [`Error::Index`] for an expert that the layer does not have (a device may fault
    /// later instead).
    pub fn experts(self, layer: Experts<'_, B>, routes: &Routes<B>) -> Result<Tensor<B>> {
        let Experts { gate, up, down, count, .. } = layer;
        self.expect_input_of(&[gate, up])?;
        let are_whole =
            count > 0 && [gate, up, down].iter().all(|weight| weight.rows().is_multiple_of(count));
        let inner = gate.rows().checked_div(count).unwrap_or(0) * self.x.backend().rank().count;
        check(are_whole && gate.rows() == up.rows() && inner == down.cols(), "experts", || {
            let [gate, up, rows] = [gate, up, down].map(Weight::rows);
            format!("{count} experts, gate of {gate} rows, up of {up}, down [{rows}, {}]", down.cols())
        })?;
        let Routes { experts, weights } = routes;
        expect_dtype("experts", experts, DType::I32)?;
        expect_dtype("experts", weights, DType::F32)?;
        let fits = matches!(*experts.dims(), [t, top_k] if t == self.x.dims()[0] && top_k > 0);
        check(fits && experts.shape() == weights.shape(), "experts", || {
            format!("x {}, experts {}, weights {}", self.x.shape(), experts.shape(), weights.shape())
        })?;
        self.x.backend().experts(self, layer, routes)
    }

    fn expect_input_of(self, weights: &[&Weight<B>]) -> Result<()> {
        weights.iter().try_for_each(|weight| self.x.expect_input_of(weight))?;
        match self.norm {
            Some((weight, eps)) => self.x.expect_norm("rms_norm", weight, eps),
            None => Ok(()),
        }
    }
}

impl<B: Backend> Tensor<B> {
    /// `self [m, k]` times the transpose of `weight [n, k]`, as f32 `[m, n]`.
    pub fn linear(&self, weight: &Weight<B>) -> Result<Tensor<B>> {
        self.expect_input_of(weight)?;
        self.backend().linear(self, weight)
    }

    /// The experts of each token, from `self [t, experts]`, the router's logits.
    pub fn route(&self, routing: Routing) -> Result<Routes<B>> {
        self.expect_rows("route", &[])?;
        let experts = self.dims()[1];
        let fits = (1..=experts).contains(&routing.top_k) && self.shape().elements() <= i32::MAX as usize;
        check(fits, "route", || format!("{} of the experts in logits {}", routing.top_k, self.shape()))?;
        self.backend().route(self, routing)
    }

    /// Rows of `weight [n, k]` at these ids (i32 `[t]`), as f32 `[t, k]`.
    pub fn embedding(&self, weight: &Weight<B>) -> Result<Tensor<B>> {
        expect_dtype("embedding", self, DType::I32)?;
        check(self.shape().rank() == 1, "embedding", || format!("ids of shape {}", self.shape()))?;
        self.backend().embedding(self, weight)
    }

    /// Root-mean-square norm of the rows of `self [m, n]` with `weight [n]`.
    pub fn rms_norm(&self, weight: &Tensor<B>, eps: f32) -> Result<Tensor<B>> {
        self.expect_norm("rms_norm", weight, eps)?;
        self.backend().rms_norm(self, weight, eps)
    }

    /// Layer norm of the rows of `self [m, n]` with `weight [n]` and `bias [n]`.
    pub fn layer_norm(&self, weight: &Tensor<B>, bias: &Tensor<B>, eps: f32) -> Result<Tensor<B>> {
        self.expect_rows("layer_norm", &[weight, bias])?;
        expect_eps("layer_norm", eps)?;
        self.backend().layer_norm(self, weight, bias, eps)
    }

    /// Rotary embedding of `self [t, heads, head_dim]` at `positions [t]`: channel `i` of the first half of the
    /// rotated channels pairs with channel `i` of the second; channels past them stay as they are.
    pub fn rope(&self, positions: &Tensor<B>, table: &RopeTable<B>) -> Result<Tensor<B>> {
        self.expect_rotatable(positions, table)?;
        self.backend().rope(self, positions, table)
    }

    fn expect_rotatable(&self, positions: &Tensor<B>, table: &RopeTable<B>) -> Result<()> {
        expect_dtype("rope", self, DType::F32)?;
        expect_dtype("rope", positions, DType::I32)?;
        let fits = self.shape().rank() == 3
            && positions.dims() == [self.dims()[0]]
            && table.cos.shape() == table.sin.shape()
            && table.cos.shape().rank() == 2
            && 2 * table.cos.dims()[1] <= self.dims()[2];
        check(fits, "rope", || {
            format!("x {}, positions {}, table {}", self.shape(), positions.shape(), table.cos.shape())
        })
    }

    /// Attention of queries `self [t, heads, head_dim]` over a paged cache, as `[t, heads, head_dim]`.
    pub fn attention(
        &self,
        cache: &KvCache<B>,
        batch: &AttentionBatch<B>,
        params: &AttentionParams,
    ) -> Result<Tensor<B>> {
        expect_dtype("attention", self, DType::F32)?;
        for indices in [&batch.positions, &batch.sequences, &batch.block_tables] {
            expect_dtype("attention", indices, DType::I32)?;
        }
        let tables = batch.block_tables.dims();
        let fits = self.shape().rank() == 3
            && batch.positions.dims() == [self.dims()[0]]
            && batch.sequences.dims() == [self.dims()[0]]
            && self.dims()[1].is_multiple_of(cache.shape.kv_heads)
            && self.dims()[2] == cache.shape.head_dim
            && tables.len() == 2
            && batch.max_context <= tables[1] * cache.shape.page_size;
        check(fits, "attention", || {
            let context = batch.max_context;
            format!("q {}, tables {tables:?}, context {context}, cache {:?}", self.shape(), cache.shape)
        })?;
        check(params.window != Some(0), "attention", || "window of 0 keys".into())?;
        let cap = params.soft_cap.is_none_or(|cap| cap > 0.0 && cap.is_finite());
        check(cap && params.scale.is_finite(), "attention", || format!("{params:?}"))?;
        self.backend().attention(self, cache, batch, params)
    }

    /// `activation(self) * up`, element-wise.
    pub fn glu(&self, up: &Tensor<B>, activation: Activation) -> Result<Tensor<B>> {
        expect_dtype("glu", self, DType::F32)?;
        expect_dtype("glu", up, DType::F32)?;
        check(self.shape() == up.shape(), "glu", || format!("{} and {}", self.shape(), up.shape()))?;
        self.backend().glu(self, up, activation)
    }

    /// `activation(self)`, element-wise.
    pub fn activate(&self, activation: Activation) -> Result<Tensor<B>> {
        expect_dtype("activate", self, DType::F32)?;
        self.backend().activate(self, activation)
    }

    /// Softmax of the rows of `self [m, n]`.
    pub fn softmax(&self) -> Result<Tensor<B>> {
        self.expect_rows("softmax", &[])?;
        self.backend().softmax(self)
    }

    /// `cap * tanh(self / cap)`, element-wise.
    pub fn soft_cap(&self, cap: f32) -> Result<Tensor<B>> {
        expect_dtype("soft_cap", self, DType::F32)?;
        check(cap > 0.0 && cap.is_finite(), "soft_cap", || format!("cap {cap}"))?;
        self.backend().soft_cap(self, cap)
    }

    /// The `k` greatest of each row of `self [m, n]`, as i32 `[m, 2, k]`: their columns, and the bits of their values. In
    /// descending order, lower columns first among equals; an infinity and NaN are the greatest there are, and equals.
    ///
    /// # Errors
    /// If `k` is 0, above [`TOP_K_MAX`], or above the row's length.
    pub fn top_k(&self, k: usize) -> Result<Tensor<B>> {
        self.expect_rows("top_k", &[])?;
        let n = self.dims()[1];
        let fits = (1..=TOP_K_MAX.min(n)).contains(&k);
        check(fits, "top_k", || format!("{k} of {n} columns, where 1 to {TOP_K_MAX} can be told"))?;
        self.backend().top_k(self, k)
    }

    fn expect_input_of(&self, weight: &Weight<B>) -> Result<()> {
        expect_dtype("linear", self, DType::F32)?;
        let fits = self.shape().rank() == 2 && self.dims()[1] == weight.cols();
        check(fits, "linear", || {
            format!("x {} with weight {} [{}, {}]", self.shape(), weight.name(), weight.rows(), weight.cols())
        })
    }

    fn expect_norm(&self, op: &'static str, weight: &Tensor<B>, eps: f32) -> Result<()> {
        self.expect_rows(op, &[weight])?;
        expect_eps(op, eps)
    }

    fn expect_rows(&self, op: &'static str, vectors: &[&Tensor<B>]) -> Result<()> {
        expect_dtype(op, self, DType::F32)?;
        let fits = self.shape().rank() == 2 && self.dims()[1] > 0;
        check(fits, op, || format!("x {} is not a matrix of non-empty rows", self.shape()))?;
        for vector in vectors {
            expect_dtype(op, vector, DType::F32)?;
            let fits = vector.dims() == [self.dims()[1]];
            check(fits, op, || format!("x {} with vector {}", self.shape(), vector.shape()))?;
        }
        Ok(())
    }
}

/// Rule R4 needs an `eps` that absorbs the squares of what is nearly subnormal.
fn expect_eps(op: &'static str, eps: f32) -> Result<()> {
    let fits = (1e-12..=1.0).contains(&eps);
    if fits { Ok(()) } else { Err(Error::shape(op, format!("eps {eps} is outside of 1e-12..=1"))) }
}
