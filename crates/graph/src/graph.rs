use std::{
    hash::{Hash, Hasher},
    ops::Range,
    sync::Arc,
};

use samebits_tensor::{BinaryOp, CompareOp, DType, HostTensor, Scalar, Shape, UnaryOp};

use crate::GraphError;

/// Index of a node. Operands come before the nodes that use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl NodeId {
    /// Place in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A primitive, with the constants that are no operands. Result shape and dtype are the node's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Input of this index.
    Input(usize),
    /// Constant of this index.
    Constant(usize),
    /// Every element the same.
    Full(Fill),
    /// Index along an axis.
    Iota(usize),
    /// Same elements, other shape.
    Reshape,
    /// Axes reordered.
    Permute(Vec<usize>),
    /// One range for each axis.
    Slice(Vec<Range<usize>>),
    /// Axes of extent 1 repeated.
    Broadcast,
    /// Operands joined along an axis.
    Concat(usize),
    /// Values in another type.
    Cast,
    /// Bits in another type.
    Bitcast,
    /// Of one operand.
    Unary(UnaryOp),
    /// Of two operands.
    Binary(BinaryOp),
    /// Of two operands, as a mask.
    Compare(CompareOp),
    /// Mask, then the two choices.
    Select,
    /// Largest along the last axis.
    MaxReduce,
    /// `[b, m, k] x [b, n, k] -> [b, m, n]` of bytes.
    MatmulExact,
    /// Operand, indices.
    Gather,
    /// Operand, indices, rows.
    Scatter,
    /// Operands of all ranks joined along an axis.
    AllGather(usize),
}

impl Op {
    /// Lower-case name, as in dumps.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input(_) => "input",
            Op::Constant(_) => "constant",
            Op::Full(_) => "full",
            Op::Iota(_) => "iota",
            Op::Reshape => "reshape",
            Op::Permute(_) => "permute",
            Op::Slice(_) => "slice",
            Op::Broadcast => "broadcast",
            Op::Concat(_) => "concat",
            Op::Cast => "cast",
            Op::Bitcast => "bitcast",
            Op::Unary(UnaryOp::Neg) => "neg",
            Op::Unary(UnaryOp::Abs) => "abs",
            Op::Unary(UnaryOp::Sqrt) => "sqrt",
            Op::Unary(UnaryOp::RoundEven) => "round_even",
            Op::Binary(BinaryOp::Add) => "add",
            Op::Binary(BinaryOp::Sub) => "sub",
            Op::Binary(BinaryOp::Mul) => "mul",
            Op::Binary(BinaryOp::Div) => "div",
            Op::Binary(BinaryOp::Max) => "max",
            Op::Binary(BinaryOp::And) => "and",
            Op::Binary(BinaryOp::Or) => "or",
            Op::Binary(BinaryOp::Shl) => "shl",
            Op::Binary(BinaryOp::Shr) => "shr",
            Op::Compare(CompareOp::Lt) => "lt",
            Op::Compare(CompareOp::Le) => "le",
            Op::Compare(CompareOp::Eq) => "eq",
            Op::Select => "select",
            Op::MaxReduce => "max_reduce",
            Op::MatmulExact => "matmul_exact",
            Op::Gather => "gather",
            Op::Scatter => "scatter",
            Op::AllGather(_) => "all_gather",
        }
    }
}

/// The value of [`Op::Full`], compared by its bits.
#[derive(Clone, Copy, Debug)]
pub struct Fill(pub Scalar);

impl Fill {
    fn bits(self) -> (DType, u32) {
        match self.0 {
            Scalar::F32(value) => (DType::F32, value.to_bits()),
            Scalar::I32(value) => (DType::I32, value.cast_unsigned()),
            Scalar::I8(value) => (DType::I8, u32::from(value.cast_unsigned())),
        }
    }
}

impl PartialEq for Fill {
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Fill {}

impl Hash for Fill {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}

/// One primitive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Of what.
    pub operands: Vec<NodeId>,
    /// Shape of the result.
    pub shape: Shape,
    /// Type of the result's elements.
    pub dtype: DType,
}

impl Node {
    /// Bytes of the result.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }
}

/// A value that is given to each run.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: NodeId,
}

/// A value that is the same in each run: a weight, or a table.
#[derive(Clone, Debug)]
pub struct Constant {
    /// The weight's name and part (`blk.0.attn_q.weight.scale`), or `constant.N`.
    pub name: String,
    /// The same in every graph of a trace.
    pub number: usize,
    /// The value; `None` where the trace has placed it elsewhere.
    pub value: Option<HostTensor>,
    /// Its node.
    pub node: NodeId,
}

/// A value that each run returns.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: NodeId,
    /// The input whose buffer this output takes over: it is that input with rows scattered into it.
    pub donates: Option<usize>,
}

/// A recorded computation over primitives, in an order in which it can be run.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    pub(crate) scopes: Vec<Option<Arc<str>>>,
    pub(crate) inputs: Vec<Input>,
    pub(crate) constants: Vec<Constant>,
    pub(crate) outputs: Vec<Output>,
}

impl Graph {
    /// The nodes; operands come first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The ids of the nodes, in order.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// The fused operation that recorded a node first: `linear(blk.0.attn_q.weight)`.
    pub fn scope(&self, id: NodeId) -> Option<&str> {
        self.scopes[id.index()].as_deref()
    }

    /// The inputs, in the order of a run's arguments.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The constants, in the order of their first use.
    pub fn constants(&self) -> &[Constant] {
        &self.constants
    }

    /// The outputs, in the order of a run's results.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The nodes after which each value is not needed any more: `result[i]` are the operands to free after node `i`.
    pub fn last_uses(&self) -> Vec<Vec<NodeId>> {
        let mut dead_after = vec![Vec::new(); self.nodes.len()];
        let mut live = vec![false; self.nodes.len()];
        self.outputs.iter().for_each(|output| live[output.node.index()] = true);
        for (index, node) in self.nodes.iter().enumerate().rev() {
            for &operand in &node.operands {
                if !std::mem::replace(&mut live[operand.index()], true) {
                    dead_after[index].push(operand);
                }
            }
        }
        dead_after
    }

    /// The part of a recording that the outputs need. Unused inputs stay.
    pub(crate) fn extract(
        recorded: &Recording<'_>,
        inputs: &[NodeId],
        outputs: &[(&str, NodeId)],
    ) -> Result<Graph, GraphError> {
        let mut names: Vec<Option<NodeId>> = vec![None; recorded.nodes.len()];
        let mut graph = Graph {
            nodes: Vec::new(),
            scopes: Vec::new(),
            inputs: Vec::new(),
            constants: Vec::new(),
            outputs: Vec::new(),
        };
        for (index, &id) in inputs.iter().enumerate() {
            graph.add_input(recorded, index, id, &mut names)?;
        }
        let needed = reachable(recorded.nodes, outputs.iter().map(|&(_, id)| id));
        for index in (0..recorded.nodes.len()).filter(|&index| needed[index]) {
            if names[index].is_none() {
                names[index] = Some(graph.add_node(recorded, index, &names)?);
            }
        }
        for &(name, id) in outputs {
            let node = names[id.index()].expect("an output is reachable from itself");
            graph.outputs.push(Output { name: name.into(), node, donates: None });
        }
        unique("inputs", graph.inputs.iter().map(|input| &input.name))?;
        unique("outputs", graph.outputs.iter().map(|output| &output.name))?;
        graph.mark_donations();
        Ok(graph)
    }

    fn add_input(
        &mut self,
        recorded: &Recording<'_>,
        index: usize,
        id: NodeId,
        names: &mut [Option<NodeId>],
    ) -> Result<(), GraphError> {
        let Some(node @ Node { op: Op::Input(input), .. }) = recorded.nodes.get(id.index()) else {
            return Err(GraphError::NotAnInput { index });
        };
        let name = recorded.inputs[*input].clone();
        let node = self.push(Node { op: Op::Input(index), ..node.clone() }, None);
        names[id.index()] = Some(node);
        self.inputs.push(Input { name, node });
        Ok(())
    }

    fn add_node(
        &mut self,
        recorded: &Recording<'_>,
        index: usize,
        names: &[Option<NodeId>],
    ) -> Result<NodeId, GraphError> {
        let mut node = recorded.nodes[index].clone();
        for operand in &mut node.operands {
            *operand = names[operand.index()].unwrap_or(*operand);
        }
        match node.op {
            Op::Input(input) => Err(GraphError::MissingInput { name: recorded.inputs[input].clone() }),
            Op::Constant(constant) => {
                let (name, value) = recorded.constants[constant].clone();
                let index = self.constants.len();
                let name = name.map_or_else(|| format!("constant.{index}"), |name| name.to_string());
                let id = self.push(Node { op: Op::Constant(index), ..node }, None);
                self.constants.push(Constant { name, number: constant, value, node: id });
                Ok(id)
            }
            _ => Ok(self.push(node, recorded.scopes[index].clone())),
        }
    }

    fn push(&mut self, node: Node, scope: Option<Arc<str>>) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(node);
        self.scopes.push(scope);
        id
    }

    /// An output that is an input with rows scattered into it takes that input's buffer, the first such output only.
    fn mark_donations(&mut self) {
        let mut taken = vec![false; self.inputs.len()];
        for index in 0..self.outputs.len() {
            let mut id = self.outputs[index].node;
            let mut scattered = false;
            while self.node(id).op == Op::Scatter {
                id = self.node(id).operands[0];
                scattered = true;
            }
            if let (true, Op::Input(input)) = (scattered, &self.node(id).op)
                && !std::mem::replace(&mut taken[*input], true)
            {
                self.outputs[index].donates = Some(*input);
            }
        }
    }
}

/// What a trace has recorded so far.
pub(crate) struct Recording<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) scopes: &'a [Option<Arc<str>>],
    pub(crate) inputs: &'a [String],
    pub(crate) constants: &'a [(Option<Arc<str>>, Option<HostTensor>)],
}

fn reachable(nodes: &[Node], outputs: impl Iterator<Item = NodeId>) -> Vec<bool> {
    let mut needed = vec![false; nodes.len()];
    outputs.for_each(|id| needed[id.index()] = true);
    for index in (0..nodes.len()).rev() {
        if needed[index] {
            nodes[index].operands.iter().for_each(|operand| needed[operand.index()] = true);
        }
    }
    needed
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), GraphError> {
    let mut names: Vec<&String> = names.collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(GraphError::DuplicateName { what, name: pair[0].clone() }),
        None => Ok(()),
    }
}
