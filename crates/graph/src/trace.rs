use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Backend, BinaryOp, Capabilities, CompareOp, DType, Error,
    Format, HostTensor, HostWeight, KvCache, PlainWeight, Rank, Result, RopeTable, Scalar, Shape, Tensor,
    UnaryOp, Weight, contract, decompose,
};

use crate::{Fill, Graph, GraphError, Node, NodeId, Op, graph::Recording};

/// Constants up to this size are looked up among those recorded before.
const SHARED_CONSTANT_BYTES: usize = 1 << 16;

/// A backend that records what it is asked to compute. Clones record into the same place.
///
/// Equal nodes are recorded once. Operations of concurrent threads may be mixed in order, and under each other's
/// scope names; their values are not affected.
#[derive(Clone)]
pub struct Trace {
    capabilities: Arc<Capabilities>,
    rank: Rank,
    recorder: Arc<Mutex<Recorder>>,
}

#[derive(Default)]
struct Recorder {
    nodes: Vec<Node>,
    scopes: Vec<Option<Arc<str>>>,
    ids: HashMap<Node, NodeId>,
    inputs: Vec<String>,
    constants: Vec<(Option<Arc<str>>, Option<HostTensor>)>,
    place: Option<Place>,
    shared: HashMap<(Shape, DType, Vec<u8>), NodeId>,
    /// Whether other ranks have constants of their own, so that two that are equal here need not be equal there.
    has_ranks: bool,
    scope: Vec<Arc<str>>,
}

/// Takes the constant of a number to where it is used.
type Place = Box<dyn FnMut(usize, &HostTensor) -> Result<()> + Send>;

impl Trace {
    /// An empty recording that takes every weight format.
    pub fn new() -> Self {
        let capabilities = Capabilities {
            name: "trace".into(),
            device: "records a graph".into(),
            numerics: contract::exact(),
            formats: Format::ALL.to_vec(),
            memory_bytes: None,
        };
        Trace { capabilities: Arc::new(capabilities), rank: Rank::ALONE, recorder: Arc::default() }
    }

    /// A recording that gives each constant, with its number, to `place` and does not keep it: a large model's weights are
    /// then in memory where they are used and nowhere else.
    pub fn placing(place: impl FnMut(usize, &HostTensor) -> Result<()> + Send + 'static) -> Self {
        let trace = Trace::new();
        trace.lock().place = Some(Box::new(place));
        trace
    }

    /// The recording as one of several ranks. Traces of all ranks record the same graphs, with constants of the same numbers
    /// and shapes: each the values of its own rank.
    pub fn with_rank(self, rank: Rank) -> Self {
        self.lock().has_ranks = rank.count > 1;
        Trace { rank, ..self }
    }

    /// A value that is given to each run, in dumps and errors under this name.
    pub fn input(&self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor<Self>> {
        let shape = shape.into();
        let mut recorder = self.lock();
        recorder.inputs.push(name.to_owned());
        let op = Op::Input(recorder.inputs.len() - 1);
        let id = recorder.push(Node { op, operands: vec![], shape: shape.clone(), dtype })?;
        drop(recorder);
        Ok(Tensor::from_data(self, shape, dtype, id))
    }

    /// The graph that computes the outputs from the inputs. More can be recorded afterwards, and shares no node with what
    /// was recorded before: layers of the same operations give the same graphs, but for their constants.
    ///
    /// # Errors
    /// If an input is not one, the outputs need an input that is not listed, or a name occurs twice.
    pub fn graph(
        &self,
        inputs: &[&Tensor<Self>],
        outputs: &[(&str, &Tensor<Self>)],
    ) -> Result<Graph, GraphError> {
        let mut recorder = self.lock();
        recorder.ids.clear();
        let recording = Recording {
            nodes: &recorder.nodes,
            scopes: &recorder.scopes,
            inputs: &recorder.inputs,
            constants: &recorder.constants,
        };
        let inputs: Vec<NodeId> = inputs.iter().map(|x| *x.data()).collect();
        let outputs: Vec<(&str, NodeId)> = outputs.iter().map(|(name, x)| (*name, *x.data())).collect();
        Graph::extract(&recording, &inputs, &outputs)
    }

    /// Runs `record` with this name as the provenance of the nodes that it records. Within another scope, the names
    /// are joined by `/`.
    pub fn scope<T>(&self, name: fmt::Arguments<'_>, record: impl FnOnce() -> T) -> T {
        let mut recorder = self.lock();
        let path = match recorder.scope.last() {
            Some(outer) => format!("{outer}/{name}"),
            None => name.to_string(),
        };
        recorder.scope.push(path.into());
        drop(recorder);
        let result = record();
        self.lock().scope.pop();
        result
    }

    fn lock(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, op: Op, operands: &[&Tensor<Self>], shape: &Shape, dtype: DType) -> Result<NodeId> {
        let operands = operands.iter().map(|x| *x.data()).collect();
        self.lock().node(Node { op, operands, shape: shape.clone(), dtype })
    }

    fn name(&self, constant: &Tensor<Self>, name: String) {
        let mut recorder = self.lock();
        let op = recorder.nodes.get(constant.data().index()).map(|node| node.op.clone());
        if let Some(Op::Constant(index)) = op {
            recorder.constants[index].0.get_or_insert(name.into());
        }
    }

    fn name_parts(&self, weight: &PlainWeight<Self>, name: &str) {
        let part = |x, part: &str| self.name(x, format!("{name}.{part}"));
        match weight {
            PlainWeight::Dense(values) => self.name(values, name.to_owned()),
            PlainWeight::Blocks32 { q, scale, min } => {
                part(q, "q");
                part(scale, "scale");
                min.iter().for_each(|min| part(min, "min"));
            }
            PlainWeight::Blocks256 { q, scale, sub_scale, min } => {
                part(q, "q");
                part(scale, "scale");
                part(sub_scale, "sub_scale");
                min.iter().for_each(|(min, sub_min)| {
                    part(min, "min_scale");
                    part(sub_min, "sub_min");
                });
            }
        }
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({} nodes)", self.lock().nodes.len())
    }
}

impl Recorder {
    /// The node, recorded before or now.
    fn node(&mut self, node: Node) -> Result<NodeId> {
        if let Some(&id) = self.ids.get(&node) {
            return Ok(id);
        }
        let id = self.push(node.clone())?;
        self.ids.insert(node, id);
        Ok(id)
    }

    fn push(&mut self, node: Node) -> Result<NodeId> {
        let index = u32::try_from(self.nodes.len())
            .map_err(|_| Error::shape("trace", "more than 2^32 nodes; record fewer graphs in one trace"))?;
        self.nodes.push(node);
        self.scopes.push(self.scope.last().cloned());
        Ok(NodeId(index))
    }

    fn constant(&mut self, host: &HostTensor) -> Result<NodeId> {
        let node = |index| Node {
            op: Op::Constant(index),
            operands: vec![],
            shape: host.shape().clone(),
            dtype: host.dtype(),
        };
        let index = self.constants.len();
        if self.has_ranks || host.bytes().len() > SHARED_CONSTANT_BYTES {
            self.add_constant(host)?;
            return self.push(node(index));
        }
        let key = (host.shape().clone(), host.dtype(), host.bytes().to_vec());
        if let Some(&id) = self.shared.get(&key) {
            return Ok(id);
        }
        self.add_constant(host)?;
        let id = self.push(node(index))?;
        self.shared.insert(key, id);
        Ok(id)
    }

    fn add_constant(&mut self, host: &HostTensor) -> Result<()> {
        let value = match &mut self.place {
            Some(place) => {
                place(self.constants.len(), host)?;
                None
            }
            None => Some(host.clone()),
        };
        self.constants.push((None, value));
        Ok(())
    }
}

impl Backend for Trace {
    type Data = NodeId;
    type Weight = PlainWeight<Self>;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn rank(&self) -> Rank {
        self.rank
    }
    fn all_gather(&self, x: &Tensor<Self>, axis: usize, shape: &Shape) -> Result<NodeId> {
        self.record(Op::AllGather(axis), &[x], shape, x.dtype())
    }

    fn upload(&self, host: &HostTensor) -> Result<NodeId> {
        self.lock().constant(host)
    }
    fn download(&self, _x: &Tensor<Self>) -> Result<HostTensor> {
        Err(Error::Traced { op: "download" })
    }
    fn full(&self, shape: &Shape, value: Scalar) -> Result<NodeId> {
        self.record(Op::Full(Fill(value)), &[], shape, value.dtype())
    }
    fn iota(&self, shape: &Shape, axis: usize) -> Result<NodeId> {
        self.record(Op::Iota(axis), &[], shape, DType::I32)
    }
    /// A reshape of a reshape is recorded as one.
    fn reshape(&self, x: &Tensor<Self>, shape: &Shape) -> Result<NodeId> {
        let mut recorder = self.lock();
        let mut origin = *x.data();
        if let Some(Node { op: Op::Reshape, operands, .. }) = recorder.nodes.get(origin.index()) {
            origin = operands[0];
        }
        if recorder.nodes.get(origin.index()).is_some_and(|node| node.shape == *shape) {
            return Ok(origin);
        }
        recorder.node(Node {
            op: Op::Reshape,
            operands: vec![origin],
            shape: shape.clone(),
            dtype: x.dtype(),
        })
    }
    fn permute(&self, x: &Tensor<Self>, axes: &[usize], shape: &Shape) -> Result<NodeId> {
        self.record(Op::Permute(axes.to_vec()), &[x], shape, x.dtype())
    }
    fn slice(&self, x: &Tensor<Self>, ranges: &[Range<usize>], shape: &Shape) -> Result<NodeId> {
        self.record(Op::Slice(ranges.to_vec()), &[x], shape, x.dtype())
    }
    fn broadcast(&self, x: &Tensor<Self>, shape: &Shape) -> Result<NodeId> {
        self.record(Op::Broadcast, &[x], shape, x.dtype())
    }
    fn concat(&self, xs: &[&Tensor<Self>], axis: usize, shape: &Shape) -> Result<NodeId> {
        match xs {
            [x] => Ok(*x.data()),
            _ => self.record(Op::Concat(axis), xs, shape, xs[0].dtype()),
        }
    }
    fn cast(&self, x: &Tensor<Self>, dtype: DType) -> Result<NodeId> {
        self.record(Op::Cast, &[x], x.shape(), dtype)
    }
    fn bitcast(&self, x: &Tensor<Self>, dtype: DType) -> Result<NodeId> {
        self.record(Op::Bitcast, &[x], x.shape(), dtype)
    }
    fn unary(&self, op: UnaryOp, x: &Tensor<Self>) -> Result<NodeId> {
        self.record(Op::Unary(op), &[x], x.shape(), x.dtype())
    }
    fn binary(&self, op: BinaryOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<NodeId> {
        self.record(Op::Binary(op), &[a, b], a.shape(), a.dtype())
    }
    fn compare(&self, op: CompareOp, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<NodeId> {
        self.record(Op::Compare(op), &[a, b], a.shape(), DType::Bool)
    }
    fn select(&self, condition: &Tensor<Self>, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<NodeId> {
        self.record(Op::Select, &[condition, a, b], a.shape(), a.dtype())
    }
    fn max_reduce(&self, x: &Tensor<Self>, shape: &Shape) -> Result<NodeId> {
        self.record(Op::MaxReduce, &[x], shape, x.dtype())
    }
    fn matmul_exact(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Result<NodeId> {
        let shape = [a.dims()[0], a.dims()[1], b.dims()[1]].into();
        self.record(Op::MatmulExact, &[a, b], &shape, DType::I32)
    }
    fn gather(&self, x: &Tensor<Self>, indices: &Tensor<Self>) -> Result<NodeId> {
        let shape = x.shape().with(0, indices.dims()[0]);
        self.record(Op::Gather, &[x, indices], &shape, x.dtype())
    }
    fn scatter(
        &self,
        x: &mut NodeId,
        x_shape: &Shape,
        indices: &Tensor<Self>,
        rows: &Tensor<Self>,
    ) -> Result<()> {
        let operands = vec![*x, *indices.data(), *rows.data()];
        let node = Node { op: Op::Scatter, operands, shape: x_shape.clone(), dtype: rows.dtype() };
        *x = self.lock().node(node)?;
        Ok(())
    }

    fn pack(&self, weight: &HostWeight) -> Result<PlainWeight<Self>> {
        let plain = PlainWeight::unpack(self, weight)?;
        self.name_parts(&plain, &weight.name);
        Ok(plain)
    }
    fn plain(&self, weight: &Weight<Self>) -> Result<PlainWeight<Self>> {
        Ok(weight.packed().clone())
    }

    fn linear(&self, x: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        self.scope(format_args!("linear({})", weight.name()), || decompose::linear(x, weight.packed()))
    }
    fn embedding(&self, ids: &Tensor<Self>, weight: &Weight<Self>) -> Result<Tensor<Self>> {
        self.scope(format_args!("embedding({})", weight.name()), || {
            decompose::embedding(ids, weight.packed())
        })
    }
    fn rms_norm(&self, x: &Tensor<Self>, weight: &Tensor<Self>, eps: f32) -> Result<Tensor<Self>> {
        self.scope(format_args!("rms_norm"), || decompose::rms_norm(x, weight, eps))
    }
    fn layer_norm(
        &self,
        x: &Tensor<Self>,
        weight: &Tensor<Self>,
        bias: &Tensor<Self>,
        eps: f32,
    ) -> Result<Tensor<Self>> {
        self.scope(format_args!("layer_norm"), || decompose::layer_norm(x, weight, bias, eps))
    }
    fn rope(
        &self,
        x: &Tensor<Self>,
        positions: &Tensor<Self>,
        table: &RopeTable<Self>,
    ) -> Result<Tensor<Self>> {
        self.scope(format_args!("rope"), || decompose::rope(x, positions, table))
    }
    fn store_kv(
        &self,
        cache: &mut KvCache<Self>,
        k: &Tensor<Self>,
        v: &Tensor<Self>,
        slots: &Tensor<Self>,
    ) -> Result<()> {
        self.scope(format_args!("store_kv"), || decompose::store_kv(cache, k, v, slots))
    }
    fn attention(
        &self,
        q: &Tensor<Self>,
        cache: &KvCache<Self>,
        batch: &AttentionBatch<Self>,
        params: &AttentionParams,
    ) -> Result<Tensor<Self>> {
        self.scope(format_args!("attention"), || decompose::attention(q, cache, batch, params))
    }
    fn glu(&self, gate: &Tensor<Self>, up: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        self.scope(format_args!("glu"), || decompose::glu(gate, up, activation))
    }
    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> Result<Tensor<Self>> {
        self.scope(format_args!("activate"), || decompose::activate(x, activation))
    }
    fn softmax(&self, x: &Tensor<Self>) -> Result<Tensor<Self>> {
        self.scope(format_args!("softmax"), || decompose::softmax(x))
    }
    fn soft_cap(&self, x: &Tensor<Self>, cap: f32) -> Result<Tensor<Self>> {
        self.scope(format_args!("soft_cap"), || decompose::soft_cap(x, cap))
    }
    fn top_k(&self, x: &Tensor<Self>, k: usize) -> Result<Tensor<Self>> {
        self.scope(format_args!("top_k"), || decompose::top_k(x, k))
    }
}
