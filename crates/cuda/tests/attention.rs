//! Attention of shapes that the suite has not: wide heads, many query heads for one of the cache, and batches of some sequences with
//! one token and some with more, against the host's plain primitives.

mod common;

use samebits_cpu::Host;
use samebits_tensor::{
    AttentionBatch, AttentionParams, Backend, KvCache, KvShape, Tensor, contract::HEAD_BLOCK,
};

/// Keys before the first new one, and new ones, of each sequence.
type Sequences = &'static [(usize, usize)];

const DECODE: Sequences = &[(0, 1), (127, 1), (128, 1), (700, 1)];
const MIXED: Sequences = &[(5, 1), (300, 40), (255, 1), (0, 3), (129, 1), (120, 17)];
const PREFILL: Sequences = &[(60, 140)];

struct Case {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sequences: Sequences,
    page_size: usize,
    /// Whether tokens of different sequences take turns.
    is_mixed_up: bool,
}

/// Numbers between -1 and 1, the same for the same seed.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..count).map(|_| next() as i32 as f32 / i32::MAX as f32).collect()
}

impl Case {
    fn run<B: Backend>(&self, backend: &B) -> Vec<u32> {
        let lens: Vec<usize> = self.sequences.iter().map(|(past, new)| past + new).collect();
        let longest = lens.iter().copied().max().unwrap_or(0);
        let max_pages = longest.div_ceil(self.page_size);
        let shape = KvShape {
            pages: 1 + max_pages * lens.len(),
            page_size: self.page_size,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        // Pages are dealt to the sequences in turn.
        let page = |sequence: usize, entry: usize| 1 + entry * lens.len() + sequence;
        let slot = |sequence: usize, position: usize| {
            (page(sequence, position / self.page_size) * self.page_size + position % self.page_size) as i32
        };
        let all: Vec<i32> = lens
            .iter()
            .enumerate()
            .flat_map(|(s, &len)| (0..len).map(move |p| (s, p)))
            .map(|(s, p)| slot(s, p))
            .collect();
        let mut cache = KvCache::new(backend, shape).unwrap();
        let keys = |seed, scale: f32| {
            let values: Vec<f32> =
                numbers(seed, all.len() * self.kv_heads * self.head_dim).iter().map(|x| x * scale).collect();
            Tensor::of(backend, [all.len(), self.kv_heads, self.head_dim], &values).unwrap()
        };
        let slots = Tensor::of(backend, [all.len()], &all).unwrap();
        backend.store_kv(&mut cache, &keys(1, 3.0), &keys(2, 1.0), &slots).unwrap();
        let mut new: Vec<(i32, i32)> = self
            .sequences
            .iter()
            .enumerate()
            .flat_map(|(s, &(past, new))| (past..past + new).map(move |position| (s as i32, position as i32)))
            .collect();
        if self.is_mixed_up {
            new.sort_by_key(|&(sequence, position)| (position * 7 % 11, sequence));
        }
        let of = |numbers: Vec<i32>, dims: &[usize]| Tensor::of(backend, dims, &numbers).unwrap();
        let tables: Vec<i32> = (0..lens.len())
            .flat_map(|s| (0..max_pages).map(move |entry| (s, entry)))
            .map(|(s, e)| page(s, e) as i32)
            .collect();
        let batch = AttentionBatch {
            positions: of(new.iter().map(|(_, position)| *position).collect(), &[new.len()]),
            sequences: of(new.iter().map(|(sequence, _)| *sequence).collect(), &[new.len()]),
            block_tables: of(tables, &[lens.len(), max_pages]),
            max_context: longest,
        };
        let heads = self.kv_heads * self.group;
        let q = Tensor::of(
            backend,
            [new.len(), heads, self.head_dim],
            &numbers(3, new.len() * heads * self.head_dim),
        )
        .unwrap();
        let params = AttentionParams {
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            soft_cap: self.soft_cap,
        };
        let out = backend.attention(&q, &cache, &batch, &params).unwrap().download().unwrap();
        out.bytes().as_chunks::<4>().0.iter().map(|bits| u32::from_le_bytes(*bits)).collect()
    }

    fn check(&self) {
        let (found, expected) = (self.run(&common::cuda()), self.run(&Host));
        let first = found.iter().zip(&expected).position(|(a, b)| a != b);
        let Case { kv_heads, group, head_dim, window, sequences, .. } = self;
        assert_eq!(first, None, "{kv_heads} x {group} heads of {head_dim}, window {window:?}, {sequences:?}");
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn heads_of_every_width() {
    for (i, head_dim) in [16, 48, 64, 80, 96, 112, 128, 192, 256].into_iter().enumerate() {
        let window = [None, Some(100), Some(1)][i % 3];
        let soft_cap = (i % 2 == 1).then_some(20.0);
        for sequences in [DECODE, MIXED] {
            let case = Case {
                kv_heads: 2,
                group: 1 + i % 4,
                head_dim,
                window,
                soft_cap,
                sequences,
                page_size: 16,
                is_mixed_up: false,
            };
            case.check();
        }
    }
    assert_eq!(HEAD_BLOCK, 32, "half a block is among the widths above");
}

#[test]
fn groups_of_every_size() {
    for (i, group) in [1, 7, 8, 9, 16, 33, 64, 65].into_iter().enumerate() {
        let sequences = [DECODE, MIXED, PREFILL][i % 3];
        Case {
            kv_heads: 1,
            group,
            head_dim: 64,
            window: None,
            soft_cap: None,
            sequences,
            page_size: 128,
            is_mixed_up: false,
        }
        .check();
        Case {
            kv_heads: 3,
            group,
            head_dim: 32,
            window: Some(130),
            soft_cap: None,
            sequences: DECODE,
            page_size: 1,
            is_mixed_up: false,
        }
        .check();
    }
}

#[test]
fn so_many_blocks_that_tiles_are_done_one_after_the_other() {
    let sequences: Sequences = &[(130, 1); 257];
    Case {
        kv_heads: 2,
        group: 2,
        head_dim: 32,
        window: None,
        soft_cap: None,
        sequences,
        page_size: 64,
        is_mixed_up: false,
    }
    .check();
    let sequences: Sequences = &[(200, 130), (3, 1), (256, 2)];
    Case {
        kv_heads: 12,
        group: 8,
        head_dim: 128,
        window: None,
        soft_cap: None,
        sequences,
        page_size: 64,
        is_mixed_up: false,
    }
    .check();
}

#[test]
fn tokens_in_any_order() {
    for (head_dim, sequences) in [(64, MIXED), (128, &[(9, 30), (140, 31)])] {
        let (window, soft_cap, is_mixed_up) = (Some(90), None, true);
        Case { kv_heads: 2, group: 3, head_dim, window, soft_cap, sequences, page_size: 32, is_mixed_up }
            .check();
    }
}
