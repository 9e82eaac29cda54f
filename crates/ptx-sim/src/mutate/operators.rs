//! What is done to an instruction, by name.

use super::uses::Uses;
use crate::ptx::{Instruction, Operand, type_bytes};

/// An operator's name, and the instructions that take the place of the one it is applied to.
type Change = (&'static str, Vec<Instruction>);

/// The highest bit of an f32's fraction: a change that no sum hides.
const FLIPPED: u32 = 1 << 22;

/// Every operator's change of an instruction.
pub(super) fn changes(instruction: &Instruction, uses: &Uses) -> Vec<Change> {
    let operator = Operators { instruction, uses, parts: instruction.opcode.split('.').collect() };
    let changes = match operator.parts[0] {
        "bar" | "barrier" => operator.barrier(),
        "cp" => operator.copy(),
        "bra" => operator.branch(),
        "setp" => operator.comparison(),
        "ld" | "ldmatrix" => operator.load(),
        "st" | "red" => operator.store(),
        "shfl" => operator.shuffle(),
        "mma" => operator.matrix(),
        _ => operator.arithmetic(),
    };
    changes.into_iter().flatten().collect()
}

struct Operators<'a> {
    instruction: &'a Instruction,
    uses: &'a Uses<'a>,
    /// Of the opcode, between its dots.
    parts: Vec<&'a str>,
}

impl Operators<'_> {
    /// Threads do not wait for each other.
    fn barrier(&self) -> Vec<Option<Change>> {
        let gives_nothing = matches!(self.parts[1], "sync" | "warp" | "cta");
        vec![gives_nothing.then(|| ("barrier", Vec::new()))]
    }

    /// Asynchronous copies are waited for too early or never, not committed, or between other places.
    fn copy(&self) -> Vec<Option<Change>> {
        match self.parts[2] {
            "wait_all" => vec![Some(("wait", Vec::new()))],
            "wait_group" => vec![Some(("wait", Vec::new())), self.next_integer(0, "wait+")],
            "commit_group" => vec![Some(("commit", Vec::new()))],
            _ => {
                let Some(Operand::Integer(bytes)) = self.operand(2) else { return Vec::new() };
                let bytes = *bytes as i64;
                vec![
                    self.moved(0, bytes, "to+"),
                    self.moved(0, -bytes, "to-"),
                    self.moved(1, bytes, "offset+"),
                    self.moved(1, -bytes, "offset-"),
                    Some(("store", Vec::new())),
                ]
            }
        }
    }

    /// A branch is taken where it is not. Where a comparison is for this branch alone, its own change is the same.
    fn branch(&self) -> Vec<Option<Change>> {
        let Some((name, negated)) = &self.instruction.guard else { return Vec::new() };
        let predicate = Operand::Name(name.clone());
        let is_same = self.uses.readers(&predicate).len() == 1
            && self.uses.writer(&predicate).is_some_and(|writer| writer.opcode.starts_with("setp."));
        let guard = Some((name.clone(), !negated));
        vec![(!is_same).then(|| ("negate", vec![Instruction { guard, ..self.instruction.clone() }]))]
    }

    /// A comparison holds where it does not, or also where both are equal, or not there.
    fn comparison(&self) -> Vec<Option<Change>> {
        let is_float = self.ty() == "f32" || self.ty() == "f64";
        let negated = match self.parts[1] {
            "eq" if is_float => "neu",
            "ne" if is_float => "equ",
            "lt" if is_float => "geu",
            "le" if is_float => "gtu",
            "gt" if is_float => "leu",
            "ge" if is_float => "ltu",
            "eq" | "equ" => "ne",
            "ne" | "neu" => "eq",
            "lt" | "ltu" => "ge",
            "le" | "leu" => "gt",
            "gt" | "gtu" => "le",
            "ge" | "geu" => "lt",
            "num" => "nan",
            "nan" => "num",
            _ => return Vec::new(),
        };
        let boundary = match self.parts[1] {
            "lt" => "le",
            "le" => "lt",
            "gt" => "ge",
            "ge" => "gt",
            "ltu" => "leu",
            "leu" => "ltu",
            "gtu" => "geu",
            "geu" => "gtu",
            _ => "",
        };
        // A float is hardly ever a constant exactly.
        let is_rare = is_float && matches!(self.operand(2), Some(Operand::F32(_) | Operand::F64(_)));
        let boundary =
            (!boundary.is_empty() && !is_rare && !self.chooses_between_its_operands()).then_some(boundary);
        vec![
            Some(("negate", self.with_part(1, negated))),
            boundary.map(|boundary| ("boundary", self.with_part(1, boundary))),
            self.operand(2)
                .filter(|_| !is_float && boundary.is_none())
                .and_then(|_| self.next_integer(2, "immediate")),
        ]
    }

    /// Whether a comparison is there for a choice between what is compared, where it does not matter if both are equal.
    fn chooses_between_its_operands(&self) -> bool {
        let [result, a, b, ..] = self.instruction.operands.as_slice() else { return false };
        let is_choice = |reader: &&Instruction| match reader.operands.as_slice() {
            [_, x, y, _] if reader.opcode.starts_with("selp.") => (x, y) == (a, b) || (x, y) == (b, a),
            _ => false,
        };
        let readers = self.uses.readers(result);
        !readers.is_empty() && readers.iter().all(is_choice)
    }

    /// What lies beside is loaded, or numbers lose their sign.
    fn load(&self) -> Vec<Option<Change>> {
        let is_parameter = self.parts.contains(&"param");
        let by = match self.parts[0] {
            "ldmatrix" => 16,
            _ => self.bytes(0),
        };
        if is_parameter {
            return Vec::new();
        }
        let sign =
            |from: &str, to| (self.ty() == from).then(|| ("sign", self.with_part(self.parts.len() - 1, to)));
        vec![
            self.moved(1, by, "offset+"),
            self.moved(1, -by, "offset-"),
            sign("s8", "u8"),
            sign("s16", "u16"),
        ]
    }

    /// It is stored beside, or not at all.
    fn store(&self) -> Vec<Option<Change>> {
        let by = self.bytes(1);
        vec![self.moved(0, by, "offset+"), self.moved(0, -by, "offset-"), Some(("store", Vec::new()))]
    }

    /// A value is taken from another lane, or a lane is left out.
    fn shuffle(&self) -> Vec<Option<Change>> {
        let is_butterfly = self.parts.contains(&"bfly");
        // Half of a distance, since 1 more still reaches every lane in the end.
        let other = |lane: u64| if is_butterfly { lane / 2 } else { lane + 1 };
        let lane = self.operand(2).and_then(|operand| self.constant(operand));
        let lane = lane.map(|lane| ("shuffle", self.with_operand(2, Operand::Integer(other(lane)))));
        let mask = self.instruction.operands.len().saturating_sub(1);
        let mask = (mask == 4).then(|| ("mask", self.with_operand(mask, Operand::Integer(0x7fff_ffff))));
        vec![lane, mask]
    }

    /// A product is left out, or its factors change their places.
    fn matrix(&self) -> Vec<Option<Change>> {
        let [Operand::Vector(results), _, _, Operand::Vector(sums)] = self.instruction.operands.as_slice()
        else {
            return Vec::new();
        };
        let moves = results.iter().zip(sums).map(|(result, sum)| Instruction {
            opcode: "mov.b32".into(),
            operands: vec![result.clone(), sum.clone()],
            ..self.instruction.clone()
        });
        let mut factors = self.instruction.clone();
        for operand in &mut factors.operands[1..3] {
            if let Operand::Vector(registers) = operand {
                registers.reverse();
            }
        }
        let is_other = factors.operands != self.instruction.operands;
        vec![Some(("drop", moves.collect())), is_other.then(|| ("order", vec![factors]))]
    }

    fn arithmetic(&self) -> Vec<Option<Change>> {
        vec![
            self.swapped("addsub", &[("add", "sub"), ("sub", "add")]),
            self.swapped("minmax", &[("min", "max"), ("max", "min")]),
            self.swapped("logic", &[("and", "or"), ("or", "and"), ("xor", "or")]),
            self.dropped(),
            self.order(),
            self.immediate(),
            self.rounding(),
            self.sign(),
        ]
    }

    /// Another operation of the same form.
    fn swapped(&self, operator: &'static str, pairs: &[(&str, &str)]) -> Option<Change> {
        let (_, to) = pairs.iter().find(|(from, _)| *from == self.parts[0])?;
        let is_carry = self.parts.contains(&"cc");
        (!is_carry).then(|| (operator, self.with_part(0, to)))
    }

    /// The result is an operand: the sum of a product and a sum, the first of others.
    fn dropped(&self) -> Option<Change> {
        let kept = match self.parts[0] {
            "mad" | "fma" if !self.parts.contains(&"wide") => 3,
            "dp4a" | "dp2a" => 3,
            "mul" if !self.parts.contains(&"wide") => 1,
            "shl" | "shr" | "neg" | "abs" | "not" | "prmt" => 1,
            _ => return None,
        };
        let kept = self.operand(kept)?.clone();
        let bytes = match self.parts[0] {
            "dp4a" | "dp2a" => 4,
            _ => type_bytes(self.ty())?,
        };
        let opcode = match bytes {
            0 => "mov.pred".into(),
            bytes => format!("mov.b{}", bytes * 8),
        };
        let operands = vec![self.operand(0)?.clone(), kept];
        Some(("drop", vec![Instruction { opcode, operands, ..self.instruction.clone() }]))
    }

    /// Operands change their places, where that matters.
    fn order(&self) -> Option<Change> {
        let matters = matches!(self.parts[0], "div" | "rem" | "selp" | "prmt");
        let [_, a, b, ..] = self.instruction.operands.as_slice() else { return None };
        let mut changed = self.instruction.clone();
        changed.operands.swap(1, 2);
        (matters && a != b).then(|| ("order", vec![changed]))
    }

    /// A constant is another: an integer 1 more, a float different in the first bit of its fraction.
    fn immediate(&self) -> Option<Change> {
        // A choice between constants is one between true and false more often than not.
        let is_for_shuffles = || {
            let readers = self.uses.readers(&self.instruction.operands[0]);
            !readers.is_empty() && readers.iter().all(|it| it.opcode.starts_with("shfl."))
        };
        match self.parts[0] {
            "selp" | "ret" | "exit" | "call" | "atom" => return None,
            "mov" if is_for_shuffles() => return None,
            _ => {}
        }
        let is_constant = |operand: &Operand| matches!(operand, Operand::Integer(_) | Operand::F32(_));
        let at = self.instruction.operands.iter().rposition(is_constant)?;
        match self.operand(at)? {
            // A sum would not notice what is next to 0.
            Operand::F32(0) => Some(("immediate", self.with_operand(at, Operand::F32(1f32.to_bits())))),
            Operand::F32(bits) => Some(("immediate", self.with_operand(at, Operand::F32(bits ^ FLIPPED)))),
            _ if self.selects_the_same_bits(at) => None,
            _ => self.next_integer(at, "immediate"),
        }
    }

    /// Whether a constant that is 1 more selects other bits only where there are none: of a mask those that a shift to the left
    /// leaves zero, of a field that ends where its register does those beyond.
    fn selects_the_same_bits(&self, at: usize) -> bool {
        let integer = |at: usize| self.operand(at).and_then(|operand| self.constant(operand));
        match (self.parts[0], self.instruction.operands.as_slice()) {
            ("and", [_, value, Operand::Integer(mask)]) => {
                let shift = self.uses.writer(value).filter(|writer| writer.opcode.starts_with("shl."));
                let by = shift.and_then(|shift| self.constant(shift.operands.get(2)?)).unwrap_or(0);
                (mask ^ mask.wrapping_add(1)).checked_shr(by as u32).unwrap_or(0) == 0
            }
            ("bfi", _) if at == 4 => integer(3).zip(integer(4)).is_some_and(|(from, len)| {
                type_bytes(self.ty()).is_some_and(|bytes| from + len >= 8 * bytes)
            }),
            _ => false,
        }
    }

    /// Rounded towards zero instead of to nearest, and up instead of towards zero.
    fn rounding(&self) -> Option<Change> {
        let at = self.parts.iter().position(|part| matches!(*part, "rn" | "rni" | "rzi"))?;
        let [to, from] = [self.parts.len() - 2, self.parts.len() - 1].map(|at| self.parts[at]);
        let source = self.uses.writer(self.operand(1)?);
        let is_integral = source
            .is_some_and(|it| it.opcode.starts_with("cvt.rni.") || it.opcode.starts_with("cvt.rn.f32."));
        let is_loaded = source.is_some_and(|it| it.opcode.starts_with("ld."));
        let other = match (self.parts[0], self.parts[at]) {
            ("add" | "sub" | "mul" | "fma", "rn") if from == "f32" => "rz",
            ("cvt", "rni") if !is_integral => "rzi",
            ("cvt", "rzi") if !is_integral => "rpi",
            ("cvt", "rn") if from == "f32" => "rz",
            // Integers of up to 24 bits are floats; of a sum of products nothing here says how long it is.
            ("cvt", "rn") if to == "f32" && is_loaded && matches!(from, "s32" | "u32") => "rz",
            _ => return None,
        };
        Some(("rounding", self.with_part(at, other)))
    }

    /// Small signed integers lose their sign.
    fn sign(&self) -> Option<Change> {
        let last = self.parts.len() - 1;
        match (self.parts[0], self.parts[last]) {
            ("cvt", "s8") => Some(("sign", self.with_part(last, "u8"))),
            ("dp4a", "s32") => Some(("sign", self.with_part(last, "u32"))),
            _ => None,
        }
    }

    fn ty(&self) -> &str {
        self.parts[self.parts.len() - 1]
    }

    /// The integer that an operand is, itself or as a register that is nothing else.
    fn constant(&self, operand: &Operand) -> Option<u64> {
        let moved = || self.uses.writer(operand).filter(|writer| writer.opcode.starts_with("mov."));
        match operand {
            Operand::Integer(value) => Some(*value),
            _ => match moved()?.operands.get(1)? {
                Operand::Integer(value) => Some(*value),
                _ => None,
            },
        }
    }

    fn operand(&self, at: usize) -> Option<&Operand> {
        self.instruction.operands.get(at)
    }

    /// Bytes of an access, whose value is the operand there.
    fn bytes(&self, value: usize) -> i64 {
        let elements = match self.operand(value) {
            Some(Operand::Vector(elements)) => elements.len() as i64,
            _ => 1,
        };
        elements * type_bytes(self.ty()).unwrap_or(4).max(1) as i64
    }

    fn moved(&self, at: usize, by: i64, operator: &'static str) -> Option<Change> {
        let Some(Operand::Address(base, offset)) = self.operand(at) else { return None };
        Some((operator, self.with_operand(at, Operand::Address(base.clone(), offset.wrapping_add(by)))))
    }

    fn next_integer(&self, at: usize, operator: &'static str) -> Option<Change> {
        let Some(Operand::Integer(value)) = self.operand(at) else { return None };
        Some((operator, self.with_operand(at, Operand::Integer(value.wrapping_add(1)))))
    }

    fn with_operand(&self, at: usize, operand: Operand) -> Vec<Instruction> {
        let mut changed = self.instruction.clone();
        changed.operands[at] = operand;
        vec![changed]
    }

    fn with_part(&self, at: usize, part: &str) -> Vec<Instruction> {
        let mut parts = self.parts.clone();
        parts[at] = part;
        vec![Instruction { opcode: parts.join("."), ..self.instruction.clone() }]
    }
}
