//! What a kernel did wrong.

use std::fmt;

use thiserror::Error;

/// A fault of a kernel, and where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: String,
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in its block; none where a whole warp or block is meant.
    pub thread: Option<[u32; 3]>,
    /// The line of the PTX text.
    pub line: u32,
    /// The opcode there.
    pub opcode: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, block {:?}, ", self.kernel, self.block)?;
        match self.thread {
            Some(thread) => write!(formatter, "thread {thread:?}, ")?,
            None => write!(formatter, "all threads, ")?,
        }
        write!(formatter, "line {} ({}): {}", self.line, self.opcode, self.kind)
    }
}

impl std::error::Error for Fault {}

/// A space of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "as PTX has them")]
pub enum MemorySpace {
    Global,
    Shared,
    Local,
    Param,
}

impl fmt::Display for MemorySpace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            MemorySpace::Global => "global",
            MemorySpace::Shared => "shared",
            MemorySpace::Local => "local",
            MemorySpace::Param => "parameter",
        })
    }
}

/// What can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum FaultKind {
    #[error("{bytes} bytes at {address:#x} of {space} memory are out of bounds{near}")]
    OutOfBounds { space: MemorySpace, address: u64, bytes: u32, near: String },
    #[error("{bytes} bytes at {address:#x} were freed{near}")]
    UseAfterFree { address: u64, bytes: u32, near: String },
    #[error("{bytes} bytes at {address:#x} of {space} memory are not aligned")]
    Misaligned { space: MemorySpace, address: u64, bytes: u32 },
    #[error("{bytes} bytes at {address:#x} of {space} memory are written, and that is read-only")]
    ReadOnly { space: MemorySpace, address: u64, bytes: u32 },
    #[error("{bytes} bytes at {address:#x} of {space} memory are read before they are written")]
    Uninitialised { space: MemorySpace, address: u64, bytes: u32 },
    #[error("a register is read before it is written")]
    UninitialisedRegister,
    #[error(
        "what is at {address:#x} of shared memory: {access} races with {earlier} by thread {other}, with no barrier between"
    )]
    SharedRace { address: u64, access: &'static str, earlier: &'static str, other: u32 },
    #[error("the byte at {address:#x} of global memory: {access} races with {earlier} of the same launch")]
    GlobalRace { address: u64, access: &'static str, earlier: String },
    #[error(
        "what is at {address:#x} of shared memory is used before the wait for the asynchronous copy to it"
    )]
    PendingCopy { address: u64 },
    #[error("a barrier that only some threads reach: lanes {arrived:#010x} of {expected:#010x}")]
    DivergentBarrier { arrived: u32, expected: u32 },
    #[error("warps wait at different barriers, and none can go on: {waiting}")]
    Deadlock { waiting: String },
    #[error("the mask names lanes that do not come here: lanes {arrived:#010x} of {expected:#010x}")]
    IncompleteMask { arrived: u32, expected: u32 },
    #[error("the mask {mask:#010x} is without the lane itself")]
    WrongMask { mask: u32 },
    #[error("a value is taken from lane {lane}, which does not take part")]
    InactiveSource { lane: u32 },
    #[error("a barrier number of {id} or a count of {threads} threads is not possible")]
    WrongBarrier { id: u32, threads: u32 },
    #[error("the index {index} is outside of a list of {targets} branch targets")]
    WrongTarget { index: u32, targets: u32 },
    #[error(
        "a sum of products is not exact in f32 (row {row}, column {column}), so a tensor core's result is not defined"
    )]
    InexactSum { row: u32, column: u32 },
    #[error("an asynchronous copy takes {taken} of {bytes} bytes")]
    WrongCopy { taken: u32, bytes: u32 },
    #[error("the kernel stopped itself with trap")]
    Trap,
    #[error("a warp executed {limit} instructions and has not ended; PTX_SIM_LIMIT raises the limit")]
    InstructionLimit { limit: u64 },
}

impl FaultKind {
    /// One or two words for what found it.
    pub fn name(&self) -> &'static str {
        match self {
            FaultKind::OutOfBounds { .. } => "bounds",
            FaultKind::UseAfterFree { .. } => "use after free",
            FaultKind::Misaligned { .. } => "alignment",
            FaultKind::ReadOnly { .. } => "read-only",
            FaultKind::Uninitialised { .. } => "unwritten memory",
            FaultKind::UninitialisedRegister => "unwritten register",
            FaultKind::SharedRace { .. } => "race of threads",
            FaultKind::GlobalRace { .. } => "race of blocks",
            FaultKind::PendingCopy { .. } => "pending copy",
            FaultKind::DivergentBarrier { .. } => "divergent barrier",
            FaultKind::Deadlock { .. } => "deadlock",
            FaultKind::IncompleteMask { .. } | FaultKind::WrongMask { .. } => "mask",
            FaultKind::InactiveSource { .. } => "inactive source",
            FaultKind::WrongBarrier { .. } => "barrier number",
            FaultKind::WrongTarget { .. } => "branch target",
            FaultKind::InexactSum { .. } => "inexact sum",
            FaultKind::WrongCopy { .. } => "copy size",
            FaultKind::Trap => "trap",
            FaultKind::InstructionLimit { .. } => "instruction limit",
        }
    }

    /// The status that the driver gives for it.
    pub fn status(&self) -> i32 {
        match self {
            FaultKind::OutOfBounds { .. } | FaultKind::UseAfterFree { .. } | FaultKind::ReadOnly { .. } => {
                700
            }
            FaultKind::InstructionLimit { .. } => 702,
            FaultKind::Misaligned { .. } => 716,
            _ => 719,
        }
    }
}
