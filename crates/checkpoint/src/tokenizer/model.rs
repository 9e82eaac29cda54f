//! From a word to ids, by any of the algorithms.

use std::cell::RefCell;

use hashbrown::HashMap;

use super::TokenizerError;
use super::bpe::{Merge, NO_TOKEN, Symbol, merge_all};
use super::unigram::Unigram;
use super::vocab::{Kind, Vocab, Words};

/// An algorithm with what it needs besides the vocabulary.
#[derive(Debug)]
pub(super) enum Model {
    /// Merges over the bytes of a word (GPT-2).
    ByteLevel { pairs: Pairs, singles: [Option<u32>; 256], words: Option<Words> },
    /// Merges over the characters of a word, from a list.
    Characters { pairs: Pairs, whole_words: bool, fallback: Fallback },
    /// Merges over characters whose rank is the score of what they make (SentencePiece BPE).
    Scored { ranks: Vec<u32>, longest: usize, has_unused: bool, fallback: Fallback },
    /// The most probable cut (SentencePiece unigram).
    Unigram { unigram: Unigram, fallback: Fallback },
}

/// Rank and product of each pair of ids that merges.
#[derive(Debug, Default)]
pub(super) struct Pairs(HashMap<(u32, u32), Merge>);

/// What stands for characters without a token.
#[derive(Debug)]
pub(super) struct Fallback {
    /// A token for each byte; used when all are there.
    pub(super) bytes: [Option<u32>; 256],
    pub(super) unknown: Option<u32>,
    /// Neighbouring unknowns become one token.
    pub(super) fuse: bool,
}

impl Model {
    /// Appends the ids of `word`.
    pub(super) fn encode(&self, vocab: &Vocab, word: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match self {
            Self::ByteLevel { pairs, singles, words } => {
                if let Some(id) = words.as_ref().and_then(|words| words.id(vocab, word.as_bytes())) {
                    ids.push(id);
                    return Ok(());
                }
                let mut symbols = byte_symbols(word, singles)?;
                merge_all(&mut symbols, |a, b| pairs.merge(a, b));
                ids.extend(symbols.iter().map(|symbol| symbol.id));
                Ok(())
            }
            Self::Characters { pairs, whole_words, fallback } => {
                if let Some(id) = whole_words.then(|| vocab.mergeable(word)).flatten() {
                    ids.push(id);
                    return Ok(());
                }
                let mut symbols = char_symbols(vocab, word);
                merge_all(&mut symbols, |a, b| pairs.merge(a, b));
                fallback.push_all(symbols.iter().map(|s| (s.range(), s.token())), word, ids)
            }
            Self::Scored { ranks, longest, has_unused, fallback } => {
                let scored = Scored { vocab, word, ranks, longest: *longest, has_unused: *has_unused };
                fallback.push_all(scored.symbols().iter().map(|s| (s.range(), s.token())), word, ids)
            }
            Self::Unigram { unigram, fallback } => {
                let pieces = unigram.cut(vocab, word);
                fallback.push_all(pieces.iter().map(|p| (p.start..p.end, p.id)), word, ids)
            }
        }
    }
}

impl Pairs {
    /// The merges in order of rank; the first of a pair counts. An error gives the merge's rank.
    pub(super) fn build<'a, I>(vocab: &Vocab, field: &'static str, merges: I) -> Result<Self, TokenizerError>
    where
        I: Iterator<Item = Result<(&'a str, &'a str), TokenizerError>>,
    {
        let mut pairs = HashMap::with_capacity(merges.size_hint().0);
        let mut whole = String::new();
        for (rank, merge) in merges.enumerate() {
            let (left, right) = merge?;
            let id = |text: &str| {
                vocab.mergeable(text).ok_or_else(|| {
                    let problem = format!("merge {rank} names {text:?}, which is not an ordinary token");
                    TokenizerError::field(field, problem)
                })
            };
            whole.clear();
            whole.push_str(left);
            whole.push_str(right);
            let merge = Merge { rank: rank as u32, id: id(&whole)? };
            pairs.entry((id(left)?, id(right)?)).or_insert(merge);
        }
        Ok(Self(pairs))
    }

    fn merge(&self, left: Symbol, right: Symbol) -> Option<Merge> {
        self.0.get(&(left.id, right.id)).copied()
    }
}

impl Symbol {
    fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }

    fn token(&self) -> Option<u32> {
        (self.id != NO_TOKEN).then_some(self.id)
    }
}

fn byte_symbols(word: &str, singles: &[Option<u32>; 256]) -> Result<Vec<Symbol>, TokenizerError> {
    let symbol = |(start, byte): (usize, u8)| {
        let id = singles[usize::from(byte)]
            .ok_or_else(|| TokenizerError::Unencodable { byte: start, piece: format!("\\x{byte:02x}") })?;
        Ok(Symbol { id, start: start as u32, len: 1 })
    };
    word.bytes().enumerate().map(symbol).collect()
}

fn char_symbols(vocab: &Vocab, word: &str) -> Vec<Symbol> {
    let symbol = |(start, c): (usize, char)| {
        let len = c.len_utf8();
        let id = vocab.mergeable(&word[start..start + len]).unwrap_or(NO_TOKEN);
        Symbol { id, start: start as u32, len: len as u32 }
    };
    word.char_indices().map(symbol).collect()
}

/// One run of SentencePiece's BPE.
struct Scored<'a> {
    vocab: &'a Vocab,
    word: &'a str,
    ranks: &'a [u32],
    longest: usize,
    has_unused: bool,
}

impl Scored<'_> {
    fn symbols(&self) -> Vec<Symbol> {
        let mut symbols = char_symbols(self.vocab, self.word);
        let halves = RefCell::new(HashMap::new());
        merge_all(&mut symbols, |left, right| {
            let end = (right.start + right.len) as usize;
            let start = left.start as usize;
            if end - start > self.longest {
                return None;
            }
            let id = self.vocab.mergeable(&self.word[start..end])?;
            if self.has_unused && self.vocab.kind(id) == Kind::Unused {
                halves.borrow_mut().insert(id, (left, right));
            }
            Some(Merge { rank: self.ranks[id as usize], id })
        });
        if self.has_unused { self.without_unused(symbols, &halves.into_inner()) } else { symbols }
    }

    /// Cuts unused tokens back into the halves they were last seen to consist of, as SentencePiece does; an
    /// unused character has no token.
    fn without_unused(&self, symbols: Vec<Symbol>, halves: &HashMap<u32, (Symbol, Symbol)>) -> Vec<Symbol> {
        let mut out = Vec::with_capacity(symbols.len());
        let mut stack: Vec<Symbol> = symbols.into_iter().rev().collect();
        while let Some(symbol) = stack.pop() {
            let unused = symbol.token().is_some_and(|id| self.vocab.kind(id) == Kind::Unused);
            match halves.get(&symbol.id) {
                Some(&(left, right)) if unused => {
                    stack.push(Symbol { start: symbol.start + left.len, ..right });
                    stack.push(Symbol { start: symbol.start, ..left });
                }
                None if unused => out.push(Symbol { id: NO_TOKEN, ..symbol }),
                _ => out.push(symbol),
            }
        }
        out
    }
}

impl Fallback {
    /// Appends the ids of consecutive stretches of `word`, replacing those without one.
    fn push_all(
        &self,
        pieces: impl Iterator<Item = (std::ops::Range<usize>, Option<u32>)>,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut after_unknown = false;
        for (range, id) in pieces {
            let unknown = match id {
                Some(id) => {
                    ids.push(id);
                    false
                }
                None => self.push_unknown(&word[range.clone()], range.start, after_unknown, ids)?,
            };
            after_unknown = unknown;
        }
        Ok(())
    }

    /// Returns whether the unknown token stands for `piece`.
    fn push_unknown(
        &self,
        piece: &str,
        byte: usize,
        after_unknown: bool,
        ids: &mut Vec<u32>,
    ) -> Result<bool, TokenizerError> {
        let mut bytes = piece.bytes().map(|byte| self.bytes[usize::from(byte)]);
        if bytes.clone().all(|id| id.is_some()) {
            ids.extend(bytes.by_ref().flatten());
            return Ok(false);
        }
        let unknown =
            self.unknown.ok_or_else(|| TokenizerError::Unencodable { byte, piece: piece.to_owned() })?;
        if !(self.fuse && after_unknown) {
            ids.push(unknown);
        }
        Ok(true)
    }
}
