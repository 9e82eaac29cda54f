//! Loads, stores, atomics and asynchronous copies.

use super::{
    Address, AsyncCopy, Atomic, AtomicOp, Decoded, Decoder, Inst, Memory, Register, compute::space_name,
    scope::Binding,
};
use crate::{
    ptx::{Operand, Space, type_bytes},
    vm::{Kind, Slot},
};

/// Modifiers of accesses that say how far, how early or how long something is seen or cached.
const HINTS: [&str; 26] = [
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "sc",
    "mmio",
    "cta",
    "gpu",
    "sys",
    "cluster",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "nc",
    "wb",
    "wt",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "noftz",
    "uni",
];

fn is_hint(part: &str) -> bool {
    HINTS.contains(&part)
        || ["L1::evict_", "L2::evict_", "L1::no_allocate"].iter().any(|prefix| part.starts_with(prefix))
}

impl Decoder<'_> {
    pub(super) fn memory(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let kept: Vec<&str> =
            parts.iter().copied().filter(|part| !is_hint(part) && space_name(part).is_none()).collect();
        let space = self.space_of(parts);
        match (kept[0], operands) {
            ("ld" | "ldu", [result, address, ..]) => {
                let access = self.access(&kept, space, address)?;
                let elements =
                    elements(result).map(|operand| self.result(operand)).collect::<Decoded<_>>()?;
                let access = self.checked(Memory { elements, ..access }, &kept)?;
                self.push(Inst::Load(Box::new(access)));
            }
            ("st", [address, value, ..]) => {
                let access = self.access(&kept, space, address)?;
                let (_, kind) = self.type_of(&kept)?;
                let elements =
                    elements(value).map(|operand| self.stored(operand, kind)).collect::<Decoded<_>>()?;
                let access = self.checked(Memory { elements, ..access }, &kept)?;
                self.push(Inst::Store(Box::new(access)));
            }
            ("atom" | "red", _) => self.atomic(&kept, space, operands)?,
            ("cp", _) => self.copy(parts, operands)?,
            _ => return Err(self.unknown()),
        }
        Ok(())
    }

    /// The access but its elements.
    fn access(&mut self, kept: &[&str], space: Space, address: &Operand) -> Decoded<Memory> {
        let (ty, _) = self.type_of(kept)?;
        let bytes = type_bytes(ty).filter(|&bytes| bytes > 0).ok_or_else(|| self.unknown())?;
        let address = self.address(space, address)?;
        Ok(Memory { address, bytes: bytes as u32, signed: ty.starts_with('s'), elements: Vec::new() })
    }

    /// The elements are as many as the modifier says.
    fn checked(&self, access: Memory, kept: &[&str]) -> Decoded<Memory> {
        let count = match &kept[1..] {
            [_] => 1,
            ["v2", _] => 2,
            ["v4", _] => 4,
            _ => return Err(self.unknown()),
        };
        match access.elements.len() == count && count as u32 * access.bytes <= 16 {
            true => Ok(access),
            false => Err(self.unknown()),
        }
    }

    /// What is stored may be wider than what is kept of it.
    fn stored(&mut self, operand: &Operand, kind: Kind) -> Decoded<Option<Register>> {
        if let Operand::Name(name) = operand
            && let Ok(Binding::Register(register)) = self.lookup(name)
        {
            return Ok(Some(register));
        }
        let slot = self.value(operand, kind, false)?;
        Ok(Some(Register { kind, slot }))
    }

    /// `[base + offset]`, where the base is a register or a variable.
    pub(super) fn address(&mut self, space: Space, operand: &Operand) -> Decoded<Address> {
        let Operand::Address(base, offset) = operand else { return Err(self.unknown()) };
        let offset = *offset;
        let Some(name) = base else { return Ok(Address { space, base: None, offset }) };
        let fixed = |space, at: u64| Ok(Address { space, base: None, offset: at as i64 + offset });
        match self.lookup(name)? {
            Binding::Register(register @ Register { kind: Kind::Wide | Kind::Narrow, .. }) => {
                Ok(Address { space, base: Some(register), offset })
            }
            Binding::Shared(u64::MAX) => {
                let slot = self.special(super::DYNAMIC_SHARED);
                Ok(Address {
                    space: Space::Shared,
                    base: Some(Register { kind: Kind::Narrow, slot }),
                    offset,
                })
            }
            Binding::Shared(at) => fixed(Space::Shared, at),
            Binding::Local(at) => fixed(Space::Local, at),
            Binding::Parameter(at) => fixed(Space::Param, at),
            Binding::Global(at) => fixed(Space::Global, at),
            _ => Err(self.error(format!("{name} is no address"))),
        }
    }

    fn atomic(&mut self, kept: &[&str], space: Space, operands: &[Operand]) -> Decoded {
        let (&[base, name, ..], (ty, kind)) = (kept, self.type_of(kept)?) else { return Err(self.unknown()) };
        if kept.len() != 3 {
            return Err(self.unknown());
        }
        let op = match name {
            "add" if ty.contains('f') => {
                return Err(self.error("an atomic sum of floats has no order: it is refused"));
            }
            "exch" if ty != "b128" => AtomicOp::Exchange,
            "cas" => AtomicOp::CompareAndSwap,
            "inc" if ty == "u32" => AtomicOp::Increment,
            "dec" if ty == "u32" => AtomicOp::Decrement,
            _ => self.reduction(name, ty)?,
        };
        if !matches!(ty, "b32" | "u32" | "s32" | "f32" | "b64" | "u64" | "s64" | "f64") {
            return Err(self.unknown());
        }
        let (result, operands) = match operands {
            [result, rest @ ..] if base == "atom" => (self.result(result)?, rest),
            rest => (None, rest),
        };
        let [address, a, rest @ ..] = operands else { return Err(self.unknown()) };
        let address = self.address(space, address)?;
        let a = self.value(a, kind, false)?;
        let b = match (op, rest) {
            (AtomicOp::CompareAndSwap, [b]) => Some(self.value(b, kind, false)?),
            (AtomicOp::CompareAndSwap, _) => return Err(self.unknown()),
            _ => None,
        };
        let result = result.map(|register| register.slot);
        self.push(Inst::Atomic(Box::new(Atomic {
            address,
            op,
            signed: ty.starts_with('s'),
            kind,
            result,
            a,
            b,
        })));
        Ok(())
    }

    /// An operation of integers whose order does not matter.
    pub(super) fn reduction(&self, name: &str, ty: &str) -> Decoded<AtomicOp> {
        match (name, ty.as_bytes()[0]) {
            ("add", b'u' | b's') => Ok(AtomicOp::Add),
            ("min", b'u' | b's') => Ok(AtomicOp::Min),
            ("max", b'u' | b's') => Ok(AtomicOp::Max),
            ("and", b'b') => Ok(AtomicOp::And),
            ("or", b'b') => Ok(AtomicOp::Or),
            ("xor", b'b') => Ok(AtomicOp::Xor),
            _ => Err(self.unknown()),
        }
    }

    /// `cp.async` with its groups.
    fn copy(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let inst = match (parts, operands) {
            (["cp", "async", "commit_group"], []) => Inst::AsyncCommit,
            (["cp", "async", "wait_group"], [Operand::Integer(groups)]) => Inst::AsyncWait(*groups as u32),
            (["cp", "async", "wait_all"], []) => Inst::AsyncWaitAll,
            (
                ["cp", "async", cache @ ("ca" | "cg"), "shared" | "shared::cta", "global", hints @ ..],
                [to, from, rest @ ..],
            ) if hints.iter().all(|hint| is_hint(hint)) => {
                Inst::AsyncCopy(Box::new(self.async_copy(*cache == "cg", [to, from], rest)?))
            }
            _ => return Err(self.unknown()),
        };
        self.push(inst);
        Ok(())
    }

    fn async_copy(
        &mut self,
        whole_lines: bool,
        [to, from]: [&Operand; 2],
        rest: &[Operand],
    ) -> Decoded<AsyncCopy> {
        let [Operand::Integer(bytes), rest @ ..] = rest else { return Err(self.unknown()) };
        if !(*bytes == 16 || !whole_lines && matches!(bytes, 4 | 8)) {
            return Err(self.error(format!("an asynchronous copy of {bytes} bytes")));
        }
        let (to, from) = (self.address(Space::Shared, to)?, self.address(Space::Global, from)?);
        let (mut source_bytes, mut ignore): (Option<Slot>, Option<Slot>) = (None, None);
        if let Some(operand) = rest.first() {
            match operand {
                Operand::Name(name) if self.is_pred(name) => {
                    ignore = Some(self.value(operand, Kind::Pred, false)?)
                }
                Operand::Not(_) => ignore = Some(self.value(operand, Kind::Pred, false)?),
                _ => source_bytes = Some(self.value(operand, Kind::Narrow, false)?),
            }
        }
        Ok(AsyncCopy { to, from, bytes: *bytes as u32, source_bytes, ignore })
    }

    fn is_pred(&mut self, name: &str) -> bool {
        matches!(self.lookup(name), Ok(Binding::Register(Register { kind: Kind::Pred, .. })))
    }
}

fn elements(operand: &Operand) -> impl Iterator<Item = &Operand> {
    match operand {
        Operand::Vector(elements) => elements.iter(),
        single => std::slice::from_ref(single).iter(),
    }
}
