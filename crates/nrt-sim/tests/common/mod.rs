//! The stand-ins, and small programs for them.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::{
    env,
    ffi::{CString, c_char},
    ops::{Deref, Range},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use libloading::Library;
use samebits_graph::{Graph, Trace};
use samebits_hlo::{Argument, Chip, Device, DeviceError, Program, Source, Target, lower};
use samebits_neuron::{Compiler, Executable, NeuronDevice, Runtime, Tensor};
use samebits_tensor::{DType, Element, HostTensor};

pub(crate) const TARGET: Target = Target { chip: Chip::Trn2, cores_per_logical_core: 2 };

/// The library, beside the tests or one folder above.
pub(crate) fn library() -> PathBuf {
    let test = env::current_exe().unwrap();
    let mut places = test.ancestors().skip(1).take(2).map(|folder| folder.join("libnrt_sim.so"));
    places.find(|path| path.is_file()).expect("libnrt_sim.so is built with these tests")
}

pub(crate) fn runtime() -> Runtime {
    Runtime::open(library()).unwrap()
}

pub(crate) fn compiler() -> Compiler {
    Compiler::open(env!("CARGO_BIN_EXE_neuronx-cc"), TARGET).unwrap()
}

pub(crate) fn device(core: u32) -> NeuronDevice {
    NeuronDevice::open(runtime(), core, compiler()).unwrap()
}

/// Cores that share each layer.
pub(crate) fn group(cores: Range<u32>) -> NeuronDevice {
    NeuronDevice::group(runtime(), cores, compiler()).unwrap()
}

/// An executable script at `path`. Another process writes it, since a program that a test starts meanwhile would inherit this
/// one's open file, and what is open for writing cannot be run.
pub(crate) fn script(path: &Path, text: &str) -> PathBuf {
    let mut writer = Command::new("sh");
    writer.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(path).arg(text);
    assert!(writer.status().unwrap().success());
    path.into()
}

/// The calls that only the stand-in has.
pub(crate) struct Sim {
    library: Library,
}

impl Sim {
    pub(crate) fn open() -> &'static Self {
        static SIM: OnceLock<Sim> = OnceLock::new();
        // SAFETY: the library of this crate; its start-up code is empty.
        SIM.get_or_init(|| Sim { library: unsafe { Library::new(library()) }.unwrap() })
    }

    /// The stand-in for one test of faults alone: they are planned for the whole process.
    pub(crate) fn alone() -> Alone {
        static ALONE: Mutex<()> = Mutex::new(());
        let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Alone { sim: Sim::open(), _guard: guard }
    }

    fn plan(&self, plan: &str) {
        let plan = CString::new(plan).unwrap();
        // SAFETY: the function has this type.
        let status = unsafe {
            let set = self.library.get::<unsafe extern "C" fn(*const c_char) -> i32>(b"nrt_sim_faults\0");
            set.unwrap()(plan.as_ptr())
        };
        assert_eq!(status, 0);
    }

    pub(crate) fn calls(&self, function: &str) -> u64 {
        let function = CString::new(function).unwrap();
        // SAFETY: the function has this type.
        unsafe {
            let calls = self.library.get::<unsafe extern "C" fn(*const c_char) -> u64>(b"nrt_sim_calls\0");
            calls.unwrap()(function.as_ptr())
        }
    }

    pub(crate) fn misuses(&self) -> u64 {
        // SAFETY: the function has this type.
        unsafe { self.library.get::<extern "C" fn() -> u64>(b"nrt_sim_misuses\0").unwrap()() }
    }

    pub(crate) fn live(&self, core: u32) -> u64 {
        // SAFETY: the function has this type.
        unsafe { self.library.get::<extern "C" fn(u32) -> u64>(b"nrt_sim_live\0").unwrap()(core) }
    }
}

/// The stand-in, in one test's hands. What is planned ends with it.
pub(crate) struct Alone {
    sim: &'static Sim,
    _guard: MutexGuard<'static, ()>,
}

impl Alone {
    /// Plans faults instead of those before; counts of calls begin anew.
    pub(crate) fn plan(&self, plan: &str) {
        self.sim.plan(plan);
    }
}

impl Deref for Alone {
    type Target = Sim;

    fn deref(&self) -> &Sim {
        self.sim
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.sim.plan("");
    }
}

pub(crate) fn program(device: &NeuronDevice, name: &str, graph: &Graph) -> Program {
    lower(graph, &device.options(name.into()))
}

/// `x [4] f32` to `x² [4]`.
pub(crate) fn square() -> Graph {
    let trace = Trace::new();
    let x = trace.input("x", [4], DType::F32).unwrap();
    let y = x.mul(&x).unwrap();
    trace.graph(&[&x], &[("y", &y)]).unwrap()
}

/// `state [8, 2] f32`, `rows [2] i32` and `values [2, 2] f32` to the state with those rows replaced, in its memory, and the
/// rows as they were before.
pub(crate) fn replace() -> Graph {
    let trace = Trace::new();
    let state = trace.input("state", [8, 2], DType::F32).unwrap();
    let rows = trace.input("rows", [2], DType::I32).unwrap();
    let values = trace.input("values", [2, 2], DType::F32).unwrap();
    let before = state.gather(&rows).unwrap();
    let mut after = state.clone();
    after.scatter(&rows, &values).unwrap();
    trace.graph(&[&state, &rows, &values], &[("state", &after), ("before", &before)]).unwrap()
}

pub(crate) fn upload<T: Element>(device: &NeuronDevice, dims: &[usize], values: &[T]) -> Tensor {
    device.upload(0, &HostTensor::of(dims, values).unwrap()).unwrap()
}

pub(crate) fn floats(device: &NeuronDevice, tensor: &Tensor, count: usize) -> Vec<f32> {
    let mut bytes = vec![0; count * 4];
    device.download(tensor, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
}

/// A program with the zero that it takes.
pub(crate) struct Ready {
    pub(crate) executable: Executable,
    zero: Option<Tensor>,
}

impl Ready {
    pub(crate) fn new(device: &NeuronDevice, name: &str, graph: &Graph) -> Self {
        let program = program(device, name, graph);
        let executable = device.compile(&program).unwrap();
        let takes_zero = program.parameters.iter().any(|parameter| parameter.source == Source::Zero);
        Ready { executable, zero: takes_zero.then(|| upload(device, &[], &[0i32])) }
    }

    /// Inputs, and the zero behind them.
    pub(crate) fn arguments<'a>(
        &'a self,
        mut inputs: Vec<Argument<'a, Tensor>>,
    ) -> Vec<Argument<'a, Tensor>> {
        inputs.extend(self.zero.as_ref().map(Argument::Kept));
        inputs
    }
}

/// Runs a program once, on inputs.
pub(crate) fn run<'a>(
    device: &NeuronDevice,
    ready: &'a Ready,
    inputs: Vec<Argument<'a, Tensor>>,
) -> Result<Vec<Tensor>, DeviceError> {
    Ok(device.run(&ready.executable, vec![ready.arguments(inputs)])?.remove(0))
}
