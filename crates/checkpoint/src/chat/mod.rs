//! Chat templates: from messages to the text, or the tokens, that a model was trained on.
//!
//! A template is a Jinja program that comes with the model; it runs in the environment that transformers gives it.
//! What it writes mixes its own control tokens with text that a user wrote, and a user who writes `<|im_end|>`
//! must not end a turn. So [`ChatTemplate::encode`] puts an unused character inside each control token that is
//! spelled in an argument, renders, looks for control tokens, and only then takes that character out again. A chat
//! that spells no control token is encoded exactly as its rendered text. What this cannot stop is a spelling that
//! the template itself completes, such as a role of `|im_end|>` after a `<`: callers check roles.

mod clock;
mod json;
mod parts;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::{Map, Value as Json};

use crate::tokenizer::{Tokenizer, TokenizerError};
use parts::ContentForm;

/// More steps than any sensible chat takes; a template in an endless loop stops here.
const FUEL: u64 = 10_000_000;

/// The templates of a model, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    specials: Map<String, Json>,
    content: ContentForm,
}

/// What a template is given.
#[derive(Debug, Clone, Default)]
pub struct ChatInput<'a> {
    /// Messages, each an object with `role`, `content` (a string or a list of parts) and what else the API allows.
    pub messages: &'a [Json],
    /// Tool definitions as the API takes them; empty means none.
    pub tools: &'a [Json],
    /// Documents to answer from; empty means none.
    pub documents: &'a [Json],
    /// Whether the text ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`.
    pub variables: Map<String, Json>,
    /// The time that `strftime_now` tells, in seconds since 1970, UTC.
    pub now_unix_s: i64,
}

/// A chat template that is missing, wrong, or refused its input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The model has no template.
    #[error("the model has no chat template; give one with --chat-template FILE")]
    Missing,
    /// None of the model's templates is the default one.
    #[error("no chat template is named \"default\", only {names}; give one with --chat-template FILE")]
    NoDefault {
        /// The names there are.
        names: String,
    },
    /// `chat_template` is neither a string nor a list of named strings.
    #[error("chat_template: {problem}; give one with --chat-template FILE")]
    Form {
        /// What was found.
        problem: String,
    },
    /// The template is not valid Jinja, or uses what this implementation lacks.
    #[error("chat template {name:?}, line {line}: {problem}; give another with --chat-template FILE")]
    Syntax {
        /// The template's name.
        name: String,
        /// Line, from 1.
        line: usize,
        /// The parser's message.
        problem: String,
    },
    /// The template failed on this input.
    #[error(
        "chat template {name:?}, line {line}: {problem}; the template does not support these messages or variables"
    )]
    Render {
        /// The template's name.
        name: String,
        /// Line, from 1.
        line: usize,
        /// What went wrong.
        problem: String,
    },
    /// The template called `raise_exception`.
    #[error("the model's chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// A message's content cannot be given to this template.
    #[error("messages[{index}].content: {problem}")]
    Content {
        /// Which message.
        index: usize,
        /// Why not.
        problem: String,
    },
    /// All characters that could mark untrusted text occur in the input.
    #[error("the messages contain all 32 noncharacters U+FDD0 to U+FDEF; remove them")]
    NoMark,
    /// The rendered text could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl ChatTemplate {
    /// Compiles one template.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        Self::named([("default", source)])
    }

    /// Compiles templates with names; `tool_use` is taken when there are tools, `default` otherwise.
    pub fn named<'a>(templates: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ChatError> {
        let mut environment = environment();
        let mut names = Vec::new();
        for (name, source) in templates {
            let source = without_generation_tags(source);
            environment.add_template_owned(name.to_owned(), source).map_err(|error| ChatError::Syntax {
                name: name.to_owned(),
                line: line(&error),
                problem: words(&error),
            })?;
            names.push(name.to_owned());
        }
        if names.is_empty() {
            return Err(ChatError::Missing);
        }
        let mut this = Self { environment, names, specials: Map::new(), content: ContentForm::AsGiven };
        this.content = ContentForm::probe(&this);
        Ok(this)
    }

    /// Compiles `chat_template` of tokenizer_config.json: a string, or a list of `{"name", "template"}`.
    pub fn from_json(chat_template: &Json) -> Result<Self, ChatError> {
        match chat_template {
            Json::Null => Err(ChatError::Missing),
            Json::String(source) => Self::new(source),
            Json::Array(list) => {
                let named = list.iter().map(|entry| entry["name"].as_str().zip(entry["template"].as_str()));
                let named: Option<Vec<_>> = named.collect();
                Self::named(named.ok_or_else(|| ChatError::Form {
                    problem: "a list whose entries are not all {\"name\", \"template\"}".to_owned(),
                })?)
            }
            _ => Err(ChatError::Form { problem: "neither a string nor a list".to_owned() }),
        }
    }

    /// Gives templates a token's text under a name such as `bos_token`.
    pub fn with_special(mut self, name: &str, text: &str) -> Self {
        self.specials.insert(name.to_owned(), text.into());
        self
    }

    /// Gives templates `bos_token` and `eos_token` as the tokenizer spells them.
    pub fn with_specials_of(self, tokenizer: &Tokenizer) -> Self {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id)).unwrap_or_default();
        self.with_special("bos_token", text(tokenizer.bos()))
            .with_special("eos_token", text(tokenizer.eos_ids().first().copied()))
    }

    /// The text of a chat. To get tokens, use [`Self::encode`], which keeps users from spelling control tokens.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, ChatError> {
        let messages = self.content.messages(input.messages)?;
        self.render_as_is(&ChatInput { messages: &messages, ..input.clone() })
    }

    /// The tokens of a chat: control tokens where the template writes them, none where an argument spells them.
    pub fn encode(&self, input: &ChatInput<'_>, tokenizer: &Tokenizer) -> Result<Vec<u32>, ChatError> {
        let mark = unused_mark(input)?;
        let marked = |json: &Json| tokenizer.mark_specials_in(json, mark);
        let messages: Vec<Json> = input.messages.iter().map(marked).collect();
        let tools: Vec<Json> = input.tools.iter().map(marked).collect();
        let documents: Vec<Json> = input.documents.iter().map(marked).collect();
        let input = ChatInput { messages: &messages, tools: &tools, documents: &documents, ..input.clone() };
        Ok(tokenizer.encode_marked(&self.render(&input)?, mark)?)
    }

    fn render_as_is(&self, input: &ChatInput<'_>) -> Result<String, ChatError> {
        let name = self.choose(input)?;
        let failed = |error: Error| match raised(&error) {
            Some(message) => ChatError::Refused { message },
            None => ChatError::Render { name: name.to_owned(), line: line(&error), problem: words(&error) },
        };
        let template = self.environment.get_template(name).map_err(failed)?;
        template.render(self.context(input)).map_err(failed)
    }

    fn choose(&self, input: &ChatInput<'_>) -> Result<&str, ChatError> {
        let has = |name: &str| self.names.iter().any(|n| n == name);
        match () {
            () if !input.tools.is_empty() && has("tool_use") => Ok("tool_use"),
            () if has("default") => Ok("default"),
            () => Err(ChatError::NoDefault { names: self.names.join(", ") }),
        }
    }

    fn context(&self, input: &ChatInput<'_>) -> Value {
        let list = |list: &[Json]| if list.is_empty() { Value::from(()) } else { Value::from(Serde(list)) };
        let now = input.now_unix_s;
        let given = [
            ("messages", Serde(input.messages).into()),
            ("tools", list(input.tools)),
            ("documents", list(input.documents)),
            ("add_generation_prompt", input.add_generation_prompt.into()),
            ("strftime_now", Value::from_function(move |format: &str| clock::strftime(now, format))),
        ];
        let extra = self.specials.iter().chain(&input.variables);
        let extra = extra.map(|(name, json)| (name.as_str(), Value::from(Serde(json))));
        Value::from_pairs(given.into_iter().chain(extra))
    }
}

/// The environment of transformers' `apply_chat_template`.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters differ from each other"));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", json::tojson);
    environment
        .add_filter("string", |value: &Value| json::float_text(value).unwrap_or_else(|| value.to_string()));
    environment.set_formatter(|out, state, value| match json::float_text(value) {
        Some(text) => out.write_str(&text).map_err(Error::from),
        None => escape_formatter(out, state, value),
    });
    environment.add_test("iterable", |value: &Value| {
        is_jinja_sequence(value) || value.try_iter().is_ok() && !value.is_none()
    });
    environment.add_test("sequence", is_jinja_sequence);
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, "raise_exception was called");
        Err(error.with_source(Raised(message.to_string())))
    });
    environment
}

/// What Python can index and take the length of, which Jinja's undefined is too.
fn is_jinja_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raised(error: &Error) -> Option<String> {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        source = error.source();
    }
    None
}

fn line(error: &Error) -> usize {
    error.line().unwrap_or(1)
}

fn words(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Templates mark what the assistant wrote, for training; the tags become scopes without effect.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let name = tag[2..end]
            .trim_end_matches("%}")
            .trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(before);
        match name {
            "generation" => out.push_str(&tag[..end].replace("generation", "with")),
            "endgeneration" => out.push_str(&tag[..end].replace("endgeneration", "endwith")),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out + rest
}

/// A noncharacter that no argument contains.
fn unused_mark(input: &ChatInput<'_>) -> Result<char, ChatError> {
    let used = |mark: char| {
        let lists = [input.messages, input.tools, input.documents];
        lists.into_iter().flatten().any(|json| json_contains(json, mark))
    };
    ('\u{fdd0}'..='\u{fdef}').find(|&mark| !used(mark)).ok_or(ChatError::NoMark)
}

fn json_contains(json: &Json, mark: char) -> bool {
    match json {
        Json::String(text) => text.contains(mark),
        Json::Array(list) => list.iter().any(|item| json_contains(item, mark)),
        Json::Object(map) => map.iter().any(|(key, value)| key.contains(mark) || json_contains(value, mark)),
        _ => false,
    }
}
