use std::collections::HashSet;

use samebits_tensor::{DType, Shape};

use crate::proto::{self, ElementType, HloModule, Instruction};

/// The tensors of a module that was lowered for neuronx-cc, by the names that the Neuron runtime binds them by.
#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    /// One for each parameter, in order.
    pub inputs: Vec<Binding>,
    /// One for each value of the result's tuple, in order.
    pub outputs: Vec<Binding>,
    /// Places of outputs, and of the inputs whose memory they are in.
    pub aliases: Vec<(usize, usize)>,
}

/// A tensor that is bound by its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    /// The name.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Its type.
    pub dtype: DType,
}

/// A module whose tensors cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("module {module}: {what}; lower it with `Options::neuron`")]
pub struct InterfaceError {
    /// Name of the module.
    pub module: String,
    /// What is missing.
    pub what: String,
}

impl Binding {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }
}

impl Interface {
    /// What a module takes and returns.
    ///
    /// # Errors
    /// If it has no entry, a tensor has no name of its own or no known type, or an alias is between tensors that are not there.
    pub fn of(module: &HloModule) -> Result<Self, InterfaceError> {
        read(module).map_err(|what| InterfaceError { module: module.name.clone(), what })
    }

    /// The input whose memory an output is in.
    pub fn aliased(&self, output: usize) -> Option<usize> {
        self.aliases.iter().find(|(from, _)| *from == output).map(|&(_, input)| input)
    }
}

fn read(module: &HloModule) -> Result<Interface, String> {
    let entry = module.computations.iter().find(|it| it.id == module.entry_computation_id);
    let entry = entry.ok_or("no entry computation")?;
    let mut parameters: Vec<_> = entry.instructions.iter().filter(|it| it.opcode == "parameter").collect();
    parameters.sort_by_key(|it| it.parameter_number);
    let inputs: Vec<_> = parameters.into_iter().map(input).collect::<Result<_, _>>()?;
    let root = entry.instructions.iter().find(|it| it.id == entry.root_id).ok_or("no root")?;
    let outputs = outputs(root)?;
    distinct(&inputs)?;
    distinct(&outputs)?;
    let aliases = aliases(module, &inputs, &outputs)?;
    Ok(Interface { inputs, outputs, aliases })
}

fn input(it: &Instruction) -> Result<Binding, String> {
    let name = attribute(it, "neff_input_names")?.to_owned();
    binding(name, it.shape.as_ref().ok_or_else(|| format!("{}: no shape", it.name))?)
}

fn outputs(root: &Instruction) -> Result<Vec<Binding>, String> {
    let names: Vec<&str> = attribute(root, "neff_output_names")?.split(',').collect();
    let shapes = root.shape.as_ref().map_or(&[][..], |shape| &shape.tuple_shapes);
    if names.len() != shapes.len() {
        return Err(format!("{} names for {} outputs", names.len(), shapes.len()));
    }
    names.into_iter().zip(shapes).map(|(name, shape)| binding(name.into(), shape)).collect()
}

fn attribute<'a>(it: &'a Instruction, key: &str) -> Result<&'a str, String> {
    let found = it.frontend_attributes.as_ref().and_then(|attributes| attributes.map.get(key));
    found.map(String::as_str).ok_or_else(|| format!("{}: no {key}", it.name))
}

fn binding(name: String, shape: &proto::Shape) -> Result<Binding, String> {
    let extents: Result<Vec<usize>, _> = shape.dimensions.iter().map(|&extent| extent.try_into()).collect();
    let extents = extents.map_err(|_| format!("{name}: a negative extent"))?;
    let element = shape.element_type();
    let dtype = dtype(element).ok_or_else(|| format!("{name}: elements of type {}", element.name()))?;
    let bytes = extents.iter().try_fold(dtype.size(), |all, &extent| all.checked_mul(extent));
    bytes.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or_else(|| format!("{name}: too large"))?;
    Ok(Binding { name, shape: extents.into(), dtype })
}

fn dtype(element: ElementType) -> Option<DType> {
    DType::ALL.into_iter().find(|&dtype| crate::lower::element(dtype) == element)
}

fn distinct(bindings: &[Binding]) -> Result<(), String> {
    let mut names = HashSet::new();
    let twice = bindings.iter().find(|it| it.name.is_empty() || !names.insert(it.name.as_str()));
    twice.map_or(Ok(()), |it| Err(format!("{:?} is not the name of one tensor alone", it.name)))
}

fn aliases(
    module: &HloModule,
    inputs: &[Binding],
    outputs: &[Binding],
) -> Result<Vec<(usize, usize)>, String> {
    let entries = module.input_output_alias.iter().flat_map(|alias| &alias.entries);
    let alias = |entry: &proto::AliasEntry| {
        let output = entry.output_shape_index.first().and_then(|&index| usize::try_from(index).ok());
        let places = (output?, usize::try_from(entry.parameter_number).ok()?);
        let bytes = (outputs.get(places.0)?.bytes(), inputs.get(places.1)?.bytes());
        (bytes.0 == bytes.1).then_some(places)
    };
    let aliases: Option<Vec<(usize, usize)>> = entries.map(alias).collect();
    let aliases = aliases.ok_or("an alias between tensors that do not fit")?;
    let mut inputs = HashSet::new();
    let twice = aliases.iter().find(|(_, input)| !inputs.insert(*input));
    twice.map_or(Ok(()), |(_, input)| Err(format!("two outputs in the memory of input {input}")))?;
    Ok(aliases)
}

#[cfg(test)]
mod tests {
    use samebits_graph::Trace;

    use super::*;
    use crate::{Options, lower};

    fn module(options: &Options) -> HloModule {
        let trace = Trace::new();
        let x = trace.input("x", [2, 3], DType::F32).unwrap();
        let y = x.mul(&x).unwrap();
        lower(&trace.graph(&[&x], &[("y", &y)]).unwrap(), options).module
    }

    #[test]
    fn tensors_have_names_shapes_and_types() {
        let interface = Interface::of(&module(&Options::neuron("m"))).unwrap();
        let names: Vec<_> = interface.inputs.iter().map(|it| (it.name.as_str(), it.bytes())).collect();
        assert_eq!(names, [("x", 24), ("zero", 4)]);
        let y = Binding { name: "y".into(), shape: [2, 3].into(), dtype: DType::F32 };
        assert_eq!(interface.outputs, [y]);
        assert_eq!(interface.aliased(0), None);
    }

    #[test]
    fn a_module_without_names_is_refused() {
        let error = Interface::of(&module(&Options::new("plain"))).unwrap_err();
        assert!(error.to_string().contains("neff_input_names"), "{error}");
        let mut twice = module(&Options::neuron("m"));
        for it in &mut twice.computations.last_mut().unwrap().instructions {
            if it.opcode == "parameter" {
                let name = ("neff_input_names".into(), "same".into());
                it.frontend_attributes = Some(proto::FrontendAttributes { map: [name].into() });
            }
        }
        assert!(Interface::of(&twice).unwrap_err().what.contains("same"));
    }
}
