//! The engine: requests in, steps on a runner, events out.

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use crate::{
    AdmitError, Batch, Constraint, FinishReason, Limits, Logits, LogitsRow, Logprobs, PageLeak, Request,
    RequestError, RequestId, RequestLimits, Runner, RunnerError, Sampled, Scratch, StopCause, TokenId, Usage,
    Vocabulary,
    scheduler::{Part, Scheduler},
    sequence::{Accepted, Finish, Sequence},
};

/// Bounds on what the engine takes and holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Most sequences computed at a time; the runner's limits may lower it.
    pub max_running: usize,
    /// Most tokens in a step; the runner's limits may lower it.
    pub max_tokens_per_step: usize,
    /// Most requests in the queue.
    pub max_waiting: usize,
    /// Most tokens in the queue; an empty queue takes any one request.
    pub max_waiting_tokens: usize,
    /// How often in a row a request is recomputed after a step that failed but may be retried.
    pub max_retries: u32,
    /// Whether requests that begin alike share the pages of their beginning, and pages stay for later requests while nobody
    /// needs them.
    pub prefix_caching: bool,
    /// Bounds on each request.
    pub request: RequestLimits,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_running: 256,
            max_tokens_per_step: 8192,
            max_waiting: 1024,
            max_waiting_tokens: 1 << 22,
            max_retries: 3,
            prefix_caching: true,
            request: RequestLimits::default(),
        }
    }
}

/// What happened to a request. Every request that was added gets exactly one end: `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// One token of output.
    Token {
        /// The request.
        id: RequestId,
        /// The token, also one that ended the output.
        token: TokenId,
        /// The text that became certain with it; may be empty, never holds half a character or stop text.
        text: String,
        /// When the request asked for it.
        logprobs: Option<Logprobs>,
    },
    /// The end of a request that did not fail.
    Finished {
        /// The request.
        id: RequestId,
        /// Why it ended.
        reason: FinishReason,
        /// What stopped it, when `reason` is [`FinishReason::Stop`].
        cause: Option<StopCause>,
        /// Tokens it used.
        usage: Usage,
    },
    /// The end of a request that failed.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: RequestError,
        /// Tokens it used.
        usage: Usage,
    },
}

impl Event {
    /// The request it is about.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Token { id, .. } | Self::Finished { id, .. } | Self::Failed { id, .. } => *id,
        }
    }

    /// How the request ended, if this is its end.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        match self {
            Self::Token { .. } => None,
            Self::Finished { reason, .. } => Some(*reason),
            Self::Failed { .. } => Some(FinishReason::Error),
        }
    }
}

/// Why the engine as a whole cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The runner's limits make no sense.
    #[error("the runner's limit {field} is out of range in {limits:?}")]
    Limits {
        /// The field of [`Limits`].
        field: &'static str,
        /// All of them.
        limits: Limits,
    },
    /// A bound of the configuration is zero.
    #[error("{field} is 0, so no request could ever run; set it to at least 1")]
    Config {
        /// The field of [`EngineConfig`].
        field: &'static str,
    },
    /// The device is gone, and every request has had its end event. Make a new engine on a new runner; a request goes
    /// on there with its output in [`Request::generated`].
    #[error("the engine has stopped: {0}")]
    DeviceLost(RunnerError),
    /// A page is leaked or owned twice.
    #[error(transparent)]
    Pages(#[from] PageLeak),
    /// The engine's own bookkeeping disagrees with itself.
    #[error("engine invariant broken: {0}; this is a defect, please report it")]
    Invariant(&'static str),
}

/// Counts for gauges and counters, taken from the engine's state at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences being computed.
    pub running: usize,
    /// Requests in the queue, preempted ones included.
    pub waiting: usize,
    /// Tokens in the queue.
    pub waiting_tokens: usize,
    /// Pages that nobody owns and that hold nothing of use.
    pub pages_free: usize,
    /// Pages that nobody owns and that are kept for requests that begin with what they hold.
    pub pages_cached: usize,
    /// Pages somebody owns.
    pub pages_owned: usize,
    /// All pages.
    pub pages_total: usize,
    /// Times a sequence gave up its pages, so far.
    pub preemptions: u64,
    /// Tokens of sequences that were scheduled for the first time or anew, so far.
    pub prefix_queried_tokens: u64,
    /// Those of them whose keys and values were found in cached pages, so far.
    pub prefix_hit_tokens: u64,
    /// Times a sequence computed the same step again because it failed, so far.
    pub retries: u64,
    /// Steps submitted, so far.
    pub steps: u64,
    /// Tokens submitted, recomputed ones included, so far.
    pub tokens_computed: u64,
    /// Tokens sampled, so far.
    pub tokens_generated: u64,
}

/// The serving core. See the crate's documentation for its invariants.
pub struct Engine {
    runner: Box<dyn Runner>,
    vocabulary: Arc<dyn Vocabulary>,
    config: EngineConfig,
    scheduler: Scheduler,
    live: BTreeMap<RequestId, u64>,
    next_arrival: u64,
    batch: Batch,
    /// The step in flight; empty when there is none.
    parts: Vec<Part>,
    scratch: Scratch,
    events: Vec<Event>,
    lost: Option<RunnerError>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    retries: u64,
    steps: u64,
    tokens_computed: u64,
    tokens_generated: u64,
}

impl Engine {
    /// An idle engine.
    ///
    /// # Errors
    /// When a limit of the runner or of the configuration makes no sense.
    pub fn new(
        runner: Box<dyn Runner>,
        vocabulary: Arc<dyn Vocabulary>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let mut limits = runner.limits().clone();
        if let Some(field) = limits.invalid_field() {
            return Err(EngineError::Limits { field, limits });
        }
        let bounds = [
            ("max_running", config.max_running),
            ("max_tokens_per_step", config.max_tokens_per_step),
            ("max_waiting", config.max_waiting),
        ];
        if let Some((field, _)) = bounds.into_iter().find(|&(_, bound)| bound == 0) {
            return Err(EngineError::Config { field });
        }
        limits.max_tokens_per_step = limits.max_tokens_per_step.min(config.max_tokens_per_step);
        Ok(Self {
            scheduler: Scheduler::new(limits, config.max_running, config.prefix_caching),
            runner,
            vocabulary,
            config,
            live: BTreeMap::new(),
            next_arrival: 0,
            batch: Batch::default(),
            parts: Vec::new(),
            scratch: Scratch::default(),
            events: Vec::new(),
            lost: None,
            counters: Counters::default(),
        })
    }

    /// The runner's limits, with the configuration's bound on tokens a step.
    pub fn limits(&self) -> &Limits {
        self.scheduler.limits()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// Refuses it, and keeps nothing of it, when a parameter is out of range, it could never fit, the queue is full or
    /// the device is lost.
    pub fn add(&mut self, request: Request) -> Result<(), AdmitError> {
        self.admit(request, None)
    }

    /// Queues a request whose output must satisfy `constraint`.
    ///
    /// # Errors
    /// As [`Engine::add`], and when the constraint does not take the output that the request brings.
    pub fn add_constrained(
        &mut self,
        request: Request,
        constraint: Box<dyn Constraint>,
    ) -> Result<(), AdmitError> {
        self.admit(request, Some(constraint))
    }

    /// Ends a request now and frees its pages, also while a step with it is in flight. Its end event comes with the
    /// next step. Returns false when no such request is live.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        match self.live.get(&id) {
            Some(&arrival) => {
                self.finish(arrival, (FinishReason::Cancelled, None));
                true
            }
            None => false,
        }
    }

    /// One scheduling step: waits for the step in flight, takes its tokens, submits the next, and returns what
    /// happened. A failed step is not an error of the engine; it is events of its requests.
    ///
    /// # Errors
    /// When the engine as a whole cannot go on. Events not yet returned are kept for the next call, but after
    /// [`EngineError::DeviceLost`], where every event was returned before.
    pub fn step(&mut self) -> Result<Vec<Event>, EngineError> {
        if let Some(error) = &self.lost {
            if self.events.is_empty() {
                return Err(EngineError::DeviceLost(error.clone()));
            }
            return Ok(std::mem::take(&mut self.events));
        }
        if !self.parts.is_empty() {
            match self.receive() {
                Ok(logits) => self.commit(logits),
                Err(error) => self.recover(error),
            }
            self.parts.clear();
        }
        if self.lost.is_none() {
            self.launch();
        }
        if self.scheduler.is_empty() {
            self.check_invariants()?;
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Whether no request is live, no step in flight and no event undelivered.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty() && self.parts.is_empty() && self.events.is_empty()
    }

    /// Counts for metrics.
    pub fn stats(&self) -> Stats {
        let blocks = self.scheduler.blocks();
        Stats {
            running: self.scheduler.running().len(),
            waiting: self.scheduler.waiting().len(),
            waiting_tokens: self.waiting_tokens(),
            pages_free: blocks.free_pages(),
            pages_cached: blocks.cached_pages(),
            pages_owned: blocks.owned_pages(),
            pages_total: blocks.total(),
            preemptions: self.scheduler.preemptions(),
            prefix_queried_tokens: self.scheduler.prefix_stats().queried,
            prefix_hit_tokens: self.scheduler.prefix_stats().hit,
            retries: self.counters.retries,
            steps: self.counters.steps,
            tokens_computed: self.counters.tokens_computed,
            tokens_generated: self.counters.tokens_generated,
        }
    }

    /// Checks that every page is free, cached or owned, and that the bookkeeping agrees with itself. The engine does so itself
    /// whenever no request is live.
    ///
    /// # Errors
    /// Names what does not hold.
    pub fn check_invariants(&self) -> Result<(), EngineError> {
        let (running, waiting) = (self.scheduler.running(), self.scheduler.waiting());
        let all = || running.iter().chain(waiting);
        self.scheduler.blocks().check(all().map(|sequence| &sequence.pages))?;
        let page_size = self.limits().page_size;
        let computed_fits = |sequence: &Sequence| {
            sequence.computed < sequence.tokens.len() && sequence.computed <= sequence.pages.len() * page_size
        };
        let named = |sequence: &Sequence| self.live.get(&sequence.id) == Some(&sequence.arrival);
        let checks = [
            ("arrivals are out of order", all().is_sorted_by(|a, b| a.arrival < b.arrival)),
            ("computed tokens have no page", running.iter().all(computed_fits)),
            ("a waiting sequence owns pages", waiting.iter().all(|s| s.pages.is_empty() && s.computed == 0)),
            ("live ids and sequences differ", self.live.len() == all().count() && all().all(named)),
        ];
        match checks.into_iter().find(|(_, holds)| !holds) {
            Some((broken, _)) => Err(EngineError::Invariant(broken)),
            None => Ok(()),
        }
    }

    fn admit(&mut self, request: Request, constraint: Option<Box<dyn Constraint>>) -> Result<(), AdmitError> {
        if let Some(error) = &self.lost {
            return Err(AdmitError::DeviceLost(error.clone()));
        }
        request.check(self.scheduler.limits(), &self.config.request)?;
        if self.live.contains_key(&request.id) {
            return Err(AdmitError::DuplicateId(request.id));
        }
        self.check_queue(request.prompt.len() + request.generated.len())?;
        let (id, arrival) = (request.id, self.next_arrival);
        let limits = self.scheduler.limits();
        let sequence = Sequence::new(arrival, request, constraint, limits, &*self.vocabulary)?;
        self.next_arrival += 1;
        self.live.insert(id, arrival);
        self.scheduler.enqueue(sequence);
        Ok(())
    }

    fn waiting_tokens(&self) -> usize {
        self.scheduler.waiting().iter().map(|sequence| sequence.tokens.len()).sum()
    }

    fn check_queue(&self, tokens: usize) -> Result<(), AdmitError> {
        let waiting = self.scheduler.waiting().len();
        if waiting >= self.config.max_waiting {
            return Err(AdmitError::QueueFull { waiting });
        }
        let (waiting_tokens, limit) = (self.waiting_tokens(), self.config.max_waiting_tokens);
        if waiting > 0 && waiting_tokens + tokens > limit {
            return Err(AdmitError::QueueTokensFull { waiting_tokens, limit });
        }
        Ok(())
    }

    fn launch(&mut self) {
        self.scheduler.schedule(&mut self.batch, &mut self.parts);
        if self.batch.is_empty() {
            return;
        }
        self.counters.steps += 1;
        self.counters.tokens_computed += self.batch.tokens.len() as u64;
        if let Err(error) = self.runner.submit(&self.batch) {
            self.recover(error);
            self.parts.clear();
        }
    }

    /// The logits of the step in flight, of the shape that was asked for.
    fn receive(&mut self) -> Result<Logits, RunnerError> {
        let logits = self.runner.wait()?;
        let expected = (self.batch.logit_rows(), self.limits().vocab_size);
        let found = (logits.rows(), logits.vocab_size());
        if found != expected {
            let detail = format!("logits are {found:?} where the step asked for {expected:?}");
            return Err(RunnerError::Protocol { detail });
        }
        Ok(logits)
    }

    /// Takes the results of the step in flight. Sequences that ended meanwhile are passed over.
    fn commit(&mut self, mut logits: Logits) {
        let mut row = 0;
        for index in 0..self.parts.len() {
            let part = self.parts[index];
            self.scheduler.computed(part.arrival, part.tokens);
            if part.logits {
                self.advance(part.arrival, logits.row_mut(row));
            }
            row += usize::from(part.logits);
        }
        self.runner.reuse(logits);
    }

    /// Samples one sequence's next token.
    fn advance(&mut self, arrival: u64, logits: LogitsRow<'_>) {
        let Some(sequence) = self.scheduler.running_mut(arrival) else { return };
        let Sampled { token, logprobs } = match sequence.sample(logits, &mut self.scratch) {
            Ok(sampled) => sampled,
            Err(error) => return self.fail(arrival, error),
        };
        self.counters.tokens_generated += 1;
        sequence.failures = 0;
        let id = sequence.id;
        match sequence.accept(token, &*self.vocabulary) {
            Ok(Accepted { text, finish }) => {
                self.events.push(Event::Token { id, token, text, logprobs });
                finish.into_iter().for_each(|finish| self.finish(arrival, finish));
            }
            Err(error) => self.fail(arrival, error.into()),
        }
    }

    /// After a failed step: its sequences compute it again or fail; if the pages are lost, the others recompute as well; if the
    /// device is lost, all fail.
    fn recover(&mut self, error: RunnerError) {
        if error.is_device_lost() {
            let all: Vec<u64> = self.live.values().copied().collect();
            all.into_iter().for_each(|arrival| self.fail(arrival, error.clone().into()));
            self.lost = Some(error);
            return;
        }
        if error.is_pages_lost() {
            self.scheduler.restart_running();
        }
        for index in 0..self.parts.len() {
            let arrival = self.parts[index].arrival;
            match self.scheduler.running_mut(arrival) {
                Some(sequence) if error.is_retriable() && sequence.failures < self.config.max_retries => {
                    // What was computed before stays, and the next step computes the same tokens.
                    sequence.failures += 1;
                    self.counters.retries += 1;
                }
                Some(_) => self.fail(arrival, error.clone().into()),
                None => {}
            }
        }
    }

    fn finish(&mut self, arrival: u64, (reason, cause): Finish) {
        if let Some((id, usage)) = self.retire(arrival) {
            self.events.push(Event::Finished { id, reason, cause, usage });
        }
    }

    fn fail(&mut self, arrival: u64, error: RequestError) {
        if let Some((id, usage)) = self.retire(arrival) {
            self.events.push(Event::Failed { id, error, usage });
        }
    }

    /// Forgets a sequence and frees its pages.
    fn retire(&mut self, arrival: u64) -> Option<(RequestId, Usage)> {
        let sequence = self.scheduler.remove(arrival)?;
        self.live.remove(&sequence.id);
        Some((sequence.id, sequence.usage()))
    }
}
