//! SentencePiece's compiled normalisation rules (`precompiled_charsmap`).
//!
//! Format, from SentencePiece's `normalizer.cc` and Darts-clone: a little-endian `u32` with the size in bytes of a
//! double array, the array's `u32` units, then replacement strings, each ended by a NUL. The array maps a
//! prefix of the text to the offset of its replacement.

use super::TokenizerError;

const FIELD: &str = "tokenizer.ggml.precompiled_charsmap";

/// Longest-match rewriting of text.
#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Reads the compiled form; offsets inside it are checked when they are followed.
    pub(super) fn parse(blob: &[u8]) -> Result<Self, TokenizerError> {
        let error = |problem: &str| TokenizerError::field(FIELD, problem);
        let (size, rest) = blob.split_first_chunk::<4>().ok_or_else(|| error("shorter than its header"))?;
        let size = u32::from_le_bytes(*size) as usize;
        if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
            return Err(error(&format!("a trie of {size} bytes in a value of {} bytes", blob.len())));
        }
        let (trie, replacements) = rest.split_at(size);
        let units = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let replacements = String::from_utf8(replacements.to_vec())
            .map_err(|_| error("replacement strings that are not UTF-8"))?;
        Ok(Self { units, replacements })
    }

    /// The text with each longest prefix that has a rule replaced, from left to right.
    pub(super) fn apply(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let consumed = match self.longest(rest) {
                Some((len, replacement)) => {
                    out.push_str(replacement);
                    len
                }
                None => {
                    out.push(first);
                    first.len_utf8()
                }
            };
            rest = &rest[consumed..];
        }
        out
    }

    fn longest<'a>(&'a self, text: &str) -> Option<(usize, &'a str)> {
        let mut found = None;
        let mut node = offset(*self.units.first()?);
        for (i, byte) in text.bytes().enumerate() {
            node ^= u32::from(byte);
            let Some(&unit) = self.units.get(node as usize) else { break };
            if label(unit) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if has_leaf(unit) {
                let Some(&leaf) = self.units.get(node as usize) else { break };
                found = Some((i + 1, value(leaf)));
            }
        }
        let (len, at) = found.filter(|(len, _)| text.is_char_boundary(*len))?;
        let tail = self.replacements.get(at as usize..)?;
        Some((len, tail.split('\0').next().unwrap_or(tail)))
    }
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> u32 {
    unit & 0x7fff_ffff
}

fn label(unit: u32) -> u32 {
    unit & 0x8000_00ff
}

fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_damaged_map_is_refused_by_name() {
        for blob in [&b""[..], b"\x03\0\0\0abc", b"\xff\xff\xff\xff", b"\x04\0\0\0\0\0\0\0\xff"] {
            let error = Charsmap::parse(blob).unwrap_err().to_string();
            assert!(error.starts_with(FIELD), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_map_can_make_it_panic(units in prop::collection::vec(any::<u32>(), 1..64), text in "\\PC{0,20}") {
            let mut blob = ((units.len() * 4) as u32).to_le_bytes().to_vec();
            blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
            blob.extend("é\0b\0".as_bytes());
            Charsmap::parse(&blob).unwrap().apply(&text);
        }
    }
}
