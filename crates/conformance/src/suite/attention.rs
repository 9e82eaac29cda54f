//! The cache and attention over it.

use samebits_tensor::{AttentionParams, DType, HostTensor, KvShape};

use super::{
    rows::angles,
    values::{bytes, case, f32s, i32s, indices},
};
use crate::{AttentionSteps, Case, Op, Rng};

const PAGE_SIZES: [usize; 4] = [16, 32, 64, 128];
const HEAD_DIMS: [usize; 6] = [1, 24, 32, 64, 80, 128];
const GROUPS: [usize; 3] = [1, 3, 4];

pub(super) fn store_kv() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, page_size) in PAGE_SIZES.into_iter().enumerate() {
        for (j, head_dim) in HEAD_DIMS.into_iter().enumerate() {
            let kv = KvShape { pages: 3, page_size, kv_heads: [1, 3, 2][(i + j) % 3], head_dim };
            let t = [0, 1, 7, 17][(i + j) % 4].min(kv.pages * page_size);
            cases.push(store_case(kv, t));
        }
    }
    cases
}

fn store_case(kv: KvShape, t: usize) -> Case {
    let name = format!("store_kv/{}/t={t}", kv_name(kv));
    let mut rng = Rng::named(&name);
    let slots = indices(rng.order(kv.pages * kv.page_size).into_iter().take(t));
    let mut values = |factor: f32| {
        let values: Vec<f32> =
            rng.bells(t * kv.kv_heads * kv.head_dim).into_iter().map(|x| x * factor).collect();
        f32s([t, kv.kv_heads, kv.head_dim], &values)
    };
    let mut inputs = vec![values(1.0), values(1e-3), slots];
    inputs.extend(CacheBytes::spoiled(kv, &mut rng).tensors());
    case(name, Op::StoreKv(kv), inputs)
}

/// Heads of which all channels are rotated or some, beside one key-value head or several.
pub(super) fn rotate_and_store() -> Vec<Case> {
    let shapes = [
        (0, 2, 2, 8, 4),
        (1, 1, 1, 2, 1),
        (1, 9, 3, 64, 32),
        (3, 4, 1, 80, 16),
        (17, 6, 2, 128, 64),
        (5, 2, 2, 24, 12),
        (7, 3, 1, 33, 3),
        (2, 4, 4, 256, 128),
    ];
    let cases = shapes.into_iter().enumerate();
    cases
        .map(|(i, (t, heads, kv_heads, head_dim, half))| {
            let kv = KvShape { pages: 3, page_size: PAGE_SIZES[i % 4], kv_heads, head_dim };
            rotated_case(kv, t, heads, half)
        })
        .collect()
}

fn rotated_case(kv: KvShape, t: usize, heads: usize, half: usize) -> Case {
    let name = format!("rotate_and_store/{}/t={t},heads={heads},rotary_dim={}", kv_name(kv), 2 * half);
    let mut rng = Rng::named(&name);
    let mut values = |heads| f32s([t, heads, kv.head_dim], &rng.bells(t * heads * kv.head_dim));
    let mut inputs = vec![values(heads), values(kv.kv_heads), values(kv.kv_heads)];
    inputs.push(indices((0..t).map(|_| rng.below(ANGLES))));
    inputs.extend(angles(&mut rng, ANGLES, half));
    inputs.push(indices(rng.order(kv.pages * kv.page_size).into_iter().take(t)));
    inputs.extend(CacheBytes::spoiled(kv, &mut rng).tensors());
    case(name, Op::RotateAndStore(kv), inputs)
}

/// Positions that a table has.
const ANGLES: usize = 40;

/// What an attention case draws.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) name: String,
    pub(super) page_size: usize,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) params: AttentionParams,
    /// Tokens in the cache and new tokens of each sequence.
    pub(super) sequences: Vec<(usize, usize)>,
    /// Added to the smallest bound of positions that holds every token.
    pub(super) extra_context: usize,
    /// Factor on the queries: large ones make one key take all the weight.
    pub(super) sharpness: f32,
}

pub(super) fn attention() -> Vec<Case> {
    setups().iter().map(Setup::case).collect()
}

/// Every page size with every head size; groups, windows, caps and batches in turn.
fn setups() -> Vec<Setup> {
    let batches: [&[(usize, usize)]; 7] = [
        &[(0, 1)],
        &[(0, 1), (1, 1), (127, 1)],
        &[(128, 1), (129, 1), (5, 2)],
        &[(0, 19), (300, 1), (126, 5)],
        &[(250, 7)],
        &[(0, 0)],
        &[(3, 1), (128, 3), (0, 130)],
    ];
    let mut setups = Vec::new();
    for (i, head_dim) in HEAD_DIMS.into_iter().enumerate() {
        for (j, page_size) in PAGE_SIZES.into_iter().enumerate() {
            let turn = 4 * i + j;
            let window = [None, Some(1), None, Some(64), Some(200)][turn % 5];
            let soft_cap = [None, None, Some(30.0)][turn % 3];
            let scale = 1.0 / (head_dim as f32).sqrt();
            let setup = Setup {
                name: String::new(),
                page_size,
                kv_heads: [1, 2, 3][(i + 2 * j) % 3],
                group: GROUPS[turn % 3],
                head_dim,
                params: AttentionParams { scale, window, soft_cap },
                sequences: batches[turn % batches.len()].to_vec(),
                extra_context: [0, 1, 128, 37][(i + j) % 4],
                sharpness: [1.0, 0.0, 20.0][(i + j) % 3],
            };
            setups.push(setup.named("attention"));
        }
    }
    setups
}

impl Setup {
    pub(super) fn named(mut self, group: &str) -> Self {
        let AttentionParams { window, soft_cap, .. } = self.params;
        self.name = format!(
            "{group}/page={},heads={}x{},head_dim={},window={},cap={},context+{},sharpness={}/{}",
            self.page_size,
            self.kv_heads,
            self.group,
            self.head_dim,
            window.map_or("none".into(), |window| window.to_string()),
            soft_cap.map_or("none".into(), |cap| cap.to_string()),
            self.extra_context,
            self.sharpness,
            self.sequences.iter().map(|(past, new)| format!("{past}+{new}")).collect::<Vec<_>>().join(","),
        );
        self
    }

    /// All tokens in one step. Pages are scattered; page 0 and every slot that no token fills hold NaN scales.
    pub(super) fn case(&self) -> Case {
        let mut rng = Rng::named(&self.name);
        let lens: Vec<usize> = self.sequences.iter().map(|(past, new)| past + new).collect();
        let longest = lens.iter().copied().max().unwrap_or(0).max(1);
        let max_context = longest + self.extra_context;
        let tables = Tables::draw(&mut rng, &lens, max_context, self.page_size);
        let kv = KvShape {
            pages: tables.pages,
            page_size: self.page_size,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        let mut cache = CacheBytes::spoiled(kv, &mut rng);
        for (sequence, &(past, _)) in self.sequences.iter().enumerate() {
            (0..past).for_each(|position| cache.fill(kv, tables.slot(sequence, position), &mut rng));
        }
        let new = |&(sequence, (past, new)): &(usize, (usize, usize))| {
            (past..past + new).map(move |position| (sequence, position)).collect::<Vec<_>>()
        };
        let tokens: Vec<(usize, usize)> =
            self.sequences.iter().copied().enumerate().flat_map(|sequence| new(&sequence)).collect();
        let t = tokens.len();
        let mut values = |heads: usize, factor: f32| {
            let values: Vec<f32> =
                rng.bells(t * heads * self.head_dim).into_iter().map(|x| x * factor).collect();
            f32s([t, heads, self.head_dim], &values)
        };
        let mut inputs = vec![values(self.kv_heads * self.group, self.sharpness), values(self.kv_heads, 1.0)];
        inputs.push(values(self.kv_heads, 1.0));
        inputs.push(indices(tokens.iter().map(|&(sequence, position)| tables.slot(sequence, position))));
        inputs.push(indices(tokens.iter().map(|&(_, position)| position)));
        inputs.push(indices(tokens.iter().map(|&(sequence, _)| sequence)));
        inputs.push(tables.tensor());
        inputs.extend(cache.tensors());
        let steps =
            AttentionSteps { kv, params: self.params, steps: std::iter::once(0..t).collect(), max_context };
        case(self.name.clone(), Op::Attention(steps), inputs)
    }
}

/// Pages of each sequence, scattered over the cache; entries past a sequence's end are page 0.
struct Tables {
    rows: Vec<Vec<usize>>,
    page_size: usize,
    pages: usize,
}

impl Tables {
    fn draw(rng: &mut Rng, lens: &[usize], max_context: usize, page_size: usize) -> Self {
        let width = max_context.div_ceil(page_size) + 1;
        let used: usize = lens.iter().map(|len| len.div_ceil(page_size)).sum();
        let pages = used + 3;
        let mut free = rng.order(pages - 1).into_iter().map(|page| page + 1);
        let row = |&len: &usize| {
            let mut row: Vec<usize> = free.by_ref().take(len.div_ceil(page_size)).collect();
            row.resize(width, 0);
            row
        };
        let rows = lens.iter().map(row).collect();
        Tables { rows, page_size, pages }
    }

    fn slot(&self, sequence: usize, position: usize) -> usize {
        self.rows[sequence][position / self.page_size] * self.page_size + position % self.page_size
    }

    fn tensor(&self) -> HostTensor {
        let width = self.rows.first().map_or(0, Vec::len);
        let pages: Vec<i32> = self.rows.iter().flatten().map(|&page| page as i32).collect();
        i32s([self.rows.len(), width], &pages)
    }
}

/// A cache on the host.
struct CacheBytes {
    kv: KvShape,
    k: Vec<u8>,
    k_scale: Vec<f32>,
    v: Vec<u8>,
    v_scale: Vec<f32>,
}

impl CacheBytes {
    /// Random bytes with NaN scales, which must not reach any visible result.
    fn spoiled(kv: KvShape, rng: &mut Rng) -> Self {
        CacheBytes {
            kv,
            k: rng.bytes(kv.rows() * kv.head_dim),
            k_scale: vec![f32::NAN; kv.rows() * kv.head_blocks()],
            v: rng.bytes(kv.rows() * kv.head_dim),
            v_scale: vec![f32::NAN; kv.rows()],
        }
    }

    /// A token as quantisation would leave it: integers in -127..=127; some scales are zero.
    fn fill(&mut self, kv: KvShape, slot: usize, rng: &mut Rng) {
        for head in 0..kv.kv_heads {
            let row = ((slot / kv.page_size) * kv.kv_heads + head) * kv.page_size + slot % kv.page_size;
            let integer = |rng: &mut Rng| (rng.below(255) as i32 - 127) as u8;
            for channel in row * kv.head_dim..(row + 1) * kv.head_dim {
                (self.k[channel], self.v[channel]) = (integer(rng), integer(rng));
            }
            for block in row * kv.head_blocks()..(row + 1) * kv.head_blocks() {
                self.k_scale[block] = if rng.below(20) == 0 { 0.0 } else { 0.02 + 0.01 * rng.unit() };
            }
            self.v_scale[row] = [0.0, 1e-4, 0.01, 0.02, 0.03][rng.below(5)] * (1.5 + rng.unit());
        }
    }

    fn tensors(self) -> [HostTensor; 4] {
        let (rows, kv) = (self.kv.rows(), self.kv);
        [
            bytes([rows, kv.head_dim], DType::I8, self.k),
            f32s([rows, kv.head_blocks()], &self.k_scale),
            bytes([rows, kv.head_dim], DType::I8, self.v),
            f32s([rows, 1], &self.v_scale),
        ]
    }
}

fn kv_name(kv: KvShape) -> String {
    format!("pages={}x{},kv_heads={},head_dim={}", kv.pages, kv.page_size, kv.kv_heads, kv.head_dim)
}
