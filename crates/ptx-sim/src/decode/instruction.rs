//! Instructions as they are executed: with registers by number and constants in registers of their own.

use crate::{
    ptx::Space,
    vm::{Kind, Run, Slot, Slots},
};

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) kind: Kind,
    pub(crate) slot: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    Always,
    If(Slot),
    Unless(Slot),
}

/// One step of a kernel; an instruction of the text is one or several.
pub(crate) struct Step {
    pub(crate) guard: Guard,
    pub(crate) inst: Inst,
    /// The instruction of the text that it belongs to.
    pub(crate) source: u32,
}

pub(crate) enum Inst {
    Compute {
        run: &'static Run,
        slots: Slots,
    },
    Branch(u32),
    /// `brx.idx`: by the index, which must be one of the list.
    BranchIndexed {
        index: Slot,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
    /// What orders memory, or hints: memory here is always in order.
    Nothing,
    /// Cycles: the instructions that the warp executed.
    Clock(Register),
    ActiveMask(Slot),
    Load(Box<Memory>),
    Store(Box<Memory>),
    Atomic(Box<Atomic>),
    Barrier(Box<Barrier>),
    WarpSync {
        mask: Slot,
    },
    Shuffle(Box<Shuffle>),
    Vote(Box<Vote>),
    Match(Box<Match>),
    Reduce(Box<Reduce>),
    AsyncCopy(Box<AsyncCopy>),
    AsyncCommit,
    /// All but as many groups as are given.
    AsyncWait(u32),
    /// Whatever was copied, committed or not.
    AsyncWaitAll,
    LoadMatrix(Box<LoadMatrix>),
    Multiply(Box<Multiply>),
}

/// Where an instruction accesses memory: base, if any, plus offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Option<Register>,
    pub(crate) offset: i64,
}

/// A load or store of one to four elements beside each other.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) address: Address,
    /// Bytes of an element.
    pub(crate) bytes: u32,
    /// Whether what is loaded is extended by its sign.
    pub(crate) signed: bool,
    /// None where a loaded element is not kept.
    pub(crate) elements: Vec<Option<Register>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    /// Wrapping increment and decrement: the operand is the largest value.
    Increment,
    Decrement,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Atomic {
    pub(crate) address: Address,
    pub(crate) op: AtomicOp,
    pub(crate) signed: bool,
    /// Of its kind are the operands: 32 or 64 bits.
    pub(crate) kind: Kind,
    /// None for `red`.
    pub(crate) result: Option<Slot>,
    pub(crate) a: Slot,
    pub(crate) b: Option<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierAct {
    Sync,
    Arrive,
    /// The threads of which the predicate holds, into a narrow register.
    Count {
        source: Slot,
        result: Slot,
    },
    All {
        source: Slot,
        result: Slot,
    },
    Any {
        source: Slot,
        result: Slot,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Barrier {
    pub(crate) act: BarrierAct,
    pub(crate) id: Slot,
    /// Without it, all threads of the block that have not exited.
    pub(crate) threads: Option<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shuffle {
    pub(crate) mode: ShuffleMode,
    pub(crate) result: Option<Slot>,
    pub(crate) in_range: Option<Slot>,
    pub(crate) value: Slot,
    pub(crate) by: Slot,
    pub(crate) clamp: Slot,
    pub(crate) mask: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Vote {
    pub(crate) mode: VoteMode,
    pub(crate) result: Slot,
    pub(crate) source: Slot,
    pub(crate) mask: Slot,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Match {
    /// `.all`, which also says whether all lanes have the value.
    pub(crate) all: Option<Option<Slot>>,
    pub(crate) result: Slot,
    pub(crate) value: Register,
    pub(crate) mask: Slot,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Reduce {
    pub(crate) op: AtomicOp,
    pub(crate) signed: bool,
    pub(crate) result: Slot,
    pub(crate) value: Slot,
    pub(crate) mask: Slot,
}

/// `cp.async`: from global to shared memory, zeros behind the bytes of the source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AsyncCopy {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    /// Bytes of the source, if fewer.
    pub(crate) source_bytes: Option<Slot>,
    /// Where it holds, nothing of the source is read.
    pub(crate) ignore: Option<Slot>,
}

/// `ldmatrix` or `stmatrix` of 8x8 matrices of 16-bit elements.
#[derive(Debug, Clone)]
pub(crate) struct LoadMatrix {
    pub(crate) address: Address,
    pub(crate) transposed: bool,
    pub(crate) store: bool,
    pub(crate) registers: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    S8,
    U8,
    F16,
    Bf16,
}

/// `mma.sync` of 16 rows and 8 columns: `d = a · b + c`.
#[derive(Debug, Clone)]
pub(crate) struct Multiply {
    pub(crate) a_type: Element,
    pub(crate) b_type: Element,
    pub(crate) d: Vec<Slot>,
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: Vec<Slot>,
}
