//! Pre-tokenisation: cutting text into words that merges never cross.

use std::ops::Range;

use regex_automata::meta;

use super::TokenizerError;

/// A list of cuts, each made within the pieces that the ones before left: matches and the stretches between
/// them are pieces.
#[derive(Debug, Clone, Default)]
pub(super) struct Splitter {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
enum Pattern {
    /// Linear-time search. When `spare` is set the last alternative is a run of white space that leaves
    /// its last character to the word that follows, which others write as `\s+(?!\S)|\s+`.
    Linear { regex: Box<meta::Regex>, spare: bool },
    /// A backtracking search, for patterns with other look-around.
    Backtrack(Box<fancy_regex::Regex>),
}

type Emit<'a, 't> = dyn FnMut(&'t str) -> Result<(), TokenizerError> + 'a;

impl Splitter {
    /// Cuts with each pattern in turn; an error names the pattern.
    pub(super) fn new(patterns: &[&str]) -> Result<Self, TokenizerError> {
        Ok(Self { patterns: patterns.iter().map(|p| Pattern::compile(p)).collect::<Result<_, _>>()? })
    }

    /// Calls `word` with the pieces of `text` in order.
    pub(super) fn split<'t>(&self, text: &'t str, word: &mut Emit<'_, 't>) -> Result<(), TokenizerError> {
        split_with(&self.patterns, text, word)
    }
}

fn split_with<'t>(
    patterns: &[Pattern],
    text: &'t str,
    word: &mut Emit<'_, 't>,
) -> Result<(), TokenizerError> {
    match patterns {
        [] if text.is_empty() => Ok(()),
        [] => word(text),
        [pattern, rest @ ..] => pattern.cut(text, &mut |piece| split_with(rest, piece, word)),
    }
}

/// The alternatives that spare a run's last white space; at the end of a pattern they need no look-ahead.
const SPARING: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"];

impl Pattern {
    fn compile(pattern: &str) -> Result<Self, TokenizerError> {
        let body = SPARING.iter().find_map(|suffix| pattern.strip_suffix(suffix));
        let linear = match body {
            _ if has_possessive(pattern) => None,
            Some(body) => meta::Regex::new_many(&[body, r"\s+"]).ok(),
            None => meta::Regex::new(pattern).ok(),
        };
        if let Some(regex) = linear {
            return Ok(Self::Linear { regex: Box::new(regex), spare: body.is_some() });
        }
        let regex = fancy_regex::Regex::new(pattern).map_err(|error| TokenizerError::Unsupported {
            field: "pre_tokenizer",
            name: pattern.to_owned(),
            known: format!("regular expressions ({error})"),
        })?;
        Ok(Self::Backtrack(Box::new(regex)))
    }

    /// Calls `cut` with the matches and the stretches between them, in order.
    fn cut<'t>(&self, text: &'t str, cut: &mut Emit<'_, 't>) -> Result<(), TokenizerError> {
        let (mut from, mut done) = (0, 0);
        while let Some(found) = self.find(text, from)? {
            if done < found.start {
                cut(&text[done..found.start])?;
            }
            done = found.end;
            from = found.end;
            if !found.is_empty() {
                cut(&text[found])?;
            } else if from < text.len() {
                from += text[from..].chars().next().map_or(1, char::len_utf8);
            } else {
                break;
            }
        }
        if done < text.len() { cut(&text[done..]) } else { Ok(()) }
    }

    fn find(&self, text: &str, at: usize) -> Result<Option<Range<usize>>, TokenizerError> {
        match self {
            Self::Linear { regex, spare } => {
                let found = regex.find(regex_automata::Input::new(text).range(at..));
                Ok(found.map(|m| {
                    let run = *spare && m.pattern().as_usize() == 1 && m.end() < text.len();
                    m.start()..if run { spare_last(text, m.range()) } else { m.end() }
                }))
            }
            Self::Backtrack(regex) => match regex.find_from_pos(text, at) {
                Ok(found) => Ok(found.map(|m| m.start()..m.end())),
                Err(error) => Err(TokenizerError::Pattern { problem: error.to_string() }),
            },
        }
    }
}

/// The end of a white space run without its last character, unless that is its only one.
fn spare_last(text: &str, run: Range<usize>) -> usize {
    let (last, _) = text[run.clone()].char_indices().next_back().unwrap_or((0, ' '));
    if last == 0 { run.end } else { run.start + last }
}

/// Whether a quantifier is followed by `+`: possessive elsewhere, a nested repetition to the linear engine.
fn has_possessive(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    let (mut in_class, mut quantified, mut counted) = (false, false, false);
    while let Some(c) = chars.next() {
        if c == '+' && quantified && !in_class {
            return true;
        }
        match c {
            '\\' if matches!(chars.next(), Some('p' | 'P' | 'x' | 'u'))
                && chars.as_str().starts_with('{') =>
            {
                chars.by_ref().find(|&c| c == '}');
            }
            '[' => in_class = true,
            ']' => in_class = false,
            '{' => counted = !in_class,
            _ => {}
        }
        quantified = !in_class && (matches!(c, '?' | '*' | '+') || c == '}' && counted);
        counted &= c != '}';
    }
    false
}

/// GPT-2's words.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}",
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}",
    r"\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}",
    r"\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}",
    r"\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}",
    r"\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}",
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}",
    r"\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}",
    r"\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}",
    r"\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}",
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}",
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}",
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+",
);
const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const HAN_HANGUL: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const HAN_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+";

/// How a GGUF byte-level vocabulary splits and merges.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    pub(super) patterns: &'static [&'static str],
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether text starts with the beginning-of-text token when the file does not say.
    pub(super) add_bos: bool,
}

/// The pre-tokenizer called `name`; the error lists those there are.
pub(super) fn pre_tokenizer(name: &str) -> Result<&'static PreTokenizer, TokenizerError> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| TokenizerError::Unsupported {
        field: "tokenizer.ggml.pre",
        name: name.to_owned(),
        known: PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", "),
    })
}

const fn plain(names: &'static [&'static str], patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, patterns, ignore_merges: false, add_bos: false }
}

const fn whole_words(
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    add_bos: bool,
) -> PreTokenizer {
    PreTokenizer { names, patterns, ignore_merges: true, add_bos }
}

/// The patterns are those of each family's tokenizer.json; the names and flags those that llama.cpp writes and reads.
static PRE_TOKENIZERS: [PreTokenizer; 27] = [
    plain(&["default"], &[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    plain(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    plain(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    whole_words(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[LLAMA3],
        true,
    ),
    plain(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    whole_words(&["glm4", "glm5"], &[LLAMA3], false),
    plain(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    plain(&["qwen35"], &[QWEN35]),
    plain(&["jais-2"], &[JAIS2]),
    whole_words(&["tekken"], &[TEKKEN], true),
    plain(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    whole_words(&["granite-embed-multi-97m"], &[GPT4O], false),
    plain(&["tiny_aya", "cohere2moe"], &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]),
    plain(
        &["deepseek-llm"],
        &["[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, r"\s+$", HAN_HANGUL, r"\p{N}+"],
    ),
    plain(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_HANGUL, r"\p{N}"]),
    plain(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[r"\p{N}{1,3}", HAN_KANA, DEEPSEEK_V3]),
    plain(&["falcon"], &[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"]),
    plain(&["poro-chat", "bloom", "gpt3-finnish"], &[BLOOM]),
    plain(&["viking"], &[BLOOM, r"\p{N}"]),
    plain(&["superbpe"], &[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]),
    plain(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    plain(&["seed-coder"], &[SEED_CODER]),
    plain(&["exaone-moe"], &[EXAONE_MOE]),
    whole_words(&["minicpm5"], &[r"\p{N}{1,3}", MINICPM5], false),
    plain(&["laguna"], &[r"[^\n]+|[\n]+", QWEN2]),
    plain(
        &["ufakzeka"],
        &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
    ),
    plain(&["gemma4"], &[r"[^\n]+|[\n]+"]),
];

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use proptest::prelude::*;

    fn words<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        splitter
            .split(text, &mut |word| {
                words.push(word);
                Ok(())
            })
            .unwrap();
        words
    }

    #[test]
    fn every_named_pattern_compiles() {
        for pre in &PRE_TOKENIZERS {
            Splitter::new(pre.patterns).unwrap();
        }
    }

    #[test]
    fn only_look_around_needs_backtracking() {
        let backtracks = |p: &&str| matches!(Pattern::compile(p).unwrap(), Pattern::Backtrack(_));
        let patterns = PRE_TOKENIZERS.iter().flat_map(|pre| pre.patterns);
        let found: Vec<_> = patterns.filter(|p| backtracks(p)).collect();
        assert_eq!(found, [&JAIS2, &r"\d{1,3}(?=(?:\d{3})*\b)", &r"(?=(\d{3})+(?!\d))"]);
        assert!(backtracks(&r"[^\r\n\p{L}]?+\p{L}+") && backtracks(&r"\p{N}{1,3}+") && !backtracks(&r"a\++"));
    }

    #[test]
    fn empty_matches_cut_between_characters() {
        let superbpe = Splitter::new(pre_tokenizer("superbpe").unwrap().patterns).unwrap();
        assert_eq!(words(&superbpe, "a1234567b12"), ["a", "1", "234", "567", "b", "12"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = pre_tokenizer("no-such").unwrap_err().to_string();
        assert!(error.contains("\"no-such\"") && error.contains("llama-bpe"), "{error}");
    }

    /// Each pattern on the linear engine, and on the one that knows look-ahead.
    static BOTH: LazyLock<Vec<[Splitter; 2]>> = LazyLock::new(|| {
        let both = |pattern| {
            let backtrack = Pattern::Backtrack(Box::new(fancy_regex::Regex::new(pattern).unwrap()));
            [Splitter::new(&[pattern]).unwrap(), Splitter { patterns: vec![backtrack] }]
        };
        [GPT2, LLAMA3, QWEN2, TEKKEN, GPT4O, DEEPSEEK_V3, BAILING].map(both).into()
    });

    proptest! {
        /// The linear engine's rule for runs of white space equals the look-ahead it stands for.
        #[test]
        fn runs_of_white_space_match_the_look_ahead(text in "[a'sS1 \t\r\n\u{a0}\u{3000}é中!]{0,24}") {
            for [linear, backtrack] in BOTH.iter() {
                prop_assert_eq!(words(linear, &text), words(backtrack, &text));
            }
        }
    }
}
