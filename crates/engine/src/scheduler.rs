//! Which tokens of which sequences the next step computes.

use std::collections::VecDeque;

use crate::{Batch, BlockManager, Limits, Wanted, sequence::Sequence};

/// Continuous batching, first come first served.
///
/// A step holds one token of every running sequence that decodes, then chunks of prompts in order of arrival, then new
/// sequences, all under the limit of tokens a step. A sequence starts when pages for all the tokens it has are free,
/// and takes a page each time it outgrows its last. When none is free the latest arrival gives its pages up, waits at
/// the head of the queue, and later recomputes its tokens.
///
/// Nobody starves: whoever runs arrived before whoever waits, there is a token a step for each that runs, and the
/// earliest can take the pages of all others.
pub(crate) struct Scheduler {
    limits: Limits,
    max_running: usize,
    /// In order of arrival; each has computed tokens or is about to.
    running: Vec<Sequence>,
    /// In order of arrival, all later than those that run; none owns a page.
    waiting: VecDeque<Sequence>,
    blocks: BlockManager,
    /// Whether pages are shared by what they hold.
    caches_prefixes: bool,
    /// The head of the queue that did not fit, and the pages that nobody owned then: it is not looked at again before there are
    /// more.
    refused: Option<(u64, usize)>,
    preemptions: u64,
    prefix: PrefixStats,
}

/// Of all sequences that started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PrefixStats {
    /// Their tokens.
    pub(crate) queried: u64,
    /// Those that were found.
    pub(crate) hit: u64,
}

/// One sequence's part of a submitted step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) arrival: u64,
    pub(crate) tokens: usize,
    /// Whether the step returns something of its logits.
    pub(crate) logits: bool,
}

impl Scheduler {
    /// A scheduler of at most `max_running` sequences at a time.
    pub(crate) fn new(limits: Limits, max_running: usize, caches_prefixes: bool) -> Self {
        Self {
            max_running: max_running.min(limits.max_seqs_per_step),
            blocks: BlockManager::new(limits.pages),
            limits,
            running: Vec::new(),
            waiting: VecDeque::new(),
            caches_prefixes,
            refused: None,
            preemptions: 0,
            prefix: PrefixStats::default(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    pub(crate) fn running(&self) -> &[Sequence] {
        &self.running
    }

    pub(crate) fn waiting(&self) -> &VecDeque<Sequence> {
        &self.waiting
    }

    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub(crate) fn prefix_stats(&self) -> PrefixStats {
        self.prefix
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Queues a sequence that arrived after all others.
    pub(crate) fn enqueue(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// The running sequence of this arrival; none if it ended or waits.
    pub(crate) fn running_mut(&mut self, arrival: u64) -> Option<&mut Sequence> {
        let index = self.running.binary_search_by_key(&arrival, |sequence| sequence.arrival).ok()?;
        Some(&mut self.running[index])
    }

    /// Takes note that so many more tokens of a running sequence are computed, whose whole pages others may share from now on.
    pub(crate) fn computed(&mut self, arrival: u64, tokens: usize) {
        let Ok(index) = self.running.binary_search_by_key(&arrival, |sequence| sequence.arrival) else {
            return;
        };
        let Sequence { computed, pages, remembered, cache_salt, tokens: all, .. } = &mut self.running[index];
        *computed += tokens;
        while self.caches_prefixes && (*remembered + 1) * self.limits.page_size <= *computed {
            let tokens = &all[*remembered * self.limits.page_size..][..self.limits.page_size];
            self.blocks.remember(pages, *remembered, cache_salt, tokens);
            *remembered += 1;
        }
    }

    /// No page holds what was written to it: every running sequence is to be computed from its start, in other pages.
    pub(crate) fn restart_running(&mut self) {
        self.blocks.forget();
        for sequence in &mut self.running {
            let pages = sequence.restart();
            self.blocks.free(pages);
        }
    }

    /// Takes a sequence out, wherever it is; its pages are free from now on.
    pub(crate) fn remove(&mut self, arrival: u64) -> Option<Sequence> {
        let mut sequence = match self.running.binary_search_by_key(&arrival, |sequence| sequence.arrival) {
            Ok(index) => self.running.remove(index),
            Err(_) => {
                let index = self.waiting.binary_search_by_key(&arrival, |sequence| sequence.arrival).ok()?;
                self.waiting.remove(index)?
            }
        };
        self.blocks.free(std::mem::take(&mut sequence.pages));
        Some(sequence)
    }

    /// Fills `batch` with the next step; leaves it empty when there is nothing to do.
    pub(crate) fn schedule(&mut self, batch: &mut Batch, parts: &mut Vec<Part>) {
        batch.clear();
        parts.clear();
        let enough_pages = self.grow_running();
        let mut step = Step { batch, parts, budget: self.limits.max_tokens_per_step };
        let decodes = |sequence: &&Sequence| sequence.uncomputed() == 1;
        self.running.iter().filter(decodes).for_each(|sequence| step.take(sequence));
        self.running.iter().filter(|sequence| !decodes(sequence)).for_each(|sequence| step.take(sequence));
        // Only what the running leave over lets one more run, so each that runs has a token in every step.
        while enough_pages && step.budget > 0 && self.start_next() {
            self.running.last().into_iter().for_each(|sequence| step.take(sequence));
        }
    }

    /// Gives every running sequence pages for all its tokens, the earliest first, by preempting the latest. Returns
    /// whether none was preempted.
    fn grow_running(&mut self) -> bool {
        let before = self.preemptions;
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let pages = self.limits.pages_for(sequence.tokens.len());
            if self.blocks.grow(&mut sequence.pages, pages) {
                index += 1;
            } else {
                self.preempt_latest();
            }
        }
        self.preemptions == before
    }

    fn preempt_latest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.blocks.free(sequence.restart());
            self.waiting.push_front(sequence);
            self.preemptions += 1;
        }
    }

    /// Moves the head of the queue to the running sequences, if it fits.
    fn start_next(&mut self) -> bool {
        if self.running.len() >= self.max_running {
            return false;
        }
        let Some(sequence) = self.waiting.front() else { return false };
        let (arrival, unowned) = (sequence.arrival, self.blocks.total() - self.blocks.owned_pages());
        let is_refused = |(refused, pages)| refused == arrival && unowned <= pages;
        if !self.running.is_empty() && self.refused.is_some_and(is_refused) {
            return false;
        }
        let (tokens, page_size) = (sequence.tokens.len(), self.limits.page_size);
        // The last token's logits are wanted, so it is computed whatever is known.
        let most = if self.caches_prefixes { (tokens - 1) / page_size } else { 0 };
        // Room for those that run to grow, so that the new one is not preempted at once.
        let reserve = if self.running.is_empty() { 0 } else { self.limits.pages.div_ceil(64) };
        let beginning = (&sequence.cache_salt, &sequence.tokens[..]);
        let extents = [self.limits.pages_for(tokens), most, reserve];
        let Some((table, hits)) = self.blocks.start(beginning, page_size, extents) else {
            self.refused = Some((arrival, unowned));
            return false;
        };
        let Some(mut sequence) = self.waiting.pop_front() else { return false };
        sequence.pages = table;
        (sequence.computed, sequence.remembered) = (hits * page_size, hits);
        sequence.cached.get_or_insert(sequence.computed);
        self.prefix.queried += tokens as u64;
        self.prefix.hit += sequence.computed as u64;
        self.running.push(sequence);
        true
    }
}

/// A step being filled.
struct Step<'a> {
    batch: &'a mut Batch,
    parts: &'a mut Vec<Part>,
    budget: usize,
}

impl Step<'_> {
    /// Takes as many of the sequence's uncomputed tokens as the step has room for.
    fn take(&mut self, sequence: &Sequence) {
        let tokens = sequence.uncomputed().min(self.budget);
        if tokens == 0 {
            return;
        }
        self.budget -= tokens;
        let (start, end) = (sequence.computed, sequence.computed + tokens);
        let logits = end == sequence.tokens.len();
        let wanted = if logits { sequence.wanted() } else { Wanted::Nothing };
        self.batch.push(&sequence.tokens[start..end], start, sequence.pages.pages(), wanted);
        self.parts.push(Part { arrival: sequence.arrival, tokens, logits });
    }
}
