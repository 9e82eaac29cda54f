use std::{ffi::CString, fmt, sync::Arc, thread, time::Duration};

use samebits_hlo::{Argument, Binding, Device, DeviceError, Interface, Options, Program};
use samebits_tensor::HostTensor;

use crate::{
    Compiler, NeffCache, NeuronError, Runtime,
    abi::{NAME_BYTES, Status},
    cores::Core,
    runtime::{ModelHandle, TensorHandle, TensorInfo, TensorSet},
};

/// One NeuronCore, for modules of [`samebits_hlo`].
pub struct NeuronDevice {
    core: Arc<Core>,
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

/// A program that is loaded on a core.
pub struct Executable {
    core: Arc<Core>,
    interface: Interface,
    module: String,
    bound: Arc<Bound>,
}

/// A loaded program, and the tensors that it binds: their places in the interface, and their names.
struct Bound {
    model: ModelHandle,
    inputs: Vec<(usize, CString)>,
    outputs: Vec<(usize, CString)>,
}

impl NeuronDevice {
    /// The core of this index among those that are visible.
    ///
    /// # Errors
    /// If there is no such core.
    pub fn open(runtime: Runtime, index: u32, compiler: Compiler) -> Result<Self, NeuronError> {
        let core = Core::open(runtime, index)?;
        Ok(NeuronDevice { core, compiler, cache: None, name: format!("neuron:{index}") })
    }

    /// The device, which looks for compiled modules in `cache`.
    pub fn with_cache(self, cache: NeffCache) -> Self {
        NeuronDevice { cache: Some(cache), ..self }
    }

    fn failed(&self, op: String, error: &NeuronError) -> DeviceError {
        let (device, detail) = (self.name.clone(), error.to_string());
        let retriable = error.status().is_some_and(Status::is_passing);
        match self.core.lost() {
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
        let neff = self.neff(program)?;
        let (core, index) = (self.core.clone(), self.core.index);
        let (model, infos) = core.call(move |runtime| {
            let model = runtime.load(&neff, index)?;
            // SAFETY: the program was just loaded.
            let infos = unsafe { runtime.tensor_infos(model) };
            if infos.is_err() {
                // SAFETY: as above; nobody else has it.
                let _ = unsafe { runtime.unload(model) };
            }
            Ok((model, infos?))
        })?;
        // From here on the program is unloaded if anything fails.
        let module = program.module.name.clone();
        let bound = Arc::new(Bound { model, inputs: Vec::new(), outputs: Vec::new() });
        let loaded = Executable { core, interface, module, bound };
        let inputs = bindings(&loaded, &loaded.interface.inputs, &infos, false)?;
        let outputs = bindings(&loaded, &loaded.interface.outputs, &infos, true)?;
        Ok(loaded.binding(inputs, outputs))
    }

    fn place(&self, value: HostTensor) -> Result<Tensor, NeuronError> {
        let tensor = self.allocate(value.bytes().len())?;
        if let Some(handle) = tensor.handle {
            // SAFETY: the tensor is kept until the call has returned.
            self.core.call(move |runtime| unsafe { runtime.write(handle, value.bytes()) })?;
        }
        Ok(tensor)
    }

    fn allocate(&self, bytes: usize) -> Result<Tensor, NeuronError> {
        let handle = (bytes > 0).then(|| self.core.allocate(bytes)).transpose()?;
        Ok(Tensor { core: self.core.clone(), handle, bytes })
    }

    fn copy(&self, tensor: &Tensor) -> Result<Tensor, NeuronError> {
        let copy = self.allocate(tensor.bytes)?;
        if let (Some(from), Some(to)) = (tensor.handle, copy.handle) {
            let mut bytes = vec![0; tensor.bytes];
            // SAFETY: both tensors are kept until the call has returned.
            self.core.call(move |runtime| unsafe {
                runtime.read(from, &mut bytes)?;
                runtime.write(to, &bytes)
            })?;
        }
        Ok(copy)
    }

    fn fetch(&self, tensor: &Tensor, out: &mut [u8]) -> Result<(), NeuronError> {
        if out.len() != tensor.bytes {
            let what = format!("{} bytes for a tensor of {}", out.len(), tensor.bytes);
            return Err(NeuronError::Argument { index: 0, what });
        }
        let Some(handle) = tensor.handle else { return Ok(()) };
        let mut bytes = vec![0; tensor.bytes];
        let bytes = self.core.call(move |runtime| {
            // SAFETY: the tensor is kept until the call has returned.
            unsafe { runtime.read(handle, &mut bytes) }.map(|()| bytes)
        })?;
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn execute(
        &self,
        executable: &Executable,
        arguments: Vec<Argument<'_, Tensor>>,
    ) -> Result<Vec<Tensor>, NeuronError> {
        let interface = &executable.interface;
        let mut inputs = handles(interface, &arguments)?;
        let fresh = self.outputs(interface, &arguments, &mut inputs)?;
        let outputs: Vec<_> = fresh
            .iter()
            .enumerate()
            .map(|(output, fresh)| match fresh {
                Some(tensor) => tensor.handle,
                None => interface.aliased(output).and_then(|input| inputs[input]),
            })
            .collect();
        let done = match executable.run(inputs, outputs) {
            Err(error) if !error.spoils_outputs() => return Err(error),
            done => done,
        };
        // From here on the given tensors are taken: an execution that failed has left in them who knows what.
        let mut given: Vec<_> = arguments.into_iter().map(taken).collect();
        done?;
        let owned = |(output, fresh): (usize, Option<Tensor>)| {
            fresh.or_else(|| given[interface.aliased(output)?].take())
        };
        Ok(fresh.into_iter().enumerate().filter_map(owned).collect())
    }

    /// Memory for outputs that take over none. An input that an output must share, but that has to stay, is copied first.
    fn outputs(
        &self,
        interface: &Interface,
        arguments: &[Argument<'_, Tensor>],
        inputs: &mut [Option<TensorHandle>],
    ) -> Result<Vec<Option<Tensor>>, NeuronError> {
        let mut fresh = Vec::with_capacity(interface.outputs.len());
        for (output, binding) in interface.outputs.iter().enumerate() {
            let input = interface.aliased(output);
            fresh.push(match input.map(|input| (input, &arguments[input])) {
                Some((_, Argument::Given(_))) => None,
                Some((input, Argument::Kept(tensor))) => {
                    let copy = self.copy(tensor)?;
                    inputs[input] = copy.handle;
                    Some(copy)
                }
                None => Some(self.allocate(binding.bytes())?),
            });
        }
        Ok(fresh)
    }
}

impl Device for NeuronDevice {
    type Buffer = Tensor;
    type Executable = Executable;

    fn name(&self) -> &str {
        &self.name
    }

    fn options(&self, module: String) -> Options {
        Options::neuron(module)
    }

    fn memory_bytes(&self) -> Option<u64> {
        let index = self.core.index;
        let stats = self.core.call(move |runtime| runtime.memory(index));
        stats.ok().map(|stats| stats.bytes_limit)
    }

    fn compile(&self, program: &Program) -> Result<Executable, DeviceError> {
        self.load(program).map_err(|error| self.failed(format!("compile {}", program.module.name), &error))
    }

    fn upload(&self, _rank: usize, value: &HostTensor) -> Result<Tensor, DeviceError> {
        let op = || format!("upload {} {}", value.dtype(), value.shape());
        self.place(value.clone()).map_err(|error| self.failed(op(), &error))
    }

    fn run(
        &self,
        executable: &Executable,
        arguments: Vec<Vec<Argument<'_, Tensor>>>,
    ) -> Result<Vec<Vec<Tensor>>, DeviceError> {
        let op = || format!("run {}", executable.module);
        let outputs = arguments.into_iter().map(|arguments| self.execute(executable, arguments));
        outputs.collect::<Result<_, _>>().map_err(|error| self.failed(op(), &error))
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

    fn binding(mut self, inputs: Vec<(usize, CString)>, outputs: Vec<(usize, CString)>) -> Self {
        let model = self.bound.model;
        self.bound = Arc::new(Bound { model, inputs, outputs });
        self
    }

    /// Runs it to its end on tensors by their places in the interface.
    fn run(
        &self,
        inputs: Vec<Option<TensorHandle>>,
        outputs: Vec<Option<TensorHandle>>,
    ) -> Result<(), NeuronError> {
        let bound = self.bound.clone();
        self.core.call(move |runtime| {
            // SAFETY: the program and the tensors are kept until the call has returned.
            unsafe {
                let inputs = TensorSet::new(runtime, named(&bound.inputs, &inputs))?;
                let outputs = TensorSet::new(runtime, named(&bound.outputs, &outputs))?;
                patiently(|| runtime.execute(bound.model, &inputs, &outputs))
            }
        })
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        let model = self.bound.model;
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
    loaded: &Executable,
    side: &[Binding],
    infos: &[TensorInfo],
    is_output: bool,
) -> Result<Vec<(usize, CString)>, NeuronError> {
    let wrong = |tensor: &str, what: String| NeuronError::Tensor {
        module: loaded.module.clone(),
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
        debug.field("name", &self.name).field("runtime", &self.core.runtime).field("cache", &self.cache);
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
        write!(f, "Executable({} on core {})", self.module, self.core.index)
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
