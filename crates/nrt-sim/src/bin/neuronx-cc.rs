//! The stand-in for neuronx-cc as a program: see [`nrt_sim::compiler`].
#![forbid(unsafe_code)]

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    nrt_sim::compiler::main(&env::args().skip(1).collect::<Vec<_>>())
}
