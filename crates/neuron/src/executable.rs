use std::{ffi::CString, fmt, sync::Arc, thread, time::Duration};

use samebits_hlo::{Argument, Binding, Interface};
use samebits_tensor::Rank;

use crate::{
    NeuronError, Runtime, Tensor,
    abi::{NAME_BYTES, Status},
    cores::Core,
    runtime::{ModelHandle, TensorHandle, TensorInfo, TensorSet},
};

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

impl Executable {
    /// Tensors that it takes and returns.
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// The module's name.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Loads a program on all cores at once, as ranks.
    pub(crate) fn load(
        cores: &[Arc<Core>],
        module: String,
        interface: Interface,
        neff: Arc<[u8]>,
    ) -> Result<Self, NeuronError> {
        let count = cores.len();
        let jobs = cores.iter().enumerate().map(|(index, core)| {
            let (neff, on) = (neff.clone(), core.index);
            (core.clone(), move |runtime| load(runtime, &neff, on, Rank { index, count }))
        });
        let done = Core::call_all(jobs);
        // From here on what is loaded is unloaded if anything fails.
        let loaded = done.into_iter().zip(cores).map(|(done, core)| {
            let (model, infos) = done?;
            Ok((Loaded { core: core.clone(), model }, infos))
        });
        let loaded: Vec<Result<_, NeuronError>> = loaded.collect();
        let (loaded, infos): (Vec<_>, Vec<_>) =
            loaded.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let names = Names {
            inputs: bindings(&module, &interface.inputs, &infos[0], false)?,
            outputs: bindings(&module, &interface.outputs, &infos[0], true)?,
        };
        Ok(Executable { interface, module, loaded, names: Arc::new(names) })
    }

    /// Runs it to its end, with the arguments of each rank. Given ones stay where nothing was started.
    pub(crate) fn run(
        &self,
        arguments: Vec<Vec<Argument<'_, Tensor>>>,
    ) -> Result<Vec<Vec<Tensor>>, NeuronError> {
        let (interface, ranks) = (&self.interface, self.loaded.len());
        if arguments.len() != ranks {
            let what = format!("arguments of {} ranks, and there are {ranks}", arguments.len());
            return Err(NeuronError::Argument { index: 0, what });
        }
        let prepared = self.loaded.iter().zip(&arguments);
        let prepared = prepared.map(|(on, arguments)| Prepared::new(&on.core, interface, arguments));
        let prepared: Vec<Prepared> = prepared.collect::<Result<_, _>>()?;
        let done = self.start(&prepared);
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

    /// Runs it on all cores at once, and waits for all.
    fn start(&self, ranks: &[Prepared]) -> Vec<Result<(), NeuronError>> {
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

impl Drop for Loaded {
    fn drop(&mut self) {
        let model = self.model;
        // SAFETY: the program is loaded, and every run of it has ended. A failure leaves nothing to do.
        self.core.later(move |runtime| drop(unsafe { runtime.unload(model) }));
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
