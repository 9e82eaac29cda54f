//! One seeded run: who arrives, who leaves, what is expected of each.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use samebits_engine::{
    AdmitError, Constraint, ConstraintError, Engine, EngineConfig, EngineError, Event, FinishReason, Limits,
    Request, RequestError, RequestId, SamplingParams, Stop, TokenId, TokenSet, Vocabulary,
};

use crate::device::{Chaos, FakeDevice, Random, VOCAB};

/// Tokens of one to four bytes, many of them parts of characters. 0 ends a sequence, 1 is special.
struct Pieces(Vec<Vec<u8>>);

impl Vocabulary for Pieces {
    fn token_bytes(&self, id: TokenId) -> &[u8] {
        &self.0[id as usize]
    }

    fn is_special(&self, id: TokenId) -> bool {
        id < 2
    }

    fn eos(&self) -> &[TokenId] {
        &[0]
    }
}

pub(crate) fn vocabulary() -> Arc<dyn Vocabulary> {
    let mut random = Random::new(99);
    let alphabet: [&[u8]; 9] =
        [b"a", b"b", b"!", "é".as_bytes(), b"\xC3", b"\xA9", b"\xF0\x9F", b"\xA6\x80", "🦀".as_bytes()];
    let piece = |random: &mut Random| {
        (0..1 + random.below(2)).flat_map(|_| random.pick(&alphabet).to_vec()).collect()
    };
    let mut pieces = vec![Vec::new(), Vec::new()];
    pieces.resize_with(VOCAB, || piece(&mut random));
    Arc::new(Pieces(pieces))
}

pub(crate) fn plenty() -> Limits {
    Limits {
        pages: 64,
        page_size: 16,
        max_tokens_per_step: 64,
        max_seqs_per_step: 16,
        max_context: 256,
        vocab_size: VOCAB,
    }
}

/// Never the same kind of token twice in a row, by `token % 3`; it may end at any time. Gives up after 30 tokens.
struct Alternating {
    last: Option<TokenId>,
    taken: usize,
}

impl Constraint for Alternating {
    fn allow(&mut self, allowed: &mut TokenSet) -> Result<(), ConstraintError> {
        let fits = |token: &TokenId| *token == 0 || self.last.is_none_or(|last| last % 3 != token % 3);
        (0..VOCAB as TokenId).filter(fits).for_each(|token| allowed.insert(token));
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert!(
            token == 0 || self.last.is_none_or(|last| last % 3 != token % 3),
            "a token that was not allowed"
        );
        self.last = Some(token);
        self.taken += 1;
        if self.taken < 30 { Ok(()) } else { Err(ConstraintError { detail: "tired".into() }) }
    }
}

/// Adds a request; every fifth is constrained.
fn add(engine: &mut Engine, request: Request) -> Result<(), AdmitError> {
    if request.id.0.is_multiple_of(5) {
        return engine.add_constrained(request, Box::new(Alternating { last: None, taken: 0 }));
    }
    engine.add(request)
}

/// The events of a request that is alone on a perfect device, one token a step.
pub(crate) fn oracle(request: &Request) -> Vec<Event> {
    let limits = Limits { max_tokens_per_step: 1, ..plenty() };
    let device = FakeDevice::new(limits, Chaos::none());
    let mut engine = Engine::new(Box::new(device), vocabulary(), EngineConfig::default()).unwrap();
    add(&mut engine, request.clone()).unwrap();
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
    }
    events
}

pub(crate) fn tokens(events: &[Event]) -> Vec<TokenId> {
    let token = |event: &Event| if let Event::Token { token, .. } = event { Some(*token) } else { None };
    events.iter().filter_map(token).collect()
}

/// What the runs have met; a storm that never rains proves nothing.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    preemptions: u64,
    retries: u64,
    refused: u64,
    resumed: u64,
    /// Tokens that were found in cached pages, and pages that were cached when a storm was over.
    hit: u64,
    cached: u64,
    ends: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn assert_complete(&self) {
        let ends = ["stop", "length", "cancelled", "numerical", "constraint", "runner", "lost"];
        assert!(ends.iter().all(|end| self.ends.get(end).is_some_and(|&count| count > 50)), "{self:?}");
        let counts = [self.preemptions, self.retries, self.refused, self.resumed, self.hit, self.cached];
        assert!(counts.iter().all(|&count| count > 200), "{self:?}");
    }

    fn end(&mut self, event: &Event) {
        let name = match event {
            Event::Failed { error: RequestError::Numerical { .. }, .. } => "numerical",
            Event::Failed { error: RequestError::Constraint(_), .. } => "constraint",
            Event::Failed { error: RequestError::Runner(error), .. } if error.is_device_lost() => "lost",
            Event::Failed { .. } => "runner",
            Event::Finished { reason, .. } => reason.as_str(),
            Event::Token { .. } => return,
        };
        *self.ends.entry(name).or_default() += 1;
    }
}

struct Stream {
    expected: Vec<Event>,
    received: usize,
    /// Steps in which it may be the earliest request without ending.
    patience: usize,
}

pub(crate) struct World {
    random: Random,
    engine: Engine,
    limits: Limits,
    errors: Arc<Mutex<u64>>,
    errors_seen: u64,
    /// Live requests; ids are given in order of arrival.
    live: BTreeMap<RequestId, Stream>,
    next_id: u64,
    /// What prompts begin with.
    beginnings: Vec<Vec<TokenId>>,
    arrivals_left: usize,
    arrival_per_mille: usize,
    cancel_per_mille: usize,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let page_size = random.pick(&[1, 2, 4, 8, 16]);
        let max_context = 8 + random.below(60);
        // From too few for the context to enough for all.
        let pages = (max_context / page_size + 1) * random.pick(&[2, 3, 5, 6, 9, 40]) / 4;
        let limits = Limits {
            pages: pages.max(2),
            page_size,
            max_tokens_per_step: random.pick(&[1, 2, 3, 5, 8, 17, 64]),
            max_seqs_per_step: random.pick(&[1, 2, 3, 8, 16]),
            max_context,
            vocab_size: VOCAB,
        };
        let chaos = Chaos {
            seed: random.next(),
            retriable_per_mille: random.pick(&[0, 0, 10, 100]),
            pages_lost_per_mille: random.pick(&[0, 0, 10, 50]),
            fatal_per_mille: random.pick(&[0, 0, 0, 10]),
            lost_per_mille: random.pick(&[0, 0, 0, 5]),
            wrong_shape: false,
        };
        let config = EngineConfig {
            max_running: 1 + random.below(16),
            max_waiting: 1 + random.below(16),
            max_waiting_tokens: 20 + random.below(600),
            max_retries: random.below(4) as u32,
            prefix_caching: random.below(4) > 0,
            ..EngineConfig::default()
        };
        let beginning = |_| (0..max_context).map(|_| random.below(VOCAB) as TokenId).collect();
        let beginnings = (0..3).map(beginning).collect();
        let device = FakeDevice::new(limits.clone(), chaos);
        let errors = device.errors();
        Self {
            engine: Engine::new(Box::new(device), vocabulary(), config).unwrap(),
            beginnings,
            arrivals_left: 1 + random.below(14),
            arrival_per_mille: random.pick(&[50, 300, 1000]),
            cancel_per_mille: random.pick(&[0, 0, 20, 100]),
            random,
            limits,
            errors,
            errors_seen: 0,
            live: BTreeMap::new(),
            next_id: 0,
        }
    }

    pub(crate) fn run(mut self, seen: &mut Coverage) {
        while self.arrivals_left > 0 || !self.engine.is_idle() {
            self.arrive(seen);
            self.leave();
            match self.engine.step() {
                Ok(events) => events.iter().for_each(|event| self.receive(event, seen)),
                Err(EngineError::DeviceLost(_)) => {
                    assert!(self.live.is_empty(), "a request had no end event");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
            self.check();
        }
        assert!(self.live.is_empty(), "a request had no end event");
        let stats = self.engine.stats();
        assert_eq!((stats.pages_owned, stats.running, stats.waiting), (0, 0, 0));
        seen.hit += stats.prefix_hit_tokens;
        seen.cached += stats.pages_cached as u64;
        seen.preemptions += stats.preemptions;
        seen.retries += stats.retries;
    }

    fn arrive(&mut self, seen: &mut Coverage) {
        while self.arrivals_left > 0 && self.random.per_mille(self.arrival_per_mille) {
            self.arrivals_left -= 1;
            let mut request = self.request();
            let fits = request.prompt.len() < self.limits.context();
            let expected = self.expected(&mut request, fits);
            seen.resumed += u64::from(!request.generated.is_empty());
            let (id, tokens) = (request.id, request.prompt.len() + request.max_tokens);
            match add(&mut self.engine, request) {
                Ok(()) => {
                    assert!(fits);
                    self.live.insert(id, Stream { expected, received: 0, patience: tokens + 2 });
                }
                Err(AdmitError::PromptTooLong { context, .. }) => {
                    assert!(!fits && context == self.limits.context());
                    seen.refused += 1;
                }
                Err(error) => {
                    assert!(error.is_overload() || matches!(error, AdmitError::DeviceLost(_)), "{error}");
                    seen.refused += 1;
                }
            }
        }
    }

    fn leave(&mut self) {
        let ids: Vec<RequestId> = self.live.keys().copied().collect();
        for id in ids {
            if self.random.per_mille(self.cancel_per_mille) {
                let owned = self.engine.stats().pages_owned;
                self.engine.cancel(id);
                assert!(self.engine.stats().pages_owned <= owned);
                self.engine.check_invariants().unwrap();
            }
        }
    }

    /// The oracle's stream; may move its beginning into the request, as if another engine had been at it.
    fn expected(&mut self, request: &mut Request, fits: bool) -> Vec<Event> {
        if !fits {
            return Vec::new();
        }
        // The oracle has pages for all; here the context may be less.
        let clamped = Request {
            max_tokens: request.max_tokens.min(self.limits.context() - request.prompt.len()),
            ..request.clone()
        };
        let mut events = oracle(&clamped);
        let tokens = tokens(&events);
        if self.random.per_mille(200) && !tokens.is_empty() {
            let taken = self.random.below(tokens.len());
            request.generated = tokens[..taken].to_vec();
            events.drain(..taken);
        }
        events
    }

    fn receive(&mut self, event: &Event, seen: &mut Coverage) {
        let id = event.id();
        let stream = self.live.get_mut(&id).expect("an event of a live request");
        let cancelled = event.finish_reason() == Some(FinishReason::Cancelled);
        let failed = matches!(event, Event::Failed { error: RequestError::Runner(_), .. });
        if !cancelled && !failed {
            let expected = stream.expected.get(stream.received).cloned();
            assert_eq!(Some(without_cache(event.clone())), expected, "{id:?} at event {}", stream.received);
        }
        stream.received += 1;
        if event.finish_reason().is_some() {
            seen.end(event);
            self.live.remove(&id);
        }
    }

    fn check(&mut self) {
        self.engine.check_invariants().unwrap();
        let stats = self.engine.stats();
        assert_eq!(stats.pages_free + stats.pages_cached + stats.pages_owned, stats.pages_total);
        assert_eq!(stats.pages_total, self.limits.pages);
        assert!(stats.running <= self.limits.max_seqs_per_step.min(self.limits.max_tokens_per_step));
        // The earliest request computes at least a token in every step that does not fail; a failed step may cost it
        // all it has computed.
        let errors = *self.errors.lock().unwrap();
        if let Some((id, stream)) = self.live.iter_mut().next() {
            let new_errors = (errors - self.errors_seen) as usize;
            stream.patience += new_errors * (self.limits.max_context + 2);
            assert!(stream.patience > 0, "{id:?} starves");
            stream.patience -= 1;
        }
        self.errors_seen = errors;
    }

    fn request(&mut self) -> Request {
        let random = &mut self.random;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let longest = random.pick(&[4, 12, self.limits.max_context + 4]);
        let prompt_tokens = 1 + random.below(longest);
        let mut prompt: Vec<TokenId> = (0..prompt_tokens).map(|_| random.below(VOCAB) as TokenId).collect();
        let beginning = &self.beginnings[random.below(self.beginnings.len())];
        let common = random.pick(&[0, 1, 2]) * beginning.len().min(prompt_tokens) / 2;
        prompt[..common].copy_from_slice(&beginning[..common]);
        let mut request = Request::new(id, prompt, 1 + random.below(60));
        request.cache_salt = random.pick(&["", "", "another"]).into();
        request.sampling = sampling(random);
        let strings = ["a", "ab", "!a", "é", "bb!", "\u{FFFD}a", "🦀", "aab"];
        request.stop = Stop {
            strings: (0..random.below(3)).map(|_| random.pick(&strings).to_string()).collect(),
            tokens: (0..random.below(2)).map(|_| random.below(VOCAB) as TokenId).collect(),
            ignore_eos: random.below(2) == 0,
            min_tokens: random.pick(&[0, 0, 0, 3, 20]),
        };
        request
    }
}

/// An event as it is where nothing is cached.
fn without_cache(mut event: Event) -> Event {
    if let Event::Finished { usage, .. } | Event::Failed { usage, .. } = &mut event {
        usage.cached_tokens = 0;
    }
    event
}

fn sampling(random: &mut Random) -> SamplingParams {
    let cuts = SamplingParams {
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.7]),
        top_k: random.pick(&[0, 0, 1, 5, 40]),
        top_p: random.pick(&[1.0, 1.0, 0.9, 0.3]),
        min_p: random.pick(&[0.0, 0.0, 0.05, 1.0]),
        seed: random.next(),
        ..SamplingParams::default()
    };
    // Without penalties and the like a few logits may be enough.
    if random.below(3) == 0 {
        return cuts;
    }
    SamplingParams {
        repetition_penalty: random.pick(&[1.0, 1.0, 1.3, 0.8]),
        frequency_penalty: random.pick(&[0.0, 0.0, 0.7, -0.4]),
        presence_penalty: random.pick(&[0.0, 0.0, 0.5]),
        logit_bias: (0..random.below(3)).map(|at| (at as TokenId * 7, random.pick(&[-100.0, 2.5]))).collect(),
        logprobs: random.pick(&[None, None, Some(0), Some(3)]),
        ..cuts
    }
}
