//! The tokens themselves: text, raw bytes, kind, and the way back from text to id.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use super::TokenizerError;
use super::normalize::SPACE;

/// More tokens than any published vocabulary has, by a factor of four.
const TOKENS_MAX: usize = 1 << 20;
/// Longer than any published token, by a factor of four.
const TOKEN_BYTES_MAX: usize = 1 << 16;

/// What a token is for; GGUF's `tokenizer.ggml.token_type` numbers in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text (1).
    Normal,
    /// Stands for what no token spells (2).
    Unknown,
    /// A control token, which ordinary text never becomes (3).
    Control,
    /// Text matched before anything else (4).
    UserDefined,
    /// Never produced (5).
    Unused,
    /// One raw byte, spelled `<0xNN>` (6).
    Byte,
}

impl Kind {
    pub(super) fn from_gguf(number: i32) -> Option<Self> {
        // 0 is "undefined"; converters of old wrote it for ordinary text.
        Some(match number {
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether the token stands for no text of its own.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }

    /// Whether merging or a whole-word match may produce the token.
    pub(super) fn is_mergeable(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Unused)
    }
}

/// How a token's text stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character is one byte, in GPT-2's alphabet.
    ByteLevel,
    /// UTF-8 with U+2581 for a space, and `<0xNN>` for byte tokens.
    Pieces,
}

/// All tokens of a model, by id.
#[derive(Debug)]
pub(super) struct Vocab {
    texts: Vec<String>,
    kinds: Vec<Kind>,
    bytes: Vec<u8>,
    ends: Vec<u32>,
    by_text: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Vocab {
    /// Checks and indexes the tokens; `field` names their source in errors. Empty texts are holes that no text reaches.
    pub(super) fn new(
        texts: Vec<String>,
        kinds: Vec<Kind>,
        spelling: Spelling,
        field: &'static str,
    ) -> Result<Self, TokenizerError> {
        check_sizes(&texts, &kinds, field)?;
        let (bytes, ends) = spell_all(&texts, &kinds, spelling);
        let hasher = DefaultHashBuilder::default();
        let mut by_text = HashTable::with_capacity(texts.len());
        let hash = |&id: &u32| hasher.hash_one(texts[id as usize].as_str());
        for id in (0..texts.len() as u32).filter(|&id| !texts[id as usize].is_empty()) {
            let entry =
                by_text.entry(hash(&id), |&other: &u32| texts[other as usize] == texts[id as usize], hash);
            match entry {
                hashbrown::hash_table::Entry::Occupied(first) => {
                    let problem =
                        format!("tokens {} and {id} are both {:?}", first.get(), texts[id as usize]);
                    return Err(TokenizerError::field(field, problem));
                }
                hashbrown::hash_table::Entry::Vacant(slot) => slot.insert(id),
            };
        }
        Ok(Self { texts, kinds, bytes, ends, by_text, hasher })
    }

    /// Refuses an absurd number of tokens.
    pub(super) fn check_len(tokens: usize, field: &'static str) -> Result<(), TokenizerError> {
        if (1..=TOKENS_MAX).contains(&tokens) {
            return Ok(());
        }
        Err(TokenizerError::field(field, format!("{tokens} tokens; expected between 1 and {TOKENS_MAX}")))
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let same = |&id: &u32| self.texts[id as usize] == text;
        self.by_text.find(self.hasher.hash_one(text), same).copied()
    }

    /// The token that merging may produce for `text`.
    pub(super) fn mergeable(&self, text: &str) -> Option<u32> {
        self.id(text).filter(|&id| self.kind(id).is_mergeable())
    }

    /// `id` must be below [`Vocab::len`].
    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds[id as usize]
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize).is_some_and(|kind| kind.is_special())
    }

    /// The bytes a token stands for; none for special tokens and ids out of range.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Ids of a kind, in order.
    pub(super) fn of_kind(&self, wanted: Kind) -> impl Iterator<Item = u32> + '_ {
        (0..self.len() as u32).filter(move |&id| self.kind(id) == wanted)
    }

    /// An index of the mergeable tokens by the bytes they stand for.
    pub(super) fn words(&self) -> Words {
        let hasher = DefaultHashBuilder::default();
        let mut table = HashTable::with_capacity(self.len());
        for id in (0..self.len() as u32).filter(|&id| self.kind(id).is_mergeable()) {
            table.insert_unique(hasher.hash_one(self.bytes(id)), id, |&id| hasher.hash_one(self.bytes(id)));
        }
        Words { table, hasher }
    }

    /// The token of each single byte in a byte-level vocabulary.
    pub(super) fn single_bytes(&self) -> [Option<u32>; 256] {
        std::array::from_fn(|byte| {
            let mut text = [0; 4];
            self.mergeable(char_of_byte(byte as u8).encode_utf8(&mut text))
        })
    }

    /// The `<0xNN>` token of each byte.
    pub(super) fn byte_tokens(&self) -> [Option<u32>; 256] {
        std::array::from_fn(|byte| {
            self.id(&format!("<0x{byte:02X}>")).filter(|&id| self.kind(id) == Kind::Byte)
        })
    }
}

/// Mergeable tokens by the bytes they stand for.
#[derive(Debug)]
pub(super) struct Words {
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Words {
    /// The token that is exactly `word`; `vocab` is the one the index was made from.
    pub(super) fn id(&self, vocab: &Vocab, word: &[u8]) -> Option<u32> {
        self.table.find(self.hasher.hash_one(word), |&id| vocab.bytes(id) == word).copied()
    }
}

fn check_sizes(texts: &[String], kinds: &[Kind], field: &'static str) -> Result<(), TokenizerError> {
    Vocab::check_len(texts.len(), field)?;
    if let Some(id) = texts.iter().position(|text| text.len() > TOKEN_BYTES_MAX) {
        let problem = format!("token {id} has {} bytes; expected at most {TOKEN_BYTES_MAX}", texts[id].len());
        return Err(TokenizerError::field(field, problem));
    }
    if texts.iter().map(String::len).sum::<usize>() > u32::MAX as usize {
        return Err(TokenizerError::field(field, "more than 4 GiB of text"));
    }
    if texts.len() != kinds.len() {
        let problem = format!("{} token types for {} tokens", kinds.len(), texts.len());
        return Err(TokenizerError::field("tokenizer.ggml.token_type", problem));
    }
    Ok(())
}

fn spell_all(texts: &[String], kinds: &[Kind], spelling: Spelling) -> (Vec<u8>, Vec<u32>) {
    let mut bytes = Vec::with_capacity(texts.iter().map(String::len).sum());
    let mut ends = Vec::with_capacity(texts.len());
    let alphabet = spelling::alphabet();
    for (text, kind) in texts.iter().zip(kinds) {
        match kind {
            Kind::Control | Kind::Unknown => {}
            Kind::Byte => match byte_of_text(text) {
                Some(byte) => bytes.push(byte),
                None => bytes.extend_from_slice(text.as_bytes()),
            },
            Kind::UserDefined if spelling == Spelling::ByteLevel => bytes.extend_from_slice(text.as_bytes()),
            _ if spelling == Spelling::ByteLevel => spelling::push_byte_level(&mut bytes, text, &alphabet),
            _ => bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
        }
        ends.push(bytes.len() as u32);
    }
    (bytes, ends)
}

/// The byte that `<0xNN>` spells.
pub(super) fn byte_of_text(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

pub(super) use spelling::char_of_byte;

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onwards in order
/// (`bytes_to_unicode` in openai/gpt-2's encoder.py).
mod spelling {
    fn is_printable(byte: u8) -> bool {
        matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
    }

    /// The character that stands for `byte`.
    pub(in super::super) fn char_of_byte(byte: u8) -> char {
        if is_printable(byte) {
            return char::from(byte);
        }
        let before = (0..byte).filter(|&b| !is_printable(b)).count() as u32;
        char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
    }

    /// The byte that each character below U+0144 stands for.
    pub(super) fn alphabet() -> [Option<u8>; 0x144] {
        let mut alphabet = [None; 0x144];
        for byte in 0..=255 {
            alphabet[char_of_byte(byte) as usize] = Some(byte);
        }
        alphabet
    }

    /// A text with a character outside the alphabet stands for its own UTF-8, as in HF's decoder.
    pub(super) fn push_byte_level(bytes: &mut Vec<u8>, text: &str, alphabet: &[Option<u8>; 0x144]) {
        let start = bytes.len();
        for c in text.chars() {
            match alphabet.get(c as usize).copied().flatten() {
                Some(byte) => bytes.push(byte),
                None => {
                    bytes.truncate(start);
                    bytes.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_gpt2s() {
        let spelled: String = [b' ', b'\n', b'a', 0xad, 0xff].map(char_of_byte).into_iter().collect();
        assert_eq!(spelled, "ĠĊaŃÿ");
    }

    #[test]
    fn duplicates_are_refused_and_holes_are_not() {
        let vocab = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|t| t.to_string()).collect();
            let kinds = vec![Kind::Normal; texts.len()];
            Vocab::new(texts, kinds, Spelling::Pieces, "tokens")
        };
        assert!(vocab(&["a", "", ""]).is_ok());
        let error = vocab(&["a", "b", "a"]).unwrap_err().to_string();
        assert!(error.contains("tokens 0 and 2 are both \"a\""), "{error}");
    }
}
