//! The seam to a device: everything the engine asks of it, and every way it may refuse.

use thiserror::Error;

use crate::{Batch, Candidate};

/// A model on a device, with its key-value pages. The only dynamic seam between serving and tensors.
///
/// Batches run in the order they were submitted, and a later batch sees every page write of an earlier one. The engine
/// relies on it: it hands pages of a cancelled sequence to the next batch while the last is still in flight.
pub trait Runner: Send {
    /// What the runner can hold and do; constant for its life.
    fn limits(&self) -> &Limits;

    /// Starts a step. The batch may be reused by the caller as soon as this returns.
    ///
    /// # Errors
    /// When the step could not be started; nothing is then in flight and nothing is to be waited for.
    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError>;

    /// Waits for the oldest submitted step and returns its logits: one row for each sequence that wanted something of them, in
    /// batch order. See [`Wanted`](crate::Wanted).
    ///
    /// # Errors
    /// Whatever the device reports; the step is over either way, and what it wrote to its tokens' slots is then not to be trusted.
    fn wait(&mut self) -> Result<Logits, RunnerError>;

    /// Takes back logits that have been used, for a later step to fill instead of memory of its own.
    fn reuse(&mut self, logits: Logits) {
        drop(logits);
    }
}

/// What a [`Runner`] can hold and do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pages of key-value cache that sequences may own.
    pub pages: usize,
    /// Tokens in a page; divides 128, the tile of attention.
    pub page_size: usize,
    /// Most tokens in one step, over all sequences.
    pub max_tokens_per_step: usize,
    /// Most sequences in one step.
    pub max_seqs_per_step: usize,
    /// Most tokens in one sequence, prompt and output together.
    pub max_context: usize,
    /// Logits in a row, at most 2^24; every token id is below it.
    pub vocab_size: usize,
}

impl Limits {
    /// The longest sequence that fits both the model and the pages, in tokens.
    pub fn context(&self) -> usize {
        self.max_context.min(self.pages.saturating_mul(self.page_size))
    }

    /// Pages that hold `tokens` tokens.
    pub fn pages_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.page_size)
    }

    /// The name of the first field whose value no runner can mean.
    pub(crate) fn invalid_field(&self) -> Option<&'static str> {
        let context_fits_positions = self.max_context <= u32::MAX as usize;
        let pages_fit_ids = self.pages <= u32::MAX as usize;
        [
            ("pages", self.pages > 0 && pages_fit_ids),
            ("page_size", self.page_size > 0 && 128 % self.page_size == 0),
            ("max_tokens_per_step", self.max_tokens_per_step > 0),
            ("max_seqs_per_step", self.max_seqs_per_step > 0),
            ("max_context", self.max_context > 1 && context_fits_positions),
            ("vocab_size", (1..=1 << 24).contains(&self.vocab_size)),
        ]
        .into_iter()
        .find_map(|(field, valid)| (!valid).then_some(field))
    }
}

/// Rows of f32 logits on the host, each whole or its greatest alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    vocab_size: usize,
    /// Of each row the place of its first value; empty where all rows are whole.
    places: Vec<Place>,
    /// `[whole rows, vocab_size]`.
    whole: Vec<f32>,
    /// `[other rows, count]`, each in descending order.
    leading: Vec<Candidate>,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Whole(usize),
    Leading(usize),
}

/// A row of [`Logits`].
#[derive(Debug, PartialEq)]
pub enum LogitsRow<'a> {
    /// All logits, by token.
    Whole(&'a mut [f32]),
    /// The greatest in descending order, equals by ascending token; NaN and +inf come before all others.
    Leading(&'a [Candidate]),
}

impl Logits {
    /// Wraps `data` as whole rows of `vocab_size`.
    ///
    /// # Errors
    /// [`RunnerError::Protocol`] when `data` is not a whole number of rows.
    pub fn new(vocab_size: usize, data: Vec<f32>) -> Result<Self, RunnerError> {
        if vocab_size == 0 || !data.len().is_multiple_of(vocab_size) {
            let detail = format!("{} logits are not whole rows of {vocab_size}", data.len());
            return Err(RunnerError::Protocol { detail });
        }
        Ok(Self { vocab_size, places: Vec::new(), whole: data, leading: Vec::new(), count: 0 })
    }

    /// Rows of which those that `is_whole` names are in `whole [rows, vocab_size]`, and of the others the `count` greatest in
    /// `leading [rows, count]`, ordered as in [`LogitsRow::Leading`].
    ///
    /// # Errors
    /// [`RunnerError::Protocol`] when there is not exactly that much of each.
    pub fn mixed(
        vocab_size: usize,
        is_whole: impl IntoIterator<Item = bool>,
        whole: Vec<f32>,
        count: usize,
        leading: Vec<Candidate>,
    ) -> Result<Self, RunnerError> {
        let (mut wholes, mut others) = (0, 0);
        let mut place = |is_whole: bool| {
            let (rows, width) = if is_whole { (&mut wholes, vocab_size) } else { (&mut others, count) };
            *rows += 1;
            if is_whole { Place::Whole((*rows - 1) * width) } else { Place::Leading((*rows - 1) * width) }
        };
        let places = is_whole.into_iter().map(&mut place).collect();
        if (wholes * vocab_size, others * count) != (whole.len(), leading.len()) {
            let (whole, leading) = (whole.len(), leading.len());
            let detail =
                format!("{whole} logits and {leading} leading ones are not {wholes} and {others} rows");
            return Err(RunnerError::Protocol { detail });
        }
        Ok(Self { vocab_size, places, whole, leading, count })
    }

    /// The values of all whole rows.
    pub fn into_values(self) -> Vec<f32> {
        self.whole
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        if self.places.is_empty() { self.whole.len() / self.vocab_size } else { self.places.len() }
    }

    /// Logits in a whole row.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The row of the `i`-th sequence of the batch that wanted logits. Panics when `i >= rows()`, or it is not whole.
    pub fn row(&self, i: usize) -> &[f32] {
        match self.place(i) {
            Place::Whole(start) => &self.whole[start..][..self.vocab_size],
            Place::Leading(_) => panic!("row {i} is not whole"),
        }
    }

    /// The `i`-th row as it is, a whole one for changing in place. Panics when `i >= rows()`.
    pub fn row_mut(&mut self, i: usize) -> LogitsRow<'_> {
        match self.place(i) {
            Place::Whole(start) => LogitsRow::Whole(&mut self.whole[start..][..self.vocab_size]),
            Place::Leading(start) => LogitsRow::Leading(&self.leading[start..][..self.count]),
        }
    }

    fn place(&self, i: usize) -> Place {
        if self.places.is_empty() { Place::Whole(i * self.vocab_size) } else { self.places[i] }
    }
}

/// Why a step did not give logits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RunnerError {
    /// The device is gone; no later step can succeed.
    #[error("device {device} is lost: {detail}; open a new runner")]
    DeviceLost {
        /// Which device.
        device: String,
        /// What it reported.
        detail: String,
    },
    /// This step failed; the device still works.
    #[error("{op} failed on {device}: {detail}")]
    Failed {
        /// The operation or program that failed.
        op: String,
        /// Which device.
        device: String,
        /// What it reported.
        detail: String,
        /// Whether computing the same step again may succeed.
        retriable: bool,
    },
    /// This step failed and took what the pages held along; the device still works.
    #[error("{op} failed on {device}, and the pages with it: {detail}")]
    PagesLost {
        /// The operation or program that failed.
        op: String,
        /// Which device.
        device: String,
        /// What it reported.
        detail: String,
    },
    /// Engine and runner disagree on a batch or its result: a defect in one of them.
    #[error("runner protocol broken: {detail}; this is a defect, please report it")]
    Protocol {
        /// What was expected and what was found.
        detail: String,
    },
}

impl RunnerError {
    /// Whether computing the same step again may succeed.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Failed { retriable: true, .. } | Self::PagesLost { .. })
    }

    /// Whether no page holds what was written to it.
    pub fn is_pages_lost(&self) -> bool {
        matches!(self, Self::PagesLost { .. })
    }

    /// Whether every later step would fail too.
    pub fn is_device_lost(&self) -> bool {
        matches!(self, Self::DeviceLost { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_whole_rows() {
        let logits = Logits::new(3, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((logits.rows(), logits.row(1)), (2, &[3.0, 4.0, 5.0][..]));
        assert!(matches!(Logits::new(3, vec![0.0; 4]), Err(RunnerError::Protocol { .. })));
        assert!(Logits::new(0, vec![]).is_err());
    }

    #[test]
    fn rows_of_both_kinds_keep_their_order() {
        let leading = vec![(7, 3.0), (2, 1.0), (0, 9.0), (1, 8.0)];
        let kinds = [false, true, false];
        let mut logits = Logits::mixed(3, kinds, vec![0.0, 1.0, 2.0], 2, leading.clone()).unwrap();
        assert_eq!((logits.rows(), logits.row(1)), (3, &[0.0, 1.0, 2.0][..]));
        assert_eq!(logits.row_mut(0), LogitsRow::Leading(&leading[..2]));
        assert_eq!(logits.row_mut(1), LogitsRow::Whole(&mut [0.0, 1.0, 2.0]));
        assert_eq!(logits.row_mut(2), LogitsRow::Leading(&leading[2..]));
        let error = Logits::mixed(3, kinds, vec![0.0; 3], 2, leading[1..].to_vec()).unwrap_err();
        assert!(error.to_string().contains("3 logits and 3 leading ones are not 1 and 2 rows"), "{error}");
    }

    #[test]
    fn the_first_bad_limit_is_named() {
        let good = Limits {
            pages: 4,
            page_size: 16,
            max_tokens_per_step: 8,
            max_seqs_per_step: 2,
            max_context: 100,
            vocab_size: 10,
        };
        assert_eq!(good.invalid_field(), None);
        assert_eq!(good.context(), 64);
        assert_eq!(Limits { page_size: 24, ..good.clone() }.invalid_field(), Some("page_size"));
        assert_eq!(Limits { vocab_size: 0, ..good }.invalid_field(), Some("vocab_size"));
    }
}
