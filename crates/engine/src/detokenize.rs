//! Text from token bytes, one token at a time.

/// Decodes a stream of bytes to text without ever giving out half a character.
///
/// The concatenated deltas equal [`String::from_utf8_lossy`] of the concatenated bytes: an invalid maximal subpart
/// becomes one U+FFFD (Unicode 16.0, section 3.9).
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The bytes of a character that may still be completed; at most three.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Takes the bytes of the next token and returns the text that is certain by now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.pending.is_empty() {
            return self.decode(bytes);
        }
        let mut joined = std::mem::take(&mut self.pending);
        joined.extend_from_slice(bytes);
        self.decode(&joined)
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.pending).is_empty() { String::new() } else { "\u{FFFD}".into() }
    }

    fn decode(&mut self, mut bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len());
        loop {
            match std::str::from_utf8(bytes) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = bytes.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    let Some(invalid) = error.error_len() else {
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push('\u{FFFD}');
                    bytes = &rest[invalid..];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut detokenizer = Detokenizer::default();
        let bytes = "a🦀".as_bytes();
        assert_eq!(detokenizer.push(&bytes[..3]), "a");
        assert_eq!(detokenizer.push(&bytes[3..4]), "");
        assert_eq!(detokenizer.push(&bytes[4..]), "🦀");
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn a_broken_character_becomes_one_replacement() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(&[0xF0, 0x9F]), "");
        assert_eq!(detokenizer.push(b"x"), "\u{FFFD}x");
        assert_eq!(detokenizer.push(&[0xE2, 0x82]), "");
        assert_eq!(detokenizer.finish(), "\u{FFFD}");
        assert_eq!(detokenizer.finish(), "");
    }

    /// Bytes that are mostly fragments of characters, so that cuts and errors are common.
    fn awkward_bytes() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let fragment = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            prop::sample::select(vec![
                0x80u8, 0xBF, 0xC0, 0xC3, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xF8, 0xFF, b'a'
            ])
            .prop_map(|byte| vec![byte]),
        ];
        let bytes = prop::collection::vec(fragment, 0..20).prop_map(|parts| parts.concat());
        (bytes, prop::collection::vec(0usize..5, 0..60)).prop_map(|(bytes, sizes)| {
            let mut rest = &bytes[..];
            let mut tokens = Vec::new();
            for size in sizes {
                let (token, tail) = rest.split_at(size.min(rest.len()));
                tokens.push(token.to_vec());
                rest = tail;
            }
            tokens.push(rest.to_vec());
            tokens
        })
    }

    proptest! {
        #[test]
        fn deltas_concatenate_to_the_whole_decode(tokens in awkward_bytes()) {
            let mut detokenizer = Detokenizer::default();
            let mut text: String = tokens.iter().map(|token| detokenizer.push(token)).collect();
            prop_assert!(detokenizer.pending.len() <= 3);
            text.push_str(&detokenizer.finish());
            let bytes = tokens.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
