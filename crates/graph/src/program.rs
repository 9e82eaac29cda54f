use samebits_tensor::{Backend, Tensor};

use crate::{Graph, GraphError, Node, NodeId, Op};

/// A graph made ready for a backend: its constants uploaded, and known when each value dies.
pub struct Program<'a, B: Backend> {
    graph: &'a Graph,
    backend: B,
    constants: Vec<Tensor<B>>,
    dead_after: Vec<Vec<NodeId>>,
}

impl Graph {
    /// Uploads the constants.
    ///
    /// # Errors
    /// Those of [`Backend::upload`], and [`GraphError::NoValue`] of a graph whose trace placed its constants elsewhere.
    pub fn prepare<B: Backend>(&self, backend: &B) -> Result<Program<'_, B>, GraphError> {
        let constants = self.constants().iter().map(|constant| match &constant.value {
            Some(value) => Ok(Tensor::upload(backend, value)?),
            None => Err(GraphError::NoValue { name: constant.name.clone() }),
        });
        Ok(Program {
            graph: self,
            backend: backend.clone(),
            constants: constants.collect::<Result<_, GraphError>>()?,
            dead_after: self.last_uses(),
        })
    }

    /// Prepares and runs once.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run<B: Backend>(&self, backend: &B, inputs: Vec<Tensor<B>>) -> Result<Vec<Tensor<B>>, GraphError> {
        self.prepare(backend)?.run(inputs)
    }
}

impl<B: Backend> Program<'_, B> {
    /// Replays the graph: one backend call a node, values freed after their last use. An input that an output donates
    /// is written in place where the caller keeps no other handle to it.
    ///
    /// # Errors
    /// If the inputs do not fit the graph's, or the backend refuses an operation.
    pub fn run(&self, inputs: Vec<Tensor<B>>) -> Result<Vec<Tensor<B>>, GraphError> {
        self.check(&inputs)?;
        let mut inputs: Vec<Option<Tensor<B>>> = inputs.into_iter().map(Some).collect();
        let mut values: Vec<Option<Tensor<B>>> = vec![None; self.graph.nodes().len()];
        for (index, node) in self.graph.nodes().iter().enumerate() {
            values[index] = match node.op {
                Op::Input(input) => inputs[input].take(),
                Op::Constant(constant) => Some(self.constants[constant].clone()),
                Op::Scatter => Some(self.scatter(index, node, &mut values)?),
                _ => Some(self.compute(node, &values)?),
            };
            self.dead_after[index].iter().for_each(|dead| values[dead.index()] = None);
        }
        Ok(self.graph.outputs().iter().filter_map(|output| values[output.node.index()].clone()).collect())
    }

    fn check(&self, inputs: &[Tensor<B>]) -> Result<(), GraphError> {
        let expected = self.graph.inputs();
        if inputs.len() != expected.len() {
            return Err(GraphError::InputCount { expected: expected.len(), found: inputs.len() });
        }
        for (input, tensor) in expected.iter().zip(inputs) {
            let node = self.graph.node(input.node);
            if (&node.shape, node.dtype) != (tensor.shape(), tensor.dtype()) {
                return Err(GraphError::InputKind {
                    name: input.name.clone(),
                    expected: node.shape.clone().into(),
                    expected_dtype: node.dtype,
                    found: tensor.shape().clone().into(),
                    found_dtype: tensor.dtype(),
                });
            }
        }
        Ok(())
    }

    /// In place if the target dies here; otherwise into a fresh copy.
    fn scatter(
        &self,
        index: usize,
        node: &Node,
        values: &mut [Option<Tensor<B>>],
    ) -> Result<Tensor<B>, GraphError> {
        let [target, indices, rows] = node.operands[..] else { unreachable!("scatter has three operands") };
        let dies = self.dead_after[index].contains(&target) && target != rows && target != indices;
        let mut x = if dies {
            values[target.index()].take().expect("operands come first")
        } else {
            let x = value(values, target);
            Tensor::concat(&[x, &x.narrow(0, 0..0)?], 0)?
        };
        x.scatter(value(values, indices), value(values, rows))?;
        Ok(x)
    }

    fn compute(&self, node: &Node, values: &[Option<Tensor<B>>]) -> Result<Tensor<B>, GraphError> {
        let operands: Vec<&Tensor<B>> = node.operands.iter().map(|&id| value(values, id)).collect();
        let (b, shape, x) = (&self.backend, &node.shape, operands.as_slice());
        let data = match &node.op {
            Op::Full(fill) => b.full(shape, fill.0),
            Op::Iota(axis) => b.iota(shape, *axis),
            Op::Reshape => b.reshape(x[0], shape),
            Op::Permute(axes) => b.permute(x[0], axes, shape),
            Op::Slice(ranges) => b.slice(x[0], ranges, shape),
            Op::Broadcast => b.broadcast(x[0], shape),
            Op::Concat(axis) => b.concat(x, *axis, shape),
            Op::Cast => b.cast(x[0], node.dtype),
            Op::Bitcast => b.bitcast(x[0], node.dtype),
            Op::Unary(op) => b.unary(*op, x[0]),
            Op::Binary(op) => b.binary(*op, x[0], x[1]),
            Op::Compare(op) => b.compare(*op, x[0], x[1]),
            Op::Select => b.select(x[0], x[1], x[2]),
            Op::MaxReduce => b.max_reduce(x[0], shape),
            Op::MatmulExact => b.matmul_exact(x[0], x[1]),
            Op::Gather => b.gather(x[0], x[1]),
            Op::AllGather(axis) => b.all_gather(x[0], *axis, shape),
            Op::Input(_) | Op::Constant(_) | Op::Scatter => unreachable!("handled by run"),
        };
        Ok(Tensor::from_data(b, shape, node.dtype, data?))
    }
}

fn value<B: Backend>(values: &[Option<Tensor<B>>], id: NodeId) -> &Tensor<B> {
    values[id.index()].as_ref().expect("operands come first and live until their last use")
}
