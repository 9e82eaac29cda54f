//! A fake device whose logits are a hash of the history that it reads back from its own pages.

use std::sync::{Arc, Mutex};

use samebits_engine::{Batch, BatchSeq, Limits, Logits, PageId, Runner, RunnerError, TokenId, Wanted};

pub(crate) const VOCAB: usize = 48;

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0xA5A5_5A5A_1234_5678))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn per_mille(&mut self, chance: usize) -> bool {
        self.below(1000) < chance
    }

    pub(crate) fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The model: a row of logits from the whole history, now and then with a NaN.
pub(crate) fn logits_after(history: impl Iterator<Item = u32>) -> Vec<f32> {
    let hash = history.fold(1, |hash, token| mix(hash ^ u64::from(token).wrapping_mul(0x9E37_79B9)));
    let mut row: Vec<f32> =
        (0..VOCAB as u64).map(|token| (mix(hash ^ (token << 32)) % 4096) as f32 / 512.0 - 4.0).collect();
    if hash.is_multiple_of(211) {
        row[(hash >> 40) as usize % VOCAB] = if hash.is_multiple_of(2) { f32::NAN } else { f32::INFINITY };
    }
    row
}

/// How often the device fails, and how.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    pub(crate) seed: u64,
    pub(crate) retriable_per_mille: usize,
    pub(crate) pages_lost_per_mille: usize,
    pub(crate) fatal_per_mille: usize,
    pub(crate) lost_per_mille: usize,
    pub(crate) wrong_shape: bool,
}

impl Chaos {
    pub(crate) fn none() -> Self {
        Self {
            seed: 0,
            retriable_per_mille: 0,
            pages_lost_per_mille: 0,
            fatal_per_mille: 0,
            lost_per_mille: 0,
            wrong_shape: false,
        }
    }
}

/// Each submitted step as (tokens, logits wanted) of its sequences.
pub(crate) type Trace = Arc<Mutex<Vec<Vec<(usize, bool)>>>>;

pub(crate) struct FakeDevice {
    limits: Limits,
    /// Token and position in each slot.
    slots: Vec<Option<(u32, u32)>>,
    in_flight: Option<Batch>,
    chaos: Chaos,
    random: Random,
    errors: Arc<Mutex<u64>>,
    trace: Trace,
}

impl FakeDevice {
    pub(crate) fn new(limits: Limits, chaos: Chaos) -> Self {
        let slots = vec![None; limits.pages * limits.page_size];
        let random = Random::new(chaos.seed);
        Self {
            limits,
            slots,
            in_flight: None,
            chaos,
            random,
            errors: Arc::default(),
            trace: Trace::default(),
        }
    }

    /// How many steps have failed.
    pub(crate) fn errors(&self) -> Arc<Mutex<u64>> {
        self.errors.clone()
    }

    pub(crate) fn trace(&self) -> Trace {
        self.trace.clone()
    }

    fn slot(&self, seq: &BatchSeq, position: u32) -> usize {
        let (page, offset) =
            (position as usize / self.limits.page_size, position as usize % self.limits.page_size);
        seq.pages[page].0 as usize * self.limits.page_size + offset
    }

    fn check(&self, batch: &Batch) {
        assert!(!batch.seqs.is_empty() && batch.seqs.len() <= self.limits.max_seqs_per_step);
        assert!(batch.tokens.len() <= self.limits.max_tokens_per_step);
        assert_eq!(batch.tokens.len(), batch.positions.len());
        let (mut pages, mut written): (Vec<PageId>, Vec<PageId>) = Default::default();
        let mut next = 0;
        for seq in &batch.seqs {
            assert_eq!(seq.tokens.start, next);
            assert!(!seq.tokens.is_empty());
            next = seq.tokens.end;
            let positions = &batch.positions[seq.tokens.clone()];
            assert!(positions.windows(2).all(|pair| pair[1] == pair[0] + 1));
            let end = *positions.last().unwrap() as usize + 1;
            assert!(end <= self.limits.max_context && seq.pages.len() * self.limits.page_size >= end);
            let first = positions[0] as usize / self.limits.page_size;
            pages.extend(&seq.pages);
            written.extend(&seq.pages[first..]);
        }
        assert_eq!(next, batch.tokens.len());
        let tables = |page: &PageId| pages.iter().filter(|other| *other == page).count();
        assert!(
            written.iter().all(|page| tables(page) == 1),
            "a page that is written is in two block tables"
        );
    }

    fn failure(&mut self) -> Option<RunnerError> {
        let (op, device, detail) = (|| "step".to_string(), || "fake:0".to_string(), || "chaos".to_string());
        let error = if self.random.per_mille(self.chaos.lost_per_mille) {
            RunnerError::DeviceLost { device: device(), detail: detail() }
        } else if self.random.per_mille(self.chaos.fatal_per_mille) {
            RunnerError::Failed { op: op(), device: device(), detail: detail(), retriable: false }
        } else if self.random.per_mille(self.chaos.pages_lost_per_mille) {
            self.slots.fill(None);
            RunnerError::PagesLost { op: op(), device: device(), detail: detail() }
        } else if self.random.per_mille(self.chaos.retriable_per_mille) {
            RunnerError::Failed { op: op(), device: device(), detail: detail(), retriable: true }
        } else {
            return None;
        };
        *self.errors.lock().unwrap() += 1;
        Some(error)
    }

    /// Leaves garbage in every slot from the first that the batch was to write.
    fn ruin(&mut self, batch: &Batch) {
        for seq in &batch.seqs {
            let positions =
                batch.positions[seq.tokens.start]..(seq.pages.len() * self.limits.page_size) as u32;
            for position in positions {
                let slot = self.slot(seq, position);
                self.slots[slot] = Some((self.random.below(VOCAB) as u32, position));
            }
        }
    }
}

impl Runner for FakeDevice {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        assert!(self.in_flight.is_none(), "a step was submitted while one is in flight");
        self.check(batch);
        if self.random.below(2) == 0
            && let Some(error) = self.failure()
        {
            return Err(error);
        }
        self.trace
            .lock()
            .unwrap()
            .push(batch.seqs.iter().map(|seq| (seq.tokens.len(), seq.logits != Wanted::Nothing)).collect());
        self.in_flight = Some(batch.clone());
        Ok(())
    }

    /// Writes and reads its pages as late as a device may.
    fn wait(&mut self) -> Result<Logits, RunnerError> {
        let batch = self.in_flight.take().expect("a step is in flight");
        if let Some(error) = self.failure() {
            self.ruin(&batch);
            return Err(error);
        }
        for seq in &batch.seqs {
            for index in seq.tokens.clone() {
                let position = batch.positions[index];
                let slot = self.slot(seq, position);
                self.slots[slot] = Some((batch.tokens[index], position));
            }
        }
        let (mut is_whole, mut data, mut leading) = (Vec::new(), Vec::new(), Vec::new());
        for seq in batch.seqs.iter().filter(|seq| seq.logits != Wanted::Nothing) {
            let last = batch.positions[seq.tokens.end - 1];
            let history = (0..=last).map(|position| {
                let (token, written) = self.slots[self.slot(seq, position)].expect("the slot was written");
                // A wrong position in the slot is somebody else's or stale: it changes the hash.
                if written == position { token } else { token + 1000 }
            });
            let row = logits_after(history);
            // Only a wish: a device may return whole rows.
            let is_leading = matches!(seq.logits, Wanted::Leading(_)) && self.random.below(4) > 0;
            is_whole.push(!is_leading);
            match is_leading {
                true => leading.extend(descending(&row)),
                false => data.extend(row),
            }
        }
        if self.chaos.wrong_shape {
            is_whole.push(true);
            data.extend([0.0; VOCAB]);
        }
        Logits::mixed(VOCAB, is_whole, data, VOCAB, leading)
    }
}

/// All logits of a row as a device hands out the greatest.
fn descending(row: &[f32]) -> Vec<(TokenId, f32)> {
    let mut all: Vec<_> = (0..).zip(row.iter().copied()).collect();
    all.sort_by(|a: &(TokenId, f32), b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}
