//! A tokenizer from Hugging Face's tokenizer.json and tokenizer_config.json.
//!
//! Normalisers, pre-tokenisers and post-processors are read and run by the `tokenizers` crate; byte-level
//! vocabularies whose pre-tokeniser is a list of patterns are lowered to the splitter that GGUF vocabularies use,
//! which is faster and reports a pattern that gives up. `truncation` and `padding` describe training batches and
//! have no meaning for a request.

use serde::Deserialize;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{
    AddedToken, DecoderWrapper, Encoding, PostProcessor, PostProcessorWrapper, PreTokenizerWrapper, Token,
};

use super::json_model::{ModelJson, VocabJson};
use super::model::{Fallback, Model, Pairs};
use super::normalize::Normalizer;
use super::prepare::Prepare;
use super::segment::Segments;
use super::split::{GPT2, Splitter};
use super::unigram::Unigram;
use super::vocab::{Kind, Spelling, Vocab, byte_of_text};
use super::{Pipeline, Tokenizer, TokenizerError};

const FILE: &str = "tokenizer.json";
const VOCAB: &str = "tokenizer.json: model.vocab";

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<AddedJson>,
    #[serde(default)]
    normalizer: Option<Prepare>,
    #[serde(default)]
    pre_tokenizer: Option<PreTokenizerWrapper>,
    #[serde(default)]
    post_processor: Option<PostProcessorWrapper>,
    #[serde(default)]
    decoder: Option<DecoderWrapper>,
    model: ModelJson,
}

#[derive(Deserialize)]
struct AddedJson {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// The keys of tokenizer_config.json that say which tokens surround and end a text.
#[derive(Deserialize, Default)]
struct ConfigJson {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Added { content: String },
}

impl Tokenizer {
    /// Builds the tokenizer that `tokenizer_json` describes, with `tokenizer_config_json` for the tokens that
    /// surround and end a text. Everything is checked; an error names the field.
    pub fn from_json(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
    ) -> Result<Self, TokenizerError> {
        let file: TokenizerJson = parse(FILE, tokenizer_json)?;
        let config = match tokenizer_config_json {
            Some(text) => parse("tokenizer_config.json", text)?,
            None => ConfigJson::default(),
        };
        build(file, &config)
    }
}

fn parse<'a, T: Deserialize<'a>>(file: &'static str, text: &'a [u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(text).map_err(|error| TokenizerError::Json { file, problem: error.to_string() })
}

fn build(file: TokenizerJson, config: &ConfigJson) -> Result<Tokenizer, TokenizerError> {
    let (spelling, strip_space) = decoding(file.decoder.as_ref())?;
    let vocab = vocabulary(&file, spelling)?;
    let lowered = match spelling {
        Spelling::ByteLevel => lower(file.pre_tokenizer.as_ref(), file.normalizer.as_ref()),
        Spelling::Pieces => None,
    };
    let patterns: Vec<&str> = lowered.iter().flatten().map(String::as_str).collect();
    let segments = Segments {
        model: model(file.model, &vocab, lowered.is_some())?,
        vocab,
        normalizer: Normalizer::default(),
        splitter: Splitter::new(&patterns)?,
    };
    let mut pipeline = Pipeline::new(segments.into());
    pipeline.with_normalizer(file.normalizer).map_err(TokenizerError::from_crate)?;
    if lowered.is_none() {
        pipeline.with_pre_tokenizer(file.pre_tokenizer);
    }
    let added = file.added_tokens.into_iter().map(|added| added.token).collect();
    let tokenizer = Tokenizer { strip_space, ..Tokenizer::new(pipeline, added)? };
    surround(tokenizer, file.post_processor.as_ref(), config)
}

/// How tokens spell bytes, and whether decoding takes a first space away.
fn decoding(decoder: Option<&DecoderWrapper>) -> Result<(Spelling, bool), TokenizerError> {
    let steps = match decoder {
        None => &[][..],
        Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
        Some(one) => std::slice::from_ref(one),
    };
    let (mut spelling, mut strip_space) = (None, false);
    for step in steps {
        match step {
            DecoderWrapper::ByteLevel(_) => spelling = Some(Spelling::ByteLevel),
            DecoderWrapper::Metaspace(space) => {
                spelling = Some(Spelling::Pieces);
                strip_space |= space.get_prepend_scheme() != PrependScheme::Never;
            }
            DecoderWrapper::Replace(_) | DecoderWrapper::ByteFallback(_) => spelling = Some(Spelling::Pieces),
            DecoderWrapper::Strip(strip) => strip_space |= strip.content == ' ' && strip.start > 0,
            DecoderWrapper::Fuse(_) => {}
            other => return Err(unsupported("tokenizer.json: decoder", format!("{other:?}"), DECODERS)),
        }
    }
    let spelling =
        spelling.ok_or_else(|| unsupported("tokenizer.json: decoder", "null".to_owned(), DECODERS))?;
    Ok((spelling, strip_space))
}

const DECODERS: &str = "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip and sequences of them";

fn unsupported(field: &'static str, name: String, known: &str) -> TokenizerError {
    TokenizerError::Unsupported { field, name, known: known.to_owned() }
}

/// The model's tokens and the added ones, by id; ids that neither uses are holes.
fn vocabulary(file: &TokenizerJson, spelling: Spelling) -> Result<Vocab, TokenizerError> {
    let model = file.model.vocab.entries();
    let added = file.added_tokens.iter().map(|added| (added.token.content.as_str(), added.id));
    let size = model.iter().copied().chain(added.clone()).map(|(_, id)| id as usize + 1).max().unwrap_or(0);
    Vocab::check_len(size, VOCAB)?;
    let mut texts = vec![String::new(); size];
    let mut kinds = vec![Kind::Normal; size];
    for (text, id) in model.into_iter().chain(added) {
        let slot = &mut texts[id as usize];
        if !slot.is_empty() && slot != text {
            return Err(TokenizerError::field(VOCAB, format!("token {id} is both {slot:?} and {text:?}")));
        }
        text.clone_into(slot);
        if file.model.byte_fallback && byte_of_text(text).is_some() {
            kinds[id as usize] = Kind::Byte;
        }
    }
    for added in &file.added_tokens {
        kinds[added.id as usize] = if added.token.special { Kind::Control } else { Kind::UserDefined };
    }
    Vocab::new(texts, kinds, spelling, VOCAB)
}

/// The patterns that a byte-level pre-tokeniser consists of, when it consists of patterns.
fn lower(pre_tokenizer: Option<&PreTokenizerWrapper>, normalizer: Option<&Prepare>) -> Option<Vec<String>> {
    if normalizer.is_some_and(|normalizer| !normalizer.keeps_alphabet()) {
        return None;
    }
    let steps = match pre_tokenizer? {
        PreTokenizerWrapper::Sequence(sequence) => AsRef::<[PreTokenizerWrapper]>::as_ref(sequence),
        one => std::slice::from_ref(one),
    };
    let (last, before) = steps.split_last()?;
    let mut patterns = before.iter().map(pattern).collect::<Option<Vec<_>>>()?;
    match last {
        PreTokenizerWrapper::ByteLevel(ByteLevel { add_prefix_space: false, use_regex, .. }) => {
            patterns.extend(use_regex.then(|| GPT2.to_owned()));
            Some(patterns)
        }
        _ => None,
    }
}

fn pattern(step: &PreTokenizerWrapper) -> Option<String> {
    match step {
        PreTokenizerWrapper::Split(split) => isolated(split),
        PreTokenizerWrapper::Digits(digits) => {
            Some(if digits.individual_digits { r"\p{N}" } else { r"\p{N}+" }.to_owned())
        }
        _ => None,
    }
}

fn isolated(split: &Split) -> Option<String> {
    let isolates = split.behavior == SplitDelimiterBehavior::Isolated;
    match &split.pattern {
        SplitPattern::Regex(pattern) if isolates => Some(pattern.clone()),
        SplitPattern::String(text) if isolates => Some(fancy_regex::escape(text).into_owned()),
        _ => None,
    }
}

fn model(json: ModelJson, vocab: &Vocab, over_bytes: bool) -> Result<Model, TokenizerError> {
    json.check()?;
    let bytes = if json.byte_fallback { vocab.byte_tokens() } else { [None; 256] };
    if let VocabJson::Pieces(pieces) = &json.vocab {
        let mut scores: Vec<f32> = pieces.iter().map(|(_, score)| *score as f32).collect();
        scores.resize(vocab.len(), 0.0);
        let unknown = json.unk_id.filter(|id| (*id as usize) < vocab.len());
        return Ok(Model::Unigram {
            unigram: Unigram::new(vocab, scores),
            fallback: Fallback { bytes, unknown, fuse: true },
        });
    }
    let pairs = Pairs::build(
        vocab,
        "tokenizer.json: model.merges",
        json.merges.iter().map(|merge| Ok(merge.halves())),
    )?;
    if over_bytes {
        let words = json.ignore_merges.then(|| vocab.words());
        return Ok(Model::ByteLevel { pairs, singles: vocab.single_bytes(), words });
    }
    let unknown = json.unk_token.as_deref().and_then(|text| vocab.id(text));
    let fallback = Fallback { bytes, unknown, fuse: json.fuse_unk };
    Ok(Model::Characters { pairs, whole_words: json.ignore_merges, fallback })
}

/// Adds what goes around a text and ends one.
fn surround(
    mut tokenizer: Tokenizer,
    post_processor: Option<&PostProcessorWrapper>,
    config: &ConfigJson,
) -> Result<Tokenizer, TokenizerError> {
    if let Some(post_processor) = post_processor {
        (tokenizer.prefix, tokenizer.suffix) = affixes(post_processor)?;
    }
    let tokens = tokenizer.vocab_size();
    if let Some(id) = tokenizer.prefix.iter().chain(&tokenizer.suffix).find(|&&id| id as usize >= tokens) {
        let problem = format!("adds token {id} of a vocabulary of {tokens}");
        return Err(TokenizerError::field("tokenizer.json: post_processor", problem));
    }
    let id = |text: &Option<TokenText>, field| match text {
        None => Ok(None),
        Some(TokenText::Text(text) | TokenText::Added { content: text }) => tokenizer
            .token_to_id(text)
            .map(Some)
            .ok_or_else(|| TokenizerError::field(field, format!("{text:?} is not in the vocabulary"))),
    };
    let bos = id(&config.bos_token, "tokenizer_config.json: bos_token")?;
    let eos = id(&config.eos_token, "tokenizer_config.json: eos_token")?;
    want(&mut tokenizer.prefix, bos, config.add_bos_token);
    want(&mut tokenizer.suffix, eos, config.add_eos_token);
    tokenizer.bos = bos.or_else(|| tokenizer.prefix.first().copied());
    tokenizer.eos = eos.into_iter().collect();
    Ok(tokenizer)
}

/// Makes a configuration's explicit wish true.
fn want(affix: &mut Vec<u32>, token: Option<u32>, wish: Option<bool>) {
    if let (Some(token), Some(wish)) = (token, wish)
        && affix.contains(&token) != wish
    {
        if wish { affix.insert(0, token) } else { affix.retain(|&id| id != token) }
    }
}

/// What a post-processor puts before and after a text, seen by giving it a token of no vocabulary.
fn affixes(post_processor: &PostProcessorWrapper) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let text = Encoding::from_tokens(vec![Token::new(u32::MAX, String::new(), (0, 0))], 0);
    let encoding = post_processor.process(text, None, true).map_err(TokenizerError::from_crate)?;
    let ids = encoding.get_ids();
    let at = ids.iter().position(|&id| id == u32::MAX).ok_or_else(|| {
        TokenizerError::field("tokenizer.json: post_processor", "drops the text it is given")
    })?;
    Ok((ids[..at].to_vec(), ids[at + 1..].to_vec()))
}
