//! Arithmetic, comparisons, conversions and moves: names without the modifiers that do not matter, and operands in registers.

use super::{Decoded, Decoder, Guard, Inst, Register, kind_of};
use crate::{
    ptx::{Instruction, Operand, Space},
    vm::{Compute, Kind, Slot, compute},
};

/// Instructions without an effect here: memory is always in order, and hints are free.
const NOTHING: [&str; 8] =
    ["membar", "fence", "nanosleep", "prefetch", "prefetchu", "discard", "applypriority", "pmevent"];

impl Decoder<'_> {
    pub(super) fn instruction(&mut self, instruction: &Instruction) -> Decoded {
        self.line = instruction.line;
        self.guard = Guard::Always;
        self.source(&instruction.opcode);
        if let Some((name, negated)) = &instruction.guard {
            let slot = self.value(&Operand::Name(name.clone()), Kind::Pred, false)?;
            self.guard = if *negated { Guard::Unless(slot) } else { Guard::If(slot) };
        }
        let parts: Vec<&str> = instruction.opcode.split('.').collect();
        let operands = &instruction.operands;
        match parts[0] {
            base if NOTHING.contains(&base) => self.push(Inst::Nothing),
            "mov" => self.mov(&parts, operands)?,
            "setp" => self.setp(&parts, operands)?,
            "set" => self.set(&parts, operands)?,
            "lop3" => self.lop3(operands)?,
            "cvt" => self.cvt(&parts, operands)?,
            "createpolicy" => self.policy(operands)?,
            "bra" | "brx" | "ret" | "exit" | "call" | "trap" => self.control(&parts, operands)?,
            "bar" | "barrier" | "shfl" | "vote" | "match" | "redux" | "activemask" | "mma" | "ldmatrix"
            | "stmatrix" => {
                self.warp(&parts, operands)?;
            }
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" => self.memory(&parts, operands)?,
            "cvta" => self.cvta(&parts, operands)?,
            "addc" | "subc" | "madc" => self.carry(&parts, operands)?,
            "add" | "sub" | "mad" if parts.contains(&"cc") => self.carry(&parts, operands)?,
            _ => {
                let name = normal_name(&parts);
                self.by_name(&name, operands, false)?;
            }
        }
        self.guard = Guard::Always;
        Ok(())
    }

    /// An instruction of the table; `fit` lets operands be of other kinds of registers.
    fn by_name(&mut self, name: &str, operands: &[Operand], fit: bool) -> Decoded {
        let Some(entry) = compute(name) else { return Err(self.unknown()) };
        let Some((result, sources)) = operands.split_first() else { return Err(self.unknown()) };
        let slots = self.sources(entry, sources, fit)?;
        let result = self.result_of(result, entry.result)?;
        self.push_compute(name, result, &slots)
    }

    fn sources(&mut self, entry: &Compute, operands: &[Operand], fit: bool) -> Decoded<Vec<Slot>> {
        if operands.len() != entry.sources.len() {
            return Err(self.error(format!(
                "{} operands, not {}",
                entry.sources.len() + 1,
                operands.len() + 1
            )));
        }
        entry.sources.iter().zip(operands).map(|(&kind, operand)| self.value(operand, kind, fit)).collect()
    }

    pub(super) fn unknown(&self) -> crate::ptx::PtxError {
        let opcode = self.kernel.sources.last().map_or("", |source| source.opcode.as_str());
        self.error(format!("{opcode} is not interpreted"))
    }

    fn mov(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let ty = parts.last().copied().unwrap_or_default();
        match operands {
            [result, Operand::Vector(parts)] => self.pack(ty, result, parts),
            [Operand::Vector(parts), source] => self.unpack(ty, parts, source),
            [result, Operand::Name(name)]
                if matches!(name.as_str(), "%clock" | "%clock_hi" | "%clock64" | "%globaltimer") =>
            {
                let register = self.result(result)?.ok_or_else(|| self.unknown())?;
                self.push(Inst::Clock(register));
                Ok(())
            }
            _ => self.by_name(&format!("mov.{ty}"), operands, false),
        }
    }

    fn bits_of(&self, ty: &str) -> Decoded<u32> {
        ty.trim_start_matches(['b', 'u', 's', 'f']).parse().map_err(|_| self.unknown())
    }

    fn pack(&mut self, ty: &str, result: &Operand, parts: &[Operand]) -> Decoded {
        let bits = self.bits_of(ty)?;
        self.by_name_of_parts("pack", bits, bits / parts.len().max(1) as u32, result, parts)
    }

    fn by_name_of_parts(
        &mut self,
        base: &str,
        to: u32,
        from: u32,
        result: &Operand,
        parts: &[Operand],
    ) -> Decoded {
        let name = format!("{base}.{to}.{from}");
        let operands: Vec<Operand> = [result].into_iter().chain(parts).cloned().collect();
        self.by_name(&name, &operands, false)
    }

    fn unpack(&mut self, ty: &str, parts: &[Operand], source: &Operand) -> Decoded {
        let bits = self.bits_of(ty)?;
        let part = bits / parts.len().max(1) as u32;
        let kind = if bits == 64 { Kind::Wide } else { Kind::Narrow };
        let source = self.value(source, kind, false)?;
        for (index, result) in parts.iter().enumerate() {
            if *result != Operand::Sink {
                let result = self.result_of(result, Kind::Narrow)?;
                self.push_compute(&format!("unpack.{bits}.{part}.{index}"), result, &[source])?;
            }
        }
        Ok(())
    }

    /// `setp.cmp{.bool}{.ftz}.type p{|q}, a, b{, c}`: p = cmp(a, b) bool c, and q = !cmp(a, b) bool c.
    fn setp(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let (results, sources) = operands.split_first().ok_or_else(|| self.unknown())?;
        let holds = match (results, sources.len()) {
            (Operand::Pair(..), _) | (_, 3) => self.kernel.counts.take(Kind::Pred),
            _ => self.result_of(results, Kind::Pred)?,
        };
        let combine = self.comparison(parts, sources, holds)?;
        let (p, q) = match results {
            Operand::Pair(p, q) => (&**p, Some(&**q)),
            p => (p, None),
        };
        if combine.is_none() && q.is_none() {
            return Ok(());
        }
        let c = sources.get(2).map(|operand| self.value(operand, Kind::Pred, false)).transpose()?;
        let p = self.result_of(p, Kind::Pred)?;
        let q = q.map(|q| self.result_of(q, Kind::Pred)).transpose()?;
        let mut writes = vec![(p, holds)];
        if let Some(q) = q {
            let fails = self.kernel.counts.take(Kind::Pred);
            self.push_compute("not.pred", fails, &[holds])?;
            writes.push((q, fails));
        }
        // The guard, or c, may be what is written first.
        if matches!(self.guard, Guard::If(slot) | Guard::Unless(slot) if slot == p) || c == Some(p) {
            writes.reverse();
        }
        for (result, value) in writes {
            match (combine, c) {
                (Some(operation), Some(c)) => {
                    self.push_compute(&format!("{operation}.pred"), result, &[value, c])?
                }
                _ => self.push_compute("mov.pred", result, &[value])?,
            }
        }
        Ok(())
    }

    /// Compares the first two sources, and says how the result is combined with a third.
    fn comparison<'p>(
        &mut self,
        parts: &[&'p str],
        sources: &[Operand],
        result: Slot,
    ) -> Decoded<Option<&'p str>> {
        let (Some(comparison), Some(ty)) = (parts.get(1), parts.last()) else { return Err(self.unknown()) };
        let combine = parts.iter().copied().find(|part| matches!(*part, "and" | "or" | "xor"));
        let flushed = parts.contains(&"ftz");
        if combine.is_some() != (sources.len() == 3)
            || parts.len() != 3 + usize::from(combine.is_some()) + usize::from(flushed)
        {
            return Err(self.unknown());
        }
        let name = format!("setp.{comparison}.{ty}");
        let entry = compute(&name).ok_or_else(|| self.unknown())?;
        let mut slots = self.sources(entry, &sources[..2.min(sources.len())], false)?;
        if flushed {
            for slot in &mut slots {
                let flushed = self.kernel.counts.take(Kind::Narrow);
                self.push_compute("cvt.ftz.f32.f32", flushed, &[*slot])?;
                *slot = flushed;
            }
        }
        self.push_compute(&name, result, &slots)?;
        Ok(combine)
    }

    /// `set.cmp{.bool}{.ftz}.dtype.stype d, a, b{, c}`
    fn set(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let [result, sources @ ..] = operands else { return Err(self.unknown()) };
        if parts.len() < 4 {
            return Err(self.unknown());
        }
        let target = parts[parts.len() - 2];
        let mut compared = parts.to_vec();
        compared.remove(parts.len() - 2);
        let holds = self.kernel.counts.take(Kind::Pred);
        if let Some(operation) = self.comparison(&compared, sources, holds)? {
            let c = self.value(&sources[2], Kind::Pred, false)?;
            self.push_compute(&format!("{operation}.pred"), holds, &[holds, c])?;
        }
        let result = self.result_of(result, Kind::Narrow)?;
        self.push_compute(&format!("set.{target}"), result, &[holds])
    }

    fn lop3(&mut self, operands: &[Operand]) -> Decoded {
        match operands {
            [values @ .., Operand::Integer(truth)] if values.len() == 4 && *truth < 256 => {
                self.by_name(&format!("lop3.b32.{truth}"), values, false)
            }
            _ => Err(self.unknown()),
        }
    }

    /// A result in a register wider than its type is extended, with its sign if the type has one.
    fn cvt(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let name = normal_name(parts);
        let entry = compute(&name).ok_or_else(|| self.unknown())?;
        let (result, sources) = operands.split_first().ok_or_else(|| self.unknown())?;
        let sources = self.sources(entry, sources, true)?;
        let Some(Register { kind, slot }) = self.result(result)? else { return Ok(()) };
        match (entry.result, kind) {
            (from, to) if from == to => self.push_compute(&name, slot, &sources),
            (Kind::Narrow, Kind::Wide) => {
                let narrow = self.kernel.counts.take(Kind::Narrow);
                self.push_compute(&name, narrow, &sources)?;
                let signed = parts.len() >= 3 && parts[parts.len() - 2].starts_with('s');
                self.push_compute(
                    if signed { "fit.narrow.wide.signed" } else { "fit.narrow.wide" },
                    slot,
                    &[narrow],
                )
            }
            _ => Err(self.error("the result does not fit into the register")),
        }
    }

    fn cvta(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let name = match parts {
            ["cvta", "to", space, "u64"] => format!("cvta.to.{space}.u64"),
            ["cvta", space, "u64"] => format!("cvta.{space}.u64"),
            _ => return Err(self.unknown()),
        };
        let name = name.replace("shared::cta", "shared").replace("param::entry", "param");
        // Parameters of functions live in the memory of the thread that calls.
        let local = matches!(operands.get(1), Some(Operand::Name(variable)) if self.is_local(variable));
        let name = if local { name.replace("param", "local") } else { name };
        self.by_name(&name, operands, false)
    }

    fn is_local(&mut self, name: &str) -> bool {
        matches!(self.lookup(name), Ok(super::scope::Binding::Local(_)))
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.lo.cc`, `madc.hi` and so on: sums that take a carry, give one, or both.
    fn carry(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let (ty, kind) = self.type_of(parts)?;
        let unsigned = if kind == Kind::Wide { "u64" } else { "u32" };
        let [result, a, b, rest @ ..] = operands else { return Err(self.unknown()) };
        let (mut a, mut b) = (self.value(a, kind, false)?, self.value(b, kind, false)?);
        if let (Some(half @ ("lo" | "hi")), [c]) = (parts.get(1).copied(), rest) {
            let product = self.kernel.counts.take(kind);
            self.push_compute(&format!("mul.{half}.{ty}"), product, &[a, b])?;
            (a, b) = (product, self.value(c, kind, false)?);
        }
        let result = self.result_of(result, kind)?;
        let flag = *self.carry.get_or_insert_with(|| self.kernel.counts.take(Kind::Pred));
        let carry = if parts[0].ends_with('c') { flag } else { self.constant(Kind::Pred, 0) };
        let operation = if parts[0].starts_with("sub") { "subc" } else { "addc" };
        let next = self.kernel.counts.take(Kind::Pred);
        self.push_compute(&format!("{operation}.carry.{unsigned}"), next, &[a, b, carry])?;
        self.push_compute(&format!("{operation}.{unsigned}"), result, &[a, b, carry])?;
        if parts.contains(&"cc") {
            self.push_compute("mov.pred", flag, &[next])?;
        }
        Ok(())
    }

    /// A cache policy is any number.
    fn policy(&mut self, operands: &[Operand]) -> Decoded {
        let Some(result) = operands.first() else { return Err(self.unknown()) };
        let result = self.result_of(result, Kind::Wide)?;
        let zero = self.constant(Kind::Wide, 0);
        self.push_compute("mov.b64", result, &[zero])
    }

    /// Numbers of the space of an address.
    pub(super) fn space_of(&self, parts: &[&str]) -> Space {
        parts.iter().find_map(|part| space_name(part)).unwrap_or(Space::Generic)
    }

    /// The type at the end of an opcode.
    pub(super) fn type_of<'p>(&self, parts: &[&'p str]) -> Decoded<(&'p str, Kind)> {
        let ty = parts.last().copied().unwrap_or_default();
        kind_of(ty).map(|kind| (ty, kind)).ok_or_else(|| self.unknown())
    }
}

pub(super) fn space_name(part: &str) -> Option<Space> {
    Some(match part {
        "global" => Space::Global,
        "const" => Space::Const,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

/// A name of the table: `add.rn.f32` is `add.f32`, since that rounds to nearest too; types of bits and of unsigned integers are
/// the same for some instructions.
fn normal_name(parts: &[&str]) -> String {
    let (base, ty) = (parts[0], parts.last().copied().unwrap_or_default());
    let float = ty.contains('f');
    let mut kept: Vec<&str> = parts.to_vec();
    match base {
        "add" | "sub" | "mul" | "fma" | "mad" | "div" | "sqrt" | "rcp" if float => {
            kept.retain(|part| *part != "rn");
            let rounded = parts.iter().any(|part| matches!(*part, "rn" | "rz" | "rm" | "rp"));
            let unrounded = matches!(base, "div" | "sqrt" | "rcp" | "fma" | "mad") && !rounded;
            if unrounded {
                // Without a rounding these are approximate, or not PTX.
                kept.push("approximate");
            }
            if base == "mad" {
                kept[0] = "fma";
            }
        }
        "cvt" => {
            let to = parts.get(parts.len().wrapping_sub(2)).copied().unwrap_or_default();
            if float && !to.contains('f') {
                kept.retain(|part| *part != "sat");
            }
        }
        _ => {}
    }
    kept.join(".")
}
