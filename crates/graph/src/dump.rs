use std::{collections::BTreeMap, fmt};

use samebits_tensor::Scalar;

use crate::{Graph, Node, NodeId, Op};

/// Counts of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Nodes of each primitive.
    pub ops: BTreeMap<&'static str, usize>,
    /// Bytes of all inputs.
    pub input_bytes: usize,
    /// Bytes of all constants.
    pub constant_bytes: usize,
    /// Bytes of all outputs that take over no input's buffer.
    pub output_bytes: usize,
    /// Most bytes that computed values need at once when each is freed after its last use.
    pub peak_bytes: usize,
}

impl Graph {
    /// Counts nodes and bytes.
    pub fn summary(&self) -> Summary {
        let mut ops = BTreeMap::new();
        self.nodes().iter().for_each(|node| *ops.entry(node.op.name()).or_default() += 1);
        let bytes = |ids: &mut dyn Iterator<Item = NodeId>| ids.map(|id| self.node(id).bytes()).sum();
        let fresh = self.outputs().iter().filter(|output| output.donates.is_none());
        Summary {
            ops,
            input_bytes: bytes(&mut self.inputs().iter().map(|input| input.node)),
            constant_bytes: bytes(&mut self.constants().iter().map(|constant| constant.node)),
            output_bytes: bytes(&mut fresh.map(|output| output.node)),
            peak_bytes: self.peak_bytes(),
        }
    }

    /// A scatter counts as in place; inputs and constants are not counted.
    fn peak_bytes(&self) -> usize {
        let own = |node: &Node| match node.op {
            Op::Input(_) | Op::Constant(_) | Op::Scatter => 0,
            _ => node.bytes(),
        };
        let (mut live, mut peak) = (0, 0);
        for (node, dead) in self.nodes().iter().zip(self.last_uses()) {
            live += own(node);
            peak = peak.max(live);
            live -= dead.iter().map(|&id| own(self.node(id))).sum::<usize>();
        }
        peak
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: usize = self.ops.values().sum();
        writeln!(f, "{nodes} nodes")?;
        writeln!(
            f,
            "bytes: {} of inputs, {} of constants, {} of outputs, {} at most in between",
            self.input_bytes, self.constant_bytes, self.output_bytes, self.peak_bytes
        )?;
        self.ops.iter().try_for_each(|(op, count)| writeln!(f, "{count:>8} {op}"))
    }
}

/// One line a node: `%7 = add %5 %6 : f32 [2, 3]`. A line starting with `#` names the fused operation that recorded the
/// nodes below it.
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut scope = None;
        for id in self.ids() {
            if self.scope(id) != scope {
                scope = self.scope(id);
                writeln!(f, "# {}", scope.unwrap_or("outside of fused operations"))?;
            }
            self.write_node(f, id)?;
        }
        for output in self.outputs() {
            write!(f, "output {} = %{}", output.name, output.node.0)?;
            if let Some(input) = output.donates {
                write!(f, " in place of {}", self.inputs()[input].name)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Graph {
    fn write_node(&self, f: &mut fmt::Formatter<'_>, id: NodeId) -> fmt::Result {
        let node = self.node(id);
        write!(f, "%{} = {}", id.0, node.op.name())?;
        node.operands.iter().try_for_each(|operand| write!(f, " %{}", operand.0))?;
        match &node.op {
            Op::Input(input) => write!(f, " {}", self.inputs()[*input].name)?,
            Op::Constant(constant) => write!(f, " {}", self.constants()[*constant].name)?,
            Op::Full(fill) => match fill.0 {
                Scalar::F32(value) => write!(f, " {value:e}")?,
                Scalar::I32(value) => write!(f, " {value}")?,
                Scalar::I8(value) => write!(f, " {value}")?,
            },
            Op::Iota(axis) | Op::Concat(axis) | Op::AllGather(axis) => write!(f, " axis={axis}")?,
            Op::Permute(axes) => write!(f, " axes={axes:?}")?,
            Op::Slice(ranges) => write!(f, " {ranges:?}")?,
            _ => {}
        }
        writeln!(f, " : {} {}", node.dtype, node.shape)
    }
}
