//! Which tokens of which sequences the next step computes.

use std::collections::VecDeque;

use crate::{Batch, BlockManager, BlockTable, Limits, Wanted, sequence::Sequence};

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
    preemptions: u64,
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
    pub(crate) fn new(limits: Limits, max_running: usize) -> Self {
        let max_running = max_running.min(limits.max_seqs_per_step);
        let blocks = BlockManager::new(limits.pages);
        Self { limits, max_running, running: Vec::new(), waiting: VecDeque::new(), blocks, preemptions: 0 }
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

    /// Every running sequence is to be computed from its start.
    pub(crate) fn restart_running(&mut self) {
        self.running.iter_mut().for_each(Sequence::restart);
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
            self.blocks.free(std::mem::take(&mut sequence.pages));
            sequence.restart();
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
        let pages = self.limits.pages_for(sequence.tokens.len());
        // Room for those that run to grow, so that the new one is not preempted at once.
        let reserve = if self.running.is_empty() { 0 } else { self.limits.pages.div_ceil(64) };
        let mut table = BlockTable::default();
        if self.blocks.free_pages() < pages + reserve || !self.blocks.grow(&mut table, pages) {
            return false;
        }
        let Some(mut sequence) = self.waiting.pop_front() else { return false };
        sequence.pages = table;
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
