use samebits_engine::{Batch, BatchSeq, Wanted};
use samebits_nn::Step;
use samebits_tensor::{AttentionBatch, Backend, HostTensor, Result, StepInput, StepKey, Tensor, try_map};

/// Uploads a batch as a model's inputs. Block tables are as wide as the longest one; entries past a sequence's end
/// name page 0, whose keys no query of that sequence sees.
///
/// # Errors
/// If the backend cannot take them.
pub fn step_inputs<B: Backend>(backend: &B, batch: &Batch, page_size: usize) -> Result<Step<B>> {
    let mut inputs = Inputs::default();
    inputs.fill(batch, page_size, 0);
    Ok(inputs.step(&try_map(inputs.parts(), |input| Tensor::of(backend, input.dims, input.values))?))
}

/// A batch as a model's inputs, in vectors that are used again.
#[derive(Default)]
pub(crate) struct Inputs {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    /// Cache slot of each token: `page * page_size + offset`.
    slots: Vec<i32>,
    sequences: Vec<i32>,
    /// `[sequences, width]`.
    tables: Vec<i32>,
    shape: [usize; 2],
    logits: Vec<i32>,
    /// Extents of the other inputs, for as long as these are given away.
    tokens_len: [usize; 1],
    logits_len: [usize; 1],
    /// Positions that may hold a visible key.
    max_context: usize,
}

impl Inputs {
    /// Takes over a batch. Block tables are at least as wide as asked for; all positions of wider ones may hold a key then.
    pub(crate) fn fill(&mut self, batch: &Batch, page_size: usize, least_width: usize) {
        self.clear();
        self.tokens.extend(batch.tokens.iter().map(|&token| token as i32));
        self.positions.extend(batch.positions.iter().map(|&position| position as i32));
        let longest = batch.seqs.iter().map(|seq| seq.pages.len()).max().unwrap_or(0);
        let width = longest.max(least_width);
        self.shape = [batch.seqs.len(), width];
        self.max_context = match least_width {
            0 => self.positions.iter().max().map_or(0, |&last| last as usize + 1),
            _ => width * page_size,
        };
        for (i, seq) in batch.seqs.iter().enumerate() {
            let positions = &batch.positions[seq.tokens.clone()];
            self.slots.extend(positions.iter().map(|&position| slot(seq, position as usize, page_size)));
            self.sequences.extend(positions.iter().map(|_| i as i32));
            self.tables.extend(seq.pages.iter().map(|page| page.0 as i32));
            self.tables.resize((i + 1) * width, 0);
            if seq.logits != Wanted::Nothing {
                self.logits.push(seq.tokens.end as i32 - 1);
            }
        }
        (self.tokens_len, self.logits_len) = ([self.tokens.len()], [self.logits.len()]);
    }

    /// Whether each sequence has one token, as where all decode.
    pub(crate) fn is_one_token_each(&self) -> bool {
        self.tokens.len() == self.shape[0]
    }

    /// Runs a step on a backend, which may have recorded one of this key.
    pub(crate) fn run<B: Backend>(
        &self,
        backend: &B,
        owner: Option<u64>,
        mut run: impl FnMut(&Step<B>) -> Result<Tensor<B>>,
    ) -> Result<Tensor<B>> {
        let key = owner.map(|owner| StepKey { owner, max_context: self.max_context });
        backend.step(key, self.parts(), |parts| run(&self.step(parts)))
    }

    /// Tokens, slots, positions, sequences, block tables and indices of logits.
    fn parts(&self) -> [StepInput<'_>; 6] {
        let column = |values| StepInput { dims: &self.tokens_len, values };
        [
            column(&self.tokens),
            column(&self.slots),
            column(&self.positions),
            column(&self.sequences),
            StepInput { dims: &self.shape, values: &self.tables },
            StepInput { dims: &self.logits_len, values: &self.logits },
        ]
    }

    /// The step of these parts on a backend.
    fn step<B: Backend>(&self, parts: &[Tensor<B>; 6]) -> Step<B> {
        let [tokens, slots, positions, sequences, block_tables, logits] = parts.clone();
        let max_context = self.max_context;
        let attention = AttentionBatch { positions, sequences, block_tables, max_context };
        Step { tokens, slots, attention, logits }
    }

    /// Tokens, slots, positions, sequences, block tables and indices of logits, padded. The tokens of padding are token 0 at
    /// position 0 of a sequence behind all others, whose page is nobody's; so is every page past a sequence's own.
    pub(crate) fn padded(&self, padding: &Padding) -> Result<[HostTensor; 6]> {
        let column = |values: &[i32], extent: usize, filler: i32| {
            let mut values = values.to_vec();
            values.resize(extent, filler);
            HostTensor::of([extent], &values)
        };
        let (tokens, page) = (padding.tokens, padding.page as i32);
        let mut tables = vec![page; padding.sequences * padding.width];
        let [_, width] = self.shape;
        for (row, pages) in tables.chunks_mut(padding.width).zip(self.tables.chunks(width.max(1))) {
            row.iter_mut().zip(pages).for_each(|(to, &from)| *to = from);
        }
        Ok([
            column(&self.tokens, tokens, 0)?,
            column(&self.slots, tokens, page * padding.page_size as i32)?,
            column(&self.positions, tokens, 0)?,
            column(&self.sequences, tokens, padding.sequences as i32 - 1)?,
            HostTensor::of([padding.sequences, padding.width], &tables)?,
            column(&self.logits, padding.logits, 0)?,
        ])
    }

    fn clear(&mut self) {
        let Inputs { tokens, positions, slots, sequences, tables, logits, .. } = self;
        [tokens, positions, slots, sequences, tables, logits].into_iter().for_each(Vec::clear);
    }
}

/// What a step is padded to.
pub(crate) struct Padding {
    /// Tokens.
    pub(crate) tokens: usize,
    /// Tokens whose logits are wanted.
    pub(crate) logits: usize,
    /// Rows of the block tables; the last is the sequence of the padding.
    pub(crate) sequences: usize,
    /// Pages in a row.
    pub(crate) width: usize,
    /// The page that nobody owns.
    pub(crate) page: usize,
    /// Tokens of a page.
    pub(crate) page_size: usize,
}

fn slot(seq: &BatchSeq, position: usize, page_size: usize) -> i32 {
    (seq.pages[position / page_size].0 as usize * page_size + position % page_size) as i32
}

#[cfg(test)]
mod tests {
    use samebits_engine::PageId;

    use super::*;

    fn inputs(batch: &Batch) -> Inputs {
        let mut inputs = Inputs::default();
        // What was there before does not show.
        inputs.fill(&Batch { tokens: vec![9], positions: vec![0], seqs: vec![seq(0..1, &[3, 4])] }, 16, 0);
        inputs.fill(batch, 16, 0);
        inputs
    }

    fn seq(tokens: std::ops::Range<usize>, pages: &[u32]) -> BatchSeq {
        BatchSeq { tokens, pages: pages.iter().map(|&page| PageId(page)).collect(), logits: Wanted::Row }
    }

    #[test]
    fn a_slot_is_its_page_and_offset() {
        let seqs = vec![seq(0..3, &[7, 2])];
        let inputs = inputs(&Batch { tokens: vec![1, 2, 3], positions: vec![15, 16, 17], seqs });
        assert_eq!(inputs.slots, [7 * 16 + 15, 2 * 16, 2 * 16 + 1]);
        assert_eq!((inputs.tokens, inputs.logits), (vec![1, 2, 3], vec![2]));
    }

    #[test]
    fn padding_is_a_sequence_of_its_own() {
        let seqs = vec![seq(0..1, &[7]), seq(1..3, &[1, 2])];
        let inputs = inputs(&Batch { tokens: vec![4, 5, 6], positions: vec![0, 15, 16], seqs });
        let padding = Padding { tokens: 4, logits: 4, sequences: 3, width: 4, page: 9, page_size: 16 };
        let padded = inputs.padded(&padding).unwrap().map(|tensor| tensor.to_vec::<i32>().unwrap());
        let [tokens, slots, positions, sequences, tables, logits] = padded;
        assert_eq!((tokens, slots), (vec![4, 5, 6, 0], vec![7 * 16, 16 + 15, 2 * 16, 9 * 16]));
        assert_eq!((positions, sequences), (vec![0, 15, 16, 0], vec![0, 1, 1, 2]));
        assert_eq!(tables, [7, 0, 9, 9, 1, 2, 9, 9, 9, 9, 9, 9]);
        assert_eq!(logits, [0, 2, 0, 0]);
    }

    #[test]
    fn tables_are_padded_with_page_0() {
        let seqs = vec![seq(0..1, &[7]), seq(1..2, &[1, 2, 3])];
        let inputs = inputs(&Batch { tokens: vec![1, 2], positions: vec![0, 33], seqs });
        assert_eq!((inputs.tables, inputs.shape), (vec![7, 0, 0, 1, 2, 3], [2, 3]));
        assert_eq!((inputs.sequences, inputs.logits), (vec![0, 1], vec![0, 1]));
        assert_eq!(inputs.max_context, 34);
    }

    #[test]
    fn wider_tables_are_padded_with_page_0_and_looked_at() {
        let batch = Batch { tokens: vec![1], positions: vec![16], seqs: vec![seq(0..1, &[7, 2])] };
        let mut inputs = Inputs::default();
        inputs.fill(&batch, 16, 4);
        assert_eq!((inputs.tables, inputs.shape, inputs.max_context), (vec![7, 2, 0, 0], [1, 4], 64));
    }
}
