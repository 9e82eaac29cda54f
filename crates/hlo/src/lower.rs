//! Each primitive of a graph as HLO instructions.

use std::collections::HashMap;

use samebits_graph::{Graph, Node, NodeId, Op};
use samebits_tensor::{BinaryOp, CompareOp, DType, Scalar, UnaryOp};

use crate::{
    Options, Parameter, Program, Source,
    builder::{Builder, Constant, Value},
    proto::{
        AliasEntry, AliasKind, ElementType, FrontendAttributes, HloModule, InputOutputAlias, Metadata,
        SliceDimensions,
    },
};

/// Lowers a graph. Parameters are its inputs, its constants, and a zero where the module has guards; the result is a
/// tuple of its outputs.
pub fn lower(graph: &Graph, options: &Options) -> Program {
    let mut lowering = Lowering {
        graph,
        options,
        builder: Builder::default(),
        values: Vec::with_capacity(graph.nodes().len()),
        parameters: parameters(graph, options),
        zero: None,
        scalars: HashMap::new(),
    };
    lowering.parameters();
    graph.ids().for_each(|id| lowering.node(id));
    lowering.finish()
}

/// The type of a module's values.
pub(crate) fn element(dtype: DType) -> ElementType {
    match dtype {
        DType::F32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::Bf16,
        DType::I8 => ElementType::S8,
        DType::U8 => ElementType::U8,
        DType::I32 => ElementType::S32,
        DType::Bool => ElementType::Pred,
    }
}

fn parameters(graph: &Graph, options: &Options) -> Vec<Parameter> {
    let parameter = |name: &str, source, node| {
        let node = graph.node(node);
        Parameter { name: name.into(), source, shape: node.shape.clone(), dtype: node.dtype }
    };
    let donated = |index| graph.outputs().iter().any(|output| output.donates == Some(index));
    let inputs = graph.inputs().iter().enumerate().map(|(index, input)| {
        let suffix = if options.tensor_names && donated(index) { ".must_alias_input" } else { "" };
        parameter(&format!("{}{suffix}", input.name), Source::Input(index), input.node)
    });
    let constants = graph.constants().iter().enumerate();
    let constants =
        constants.map(|(i, it)| parameter(&options.relative(&it.name), Source::Constant(i), it.node));
    let mut parameters: Vec<_> = inputs.chain(constants).collect();
    if options.guard {
        let name = "zero".into();
        parameters.push(Parameter { name, source: Source::Zero, shape: [].into(), dtype: DType::I32 });
    }
    parameters
}

struct Lowering<'a> {
    graph: &'a Graph,
    options: &'a Options,
    builder: Builder,
    /// By node.
    values: Vec<Value>,
    parameters: Vec<Parameter>,
    /// A zero that no compiler knows to be one.
    zero: Option<Value>,
    /// Scalars of f32, by their bits.
    scalars: HashMap<u32, Value>,
}

impl Lowering<'_> {
    /// All parameters first, in order; [`Lowering::node`] finds them by their numbers.
    fn parameters(&mut self) {
        let guard = self.parameters.iter().position(|parameter| parameter.source == Source::Zero);
        if let Some(number) = guard {
            self.zero = Some(self.builder.parameter(number, ElementType::S32, vec![]));
        }
    }

    fn node(&mut self, id: NodeId) {
        let graph = self.graph;
        let node = graph.node(id);
        self.builder.set_origin(
            graph.scope(id).map(|scope| Metadata {
                op_type: node.op.name().into(),
                op_name: self.options.relative(scope),
            }),
        );
        let value = self.lower(node);
        self.values.push(value);
    }

    fn lower(&mut self, node: &Node) -> Value {
        let x: Vec<Value> = node.operands.iter().map(|id| self.values[id.index()].clone()).collect();
        let dims = dims(node);
        let b = &mut self.builder;
        match &node.op {
            Op::Input(index) => b.parameter(*index, element(node.dtype), dims),
            Op::Constant(index) => b.parameter(self.graph.inputs().len() + index, element(node.dtype), dims),
            Op::Full(fill) => self.full(fill.0, dims),
            Op::Iota(axis) => b.iota(dims, *axis),
            Op::Reshape => b.reshape(&x[0], dims),
            Op::Permute(axes) => b.transpose(&x[0], dims, axes.iter().map(|&axis| axis as i64).collect()),
            Op::Slice(ranges) => {
                let range = |range: &std::ops::Range<usize>| SliceDimensions {
                    start: range.start as i64,
                    limit: range.end as i64,
                    stride: 1,
                };
                b.slice(&x[0], dims, ranges.iter().map(range).collect())
            }
            Op::Broadcast => self.broadcast(&x[0], dims),
            Op::Concat(axis) => b.concatenate(&x.iter().collect::<Vec<_>>(), dims, *axis),
            Op::Cast => self.cast(&x[0], element(node.dtype)),
            Op::Bitcast => b.convert("bitcast-convert", &x[0], element(node.dtype)),
            Op::Unary(op) => self.unary(*op, &x[0]),
            Op::Binary(op) => self.binary(*op, &x[0], &x[1]),
            Op::Compare(op) => b.compare(direction(*op), &x[0], &x[1]),
            Op::Select => b.select(&x[0], &x[1], &x[2]),
            Op::MaxReduce => self.max_reduce(&x[0]),
            Op::MatmulExact => self.matmul_exact(&x[0], &x[1]),
            // HLO has no slice of one row where there is none.
            Op::Gather if x[0].dims[0] == 0 && dims[0] == 0 => b.reshape(&x[0], dims),
            Op::Gather => b.gather(&x[0], &x[1]),
            Op::Scatter => b.scatter(&x[0], &x[1], &x[2]),
            Op::AllGather(axis) => b.all_gather(&x[0], dims, *axis, self.options.ranks),
        }
    }

    fn full(&mut self, value: Scalar, dims: Vec<i64>) -> Value {
        let scalar = match value {
            Scalar::F32(value) => self.scalar(value),
            Scalar::I32(value) => self.builder.constant(Constant::S32(value)),
            Scalar::I8(value) => self.builder.constant(Constant::S8(value)),
        };
        self.builder.broadcast(&scalar, dims, vec![])
    }

    /// A scalar that the compiler does not know, so that no rule about a constant applies: neither `x + 0` to `x`, which is
    /// wrong for -0, nor `(x * c) * d` to `x * (c * d)`.
    fn scalar(&mut self, value: f32) -> Value {
        if let Some(known) = self.scalars.get(&value.to_bits()) {
            return known.clone();
        }
        let constant = self.builder.constant(Constant::F32(value));
        let scalar = self.guard(constant);
        self.scalars.insert(value.to_bits(), scalar.clone());
        scalar
    }

    /// `x` with its bits xored with a zero of run time. What is behind it is computed as it is written: a product is not fused
    /// with an addition, a square root not with a division, a rounding not left out.
    fn guard(&mut self, x: Value) -> Value {
        let Some(zero) = self.zero.clone() else { return x };
        let bits = if x.element == ElementType::F32 { ElementType::S32 } else { ElementType::U16 };
        let b = &mut self.builder;
        let zero = if bits == ElementType::S32 { zero } else { b.convert("convert", &zero, bits) };
        let zero = b.broadcast(&zero, x.dims.clone(), vec![]);
        let raw = b.convert("bitcast-convert", &x, bits);
        let raw = b.map("xor", &[&raw, &zero]);
        b.convert("bitcast-convert", &raw, x.element)
    }

    /// A division by a repeated value would become a multiplication by its reciprocal. So each divisor passes through an
    /// exclusive or with its index times zero, which is not the same for all.
    fn divide(&mut self, x: &Value, y: &Value) -> Value {
        let Some(zero) = self.zero.clone().filter(|_| !y.dims.is_empty()) else {
            return self.builder.map("divide", &[x, y]);
        };
        let b = &mut self.builder;
        let zero = b.broadcast(&zero, y.dims.clone(), vec![]);
        let index = b.iota(y.dims.clone(), y.dims.len() - 1);
        let zeros = b.map("and", &[&index, &zero]);
        let raw = b.convert("bitcast-convert", y, ElementType::S32);
        let raw = b.map("xor", &[&raw, &zeros]);
        let y = b.convert("bitcast-convert", &raw, y.element);
        b.map("divide", &[x, &y])
    }

    /// HLO's broadcast adds axes and repeats none, so the axes to repeat are dropped first.
    fn broadcast(&mut self, x: &Value, dims: Vec<i64>) -> Value {
        let kept: Vec<usize> = (0..dims.len()).filter(|&axis| x.dims[axis] == dims[axis]).collect();
        let core = self.builder.reshape(x, kept.iter().map(|&axis| dims[axis]).collect());
        self.builder.broadcast(&core, dims, kept.iter().map(|&axis| axis as i64).collect())
    }

    fn unary(&mut self, op: UnaryOp, x: &Value) -> Value {
        match op {
            UnaryOp::Neg => self.builder.map("negate", &[x]),
            UnaryOp::Abs => self.builder.map("abs", &[x]),
            UnaryOp::RoundEven => self.builder.map("round-nearest-even", &[x]),
            UnaryOp::Sqrt => {
                let root = self.builder.map("sqrt", &[x]);
                self.guard(root)
            }
        }
    }

    fn binary(&mut self, op: BinaryOp, x: &Value, y: &Value) -> Value {
        let opcode = match op {
            BinaryOp::Add => "add",
            BinaryOp::Sub => "subtract",
            BinaryOp::Mul => "multiply",
            BinaryOp::Div => "divide",
            BinaryOp::Max => "maximum",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
            BinaryOp::Shl => "shift-left",
            BinaryOp::Shr => "shift-right-arithmetic",
        };
        let value = match op {
            BinaryOp::Div => self.divide(x, y),
            _ => self.builder.map(opcode, &[x, y]),
        };
        if op == BinaryOp::Mul && x.element == ElementType::F32 { self.guard(value) } else { value }
    }

    /// A reduction may lose a NaN on its way, so whether there is one is found by a reduction of its own.
    fn max_reduce(&mut self, x: &Value) -> Value {
        if x.element != ElementType::F32 {
            let least = self.builder.constant(Constant::S32(i32::MIN));
            return self.builder.reduce_max(x, &least);
        }
        let least = self.builder.constant(Constant::F32(f32::NEG_INFINITY));
        let largest = self.builder.reduce_max(x, &least);
        let full = |it: &mut Self, value, like: &Value| it.full(Scalar::F32(value), like.dims.clone());
        let (zeros, ones) = (full(self, 0.0, x), full(self, 1.0, x));
        let (nan, none) = (full(self, f32::NAN, &largest), full(self, 0.0, &largest));
        let b = &mut self.builder;
        let number = b.compare("EQ", x, x);
        let nans = b.select(&number, &zeros, &ones);
        let zero = b.constant(Constant::F32(0.0));
        let nans = b.reduce_max(&nans, &zero);
        let clean = b.compare("EQ", &nans, &none);
        b.select(&clean, &largest, &nan)
    }

    /// Bytes are exact in bf16, and their sums stay below 2^24, so a matrix unit for floats computes the integers.
    fn matmul_exact(&mut self, x: &Value, y: &Value) -> Value {
        let b = &mut self.builder;
        let (operand, result) = self.options.exact_dot.types();
        let (x, y) = (b.convert("convert", x, operand), b.convert("convert", y, operand));
        let product = b.dot(&x, &y, result);
        if result == ElementType::S32 { product } else { b.convert("convert", &product, ElementType::S32) }
    }

    fn cast(&mut self, x: &Value, to: ElementType) -> Value {
        let is_integer = |element| matches!(element, ElementType::S8 | ElementType::U8 | ElementType::S32);
        match (x.element, to) {
            (ElementType::F32 | ElementType::F16 | ElementType::Bf16, to) if is_integer(to) => {
                self.integer_of(x, to)
            }
            (_, ElementType::F16 | ElementType::Bf16) => {
                let value = self.builder.convert("convert", x, to);
                self.guard(value)
            }
            _ => self.builder.convert("convert", x, to),
        }
    }

    /// Toward zero, saturating, NaN to 0: what a conversion does outside of the integers is each device's own.
    fn integer_of(&mut self, x: &Value, to: ElementType) -> Value {
        let x = self.builder.convert("convert", x, ElementType::F32);
        let (low, high) = match to {
            ElementType::S8 => (-128.0, 127.0),
            ElementType::U8 => (0.0, 255.0),
            _ => (-2_147_483_648.0, 2_147_483_520.0),
        };
        let dims = x.dims.clone();
        let full = |it: &mut Self, value| it.full(Scalar::F32(value), dims.clone());
        let (low, high, zero) = (full(self, low), full(self, high), full(self, 0.0));
        let b = &mut self.builder;
        let number = b.compare("EQ", &x, &x);
        let mut value = b.select(&number, &x, &zero);
        let (below, above) = (b.compare("LT", &value, &low), b.compare("LT", &high, &value));
        value = b.select(&below, &low, &value);
        value = b.select(&above, &high, &value);
        let value = b.convert("convert", &value, to);
        if to != ElementType::S32 {
            return value;
        }
        let most = b.constant(Constant::S32(i32::MAX));
        let most = b.broadcast(&most, dims, vec![]);
        b.select(&above, &most, &value)
    }

    fn finish(self) -> Program {
        let Lowering { graph, options, builder, values, parameters, .. } = self;
        let names = parameters.iter().map(|parameter| parameter.name.clone()).collect();
        let results: Vec<_> = graph.outputs().iter().map(|output| &values[output.node.index()]).collect();
        let mut computations = builder.finish("main", names, &results);
        let entry = computations.last_mut().expect("the entry");
        if options.tensor_names {
            let outputs: Vec<&str> = graph.outputs().iter().map(|output| output.name.as_str()).collect();
            name_tensors(entry, &parameters, &outputs.join(","));
        }
        let module = HloModule {
            name: options.name.clone(),
            entry_computation_name: entry.name.clone(),
            host_program_shape: entry.program_shape.clone(),
            entry_computation_id: entry.id,
            input_output_alias: aliases(graph, options),
            computations,
        };
        Program { module, parameters }
    }
}

fn dims(node: &Node) -> Vec<i64> {
    node.shape.dims().iter().map(|&extent| extent as i64).collect()
}

fn direction(op: CompareOp) -> &'static str {
    match op {
        CompareOp::Lt => "LT",
        CompareOp::Le => "LE",
        CompareOp::Eq => "EQ",
    }
}

fn aliases(graph: &Graph, options: &Options) -> Option<InputOutputAlias> {
    let kind = if options.tensor_names { AliasKind::Must } else { AliasKind::May };
    let entry = |(output, input): (usize, usize)| AliasEntry {
        output_shape_index: vec![output as i64],
        parameter_number: input as i64,
        parameter_shape_index: vec![],
        kind: kind.into(),
    };
    let donations = graph.outputs().iter().enumerate();
    let donations = donations.filter_map(|(index, output)| Some((index, output.donates?)));
    let entries: Vec<_> = donations.map(entry).collect();
    (!entries.is_empty()).then_some(InputOutputAlias { entries })
}

/// The names that the Neuron runtime binds tensors by.
fn name_tensors(entry: &mut crate::proto::Computation, parameters: &[Parameter], outputs: &str) {
    let attribute = |key: &str, value: &str| {
        Some(FrontendAttributes { map: [(key.to_owned(), value.to_owned())].into() })
    };
    for instruction in &mut entry.instructions {
        if instruction.opcode == "parameter" {
            let name = &parameters[instruction.parameter_number as usize].name;
            instruction.frontend_attributes = attribute("neff_input_names", name);
        } else if instruction.id == entry.root_id {
            instruction.frontend_attributes = attribute("neff_output_names", outputs);
        }
    }
}
