use std::{collections::BTreeMap, ffi::c_char, sync::Arc};

use prost::Message;
use samebits_hlo::{
    Argument, Binding, Device, DeviceError, Interface,
    proto::{Computation, ElementType, HloModule, Instruction, Shape},
};
use samebits_neuron::{
    Neff,
    abi::{self, NAME_BYTES, Status, TensorInfo, USAGE_INPUT, USAGE_OUTPUT},
};
use samebits_pjrt::{Buffer, Executable, PjrtDevice};
use samebits_tensor::{DType, HostTensor};

use crate::{Done, ranks::Ranks, state::said};

/// A program that is loaded on a core.
pub(crate) struct Program {
    pub(crate) core: u32,
    pub(crate) rank: usize,
    /// Those who run it together; one alone where it is no program of ranks.
    pub(crate) ranks: Arc<Ranks>,
}

/// A program, compiled for the CPU.
pub(crate) struct Compiled {
    pub(crate) interface: Interface,
    device: PjrtDevice,
    executable: Executable,
    checks: Vec<Check>,
}

/// Indices that are an output more, and have to be at least 0 and below a limit.
struct Check {
    count: usize,
    limit: i64,
}

/// How an execution ended, if not with the outputs' bytes.
#[derive(Clone)]
pub(crate) enum Failed {
    /// An index was out of range.
    OutOfBounds(String),
    /// The plugin failed.
    Plugin(DeviceError),
    /// Other ranks did not come.
    Timeout,
}

/// What an execution left in the outputs of a rank.
pub(crate) type Outcome = Result<Vec<Vec<u8>>, Failed>;

impl Compiled {
    pub(crate) fn new(device: PjrtDevice, neff: &[u8]) -> Done<Self> {
        let neff = Neff::parse(neff).map_err(|why| said("nrt_load", &why, Status::UnsupportedNeff))?;
        let module = HloModule::decode(neff.archive);
        let mut module = module.map_err(|why| said("nrt_load", &why, Status::UnsupportedNeff))?;
        let interface = Interface::of(&module).map_err(|why| said("nrt_load", &why, Status::Invalid))?;
        let checks = return_indices(&mut module).map_err(|why| said("nrt_load", &why, Status::Failure))?;
        // Aliases are of the runtime's tensors, which are copied here.
        module.input_output_alias = None;
        let program = samebits_hlo::Program { module, parameters: Vec::new() };
        let executable = device.compile(&program).map_err(|why| said("nrt_load", &why, Status::Failure))?;
        Ok(Compiled { interface, device, executable, checks })
    }

    /// Runs it on the bytes of each input of each rank. Returns those of each output of each rank.
    pub(crate) fn run(&self, inputs: Vec<Vec<Vec<u8>>>) -> Vec<Outcome> {
        let ranks = inputs.len();
        match self.start(inputs) {
            Ok(outputs) => outputs.iter().map(|outputs| self.finish(outputs)).collect(),
            Err(error) => vec![Err(Failed::Plugin(error)); ranks],
        }
    }

    fn start(&self, inputs: Vec<Vec<Vec<u8>>>) -> Result<Vec<Vec<Buffer>>, DeviceError> {
        let of_rank = |(rank, inputs): (usize, Vec<Vec<u8>>)| {
            let upload = |(input, bytes): (&Binding, Vec<u8>)| {
                let host = HostTensor::new(input.shape.clone(), input.dtype, bytes.into());
                self.device.upload(rank, &host.expect("bytes of the input's size"))
            };
            self.interface.inputs.iter().zip(inputs).map(upload).collect()
        };
        let inputs: Vec<Vec<Buffer>> =
            inputs.into_iter().enumerate().map(of_rank).collect::<Result<_, DeviceError>>()?;
        let arguments = inputs.iter().map(|inputs| inputs.iter().map(Argument::Kept).collect()).collect();
        self.device.run(&self.executable, arguments)
    }

    fn finish(&self, outputs: &[Buffer]) -> Outcome {
        let sizes = self.interface.outputs.iter().map(Binding::bytes);
        let sizes = sizes.chain(self.checks.iter().map(|check| check.count * DType::I32.size()));
        let download = |(output, size)| {
            let mut bytes = vec![0; size];
            self.device.download(output, &mut bytes).map(|()| bytes)
        };
        let values: Result<Vec<_>, _> = outputs.iter().zip(sizes).map(download).collect();
        let mut values = values.map_err(Failed::Plugin)?;
        let indices = values.split_off(self.interface.outputs.len());
        self.checks.iter().zip(indices).try_for_each(|(check, indices)| check.all(&indices))?;
        Ok(values)
    }

    /// What it says of its tensors; those without bytes are not bound.
    pub(crate) fn infos(&self) -> Infos {
        let side = |bindings: &[Binding], usage| {
            let bound = bindings.iter().filter(|binding| binding.bytes() > 0);
            bound.map(|binding| (binding.clone(), usage)).collect::<Vec<_>>()
        };
        let inputs = side(&self.interface.inputs, USAGE_INPUT);
        Infos::new(inputs.into_iter().chain(side(&self.interface.outputs, USAGE_OUTPUT)).collect())
    }
}

impl Check {
    fn all(&self, indices: &[u8]) -> Result<(), Failed> {
        let (indices, _) = indices.as_chunks::<4>();
        let mut indices = indices.iter().map(|&index| i64::from(i32::from_le_bytes(index)));
        let outside = indices.find(|index| !(0..self.limit).contains(index));
        outside.map_or(Ok(()), |index| {
            Err(Failed::OutOfBounds(format!("index {index} where there are {}", self.limit)))
        })
    }
}

/// Makes the indices of every gather and scatter outputs of the module: XLA on CPUs clamps one that is out of range, and a
/// Neuron device stops.
fn return_indices(module: &mut HloModule) -> Result<Vec<Check>, String> {
    let entry_id = module.entry_computation_id;
    let looks_up = |it: &Instruction| matches!(it.opcode.as_str(), "gather" | "scatter");
    let elsewhere = module.computations.iter().filter(|it| it.id != entry_id);
    if let Some(it) = elsewhere.flat_map(|it| &it.instructions).find(|it| looks_up(it)) {
        return Err(format!("{}: the indices of a called computation cannot be checked", it.name));
    }
    let entry = module.computations.iter_mut().find(|it| it.id == entry_id).ok_or("no entry")?;
    let mut limits: BTreeMap<i64, (Shape, i64)> = BTreeMap::new();
    for it in entry.instructions.iter().filter(|it| looks_up(it)) {
        let (indices, shape, limit) = limit(entry, it)
            .ok_or_else(|| format!("{}: only indices of one axis, in 32 bits, can be checked", it.name))?;
        let known = limits.entry(indices).or_insert((shape, limit));
        known.1 = known.1.min(limit);
    }
    let result = add_outputs(entry, &limits).ok_or("the root is no tuple")?;
    if let Some(host) = &mut module.host_program_shape {
        host.result = Some(result);
    }
    let count = |shape: &Shape| shape.dimensions.iter().product::<i64>() as usize;
    Ok(limits.values().map(|(shape, limit)| Check { count: count(shape), limit: *limit }).collect())
}

/// The indices of a gather or scatter, their shape, and the first index that is out of range.
fn limit(entry: &Computation, it: &Instruction) -> Option<(i64, Shape, i64)> {
    let shape = |operand: usize| {
        let id = it.operand_ids.get(operand)?;
        entry.instructions.iter().find(|it| it.id == *id)?.shape.clone()
    };
    let (operand, indices) = (shape(0)?, shape(1)?);
    let (axes, vector_dim) = match (&it.gather_dimension_numbers, &it.scatter_dimension_numbers) {
        (Some(dims), None) => (&dims.start_index_map, dims.index_vector_dim),
        (None, Some(dims)) => (&dims.scatter_dims_to_operand_dims, dims.index_vector_dim),
        _ => return None,
    };
    let &[axis] = &axes[..] else { return None };
    if vector_dim != indices.dimensions.len() as i64 || indices.element_type() != ElementType::S32 {
        return None;
    }
    let axis = usize::try_from(axis).ok()?;
    // The rows of a scatter are one wide where the axis is not one of the window's.
    let window = it.scatter_dimension_numbers.as_ref();
    if window.is_some_and(|dims| !dims.inserted_window_dims.contains(&(axis as i64))) {
        return None;
    }
    let slice = if window.is_some() { 1 } else { *it.gather_slice_sizes.get(axis)? };
    Some((it.operand_ids[1], indices, operand.dimensions.get(axis)? - slice + 1))
}

/// Returns values of the entry besides its outputs. Returns the new shape of the result.
fn add_outputs(entry: &mut Computation, values: &BTreeMap<i64, (Shape, i64)>) -> Option<Shape> {
    let root_id = entry.root_id;
    let root = entry.instructions.iter_mut().find(|it| it.id == root_id && it.opcode == "tuple")?;
    root.operand_ids.extend(values.keys());
    let result = root.shape.as_mut()?;
    result.tuple_shapes.extend(values.values().map(|(shape, _)| shape.clone()));
    let result = result.clone();
    if let Some(shape) = &mut entry.program_shape {
        shape.result = Some(result.clone());
    }
    Some(result)
}

/// A `nrt_tensor_info_array_t`, in words, and the extents that it points to.
pub(crate) struct Infos {
    words: Vec<u64>,
    _extents: Vec<Vec<u32>>,
}

const INFO_WORDS: usize = size_of::<TensorInfo>() / size_of::<u64>();

impl Infos {
    fn new(tensors: Vec<(Binding, i32)>) -> Self {
        let mut words = vec![0u64; 1 + tensors.len() * INFO_WORDS];
        words[0] = tensors.len() as u64;
        let extents = |binding: &Binding| binding.shape.iter().map(|&extent| extent as u32).collect();
        let mut all: Vec<Vec<u32>> = tensors.iter().map(|(binding, _)| extents(binding)).collect();
        for (i, ((binding, usage), extents)) in tensors.iter().zip(&mut all).enumerate() {
            let info = TensorInfo {
                name: name(&binding.name),
                usage: *usage,
                size: binding.bytes(),
                dtype: dtype(binding.dtype),
                shape: extents.as_mut_ptr(),
                rank: extents.len() as u32,
            };
            let place = words[1 + i * INFO_WORDS..][..INFO_WORDS].as_mut_ptr().cast::<TensorInfo>();
            // SAFETY: the words are as large as the structure, and aligned as it has to be.
            unsafe { place.write(info) };
        }
        Infos { words, _extents: all }
    }

    pub(crate) fn address(&self) -> *mut abi::TensorInfos {
        self.words.as_ptr().cast_mut().cast()
    }
}

/// A name with its end, cut if it is too long.
fn name(text: &str) -> [c_char; NAME_BYTES] {
    let mut name = [0; NAME_BYTES];
    let bytes = text.bytes().take(NAME_BYTES - 1);
    name.iter_mut().zip(bytes).for_each(|(char, byte)| *char = byte as c_char);
    name
}

/// As `nrt_dtype_t` has it.
fn dtype(dtype: DType) -> i32 {
    match dtype {
        DType::I8 => 2,
        DType::U8 | DType::Bool => 3,
        DType::BF16 => 6,
        DType::F16 => 7,
        DType::I32 => 8,
        DType::F32 => 10,
    }
}
