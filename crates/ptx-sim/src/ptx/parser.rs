//! Tokens as a module: what the PTX manual calls the syntax of statements.

use super::lexer::{Token, tokens};
use super::{Function, Instruction, Module, Operand, PtxError, Space, Statement, Variable};

/// Parses a module.
///
/// # Errors
///
/// The line, and what is not understood there.
pub(crate) fn parse(text: &str) -> Result<Module, PtxError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let mut module = Module::default();
    while parser.peek().is_some() {
        parser.top_level(&mut module)?;
    }
    match module.version {
        (0, 0) => Err(PtxError::new(1, "no .version: this is not PTX")),
        _ => Ok(module),
    }
}

/// The bytes of a type, and whether there is one of that name; a predicate has no bytes.
pub(crate) fn type_bytes(name: &str) -> Option<u64> {
    Some(match name {
        "pred" => 0,
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

struct Parser {
    tokens: Vec<(Token, u32)>,
    at: usize,
}

type Parsed<T> = Result<T, PtxError>;

impl Parser {
    fn top_level(&mut self, module: &mut Module) -> Parsed<()> {
        let word = self.word()?;
        match word.as_str() {
            ".version" => module.version = self.version()?,
            ".target" => module.target = self.target()?,
            ".address_size" => self.address_size()?,
            ".file" | ".loc" => self.skip_line(),
            ".section" => self.skip_section()?,
            ".pragma" => self.skip_to(';')?,
            ".visible" | ".weak" | ".common" => {}
            ".extern" => self.external(module)?,
            ".entry" | ".func" => {
                let function = self.function(word == ".entry")?;
                module.functions.extend(function);
            }
            ".global" | ".const" | ".shared" => {
                let space = space(&word).unwrap_or(Space::Global);
                module.variables.extend(self.variables(space, false)?);
            }
            _ => return Err(self.error(format!("{word} is not known at the top of a module"))),
        }
        Ok(())
    }

    fn external(&mut self, module: &mut Module) -> Parsed<()> {
        let word = self.word()?;
        match (word.as_str(), space(&word)) {
            (".func", _) => self.skip_to(';'),
            (_, Some(space)) => {
                module.variables.extend(self.variables(space, true)?);
                Ok(())
            }
            _ => Err(self.error(format!(".extern {word} is not known"))),
        }
    }

    /// `8.0` was read as a decimal number.
    fn version(&mut self) -> Parsed<(u32, u32)> {
        match self.next() {
            Some(Token::F64(bits)) => {
                let value = f64::from_bits(bits);
                Ok((value as u32, (value * 10.0).round() as u32 % 10))
            }
            _ => Err(self.error("a version is expected, as 8.0")),
        }
    }

    fn target(&mut self) -> Parsed<u32> {
        let name = self.word()?;
        let digits = name.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
        let target = digits.and_then(|digits| digits.parse().ok());
        while self.take(',') {
            let option = self.word()?;
            if !matches!(option.as_str(), "debug" | "texmode_independent") {
                return Err(self.error(format!(".target option {option} is not known")));
            }
        }
        target.ok_or_else(|| self.error(format!("target {name} is not known")))
    }

    fn address_size(&mut self) -> Parsed<()> {
        match self.next() {
            Some(Token::Integer(64)) => Ok(()),
            _ => Err(self.error("only .address_size 64 is interpreted")),
        }
    }

    /// None for a prototype.
    fn function(&mut self, entry: bool) -> Parsed<Option<Function>> {
        let mut function = Function { entry, line: self.line(), ..Function::default() };
        if !entry && self.take('(') {
            function.results = self.parameters()?;
        }
        function.name = self.word()?;
        if self.take('(') {
            function.parameters = self.parameters()?;
        }
        loop {
            match self.peek() {
                Some(Token::Mark('{')) => break,
                Some(Token::Mark(';')) => {
                    self.at += 1;
                    return Ok(None);
                }
                _ => self.function_directive(&mut function)?,
            }
        }
        function.body = self.body()?;
        Ok(Some(function))
    }

    fn function_directive(&mut self, function: &mut Function) -> Parsed<()> {
        let word = self.word()?;
        match word.as_str() {
            ".maxntid" | ".reqntid" => {
                let sizes = self.integers()?;
                let size = |axis: usize| sizes.get(axis).map_or(1, |&size| size as u32);
                function.threads_max = Some([size(0), size(1), size(2)]);
                function.threads_exact = word == ".reqntid";
            }
            ".minnctapersm" | ".maxnreg" => drop(self.integers()?),
            ".noreturn" => {}
            ".pragma" => self.skip_to(';')?,
            _ => return Err(self.error(format!("{word} of a function is not interpreted"))),
        }
        Ok(())
    }

    fn integers(&mut self) -> Parsed<Vec<u64>> {
        let mut values = vec![self.integer()?];
        while self.take(',') {
            values.push(self.integer()?);
        }
        Ok(values)
    }

    /// Up to the closing parenthesis.
    fn parameters(&mut self) -> Parsed<Vec<Variable>> {
        let mut parameters = Vec::new();
        while !self.take(')') {
            if !parameters.is_empty() {
                self.expect(',')?;
            }
            let word = self.word()?;
            if word != ".param" {
                return Err(self.error(format!("parameters in {word} are not interpreted, only in .param")));
            }
            parameters.push(self.variable(Space::Param, false)?);
        }
        Ok(parameters)
    }

    /// Declarations of one type, up to the semicolon.
    fn variables(&mut self, space: Space, external: bool) -> Parsed<Vec<Variable>> {
        let start = self.at;
        let mut variables = vec![self.variable(space, external)?];
        while self.take(',') {
            // The type stands once, before the first name.
            let back = self.at;
            let first = variables[0].clone();
            self.at = start;
            let (align, bytes) = self.variable_type()?;
            self.at = back;
            variables.push(self.declarator(Variable { align, ..first }, bytes)?);
        }
        self.expect(';')?;
        Ok(variables)
    }

    fn variable(&mut self, space: Space, external: bool) -> Parsed<Variable> {
        let line = self.line();
        let (align, bytes) = self.variable_type()?;
        let variable =
            Variable { line, name: String::new(), space, align, size: 0, initial: Vec::new(), external };
        self.declarator(variable, bytes)
    }

    /// Alignment, and bytes of an element.
    fn variable_type(&mut self) -> Parsed<(u64, u64)> {
        let mut align = None;
        loop {
            let word = self.word()?;
            match word.as_str() {
                ".align" => align = Some(self.integer()?),
                ".v2" | ".v4" => return Err(self.error("variables of vectors are not interpreted")),
                ".attribute" => return Err(self.error(".attribute is not interpreted")),
                _ => match type_bytes(word.trim_start_matches('.')) {
                    Some(bytes) if bytes > 0 => return Ok((align.unwrap_or(bytes), bytes)),
                    _ => return Err(self.error(format!("{word} is not a type of a variable"))),
                },
            }
        }
    }

    /// The name, its bounds and its initialiser.
    fn declarator(&mut self, mut variable: Variable, bytes: u64) -> Parsed<Variable> {
        let mut name = self.word()?;
        if name == ".ptr" {
            name = self.pointer_name()?;
        }
        variable.name = name;
        let mut count = 1;
        while self.take('[') {
            count = if self.take(']') { 0 } else { self.integer()?.saturating_mul(count) };
            if count > 0 {
                self.expect(']')?;
            }
        }
        variable.initial.clear();
        if self.take('=') {
            self.initialiser(bytes, &mut variable.initial)?;
            if count == 0 {
                count = variable.initial.len() as u64 / bytes;
            }
        }
        variable.size = count.saturating_mul(bytes);
        Ok(variable)
    }

    /// `.ptr .global .align 16 name`
    fn pointer_name(&mut self) -> Parsed<String> {
        loop {
            let word = self.word()?;
            match word.as_str() {
                ".global" | ".shared" | ".const" | ".local" => {}
                ".align" => drop(self.integer()?),
                _ => return Ok(word),
            }
        }
    }

    fn initialiser(&mut self, bytes: u64, into: &mut Vec<u8>) -> Parsed<()> {
        if self.take('{') {
            while !self.take('}') {
                self.initialiser(bytes, into)?;
                self.take(',');
            }
            return Ok(());
        }
        let value = match self.operand()? {
            Operand::Integer(value) => value,
            Operand::F32(bits) => u64::from(bits),
            Operand::F64(bits) if bytes == 4 => u64::from((f64::from_bits(bits) as f32).to_bits()),
            Operand::F64(bits) => bits,
            other => return Err(self.error(format!("an initialiser of {other:?} is not interpreted"))),
        };
        into.extend(&value.to_le_bytes()[..bytes as usize]);
        Ok(())
    }

    /// From the opening brace to the closing one, which are not among the statements.
    fn body(&mut self) -> Parsed<Vec<Statement>> {
        self.expect('{')?;
        let mut statements = Vec::new();
        let mut depth = 0;
        loop {
            if self.take('{') {
                depth += 1;
                statements.push(Statement::Open);
            } else if self.take('}') {
                if depth == 0 {
                    return Ok(statements);
                }
                depth -= 1;
                statements.push(Statement::Close);
            } else if !self.take(';') {
                self.statement(&mut statements)?;
            }
        }
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Parsed<()> {
        if self.take('@') {
            let negated = self.take('!');
            let guard = (self.word()?, negated);
            statements.push(Statement::Instruction(self.instruction(Some(guard))?));
            return Ok(());
        }
        let word = match self.peek() {
            Some(Token::Word(word)) => word.clone(),
            other => return Err(self.error(format!("a statement is expected, not {other:?}"))),
        };
        if !word.starts_with('.') {
            if self.peek_at(1) == Some(&Token::Mark(':')) {
                self.at += 2;
                statements.push(self.label(word)?);
            } else {
                statements.push(Statement::Instruction(self.instruction(None)?));
            }
            return Ok(());
        }
        self.at += 1;
        match (word.as_str(), space(&word)) {
            (".reg", _) => statements.push(self.registers()?),
            (".loc" | ".file", _) => self.skip_line(),
            (".pragma", _) => self.skip_to(';')?,
            (_, Some(space)) => {
                statements.extend(self.variables(space, false)?.into_iter().map(Statement::Variable));
            }
            _ => return Err(self.error(format!("{word} in a function is not interpreted"))),
        }
        Ok(())
    }

    fn label(&mut self, name: String) -> Parsed<Statement> {
        if self.peek() != Some(&Token::Word(".branchtargets".into())) {
            return Ok(Statement::Label(name));
        }
        self.at += 1;
        let mut labels = vec![self.word()?];
        while self.take(',') {
            labels.push(self.word()?);
        }
        self.expect(';')?;
        Ok(Statement::Targets(name, labels))
    }

    fn registers(&mut self) -> Parsed<Statement> {
        let line = self.line();
        let ty = self.word()?;
        let mut names = Vec::new();
        loop {
            let name = self.word()?;
            if self.take('<') {
                let count = self.integer()?;
                self.expect('>')?;
                if count > 1 << 20 {
                    return Err(self.error(format!("{count} registers are too many")));
                }
                names.extend((0..count).map(|number| format!("{name}{number}")));
            } else {
                names.push(name);
            }
            if !self.take(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(Statement::Registers(line, ty.trim_start_matches('.').into(), names))
    }

    fn instruction(&mut self, guard: Option<(String, bool)>) -> Parsed<Instruction> {
        let line = self.line();
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.take(';') {
            if !operands.is_empty() {
                self.expect(',')?;
            }
            operands.push(self.operand()?);
        }
        Ok(Instruction { line, guard, opcode, operands })
    }

    fn operand(&mut self) -> Parsed<Operand> {
        let operand = match self.next() {
            Some(Token::Integer(value)) => Operand::Integer(value),
            Some(Token::F32(bits)) => Operand::F32(bits),
            Some(Token::F64(bits)) => Operand::F64(bits),
            Some(Token::Word(name)) if name == "_" => Operand::Sink,
            Some(Token::Word(name)) => Operand::Name(name),
            Some(Token::Mark('-')) => self.negative()?,
            Some(Token::Mark('!')) => Operand::Not(self.word()?),
            Some(Token::Mark('[')) => self.address()?,
            Some(Token::Mark('{')) => Operand::Vector(self.list('}')?),
            Some(Token::Mark('(')) => Operand::Group(self.list(')')?),
            other => return Err(self.error(format!("an operand is expected, not {other:?}"))),
        };
        if self.take('|') {
            return Ok(Operand::Pair(operand.into(), self.operand()?.into()));
        }
        Ok(operand)
    }

    fn negative(&mut self) -> Parsed<Operand> {
        match self.next() {
            Some(Token::Integer(value)) => Ok(Operand::Integer(value.wrapping_neg())),
            Some(Token::F64(bits)) => Ok(Operand::F64((-f64::from_bits(bits)).to_bits())),
            other => Err(self.error(format!("a number is expected after '-', not {other:?}"))),
        }
    }

    fn list(&mut self, end: char) -> Parsed<Vec<Operand>> {
        let mut operands = Vec::new();
        while !self.take(end) {
            if !operands.is_empty() {
                self.expect(',')?;
            }
            operands.push(self.operand()?);
        }
        Ok(operands)
    }

    fn address(&mut self) -> Parsed<Operand> {
        let base = match self.peek() {
            Some(Token::Word(_)) => Some(self.word()?),
            _ => None,
        };
        let mut offset = 0i64;
        while !self.take(']') {
            let negative = match self.next() {
                Some(Token::Mark('+')) => self.take('-'),
                Some(Token::Mark('-')) => true,
                Some(Token::Integer(value)) if base.is_none() => {
                    offset = value as i64;
                    continue;
                }
                other => return Err(self.error(format!("an address goes on with + or ], not {other:?}"))),
            };
            let value = self.integer()? as i64;
            offset = offset.wrapping_add(if negative { value.wrapping_neg() } else { value });
        }
        Ok(Operand::Address(base, offset))
    }

    fn skip_line(&mut self) {
        let line = self.tokens[self.at - 1].1;
        while self.tokens.get(self.at).is_some_and(|(_, other)| *other == line) {
            self.at += 1;
        }
    }

    fn skip_section(&mut self) -> Parsed<()> {
        self.skip_to('{')?;
        self.skip_to('}')
    }

    fn skip_to(&mut self, mark: char) -> Parsed<()> {
        while let Some(token) = self.next() {
            if token == Token::Mark(mark) {
                return Ok(());
            }
        }
        Err(self.error(format!("{mark:?} is missing")))
    }

    fn peek(&self) -> Option<&Token> {
        self.peek_at(0)
    }

    fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|(token, _)| token)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.at += 1;
        token
    }

    fn take(&mut self, mark: char) -> bool {
        let there = self.peek() == Some(&Token::Mark(mark));
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, mark: char) -> Parsed<()> {
        match self.take(mark) {
            true => Ok(()),
            false => Err(self.error(format!("{mark:?} is expected, not {:?}", self.peek()))),
        }
    }

    fn word(&mut self) -> Parsed<String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            other => Err(self.error(format!("a name is expected, not {other:?}"))),
        }
    }

    fn integer(&mut self) -> Parsed<u64> {
        match self.next() {
            Some(Token::Integer(value)) => Ok(value),
            other => Err(self.error(format!("an integer is expected, not {other:?}"))),
        }
    }

    fn line(&self) -> u32 {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |(_, line)| *line)
    }

    fn error(&self, message: impl Into<String>) -> PtxError {
        PtxError::new(self.line(), message)
    }
}

fn space(word: &str) -> Option<Space> {
    Some(match word {
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        ".param" => Space::Param,
        _ => return None,
    })
}
