use std::time::{Duration, Instant};

use anyhow::bail;
use samebits::{
    Loaded,
    engine::{Batch, BatchSeq, PageId, Runner, Wanted},
    runner::{StepPart, StepWork},
};

use super::Interrupt;

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// A prompt of so many tokens, in chunks of the largest step.
    Prefill { tokens: usize },
    /// So many tokens of each of `batch` sequences, one after another, from a context of so many tokens on.
    Decode { batch: usize, context: usize, tokens: usize },
}

/// The steps of a test, ready to be submitted.
pub(crate) struct Prepared {
    pub(crate) test: Test,
    batches: Vec<Batch>,
    /// All steps together.
    pub(crate) work: StepWork,
}

impl Test {
    /// Tokens of the longest sequence at its end.
    pub(crate) fn context(&self) -> usize {
        match *self {
            Test::Prefill { tokens } => tokens,
            Test::Decode { context, tokens, .. } => context + tokens,
        }
    }

    /// Tokens that a sequence has before.
    pub(crate) fn past(&self) -> usize {
        match *self {
            Test::Prefill { .. } => 0,
            Test::Decode { context, .. } => context,
        }
    }

    /// Sequences computed together.
    pub(crate) fn batch(&self) -> usize {
        match *self {
            Test::Prefill { .. } => 1,
            Test::Decode { batch, .. } => batch,
        }
    }

    /// Tokens that count for its speed.
    pub(crate) fn tokens(&self) -> usize {
        match *self {
            Test::Prefill { tokens } => tokens,
            Test::Decode { batch, tokens, .. } => batch * tokens,
        }
    }

    /// Pages of cache that it uses.
    pub(crate) fn pages(&self, page_size: usize) -> usize {
        self.batch() * self.context().div_ceil(page_size)
    }

    /// Its steps, none of more than `max_tokens` tokens a sequence.
    fn steps(&self, max_tokens: usize) -> Vec<StepPart> {
        match *self {
            Test::Prefill { tokens } => (0..tokens)
                .step_by(max_tokens)
                .map(|past| {
                    let end = (past + max_tokens).min(tokens);
                    StepPart { tokens: end - past, past, logits: end == tokens }
                })
                .collect(),
            Test::Decode { context, tokens, .. } => {
                (context..context + tokens).map(|past| StepPart { tokens: 1, past, logits: true }).collect()
            }
        }
    }
}

impl Prepared {
    pub(crate) fn new(test: Test, loaded: &Loaded) -> anyhow::Result<Prepared> {
        let limits = loaded.runner.limits();
        let pages = test.context().div_ceil(limits.page_size);
        let (mut batches, mut work) = (Vec::new(), StepWork::default());
        for step in test.steps(limits.max_tokens_per_step) {
            let mut batch = Batch::default();
            for sequence in 0..test.batch() {
                append(&mut batch, sequence * pages, pages, step, limits.vocab_size);
            }
            let checkpoint = &loaded.plan.checkpoint;
            let parts = vec![step; test.batch()];
            work = work.plus(StepWork::new(&checkpoint.config, &*checkpoint.weights, &parts)?);
            batches.push(batch);
        }
        Ok(Prepared { test, batches, work })
    }

    /// Steps of a round.
    pub(crate) fn steps(&self) -> usize {
        self.batches.len()
    }

    /// Runs all steps, and says how long they took.
    pub(crate) fn run(&self, runner: &mut dyn Runner) -> anyhow::Result<Duration> {
        let start = Instant::now();
        for batch in &self.batches {
            step(runner, batch)?;
        }
        Ok(start.elapsed())
    }
}

/// Writes real keys and values to the first `pages` pages, each a short sequence of its own: memory that was never written
/// would be read faster than a cache is. `on_page` is told how many are written.
pub(crate) fn fill(
    runner: &mut dyn Runner,
    pages: usize,
    interrupt: &Interrupt,
    on_page: &dyn Fn(usize),
) -> anyhow::Result<()> {
    let limits = runner.limits().clone();
    let tokens = limits.page_size.min(limits.max_tokens_per_step).min(limits.max_context);
    let together = (limits.max_tokens_per_step / tokens).clamp(1, limits.max_seqs_per_step);
    for first in (0..pages).step_by(together) {
        let end = (first + together).min(pages);
        let mut batch = Batch::default();
        for page in first..end {
            append(
                &mut batch,
                page,
                1,
                StepPart { tokens, past: 0, logits: page + 1 == end },
                limits.vocab_size,
            );
        }
        step(runner, &batch)?;
        on_page(end);
        if interrupt.is_set() {
            bail!("interrupted while the cache was being filled");
        }
    }
    Ok(())
}

fn step(runner: &mut dyn Runner, batch: &Batch) -> anyhow::Result<()> {
    runner.submit(batch)?;
    let logits = std::hint::black_box(runner.wait()?);
    runner.reuse(logits);
    Ok(())
}

/// Adds one sequence, whose pages start at `page`. Its tokens are scattered over the vocabulary, as those of a text are.
fn append(batch: &mut Batch, page: usize, pages: usize, part: StepPart, vocab_size: usize) {
    let start = batch.tokens.len();
    let positions = part.past..part.past + part.tokens;
    let token = |position: usize| (page * 7919 + position * 10_007) % vocab_size;
    batch.tokens.extend(positions.clone().map(|position| token(position) as u32));
    batch.positions.extend(positions.map(|position| position as u32));
    let pages = (page..page + pages).map(|page| PageId(page as u32)).collect();
    let logits = if part.logits { Wanted::Row } else { Wanted::Nothing };
    batch.seqs.push(BatchSeq { tokens: start..batch.tokens.len(), pages, logits });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_at_the_largest_step() {
        let steps = Test::Prefill { tokens: 10 }.steps(4);
        let part = |tokens, past, logits| StepPart { tokens, past, logits };
        assert_eq!(steps, [part(4, 0, false), part(4, 4, false), part(2, 8, true)]);
    }

    #[test]
    fn decoding_goes_on_from_its_context() {
        let test = Test::Decode { batch: 3, context: 30, tokens: 5 };
        assert_eq!((test.context(), test.tokens(), test.pages(16)), (35, 15, 9));
        let steps = test.steps(512);
        assert_eq!(steps.len(), 5);
        assert!(steps.iter().all(|step| step.tokens == 1 && step.logits));
        assert_eq!((steps[0].past, steps[4].past), (30, 34));
    }

    #[test]
    fn sequences_do_not_share_pages() {
        let (mut batch, part) = (Batch::default(), StepPart { tokens: 2, past: 3, logits: true });
        append(&mut batch, 0, 2, part, 10);
        append(&mut batch, 2, 2, part, 10);
        assert_eq!(batch.positions, [3, 4, 3, 4]);
        assert_eq!(batch.seqs[1].tokens, 2..4);
        assert_eq!(batch.seqs[1].pages, [PageId(2), PageId(3)]);
        assert!(batch.tokens.iter().all(|&token| token < 10));
    }
}
