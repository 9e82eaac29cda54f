use std::ops::Range;

use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Backend, BinaryOp, CompareOp, DType, Error, Experts,
    FeedForward, Heads, HostTensor, HostWeight, Input, KvCache, KvShape, PlainWeight, Result, RopeTable,
    Routes, Routing, Scalar, Shape, Tensor, UnaryOp, Weight,
};

/// One operation with its operands.
#[derive(Clone, Debug)]
pub struct Case {
    /// `group/detail`, unique in the suite.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// Operands in the order of the operation's arguments.
    pub inputs: Vec<HostTensor>,
    /// Weight operands.
    pub weights: Vec<HostWeight>,
}

/// An operation of a backend and its constants. Operands are named where their order is not that of the method.
#[derive(Clone, Debug)]
pub enum Op {
    /// [`Tensor::full`].
    Full(Shape, Scalar),
    /// [`Tensor::iota`].
    Iota(Shape, usize),
    /// [`Tensor::reshape`].
    Reshape(Shape),
    /// [`Tensor::permute`].
    Permute(Vec<usize>),
    /// [`Tensor::narrow`].
    Slice(usize, Range<usize>),
    /// [`Tensor::broadcast`].
    Broadcast(Shape),
    /// [`Tensor::concat`] of all operands.
    Concat(usize),
    /// [`Tensor::cast`].
    Cast(DType),
    /// [`Tensor::bitcast`].
    Bitcast(DType),
    /// [`Tensor::unary`].
    Unary(UnaryOp),
    /// [`Tensor::binary`].
    Binary(BinaryOp),
    /// [`Tensor::compare`].
    Compare(CompareOp),
    /// [`Tensor::select`].
    Select,
    /// [`Tensor::max_last`].
    MaxReduce,
    /// [`Tensor::matmul_exact`].
    MatmulExact,
    /// [`Tensor::gather`].
    Gather,
    /// [`Tensor::scatter`] on the first operand.
    Scatter,
    /// [`Backend::plain`]: the parts of the plain weight.
    Plain,
    /// [`Tensor::linear`].
    Linear,
    /// [`Input::linears`] with all weights, of x or of its norm with this `eps`: x, weight of the norm.
    Linears(Option<f32>),
    /// [`Input::feed_forward`] with the weights gate, up and down, likewise.
    FeedForward(Activation, Option<f32>),
    /// [`Tensor::route`]: experts and weights.
    Route(Routing),
    /// [`Input::experts`] of so many experts with the weights gate, up and down: x, experts, weights, and the weight of the
    /// norm where there is one.
    Experts(usize, Activation, Option<f32>),
    /// [`Tensor::embedding`].
    Embedding,
    /// [`Tensor::rms_norm`] with this `eps`.
    RmsNorm(f32),
    /// [`Tensor::layer_norm`] with this `eps`.
    LayerNorm(f32),
    /// [`Tensor::rope`]: x, positions, cosines, sines.
    Rope,
    /// [`KvCache::store`]: k, v, slots, then the cache's k, k_scale, v, v_scale. Returns the cache.
    StoreKv(KvShape),
    /// [`KvCache::rotate_and_store`]: q, k, v, positions, cosines, sines, slots, then the cache as in `StoreKv`. Returns the queries
    /// and the cache.
    RotateAndStore(KvShape),
    /// Steps of [`KvCache::store`] and [`Tensor::attention`]: q, k, v, slots, positions, sequences, block tables,
    /// then the cache as in `StoreKv`. Returns the rows of all steps and the cache.
    Attention(AttentionSteps),
    /// [`Tensor::glu`].
    Glu(Activation),
    /// [`Tensor::activate`].
    Activate(Activation),
    /// [`Tensor::softmax`].
    Softmax,
    /// [`Tensor::soft_cap`].
    SoftCap(f32),
    /// [`Tensor::top_k`] with this `k`.
    TopK(usize),
}

/// How the tokens of an attention case are fed.
#[derive(Clone, Debug)]
pub struct AttentionSteps {
    /// Extents of the cache.
    pub kv: KvShape,
    /// Constants of the layer.
    pub params: AttentionParams,
    /// Tokens of each step, in order; together all tokens of the case.
    pub steps: Vec<Range<usize>>,
    /// Passed to every step.
    pub max_context: usize,
}

impl Case {
    /// Uploads the operands, computes, and downloads the results.
    pub fn run<B: Backend>(&self, backend: &B) -> Result<Vec<HostTensor>> {
        let inputs = self.inputs.iter().map(|host| Tensor::upload(backend, host));
        let weights = self.weights.iter().map(|host| Weight::pack(backend, host));
        let (inputs, weights) = (inputs.collect::<Result<Vec<_>>>()?, weights.collect::<Result<Vec<_>>>()?);
        self.apply(backend, &inputs, &weights)?.iter().map(Tensor::download).collect()
    }

    /// The operation over operands that are on the backend already, or are recorded there.
    pub fn apply<B: Backend>(
        &self,
        backend: &B,
        inputs: &[Tensor<B>],
        weights: &[Weight<B>],
    ) -> Result<Vec<Tensor<B>>> {
        let one = |x: Result<Tensor<B>>| x.map(|x| vec![x]);
        let i = inputs;
        match &self.op {
            Op::Full(shape, value) => one(Tensor::full(backend, shape, *value)),
            Op::Iota(shape, axis) => one(Tensor::iota(backend, shape, *axis)),
            Op::Reshape(shape) => one(i[0].reshape(shape)),
            Op::Permute(axes) => one(i[0].permute(axes)),
            Op::Slice(axis, range) => one(i[0].narrow(*axis, range.clone())),
            Op::Broadcast(shape) => one(i[0].broadcast(shape)),
            Op::Concat(axis) => one(Tensor::concat(&i.iter().collect::<Vec<_>>(), *axis)),
            Op::Cast(dtype) => one(i[0].cast(*dtype)),
            Op::Bitcast(dtype) => one(i[0].bitcast(*dtype)),
            Op::Unary(op) => one(i[0].unary(*op)),
            Op::Binary(op) => one(i[0].binary(*op, &i[1])),
            Op::Compare(op) => one(i[0].compare(*op, &i[1])),
            Op::Select => one(i[0].select(&i[1], &i[2])),
            Op::MaxReduce => one(i[0].max_last()),
            Op::MatmulExact => one(i[0].matmul_exact(&i[1])),
            Op::Gather => one(i[0].gather(&i[1])),
            Op::Scatter => one(scatter(&i[0], &i[1], &i[2])),
            Op::Plain => Ok(parts(backend.plain(&weights[0])?)),
            Op::Linear => one(i[0].linear(&weights[0])),
            Op::Linears(eps) => linears(input(i, *eps), weights),
            Op::FeedForward(activation, eps) => one(feed_forward(input(i, *eps), weights, *activation)),
            Op::Route(routing) => i[0].route(*routing).map(|routes| vec![routes.experts, routes.weights]),
            Op::Experts(count, activation, eps) => one(experts(i, weights, *count, *activation, *eps)),
            Op::Embedding => one(i[0].embedding(&weights[0])),
            Op::RmsNorm(eps) => one(i[0].rms_norm(&i[1], *eps)),
            Op::LayerNorm(eps) => one(i[0].layer_norm(&i[1], &i[2], *eps)),
            Op::Rope => one(i[0].rope(&i[1], &RopeTable { cos: i[2].clone(), sin: i[3].clone() })),
            Op::StoreKv(kv) => store(*kv, i),
            Op::RotateAndStore(kv) => rotate_and_store(*kv, i),
            Op::Attention(steps) => steps.apply(i),
            Op::Glu(activation) => one(i[0].glu(&i[1], *activation)),
            Op::Activate(activation) => one(i[0].activate(*activation)),
            Op::Softmax => one(i[0].softmax()),
            Op::SoftCap(cap) => one(i[0].soft_cap(*cap)),
            Op::TopK(k) => one(i[0].top_k(*k)),
        }
    }

    /// Whether the contract leaves the sign of a zero result open.
    pub fn zero_sign_is_open(&self) -> bool {
        matches!(self.op, Op::MaxReduce | Op::Binary(BinaryOp::Max))
    }
}

impl AttentionSteps {
    fn apply<B: Backend>(&self, inputs: &[Tensor<B>]) -> Result<Vec<Tensor<B>>> {
        let [q, k, v, slots, positions, sequences, block_tables, ..] = inputs else {
            unreachable!("an attention case has eleven operands")
        };
        let mut cache = cache(self.kv, &inputs[7..]);
        let mut rows = Vec::new();
        for step in &self.steps {
            let of = |x: &Tensor<B>| x.narrow(0, step.clone());
            cache.store(&of(k)?, &of(v)?, &of(slots)?)?;
            let batch = AttentionBatch {
                positions: of(positions)?,
                sequences: of(sequences)?,
                block_tables: block_tables.clone(),
                max_context: self.max_context,
            };
            rows.push(of(q)?.attention(&cache, &batch, &self.params)?);
        }
        let rows = Tensor::concat(&rows.iter().collect::<Vec<_>>(), 0)?;
        Ok(vec![rows, cache.k, cache.k_scale, cache.v, cache.v_scale])
    }
}

fn input<B: Backend>(inputs: &[Tensor<B>], eps: Option<f32>) -> Input<'_, B> {
    Input { x: &inputs[0], norm: eps.map(|eps| (&inputs[1], eps)) }
}

fn feed_forward<B: Backend>(
    x: Input<'_, B>,
    weights: &[Weight<B>],
    activation: Activation,
) -> Result<Tensor<B>> {
    let [gate, up, down] = weights else { return Err(Error::shape("feed_forward", "not three weights")) };
    x.feed_forward(FeedForward { gate, up, down, activation })
}

fn experts<B: Backend>(
    inputs: &[Tensor<B>],
    weights: &[Weight<B>],
    count: usize,
    activation: Activation,
    eps: Option<f32>,
) -> Result<Tensor<B>> {
    let ([gate, up, down], [x, experts, weights, norm @ ..]) = (weights, inputs) else {
        return Err(Error::shape("experts", "not three weights, or too few operands"));
    };
    let x = Input { x, norm: norm.first().zip(eps) };
    let routes = Routes { experts: experts.clone(), weights: weights.clone() };
    x.experts(Experts { gate, up, down, count, activation }, &routes)
}

/// Layers of one input, as many as the suite has formats of a kind.
fn linears<B: Backend>(x: Input<'_, B>, weights: &[Weight<B>]) -> Result<Vec<Tensor<B>>> {
    fn of<const N: usize, B: Backend>(x: Input<'_, B>, weights: &[Weight<B>]) -> Result<Vec<Tensor<B>>> {
        Ok(x.linears::<N>(std::array::from_fn(|i| &weights[i]))?.into())
    }
    match weights.len() {
        2 => of::<2, B>(x, weights),
        3 => of::<3, B>(x, weights),
        5 => of::<5, B>(x, weights),
        7 => of::<7, B>(x, weights),
        n => Err(Error::shape("linears", format!("{n} weights"))),
    }
}

fn scatter<B: Backend>(x: &Tensor<B>, indices: &Tensor<B>, rows: &Tensor<B>) -> Result<Tensor<B>> {
    let mut x = x.clone();
    x.scatter(indices, rows)?;
    Ok(x)
}

fn store<B: Backend>(kv: KvShape, inputs: &[Tensor<B>]) -> Result<Vec<Tensor<B>>> {
    let mut cache = cache(kv, &inputs[3..]);
    cache.store(&inputs[0], &inputs[1], &inputs[2])?;
    Ok(vec![cache.k, cache.k_scale, cache.v, cache.v_scale])
}

fn rotate_and_store<B: Backend>(kv: KvShape, inputs: &[Tensor<B>]) -> Result<Vec<Tensor<B>>> {
    let [q, k, v, positions, cos, sin, slots, ..] = inputs else {
        return Err(Error::shape("rotate_and_store", "not eleven operands"));
    };
    let mut cache = cache(kv, &inputs[7..]);
    let table = RopeTable { cos: cos.clone(), sin: sin.clone() };
    let q = cache.rotate_and_store(Heads { q, k, v, positions, slots }, &table)?;
    Ok(vec![q, cache.k, cache.k_scale, cache.v, cache.v_scale])
}

fn cache<B: Backend>(shape: KvShape, parts: &[Tensor<B>]) -> KvCache<B> {
    let part = |i: usize| parts[i].clone();
    KvCache { shape, k: part(0), k_scale: part(1), v: part(2), v_scale: part(3) }
}

fn parts<B: Backend>(weight: PlainWeight<B>) -> Vec<Tensor<B>> {
    match weight {
        PlainWeight::Dense(values) => vec![values],
        PlainWeight::Blocks32 { q, scale, min } => [q, scale].into_iter().chain(min).collect(),
        PlainWeight::Blocks256 { q, scale, sub_scale, min } => {
            let min = min.into_iter().flat_map(|(min, sub_min)| [min, sub_min]);
            [q, scale, sub_scale].into_iter().chain(min).collect()
        }
    }
}
