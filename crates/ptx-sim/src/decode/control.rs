//! Branches, calls and ends.

use super::{
    Decoded, Decoder, Guard, Inst,
    scope::{Binding, Scope},
};
use crate::{ptx::Operand, vm::Kind};

impl<'a> Decoder<'a> {
    pub(super) fn control(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        match (parts, operands) {
            (["bra"] | ["bra", "uni"], [Operand::Name(name)]) => {
                let label = self.label(name)?;
                self.push(Inst::Branch(label));
            }
            (["brx", "idx"] | ["brx", "idx", "uni"], [index, Operand::Name(list)]) => {
                let index = self.value(index, Kind::Narrow, false)?;
                let Binding::Targets(names) = self.lookup(list)? else { return Err(self.unknown()) };
                let targets = names.iter().map(|name| self.label(name)).collect::<Decoded<_>>()?;
                self.push(Inst::BranchIndexed { index, targets });
            }
            (["ret"] | ["ret", "uni"], []) => match self.calls.last() {
                Some(&(_, end)) => self.push(Inst::Branch(end)),
                None => self.push(Inst::Exit),
            },
            (["exit"], []) => self.push(Inst::Exit),
            (["trap"], []) => self.push(Inst::Trap),
            (["call"] | ["call", "uni"], _) => self.call(operands)?,
            _ => return Err(self.unknown()),
        }
        Ok(())
    }

    /// Puts the function here, with its parameters' names for the variables that the call gives.
    fn call(&mut self, operands: &[Operand]) -> Decoded {
        let (results, name, arguments): (&[Operand], _, &[Operand]) = match operands {
            [Operand::Name(name)] => (&[], name, &[]),
            [Operand::Name(name), Operand::Group(arguments)] => (&[], name, arguments),
            [Operand::Group(results), Operand::Name(name)] => (results, name, &[]),
            [Operand::Group(results), Operand::Name(name), Operand::Group(arguments)] => {
                (results, name, arguments)
            }
            _ => return Err(self.unknown()),
        };
        let module = self.module;
        let function = module.functions.iter().find(|function| !function.entry && function.name == *name);
        let Some(function) = function else {
            return Err(self.error(format!("{name} is called, and has no body in the module")));
        };
        if self.guard != Guard::Always {
            return Err(self.error("a call with a guard is not interpreted"));
        }
        if self.calls.iter().any(|(caller, _)| caller == name) || self.calls.len() > 64 {
            return Err(self.error(format!("{name} calls itself, which is not interpreted")));
        }
        let mut scope = Scope::default();
        let formals = function.results.iter().chain(&function.parameters);
        let actuals: Vec<&Operand> = results.iter().chain(arguments).collect();
        if actuals.len() != function.results.len() + function.parameters.len() {
            return Err(self.error(format!("{name} has another number of parameters")));
        }
        for (formal, actual) in formals.zip(actuals) {
            let Operand::Name(variable) = actual else { return Err(self.unknown()) };
            match self.lookup(variable)? {
                binding @ Binding::Local(_) => scope.bind(&formal.name, binding),
                _ => return Err(self.error(format!("{variable} is no variable of .param"))),
            }
        }
        let end = self.labels.len() as u32;
        self.labels.push(None);
        self.calls.push((name.clone(), end));
        let outer = std::mem::take(&mut self.scopes);
        self.function_body(&function.body, scope)?;
        self.scopes = outer;
        self.calls.pop();
        self.labels[end as usize] = Some(self.kernel.steps.len() as u32);
        Ok(())
    }
}
