//! The `normalizer` of tokenizer.json: the `tokenizers` crate's, except for SentencePiece's compiled rules.
//!
//! The crate applies those to grapheme clusters and takes the shortest match; SentencePiece takes the longest
//! from any character. And it follows offsets inside the rules without checking them.

use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::{NormalizedString, Normalizer as CrateNormalizer, NormalizerWrapper};

use super::charsmap::Charsmap;

/// Steps in order.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Json")]
pub(super) struct Prepare {
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Charsmap(Charsmap),
    Crate(Box<NormalizerWrapper>),
}

impl Prepare {
    /// Whether the text stays text: byte-level normalisation would turn it into the byte alphabet.
    pub(super) fn keeps_alphabet(&self) -> bool {
        self.steps.iter().all(|step| match step {
            Step::Charsmap(_) => true,
            Step::Crate(step) => !matches!(**step, NormalizerWrapper::ByteLevel(_)),
        })
    }
}

impl CrateNormalizer for Prepare {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        for step in &self.steps {
            match step {
                // Nothing here asks for offsets into the text as it was.
                Step::Charsmap(charsmap) => *text = charsmap.apply(text.get()).into(),
                Step::Crate(step) => step.normalize(text)?,
            }
        }
        Ok(())
    }
}

impl TryFrom<Json> for Prepare {
    type Error = String;

    fn try_from(json: Json) -> Result<Self, String> {
        let mut steps = Vec::new();
        push(json, &mut steps)?;
        Ok(Self { steps })
    }
}

fn push(mut json: Json, steps: &mut Vec<Step>) -> Result<(), String> {
    match json["type"].as_str() {
        Some("Sequence") => match json["normalizers"].take() {
            Json::Array(list) => return list.into_iter().try_for_each(|step| push(step, steps)),
            _ => return Err("normalizer: a sequence without a list".to_owned()),
        },
        Some("Precompiled") => {
            let text = json["precompiled_charsmap"].as_str().unwrap_or_default();
            let blob = base64(text).ok_or("normalizer: precompiled_charsmap is not base64")?;
            if !blob.is_empty() {
                steps.push(Step::Charsmap(Charsmap::parse(&blob).map_err(|error| error.to_string())?));
            }
        }
        _ => {
            let step = serde_json::from_value(json).map_err(|error| format!("normalizer: {error}"))?;
            steps.push(Step::Crate(Box::new(step)));
        }
    }
    Ok(())
}

/// Standard base64 with padding (RFC 4648, section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|c| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for digit in digits {
        bits = bits << 6 | u32::from(digit?);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        let decoded = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYmFy", "+/8="].map(|text| base64(text).unwrap());
        assert_eq!(decoded, [&b""[..], b"f", b"fo", b"foo", b"foobar", b"\xfb\xff"].map(<[u8]>::to_vec));
        assert_eq!(base64("Zm9v!"), None);
    }
}
