//! A tokenizer from the vocabulary in a GGUF file's metadata.

use tokenizers::AddedToken;

use super::charsmap::Charsmap;
use super::model::{Fallback, Model, Pairs};
use super::normalize::{Normalizer, SPACE};
use super::segment::Segments;
use super::split::{PreTokenizer, Splitter, pre_tokenizer};
use super::unigram::Unigram;
use super::vocab::{Kind, Spelling, Vocab};
use crate::gguf::Metadata;

use super::{Pipeline, Tokenizer, TokenizerError};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Control tokens that end a turn or a text; many files name only one of those that their model writes.
const ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
];

/// The `tokenizer.ggml.*` keys of a GGUF file. An absent key is `None` or empty; each field is the key of
/// its name unless another is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece BPE), `gemma4` (BPE over characters) or `t5` (unigram).
    pub model: String,
    /// Name of the pre-tokenizer of a byte-level vocabulary; absent means `default`.
    pub pre: Option<String>,
    /// Token texts by id.
    pub tokens: Vec<String>,
    /// Scores by id, higher is better.
    pub scores: Option<Vec<f32>>,
    /// `token_type`: kinds by id, 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty means all normal.
    pub token_types: Vec<i32>,
    /// Merges in order of rank, two tokens with a space between.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `eot_token_id`: the end of a turn.
    pub eot: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`; absent means as the model or the pre-tokenizer is known to want it.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// Whether a space goes in front of the text and of what follows a special token; absent means yes
    /// for `llama` and `t5`.
    pub add_space_prefix: Option<bool>,
    /// Whether spaces are trimmed and runs of them collapsed; absent means no.
    pub remove_extra_whitespaces: Option<bool>,
    /// SentencePiece's compiled normaliser.
    pub precompiled_charsmap: Option<Vec<u8>>,
}

impl GgufVocab {
    /// Reads the keys of a GGUF file. `merges` may be absent, `model` and `tokens` may not.
    ///
    /// # Errors
    /// A key of another type than its own, or a missing one, by name.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Ok(Self {
            model: required("tokenizer.ggml.model", metadata.str("tokenizer.ggml.model")?)?.to_owned(),
            pre: metadata.str("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: required(TOKENS, metadata.strings(TOKENS)?)?.to_vec(),
            scores: metadata.f32s(SCORES)?.map(<[f32]>::to_vec),
            token_types: token_types(metadata.i64s(TYPES)?.unwrap_or_default())?,
            merges: metadata.strings(MERGES)?.unwrap_or_default().to_vec(),
            bos: metadata.u32("tokenizer.ggml.bos_token_id")?,
            eos: metadata.u32("tokenizer.ggml.eos_token_id")?,
            eot: metadata.u32("tokenizer.ggml.eot_token_id")?,
            unk: metadata.u32("tokenizer.ggml.unknown_token_id")?,
            pad: metadata.u32("tokenizer.ggml.padding_token_id")?,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            remove_extra_whitespaces: metadata.bool("tokenizer.ggml.remove_extra_whitespaces")?,
            precompiled_charsmap: metadata
                .i64s("tokenizer.ggml.precompiled_charsmap")?
                .map(|bytes| bytes.into_iter().map(|byte| byte as u8).collect()),
        })
    }
}

fn required<T>(key: &'static str, value: Option<T>) -> Result<T, TokenizerError> {
    value.ok_or_else(|| TokenizerError::field(key, "missing"))
}

fn token_types(numbers: Vec<i64>) -> Result<Vec<i32>, TokenizerError> {
    let number = |(id, n): (usize, i64)| {
        i32::try_from(n)
            .map_err(|_| TokenizerError::field(TYPES, format!("token {id} has type {n}; expected 0 to 6")))
    };
    numbers.into_iter().enumerate().map(number).collect()
}

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes. Everything is checked; an error names the key.
    pub fn from_gguf(vocab: GgufVocab) -> Result<Self, TokenizerError> {
        let family = Family::named(&vocab.model)?;
        let pre = family.pre_tokenizer(&vocab)?;
        Builder { family, pre, file: vocab }.build()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    ByteLevel,
    Characters,
    Scored,
    Unigram,
}

impl Family {
    fn named(model: &str) -> Result<Self, TokenizerError> {
        Ok(match model {
            "gpt2" => Self::ByteLevel,
            "gemma4" => Self::Characters,
            "llama" => Self::Scored,
            "t5" => Self::Unigram,
            _ => {
                return Err(TokenizerError::Unsupported {
                    field: "tokenizer.ggml.model",
                    name: model.to_owned(),
                    known: "gpt2, llama, t5, gemma4".to_owned(),
                });
            }
        })
    }

    fn pre_tokenizer(self, vocab: &GgufVocab) -> Result<Option<&'static PreTokenizer>, TokenizerError> {
        match self {
            Self::ByteLevel => pre_tokenizer(vocab.pre.as_deref().unwrap_or("default")).map(Some),
            Self::Characters => pre_tokenizer("gemma4").map(Some),
            Self::Scored | Self::Unigram => Ok(None),
        }
    }

    fn spelling(self) -> Spelling {
        if self == Self::ByteLevel { Spelling::ByteLevel } else { Spelling::Pieces }
    }
}

struct Builder {
    family: Family,
    pre: Option<&'static PreTokenizer>,
    file: GgufVocab,
}

impl Builder {
    fn build(mut self) -> Result<Tokenizer, TokenizerError> {
        let tokens = std::mem::take(&mut self.file.tokens);
        let kinds = kinds(&self.file.token_types, tokens.len())?;
        self.check_ids(tokens.len())?;
        let vocab = Vocab::new(tokens, kinds, self.family.spelling(), TOKENS)?;
        let added = added_tokens(&vocab, self.family);
        let segments = Segments {
            model: self.model(&vocab)?,
            vocab,
            normalizer: self.normalizer()?,
            splitter: Splitter::new(self.pre.map_or(&[], |pre| pre.patterns))?,
        };
        let (prefix, suffix) = self.affixes()?;
        let strip_space = segments.normalizer.space_prefix;
        let eos = self.eos_ids(&segments.vocab);
        let pipeline = Pipeline::new(segments.into());
        Ok(Tokenizer {
            prefix,
            suffix,
            strip_space,
            bos: self.file.bos,
            eos,
            ..Tokenizer::new(pipeline, added)?
        })
    }

    /// The tokens the file names, then those that are known to end a turn by their name.
    fn eos_ids(&self, vocab: &Vocab) -> Vec<u32> {
        let known =
            ENDS.iter().filter_map(|text| vocab.id(text)).filter(|&id| vocab.kind(id) == Kind::Control);
        let mut eos = Vec::new();
        for id in [self.file.eos, self.file.eot].into_iter().flatten().chain(known) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        eos
    }

    fn check_ids(&self, tokens: usize) -> Result<(), TokenizerError> {
        let file = &self.file;
        let ids = [
            ("tokenizer.ggml.bos_token_id", file.bos),
            ("tokenizer.ggml.eos_token_id", file.eos),
            ("tokenizer.ggml.eot_token_id", file.eot),
            ("tokenizer.ggml.unknown_token_id", file.unk),
            ("tokenizer.ggml.padding_token_id", file.pad),
        ];
        match ids.iter().find(|(_, id)| id.is_some_and(|id| id as usize >= tokens)) {
            Some((field, id)) => {
                let problem = format!("token {} of a vocabulary of {tokens}", id.unwrap_or_default());
                Err(TokenizerError::field(field, problem))
            }
            None => Ok(()),
        }
    }

    fn model(&mut self, vocab: &Vocab) -> Result<Model, TokenizerError> {
        let whole_words = self.pre.is_some_and(|pre| pre.ignore_merges);
        Ok(match self.family {
            Family::ByteLevel => Model::ByteLevel {
                pairs: self.pairs(vocab)?,
                singles: vocab.single_bytes(),
                words: whole_words.then(|| vocab.words()),
            },
            Family::Characters => {
                Model::Characters { pairs: self.pairs(vocab)?, whole_words, fallback: self.fallback(vocab) }
            }
            Family::Scored => Model::Scored {
                ranks: ranks(&self.scores(vocab)?),
                longest: (0..vocab.len() as u32)
                    .filter_map(|id| vocab.text(id))
                    .map(str::len)
                    .max()
                    .unwrap_or(0),
                has_unused: vocab.of_kind(Kind::Unused).next().is_some(),
                fallback: self.fallback(vocab),
            },
            Family::Unigram => {
                let scores = self.scores(vocab)?;
                Model::Unigram { unigram: Unigram::new(vocab, scores), fallback: self.fallback(vocab) }
            }
        })
    }

    fn pairs(&self, vocab: &Vocab) -> Result<Pairs, TokenizerError> {
        Pairs::build(vocab, MERGES, self.file.merges.iter().map(|merge| halves(merge)))
    }

    fn scores(&mut self, vocab: &Vocab) -> Result<Vec<f32>, TokenizerError> {
        let scores = self.file.scores.take().unwrap_or_default();
        if scores.len() != vocab.len() {
            let problem = format!("{} scores for {} tokens", scores.len(), vocab.len());
            return Err(TokenizerError::field(SCORES, problem));
        }
        match scores.iter().position(|score| !score.is_finite()) {
            Some(id) => {
                Err(TokenizerError::field(SCORES, format!("the score of token {id} is {}", scores[id])))
            }
            None => Ok(scores),
        }
    }

    fn fallback(&self, vocab: &Vocab) -> Fallback {
        let unknown = self.file.unk.or_else(|| vocab.of_kind(Kind::Unknown).next());
        Fallback { bytes: vocab.byte_tokens(), unknown, fuse: true }
    }

    fn normalizer(&self) -> Result<Normalizer, TokenizerError> {
        if self.family == Family::ByteLevel {
            return Ok(Normalizer::default());
        }
        let charsmap = self.file.precompiled_charsmap.as_ref().filter(|blob| !blob.is_empty());
        Ok(Normalizer {
            charsmap: charsmap.map(|blob| Charsmap::parse(blob)).transpose()?,
            collapse_spaces: self.file.remove_extra_whitespaces == Some(true),
            space_prefix: self.file.add_space_prefix.unwrap_or(self.family != Family::Characters),
            visible_spaces: true,
        })
    }

    /// The ids that go before and after every text.
    fn affixes(&self) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
        let bos = self.pre.map_or(self.family == Family::Scored, |pre| pre.add_bos);
        let add = |wanted: bool, id: Option<u32>, field: &'static str| match (wanted, id) {
            (false, _) => Ok(Vec::new()),
            (true, Some(id)) => Ok(vec![id]),
            (true, None) => Err(TokenizerError::field(field, "asks for a token whose id is not given")),
        };
        // What the file does not ask for is only added when it can be.
        let bos = self.file.add_bos.unwrap_or(bos && self.file.bos.is_some());
        let eos = self.file.add_eos.unwrap_or(self.family == Family::Unigram && self.file.eos.is_some());
        Ok((
            add(bos, self.file.bos, "tokenizer.ggml.add_bos_token")?,
            add(eos, self.file.eos, "tokenizer.ggml.add_eos_token")?,
        ))
    }
}

fn kinds(types: &[i32], tokens: usize) -> Result<Vec<Kind>, TokenizerError> {
    if types.is_empty() {
        return Ok(vec![Kind::Normal; tokens]);
    }
    let kind = |(id, &number): (usize, &i32)| {
        Kind::from_gguf(number).ok_or_else(|| {
            TokenizerError::field(TYPES, format!("token {id} has type {number}; expected 0 to 6"))
        })
    };
    types.iter().enumerate().map(kind).collect()
}

/// Special and user-defined tokens, as they are written in text.
fn added_tokens(vocab: &Vocab, family: Family) -> Vec<AddedToken> {
    let added = |id: u32| {
        let text = vocab.text(id).unwrap_or_default();
        let text = if family == Family::ByteLevel { text.to_owned() } else { text.replace(SPACE, " ") };
        AddedToken::from(text, vocab.is_special(id)).normalized(false)
    };
    [Kind::Control, Kind::Unknown, Kind::UserDefined]
        .iter()
        .flat_map(|&kind| vocab.of_kind(kind))
        .map(added)
        .collect()
}

/// Dense ranks: 0 for the highest score, equal for equal scores.
fn ranks(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    let mut ranks = vec![0; scores.len()];
    for pair in order.windows(2) {
        let (before, id) = (pair[0] as usize, pair[1] as usize);
        ranks[id] = ranks[before] + u32::from(scores[id] != scores[before]);
    }
    ranks
}

/// The two tokens of a merge. A token may itself be a space, so the separator is the first one after the first character.
fn halves(merge: &str) -> Result<(&str, &str), TokenizerError> {
    let first = merge.chars().next().map_or(0, char::len_utf8);
    match merge[first..].find(' ') {
        Some(at) => Ok((&merge[..first + at], &merge[first + at + 1..])),
        None => {
            Err(TokenizerError::field(MERGES, format!("{merge:?} is not two tokens with a space between")))
        }
    }
}
