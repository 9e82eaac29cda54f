//! Our model behind the `tokenizers` crate's trait: from a stretch of text between added tokens to ids.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model as CrateModel, Token};

use super::TokenizerError;
use super::model::Model;
use super::normalize::{Normalizer, SPACE};
use super::split::Splitter;
use super::vocab::Vocab;

/// Normalises, splits and encodes a stretch of text.
#[derive(Debug)]
pub(super) struct Segments {
    pub(super) vocab: Vocab,
    pub(super) normalizer: Normalizer,
    pub(super) splitter: Splitter,
    pub(super) model: Model,
}

/// Shared by the pipelines that do and do not look for control tokens.
#[derive(Debug, Clone)]
pub(super) struct SharedSegments(Arc<Segments>);

impl From<Segments> for SharedSegments {
    fn from(segments: Segments) -> Self {
        Self(Arc::new(segments))
    }
}

impl SharedSegments {
    pub(super) fn vocab(&self) -> &Vocab {
        &self.0.vocab
    }
}

impl Segments {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let text = self.normalizer.normalize(text);
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.splitter.split(&text, &mut |word| self.model.encode(&self.vocab, word, &mut ids))?;
        Ok(ids)
    }
}

impl CrateModel for SharedSegments {
    type Trainer = TrainerWrapper;

    /// Only ids are filled in: nothing here asks for texts or offsets.
    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        let ids = self.0.encode(sequence)?;
        Ok(ids.into_iter().map(|id| Token::new(id, String::new(), (0, 0))).collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        let vocab = self.vocab();
        vocab.id(token).or_else(|| vocab.id(&token.replace(' ', SPACE)))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocab().text(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let vocab = self.vocab();
        (0..vocab.len() as u32).filter_map(|id| Some((vocab.text(id)?.to_owned(), id))).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.vocab().len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a vocabulary is read, never written".into())
    }

    fn get_trainer(&self) -> TrainerWrapper {
        BpeTrainer::default().into()
    }
}
