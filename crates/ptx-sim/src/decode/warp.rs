//! Instructions of the lanes of a warp together, barriers, and matrices.

use super::{
    Barrier, BarrierAct, Decoded, Decoder, Element, Inst, LoadMatrix, Match, Multiply, Reduce, Register,
    Shuffle, ShuffleMode, Vote, VoteMode,
};
use crate::{
    ptx::Operand,
    vm::{Kind, Slot},
};

impl Decoder<'_> {
    pub(super) fn warp(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        match parts[0] {
            "bar" | "barrier" => self.barrier(parts, operands),
            "shfl" => self.shuffle(parts, operands),
            "vote" => self.vote(parts, operands),
            "match" => self.matched(parts, operands),
            "redux" => self.redux(parts, operands),
            "activemask" => {
                let [result] = operands else { return Err(self.unknown()) };
                let result = self.result_of(result, Kind::Narrow)?;
                self.push(Inst::ActiveMask(result));
                Ok(())
            }
            "mma" => self.multiply(parts, operands),
            _ => self.matrix(parts, operands),
        }
    }

    fn barrier(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let kept: Vec<&str> =
            parts[1..].iter().copied().filter(|part| !matches!(*part, "cta" | "aligned")).collect();
        match (kept.as_slice(), operands) {
            (["warp", "sync"], [mask]) => {
                let mask = self.value(mask, Kind::Narrow, false)?;
                self.push(Inst::WarpSync { mask });
                Ok(())
            }
            (["sync"], [id, threads @ ..]) => self.push_barrier(BarrierAct::Sync, id, threads.first()),
            (["arrive"], [id, threads]) => self.push_barrier(BarrierAct::Arrive, id, Some(threads)),
            (["red", op, ty], [result, id, rest @ ..]) => {
                let [threads @ .., source] = rest else { return Err(self.unknown()) };
                let source = self.value(source, Kind::Pred, false)?;
                let kind = if *ty == "pred" { Kind::Pred } else { Kind::Narrow };
                let result = self.result_of(result, kind)?;
                let act = match (*op, *ty) {
                    ("popc", "u32") => BarrierAct::Count { source, result },
                    ("and", "pred") => BarrierAct::All { source, result },
                    ("or", "pred") => BarrierAct::Any { source, result },
                    _ => return Err(self.unknown()),
                };
                self.push_barrier(act, id, threads.first())
            }
            _ => Err(self.unknown()),
        }
    }

    fn push_barrier(&mut self, act: BarrierAct, id: &Operand, threads: Option<&Operand>) -> Decoded {
        let id = self.value(id, Kind::Narrow, false)?;
        let threads = threads.map(|threads| self.value(threads, Kind::Narrow, false)).transpose()?;
        self.push(Inst::Barrier(Box::new(Barrier { act, id, threads })));
        Ok(())
    }

    fn shuffle(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let mode = match parts {
            ["shfl", "sync", "up", "b32"] => ShuffleMode::Up,
            ["shfl", "sync", "down", "b32"] => ShuffleMode::Down,
            ["shfl", "sync", "bfly", "b32"] => ShuffleMode::Butterfly,
            ["shfl", "sync", "idx", "b32"] => ShuffleMode::Index,
            _ => return Err(self.unknown()),
        };
        let [result, value, by, clamp, mask] = operands else { return Err(self.unknown()) };
        let (result, in_range) = match result {
            Operand::Pair(result, in_range) => {
                (&**result, self.result(in_range)?.map(|register| register.slot))
            }
            result => (result, None),
        };
        let result = self.result(result)?.map(|register| register.slot);
        let [value, by, clamp, mask] = self.narrow_values([value, by, clamp, mask])?;
        self.push(Inst::Shuffle(Box::new(Shuffle { mode, result, in_range, value, by, clamp, mask })));
        Ok(())
    }

    fn narrow_values<const N: usize>(&mut self, operands: [&Operand; N]) -> Decoded<[Slot; N]> {
        let mut slots = [0; N];
        for (slot, operand) in slots.iter_mut().zip(operands) {
            *slot = self.value(operand, Kind::Narrow, false)?;
        }
        Ok(slots)
    }

    fn vote(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let (mode, kind) = match parts {
            ["vote", "sync", "all", "pred"] => (VoteMode::All, Kind::Pred),
            ["vote", "sync", "any", "pred"] => (VoteMode::Any, Kind::Pred),
            ["vote", "sync", "uni", "pred"] => (VoteMode::Uniform, Kind::Pred),
            ["vote", "sync", "ballot", "b32"] => (VoteMode::Ballot, Kind::Narrow),
            _ => return Err(self.unknown()),
        };
        let [result, source, mask] = operands else { return Err(self.unknown()) };
        let source = self.value(source, Kind::Pred, false)?;
        let mask = self.value(mask, Kind::Narrow, false)?;
        let result = self.result_of(result, kind)?;
        self.push(Inst::Vote(Box::new(Vote { mode, result, source, mask })));
        Ok(())
    }

    fn matched(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let (&["match", mode @ ("any" | "all"), "sync", ty @ ("b32" | "b64")], [result, value, mask]) =
            (parts, operands)
        else {
            return Err(self.unknown());
        };
        let kind = if ty == "b64" { Kind::Wide } else { Kind::Narrow };
        let (result, agree) = match result {
            Operand::Pair(result, agree) => (&**result, self.result(agree)?.map(|register| register.slot)),
            result => (result, None),
        };
        let all = (mode == "all").then_some(agree);
        let value = Register { kind, slot: self.value(value, kind, false)? };
        let mask = self.value(mask, Kind::Narrow, false)?;
        let result = self.result_of(result, Kind::Narrow)?;
        self.push(Inst::Match(Box::new(Match { all, result, value, mask })));
        Ok(())
    }

    fn redux(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let (&["redux", "sync", name, ty @ ("u32" | "s32" | "b32")], [result, value, mask]) =
            (parts, operands)
        else {
            return Err(self.unknown());
        };
        let op = self.reduction(name, ty)?;
        let [value, mask] = self.narrow_values([value, mask])?;
        let result = self.result_of(result, Kind::Narrow)?;
        self.push(Inst::Reduce(Box::new(Reduce { op, signed: ty == "s32", result, value, mask })));
        Ok(())
    }

    /// `ldmatrix` and `stmatrix`, `.sync.aligned.m8n8.x4{.trans}.shared.b16`.
    fn matrix(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let store = parts[0] == "stmatrix";
        let (address, values) = match operands {
            [address, values] if store => (address, values),
            [values, address] => (address, values),
            _ => return Err(self.unknown()),
        };
        let transposed = parts.contains(&"trans");
        let kept: Vec<&str> = parts[1..].iter().copied().filter(|part| *part != "trans").collect();
        let count = match kept.as_slice() {
            ["sync", "aligned", "m8n8", count @ ("x1" | "x2" | "x4"), "shared" | "shared::cta", "b16"] => {
                count[1..].parse::<usize>().unwrap_or(0)
            }
            _ => return Err(self.unknown()),
        };
        let registers = self.registers(values, count, store)?;
        let address = self.address(crate::ptx::Space::Shared, address)?;
        self.push(Inst::LoadMatrix(Box::new(LoadMatrix { address, transposed, store, registers })));
        Ok(())
    }

    /// The registers of a vector of fragments.
    fn registers(&mut self, operand: &Operand, count: usize, sources: bool) -> Decoded<Vec<Slot>> {
        let operands = match operand {
            Operand::Vector(operands) => operands.as_slice(),
            single => std::slice::from_ref(single),
        };
        if operands.len() != count {
            return Err(self.error(format!("{count} registers of a matrix, not {}", operands.len())));
        }
        let slot = |operand: &Operand| match sources {
            true => self.value(operand, Kind::Narrow, false),
            false => self.result_of(operand, Kind::Narrow),
        };
        operands.iter().map(slot).collect()
    }

    /// `mma.sync.aligned.m16n8kK.row.col.dtype.atype.btype.ctype`
    fn multiply(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let &["mma", "sync", "aligned", shape, "row", "col", d_type, a_type, b_type, c_type] = parts else {
            return Err(self.unknown());
        };
        let [d, a, b, c] = operands else { return Err(self.unknown()) };
        let (k, [a_type, b_type]) = match (shape, d_type, c_type) {
            ("m16n8k16", "s32", "s32") => (16, [integer(a_type), integer(b_type)]),
            ("m16n8k32", "s32", "s32") => (32, [integer(a_type), integer(b_type)]),
            ("m16n8k8", "f32", "f32") => (8, [float(a_type), float(b_type)]),
            ("m16n8k16", "f32", "f32") => (16, [float(a_type), float(b_type)]),
            _ => return Err(self.unknown()),
        };
        let (Some(a_type), Some(b_type)) = (a_type, b_type) else { return Err(self.unknown()) };
        let bytes = if d_type == "s32" { 1 } else { 2 };
        if bytes == 2 && a_type != b_type {
            return Err(self.unknown());
        }
        let multiply = Multiply {
            a_type,
            b_type,
            a: self.registers(a, 16 * k * bytes / 128, true)?,
            b: self.registers(b, 8 * k * bytes / 128, true)?,
            c: self.registers(c, 4, true)?,
            d: self.registers(d, 4, false)?,
        };
        self.push(Inst::Multiply(Box::new(multiply)));
        Ok(())
    }
}

fn integer(name: &str) -> Option<Element> {
    match name {
        "s8" => Some(Element::S8),
        "u8" => Some(Element::U8),
        _ => None,
    }
}

fn float(name: &str) -> Option<Element> {
    match name {
        "f16" => Some(Element::F16),
        "bf16" => Some(Element::Bf16),
        _ => None,
    }
}
