//! SentencePiece's unigram model: the most probable way to cut a text into pieces.

use super::vocab::{Kind, Vocab};

/// Below the worst piece by this much lies a character that no piece spells (SentencePiece's `kUnkPenalty`).
const UNKNOWN_PENALTY: f32 = 10.0;

/// Scores, and the pieces sorted by their bytes: a sorted list is a trie that takes no memory.
#[derive(Debug)]
pub(super) struct Unigram {
    scores: Vec<f32>,
    sorted: Vec<u32>,
    /// Where pieces that start with each byte begin in `sorted`; 257 offsets.
    starts: Vec<u32>,
    unknown_score: f32,
}

/// A stretch of the text and the piece that spells it, if any.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) id: Option<u32>,
}

#[derive(Clone, Copy)]
struct Best {
    score: f32,
    start: Option<usize>,
    id: Option<u32>,
}

impl Unigram {
    /// `scores` are log probabilities, one a token.
    pub(super) fn new(vocab: &Vocab, mut scores: Vec<f32>) -> Self {
        let text = |id: &u32| vocab.text(*id).unwrap_or_default();
        let normal = || vocab.of_kind(Kind::Normal).map(|id| scores[id as usize]);
        let (lowest, highest) = (normal().fold(f32::MAX, f32::min), normal().fold(f32::MIN, f32::max));
        for id in vocab.of_kind(Kind::UserDefined) {
            scores[id as usize] = text(&id).len() as f32 * highest - 0.1;
        }
        let mut sorted: Vec<u32> =
            vocab.of_kind(Kind::Normal).chain(vocab.of_kind(Kind::UserDefined)).collect();
        sorted.retain(|id| !text(id).is_empty());
        sorted.sort_unstable_by_key(text);
        let starts = (0..=256u32)
            .map(|byte| sorted.partition_point(|id| u32::from(text(id).as_bytes()[0]) < byte) as u32)
            .collect();
        Self { scores, sorted, starts, unknown_score: lowest - UNKNOWN_PENALTY }
    }

    /// The best cut of `text`; scores add in `f32` from the left, and the first found wins a tie.
    pub(super) fn cut(&self, vocab: &Vocab, text: &str) -> Vec<Piece> {
        let mut best = vec![Best { score: 0.0, start: None, id: None }; text.len() + 1];
        for (start, c) in text.char_indices() {
            let here = best[start].score;
            let single = start + c.len_utf8();
            let mut single_found = false;
            self.prefixes(vocab, &text.as_bytes()[start..], |len, id| {
                let end = start + len;
                single_found |= end == single;
                best[end].offer(self.scores[id as usize] + here, start, Some(id));
            });
            if !single_found {
                best[single].offer(self.unknown_score + here, start, None);
            }
        }
        backtrack(&best, text.len())
    }

    /// Calls `found(length, id)` for every piece that `text` starts with, shortest first.
    fn prefixes(&self, vocab: &Vocab, text: &[u8], mut found: impl FnMut(usize, u32)) {
        let Some(&first) = text.first() else { return };
        let range = |byte: usize| self.starts[byte] as usize;
        let mut pieces = &self.sorted[range(first.into())..range(usize::from(first) + 1)];
        for len in 1..=text.len() {
            let bytes = |id: &u32| vocab.text(*id).unwrap_or_default().as_bytes();
            let last = text[len - 1];
            let low = pieces.partition_point(|id| bytes(id).get(len - 1).is_none_or(|&b| b < last));
            let high = pieces.partition_point(|id| bytes(id).get(len - 1).is_none_or(|&b| b <= last));
            pieces = &pieces[low..high];
            match pieces.first() {
                None => return,
                Some(&id) if bytes(&id).len() == len => found(len, id),
                Some(_) => {}
            }
        }
    }
}

impl Best {
    fn offer(&mut self, score: f32, start: usize, id: Option<u32>) {
        if self.start.is_none() || score > self.score {
            *self = Self { score, start: Some(start), id };
        }
    }
}

fn backtrack(best: &[Best], mut end: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    while let Some(start) = best[end].start {
        pieces.push(Piece { start, end, id: best[end].id });
        end = start;
    }
    pieces.reverse();
    pieces
}
