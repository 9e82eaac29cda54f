//! Modules as HLO text, which XLA's tools read.

use std::{collections::HashMap, fmt};

use crate::proto::{Computation, ElementType, HloModule, Instruction, Literal, Shape};

impl fmt::Display for HloModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HloModule {}", identifier(&self.name))?;
        if let Some(alias) = &self.input_output_alias {
            let entries = alias.entries.iter().map(|entry| {
                let kind = if entry.kind == 2 { "must-alias" } else { "may-alias" };
                let output = list(&entry.output_shape_index);
                format!("{output}: ({}, {{}}, {kind})", entry.parameter_number)
            });
            write!(f, ", input_output_alias={{ {} }}", entries.collect::<Vec<_>>().join(", "))?;
        }
        writeln!(f)?;
        let names: HashMap<i64, &str> =
            self.computations.iter().map(|it| (it.id, it.name.as_str())).collect();
        for computation in &self.computations {
            let entry = if computation.id == self.entry_computation_id { "ENTRY " } else { "" };
            writeln!(f, "\n{entry}%{} {{", computation.name)?;
            write_computation(f, computation, &names)?;
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

fn write_computation(
    f: &mut fmt::Formatter<'_>,
    computation: &Computation,
    computations: &HashMap<i64, &str>,
) -> fmt::Result {
    let names: HashMap<i64, &str> =
        computation.instructions.iter().map(|it| (it.id, it.name.as_str())).collect();
    for it in &computation.instructions {
        let root = if it.id == computation.root_id { "ROOT " } else { "" };
        let shape = it.shape.as_ref().map(Shape::to_string).unwrap_or_default();
        write!(f, "  {root}%{} = {shape} {}({})", it.name, it.opcode, arguments(it, &names))?;
        for (name, value) in attributes(it, computations) {
            write!(f, ", {name}={value}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn arguments(it: &Instruction, names: &HashMap<i64, &str>) -> String {
    match (it.opcode.as_str(), &it.literal) {
        ("parameter", _) => it.parameter_number.to_string(),
        ("constant", Some(literal)) => literal.to_string(),
        _ => {
            let operands = it.operand_ids.iter();
            let operands = operands.map(|id| format!("%{}", names.get(id).copied().unwrap_or("?")));
            operands.collect::<Vec<_>>().join(", ")
        }
    }
}

fn attributes(it: &Instruction, computations: &HashMap<i64, &str>) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    match it.opcode.as_str() {
        "iota" => all.push(("iota_dimension", it.dimensions[0].to_string())),
        "all-gather" | "broadcast" | "concatenate" | "reduce" | "transpose" => {
            all.push(("dimensions", list(&it.dimensions)))
        }
        "compare" => all.push(("direction", it.comparison_direction.clone())),
        "custom-call" => all.push(("custom_call_target", format!("{:?}", it.custom_call_target))),
        _ => {}
    }
    if !it.slice_dimensions.is_empty() {
        let ranges = it.slice_dimensions.iter().map(|range| format!("[{}:{}]", range.start, range.limit));
        all.push(("slice", format!("{{{}}}", ranges.collect::<Vec<_>>().join(", "))));
    }
    if let Some(dims) = &it.dot_dimension_numbers {
        all.push(("lhs_batch_dims", list(&dims.lhs_batch)));
        all.push(("lhs_contracting_dims", list(&dims.lhs_contracting)));
        all.push(("rhs_batch_dims", list(&dims.rhs_batch)));
        all.push(("rhs_contracting_dims", list(&dims.rhs_contracting)));
    }
    if let Some(dims) = &it.gather_dimension_numbers {
        all.push(("offset_dims", list(&dims.offset_dims)));
        all.push(("collapsed_slice_dims", list(&dims.collapsed_slice_dims)));
        all.push(("start_index_map", list(&dims.start_index_map)));
        all.push(("index_vector_dim", dims.index_vector_dim.to_string()));
        all.push(("slice_sizes", list(&it.gather_slice_sizes)));
    }
    if let Some(dims) = &it.scatter_dimension_numbers {
        all.push(("update_window_dims", list(&dims.update_window_dims)));
        all.push(("inserted_window_dims", list(&dims.inserted_window_dims)));
        all.push(("scatter_dims_to_operand_dims", list(&dims.scatter_dims_to_operand_dims)));
        all.push(("index_vector_dim", dims.index_vector_dim.to_string()));
    }
    if !it.replica_groups.is_empty() {
        let groups = it.replica_groups.iter().map(|group| list(&group.replica_ids));
        all.push(("replica_groups", format!("{{{}}}", groups.collect::<Vec<_>>().join(","))));
    }
    if let Some(name) = it.called_computation_ids.first().and_then(|id| computations.get(id)) {
        all.push(("to_apply", format!("%{name}")));
    }
    if let Some(metadata) = &it.metadata {
        all.push(("metadata", format!("{{op_type={:?} op_name={:?}}}", metadata.op_type, metadata.op_name)));
    }
    all
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.element_type() == ElementType::Tuple {
            let shapes: Vec<_> = self.tuple_shapes.iter().map(Shape::to_string).collect();
            return write!(f, "({})", shapes.join(", "));
        }
        let extent = |(axis, extent): (usize, &i64)| {
            let dynamic = self.is_dynamic_dimension.get(axis).copied().unwrap_or(false);
            format!("{}{extent}", if dynamic { "<=" } else { "" })
        };
        let extents: Vec<_> = self.dimensions.iter().enumerate().map(extent).collect();
        write!(f, "{}[{}]", self.element_type().name(), extents.join(","))?;
        match &self.layout {
            Some(layout) if !self.dimensions.is_empty() => f.write_str(&list(&layout.minor_to_major)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let floats = self.f32s.iter().map(|value| match value {
            value if value.is_infinite() => format!("{}inf", if *value < 0.0 { "-" } else { "" }),
            value => format!("{value:?}"),
        });
        let bytes = self.s8s.iter().map(|value| value.cast_signed().to_string());
        let words = self.s32s.iter().map(i32::to_string).chain(self.s64s.iter().map(i64::to_string));
        let preds = self.preds.iter().map(bool::to_string);
        let all: Vec<String> = floats.chain(bytes).chain(words).chain(preds).collect();
        f.write_str(&all.join(", "))
    }
}

fn list(values: &[i64]) -> String {
    format!("{{{}}}", values.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
}

/// Names in HLO text have neither spaces nor commas.
fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect()
}
