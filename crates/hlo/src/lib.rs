//! Recorded graphs as HLO modules: what PJRT plugins and neuronx-cc compile.
//!
//! [`lower`] writes a [`samebits_graph::Graph`] as an HLO module, whose bytes ([`Program::bytes`]) any PJRT plugin
//! and neuronx-cc take. Shapes are static; weights are parameters, so that one module serves every layer of a model; outputs
//! that are an input with rows replaced share its memory.
//!
//! ```
//! use samebits_graph::Trace;
//! use samebits_hlo::{Options, lower};
//! use samebits_tensor::DType;
//!
//! let trace = Trace::new();
//! let x = trace.input("x", [2, 3], DType::F32)?;
//! let y = x.mul(&x)?.softmax()?;
//! let program = lower(&trace.graph(&[&x], &[("y", &y)])?, &Options::new("softmax"));
//! assert_eq!(program.parameters[0].name, "x");
//! println!("{}", program.module);
//! # Ok::<(), samebits_graph::GraphError>(())
//! ```
//!
//! # Same bits through a compiler
//!
//! XLA fuses `a * b + c`, writes `1 / sqrt(x)` as an estimate and drops roundings and additions of zero. Each would change a
//! bit. So products, square roots, roundings to 16 bits and constants pass through an exclusive or of their bits with a
//! parameter that is zero ([`Source::Zero`]), which no compiler can look through.
#![forbid(unsafe_code)]

mod builder;
mod device;
mod interface;
mod lint;
mod lower;
pub mod proto;
mod store;
mod text;

use prost::Message;
use samebits_tensor::{DType, Shape};

pub use device::{Argument, Device, DeviceError};
pub use interface::{Binding, Interface, InterfaceError};
pub use lint::{Chip, Refusal, Rule, Target, lint};
pub use lower::lower;
pub use store::{Key, Store};

/// How a graph is lowered.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the module.
    pub name: String,
    /// Whether products, roots, roundings and constants are kept from the compiler's own ideas.
    pub guard: bool,
    /// How integer products are written.
    pub exact_dot: ExactDot,
    /// What names of constants and of fused operations begin with and leave out, such as `model.layers.3.`: layers that compute
    /// the same have then the same module.
    pub relative_to: Option<String>,
    /// Ranks that run the module together, each on its own arguments.
    pub ranks: usize,
    /// Whether tensors carry the names that the Neuron runtime binds them by, and aliases are binding.
    pub tensor_names: bool,
}

impl Options {
    /// For a PJRT plugin.
    pub fn new(name: impl Into<String>) -> Self {
        Options {
            name: name.into(),
            guard: true,
            exact_dot: ExactDot::F32,
            relative_to: None,
            ranks: 1,
            tensor_names: false,
        }
    }

    /// For neuronx-cc.
    pub fn neuron(name: impl Into<String>) -> Self {
        Options { exact_dot: ExactDot::Bf16, tensor_names: true, ..Options::new(name) }
    }
}

impl Options {
    fn relative(&self, name: &str) -> String {
        match &self.relative_to {
            Some(prefix) => name.replace(prefix, ""),
            None => name.into(),
        }
    }
}

/// How an exact product of bytes is written. All give the same integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExactDot {
    /// Of bf16, summed in f32: matrix units of accelerators.
    Bf16,
    /// Of f32.
    F32,
    /// Of bytes, summed in i32: where the device has such units and its compiler uses them.
    Integer,
}

impl ExactDot {
    fn types(self) -> (proto::ElementType, proto::ElementType) {
        match self {
            ExactDot::Bf16 => (proto::ElementType::Bf16, proto::ElementType::F32),
            ExactDot::F32 => (proto::ElementType::F32, proto::ElementType::F32),
            ExactDot::Integer => (proto::ElementType::S32, proto::ElementType::S32),
        }
    }
}

/// Where the value of a parameter comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Input of this index of the graph.
    Input(usize),
    /// Constant of this index of the graph.
    Constant(usize),
    /// One i32 that is 0.
    Zero,
}

/// What a module takes.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// As the module names it.
    pub name: String,
    /// Where its value comes from.
    pub source: Source,
    /// Its shape.
    pub shape: Shape,
    /// Its type.
    pub dtype: DType,
}

/// A module, and what it takes.
#[derive(Clone, Debug)]
pub struct Program {
    /// The module; its result is a tuple of the graph's outputs.
    pub module: proto::HloModule,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
}

impl Program {
    /// The module as a binary `HloModuleProto`.
    pub fn bytes(&self) -> Vec<u8> {
        self.module.encode_to_vec()
    }
}
