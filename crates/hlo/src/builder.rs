use std::collections::HashMap;

use crate::proto::{
    Computation, DotDimensions, ElementType, GatherDimensions, Instruction, Layout, Literal, Metadata,
    ProgramShape, ReplicaGroup, ScatterDimensions, Shape, SliceDimensions,
};

/// A value of a computation that is being built.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Value {
    pub(crate) id: i64,
    pub(crate) element: ElementType,
    pub(crate) dims: Vec<i64>,
}

/// Instructions of the entry computation, in order, and the small computations that they apply.
///
/// Operands fit together: a graph's shapes and types are checked when it is recorded.
#[derive(Default)]
pub(crate) struct Builder {
    entry: Vec<Instruction>,
    regions: Vec<Computation>,
    region_ids: HashMap<(&'static str, ElementType), i64>,
    next_id: i64,
    metadata: Option<Metadata>,
}

impl Builder {
    /// Where the instructions that follow come from.
    pub(crate) fn set_origin(&mut self, metadata: Option<Metadata>) {
        self.metadata = metadata;
    }

    pub(crate) fn parameter(&mut self, number: usize, element: ElementType, dims: Vec<i64>) -> Value {
        self.push("parameter", element, dims, &[], |it| it.parameter_number = number as i64)
    }

    /// A scalar.
    pub(crate) fn constant(&mut self, value: Constant) -> Value {
        let (element, mut literal) = value.literal();
        literal.shape = Some(shape(element, &[]));
        self.push("constant", element, vec![], &[], |it| it.literal = Some(literal))
    }

    /// An operation that takes each element on its own and keeps the type.
    pub(crate) fn map(&mut self, opcode: &str, operands: &[&Value]) -> Value {
        let [.., first] = operands else { unreachable!("an operation has operands") };
        self.push(opcode, first.element, first.dims.clone(), operands, |_| {})
    }

    /// Values, or bits, in another type.
    pub(crate) fn convert(&mut self, opcode: &str, x: &Value, element: ElementType) -> Value {
        self.push(opcode, element, x.dims.clone(), &[x], |_| {})
    }

    pub(crate) fn compare(&mut self, direction: &str, a: &Value, b: &Value) -> Value {
        let float = matches!(a.element, ElementType::F32 | ElementType::F16 | ElementType::Bf16);
        self.push("compare", ElementType::Pred, a.dims.clone(), &[a, b], |it| {
            it.comparison_direction = direction.into();
            it.comparison_type = if float { "FLOAT" } else { "SIGNED" }.into();
        })
    }

    pub(crate) fn select(&mut self, mask: &Value, a: &Value, b: &Value) -> Value {
        self.push("select", a.element, a.dims.clone(), &[mask, a, b], |_| {})
    }

    pub(crate) fn iota(&mut self, dims: Vec<i64>, axis: usize) -> Value {
        self.push("iota", ElementType::S32, dims, &[], |it| it.dimensions = vec![axis as i64])
    }

    pub(crate) fn reshape(&mut self, x: &Value, dims: Vec<i64>) -> Value {
        if x.dims == dims {
            return x.clone();
        }
        self.push("reshape", x.element, dims, &[x], |_| {})
    }

    /// Axis `i` of `x` becomes axis `axes[i]` of the result.
    pub(crate) fn broadcast(&mut self, x: &Value, dims: Vec<i64>, axes: Vec<i64>) -> Value {
        if x.dims == dims {
            return x.clone();
        }
        self.push("broadcast", x.element, dims, &[x], |it| it.dimensions = axes)
    }

    pub(crate) fn transpose(&mut self, x: &Value, dims: Vec<i64>, axes: Vec<i64>) -> Value {
        self.push("transpose", x.element, dims, &[x], |it| it.dimensions = axes)
    }

    pub(crate) fn slice(&mut self, x: &Value, dims: Vec<i64>, ranges: Vec<SliceDimensions>) -> Value {
        self.push("slice", x.element, dims, &[x], |it| it.slice_dimensions = ranges)
    }

    pub(crate) fn concatenate(&mut self, xs: &[&Value], dims: Vec<i64>, axis: usize) -> Value {
        self.push("concatenate", xs[0].element, dims, xs, |it| it.dimensions = vec![axis as i64])
    }

    /// `x` of each of `ranks` replicas, joined along `axis`.
    pub(crate) fn all_gather(&mut self, x: &Value, dims: Vec<i64>, axis: usize, ranks: usize) -> Value {
        self.push("all-gather", x.element, dims, &[x], |it| {
            it.dimensions = vec![axis as i64];
            it.replica_groups = vec![ReplicaGroup { replica_ids: (0..ranks as i64).collect() }];
        })
    }

    /// `[b, m, k] x [b, n, k] -> [b, m, n]`.
    pub(crate) fn dot(&mut self, a: &Value, b: &Value, element: ElementType) -> Value {
        let dims = vec![a.dims[0], a.dims[1], b.dims[1]];
        self.push("dot", element, dims, &[a, b], |it| {
            it.dot_dimension_numbers = Some(DotDimensions {
                lhs_contracting: vec![2],
                rhs_contracting: vec![2],
                lhs_batch: vec![0],
                rhs_batch: vec![0],
            });
        })
    }

    /// Largest along the last axis, starting at `least`.
    pub(crate) fn reduce_max(&mut self, x: &Value, least: &Value) -> Value {
        let region = self.region("maximum", x.element);
        let (axis, dims) = (x.dims.len() - 1, x.dims[..x.dims.len() - 1].to_vec());
        self.push("reduce", x.element, dims, &[x, least], |it| {
            it.dimensions = vec![axis as i64];
            it.called_computation_ids = vec![region];
        })
    }

    /// Rows of `x [n, …]` at `indices [m]`.
    pub(crate) fn gather(&mut self, x: &Value, indices: &Value) -> Value {
        let dims = with_rows(x, indices.dims[0]);
        let slice = with_rows(x, 1);
        let offset_dims = (1..x.dims.len() as i64).collect();
        self.push("gather", x.element, dims, &[x, indices], |it| {
            it.gather_slice_sizes = slice;
            it.gather_dimension_numbers = Some(GatherDimensions {
                offset_dims,
                collapsed_slice_dims: vec![0],
                start_index_map: vec![0],
                index_vector_dim: 1,
            });
        })
    }

    /// `x [n, …]` with the rows at `indices [m]` replaced.
    pub(crate) fn scatter(&mut self, x: &Value, indices: &Value, rows: &Value) -> Value {
        let region = self.region("assign", x.element);
        let update_window_dims = (1..x.dims.len() as i64).collect();
        self.push("scatter", x.element, x.dims.clone(), &[x, indices, rows], |it| {
            it.called_computation_ids = vec![region];
            it.scatter_dimension_numbers = Some(ScatterDimensions {
                update_window_dims,
                inserted_window_dims: vec![0],
                scatter_dims_to_operand_dims: vec![0],
                index_vector_dim: 1,
            });
        })
    }

    /// Ends the entry computation with a tuple. Returns all computations, the entry last, and the tuple's id.
    pub(crate) fn finish(
        mut self,
        name: &str,
        parameters: Vec<String>,
        results: &[&Value],
    ) -> Vec<Computation> {
        self.metadata = None;
        let root = self.push("tuple", ElementType::Tuple, vec![], results, |_| {});
        let last = self.entry.last_mut().expect("the tuple");
        last.shape = Some(Shape {
            element_type: ElementType::Tuple.into(),
            tuple_shapes: results.iter().map(|value| shape(value.element, &value.dims)).collect(),
            ..Shape::default()
        });
        let id = self.regions.len() as i64 + 1;
        let entry = computation(name, id, root.id, self.entry, parameters);
        self.regions.push(entry);
        self.regions
    }

    /// A computation of two scalars: the larger, or the second.
    fn region(&mut self, what: &'static str, element: ElementType) -> i64 {
        if let Some(&id) = self.region_ids.get(&(what, element)) {
            return id;
        }
        let entry = std::mem::take(&mut self.entry);
        let a = self.parameter(0, element, vec![]);
        let b = self.parameter(1, element, vec![]);
        let root = if what == "assign" { b } else { self.map(what, &[&a, &b]) };
        let instructions = std::mem::replace(&mut self.entry, entry);
        let id = self.regions.len() as i64 + 1;
        let name = format!("{what}.{}", element.name());
        self.regions.push(computation(&name, id, root.id, instructions, vec!["a".into(), "b".into()]));
        self.region_ids.insert((what, element), id);
        id
    }

    fn push(
        &mut self,
        opcode: &str,
        element: ElementType,
        dims: Vec<i64>,
        operands: &[&Value],
        attributes: impl FnOnce(&mut Instruction),
    ) -> Value {
        self.next_id += 1;
        let mut instruction = Instruction {
            name: format!("{opcode}.{}", self.next_id),
            opcode: opcode.into(),
            shape: Some(shape(element, &dims)),
            metadata: self.metadata.clone(),
            id: self.next_id,
            operand_ids: operands.iter().map(|value| value.id).collect(),
            ..Instruction::default()
        };
        attributes(&mut instruction);
        self.entry.push(instruction);
        Value { id: self.next_id, element, dims }
    }
}

/// A scalar that is known.
#[derive(Clone, Copy)]
pub(crate) enum Constant {
    F32(f32),
    S32(i32),
    S8(i8),
}

impl Constant {
    fn literal(self) -> (ElementType, Literal) {
        let literal = Literal::default();
        match self {
            Constant::F32(value) => (ElementType::F32, Literal { f32s: vec![value], ..literal }),
            Constant::S32(value) => (ElementType::S32, Literal { s32s: vec![value], ..literal }),
            Constant::S8(value) => (ElementType::S8, Literal { s8s: vec![value.cast_unsigned()], ..literal }),
        }
    }
}

fn computation(
    name: &str,
    id: i64,
    root_id: i64,
    instructions: Vec<Instruction>,
    parameter_names: Vec<String>,
) -> Computation {
    let parameters = instructions.iter().filter(|it| it.opcode == "parameter");
    let mut parameters: Vec<_> = parameters.map(|it| (it.parameter_number, it.shape.clone())).collect();
    parameters.sort_by_key(|(number, _)| *number);
    let root = instructions.iter().find(|it| it.id == root_id);
    let program_shape = ProgramShape {
        parameters: parameters.into_iter().filter_map(|(_, shape)| shape).collect(),
        result: root.and_then(|root| root.shape.clone()),
        parameter_names,
    };
    Computation { name: name.into(), instructions, program_shape: Some(program_shape), id, root_id }
}

/// A shape in row-major order.
pub(crate) fn shape(element: ElementType, dims: &[i64]) -> Shape {
    Shape {
        element_type: element.into(),
        dimensions: dims.to_vec(),
        tuple_shapes: vec![],
        layout: Some(Layout { minor_to_major: (0..dims.len() as i64).rev().collect() }),
        is_dynamic_dimension: vec![false; dims.len()],
    }
}

fn with_rows(x: &Value, rows: i64) -> Vec<i64> {
    let mut dims = x.dims.clone();
    dims[0] = rows;
    dims
}
