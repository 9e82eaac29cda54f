//! Activations, rounded to the type of the weights.

use std::marker::PhantomData;

use samebits_tensor::Format;

use super::{
    super::{
        isa::{Isa, Kernel},
        panel::LANES,
        simd::Simd,
    },
    element::{Bf16, Bf16Pairs, Element, F16, F32, pairs, without_tiny},
};
use crate::parts::{Chunks, Parts};

/// Activations `[m, k]` rounded to a weight's type, in tiles of tokens: `[words, tokens]` each. All tiles are as wide as
/// the widest that the instructions take but the last, which is as wide as needed; tokens past the last are zero.
pub struct Floats {
    pub(super) rounding: Rounding,
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) widest: usize,
    words: Vec<u32>,
    /// Bits of the largest magnitude of each tile.
    pub(super) largest: Vec<u32>,
}

impl Default for Floats {
    fn default() -> Self {
        Self::new()
    }
}

impl Floats {
    /// No activations yet.
    pub const fn new() -> Self {
        Floats { rounding: Rounding::F32, m: 0, k: 0, widest: 1, words: Vec::new(), largest: Vec::new() }
    }

    /// Makes room for the activations `[m, k]` of a weight of `format`, read on the given instructions; what is there
    /// already is used again, and its values stay until [`Floats::pieces`] are rounded.
    ///
    /// # Panics
    /// If `format` is no float format.
    pub fn reset(&mut self, isa: Isa, m: usize, k: usize, format: Format) {
        (self.rounding, self.m, self.k, self.widest) = (Rounding::of(isa, format), m, k, widest(isa));
        let words = padded(m, self.widest) * self.rounding.words(k);
        self.words.resize(self.words.len().max(words), 0);
        self.largest.resize(self.largest.len().max(m.div_ceil(self.widest)), 0);
    }

    /// Pieces of about `tokens` tokens with their rows of `x [m, k]`, to be rounded in any order.
    ///
    /// # Panics
    /// If `x` is not as long, or has no columns.
    pub fn pieces<'a>(&'a mut self, x: &'a [f32], tokens: usize) -> FloatPieces<'a> {
        let Floats { rounding, m, k, widest, .. } = *self;
        assert!(x.len() == m * k && k > 0, "activations [{m}, {k}]");
        let tokens = tokens.max(1).next_multiple_of(widest);
        let (per_token, padded) = (rounding.words(k), padded(m, widest));
        let parts = (
            Chunks::new(&mut self.words[..padded * per_token], tokens * per_token),
            Chunks::new(&mut self.largest[..m.div_ceil(widest)], tokens / widest),
        );
        FloatPieces { rounding, k, widest, tokens, x, parts }
    }

    pub(super) fn tiles(&self) -> Tiles {
        Tiles::new(self.m, self.widest)
    }

    /// The words of a tile.
    #[inline(always)]
    pub(super) fn words(&self, tile: Tile) -> &[u32] {
        let per_token = self.rounding.words(self.k);
        &self.words[tile.start * per_token..(tile.start + tile.width) * per_token]
    }
}

/// What activations are rounded to, and what a word of them holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// A column.
    F32,
    /// A column, widened.
    F16,
    /// A column, widened; +0 where the weights have a column of padding.
    Bf16,
    /// Two columns, as the weights do.
    Bf16Pairs,
}

impl Rounding {
    pub(super) fn of(isa: Isa, format: Format) -> Self {
        match format {
            Format::F32 => Rounding::F32,
            Format::F16 => Rounding::F16,
            Format::BF16 if isa.has_bf16_dots() => Rounding::Bf16Pairs,
            Format::BF16 => Rounding::Bf16,
            _ => panic!("{format} is not a float format"),
        }
    }

    /// Words of a token.
    #[inline(always)]
    pub(super) fn words(self, k: usize) -> usize {
        match self {
            Rounding::F32 | Rounding::F16 => k,
            Rounding::Bf16 => k.next_multiple_of(2),
            Rounding::Bf16Pairs => k.div_ceil(2),
        }
    }
}

/// Tokens that there is room for.
fn padded(m: usize, widest: usize) -> usize {
    Tiles::new(m, widest).map(|tile| tile.width).sum()
}

/// Tokens of the widest tile.
pub(super) fn widest(isa: Isa) -> usize {
    struct Widest;
    impl Kernel for Widest {
        type Output = usize;
        #[inline(always)]
        fn run<S: Simd>(self, _: S) -> usize {
            S::DENSE_TOKENS
        }
    }
    isa.run(Widest)
}

/// Some tokens that are computed at once.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) start: usize,
    /// Tokens there is room for.
    pub(super) width: usize,
    /// Tokens.
    pub(super) used: usize,
}

/// Cuts `m` tokens into tiles.
pub(super) struct Tiles {
    pub(super) next: usize,
    pub(super) end: usize,
    pub(super) widest: usize,
}

/// Widths that there are kernels for.
const WIDTHS: [usize; 6] = [1, 2, 4, 6, 8, 12];

impl Tiles {
    fn new(m: usize, widest: usize) -> Self {
        Tiles { next: 0, end: m, widest }
    }
}

impl Iterator for Tiles {
    type Item = Tile;
    #[inline(always)]
    fn next(&mut self) -> Option<Tile> {
        let (start, left) = (self.next, self.end - self.next);
        if left == 0 {
            return None;
        }
        let used = left.min(self.widest);
        let width = WIDTHS.into_iter().find(|&width| width >= used).unwrap_or(used);
        self.next += used;
        Some(Tile { start, width, used })
    }
}

/// [`Floats`] in pieces of whole tiles.
pub struct FloatPieces<'a> {
    rounding: Rounding,
    k: usize,
    widest: usize,
    tokens: usize,
    x: &'a [f32],
    parts: (Chunks<'a, u32>, Chunks<'a, u32>),
}

// SAFETY: the parts of each are disjoint.
unsafe impl<'a> Parts for FloatPieces<'a> {
    type Part = FloatPiece<'a>;

    fn count(&self) -> usize {
        self.parts.count()
    }

    unsafe fn part(&self, i: usize) -> FloatPiece<'a> {
        let FloatPieces { rounding, k, widest, tokens, x, .. } = *self;
        let rows = i * tokens * k..((i + 1) * tokens * k).min(x.len());
        // SAFETY: as the caller promises.
        let (words, largest) = unsafe { self.parts.part(i) };
        FloatPiece { rounding, k, widest, x: &x[rows], words, largest }
    }
}

/// Some tokens of [`Floats`], and the rows that they come from.
pub struct FloatPiece<'a> {
    rounding: Rounding,
    k: usize,
    widest: usize,
    x: &'a [f32],
    words: &'a mut [u32],
    largest: &'a mut [u32],
}

impl FloatPiece<'_> {
    /// Rounds the rows to the type of the weights; what is below [`TINY`](samebits_tensor::contract::TINY) becomes +0.
    pub fn round(self, isa: Isa) {
        match self.rounding {
            Rounding::F32 => isa.run(Round::<F32>(self, PhantomData)),
            Rounding::F16 => isa.run(Round::<F16>(self, PhantomData)),
            Rounding::Bf16 => isa.run(Round::<Bf16<true>>(self, PhantomData)),
            Rounding::Bf16Pairs => isa.run(Round::<Bf16Pairs<true>>(self, PhantomData)),
        }
    }
}

struct Round<'a, E>(FloatPiece<'a>, PhantomData<E>);

impl<E: Element> Kernel for Round<'_, E> {
    const BF16_DOTS: bool = E::BF16_DOTS;
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FloatPiece { rounding, k, widest, x, words, largest } = self.0;
        let per_token = rounding.words(k);
        for (tile, largest) in Tiles::new(x.len() / k, widest).zip(largest) {
            let x = &x[tile.start * k..(tile.start + tile.used) * k];
            let words = &mut words[tile.start * per_token..(tile.start + tile.width) * per_token];
            let top = match tile.width {
                1 => round_row::<S, E>(s, x, words),
                width => round_tile::<S, E>(s, x, k, width, words),
            };
            *largest = s.max_lane_i32(top) as u32;
        }
    }
}

/// One token; returns the largest magnitudes.
#[inline(always)]
fn round_row<S: Simd, E: Element>(s: S, x: &[f32], words: &mut [u32]) -> S::I {
    let mut largest = s.splat_i32(0);
    for (x, words) in x.chunks(LANES * E::COLS / E::VECTORS).zip(words.chunks_mut(LANES)) {
        let (x, rest) = x.split_at(x.len().min(LANES));
        let mut bits = round_lanes::<S, E>(s, x, &mut largest);
        if E::COLS > E::VECTORS {
            let rest = round_lanes::<S, E>(s, rest, &mut largest);
            let [even, odd] = s.even_odd(s.of_bits(bits), s.of_bits(rest));
            bits = pairs(s, s.bits(even), s.bits(odd));
        }
        store_words(s, bits, words);
    }
    largest
}

/// The rows of `x`, side by side; returns the largest magnitudes.
#[inline(always)]
fn round_tile<S: Simd, E: Element>(s: S, x: &[f32], k: usize, width: usize, words: &mut [u32]) -> S::I {
    let mut largest = s.splat_i32(0);
    for (block, words) in words.chunks_mut(LANES * E::VECTORS / E::COLS * width).enumerate() {
        let mut rows = [s.splat_i32(0); LANES];
        let cols = block * LANES..k.min((block + 1) * LANES);
        for (row, x) in rows.iter_mut().zip(x.chunks_exact(k)) {
            *row = round_lanes::<S, E>(s, &x[cols.clone()], &mut largest);
        }
        // Each store's lanes past the width are those that the next one writes.
        let columns = s.transpose(rows);
        for (i, columns) in columns.chunks_exact(E::COLS / E::VECTORS).enumerate() {
            let column = if E::COLS > E::VECTORS { pairs(s, columns[0], columns[1]) } else { columns[0] };
            if let Some(words) = words.get_mut(i * width..) {
                store_words(s, column, words);
            }
        }
    }
    largest
}

/// At most 16 columns, rounded, then +0.
#[inline(always)]
fn round_lanes<S: Simd, E: Element>(s: S, x: &[f32], largest: &mut S::I) -> S::I {
    let x = match x.first_chunk() {
        Some(x) => s.load(x),
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..x.len()].copy_from_slice(x);
            s.load(&lanes)
        }
    };
    let rounded = without_tiny(s, E::round(s, x));
    *largest = s.max_i32(*largest, s.bits(s.abs(rounded)));
    s.bits(rounded)
}

/// 16 words, or as many as there is room for.
#[inline(always)]
fn store_words<S: Simd>(s: S, words: S::I, out: &mut [u32]) {
    let mut lanes = [0; LANES];
    s.store_i32(words, &mut lanes);
    let lanes: &[u32; LANES] = bytemuck::cast_ref(&lanes);
    match out.first_chunk_mut() {
        Some(out) => *out = *lanes,
        None => out.copy_from_slice(&lanes[..out.len()]),
    }
}
