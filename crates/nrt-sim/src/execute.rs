use std::{collections::HashMap, sync::Arc};

use samebits_hlo::Binding;
use samebits_neuron::abi::{self, Status};

use crate::{
    Done,
    program::{Failed, Program},
    state::{State, Tensor, number, said},
    status, with,
};

/// Runs a program to its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nrt_execute(
    model: *mut abi::Model,
    inputs: *const abi::TensorSet,
    outputs: *mut abi::TensorSet,
) -> i32 {
    status(|| {
        let (model, inputs, outputs) = (number(model), number(inputs), number(outputs));
        let run = with(|state| Run::start(state, model, inputs, outputs))?;
        let done = run.run();
        with(|state| run.end(state));
        done
    })
}

/// An execution, with its tensors in the order of the program.
struct Run {
    program: Arc<Program>,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Option<Tensor>>,
}

impl Run {
    fn start(state: &mut State, model: usize, inputs: usize, outputs: usize) -> Done<Self> {
        let program = state.model(model)?;
        state.check_core(program.core)?;
        let (inputs, outputs) = (state.set(inputs)?, state.set(outputs)?);
        check_shared(state, &program, &inputs, &outputs)?;
        let core = program.core;
        let run = Run {
            inputs: bind(state, &program.ranks.compiled.interface.inputs, &inputs, core)?,
            outputs: bind(state, &program.ranks.compiled.interface.outputs, &outputs, core)?,
            program,
        };
        run.fail_as_planned(state)?;
        let running = state.running.entry(core).or_default();
        if *running >= state.queue_depth {
            return Err(Status::QueueFull);
        }
        *running += 1;
        Ok(run)
    }

    /// A planned status that is no refusal leaves the outputs spoiled, and may end the core.
    fn fail_as_planned(&self, state: &mut State) -> Done {
        let Err(status) = state.enter("nrt_execute") else { return Ok(()) };
        if !status.is_refusal() {
            self.spoil();
        }
        if status == Status::Unrecoverable {
            state.dead.insert(self.program.core);
        }
        Err(status)
    }

    fn run(&self) -> Done {
        let inputs = self.inputs.iter().map(|tensor| tensor.as_ref().map(Tensor::read).unwrap_or_default());
        match self.program.ranks.run(self.program.rank, inputs.collect()) {
            Ok(values) => {
                let bound = self.outputs.iter().zip(values);
                bound
                    .filter_map(|(tensor, bytes)| Some((tensor.as_ref()?, bytes)))
                    .for_each(|(tensor, bytes)| tensor.write(0, &bytes));
                Ok(())
            }
            Err(Failed::OutOfBounds(why)) => {
                self.spoil();
                Err(said("nrt_execute", &why, Status::OutOfBounds))
            }
            Err(Failed::Plugin(why)) => {
                self.spoil();
                Err(said("nrt_execute", &why, Status::Failure))
            }
            Err(Failed::Timeout) => {
                self.spoil();
                Err(said("nrt_execute", &"the other ranks did not come", Status::Timeout))
            }
        }
    }

    fn spoil(&self) {
        self.outputs.iter().flatten().for_each(Tensor::spoil);
    }

    fn end(&self, state: &mut State) {
        if let Some(running) = state.running.get_mut(&self.program.core) {
            *running -= 1;
        }
    }
}

/// The tensors of one side of a program's interface, each of its size and on its core; nothing for those without bytes.
fn bind(
    state: &mut State,
    side: &[Binding],
    set: &HashMap<String, usize>,
    core: u32,
) -> Done<Vec<Option<Tensor>>> {
    let mut tensors = Vec::with_capacity(side.len());
    for binding in side {
        let Some(&number) = set.get(&binding.name) else {
            if binding.bytes() > 0 {
                return Err(state.misuse(&format!("{} is not bound", binding.name), Status::Invalid));
            }
            tensors.push(None);
            continue;
        };
        let tensor = state.tensor(number)?;
        if tensor.bytes != binding.bytes() || tensor.core != core {
            return Err(
                state.misuse(&format!("{} is bound to another size or core", binding.name), Status::Invalid)
            );
        }
        tensors.push(Some(tensor));
    }
    match set.keys().find(|name| !side.iter().any(|binding| binding.name == **name)) {
        Some(unknown) => Err(state.misuse(&format!("the program has no {unknown}"), Status::Invalid)),
        None => Ok(tensors),
    }
}

/// An output that shares an input's memory is bound to the same tensor, and no other tensor is bound twice.
fn check_shared(
    state: &mut State,
    program: &Program,
    inputs: &HashMap<String, usize>,
    outputs: &HashMap<String, usize>,
) -> Done {
    let interface = &program.ranks.compiled.interface;
    let mut seen: HashMap<usize, &str> = HashMap::new();
    for (place, output) in interface.outputs.iter().enumerate() {
        let Some(&bound) = outputs.get(&output.name) else { continue };
        let shared = interface.aliased(place).map(|input| &interface.inputs[input].name);
        let other = inputs.iter().find(|(name, number)| **number == bound && Some(*name) != shared);
        let lacks = shared.is_some_and(|name| inputs.get(name) != Some(&bound));
        if lacks || other.is_some() || seen.insert(bound, &output.name).is_some() {
            let what = format!("{} is bound to the memory of another tensor", output.name);
            return Err(state.misuse(&what, Status::Invalid));
        }
    }
    Ok(())
}
