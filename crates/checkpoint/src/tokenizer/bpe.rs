//! Byte-pair merging: the same result whether ranks come from a list of merges or from scores.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A run of the text that is one token so far; `id` is [`NO_TOKEN`] when nothing spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol {
    pub(super) id: u32,
    pub(super) start: u32,
    pub(super) len: u32,
}

/// The id of a symbol that no token spells.
pub(super) const NO_TOKEN: u32 = u32::MAX;

/// What two neighbours become, and how urgently: the lowest rank goes first, the leftmost among equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) id: u32,
}

/// Words up to this many symbols are merged by scanning, longer ones with a heap.
const SCAN_LIMIT: usize = 32;

/// Merges neighbours until no pair has a merge. `merge(left, right)` is asked once per pair that comes
/// to be: first for all from the left, then for the left and the right neighbour of each new symbol.
pub(super) fn merge_all(symbols: &mut Vec<Symbol>, merge: impl FnMut(Symbol, Symbol) -> Option<Merge>) {
    if symbols.len() <= SCAN_LIMIT { scan(symbols, merge) } else { heap(symbols, merge) }
}

fn scan(symbols: &mut Vec<Symbol>, mut merge: impl FnMut(Symbol, Symbol) -> Option<Merge>) {
    let mut candidates = [None; SCAN_LIMIT];
    for (slot, pair) in candidates.iter_mut().zip(symbols.windows(2)) {
        *slot = merge(pair[0], pair[1]);
    }
    let mut n = symbols.len();
    while let Some((at, best)) = first_lowest(&candidates[..n.saturating_sub(1)]) {
        symbols[at].id = best.id;
        symbols[at].len += symbols[at + 1].len;
        symbols.copy_within(at + 2..n, at + 1);
        candidates.copy_within(at + 1..n, at);
        n -= 1;
        if at > 0 {
            candidates[at - 1] = merge(symbols[at - 1], symbols[at]);
        }
        candidates[at] = if at + 1 < n { merge(symbols[at], symbols[at + 1]) } else { None };
    }
    symbols.truncate(n);
}

fn first_lowest(candidates: &[Option<Merge>]) -> Option<(usize, Merge)> {
    let mut best: Option<(usize, Merge)> = None;
    for (at, candidate) in candidates.iter().enumerate() {
        if let Some(merge) = candidate
            && best.is_none_or(|(_, lowest)| merge.rank < lowest.rank)
        {
            best = Some((at, *merge));
        }
    }
    best
}

/// A queued merge. It is stale once either side has grown: then their length together differs from `len`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Queued {
    rank: u32,
    left: u32,
    len: u32,
    id: u32,
}

const END: u32 = u32::MAX;

fn heap(symbols: &mut Vec<Symbol>, mut merge: impl FnMut(Symbol, Symbol) -> Option<Merge>) {
    let n = symbols.len() as u32;
    let mut previous: Vec<u32> = (0..n).map(|i| i.wrapping_sub(1)).collect();
    let mut next: Vec<u32> = (1..=n).map(|i| if i == n { END } else { i }).collect();
    let mut queue = BinaryHeap::with_capacity(symbols.len());
    let mut push = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: u32, right: u32| {
        let (a, b) = (symbols[left as usize], symbols[right as usize]);
        if let Some(Merge { rank, id }) = merge(a, b) {
            queue.push(Reverse(Queued { rank, left, len: a.len + b.len, id }));
        }
    };
    for left in 0..n.saturating_sub(1) {
        push(&mut queue, symbols, left, left + 1);
    }
    while let Some(Reverse(top)) = queue.pop() {
        let left = top.left as usize;
        let right = next[left];
        let alive = symbols[left].len != 0 && right != END;
        if !alive || symbols[left].len + symbols[right as usize].len != top.len {
            continue;
        }
        symbols[left].id = top.id;
        symbols[left].len = top.len;
        symbols[right as usize].len = 0;
        let after = next[right as usize];
        next[left] = after;
        if previous[left] != END {
            push(&mut queue, symbols, previous[left], top.left);
        }
        if after != END {
            previous[after as usize] = top.left;
            push(&mut queue, symbols, top.left, after);
        }
    }
    symbols.retain(|symbol| symbol.len != 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Merges over the alphabet 0..4: two neighbours become their sum when the table ranks the pair.
    fn table(ranks: &[Option<u32>]) -> impl Fn(Symbol, Symbol) -> Option<Merge> + '_ {
        |a, b| {
            let rank = (*ranks.get((a.id * 8 + b.id) as usize)?)?;
            Some(Merge { rank, id: a.id + b.id })
        }
    }

    proptest! {
        #[test]
        fn the_scan_and_the_heap_agree(
            ids in prop::collection::vec(0u32..4, 0..SCAN_LIMIT),
            ranks in prop::collection::vec(prop::option::of(0u32..6), 64),
        ) {
            let symbols: Vec<Symbol> =
                ids.iter().enumerate().map(|(i, &id)| Symbol { id, start: i as u32, len: 1 }).collect();
            let (mut scanned, mut heaped) = (symbols.clone(), symbols);
            scan(&mut scanned, table(&ranks));
            heap(&mut heaped, table(&ranks));
            prop_assert_eq!(scanned, heaped);
        }
    }

    #[test]
    fn equal_ranks_merge_from_the_left() {
        let symbols = |n: u32| (0..n).map(|start| Symbol { id: 1, start, len: 1 }).collect::<Vec<_>>();
        for n in [3, 51] {
            let mut word = symbols(n);
            merge_all(&mut word, |a, b| (a.id + b.id == 2).then_some(Merge { rank: 0, id: 2 }));
            let ids: Vec<u32> = word.iter().map(|s| s.id).collect();
            assert_eq!(ids, [vec![2; n as usize / 2], vec![1]].concat());
        }
    }
}
