//! What a caller asks for, how it is checked, and how it ends.

use thiserror::Error;

use crate::{ConstraintError, Limits, NumericalError, RunnerError};

/// An index into the model's vocabulary.
pub type TokenId = u32;

/// The caller's name for a request; unique among the live ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What the engine must know of a tokenizer. Implemented outside.
pub trait Vocabulary: Send + Sync {
    /// The raw bytes of the token as text; empty for special tokens and for ids the tokenizer does not know.
    fn token_bytes(&self, id: TokenId) -> &[u8];
    /// Whether the token is a control token, not text.
    fn is_special(&self, id: TokenId) -> bool;
    /// The tokens that end a generation.
    fn eos(&self) -> &[TokenId];
}

/// One generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The caller's name for it.
    pub id: RequestId,
    /// The prompt; at least one token.
    pub prompt: Vec<TokenId>,
    /// Output that an earlier run of this very request already gave, to go on after it: on another device, say. It
    /// counts as output for penalties, stops and `max_tokens`, and is not given out again.
    pub generated: Vec<TokenId>,
    /// Most output tokens, at least one. Clamped so that prompt and output fit the context.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What ends the output before `max_tokens`.
    pub stop: Stop,
    /// Requests share pages of a common beginning only with those of the same salt, so that none can learn from its own speed what
    /// another asked. Empty by default, which is a salt as any other.
    pub cache_salt: String,
}

impl Request {
    /// A request for `max_tokens` tokens after `prompt`, all else at its default.
    pub fn new(id: RequestId, prompt: Vec<TokenId>, max_tokens: usize) -> Self {
        let (sampling, stop) = (SamplingParams::default(), Stop::default());
        Self { id, prompt, generated: Vec::new(), max_tokens, sampling, stop, cache_salt: String::new() }
    }

    /// Checks all that does not depend on other requests.
    ///
    /// # Errors
    /// Names the first parameter that is out of range.
    pub fn check(&self, limits: &Limits, bounds: &RequestLimits) -> Result<(), AdmitError> {
        if self.prompt.is_empty() {
            return Err(AdmitError::EmptyPrompt);
        }
        if self.prompt.len() >= limits.context() {
            let (prompt_tokens, context) = (self.prompt.len(), limits.context());
            return Err(AdmitError::PromptTooLong { prompt_tokens, context });
        }
        check_tokens("prompt", &self.prompt, limits.vocab_size)?;
        check_tokens("generated", &self.generated, limits.vocab_size)?;
        let max_tokens = 1..=bounds.max_output_tokens;
        check("max_tokens", self.max_tokens, max_tokens.contains(&self.max_tokens), || {
            format!("from 1 to {}", bounds.max_output_tokens)
        })?;
        let output = self.output_limit(limits);
        check("generated", self.generated.len(), self.generated.len() < output, || {
            format!("fewer tokens than the {output} that may be generated")
        })?;
        self.sampling.check(limits, bounds)?;
        self.stop.check(limits, bounds)
    }

    /// Most output tokens, clamped to the context.
    pub(crate) fn output_limit(&self, limits: &Limits) -> usize {
        self.max_tokens.min(limits.context().saturating_sub(self.prompt.len()))
    }
}

/// How a token is chosen from logits; [`Sampler`](crate::Sampler) gives the formulas and their order.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the greatest. Finite, at least 0. Default 1.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all. Default 0.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities reach this sum. In (0, 1]. Default 1.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the most likely. In [0, 1]. Default 0.
    pub min_p: f32,
    /// Weakens tokens of the prompt and the output when above 1. Finite, above 0. Default 1.
    pub repetition_penalty: f32,
    /// Subtracted for each time the output has the token. In [-2, 2]. Default 0.
    pub frequency_penalty: f32,
    /// Subtracted once if the output has the token. In [-2, 2]. Default 0.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, each at most once. Values in [-100, 100].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the draws. The engine has no entropy: a caller without a seed makes one up.
    pub seed: u64,
    /// Return log-probabilities of the chosen token and of this many most likely ones. Default none.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Takes the most likely token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    fn check(&self, limits: &Limits, bounds: &RequestLimits) -> Result<(), AdmitError> {
        let temperature = self.temperature;
        check("temperature", temperature, temperature.is_finite() && temperature >= 0.0, || {
            "a finite number, at least 0".into()
        })?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, || "above 0, at most 1".into())?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), || "from 0 to 1".into())?;
        let repetition = self.repetition_penalty;
        check("repetition_penalty", repetition, repetition.is_finite() && repetition > 0.0, || {
            "a finite number above 0".into()
        })?;
        for (name, penalty) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            check(name, penalty, (-2.0..=2.0).contains(&penalty), || "from -2 to 2".into())?;
        }
        let logprobs = self.logprobs.unwrap_or(0);
        check("logprobs", logprobs, logprobs <= bounds.max_logprobs, || {
            format!("at most {}", bounds.max_logprobs)
        })?;
        self.check_bias(limits, bounds)
    }

    fn check_bias(&self, limits: &Limits, bounds: &RequestLimits) -> Result<(), AdmitError> {
        check("logit_bias", self.logit_bias.len(), self.logit_bias.len() <= bounds.max_logit_bias, || {
            format!("at most {} entries", bounds.max_logit_bias)
        })?;
        let mut tokens: Vec<TokenId> = self.logit_bias.iter().map(|&(token, _)| token).collect();
        check_tokens("logit_bias", &tokens, limits.vocab_size)?;
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", bias, (-100.0..=100.0).contains(&bias), || "values from -100 to 100".into())?;
        }
        tokens.sort_unstable();
        match tokens.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => check("logit_bias", pair[0], false, || "each token at most once".into()),
            None => Ok(()),
        }
    }
}

/// What ends an output before its `max_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    /// Ends the output where one of these would begin; its text is not given out.
    pub strings: Vec<String>,
    /// Ends the output with one of these tokens; its text is not given out.
    pub tokens: Vec<TokenId>,
    /// Do not end at the vocabulary's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Tokens of output before anything may stop it: until then stop and end-of-sequence tokens are not sampled, and
    /// stop strings are not looked for.
    pub min_tokens: usize,
}

impl Stop {
    fn check(&self, limits: &Limits, bounds: &RequestLimits) -> Result<(), AdmitError> {
        check("stop", self.strings.len(), self.strings.len() <= bounds.max_stop_strings, || {
            format!("at most {} strings", bounds.max_stop_strings)
        })?;
        for string in &self.strings {
            check("stop", string.len(), (1..=bounds.max_stop_bytes).contains(&string.len()), || {
                format!("strings of 1 to {} bytes", bounds.max_stop_bytes)
            })?;
        }
        check("stop_token_ids", self.tokens.len(), self.tokens.len() <= bounds.max_stop_tokens, || {
            format!("at most {} tokens", bounds.max_stop_tokens)
        })?;
        check_tokens("stop_token_ids", &self.tokens, limits.vocab_size)?;
        check("min_tokens", self.min_tokens, self.min_tokens <= bounds.max_output_tokens, || {
            format!("at most {}", bounds.max_output_tokens)
        })
    }
}

/// Bounds on one request's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Most `max_tokens`.
    pub max_output_tokens: usize,
    /// Most stop strings.
    pub max_stop_strings: usize,
    /// Longest stop string, in bytes.
    pub max_stop_bytes: usize,
    /// Most stop tokens.
    pub max_stop_tokens: usize,
    /// Most logit biases.
    pub max_logit_bias: usize,
    /// Most alternatives in `logprobs`.
    pub max_logprobs: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_output_tokens: 1 << 20,
            max_stop_strings: 16,
            max_stop_bytes: 256,
            max_stop_tokens: 64,
            max_logit_bias: 1024,
            max_logprobs: 20,
        }
    }
}

/// Why a request was not taken. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AdmitError {
    /// There is nothing to continue.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// No output would fit.
    #[error(
        "the prompt has {prompt_tokens} tokens, and prompt and output together may have {context}; \
         shorten the prompt"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// Most tokens in a sequence here.
        context: usize,
    },
    /// A token id is past the vocabulary.
    #[error("{parameter}[{index}] is token {token}, and the vocabulary ends before {vocab_size}")]
    UnknownToken {
        /// The parameter that holds it.
        parameter: &'static str,
        /// Where in the parameter.
        index: usize,
        /// The token id.
        token: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A parameter is out of range.
    #[error("{parameter} is {value}; it must be {expected}")]
    Invalid {
        /// The parameter's name in the OpenAI or vLLM interface.
        parameter: &'static str,
        /// What it is.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// `generated` already holds a whole answer.
    #[error("generated[{index}] already ends the output; there is nothing to go on with")]
    AlreadyFinished {
        /// The token that ended it.
        index: usize,
    },
    /// Its constraint does not take the output in `generated`.
    #[error("generated[{index}] is not allowed: {error}")]
    Constraint {
        /// The token that was refused.
        index: usize,
        /// Why.
        error: ConstraintError,
    },
    /// A live request has the same id.
    #[error("request id {} is in use; wait for its end event", .0.0)]
    DuplicateId(RequestId),
    /// Too many requests wait.
    #[error("{waiting} requests are waiting, the most allowed; try again later")]
    QueueFull {
        /// Requests waiting now.
        waiting: usize,
    },
    /// Too many tokens wait.
    #[error("{waiting_tokens} tokens are waiting and {limit} may; try again later")]
    QueueTokensFull {
        /// Tokens waiting now.
        waiting_tokens: usize,
        /// Most that may wait.
        limit: usize,
    },
    /// The engine has no device any more.
    #[error("the engine can take no request: {0}")]
    DeviceLost(RunnerError),
}

impl AdmitError {
    /// The parameter at fault, when the request is.
    pub fn parameter(&self) -> Option<&'static str> {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } => Some("prompt"),
            Self::UnknownToken { parameter, .. } | Self::Invalid { parameter, .. } => Some(parameter),
            Self::AlreadyFinished { .. } | Self::Constraint { .. } => Some("generated"),
            Self::DuplicateId(_) => Some("id"),
            Self::QueueFull { .. } | Self::QueueTokensFull { .. } | Self::DeviceLost(_) => None,
        }
    }

    /// Whether the same request may be taken later.
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::QueueFull { .. } | Self::QueueTokensFull { .. })
    }
}

/// How a request ended, in OpenAI's words where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop string, a stop token or the end of sequence.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// It failed.
    Error,
}

impl FinishReason {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// What a [`FinishReason::Stop`] met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The vocabulary's end of sequence, this token.
    EndOfSequence(TokenId),
    /// This token of [`Stop::tokens`].
    Token(TokenId),
    /// The string at this index of [`Stop::strings`].
    String(usize),
}

/// Why a live request failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The model gave no usable logits.
    #[error("numerical_error at position {position}: {error}")]
    Numerical {
        /// Absolute position of the token to be sampled.
        position: usize,
        /// What was wrong with the logits.
        error: NumericalError,
    },
    /// Its [`Constraint`](crate::Constraint) cannot go on.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The step that carried it failed, and retrying is of no use or was tried often enough.
    #[error(transparent)]
    Runner(#[from] RunnerError),
}

/// Tokens a request has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Tokens of output, those in [`Request::generated`] and one that ended it included.
    pub completion_tokens: usize,
    /// Tokens whose keys and values were found in the cache when it was first scheduled.
    pub cached_tokens: usize,
}

fn check(
    parameter: &'static str,
    value: impl ToString,
    valid: bool,
    expected: impl FnOnce() -> String,
) -> Result<(), AdmitError> {
    if valid {
        return Ok(());
    }
    Err(AdmitError::Invalid { parameter, value: value.to_string(), expected: expected() })
}

fn check_tokens(parameter: &'static str, tokens: &[TokenId], vocab_size: usize) -> Result<(), AdmitError> {
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(index) => Err(AdmitError::UnknownToken { parameter, index, token: tokens[index], vocab_size }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            pages: 8,
            page_size: 4,
            max_tokens_per_step: 8,
            max_seqs_per_step: 4,
            max_context: 20,
            vocab_size: 100,
        }
    }

    fn refused(change: impl FnOnce(&mut Request)) -> AdmitError {
        let mut request = Request::new(RequestId(1), vec![1, 2, 3], 5);
        let bounds = RequestLimits::default();
        request.check(&limits(), &bounds).unwrap();
        change(&mut request);
        request.check(&limits(), &bounds).unwrap_err()
    }

    #[test]
    fn every_bad_parameter_is_refused_by_its_name() {
        type Change = fn(&mut Request);
        let cases: [(&str, Change); 22] = [
            ("prompt", |r| r.prompt.clear()),
            ("prompt", |r| r.prompt = vec![0; 20]),
            ("prompt", |r| r.prompt[1] = 100),
            ("generated", |r| r.generated = vec![100]),
            ("generated", |r| r.generated = vec![1; 5]),
            ("max_tokens", |r| r.max_tokens = 0),
            ("max_tokens", |r| r.max_tokens = usize::MAX),
            ("temperature", |r| r.sampling.temperature = f32::NAN),
            ("temperature", |r| r.sampling.temperature = -0.1),
            ("temperature", |r| r.sampling.temperature = f32::INFINITY),
            ("top_p", |r| r.sampling.top_p = 0.0),
            ("top_p", |r| r.sampling.top_p = f32::NAN),
            ("min_p", |r| r.sampling.min_p = 1.5),
            ("repetition_penalty", |r| r.sampling.repetition_penalty = 0.0),
            ("frequency_penalty", |r| r.sampling.frequency_penalty = 2.1),
            ("presence_penalty", |r| r.sampling.presence_penalty = f32::NAN),
            ("logprobs", |r| r.sampling.logprobs = Some(21)),
            ("logit_bias", |r| r.sampling.logit_bias = vec![(1, 101.0)]),
            ("logit_bias", |r| r.sampling.logit_bias = vec![(7, 1.0), (3, 0.0), (7, 1.0)]),
            ("stop", |r| r.stop.strings = vec![String::new()]),
            ("stop", |r| r.stop.strings = vec!["x".into(); 17]),
            ("stop_token_ids", |r| r.stop.tokens = vec![100]),
        ];
        for (parameter, change) in cases {
            let error = refused(change);
            assert_eq!(error.parameter(), Some(parameter), "{error}");
            assert!(!error.is_overload());
        }
    }

    #[test]
    fn a_long_prompt_is_refused_with_both_numbers() {
        let error = refused(|r| r.prompt = vec![0; 25]);
        assert_eq!(error, AdmitError::PromptTooLong { prompt_tokens: 25, context: 20 });
        assert!(error.to_string().contains("25") && error.to_string().contains("20"));
    }

    #[test]
    fn output_is_clamped_to_the_context() {
        let request = Request::new(RequestId(1), vec![0; 17], 1000);
        assert_eq!(request.output_limit(&limits()), 3);
        request.check(&limits(), &RequestLimits::default()).unwrap();
    }
}
