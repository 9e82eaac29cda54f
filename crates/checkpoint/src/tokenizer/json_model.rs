//! The `model` of tokenizer.json: BPE or unigram.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::TokenizerError;

/// All keys of both kinds of model.
#[derive(Deserialize)]
pub(super) struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    pub(super) vocab: VocabJson,
    #[serde(default)]
    pub(super) merges: Vec<MergeJson>,
    pub(super) unk_token: Option<String>,
    pub(super) unk_id: Option<u32>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    dropout: Option<f32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Tokens with ids (BPE), or pieces with scores by id (unigram).
pub(super) enum VocabJson {
    Ids(Vec<(String, u32)>),
    Pieces(Vec<(String, f64)>),
}

/// A merge, written as `"a b"` or as `["a", "b"]`.
pub(super) struct MergeJson(String, String);

impl ModelJson {
    /// Refuses what this crate does not run.
    pub(super) fn check(&self) -> Result<(), TokenizerError> {
        let unsupported = |field, name: String, known: &str| {
            Err(TokenizerError::Unsupported { field, name, known: known.to_owned() })
        };
        match (self.kind.as_deref(), &self.vocab) {
            (None | Some("BPE"), VocabJson::Ids(_)) | (None | Some("Unigram"), VocabJson::Pieces(_)) => {}
            (kind, _) => {
                let kind = kind.unwrap_or("null").to_owned();
                return unsupported(
                    "tokenizer.json: model.type",
                    kind,
                    "BPE with a map, Unigram with a list",
                );
            }
        }
        let affixes = [
            ("tokenizer.json: model.continuing_subword_prefix", &self.continuing_subword_prefix),
            ("tokenizer.json: model.end_of_word_suffix", &self.end_of_word_suffix),
        ];
        for (field, affix) in affixes {
            if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
                return unsupported(field, affix.clone(), "none");
            }
        }
        match self.dropout.filter(|&dropout| dropout != 0.0) {
            Some(dropout) => unsupported("tokenizer.json: model.dropout", dropout.to_string(), "none"),
            None => self.check_scores(),
        }
    }

    fn check_scores(&self) -> Result<(), TokenizerError> {
        let VocabJson::Pieces(pieces) = &self.vocab else { return Ok(()) };
        match pieces.iter().position(|(_, score)| !score.is_finite()) {
            Some(id) => {
                Err(TokenizerError::field("tokenizer.json: model.vocab", format!("token {id} has no score")))
            }
            None => Ok(()),
        }
    }
}

impl VocabJson {
    /// Texts with their ids.
    pub(super) fn entries(&self) -> Vec<(&str, u32)> {
        match self {
            Self::Ids(ids) => ids.iter().map(|(text, id)| (text.as_str(), *id)).collect(),
            Self::Pieces(pieces) => {
                pieces.iter().zip(0..).map(|((text, _), id)| (text.as_str(), id)).collect()
            }
        }
    }
}

impl MergeJson {
    /// The two tokens.
    pub(super) fn halves(&self) -> (&str, &str) {
        (&self.0, &self.1)
    }
}

impl<'de> Deserialize<'de> for VocabJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = VocabJson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tokens to ids or a list of pieces with scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabJson, A::Error> {
        let mut ids = Vec::with_capacity(map.size_hint().unwrap_or(0));
        while let Some(entry) = map.next_entry()? {
            ids.push(entry);
        }
        Ok(VocabJson::Ids(ids))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<VocabJson, A::Error> {
        let mut pieces = Vec::new();
        while let Some(piece) = list.next_element()? {
            pieces.push(piece);
        }
        Ok(VocabJson::Pieces(pieces))
    }
}

impl<'de> Deserialize<'de> for MergeJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = MergeJson;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two tokens, with a space between or in a list")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MergeJson, E> {
        let (left, right) =
            text.split_once(' ').ok_or_else(|| E::custom(format!("merge {text:?} has no space")))?;
        Ok(MergeJson(left.to_owned(), right.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MergeJson, A::Error> {
        let missing = || A::Error::custom("a merge of fewer than two tokens");
        let left = list.next_element()?.ok_or_else(missing)?;
        let right = list.next_element()?.ok_or_else(missing)?;
        match list.next_element::<IgnoredAny>()? {
            Some(_) => Err(A::Error::custom("a merge of more than two tokens")),
            None => Ok(MergeJson(left, right)),
        }
    }
}
