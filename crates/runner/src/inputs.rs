use samebits_engine::{Batch, BatchSeq};
use samebits_nn::Step;
use samebits_tensor::{AttentionBatch, Backend, HostTensor, Result, Tensor};

/// Uploads a batch as a model's inputs. Block tables are as wide as the longest one; entries past a sequence's end
/// name page 0, whose keys no query of that sequence sees.
///
/// # Errors
/// If the backend cannot take them.
pub fn step_inputs<B: Backend>(backend: &B, batch: &Batch, page_size: usize) -> Result<Step<B>> {
    let mut inputs = Inputs::default();
    inputs.fill(batch, page_size);
    inputs.upload(backend)
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
}

impl Inputs {
    /// Takes over a batch.
    pub(crate) fn fill(&mut self, batch: &Batch, page_size: usize) {
        self.clear();
        self.tokens.extend(batch.tokens.iter().map(|&token| token as i32));
        self.positions.extend(batch.positions.iter().map(|&position| position as i32));
        let width = batch.seqs.iter().map(|seq| seq.pages.len()).max().unwrap_or(0);
        self.shape = [batch.seqs.len(), width];
        for (i, seq) in batch.seqs.iter().enumerate() {
            let positions = &batch.positions[seq.tokens.clone()];
            self.slots.extend(positions.iter().map(|&position| slot(seq, position as usize, page_size)));
            self.sequences.extend(positions.iter().map(|_| i as i32));
            self.tables.extend(seq.pages.iter().map(|page| page.0 as i32));
            self.tables.resize((i + 1) * width, 0);
            if seq.logits {
                self.logits.push(seq.tokens.end as i32 - 1);
            }
        }
    }

    /// The tensors.
    pub(crate) fn upload<B: Backend>(&self, backend: &B) -> Result<Step<B>> {
        let column = |values: &[i32]| Tensor::of(backend, [values.len()], values);
        Ok(Step {
            tokens: column(&self.tokens)?,
            slots: column(&self.slots)?,
            attention: AttentionBatch {
                positions: column(&self.positions)?,
                sequences: column(&self.sequences)?,
                block_tables: Tensor::of(backend, self.shape, &self.tables)?,
                max_context: self.positions.iter().max().map_or(0, |&last| last as usize + 1),
            },
            logits: column(&self.logits)?,
        })
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
        inputs.fill(&Batch { tokens: vec![9], positions: vec![0], seqs: vec![seq(0..1, &[3, 4])] }, 16);
        inputs.fill(batch, 16);
        inputs
    }

    fn seq(tokens: std::ops::Range<usize>, pages: &[u32]) -> BatchSeq {
        BatchSeq { tokens, pages: pages.iter().map(|&page| PageId(page)).collect(), logits: true }
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
    }
}
