//! Kernels as they are executed, from the statements of a module.
//!
//! Registers get numbers, constants and special registers get registers, an instruction that has several results becomes
//! several steps, and functions are put where they are called. What is not interpreted is an error that names it here, before
//! anything runs.

mod compute;
mod control;
mod instruction;
mod memory;
mod scope;
mod warp;

use std::collections::HashMap;

pub(crate) use instruction::*;
use scope::{Binding, Scope};

use crate::{
    ptx::{Function, Module, Operand, PtxError, Space, Statement, Variable},
    vm::{Counts, Kind, Slot, Slots, compute},
};

/// A special register that a kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    /// The lanes equal to, below, up to, above, from this one.
    LaneMask(LaneMask),
    Warp,
    Warps,
    SharedBytes,
    SharedBytesDynamic,
    /// What is always the same here: one multiprocessor, one grid.
    Fixed(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LaneMask {
    Equal,
    Below,
    UpTo,
    Above,
    From,
}

/// An instruction of the text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) line: u32,
    pub(crate) opcode: String,
}

#[derive(Default)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) sources: Vec<Source>,
    pub(crate) counts: Counts,
    pub(crate) narrow_constants: Vec<(Slot, u32)>,
    pub(crate) wide_constants: Vec<(Slot, u64)>,
    pub(crate) pred_constants: Vec<(Slot, bool)>,
    pub(crate) specials: Vec<(Slot, Special)>,
    /// Offset and bytes of each parameter.
    pub(crate) parameters: Vec<(u64, u64)>,
    pub(crate) parameter_bytes: u64,
    /// Static shared memory, up to where the dynamic one begins.
    pub(crate) shared_bytes: u64,
    pub(crate) dynamic_shared: bool,
    /// Of each thread.
    pub(crate) local_bytes: u64,
    pub(crate) threads_max: Option<[u32; 3]>,
    pub(crate) threads_exact: bool,
}

/// The kernels of a module by name; `globals` has the addresses of its variables.
pub(crate) fn kernels(module: &Module, globals: &HashMap<String, u64>) -> Result<Vec<Kernel>, PtxError> {
    module
        .functions
        .iter()
        .filter(|function| function.entry)
        .map(|entry| kernel(module, globals, entry))
        .collect()
}

/// A kernel of a module, whose text may be another than the module has.
pub(crate) fn kernel(
    module: &Module,
    globals: &HashMap<String, u64>,
    entry: &Function,
) -> Result<Kernel, PtxError> {
    let mut decoder = Decoder {
        module,
        globals,
        kernel: Kernel {
            name: entry.name.clone(),
            threads_max: entry.threads_max,
            threads_exact: entry.threads_exact,
            ..Kernel::default()
        },
        scopes: Vec::new(),
        labels: Vec::new(),
        constants: HashMap::new(),
        specials: HashMap::new(),
        carry: None,
        shared: HashMap::new(),
        calls: Vec::new(),
        line: entry.line,
        guard: Guard::Always,
    };
    decoder
        .entry(entry)
        .map_err(|error| PtxError::new(error.line, format!("in {}: {}", entry.name, error.message)))?;
    Ok(decoder.kernel)
}

type Decoded<T = ()> = Result<T, PtxError>;

struct Decoder<'a> {
    module: &'a Module,
    globals: &'a HashMap<String, u64>,
    kernel: Kernel,
    scopes: Vec<Scope>,
    /// Where each label is, once it is known.
    labels: Vec<Option<u32>>,
    constants: HashMap<(Kind, u64), Slot>,
    specials: HashMap<Special, Slot>,
    /// The flag of sums with a carry.
    carry: Option<Slot>,
    /// Variables of shared memory that are placed.
    shared: HashMap<String, u64>,
    /// The functions that are being put in place, each with the label of its end.
    calls: Vec<(String, u32)>,
    line: u32,
    guard: Guard,
}

impl<'a> Decoder<'a> {
    fn entry(&mut self, entry: &'a Function) -> Decoded {
        let mut scope = Scope::default();
        let mut offset = 0u64;
        for parameter in &entry.parameters {
            if !parameter.align.is_power_of_two()
                || offset.saturating_add(parameter.size) > PARAMETER_BYTES_MAX
            {
                return Err(PtxError::new(
                    parameter.line,
                    format!("{}: too large, or no alignment", parameter.name),
                ));
            }
            offset = offset.next_multiple_of(parameter.align);
            scope.bind(&parameter.name, Binding::Parameter(offset));
            self.kernel.parameters.push((offset, parameter.size));
            offset += parameter.size;
        }
        self.kernel.parameter_bytes = offset;
        self.function_body(&entry.body, scope)?;
        self.source("ret");
        self.push(Inst::Exit);
        self.kernel.shared_bytes = self.kernel.shared_bytes.next_multiple_of(16);
        self.resolve_labels()
    }

    /// Puts statements here, in a scope that holds the parameters.
    fn function_body(&mut self, body: &'a [Statement], mut scope: Scope) -> Decoded {
        scope.declare_labels(body, &mut self.labels);
        let depth = self.scopes.len();
        self.scopes.push(scope);
        for (index, statement) in body.iter().enumerate() {
            match statement {
                Statement::Open => {
                    let mut inner = Scope::default();
                    inner.declare_labels(&body[index + 1..], &mut self.labels);
                    self.scopes.push(inner);
                }
                Statement::Close => drop(self.scopes.pop()),
                Statement::Label(name) => self.place_label(name)?,
                Statement::Registers(line, ty, names) => self.declare_registers(*line, ty, names)?,
                Statement::Variable(variable) => self.declare_variable(variable)?,
                Statement::Targets(name, labels) => self.bind(name, Binding::Targets(labels.clone())),
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        self.scopes.truncate(depth);
        Ok(())
    }

    fn declare_registers(&mut self, line: u32, ty: &str, names: &[String]) -> Decoded {
        let kind = kind_of(ty)
            .ok_or_else(|| PtxError::new(line, format!("registers of .{ty} are not interpreted")))?;
        for name in names {
            let slot = self.kernel.counts.take(kind);
            self.bind(name, Binding::Register(Register { kind, slot }));
        }
        Ok(())
    }

    fn declare_variable(&mut self, variable: &Variable) -> Decoded {
        let binding = match variable.space {
            Space::Shared => Binding::Shared(self.place_shared(variable)?),
            // Parameters of a call are memory of the thread that calls.
            Space::Local | Space::Param => {
                Binding::Local(place(&mut self.kernel.local_bytes, variable, LOCAL_BYTES_MAX)?)
            }
            _ => {
                let message =
                    format!("{}: a variable of this space in a function is not interpreted", variable.name);
                return Err(PtxError::new(variable.line, message));
            }
        };
        self.bind(&variable.name, binding);
        Ok(())
    }

    fn place_shared(&mut self, variable: &Variable) -> Decoded<u64> {
        if variable.size == 0 {
            self.kernel.dynamic_shared = true;
            return Ok(u64::MAX);
        }
        place(&mut self.kernel.shared_bytes, variable, SHARED_BYTES_MAX)
    }

    fn bind(&mut self, name: &str, binding: Binding) {
        self.scopes.last_mut().expect("a function has a scope").bind(name, binding);
    }

    /// What a name means here, variables of the module included.
    fn lookup(&mut self, name: &str) -> Decoded<Binding> {
        if let Some(binding) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Ok(binding.clone());
        }
        if let Some(&address) = self.globals.get(name) {
            return Ok(Binding::Global(address));
        }
        if let Some(&at) = self.shared.get(name) {
            return Ok(Binding::Shared(at));
        }
        let module = self.module;
        match module.variables.iter().find(|variable| variable.name == name) {
            Some(variable) if variable.space == Space::Shared => {
                let at = self.place_shared(variable)?;
                self.shared.insert(name.into(), at);
                Ok(Binding::Shared(at))
            }
            _ => Err(self.error(format!("{name} is not declared"))),
        }
    }

    fn place_label(&mut self, name: &str) -> Decoded {
        let label = self.label(name)?;
        self.labels[label as usize] = Some(self.kernel.steps.len() as u32);
        Ok(())
    }

    fn label(&mut self, name: &str) -> Decoded<u32> {
        match self.lookup(name)? {
            Binding::Label(label) => Ok(label),
            _ => Err(self.error(format!("{name} is not a label"))),
        }
    }

    fn resolve_labels(&mut self) -> Decoded {
        let labels = &self.labels;
        let at = |label: &mut u32| match labels[*label as usize] {
            Some(place) => {
                *label = place;
                Ok(())
            }
            None => Err(PtxError::new(0, "a label that is branched to is not placed")),
        };
        for step in &mut self.kernel.steps {
            match &mut step.inst {
                Inst::Branch(target) => at(target)?,
                Inst::BranchIndexed { targets, .. } => targets.iter_mut().try_for_each(at)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Begins an instruction of the text.
    fn source(&mut self, opcode: &str) {
        self.kernel.sources.push(Source { line: self.line, opcode: opcode.into() });
    }

    fn push(&mut self, inst: Inst) {
        let source = self.kernel.sources.len() as u32 - 1;
        self.kernel.steps.push(Step { guard: self.guard, inst, source });
    }

    /// A step of the table by name.
    fn push_compute(&mut self, name: &str, result: Slot, sources: &[Slot]) -> Decoded {
        let entry = compute(name).ok_or_else(|| self.error(format!("{name} is not interpreted")))?;
        let mut slots: Slots = [0; 5];
        slots[0] = result;
        slots[1..=sources.len()].copy_from_slice(sources);
        self.push(Inst::Compute { run: &entry.run, slots });
        Ok(())
    }

    fn constant(&mut self, kind: Kind, value: u64) -> Slot {
        let value = match kind {
            Kind::Pred => value & 1,
            Kind::Narrow => value & 0xffff_ffff,
            Kind::Wide => value,
        };
        if let Some(&slot) = self.constants.get(&(kind, value)) {
            return slot;
        }
        let slot = self.kernel.counts.take(kind);
        self.constants.insert((kind, value), slot);
        match kind {
            Kind::Pred => self.kernel.pred_constants.push((slot, value != 0)),
            Kind::Narrow => self.kernel.narrow_constants.push((slot, value as u32)),
            Kind::Wide => self.kernel.wide_constants.push((slot, value)),
        }
        slot
    }

    fn special(&mut self, special: Special) -> Slot {
        if let Some(&slot) = self.specials.get(&special) {
            return slot;
        }
        let slot = self.kernel.counts.take(Kind::Narrow);
        self.specials.insert(special, slot);
        self.kernel.specials.push((slot, special));
        slot
    }

    /// A register, or the constant, that an operand of this kind is. A wide register may stand for a narrow operand only where
    /// `fit` says so.
    fn value(&mut self, operand: &Operand, kind: Kind, fit: bool) -> Decoded<Slot> {
        match operand {
            Operand::Integer(value) => Ok(self.constant(kind, *value)),
            Operand::F32(bits) if kind == Kind::Narrow => Ok(self.constant(kind, (*bits).into())),
            Operand::F64(bits) if kind == Kind::Wide => Ok(self.constant(kind, *bits)),
            Operand::F64(bits) if kind == Kind::Narrow => {
                Ok(self.constant(kind, (f64::from_bits(*bits) as f32).to_bits().into()))
            }
            Operand::Name(name) if name == "WARP_SZ" => Ok(self.constant(kind, 32)),
            Operand::Name(name) => match scope::special(name) {
                Some(special) => {
                    let slot = self.special(special);
                    self.fitted(Register { kind: Kind::Narrow, slot }, kind, true)
                }
                None => self.named(name, kind, fit),
            },
            Operand::Not(name) if kind == Kind::Pred => {
                let source = self.named(name, kind, false)?;
                let result = self.kernel.counts.take(kind);
                self.push_compute("not.pred", result, &[source])?;
                Ok(result)
            }
            _ => Err(self.error(format!("{operand:?} is no operand of this kind"))),
        }
    }

    fn named(&mut self, name: &str, kind: Kind, fit: bool) -> Decoded<Slot> {
        match self.lookup(name)? {
            Binding::Register(register) => self.fitted(register, kind, fit),
            Binding::Global(address) => Ok(self.constant(kind, address)),
            Binding::Shared(at) | Binding::Local(at) | Binding::Parameter(at) => {
                let special = at == u64::MAX;
                if !special {
                    return Ok(self.constant(kind, at));
                }
                let slot = self.special(DYNAMIC_SHARED);
                self.fitted(Register { kind: Kind::Narrow, slot }, kind, true)
            }
            _ => Err(self.error(format!("{name} is no value"))),
        }
    }

    fn fitted(&mut self, register: Register, kind: Kind, fit: bool) -> Decoded<Slot> {
        let name = match (register.kind, kind) {
            (from, to) if from == to => return Ok(register.slot),
            (Kind::Wide, Kind::Narrow) if fit => "fit.wide.narrow",
            (Kind::Narrow, Kind::Wide) if fit => "fit.narrow.wide",
            (from, to) => return Err(self.error(format!("a {from:?} register stands for a {to:?} operand"))),
        };
        let result = self.kernel.counts.take(kind);
        self.push_compute(name, result, &[register.slot])?;
        Ok(result)
    }

    /// The register that an operand names; None for a sink.
    fn result(&mut self, operand: &Operand) -> Decoded<Option<Register>> {
        match operand {
            Operand::Sink => Ok(None),
            Operand::Name(name) => match self.lookup(name)? {
                Binding::Register(register) => Ok(Some(register)),
                _ => Err(self.error(format!("{name} is not a register"))),
            },
            _ => Err(self.error(format!("{operand:?} is not a register"))),
        }
    }

    /// The register of a kind that an operand names, or one that nothing reads.
    fn result_of(&mut self, operand: &Operand, kind: Kind) -> Decoded<Slot> {
        match self.result(operand)? {
            None => Ok(self.kernel.counts.take(kind)),
            Some(register) if register.kind == kind => Ok(register.slot),
            Some(register) => {
                Err(self.error(format!("a {:?} register takes a {kind:?} result", register.kind)))
            }
        }
    }

    fn error(&self, message: impl Into<String>) -> PtxError {
        PtxError::new(self.line, message)
    }
}

/// Static shared memory of a block, and memory of a thread, as the CUDA programming guide limits them.
const SHARED_BYTES_MAX: u64 = 48 << 10;
const LOCAL_BYTES_MAX: u64 = 512 << 10;
/// Parameters of a kernel, from PTX 8.1 on.
const PARAMETER_BYTES_MAX: u64 = 32764;

/// Puts a variable behind those that there are.
fn place(used: &mut u64, variable: &Variable, most: u64) -> Decoded<u64> {
    let at = variable.align.is_power_of_two().then(|| used.next_multiple_of(variable.align));
    match at.map(|at| (at, at.saturating_add(variable.size))) {
        Some((at, end)) if end <= most => {
            *used = end;
            Ok(at)
        }
        _ => Err(PtxError::new(
            variable.line,
            format!("{}: more than {most} bytes, or no alignment", variable.name),
        )),
    }
}

/// The special register that holds where the dynamic shared memory begins.
pub(crate) const DYNAMIC_SHARED: Special = Special::Fixed(u32::MAX);

/// Registers of a type.
pub(crate) fn kind_of(ty: &str) -> Option<Kind> {
    Some(match ty {
        "pred" => Kind::Pred,
        "b8" | "u8" | "s8" | "b16" | "u16" | "s16" | "f16" | "bf16" => Kind::Narrow,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Kind::Narrow,
        "b64" | "u64" | "s64" | "f64" => Kind::Wide,
        _ => return None,
    })
}
