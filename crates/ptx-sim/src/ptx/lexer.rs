//! PTX text as words and marks.

use super::PtxError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A name, an opcode or a directive with its dots: `%tid.x`, `add.rn.f32`, `.reg`.
    Word(String),
    Integer(u64),
    F32(u32),
    F64(u64),
    Text(String),
    Mark(char),
}

/// Each token with its line.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, u32)>, PtxError> {
    let mut lexer = Lexer { rest: text, line: 1 };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        tokens.push((token, lexer.line));
    }
    Ok(tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: u32,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Option<Token>, PtxError> {
        self.skip_blanks()?;
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        if first.is_ascii_digit() {
            return self.number().map(Some);
        }
        if is_word(first) || first == '.' {
            return Ok(Some(Token::Word(self.word())));
        }
        self.rest = &self.rest[first.len_utf8()..];
        if first == '"' {
            let end = self.rest.find('"').ok_or_else(|| self.error("a text without its end"))?;
            let text = self.rest[..end].to_owned();
            self.rest = &self.rest[end + 1..];
            return Ok(Some(Token::Text(text)));
        }
        match "{}()[]<>,;:|@!+-=*".contains(first) {
            true => Ok(Some(Token::Mark(first))),
            false => Err(self.error(format!("the character {first:?} has no meaning here"))),
        }
    }

    fn skip_blanks(&mut self) -> Result<(), PtxError> {
        loop {
            let trimmed = self.rest.trim_start();
            self.pass(self.rest.len() - trimmed.len());
            let length = if self.rest.starts_with("//") {
                self.rest.find('\n').unwrap_or(self.rest.len())
            } else if self.rest.starts_with("/*") {
                self.rest.find("*/").ok_or_else(|| self.error("a comment without its end"))? + 2
            } else {
                return Ok(());
            };
            self.pass(length);
        }
    }

    fn pass(&mut self, length: usize) {
        let (passed, rest) = self.rest.split_at(length);
        self.line += passed.bytes().filter(|&byte| byte == b'\n').count() as u32;
        self.rest = rest;
    }

    /// Dots and `::` belong to a word, as in `ld.global.L1::no_allocate.f32`; a single colon ends a label.
    fn word(&mut self) -> String {
        let bytes = self.rest.as_bytes();
        let mut end = 1;
        while end < bytes.len() {
            let double_colon = bytes[end] == b':' && bytes.get(end + 1) == Some(&b':');
            match bytes[end] {
                byte if is_word(byte as char) || byte == b'.' => end += 1,
                _ if double_colon => end += 2,
                _ => break,
            }
        }
        let word = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        word
    }

    fn number(&mut self) -> Result<Token, PtxError> {
        let length = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
        let (text, rest) = self.rest.split_at(length.unwrap_or(self.rest.len()));
        self.rest = rest;
        let lower = text.to_ascii_lowercase();
        let parsed = match lower.get(..2) {
            Some("0f") if lower.len() == 10 => u32::from_str_radix(&lower[2..], 16).ok().map(Token::F32),
            Some("0d") if lower.len() == 18 => u64::from_str_radix(&lower[2..], 16).ok().map(Token::F64),
            _ if lower.contains('.') => lower.parse::<f64>().ok().map(|value| Token::F64(value.to_bits())),
            _ => integer(&lower).map(Token::Integer),
        };
        parsed.ok_or_else(|| self.error(format!("{text:?} is not a number")))
    }

    fn error(&self, message: impl Into<String>) -> PtxError {
        PtxError::new(self.line, message)
    }
}

fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('u').unwrap_or(text);
    let (digits, radix) = match text {
        _ if text.starts_with("0x") => (&text[2..], 16),
        _ if text.starts_with("0b") => (&text[2..], 2),
        _ if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        _ => (text, 10),
    };
    u64::from_str_radix(digits, radix).ok()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}
