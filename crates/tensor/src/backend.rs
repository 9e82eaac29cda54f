use std::ops::Range;

use crate::{
    Activation, AttentionBatch, AttentionParams, DType, Error, Experts, FeedForward, Format, Heads,
    HostTensor, HostWeight, Input, KvCache, PlainWeight, Result, RopeTable, Routes, Routing, Scalar, Shape,
    Tensor, Weight, decompose,
};

/// What a device is and what it takes. What is absent here is refused, never degraded.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// Short name of the backend: `cpu`, `candle`, `trace`.
    pub name: String,
    /// The device and the code path chosen on it, for people: `AVX-512 VNNI, 2 threads`.
    pub device: String,
    /// Names the bits of its results, as part of a fingerprint: [`crate::contract::exact`] of a backend that keeps the contract, another
    /// name for each other way to compute.
    pub numerics: String,
    /// Block formats that [`Backend::pack`] takes.
    pub formats: Vec<Format>,
    /// Memory that weights and pages may fill, in bytes, where the device tells.
    pub memory_bytes: Option<u64>,
}

/// One of several devices that share each layer of a model; they compute the same on their parts of its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Which one, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl Rank {
    /// A device that has each layer for itself.
    pub const ALONE: Rank = Rank { index: 0, count: 1 };

    /// This device's part of `extent` rows, of which every rank has as many.
    ///
    /// # Errors
    /// If the ranks do not divide them.
    pub fn part(self, extent: usize) -> Result<Range<usize>> {
        let Rank { index, count } = self;
        if !extent.is_multiple_of(count) {
            return Err(Error::shape("part", format!("{count} ranks do not divide {extent} rows")));
        }
        let rows = extent / count;
        Ok(index * rows..(index + 1) * rows)
    }

    /// This device's heads of `heads`: its part, or, where there are fewer than ranks, the one that it shares with its
    /// neighbours.
    ///
    /// # Errors
    /// If neither divides the other.
    pub fn heads(self, heads: usize) -> Result<Range<usize>> {
        let Rank { index, count } = self;
        if heads > 0 && heads < count && count.is_multiple_of(heads) {
            let head = index * heads / count;
            return Ok(head..head + 1);
        }
        self.part(heads)
    }
}

/// What the operations of a step depend on, beside the shapes of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// A number of whoever runs the step, which nobody else in the process has.
    pub owner: u64,
    /// Positions that attention looks at.
    pub max_context: usize,
}

/// An i32 input of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// Its extents.
    pub dims: &'a [usize],
    /// Its elements.
    pub values: &'a [i32],
}

/// Element-wise operation of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    /// `-x` of f32 (sign bit flipped) or i32.
    Neg,
    /// `|x|` of f32 (sign bit cleared).
    Abs,
    /// Correctly rounded square root of f32.
    Sqrt,
    /// Nearest integer of f32, ties to even, still f32.
    RoundEven,
}

/// Element-wise operation of two operands of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// Sum of f32, or of i32 (which wraps).
    Add,
    /// Difference of f32 or i32.
    Sub,
    /// Product of f32 or i32.
    Mul,
    /// Correctly rounded quotient of f32.
    Div,
    /// Larger f32 or i32; NaN if either is. The sign of a zero result is not specified.
    Max,
    /// Bits of both, of i32 or bool.
    And,
    /// Bits of either, of i32 or bool.
    Or,
    /// i32 shifted left by 0 to 31; bits shifted out are lost.
    Shl,
    /// i32 shifted right by 0 to 31, the sign bit copied in.
    Shr,
}

/// Element-wise comparison of f32 or i32; false where an operand is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompareOp {
    /// `a < b`.
    Lt,
    /// `a <= b`.
    Le,
    /// `a == b`.
    Eq,
}

/// `f` of each, or the first error.
pub fn try_map<T, U, const N: usize>(values: [T; N], mut f: impl FnMut(T) -> Result<U>) -> Result<[U; N]> {
    let mut error = None;
    let results = values.map(|value| match error {
        Some(_) => None,
        None => f(value).map_err(|e| error = Some(e)).ok(),
    });
    match error {
        Some(error) => Err(error),
        None => Ok(results.map(|result| result.expect("a result, where there is no error"))),
    }
}

/// A device that computes the contract, or records it.
///
/// The first part is what a backend must implement: exact primitives, whose results do not depend on an order
/// of execution. They are called through [`Tensor`], which has checked the operands and inferred the result's
/// shape and dtype. The second part is the fused operations, each with [`decompose`] as its meaning.
pub trait Backend: Clone + Send + Sync + Sized + 'static {
    /// A buffer where the backend is eager, a node where it traces.
    type Data: Clone + Send + Sync;
    /// A packed weight matrix; [`PlainWeight`] where the backend has no layout of its own.
    type Weight: Clone + Send + Sync;

    /// What this device is and takes.
    fn capabilities(&self) -> &Capabilities;

    /// Whether operations return before they are done, so that a step is best issued early and waited for late.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Whether [`Backend::step`] does again what it recorded, so that steps had best be alike.
    fn records_steps(&self) -> bool {
        false
    }
    /// Uploads the inputs of a step and runs it. With a key, `run` issues the same operations on the same tensors whenever
    /// key and shapes are the same, so a backend may record them once and then do them again without calling it.
    fn step<const N: usize>(
        &self,
        key: Option<StepKey>,
        inputs: [StepInput<'_>; N],
        mut run: impl FnMut(&[Tensor<Self>; N]) -> Result<Tensor<Self>>,
    ) -> Result<Tensor<Self>> {
        let _ = key;
        run(&try_map(inputs, |input| Tensor::of(self, input.dims, input.values))?)
    }
    /// Drops what was recorded of an owner's steps.
    fn forget_steps(&self, owner: u64) {
        let _ = owner;
    }

    /// Which part of each layer this is, where several devices share them.
    fn rank(&self) -> Rank {
        Rank::ALONE
    }
    /// The tensors of all ranks one after the other along `axis`, in the order of the ranks. Only called where there are
    /// several.
    fn all_gather(&self, x: &Tensor<Self>, axis: usize, shape: &Shape) -> Result<Self::Data> {
        let _ = (x, axis);
        Err(Error::shape("all_gather", format!("{shape} of several ranks on a backend that is alone")))
    }

    /// Copies a host tensor to the device.
    fn upload(&self, host: &HostTensor) -> Result<Self::Data>;
    /// Copies the bytes of a tensor to the device, which fill its shape; as [`Backend::upload`] does, for bytes that the
    /// caller keeps.
    fn upload_bytes(&self, shape: &Shape, dtype: DType, bytes: &[u8]) -> Result<Self::Data> {
        self.upload(&HostTensor::new(shape, dtype, bytes.to_vec().into())?)
    }
    /// Copies a tensor to the host.
    ///
    /// # Errors
    /// [`crate::Error::Traced`] where there is no value yet.
    fn download(&self, x: &Tensor<Self>) -> Result<HostTensor>;
    /// Copies a tensor's bytes to the host, as many as `out` has; as [`Backend::download`] does, into the caller's memory.
    fn download_bytes(&self, x: &Tensor<Self>, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(self.download(x)?.bytes());
        Ok(())
    }
    /// `shape` filled with `value`.
    fn full(&self, shape: &Shape, value: Scalar) -> Result<Self::Data>;
    /// i32 of `shape`, each element its index along `axis`.
    fn iota(&self, shape: &Shape, axis: usize) -> Result<Self::Data>;
    /// The same elements in row-major order under another shape.
    fn reshape(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Self::Data>;
    /// Axis `i` of the result is axis `axes[i]` of `x`.
    fn permute(&self, x: &Tensor<Self>, axes: &[usize], shape: &Shape) -> Result<Self::Data>;
    /// The box given by one range for each axis.
    fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], shape: &Shape) -> Result<Self::Data>;
    /// Axes of extent 1 repeated to the extent of `shape`, which has the same rank.
    fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Self::Data>;
    /// Tensors one after the other along `axis`.
    fn concat(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<Self::Data>;
    /// Values in another type. Between floats: nearest, ties to even. From f32 to an integer: toward zero,
    /// saturating, NaN to 0. Between integers: the low bits (widening keeps the value). From bool: 0 or 1.
    fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Self::Data>;
    /// The bits of f32 as i32, or of i32 as f32.
    fn bitcast(&self, x: &Tensor<Self>, dtype: DType) -> Result<Self::Data>;
    /// Element-wise `op`.
    fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<Self::Data>;
    /// Element-wise `op` of two tensors of one shape and dtype.
    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Self::Data>;
    /// Element-wise comparison of two tensors of one shape and dtype, as bool.
    fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Self::Data>;
    /// `a` where `condition` holds, else `b`.
    fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Self::Data>;
    /// Largest element along the last axis, which is dropped and has at least one element; NaN if any is.
    fn max_reduce(&self, x: &Tensor<Self>, shape: &Shape) -> Result<Self::Data>;
    /// `a [batch, m, k]` times the transpose of `b [batch, n, k]`, both i8 or u8, as i32 `[batch, m, n]`.
    /// The caller sees to it that every partial sum stays below 2^24 in magnitude, so that a float accumulator
    /// is as exact as an integer one.
    fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<Self::Data>;
    /// Rows of `x [n, …]` at `indices [m]` (i32), as `[m, …]`.
    ///
    /// # Errors
    /// [`crate::Error::Index`] for an index outside of `0..n` (a device may fault later instead).
    fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<Self::Data>;
    /// Replaces row `indices[i]` of `x [n, …]` by row `i` of `rows [m, …]`: in place where the backend is eager,
    /// a new value of the same buffer where it traces. Where an index repeats, one of its rows stays.
    ///
    /// # Errors
    /// As [`Self::gather`]; `x` is then unchanged.
    fn scatter(
        &self,
        x: &mut Self::Data,
        x_shape: &Shape,
        indices: &Tensor<Self>,
        rows: &Tensor<Self>,
    ) -> Result<()>;

    /// Runs `run` once for each number below `tasks`, in any order, on the backend's threads of the host where it has some:
    /// for work on what a file holds.
    fn on_host(&self, tasks: usize, run: impl Fn(usize) + Sync) {
        (0..tasks).for_each(run);
    }

    /// Lays a weight matrix out for this device, without changing a value. [`PlainWeight::unpack`] does it for
    /// a backend without a layout of its own.
    fn pack(&self, weight: &HostWeight) -> Result<Self::Weight>;
    /// The weight called `name` as it was packed at an earlier start, its format, rows and columns, where the backend has such
    /// a store.
    fn stored(&self, name: &str) -> Option<(Self::Weight, Format, usize, usize)> {
        let _ = name;
        None
    }
    /// The contract's view of a packed weight: its integers and scales.
    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>>;

    /// `x [m, k]` times the transpose of a weight `[n, k]`, as `[m, n]`. See [`decompose::linear`].
    fn linear(&self, x: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        decompose::linear(x, &self.plain(weight)?)
    }
    /// Several linear layers of one input, which a backend may quantise once.
    fn linears<const N: usize>(
        &self,
        x: Input<'_, Self>,
        weights: [&Weight<Self>; N],
    ) -> Result<[Tensor<Self>; N]> {
        let x = x.rows()?;
        try_map(weights, |weight| self.linear(&x, weight))
    }
    /// Gated feed-forward layer of `x [m, k]`, as `[m, n]`. See [`decompose::feed_forward`].
    fn feed_forward(&self, x: Input<'_, Self>, layer: FeedForward<'_, Self>) -> Result<Tensor<Self>> {
        decompose::feed_forward(x, layer)
    }
    /// The experts that each row of `logits [t, experts]` is given to. See [`decompose::route`].
    fn route(&self, logits: &Tensor<Self>, routing: Routing) -> Result<Routes<Self>> {
        decompose::route(logits, routing)
    }
    /// Mixture of experts of `x [t, k]`, as `[t, n]`. See [`decompose::experts`].
    ///
    /// # Errors
    /// [`crate::Error::Index`] for an expert outside of the layer's (a device may fault later instead).
    fn experts(
        &self,
        x: Input<'_, Self>,
        layer: Experts<'_, Self>,
        routes: &Routes<Self>,
    ) -> Result<Tensor<Self>> {
        decompose::experts(x, layer, routes)
    }
    /// Rows of a weight `[n, k]` at `ids [t]`, dequantised to f32 `[t, k]`. See [`decompose::embedding`].
    fn embedding(&self, ids: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        decompose::embedding(ids, &self.plain(weight)?)
    }
    /// Root-mean-square norm of the rows of `x [m, n]`. See [`decompose::rms_norm`].
    fn rms_norm(&self, x: &Tensor<Self>, weight: &Tensor<Self>, eps: f32) -> Result<Tensor<Self>> {
        decompose::rms_norm(x, weight, eps)
    }
    /// Layer norm of the rows of `x [m, n]`. See [`decompose::layer_norm`].
    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        eps: f32,
    ) -> Result<Tensor<Self>> {
        decompose::layer_norm(x, weight, bias, eps)
    }
    /// Rotary embedding of `x [t, heads, head_dim]`. See [`decompose::rope`].
    fn rope(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        decompose::rope(x, positions, table)
    }
    /// Quantises new keys and values and writes them to their slots. See [`decompose::store_kv`].
    fn store_kv(
        &self,
        cache: &mut KvCache<Self>,
        k: &Tensor<Self>,
        v: &Tensor<Self>,
        slots: &Tensor<Self>,
    ) -> Result<()> {
        decompose::store_kv(cache, k, v, slots)
    }
    /// Rotary embedding of queries and keys, of which the keys go to the cache with the values; returns the queries.
    fn rotate_and_store(
        &self,
        cache: &mut KvCache<Self>,
        heads: Heads<'_, Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        let k = self.rope(heads.k, heads.positions, table)?;
        self.store_kv(cache, &k, heads.v, heads.slots)?;
        self.rope(heads.q, heads.positions, table)
    }
    /// Paged attention over the int8 cache. See [`decompose::attention`].
    fn attention(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        decompose::attention(q, cache, batch, params)
    }
    /// `activation(gate) * up`, element-wise: SwiGLU or GeGLU. See [`decompose::glu`].
    fn glu(&self, gate: &Tensor<Self>, up: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        decompose::glu(gate, up, activation)
    }
    /// `activation(x)`, element-wise. See [`decompose::activate`].
    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        decompose::activate(x, activation)
    }
    /// Softmax of the rows of `x [m, n]`. See [`decompose::softmax`].
    fn softmax(&self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        decompose::softmax(x)
    }
    /// `cap * tanh(x / cap)`, element-wise. See [`decompose::soft_cap`].
    fn soft_cap(&self, x: &Tensor<Self>, cap: f32) -> Result<Tensor<Self>> {
        decompose::soft_cap(x, cap)
    }
    /// The `k` greatest of each row of `x [m, n]`, as i32 `[m, 2, k]`. See [`decompose::top_k`].
    fn top_k(&self, x: &Tensor<Self>, k: usize) -> Result<Tensor<Self>> {
        decompose::top_k(x, k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_of_one_rank() {
        let parts = |count, extent| -> Vec<_> {
            (0..count).map(|index| Rank { index, count }.part(extent).unwrap()).collect()
        };
        assert_eq!(Rank::ALONE.part(7).unwrap(), 0..7);
        assert_eq!(parts(3, 6), [0..2, 2..4, 4..6]);
        assert_eq!(parts(2, 0), [0..0, 0..0]);
        assert!(Rank { index: 0, count: 2 }.part(7).unwrap_err().to_string().contains("7 rows"));
    }

    #[test]
    fn neighbours_share_a_head_where_there_are_fewer_than_ranks() {
        let heads = |count, heads| -> Vec<_> {
            (0..count).map(|index| Rank { index, count }.heads(heads).unwrap()).collect()
        };
        assert_eq!(heads(2, 4), [0..2, 2..4]);
        assert_eq!(heads(4, 2), [0..1, 0..1, 1..2, 1..2]);
        assert!(Rank { index: 0, count: 3 }.heads(2).is_err());
        assert!(Rank { index: 0, count: 3 }.heads(0).unwrap().is_empty());
    }
}
