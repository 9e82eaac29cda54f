//! Tracing as a backend: record a model once, replay or compile the graph.
//!
//! [`Trace`] is a [`samebits_tensor::Backend`] whose data are nodes, so the same model text that runs eagerly on a CPU
//! records itself. Fused operations are recorded as their decompositions: a [`Graph`] holds primitives only, and has
//! the contract's bits on whatever runs it.
//!
//! ```
//! use samebits_cpu::Host;
//! use samebits_graph::Trace;
//! use samebits_tensor::{DType, Tensor};
//!
//! let trace = Trace::new();
//! let x = trace.input("x", [2, 3], DType::F32)?;
//! let y = x.mul(&x)?.softmax()?;
//! let graph = trace.graph(&[&x], &[("y", &y)])?;
//!
//! let program = graph.prepare(&Host)?;
//! let x = Tensor::of(&Host, [2, 3], &[0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0])?;
//! let y = program.run(vec![x])?;
//! assert_eq!(y[0].dims(), [2, 3]);
//! # Ok::<(), samebits_graph::GraphError>(())
//! ```
//!
//! One trace may serve many graphs: pack a model's weights once, then record one graph for each bucket of shapes. A
//! graph holds only what its outputs need.
//!
//! A value that is scattered into becomes a new value. Where that value is an output and its origin an input, the
//! graph says so ([`Output::donates`]): the caller gives the buffer up, and the runner may write in place.
#![forbid(unsafe_code)]

mod dump;
mod error;
mod graph;
mod program;
mod trace;

pub use dump::Summary;
pub use error::GraphError;
pub use graph::{Constant, Fill, Graph, Input, Node, NodeId, Op, Output};
pub use program::Program;
pub use trace::Trace;
