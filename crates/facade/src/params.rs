use samebits_engine::{SamplingParams, Stop};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Plain text, with the beginning-of-text token where the model wants one. Spellings of control tokens in it
    /// are text.
    Text(String),
    /// A conversation, rendered with the model's chat template. Spellings of control tokens in a message are text.
    Chat(Vec<Message>),
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Prompt::Tokens(tokens)
    }
}

/// How a prompt is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Most output tokens.
    pub max_tokens: usize,
    /// How tokens are chosen; the likeliest each time by default.
    pub sampling: SamplingParams,
    /// What ends the output early.
    pub stop: Stop,
    /// Whom cached beginnings of prompts are shared with: requests of the same salt.
    pub cache_salt: String,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            max_tokens: 256,
            sampling: SamplingParams::greedy(),
            stop: Stop::default(),
            cache_salt: String::new(),
        }
    }
}
