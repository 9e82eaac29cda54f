use samebits_engine::{Batch, BatchSeq};
use samebits_nn::Step;
use samebits_tensor::{AttentionBatch, Backend, Result, Tensor};

/// Uploads a batch as a model's inputs. Block tables are as wide as the longest one; entries past a sequence's end
/// name page 0, whose keys no query of that sequence sees.
///
/// # Errors
/// If the backend cannot take them.
pub fn step_inputs<B: Backend>(backend: &B, batch: &Batch, page_size: usize) -> Result<Step<B>> {
    let column = |values: &[i32]| Tensor::of(backend, [values.len()], values);
    let width = batch.seqs.iter().map(|seq| seq.pages.len()).max().unwrap_or(0);
    let tables: Vec<i32> = batch.seqs.iter().flat_map(|seq| padded_table(seq, width)).collect();
    let sequences =
        batch.seqs.iter().enumerate().flat_map(|(i, seq)| seq.tokens.clone().map(move |_| i as i32));
    let positions: Vec<i32> = batch.positions.iter().map(|&position| position as i32).collect();
    let logits = batch.seqs.iter().filter(|seq| seq.logits).map(|seq| seq.tokens.end as i32 - 1);
    Ok(Step {
        tokens: column(&batch.tokens.iter().map(|&token| token as i32).collect::<Vec<_>>())?,
        slots: column(&slots(batch, page_size))?,
        attention: AttentionBatch {
            positions: column(&positions)?,
            sequences: column(&sequences.collect::<Vec<_>>())?,
            block_tables: Tensor::of(backend, [batch.seqs.len(), width], &tables)?,
            max_context: positions.iter().max().map_or(0, |&last| last as usize + 1),
        },
        logits: column(&logits.collect::<Vec<_>>())?,
    })
}

fn padded_table(seq: &BatchSeq, width: usize) -> impl Iterator<Item = i32> {
    seq.pages.iter().map(|page| page.0 as i32).chain(std::iter::repeat(0)).take(width)
}

/// Cache slot of each token: `page * page_size + offset`.
fn slots(batch: &Batch, page_size: usize) -> Vec<i32> {
    let slot = |seq: &BatchSeq, position: u32| {
        let page = seq.pages[position as usize / page_size].0 as usize;
        (page * page_size + position as usize % page_size) as i32
    };
    batch
        .seqs
        .iter()
        .flat_map(|seq| batch.positions[seq.tokens.clone()].iter().map(move |&position| slot(seq, position)))
        .collect()
}

#[cfg(test)]
mod tests {
    use samebits_engine::PageId;

    use super::*;

    #[test]
    fn a_slot_is_its_page_and_offset() {
        let seq = BatchSeq { tokens: 0..3, pages: vec![PageId(7), PageId(2)], logits: true };
        let batch = Batch { tokens: vec![1, 2, 3], positions: vec![15, 16, 17], seqs: vec![seq] };
        assert_eq!(slots(&batch, 16), [7 * 16 + 15, 2 * 16, 2 * 16 + 1]);
    }

    #[test]
    fn tables_are_padded_with_page_0() {
        let seq = BatchSeq { tokens: 0..1, pages: vec![PageId(7)], logits: true };
        assert_eq!(padded_table(&seq, 3).collect::<Vec<_>>(), [7, 0, 0]);
    }
}
