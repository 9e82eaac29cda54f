use std::{io, path::PathBuf};

use samebits_hlo::{InterfaceError, Refusal};

use crate::{NeffError, abi::Status};

/// What can go wrong between a program and a NeuronCore; every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum NeuronError {
    /// A library that the system could not load.
    #[error("{}: the Neuron runtime cannot be loaded: {why}; install aws-neuronx-runtime-lib, or give the path of libnrt.so.1", path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// The failure, in the loader's words.
        why: String,
    },
    /// A function that the runtime does not have.
    #[error("{}: no function {function}; install a newer Neuron runtime", path.display())]
    Missing {
        /// The library.
        path: PathBuf,
        /// Name of the C function.
        function: &'static str,
    },
    /// A runtime of another generation.
    #[error("{}: the Neuron runtime is of version {found}, and 2.x is needed; install that", path.display())]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// Stochastic rounding is asked for, which has no reproducible bits.
    #[error("NEURON_RT_STOCHASTIC_ROUNDING_EN is {value:?}; unset it or set it to 0")]
    Rounding {
        /// Its value.
        value: String,
    },
    /// A host that does not tell which chip it has.
    #[error("{}: not there, or no chip that is known; name the chip: inf2, trn1, trn2 or trn3", path.display())]
    UnknownChip {
        /// Where the driver tells it.
        path: PathBuf,
    },
    /// Logical cores that are not those that the runtime makes.
    #[error(
        "NEURON_LOGICAL_NC_CONFIG stands at {found}, and programs are for logical cores of {}; set it to the same",
        expected.map_or("a number".into(), |cores| cores.to_string())
    )]
    LogicalCores {
        /// What the runtime has.
        found: String,
        /// What programs are compiled for; nothing if that is to be found out.
        expected: Option<u32>,
    },
    /// A core that this process does not have.
    #[error("core {index}: {count} are visible; count from 0, or set NEURON_RT_VISIBLE_CORES to others")]
    Core {
        /// The core that was asked for.
        index: u32,
        /// Cores that are visible.
        count: u32,
    },
    /// The thread of a core has ended.
    #[error("core {index} has stopped; restart the process")]
    Stopped {
        /// The core.
        index: u32,
    },
    /// A core that failed for good before.
    #[error("core {index} is lost: {why}")]
    Lost {
        /// The core.
        index: u32,
        /// How it failed.
        why: String,
    },
    /// A function of the runtime that failed.
    #[error("{function}: {status} ({detail}); {}", status.advice())]
    Call {
        /// Name of the C function.
        function: &'static str,
        /// How it ended.
        status: Status,
        /// The runtime's word for it.
        detail: String,
    },
    /// A module that the compiler would refuse; it was not started.
    #[error("module {module}: neuronx-cc would refuse it: {}", told(refusals))]
    Lint {
        /// The module.
        module: String,
        /// Why; at least one.
        refusals: Vec<Refusal>,
    },
    /// A compiler that could not be started.
    #[error("{}: the compiler cannot be started: {why}; install neuronx-cc, or give its path", program.display())]
    NoCompiler {
        /// The program.
        program: PathBuf,
        /// The failure, in the system's words.
        why: io::Error,
    },
    /// A compiler that failed.
    #[error("{}: {what} failed ({status}): {output}", program.display())]
    Compiler {
        /// The program.
        program: PathBuf,
        /// What was asked for.
        what: String,
        /// How it ended.
        status: String,
        /// The last of what it wrote.
        output: String,
    },
    /// A file for or of the compiler.
    #[error("{}: {why}; check the disk and the rights to it", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The failure, in the system's words.
        why: io::Error,
    },
    /// A directory or file of the cache.
    #[error("{}: the cache of programs cannot be used: {why}; give another directory, or correct the rights to it", path.display())]
    Cache {
        /// The directory or file.
        path: PathBuf,
        /// The failure, in the system's words.
        why: io::Error,
    },
    /// A program that is not in the cache, where nothing may be compiled.
    #[error(
        "module {module} is not compiled for {target} by neuronx-cc {version} ({} is not there or damaged); \
         run `samebits compile` with the same model and limits", path.display()
    )]
    NotCompiled {
        /// The module.
        module: String,
        /// The chip.
        target: String,
        /// The compiler's version.
        version: String,
        /// The file that is missing.
        path: PathBuf,
    },
    /// What the compiler made is no NEFF.
    #[error("module {module}: {why}")]
    Neff {
        /// The module.
        module: String,
        /// What is wrong with it.
        why: NeffError,
    },
    /// A module whose tensors have no names.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// A tensor that the loaded program and its module do not agree about.
    #[error("module {module}: tensor {tensor}: {what}; compile it again")]
    Tensor {
        /// The module.
        module: String,
        /// The tensor.
        tensor: String,
        /// How they differ.
        what: String,
    },
    /// Arguments that do not fit the program; nothing was started.
    #[error("argument {index}: {what}; pass one tensor for each parameter")]
    Argument {
        /// Which one.
        index: usize,
        /// What was expected and what was found.
        what: String,
    },
}

/// The first refusals, and how many more there are.
fn told(refusals: &[Refusal]) -> String {
    const TOLD: usize = 3;
    let first: Vec<_> = refusals.iter().take(TOLD).map(ToString::to_string).collect();
    match refusals.len().saturating_sub(TOLD) {
        0 => first.join("; "),
        more => format!("{}; and {more} more", first.join("; ")),
    }
}

impl NeuronError {
    /// How a call of the runtime ended, if that is what failed.
    pub fn status(&self) -> Option<Status> {
        match self {
            NeuronError::Call { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the device is of no use afterwards.
    pub fn is_fatal(&self) -> bool {
        matches!(self, NeuronError::Stopped { .. } | NeuronError::Lost { .. })
            || self.status().is_some_and(Status::is_fatal)
    }

    /// Whether an execution that failed so may have written to its outputs.
    pub(crate) fn spoils_outputs(&self) -> bool {
        match self {
            NeuronError::Call { function, status, .. } => *function == "nrt_execute" && !status.is_refusal(),
            NeuronError::Stopped { .. } => true,
            _ => false,
        }
    }
}
