//! PTX text as statements.

mod lexer;
mod parser;

use thiserror::Error;

pub(crate) use parser::{parse, type_bytes};

/// A text that is not PTX, or a part of PTX that is not interpreted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {message}")]
pub struct PtxError {
    /// The line of the text, from 1.
    pub line: u32,
    /// What is there, and what was expected.
    pub message: String,
}

impl PtxError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        PtxError { line, message: message.into() }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Module {
    /// `.version`, as (8, 0).
    pub(crate) version: (u32, u32),
    /// `.target sm_90` is 90.
    pub(crate) target: u32,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A variable of memory.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) line: u32,
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) align: u64,
    /// Bytes; 0 for an array without a bound, which is the dynamic shared memory.
    pub(crate) size: u64,
    /// Its first bytes; the others are 0.
    pub(crate) initial: Vec<u8>,
    pub(crate) external: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Function {
    pub(crate) line: u32,
    pub(crate) name: String,
    pub(crate) entry: bool,
    pub(crate) results: Vec<Variable>,
    pub(crate) parameters: Vec<Variable>,
    /// Of `.maxntid` or `.reqntid`: each dimension.
    pub(crate) threads_max: Option<[u32; 3]>,
    /// `.reqntid`: the block has exactly these dimensions.
    pub(crate) threads_exact: bool,
    pub(crate) body: Vec<Statement>,
}

#[derive(Debug, Clone)]
pub(crate) enum Statement {
    Open,
    Close,
    Label(String),
    /// Registers of a type, by name.
    Registers(u32, String, Vec<String>),
    Variable(Variable),
    /// `name: .branchtargets a, b;`
    Targets(String, Vec<String>),
    Instruction(Instruction),
}

#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub(crate) line: u32,
    /// `@p` or `@!p`: the predicate, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// As it stands in the text, `add.rn.f32`.
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Name(String),
    /// `!p`
    Not(String),
    /// An integer, of either sign, as 64 bits.
    Integer(u64),
    /// `0f…`, the bits.
    F32(u32),
    /// `0d…`, the bits, and decimal numbers with a point.
    F64(u64),
    /// `[base + offset]`; without a base it is a number.
    Address(Option<String>, i64),
    Vector(Vec<Operand>),
    /// `(a, b)` of a call.
    Group(Vec<Operand>),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    /// `_`
    Sink,
}
