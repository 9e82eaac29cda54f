//! Text to token ids and back.
//!
//! The pipeline is the `tokenizers` crate's: added tokens are found in the text, what lies between them is normalised and
//! cut into words, and a model turns words into ids. The model is our own, because the crate's cannot express
//! SentencePiece's ranks (equal for every way to make a token) and drops bytes that have no token. A GGUF vocabulary and a
//! tokenizer.json are two descriptions of the same parts.
//!
//! Two decisions shape it. Untrusted text cannot become a control token: with `parse_special` false control tokens
//! are not searched for, and no model has one among the tokens it may produce. And a token is bytes, not text:
//! a character may be split over tokens, so whoever streams text joins bytes first.

mod bpe;
mod charsmap;
mod error;
mod gguf;
mod json;
mod json_model;
mod model;
mod normalize;
mod prepare;
mod segment;
mod split;
mod unigram;
mod vocab;

use tokenizers::{
    AddedToken, DecoderWrapper, OffsetReferential, OffsetType, PostProcessorWrapper, PreTokenizerWrapper,
    Token, TokenizerImpl,
};

use prepare::Prepare;
use segment::SharedSegments;
use vocab::Vocab;

pub use error::TokenizerError;
pub use gguf::GgufVocab;

type Pipeline =
    TokenizerImpl<SharedSegments, Prepare, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A vocabulary with its rules.
#[derive(Debug)]
pub struct Tokenizer {
    /// Finds all added tokens.
    trusting: Pipeline,
    /// Finds those that are not control tokens.
    wary: Pipeline,
    bos: Option<u32>,
    eos: Vec<u32>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Whether encoding puts a space in front of a text.
    strip_space: bool,
}

impl Tokenizer {
    /// The ids of `text`. `add_special` adds what the model wants around a text, usually a
    /// beginning-of-text token. Only with `parse_special` do spellings of control tokens become control tokens;
    /// leave it false for text that is not the program's own.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > u32::MAX as usize {
            return Err(TokenizerError::TextTooLong { bytes: text.len() });
        }
        let pipeline = if parse_special { &self.trusting } else { &self.wary };
        let encoding = pipeline.encode_fast(text, false).map_err(TokenizerError::from_crate)?;
        let ids = encoding.get_ids();
        Ok(if add_special { [&self.prefix, ids, &self.suffix].concat() } else { ids.to_vec() })
    }

    /// The ids of `text`, whose control tokens count except where `mark` breaks them up; marks are left out.
    pub(crate) fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, TokenizerError> {
        if !text.contains(mark) {
            return self.encode(text, false, true);
        }
        let mut ids = Vec::new();
        let parts = self.trusting.get_added_vocabulary().extract_and_normalize(None::<&Prepare>, text);
        for (part, _, token) in parts.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match token {
                Some(token) => ids.extend(token.iter().map(|token| token.id)),
                None => ids.extend(self.encode(&part.replace(mark, ""), false, false)?),
            }
        }
        Ok(ids)
    }

    /// A copy of `json` with `mark` after the first character of each control token spelled in a string.
    pub(crate) fn mark_specials_in(&self, json: &serde_json::Value, mark: char) -> serde_json::Value {
        use serde_json::Value as Json;
        match json {
            Json::String(text) => self.mark_specials(text, mark).into(),
            Json::Array(list) => list.iter().map(|item| self.mark_specials_in(item, mark)).collect(),
            Json::Object(map) => {
                let entry = |(key, value): (&String, &Json)| {
                    (self.mark_specials(key, mark), self.mark_specials_in(value, mark))
                };
                Json::Object(map.iter().map(entry).collect())
            }
            _ => json.clone(),
        }
    }

    /// Marks until no control token is left, since one spelling may hide another.
    fn mark_specials(&self, text: &str, mark: char) -> String {
        let added = self.trusting.get_added_vocabulary();
        let mut text = text.to_owned();
        loop {
            let parts = added.extract_and_normalize(None::<&Prepare>, &text);
            let parts = parts.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let is_special = |id: u32| self.vocab().is_special(id);
            let special = |tokens: &[Token]| tokens.iter().any(|token| is_special(token.id));
            let mut marked = String::with_capacity(text.len());
            for (part, _, tokens) in &parts {
                let mut chars = part.chars();
                if tokens.as_deref().is_some_and(special) && chars.clone().nth(1).is_some() {
                    marked.extend(chars.next());
                    marked.push(mark);
                }
                marked.push_str(chars.as_str());
            }
            if marked.len() == text.len() {
                return text;
            }
            text = marked;
        }
    }

    /// The text of `ids`, with U+FFFD for bytes that are not UTF-8. Special tokens are left out or spelled.
    /// A space that encoding puts in front of a text is taken away again.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let vocab = self.vocab();
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            match vocab.text(id) {
                Some(text) if vocab.is_special(id) => {
                    if !skip_special {
                        bytes.extend_from_slice(text.as_bytes());
                    }
                }
                _ => bytes.extend_from_slice(vocab.bytes(id)),
            }
        }
        let bytes = if self.strip_space { bytes.strip_prefix(b" ").unwrap_or(&bytes) } else { &bytes };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The bytes that a token stands for: none for special tokens and for ids that are not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab().bytes(id)
    }

    /// Whether a token stands for no text of its own.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab().is_special(id)
    }

    /// The number of ids; they run from 0.
    pub fn vocab_size(&self) -> usize {
        self.vocab().len()
    }

    /// The id of a token as the vocabulary spells it, such as `<|im_end|>` or `Ġthe`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocab().id(token)
    }

    /// A token as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.vocab().text(id)
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end a generation, the end-of-text token first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Adds tokens that end a generation, as generation_config.json lists them.
    pub fn add_eos_ids(&mut self, ids: &[u32]) -> Result<(), TokenizerError> {
        for &id in ids {
            if id as usize >= self.vocab().len() {
                let problem = format!("token {id} of a vocabulary of {}", self.vocab().len());
                return Err(TokenizerError::field("generation_config.json: eos_token_id", problem));
            }
            if !self.eos.contains(&id) {
                self.eos.push(id);
            }
        }
        Ok(())
    }

    /// Whether `encode` with `add_special` starts with the beginning-of-text token.
    pub fn add_bos(&self) -> bool {
        self.bos.is_some_and(|bos| self.prefix.first() == Some(&bos))
    }

    fn vocab(&self) -> &Vocab {
        self.trusting.get_model().vocab()
    }

    /// A tokenizer that adds nothing around a text; every added token must be in the model's vocabulary.
    fn new(mut pipeline: Pipeline, added: Vec<AddedToken>) -> Result<Self, TokenizerError> {
        pipeline.add_tokens(added).map_err(TokenizerError::from_crate)?;
        let tokens = pipeline.get_model().vocab().len();
        if let Some(token) =
            pipeline.get_added_vocabulary().get_vocab().iter().find(|(_, id)| **id as usize >= tokens)
        {
            return Err(TokenizerError::field(
                "added_tokens",
                format!("{:?} is not in the vocabulary", token.0),
            ));
        }
        let mut wary = pipeline.clone();
        wary.set_encode_special_tokens(true);
        Ok(Self {
            trusting: pipeline,
            wary,
            bos: None,
            eos: Vec::new(),
            prefix: Vec::new(),
            suffix: Vec::new(),
            strip_space: false,
        })
    }
}
