//! Where registers of a function get their values and where these go.

use std::collections::HashMap;

use crate::ptx::{Function, Instruction, Operand, Statement};

/// Instructions by the names of the registers that they write and read.
pub(super) struct Uses<'a> {
    writers: HashMap<&'a str, Vec<&'a Instruction>>,
    readers: HashMap<&'a str, Vec<&'a Instruction>>,
}

impl<'a> Uses<'a> {
    pub(super) fn of(function: &'a Function) -> Self {
        let mut uses = Uses { writers: HashMap::new(), readers: HashMap::new() };
        for statement in &function.body {
            if let Statement::Instruction(instruction) = statement {
                uses.add(instruction);
            }
        }
        uses
    }

    /// The one instruction that writes a register.
    pub(super) fn writer(&self, operand: &Operand) -> Option<&'a Instruction> {
        let Operand::Name(name) = operand else { return None };
        match self.writers.get(name.as_str()).map(Vec::as_slice) {
            Some(&[writer]) => Some(writer),
            _ => None,
        }
    }

    /// The instructions that read a register, one for each time.
    pub(super) fn readers(&self, operand: &Operand) -> &[&'a Instruction] {
        let Operand::Name(name) = operand else { return &[] };
        self.readers.get(name.as_str()).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, instruction: &'a Instruction) {
        if let Some((name, _)) = &instruction.guard {
            self.readers.entry(name).or_default().push(instruction);
        }
        let results = usize::from(has_result(instruction));
        for (at, operand) in instruction.operands.iter().enumerate() {
            let map = if at < results { &mut self.writers } else { &mut self.readers };
            names(operand, &mut |name| map.entry(name).or_default().push(instruction));
        }
        // What an address is made of is read, wherever it stands.
        if let (1, Some(Operand::Address(Some(name), _))) = (results, instruction.operands.first()) {
            self.readers.entry(name).or_default().push(instruction);
        }
    }
}

/// Whether the first operand is the result.
fn has_result(instruction: &Instruction) -> bool {
    let base = instruction.opcode.split('.').next().unwrap_or_default();
    !matches!(
        base,
        "st" | "red" | "bra" | "bar" | "barrier" | "cp" | "ret" | "exit" | "membar" | "fence" | "stmatrix"
    )
}

fn names<'a>(operand: &'a Operand, each: &mut impl FnMut(&'a str)) {
    match operand {
        Operand::Name(name) | Operand::Not(name) | Operand::Address(Some(name), _) => each(name),
        Operand::Vector(all) | Operand::Group(all) => all.iter().for_each(|operand| names(operand, each)),
        Operand::Pair(a, b) => [a, b].into_iter().for_each(|operand| names(operand, each)),
        _ => {}
    }
}
