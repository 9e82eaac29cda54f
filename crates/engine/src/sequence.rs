//! One request on its way: its tokens, what of them is computed, and its output so far.

use std::sync::Arc;

use crate::{
    AdmitError, BlockTable, Constraint, ConstraintError, Detokenizer, FinishReason, Limits, LogitsRow,
    Request, RequestError, RequestId, Sampled, Sampler, Scratch, Stop, StopCause, StopMatcher, TokenId,
    Usage, Vocabulary, Wanted, select::arg_max,
};

/// A live request.
pub(crate) struct Sequence {
    /// Place in the order of arrival; the engine's own name for the sequence, never used twice.
    pub(crate) arrival: u64,
    pub(crate) id: RequestId,
    /// Prompt and output.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of the tokens have their keys and values in the pages.
    pub(crate) computed: usize,
    pub(crate) pages: BlockTable,
    /// How many of the pages are known by their tokens.
    pub(crate) remembered: usize,
    pub(crate) cache_salt: Arc<str>,
    /// Tokens that were found in the cache when it first started.
    pub(crate) cached: Option<usize>,
    /// Steps that failed under it since its last token.
    pub(crate) failures: u32,
    prompt_tokens: usize,
    output_limit: usize,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    output: Output,
}

/// What an accepted token gives out, and whether it ended the output.
#[derive(Debug, PartialEq)]
pub(crate) struct Accepted {
    pub(crate) text: String,
    pub(crate) finish: Option<Finish>,
}

pub(crate) type Finish = (FinishReason, Option<StopCause>);

impl Sequence {
    /// The sequence of a request that passed [`Request::check`].
    ///
    /// # Errors
    /// When the output already generated contains its end, or the constraint refuses it.
    pub(crate) fn new(
        arrival: u64,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
        limits: &Limits,
        vocabulary: &dyn Vocabulary,
    ) -> Result<Self, AdmitError> {
        let mut sequence = Self {
            arrival,
            id: request.id,
            computed: 0,
            pages: BlockTable::default(),
            remembered: 0,
            cache_salt: request.cache_salt.as_str().into(),
            cached: None,
            failures: 0,
            prompt_tokens: request.prompt.len(),
            output_limit: request.output_limit(limits),
            sampler: Sampler::new(request.sampling, &request.prompt),
            constraint,
            output: Output::new(request.stop, vocabulary),
            tokens: request.prompt,
        };
        for (index, token) in request.generated.into_iter().enumerate() {
            let accepted = sequence.accept(token, vocabulary);
            let accepted = accepted.map_err(|error| AdmitError::Constraint { index, error })?;
            if accepted.finish.is_some() {
                return Err(AdmitError::AlreadyFinished { index });
            }
        }
        Ok(sequence)
    }

    /// Tokens that are still to be computed before the next can be sampled; at least one.
    pub(crate) fn uncomputed(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Forgets what was computed, and gives up its pages. The tokens stay, so the output goes on as if nothing had happened.
    pub(crate) fn restart(&mut self) -> BlockTable {
        (self.computed, self.remembered) = (0, 0);
        std::mem::take(&mut self.pages)
    }

    /// What of the next token's logits it is sampled from.
    pub(crate) fn wanted(&self) -> Wanted {
        match self.constraint {
            Some(_) => Wanted::Row,
            None => self.sampler.wanted(self.output.banned(self.output_tokens())),
        }
    }

    /// Samples the next token.
    pub(crate) fn sample(
        &mut self,
        logits: LogitsRow<'_>,
        scratch: &mut Scratch,
    ) -> Result<Sampled, RequestError> {
        let position = self.tokens.len();
        let numerical = |error| RequestError::Numerical { position, error };
        let logits = match logits {
            LogitsRow::Whole(logits) => logits,
            LogitsRow::Leading(leading) => {
                return self.sampler.sample_leading(leading, position as u64, scratch).map_err(numerical);
            }
        };
        if let Some(constraint) = &mut self.constraint {
            // Before the mask can hide a NaN.
            arg_max(logits).map_err(numerical)?;
            scratch.allowed.clear(logits.len());
            constraint.allow(&mut scratch.allowed)?;
            scratch.allowed.mask(logits);
        }
        let banned = self.output.banned(self.output_tokens());
        self.sampler.sample(logits, position as u64, banned, scratch).map_err(numerical)
    }

    /// Appends a sampled token; the constraint sees it unless it ended the output.
    pub(crate) fn accept(
        &mut self,
        token: TokenId,
        vocabulary: &dyn Vocabulary,
    ) -> Result<Accepted, ConstraintError> {
        let index = self.output_tokens();
        self.tokens.push(token);
        self.sampler.observe(token);
        let accepted = self.output.push(token, index, index + 1 == self.output_limit, vocabulary);
        if let (Some(constraint), None) = (&mut self.constraint, accepted.finish) {
            constraint.accept(token)?;
        }
        Ok(accepted)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.output_tokens(),
            cached_tokens: self.cached.unwrap_or_default(),
        }
    }

    fn output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }
}

/// The text side of a sequence: bytes to text, and everything that stops it.
#[derive(Debug)]
struct Output {
    stop: Stop,
    /// The tokens that would stop the output, where they must not yet.
    stopping: Vec<TokenId>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
}

impl Output {
    fn new(mut stop: Stop, vocabulary: &dyn Vocabulary) -> Self {
        let mut stopping = Vec::new();
        if stop.min_tokens > 0 {
            stopping.extend(&stop.tokens);
            stopping.extend(if stop.ignore_eos { &[] } else { vocabulary.eos() });
        }
        let matcher = StopMatcher::new(std::mem::take(&mut stop.strings));
        Self { stop, stopping, detokenizer: Detokenizer::default(), matcher }
    }

    /// Tokens that may not be sampled as output token `index`.
    fn banned(&self, index: usize) -> &[TokenId] {
        if index < self.stop.min_tokens { &self.stopping } else { &[] }
    }

    /// Takes output token `index`; `last` when no more may follow.
    fn push(&mut self, token: TokenId, index: usize, last: bool, vocabulary: &dyn Vocabulary) -> Accepted {
        let may_stop = index >= self.stop.min_tokens;
        if may_stop && let Some(cause) = self.stop_cause(token, vocabulary) {
            let (text, stopped) = self.flush();
            let cause = stopped.map_or(cause, StopCause::String);
            return Accepted { text, finish: Some((FinishReason::Stop, Some(cause))) };
        }
        let bytes = if vocabulary.is_special(token) { &[] } else { vocabulary.token_bytes(token) };
        let delta = self.detokenizer.push(bytes);
        let (mut text, mut stopped) = if may_stop { self.matcher.push(&delta) } else { (delta, None) };
        if last && stopped.is_none() {
            let (rest, late) = self.flush();
            text.push_str(&rest);
            stopped = late;
        }
        let finish = match stopped {
            Some(index) => Some((FinishReason::Stop, Some(StopCause::String(index)))),
            None => last.then_some((FinishReason::Length, None)),
        };
        Accepted { text, finish }
    }

    fn stop_cause(&self, token: TokenId, vocabulary: &dyn Vocabulary) -> Option<StopCause> {
        if !self.stop.ignore_eos && vocabulary.eos().contains(&token) {
            return Some(StopCause::EndOfSequence(token));
        }
        self.stop.tokens.contains(&token).then_some(StopCause::Token(token))
    }

    /// The text still held back, and the stop string that its very end may complete.
    fn flush(&mut self) -> (String, Option<usize>) {
        let unfinished = self.detokenizer.finish();
        let (mut text, stopped) = self.matcher.push(&unfinished);
        if stopped.is_none() {
            text.push_str(&self.matcher.finish());
        }
        (text, stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingParams;

    /// Token n is the byte n; 0 ends a sequence and 1 is special.
    struct Bytes(Vec<[u8; 1]>);

    impl Vocabulary for Bytes {
        fn token_bytes(&self, id: TokenId) -> &[u8] {
            self.0.get(id as usize).map_or(&[], |byte| &byte[..])
        }
        fn is_special(&self, id: TokenId) -> bool {
            id < 2
        }
        fn eos(&self) -> &[TokenId] {
            &[0]
        }
    }

    fn sequence(max_tokens: usize, stop: Stop) -> Sequence {
        try_sequence(max_tokens, stop, "").unwrap()
    }

    fn try_sequence(max_tokens: usize, stop: Stop, generated: &str) -> Result<Sequence, AdmitError> {
        let limits = Limits {
            pages: 100,
            page_size: 4,
            max_tokens_per_step: 8,
            max_seqs_per_step: 4,
            max_context: 100,
            vocab_size: 256,
        };
        let mut request = Request::new(RequestId(1), vec![b'p'.into()], max_tokens);
        request.stop = stop;
        request.generated = generated.bytes().map(TokenId::from).collect();
        Sequence::new(0, request, None, &limits, &vocabulary())
    }

    fn vocabulary() -> Bytes {
        Bytes((0..=255).map(|byte| [byte]).collect())
    }

    /// The text of all deltas up to the end, and how it ended.
    fn run(sequence: &mut Sequence, output: &[u8]) -> (String, Option<Finish>) {
        let mut text = String::new();
        for &byte in output {
            let accepted = sequence.accept(byte.into(), &vocabulary()).unwrap();
            text.push_str(&accepted.text);
            if accepted.finish.is_some() {
                return (text, accepted.finish);
            }
        }
        (text, None)
    }

    fn strings(strings: &[&str]) -> Stop {
        Stop { strings: strings.iter().map(|s| s.to_string()).collect(), ..Stop::default() }
    }

    #[test]
    fn the_last_token_lets_go_of_all_held_text() {
        let mut sequence = sequence(4, strings(&["cd!"]));
        let length = Some((FinishReason::Length, None));
        assert_eq!(run(&mut sequence, b"abcd"), ("abcd".into(), length));
        assert_eq!(sequence.usage(), Usage { prompt_tokens: 1, completion_tokens: 4, cached_tokens: 0 });
    }

    #[test]
    fn the_end_of_sequence_lets_go_of_held_text_and_has_none_itself() {
        let finish = Some((FinishReason::Stop, Some(StopCause::EndOfSequence(0))));
        assert_eq!(run(&mut sequence(9, strings(&["bc"])), b"ab\0"), ("ab".into(), finish));
        assert_eq!(run(&mut sequence(9, Stop::default()), b"a\xC3\0"), ("a\u{FFFD}".into(), finish));
    }

    #[test]
    fn end_of_sequence_can_be_ignored() {
        let stop = Stop { ignore_eos: true, ..Stop::default() };
        assert_eq!(run(&mut sequence(9, stop), b"a\0b"), ("ab".into(), None));
    }

    #[test]
    fn a_stop_token_ends_without_its_text() {
        let stop = Stop { tokens: vec![b'!'.into()], ..Stop::default() };
        let finish = Some((FinishReason::Stop, Some(StopCause::Token(b'!'.into()))));
        assert_eq!(run(&mut sequence(9, stop), b"a!b"), ("a".into(), finish));
    }

    #[test]
    fn a_stop_string_completed_by_the_unfinished_character_counts() {
        let finish = Some((FinishReason::Stop, Some(StopCause::String(0))));
        assert_eq!(run(&mut sequence(2, strings(&["\u{FFFD}"])), b"a\xC3"), ("a".into(), finish));
    }

    #[test]
    fn nothing_stops_before_min_tokens() {
        let stop = Stop { tokens: vec![7], min_tokens: 2, ..strings(&["b"]) };
        let mut sequence = sequence(9, stop);
        assert_eq!(sequence.output.banned(1), [7, 0]);
        assert!(sequence.output.banned(2).is_empty());
        let finish = Some((FinishReason::Stop, Some(StopCause::String(0))));
        assert_eq!(run(&mut sequence, b"bbab"), ("bba".into(), finish));
    }

    #[test]
    fn banned_tokens_are_not_sampled() {
        let stop = Stop { tokens: vec![7], min_tokens: 1, ..Stop::default() };
        let mut sequence = sequence(9, stop);
        sequence.sampler = Sampler::new(SamplingParams::greedy(), &[]);
        let mut logits = vec![9.0, 1.0, 2.0, 3.0, 3.0, 0.0, 0.0, 8.0];
        assert_eq!(sequence.sample(LogitsRow::Whole(&mut logits), &mut Scratch::default()).unwrap().token, 3);
    }

    /// Allows token 0 alone.
    struct Zero;

    impl Constraint for Zero {
        fn allow(&mut self, allowed: &mut crate::TokenSet) -> Result<(), ConstraintError> {
            allowed.insert(0);
            Ok(())
        }
        fn accept(&mut self, _: TokenId) -> Result<(), ConstraintError> {
            Ok(())
        }
    }

    #[test]
    fn a_constraint_masks_tokens_but_hides_no_nan() {
        let mut sequence = sequence(9, Stop::default());
        sequence.constraint = Some(Box::new(Zero));
        let sampled = sequence.sample(LogitsRow::Whole(&mut [0.0, 90.0]), &mut Scratch::default());
        assert_eq!(sampled.unwrap().token, 0);
        let error =
            sequence.sample(LogitsRow::Whole(&mut [0.0, f32::NAN]), &mut Scratch::default()).unwrap_err();
        assert!(matches!(error, RequestError::Numerical { position: 1, .. }), "{error}");
    }

    #[test]
    fn generated_output_is_taken_up_where_it_was_left() {
        let mut resumed = try_sequence(5, strings(&["cde"]), "abc").unwrap();
        assert_eq!(resumed.usage().completion_tokens, 3);
        // "ab" was given out by the earlier run; "c" was held back then.
        assert_eq!(run(&mut resumed, b"dx"), ("cdx".into(), Some((FinishReason::Length, None))));
        let error = try_sequence(9, strings(&["bc"]), "abcd").err().unwrap();
        assert_eq!(error, AdmitError::AlreadyFinished { index: 2 });
    }
}
