use std::{ffi::CString, fmt, ops::Range, sync::Arc, thread, time::Duration};

use samebits_hlo::{Argument, Binding, Device, DeviceError, Interface, Options, Program, Target};
use samebits_tensor::{HostTensor, Rank};

use crate::{
    Compiler, NeffCache, NeuronError, Runtime,
    abi::{NAME_BYTES, Status},
    cores::Core,
    host::cores_per_logical_core,
    runtime::{ModelHandle, TensorHandle, TensorInfo, TensorSet},
};

/// A NeuronCore, or several that run each module together, for modules of [`samebits_hlo`].
pub struct NeuronDevice {
    /// By rank.
    cores: Vec<Arc<Core>>,
    compiler: Compiler,
    cache: Option<NeffCache>,
    name: String,
}

/// A tensor in the memory of a core.
pub struct Tensor {
    core: Arc<Core>,
    /// A tensor without bytes has no memory.
    handle: Option<TensorHandle>,
    bytes: usize,
}

/// A program that is loaded on the cores of a device.
pub struct Executable {
    interface: Interface,
    module: String,
    /// By rank.
    loaded: Vec<Loaded>,
    names: Arc<Names>,
}

/// A program on one core.
struct Loaded {
    core: Arc<Core>,
    model: ModelHandle,
}

/// The tensors that a loaded program binds: their places in the interface, and their names.
struct Names {
    inputs: Vec<(usize, CString)>,
    outputs: Vec<(usize, CString)>,
}

/// Memory for one rank's run: of each input and output, and what is new of the latter.
struct Prepared {
    inputs: Vec<Option<TensorHandle>>,
    outputs: Vec<Option<TensorHandle>>,
    fresh: Vec<Option<Tensor>>,
}

impl NeuronDevice {
    /// The core of this index among those that are visible.
    ///
    /// # Errors
    /// As [`NeuronDevice::group`].
    pub fn open(runtime: Runtime, index: u32, compiler: Compiler) -> Result<Self, NeuronError> {
        Self::group(runtime, index..index + 1, compiler)
    }

    /// The cores of these indices, as ranks.
    ///
    /// # Errors
    /// If there is none, or one of them is not there; [`NeuronError::LogicalCores`] if the compiler's target has others than the
    /// runtime makes.
    pub fn group(runtime: Runtime, cores: Range<u32>, compiler: Compiler) -> Result<Self, NeuronError> {
        let Target { chip, cores_per_logical_core: expected } = compiler.target();
        let found = cores_per_logical_core(chip)?;
        if found != expected {
            return Err(NeuronError::LogicalCores { found: found.to_string(), expected: Some(expected) });
        }
        if cores.is_empty() {
            return Err(NeuronError::Core { index: cores.start, count: 0 });
        }
        let name = match cores.len() {
            1 => format!("neuron:{}", cores.start),
            _ => format!("neuron:{}-{}", cores.start, cores.end - 1),
        };
        let cores: Vec<_> = cores.map(|index| Core::open(runtime, index)).collect::<Result<_, _>>()?;
        Ok(NeuronDevice { cores, compiler, cache: None, name })
    }

    /// The runtime.
    pub fn runtime(&self) -> Runtime {
        self.cores[0].runtime
    }

    /// The compiler.
    pub fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// The device, which looks for compiled modules in `cache`.
    pub fn with_cache(self, cache: NeffCache) -> Self {
        NeuronDevice { cache: Some(cache), ..self }
    }

    fn failed(&self, op: String, error: &NeuronError) -> DeviceError {
        let (device, detail) = (self.name.clone(), error.to_string());
        let retriable = error.status().is_some_and(Status::is_passing);
        match self.cores.iter().find_map(|core| core.lost()) {
            Some(why) => DeviceError::Lost { device, detail: why.into() },
            None => DeviceError::Failed { op, device, detail, retriable },
        }
    }

    fn neff(&self, program: &Program) -> Result<Vec<u8>, NeuronError> {
        match &self.cache {
            Some(cache) => cache.compile(&self.compiler, &program.module).map(|(neff, _)| neff),
            None => self.compiler.compile(&program.module),
        }
    }

    fn load(&self, program: &Program) -> Result<Executable, NeuronError> {
        let interface = Interface::of(&program.module)?;
        let neff: Arc<[u8]> = self.neff(program)?.into();
        let count = self.cores.len();
        let jobs = self.cores.iter().enumerate().map(|(index, core)| {
            let (neff, on) = (neff.clone(), core.index);
            (core.clone(), move |runtime| load(runtime, &neff, on, Rank { index, count }))
        });
        let done = Core::call_all(jobs);
        // From here on what is loaded is unloaded if anything fails.
        let loaded = done.into_iter().zip(&self.cores).map(|(done, core)| {
            let (model, infos) = done?;
            Ok((Loaded { core: core.clone(), model }, infos))
        });
        let loaded: Vec<Result<_, NeuronError>> = loaded.collect();
        let (loaded, infos): (Vec<_>, Vec<_>) =
            loaded.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let module = program.module.name.clone();
        let names = Names {
            inputs: bindings(&module, &interface.inputs, &infos[0], false)?,
            outputs: bindings(&module, &interface.outputs, &infos[0], true)?,
        };
        Ok(Executable { interface, module, loaded, names: Arc::new(names) })
    }

    fn fetch(&self, tensor: &Tensor, out: &mut [u8]) -> Result<(), NeuronError> {
        if out.len() != tensor.bytes {
            let what = format!("{} bytes for a tensor of {}", out.len(), tensor.bytes);
            return Err(NeuronError::Argument { index: 0, what });
        }
        let Some(handle) = tensor.handle else { return Ok(()) };
        let mut bytes = vec![0; tensor.bytes];
        let bytes = tensor.core.call(move |runtime| {
            // SAFETY: the tensor is kept until the call has returned.
            unsafe { runtime.read(handle, &mut bytes) }.map(|()| bytes)
        })?;
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn execute(
        &self,
        executable: &Executable,
        arguments: Vec<Vec<Argument<'_, Tensor>>>,
    ) -> Result<Vec<Vec<Tensor>>, NeuronError> {
        let (interface, ranks) = (&executable.interface, executable.loaded.len());
        if arguments.len() != ranks {
            let what = format!("arguments of {} ranks, and there are {ranks}", arguments.len());
            return Err(NeuronError::Argument { index: 0, what });
        }
        let prepared = executable.loaded.iter().zip(&arguments);
        let prepared = prepared.map(|(on, arguments)| Prepared::new(&on.core, interface, arguments));
        let prepared: Vec<Prepared> = prepared.collect::<Result<_, _>>()?;
        let done = executable.run(&prepared);
        let refused = |done: &Result<(), NeuronError>| done.as_ref().is_err_and(|it| !it.spoils_outputs());
        if done.iter().all(refused) {
            return cause(done).map(|()| Vec::new());
        }
        // From here on the given tensors are taken: an execution that failed has left in them who knows what.
        let given = arguments.into_iter().map(|arguments| arguments.into_iter().map(taken).collect());
        let given: Vec<Vec<_>> = given.collect();
        cause(done)?;
        Ok(prepared.into_iter().zip(given).map(|(rank, given)| rank.outputs(interface, given)).collect())
    }
}

/// Why ranks failed: a rank that waited in vain for another is not the cause.
fn cause(done: Vec<Result<(), NeuronError>>) -> Result<(), NeuronError> {
    let is_cause = |error: &NeuronError| error.status() != Some(Status::Timeout);
    let mut errors: Vec<NeuronError> = done.into_iter().filter_map(Result::err).collect();
    let first = errors.iter().position(is_cause).unwrap_or(0);
    if errors.is_empty() { Ok(()) } else { Err(errors.swap_remove(first)) }
}

/// Loads a program on a core. Returns what it says of its tensors.
fn load(
    runtime: Runtime,
    neff: &[u8],
    core: u32,
    rank: Rank,
) -> Result<(ModelHandle, Vec<TensorInfo>), NeuronError> {
    let model = match rank {
        Rank::ALONE => runtime.load(neff, core)?,
        rank => runtime.load_rank(neff, core, rank)?,
    };
    // SAFETY: the program was just loaded.
    let infos = unsafe { runtime.tensor_infos(model) };
    if infos.is_err() {
        // SAFETY: as above; nobody else has it.
        let _ = unsafe { runtime.unload(model) };
    }
    Ok((model, infos?))
}

impl Prepared {
    /// Outputs that take over no input get memory of their own. An input that an output must share, but that has to stay, is
    /// copied first.
    fn new(
        core: &Arc<Core>,
        interface: &Interface,
        arguments: &[Argument<'_, Tensor>],
    ) -> Result<Self, NeuronError> {
        let mut inputs = handles(core, interface, arguments)?;
        let mut fresh = Vec::with_capacity(interface.outputs.len());
        for (output, binding) in interface.outputs.iter().enumerate() {
            let input = interface.aliased(output);
            fresh.push(match input.map(|input| (input, &arguments[input])) {
                Some((_, Argument::Given(_))) => None,
                Some((input, Argument::Kept(tensor))) => {
                    let copy = tensor.copy()?;
                    inputs[input] = copy.handle;
                    Some(copy)
                }
                None => Some(Tensor::allocate(core, binding.bytes())?),
            });
        }
        let outputs = fresh.iter().enumerate().map(|(output, fresh)| match fresh {
            Some(tensor) => tensor.handle,
            None => interface.aliased(output).and_then(|input| inputs[input]),
        });
        Ok(Prepared { outputs: outputs.collect(), inputs, fresh })
    }

    /// The outputs after the run, some in the memory of what was given.
    fn outputs(self, interface: &Interface, mut given: Vec<Option<Tensor>>) -> Vec<Tensor> {
        let owned = |(output, fresh): (usize, Option<Tensor>)| {
            fresh.or_else(|| given[interface.aliased(output)?].take())
        };
        self.fresh.into_iter().enumerate().filter_map(owned).collect()
    }
}

impl Tensor {
    fn allocate(core: &Arc<Core>, bytes: usize) -> Result<Self, NeuronError> {
        let handle = (bytes > 0).then(|| core.allocate(bytes)).transpose()?;
        Ok(Tensor { core: core.clone(), handle, bytes })
    }

    fn place(core: &Arc<Core>, value: HostTensor) -> Result<Self, NeuronError> {
        let tensor = Tensor::allocate(core, value.bytes().len())?;
        if let Some(handle) = tensor.handle {
            // SAFETY: the tensor is kept until the call has returned.
            core.call(move |runtime| unsafe { runtime.write(handle, value.bytes()) })?;
        }
        Ok(tensor)
    }

    fn copy(&self) -> Result<Self, NeuronError> {
        let copy = Tensor::allocate(&self.core, self.bytes)?;
        if let (Some(from), Some(to)) = (self.handle, copy.handle) {
            let mut bytes = vec![0; self.bytes];
            // SAFETY: both tensors are kept until the call has returned.
            self.core.call(move |runtime| unsafe {
                runtime.read(from, &mut bytes)?;
                runtime.write(to, &bytes)
            })?;
        }
        Ok(copy)
    }
}

impl Device for NeuronDevice {
    type Buffer = Tensor;
    type Executable = Executable;

    fn name(&self) -> &str {
        &self.name
    }

    fn ranks(&self) -> usize {
        self.cores.len()
    }

    fn options(&self, module: String) -> Options {
        Options { ranks: self.ranks(), ..Options::neuron(module) }
    }

    fn memory_bytes(&self) -> Option<u64> {
        let of = |core: &Arc<Core>| {
            let index = core.index;
            Some(core.call(move |runtime| runtime.memory(index)).ok()?.bytes_limit)
        };
        self.cores.iter().map(of).sum()
    }

    fn compile(&self, program: &Program) -> Result<Executable, DeviceError> {
        self.load(program).map_err(|error| self.failed(format!("compile {}", program.module.name), &error))
    }

    fn upload(&self, rank: usize, value: &HostTensor) -> Result<Tensor, DeviceError> {
        let op = || format!("upload {} {}", value.dtype(), value.shape());
        Tensor::place(&self.cores[rank], value.clone()).map_err(|error| self.failed(op(), &error))
    }

    fn run(
        &self,
        executable: &Executable,
        arguments: Vec<Vec<Argument<'_, Tensor>>>,
    ) -> Result<Vec<Vec<Tensor>>, DeviceError> {
        let op = || format!("run {}", executable.module);
        self.execute(executable, arguments).map_err(|error| self.failed(op(), &error))
    }

    fn download(&self, buffer: &Tensor, out: &mut [u8]) -> Result<(), DeviceError> {
        self.fetch(buffer, out).map_err(|error| self.failed("download".into(), &error))
    }
}

impl Executable {
    /// Tensors that it takes and returns.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Runs it to its end on all ranks.
    fn run(&self, ranks: &[Prepared]) -> Vec<Result<(), NeuronError>> {
        let jobs = self.loaded.iter().zip(ranks).map(|(loaded, rank)| {
            let (names, model) = (self.names.clone(), loaded.model);
            let (inputs, outputs) = (rank.inputs.clone(), rank.outputs.clone());
            let job = move |runtime| {
                // SAFETY: the program and the tensors are kept until all calls have returned.
                unsafe {
                    let inputs = TensorSet::new(runtime, named(&names.inputs, &inputs))?;
                    let outputs = TensorSet::new(runtime, named(&names.outputs, &outputs))?;
                    patiently(|| runtime.execute(model, &inputs, &outputs))
                }
            };
            (loaded.core.clone(), job)
        });
        Core::call_all(jobs)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let model = self.model;
        // SAFETY: the program is loaded, and every run of it has ended. A failure leaves nothing to do.
        self.core.later(move |runtime| drop(unsafe { runtime.unload(model) }));
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            // SAFETY: the tensor is there and not used again: whatever used it has ended.
            unsafe { self.core.release(handle, self.bytes) };
        }
    }
}

/// Tries again while the core has no room for one more execution: ten times, for about 100 ms.
fn patiently(mut start: impl FnMut() -> Result<(), NeuronError>) -> Result<(), NeuronError> {
    const RETRIES: u32 = 10;
    for retry in 0..RETRIES {
        match start().map_err(|error| (error.status(), error)) {
            Err((Some(Status::QueueFull | Status::CoreBusy), _)) => {
                thread::sleep(Duration::from_micros(100 << retry));
            }
            done => return done.map_err(|(_, error)| error),
        }
    }
    start()
}

fn named<'a>(
    names: &'a [(usize, CString)],
    tensors: &'a [Option<TensorHandle>],
) -> impl Iterator<Item = (&'a CString, TensorHandle)> {
    names.iter().filter_map(|(index, name)| Some((name, tensors[*index]?)))
}

/// The arguments' memory, by the parameters.
fn handles(
    core: &Arc<Core>,
    interface: &Interface,
    arguments: &[Argument<'_, Tensor>],
) -> Result<Vec<Option<TensorHandle>>, NeuronError> {
    let (found, expected) = (arguments.len(), interface.inputs.len());
    if found != expected {
        let what = format!("{found} arguments for {expected} parameters");
        return Err(NeuronError::Argument { index: found.min(expected), what });
    }
    let check = |(index, (argument, input)): (usize, (&Argument<'_, Tensor>, &Binding))| {
        let wrong = |what| NeuronError::Argument { index, what };
        let tensor = match argument {
            Argument::Kept(tensor) => Some(*tensor),
            Argument::Given(tensor) => tensor.as_ref(),
        };
        let tensor = tensor.ok_or_else(|| wrong("it was given away before".into()))?;
        if tensor.bytes != input.bytes() {
            return Err(wrong(format!("{} bytes for {} of {}", tensor.bytes, input.name, input.bytes())));
        }
        if !Arc::ptr_eq(&tensor.core, core) {
            return Err(wrong(format!("it is on core {} and not on {}", tensor.core.index, core.index)));
        }
        Ok(tensor.handle)
    };
    arguments.iter().zip(&interface.inputs).enumerate().map(check).collect()
}

fn taken(argument: Argument<'_, Tensor>) -> Option<Tensor> {
    match argument {
        Argument::Given(tensor) => tensor.take(),
        Argument::Kept(_) => None,
    }
}

/// The tensors that a loaded program binds, of one side of its interface. The compiler may leave out inputs that nothing
/// depends on, and tensors without bytes.
fn bindings(
    module: &str,
    side: &[Binding],
    infos: &[TensorInfo],
    is_output: bool,
) -> Result<Vec<(usize, CString)>, NeuronError> {
    let wrong = |tensor: &str, what: String| NeuronError::Tensor {
        module: module.into(),
        tensor: tensor.into(),
        what,
    };
    let infos: Vec<&TensorInfo> = infos.iter().filter(|info| info.is_output == is_output).collect();
    if let Some(unknown) = infos.iter().find(|info| !side.iter().any(|binding| binding.name == info.name)) {
        return Err(wrong(&unknown.name, "the module has none of that name".into()));
    }
    let mut names = Vec::with_capacity(side.len());
    for (index, binding) in side.iter().enumerate() {
        let name = &binding.name;
        match infos.iter().find(|info| info.name == *name) {
            Some(info) if info.bytes != binding.bytes() => {
                return Err(wrong(
                    name,
                    format!("{} bytes, and {} in the module", info.bytes, binding.bytes()),
                ));
            }
            Some(_) => names.push((index, c_name(name).ok_or_else(|| wrong(name, "no name for C".into()))?)),
            None if is_output && binding.bytes() > 0 => {
                return Err(wrong(name, "the program lacks it".into()));
            }
            None => {}
        }
    }
    Ok(names)
}

fn c_name(name: &str) -> Option<CString> {
    CString::new(name).ok().filter(|name| name.as_bytes_with_nul().len() <= NAME_BYTES)
}

impl fmt::Debug for NeuronDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("NeuronDevice");
        debug.field("name", &self.name).field("runtime", &self.cores[0].runtime).field("cache", &self.cache);
        debug.finish_non_exhaustive()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} bytes on core {})", self.bytes, self.core.index)
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: Vec<u32> = self.loaded.iter().map(|loaded| loaded.core.index).collect();
        write!(f, "Executable({} on cores {cores:?})", self.module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(status: Status) -> NeuronError {
        NeuronError::Call { function: "nrt_execute", status, detail: String::new() }
    }

    #[test]
    fn a_full_queue_is_tried_again_and_nothing_else() {
        let attempts = |fails: usize, status| {
            let mut started = 0;
            let done = patiently(|| {
                started += 1;
                if started <= fails { Err(call(status)) } else { Ok(()) }
            });
            (started, done.is_ok())
        };
        assert_eq!(attempts(3, Status::QueueFull), (4, true));
        assert_eq!(attempts(1, Status::OutOfBounds), (1, false));
        assert_eq!(attempts(100, Status::QueueFull), (11, false));
    }
}
