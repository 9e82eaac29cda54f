//! Small changes of PTX that tests should notice: what mutation testing of kernels is made of.
//!
//! A mutant is one instruction of one kernel, changed by one operator. [`mutants`] lists those of a text,
//! [`Sim::mutate`](crate::Sim::mutate) or `PTX_SIM_MUTATE` runs one. Changes that nobody could notice, as far as the
//! text around an instruction says so, are not made.

mod operators;
mod uses;

use std::{fmt, str::FromStr};

use crate::ptx::{self, Function, Instruction, Module, PtxError, Statement};
use uses::Uses;

/// A change of one instruction; as text, `kernel:line:operator`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mutation {
    /// The kernel that has the instruction; functions that it calls are not changed.
    pub kernel: String,
    /// Its line in the PTX text, from 1.
    pub line: u32,
    /// What is done to it; README.md has the list.
    pub operator: String,
}

/// A mutation that is possible, and what it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutant {
    /// The change.
    pub mutation: Mutation,
    /// The line as it stands in the text.
    pub text: String,
}

impl fmt::Display for Mutation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.kernel, self.line, self.operator)
    }
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "kernel:line:operator is expected".to_owned();
        let mut parts = text.splitn(3, ':');
        let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or_else(expected);
        let (kernel, line, operator) = (part()?.to_owned(), part()?, part()?.to_owned());
        Ok(Mutation { kernel, line: line.parse().map_err(|_| expected())?, operator })
    }
}

/// All mutants of a module, in the order of its lines.
///
/// # Errors
///
/// The text is not PTX.
pub fn mutants(text: &str) -> Result<Vec<Mutant>, PtxError> {
    let module = ptx::parse(text)?;
    let lines: Vec<&str> = text.lines().collect();
    let mut mutants = Vec::new();
    for function in entries(&module) {
        let uses = Uses::of(function);
        for instruction in function.body.iter().filter_map(instruction) {
            for (operator, _) in operators::changes(instruction, &uses) {
                let (kernel, line) = (function.name.clone(), instruction.line);
                let text = lines.get(line as usize - 1).map_or("", |line| line.trim()).to_owned();
                mutants.push(Mutant { mutation: Mutation { kernel, line, operator: operator.into() }, text });
            }
        }
    }
    Ok(mutants)
}

/// A kernel of the module, changed; None if it has no such instruction or the operator does not apply.
pub(crate) fn mutated(module: &Module, mutation: &Mutation) -> Option<Function> {
    let function = entries(module).find(|function| function.name == mutation.kernel)?;
    let uses = Uses::of(function);
    let (at, changed) = function.body.iter().enumerate().find_map(|(at, statement)| {
        let meant = instruction(statement).filter(|instruction| instruction.line == mutation.line)?;
        let changes = operators::changes(meant, &uses);
        Some((at, changes.into_iter().find(|(operator, _)| *operator == mutation.operator)?.1))
    })?;
    let mut function = function.clone();
    function.body.splice(at..=at, changed.into_iter().map(Statement::Instruction));
    Some(function)
}

fn entries(module: &Module) -> impl Iterator<Item = &Function> {
    module.functions.iter().filter(|function| function.entry)
}

fn instruction(statement: &Statement) -> Option<&Instruction> {
    match statement {
        Statement::Instruction(instruction) => Some(instruction),
        _ => None,
    }
}
