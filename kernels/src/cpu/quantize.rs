//! Quantised activations, in the order in which linear layers read them.

use std::{marker::PhantomData, ops::Range, slice};

use samebits_tensor::{
    Activation, Format, FormatKind,
    contract::{Q8_MAX, Q8_MAX_RECIPROCAL, TINY},
};

use super::{
    codec::Codec,
    elementwise::glu_in_place,
    isa::{Isa, Kernel},
    norm::rms_norm_row,
    panel::with_codec,
    simd::{Simd, ZERO_BITS},
};
use crate::parts::Parts;

/// What the formats that can share quantised activations have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    block: usize,
    part: usize,
    offset: i32,
}

impl Kind {
    fn of(format: Format) -> Kind {
        let (block, sub) = match format.kind() {
            FormatKind::Dense => panic!("{format} has no blocks"),
            FormatKind::Blocks32 { .. } => (32, 32),
            FormatKind::Blocks256 { sub_len, .. } => (256, sub_len),
        };
        with_codec!(format, C => Kind { block, part: C::summed(sub), offset: C::OFFSET })
    }

    /// Where dots of a part start.
    fn zero(self) -> i32 {
        if self.block == 32 { ZERO_BITS } else { 0 }
    }
}

/// Activations `[m, k]`, quantised in blocks, in tiles of tokens: first as many as the widest tile takes, then narrower ones
/// by powers of two. A tile holds, for each block, the values of all its tokens.
pub struct Activations {
    kind: Kind,
    m: usize,
    k: usize,
    tile: usize,
    q: Vec<u8>,
    scale: Vec<f32>,
    /// `sum(q)` of each block of 32.
    float_sums: Vec<f32>,
    /// `-offset * sum(q)` of each part, more than [`ZERO_BITS`] in blocks of 32.
    bias: Vec<i32>,
    /// `sum(q)` of each part.
    sums: Vec<i16>,
}

/// One tile of [`Activations`].
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// `[blocks, tokens, block]` of i8.
    pub(super) q: &'a [u8],
    /// `[blocks, tokens]`.
    pub(super) scale: &'a [f32],
    /// `[blocks, tokens]`.
    pub(super) float_sums: &'a [f32],
    /// `[blocks, tokens, parts]`.
    pub(super) bias: &'a [i32],
    /// `[blocks, tokens, parts]`.
    pub(super) sums: &'a [i16],
}

impl Default for Activations {
    fn default() -> Self {
        Self::new()
    }
}

impl Activations {
    /// No activations yet.
    pub const fn new() -> Self {
        Activations {
            kind: Kind { block: 32, part: 32, offset: 0 },
            m: 0,
            k: 0,
            tile: 1,
            q: Vec::new(),
            scale: Vec::new(),
            float_sums: Vec::new(),
            bias: Vec::new(),
            sums: Vec::new(),
        }
    }

    /// Makes room for the quantised activations `[m, k]` of a weight of `format`, read on the given instructions. Memory that
    /// is there already is used again.
    ///
    /// # Panics
    /// If `k` is not whole blocks of a quantised format.
    pub fn reset(&mut self, isa: Isa, m: usize, k: usize, format: Format) {
        let kind = Kind::of(format);
        assert!(k.is_multiple_of(kind.block), "{k} columns of {format}");
        (self.kind, self.m, self.k, self.tile) = (kind, m, k, isa.tile());
        grow(&mut self.q, m * k);
        grow(&mut self.scale, m * k / kind.block);
        grow(&mut self.float_sums, m * k / kind.block);
        grow(&mut self.bias, m * k / kind.part);
        grow(&mut self.sums, m * k / kind.part);
    }

    /// Boxes of about `tokens` tokens by `cols` columns, or a few more, to be quantised in any order. They are numbered down
    /// the tokens of the first columns, then down those of the next.
    pub fn pieces(&mut self, tokens: usize, cols: usize) -> Pieces<'_> {
        let (m, blocks) = (self.m, self.k / self.kind.block);
        Pieces {
            // A piece is whole tiles, so that it is laid out as a matrix of its own.
            tokens: tokens.max(1).next_multiple_of(self.tile),
            blocks: cols.div_ceil(self.kind.block).max(1),
            whole: Piece {
                kind: self.kind,
                tile: self.tile,
                across: blocks,
                tokens: 0..m,
                blocks: 0..blocks,
                at: self.pointers(),
            },
        }
    }

    /// Boxes of the tokens of a band, all those up to the next of `ends`, by about `cols` columns, to be filled in any order.
    /// They are numbered across the columns of the first band, then of the next. Each band is laid out as activations of its
    /// own, which [`Activations::band`] reads.
    ///
    /// # Panics
    /// If `ends` do not grow up to the number of tokens.
    pub fn bands<'a>(&'a mut self, ends: &'a [usize], cols: usize) -> BandPieces<'a> {
        assert!(ends.is_sorted() && ends.last().is_none_or(|&end| end == self.m), "bands up to {ends:?}");
        BandPieces { ends, pieces: self.pieces(self.m, cols) }
    }

    /// Where a token is, if all of them are one matrix: the start and the width of its tile.
    fn tile_of(&self, token: usize) -> (usize, usize) {
        let whole = self.m / self.tile * self.tile;
        if token < whole {
            return (token / self.tile * self.tile, self.tile);
        }
        let mut rest = Tiles { next: whole, end: self.m, widest: self.tile };
        rest.find(|&(start, width)| token < start + width).expect("one of the tokens")
    }

    fn pointers(&mut self) -> Pointers<'_> {
        let (blocks, parts) = (self.m * self.k / self.kind.block, self.m * self.k / self.kind.part);
        Pointers {
            q: self.q[..self.m * self.k].as_mut_ptr(),
            scale: self.scale[..blocks].as_mut_ptr(),
            float_sums: self.float_sums[..blocks].as_mut_ptr(),
            bias: self.bias[..parts].as_mut_ptr(),
            sums: self.sums[..parts].as_mut_ptr(),
            owner: PhantomData,
        }
    }

    /// Whether these serve a weight of `format` too.
    pub fn serve(&self, format: Format) -> bool {
        format.is_quantized() && self.kind == Kind::of(format)
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.m
    }

    /// All tokens.
    pub fn all(&self) -> Rows<'_> {
        self.rows(0..self.m)
    }

    /// Some tokens: whole tiles from the start of one on, as many tokens as a piece has.
    ///
    /// # Panics
    /// If they do not start with a tile, or end before one does.
    pub fn rows(&self, tokens: Range<usize>) -> Rows<'_> {
        let whole = |token: usize| token == self.m || token.is_multiple_of(self.tile);
        assert!(whole(tokens.start) && whole(tokens.end), "tiles of tokens {tokens:?}");
        Rows { activations: self, tokens }
    }

    /// The tokens of a band, as [`Activations::bands`] cut them.
    ///
    /// # Panics
    /// If there are not as many tokens.
    pub fn band(&self, tokens: Range<usize>) -> Rows<'_> {
        assert!(tokens.start <= tokens.end && tokens.end <= self.m, "tokens {tokens:?} of {}", self.m);
        Rows { activations: self, tokens }
    }
}

/// Some tokens of [`Activations`].
#[derive(Clone)]
pub struct Rows<'a> {
    activations: &'a Activations,
    tokens: Range<usize>,
}

impl<'a> Rows<'a> {
    /// Whether these serve a weight of `format` too.
    pub fn serve(&self, format: Format) -> bool {
        self.activations.serve(format)
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.activations.k
    }

    /// First token and width of each tile from token `start` on.
    #[inline(always)]
    pub(super) fn tiles_from(&self, start: usize) -> Tiles {
        Tiles { next: start, end: self.tokens.len(), widest: self.activations.tile }
    }

    /// The tile of `width` tokens from `start` on.
    #[inline(always)]
    pub(super) fn tile(&self, start: usize, width: usize) -> Tile<'a> {
        let Activations { kind, k, ref q, ref scale, ref float_sums, ref bias, ref sums, .. } =
            *self.activations;
        let start = self.tokens.start + start;
        let part = |per_token: usize| start * per_token..(start + width) * per_token;
        let (blocks, parts) = (part(k / kind.block), part(k / kind.part));
        Tile {
            q: &q[part(k)],
            scale: &scale[blocks.clone()],
            float_sums: &float_sums[blocks],
            bias: &bias[parts.clone()],
            sums: &sums[parts],
        }
    }
}

/// Cuts tokens into tiles whose widths are powers of two.
#[derive(Clone)]
pub(super) struct Tiles {
    pub(super) next: usize,
    pub(super) end: usize,
    pub(super) widest: usize,
}

impl Iterator for Tiles {
    type Item = (usize, usize);
    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let left = self.end - self.next;
        if left == 0 {
            return None;
        }
        while self.widest > left {
            self.widest /= 2;
        }
        let start = self.next;
        self.next += self.widest;
        Some((start, self.widest))
    }
}

/// Makes a vector at least `len` long.
fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}

/// Where the parts of [`Activations`] are.
#[derive(Clone, Copy)]
struct Pointers<'a> {
    q: *mut u8,
    scale: *mut f32,
    float_sums: *mut f32,
    bias: *mut i32,
    sums: *mut i16,
    owner: PhantomData<&'a mut Activations>,
}

/// Blocks that lie side by side.
struct Blocks<'a> {
    q: &'a mut [u8],
    scale: &'a mut [f32],
    float_sums: &'a mut [f32],
    bias: &'a mut [i32],
    sums: &'a mut [i16],
}

impl<'a> Pointers<'a> {
    /// `count` blocks from `at` on in the order of memory.
    ///
    /// # Safety
    /// The activations are of this kind and have such blocks, which nobody else reaches while the result is used.
    #[inline(always)]
    unsafe fn blocks(self, kind: Kind, at: usize, count: usize) -> Blocks<'a> {
        let parts = kind.block / kind.part;
        // SAFETY: as the caller promises, all parts of the blocks are inside, and no other reference to them is used.
        unsafe {
            Blocks {
                q: slice::from_raw_parts_mut(self.q.add(at * kind.block), count * kind.block),
                scale: slice::from_raw_parts_mut(self.scale.add(at), count),
                float_sums: slice::from_raw_parts_mut(self.float_sums.add(at), count),
                bias: slice::from_raw_parts_mut(self.bias.add(at * parts), count * parts),
                sums: slice::from_raw_parts_mut(self.sums.add(at * parts), count * parts),
            }
        }
    }
}

/// [`Activations`] in boxes of whole tiles of tokens and whole blocks of columns.
pub struct Pieces<'a> {
    tokens: usize,
    blocks: usize,
    whole: Piece<'a>,
}

impl Pieces<'_> {
    fn down(&self) -> usize {
        self.whole.tokens.end.div_ceil(self.tokens)
    }
}

// SAFETY: only boxes are given out, each once.
unsafe impl Sync for Pieces<'_> {}

// SAFETY: boxes share neither a token nor a block, and the activations are borrowed mutably for as long.
unsafe impl<'a> Parts for Pieces<'a> {
    type Part = Piece<'a>;

    fn count(&self) -> usize {
        self.down() * self.whole.blocks.end.div_ceil(self.blocks)
    }

    unsafe fn part(&self, i: usize) -> Piece<'a> {
        let (down, across) = (i % self.down(), i / self.down());
        let cut = |i: usize, step: usize, end: usize| i * step..((i + 1) * step).min(end);
        let tokens = cut(down, self.tokens, self.whole.tokens.end);
        let blocks = cut(across, self.blocks, self.whole.blocks.end);
        Piece { tokens, blocks, ..self.whole }
    }
}

/// [`Activations`] in boxes of the tokens of a band and whole blocks of columns.
pub struct BandPieces<'a> {
    ends: &'a [usize],
    pieces: Pieces<'a>,
}

impl BandPieces<'_> {
    /// Boxes side by side.
    pub fn across(&self) -> usize {
        self.pieces.whole.blocks.end.div_ceil(self.pieces.blocks)
    }
}

// SAFETY: boxes share neither a token nor a block, since the ends grow, and the activations are borrowed mutably for as long.
unsafe impl<'a> Parts for BandPieces<'a> {
    type Part = Piece<'a>;

    fn count(&self) -> usize {
        self.ends.len() * self.across()
    }

    unsafe fn part(&self, i: usize) -> Piece<'a> {
        let (band, across) = (i / self.across(), i % self.across());
        let Pieces { blocks, ref whole, .. } = self.pieces;
        let start = band.checked_sub(1).map_or(0, |above| self.ends[above]);
        let blocks = across * blocks..((across + 1) * blocks).min(whole.blocks.end);
        Piece { tokens: start..self.ends[band], blocks, ..*whole }
    }
}

/// Some tokens and columns of [`Activations`], to be quantised.
pub struct Piece<'a> {
    kind: Kind,
    tile: usize,
    /// Blocks of a token of the activations.
    across: usize,
    tokens: Range<usize>,
    blocks: Range<usize>,
    at: Pointers<'a>,
}

// SAFETY: a piece is the only access to its elements while it lives, as a mutable slice is.
unsafe impl Send for Piece<'_> {}

impl Piece<'_> {
    /// The tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// The columns.
    pub fn cols(&self) -> Range<usize> {
        self.blocks.start * self.kind.block..self.blocks.end * self.kind.block
    }

    /// Quantises rows `x [tokens, cols]`.
    ///
    /// # Panics
    /// If `x` is not as long.
    pub fn quantize(self, isa: Isa, x: &[f32]) {
        assert_eq!(x.len(), self.tokens.len() * self.cols().len(), "rows of a piece");
        isa.run(Quantize { rows: Given { x }, cols: self.cols().len(), piece: self });
    }

    /// Quantises rows `x [tokens, cols]` after the root-mean-square norm, as [`rms_norm`](super::rms_norm) gives it. Rows are
    /// normalised to `room [tile, cols]`, as many at a time as a tile has tokens, from where they are quantised.
    ///
    /// # Panics
    /// If a length is another.
    pub fn quantize_normed(self, isa: Isa, x: &[f32], weight: &[f32], eps: f32, room: &mut [f32]) {
        let cols = self.cols().len();
        assert_eq!(x.len(), self.tokens.len() * cols, "rows of a piece");
        assert!(weight.len() == cols && room.len() == self.tile * cols, "the columns of a norm");
        isa.run(Quantize { rows: Normed { x, weight, eps, room }, cols, piece: self });
    }

    /// Quantises `activation(gate) * up`, where `gate` and `up` are `[tokens, cols]`; the products are left in `gate`.
    ///
    /// # Panics
    /// If one of them is not as long.
    pub fn quantize_glu(self, isa: Isa, gate: &mut [f32], up: &[f32], activation: Activation) {
        let cols = self.cols().len();
        let len = self.tokens.len() * cols;
        assert!(gate.len() == len && up.len() == len, "rows of a piece");
        isa.run(Quantize { rows: Gated { gate, up, activation }, cols, piece: self });
    }

    /// Copies tokens of other activations, which are one matrix of the same kind: token `i` of the piece is `tokens[i]` there.
    ///
    /// # Panics
    /// If the kinds, the columns or the number of tokens differ.
    pub fn copy(mut self, from: &Activations, tokens: &[u32]) {
        let fits = from.kind == self.kind && from.k == self.across * self.kind.block;
        assert!(fits && tokens.len() == self.tokens.len(), "tokens of the same kind");
        let (kind, parts) = (self.kind, self.kind.block / self.kind.part);
        for (start, width) in (Tiles { next: 0, end: tokens.len(), widest: self.tile }) {
            for (i, &token) in tokens[start..start + width].iter().enumerate() {
                let (tile, of_tile) = from.tile_of(token as usize);
                for block in self.blocks.clone() {
                    let at = tile * self.across + block * of_tile + (token as usize - tile);
                    let to = self.blocks((start, width), (block - self.blocks.start) * width + i, 1);
                    to.q.copy_from_slice(&from.q[at * kind.block..][..kind.block]);
                    to.scale[0] = from.scale[at];
                    to.float_sums[0] = from.float_sums[at];
                    to.bias.copy_from_slice(&from.bias[at * parts..][..parts]);
                    to.sums.copy_from_slice(&from.sums[at * parts..][..parts]);
                }
            }
        }
    }

    /// Blocks of the tile of `width` tokens that starts `start` tokens into the piece: `count` from `first` on, where the first
    /// block of all its tokens comes first, then the second.
    #[inline(always)]
    fn blocks(&mut self, (start, width): (usize, usize), first: usize, count: usize) -> Blocks<'_> {
        let inside = start + width <= self.tokens.len() && first + count <= width * self.blocks.len();
        assert!(inside, "blocks {first} to {} of a piece", first + count);
        let at = (self.tokens.start + start) * self.across + self.blocks.start * width + first;
        // SAFETY: the tile is of these tokens and the blocks are some of these blocks, which only this piece reaches.
        unsafe { self.at.blocks(self.kind, at, count) }
    }
}

/// Rows of f32 that are made as they are asked for.
trait RowSource {
    /// The values of whole rows, each asked for once; no more rows than the widest tile has tokens.
    fn rows<S: Simd>(&mut self, s: S, values: Range<usize>) -> &[f32];
}

/// Rows that are there.
struct Given<'a> {
    x: &'a [f32],
}

impl RowSource for Given<'_> {
    #[inline(always)]
    fn rows<S: Simd>(&mut self, _: S, values: Range<usize>) -> &[f32] {
        &self.x[values]
    }
}

/// Rows after a norm.
struct Normed<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    room: &'a mut [f32],
}

impl RowSource for Normed<'_> {
    #[inline(always)]
    fn rows<S: Simd>(&mut self, s: S, values: Range<usize>) -> &[f32] {
        let (cols, room) = (self.weight.len(), &mut self.room[..values.len()]);
        for (x, out) in self.x[values].chunks_exact(cols).zip(room.chunks_exact_mut(cols)) {
            rms_norm_row(s, x, self.weight, self.eps, out);
        }
        room
    }
}

/// `activation(gate) * up`.
struct Gated<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
    activation: Activation,
}

impl RowSource for Gated<'_> {
    #[inline(always)]
    fn rows<S: Simd>(&mut self, s: S, values: Range<usize>) -> &[f32] {
        let gate = &mut self.gate[values.clone()];
        glu_in_place(s, gate, &self.up[values], self.activation);
        gate
    }
}

struct Quantize<'a, R> {
    rows: R,
    /// Values of a row.
    cols: usize,
    piece: Piece<'a>,
}

impl<R: RowSource> Kernel for Quantize<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.piece.kind {
            Kind { block: 32, .. } => self.run_blocks::<S, 32, 32>(s),
            Kind { part: 32, .. } => self.run_blocks::<S, 256, 32>(s),
            Kind { part: 16, .. } => self.run_blocks::<S, 256, 16>(s),
            _ => self.run_blocks::<S, 256, 8>(s),
        }
    }
}

impl<R: RowSource> Quantize<'_, R> {
    #[inline(always)]
    fn run_blocks<S: Simd, const BLOCK: usize, const PART: usize>(mut self, s: S) {
        let kind = Kind { block: BLOCK, part: PART, ..self.piece.kind };
        assert_eq!(kind, self.piece.kind, "blocks of a kind");
        // What the compiler now knows.
        self.piece.kind = kind;
        for tile in (Tiles { next: 0, end: self.piece.tokens.len(), widest: self.piece.tile }) {
            let (start, width) = tile;
            let x = self.rows.rows(s, start * self.cols..(start + width) * self.cols);
            let all = width * self.piece.blocks.len();
            for first in (0..all).step_by(16) {
                let count = (all - first).min(16);
                let mut blocks = [&[0.0; BLOCK]; 16];
                for (i, block) in blocks[..count].iter_mut().enumerate() {
                    // Widths are powers of two.
                    let (token, at) = ((first + i) & (width - 1), (first + i) >> width.trailing_zeros());
                    *block = x[token * self.cols + at * BLOCK..].first_chunk().expect("a block of a row");
                }
                let out = self.piece.blocks(tile, first, count);
                quantize_to::<S, BLOCK, PART>(s, kind, blocks, out);
            }
        }
    }
}

/// Quantises as many of 16 blocks as `out` has.
#[inline(always)]
fn quantize_to<S: Simd, const BLOCK: usize, const PART: usize>(
    s: S,
    kind: Kind,
    x: [&[f32; BLOCK]; 16],
    out: Blocks<'_>,
) {
    let (scale, inverses) = scales_of(s, x);
    store_first(s, scale, out.scale);
    let parts = BLOCK / PART;
    let blocks = x.into_iter().zip(inverses).zip(out.q.as_chunks_mut::<BLOCK>().0);
    if parts == 1 {
        let mut sums = [s.splat_i32(0); 16];
        for (sum, ((x, inverse), q)) in sums.iter_mut().zip(blocks) {
            *sum = round_lanes(s, x, s.splat(inverse), q);
        }
        let sums = s.sum_lanes_i32(sums);
        store_first(s, s.to_f32(sums), out.float_sums);
        let mut lanes = [0; 16];
        s.store_i32(sums, &mut lanes);
        return store_sums(kind, &lanes, out.bias, out.sums);
    }
    let sums = out.bias.chunks_exact_mut(parts).zip(out.sums.chunks_exact_mut(parts));
    for (((x, inverse), q), (bias, sums)) in blocks.zip(sums) {
        let parts = x.as_chunks::<PART>().0.iter().zip(q.as_chunks_mut::<PART>().0);
        for ((x, q), (bias, sum)) in parts.zip(bias.iter_mut().zip(sums)) {
            let total = round_part(s, x, s.splat(inverse), q);
            store_sums(kind, &[total], slice::from_mut(bias), slice::from_mut(sum));
        }
    }
}

/// What is kept of the sums of parts.
#[inline(always)]
fn store_sums(kind: Kind, totals: &[i32], bias: &mut [i32], sums: &mut [i16]) {
    for (&total, (bias, sum)) in totals.iter().zip(bias.iter_mut().zip(sums)) {
        *bias = kind.zero() - kind.offset * total;
        *sum = total as i16;
    }
}

/// The first lanes, as many as `out` has.
#[inline(always)]
fn store_first<S: Simd>(s: S, x: S::F, out: &mut [f32]) {
    match out.first_chunk_mut() {
        Some(out) => s.store(x, out),
        None => {
            let mut lanes = [0.0; 16];
            s.store(x, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// The scales of 16 blocks, and what their values are multiplied by.
#[inline(always)]
fn scales_of<S: Simd, const BLOCK: usize>(s: S, x: [&[f32; BLOCK]; 16]) -> (S::F, [f32; 16]) {
    let mut largest = [s.splat_i32(0); 16];
    for (largest, x) in largest.iter_mut().zip(x) {
        *largest = magnitudes(s, *largest, x);
    }
    let (zero, largest) = (s.splat(0.0), s.of_bits(s.max_lanes_i32(largest)));
    let scale = s.mul(largest, s.splat(Q8_MAX_RECIPROCAL));
    let tiny = s.lt(scale, s.splat(TINY));
    let mut inverses = [0.0; 16];
    s.store(s.select(tiny, zero, s.div(s.splat(Q8_MAX), largest)), &mut inverses);
    (s.select(tiny, zero, scale), inverses)
}

/// Values times `inverse` as i8, and their sum.
#[inline(always)]
fn round_part<S: Simd, const PART: usize>(s: S, x: &[f32; PART], inverse: S::F, q: &mut [u8; PART]) -> i32 {
    if !PART.is_multiple_of(16) {
        round_all(s, x, inverse, q);
        return sum_bytes(s, q);
    }
    s.sum_i32(round_lanes(s, x, inverse, q))
}

/// Values times `inverse` as i8, whole vectors of them, and lanes that together are their sum.
#[inline(always)]
fn round_lanes<S: Simd, const N: usize>(s: S, x: &[f32; N], inverse: S::F, q: &mut [u8; N]) -> S::I {
    let mut sum = s.splat_i32(0);
    for (x, q) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0) {
        let rounded = s.round_i32(s.mul(s.load(x), inverse));
        s.store_low_bytes(rounded, q);
        // The low byte of each lane by 1.
        sum = s.dot_u7(sum, s.splat_i32(1), rounded);
    }
    sum
}

/// The contract's `quantize_blocks` of one block of any length; returns its scale.
#[inline(always)]
pub(super) fn block_of<S: Simd>(s: S, x: &[f32], q: &mut [u8]) -> f32 {
    let (scale, inverse) = scale_of(s, x);
    round_all(s, x, inverse, q);
    scale
}

/// The scale of a block, and what its values are multiplied by.
#[inline(always)]
fn scale_of<S: Simd>(s: S, x: &[f32]) -> (f32, S::F) {
    let largest = largest_magnitude(s, x);
    let scale = largest * Q8_MAX_RECIPROCAL;
    match scale < TINY {
        true => (0.0, s.splat(0.0)),
        false => (scale, s.splat(Q8_MAX / largest)),
    }
}

/// Values times `inverse`, as i8.
#[inline(always)]
fn round_all<S: Simd>(s: S, x: &[f32], inverse: S::F, q: &mut [u8]) {
    assert_eq!(x.len(), q.len(), "values and their integers");
    let (x, x_rest) = x.as_chunks::<16>();
    let (q, q_rest) = q.as_chunks_mut::<16>();
    for (x, q) in x.iter().zip(q) {
        s.store_low_bytes(s.round_i32(s.mul(s.load(x), inverse)), q);
    }
    if !x_rest.is_empty() {
        let mut out = [0; 16];
        s.store_low_bytes(s.round_i32(s.mul(load_padded(s, x_rest), inverse)), &mut out);
        q_rest.copy_from_slice(&out[..x_rest.len()]);
    }
}

/// The largest `|x|`, or NaN if there is one: bit patterns of magnitudes are in the order of their values, NaN last.
#[inline(always)]
fn largest_magnitude<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (x, rest) = x.as_chunks::<16>();
    let mut largest = magnitudes(s, s.splat_i32(0), x.as_flattened());
    if !rest.is_empty() {
        largest = s.max_i32(largest, s.bits(s.abs(load_padded(s, rest))));
    }
    f32::from_bits(s.max_lane_i32(largest) as u32)
}

/// The larger of `largest` and the bit patterns of the magnitudes of whole vectors.
#[inline(always)]
fn magnitudes<S: Simd>(s: S, mut largest: S::I, x: &[f32]) -> S::I {
    for x in x.as_chunks::<16>().0 {
        largest = s.max_i32(largest, s.bits(s.abs(s.load(x))));
    }
    largest
}

/// At most 16 values, then +0.
#[inline(always)]
pub(super) fn load_padded<S: Simd>(s: S, x: &[f32]) -> S::F {
    let mut lanes = [0.0; 16];
    lanes[..x.len()].copy_from_slice(x);
    s.load(&lanes)
}

/// Sum of i8, a multiple of 8 of them.
#[inline(always)]
pub(super) fn sum_bytes<S: Simd>(s: S, q: &[u8]) -> i32 {
    let mut sum = s.splat_i32(0);
    let (q, rest) = q.as_chunks::<16>();
    for q in q {
        sum = s.add_i32(sum, s.load_i8(q));
    }
    if let Some(rest) = rest.first_chunk::<8>() {
        let mut padded = [0; 16];
        padded[..8].copy_from_slice(rest);
        sum = s.add_i32(sum, s.load_i8(&padded));
    }
    s.sum_i32(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantises rows `x [m, k]`.
    fn quantized(isa: Isa, x: &[f32], k: usize, format: Format) -> Activations {
        let mut activations = Activations::new();
        activations.reset(isa, x.len() / k, k, format);
        let pieces = activations.pieces(x.len() / k, k);
        // SAFETY: the only part, once.
        (0..pieces.count()).for_each(|i| unsafe { pieces.part(i) }.quantize(isa, x));
        activations
    }

    #[test]
    fn a_band_of_copied_tokens_is_as_if_quantised_alone() {
        let (k, m) = (512, 13);
        let x: Vec<f32> = (0..m * k).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
        let (tokens, ends) = ([12u32, 3, 3, 0, 7, 8, 9, 10, 11, 1, 5], [1, 1, 4, 11]);
        for isa in Isa::available() {
            for format in [Format::Q4_0, Format::Q8_0, Format::Q4K, Format::Q2K] {
                let all = quantized(isa, &x, k, format);
                let mut bands = Activations::new();
                bands.reset(isa, tokens.len(), k, format);
                let pieces = bands.bands(&ends, 256);
                assert_eq!(pieces.across(), 2);
                for i in 0..pieces.count() {
                    // SAFETY: each part once.
                    let piece = unsafe { pieces.part(i) };
                    let of_piece = piece.tokens();
                    piece.copy(&all, &tokens[of_piece]);
                }
                for (start, end) in [(0, 1), (1, 4), (4, 11)] {
                    let rows = tokens[start..end].iter().flat_map(|&token| &x[token as usize * k..][..k]);
                    let alone = quantized(isa, &rows.copied().collect::<Vec<_>>(), k, format);
                    let (of_band, of_alone) = (bands.band(start..end), alone.all());
                    let of = |rows: &Rows<'_>| {
                        let tile = rows.tile(0, end - start);
                        let floats = [tile.scale, tile.float_sums].concat();
                        (tile.q.to_vec(), floats, tile.bias.to_vec(), tile.sums.to_vec())
                    };
                    assert_eq!(of(&of_band), of(&of_alone), "{format} on {}", isa.name());
                }
            }
        }
    }
}
