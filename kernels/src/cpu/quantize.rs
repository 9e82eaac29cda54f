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

/// One block of a token.
struct Block<'a> {
    q: &'a mut [u8],
    scale: &'a mut f32,
    float_sums: &'a mut f32,
    bias: &'a mut [i32],
    sums: &'a mut [i16],
}

impl<'a> Pointers<'a> {
    /// Block `at` in the order of memory.
    ///
    /// # Safety
    /// The activations are of this kind and have such a block, which nobody else reaches while the result is used.
    #[inline(always)]
    unsafe fn block(self, kind: Kind, at: usize) -> Block<'a> {
        let parts = kind.block / kind.part;
        // SAFETY: as the caller promises, all parts of the block are inside, and no other reference to them is used.
        unsafe {
            Block {
                q: slice::from_raw_parts_mut(self.q.add(at * kind.block), kind.block),
                scale: &mut *self.scale.add(at),
                float_sums: &mut *self.float_sums.add(at),
                bias: slice::from_raw_parts_mut(self.bias.add(at * parts), parts),
                sums: slice::from_raw_parts_mut(self.sums.add(at * parts), parts),
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
        isa.run(Quantize { rows: Given { x, cols: self.cols().len() }, piece: self });
    }

    /// Quantises rows `x [tokens, cols]` after the root-mean-square norm, as [`rms_norm`](super::rms_norm) gives it. A row is
    /// normalised to `row [cols]`, from where it is quantised.
    ///
    /// # Panics
    /// If a length is another.
    pub fn quantize_normed(self, isa: Isa, x: &[f32], weight: &[f32], eps: f32, row: &mut [f32]) {
        let cols = self.cols().len();
        assert_eq!(x.len(), self.tokens.len() * cols, "rows of a piece");
        assert!(weight.len() == cols && row.len() == cols, "the columns of a norm");
        isa.run(Quantize { rows: Normed { x, weight, eps, row }, piece: self });
    }

    /// Quantises `activation(gate) * up`, where `gate` and `up` are `[tokens, cols]`; the products are left in `gate`.
    ///
    /// # Panics
    /// If one of them is not as long.
    pub fn quantize_glu(self, isa: Isa, gate: &mut [f32], up: &[f32], activation: Activation) {
        let cols = self.cols().len();
        let len = self.tokens.len() * cols;
        assert!(gate.len() == len && up.len() == len, "rows of a piece");
        isa.run(Quantize { rows: Gated { gate, up, cols, activation }, piece: self });
    }

    /// The block of a token in the tile of `width` tokens that starts `start` tokens into the piece.
    #[inline(always)]
    fn block(&mut self, (start, width): (usize, usize), token: usize, block: usize) -> Block<'_> {
        let inside = start + token < self.tokens.len() && token < width && block < self.blocks.len();
        assert!(inside, "token {token} and block {block} of a piece");
        let at = (self.tokens.start + start) * self.across + (self.blocks.start + block) * width + token;
        // SAFETY: the tile is of these tokens and the block is one of these blocks, which only this piece reaches.
        unsafe { self.at.block(self.kind, at) }
    }
}

/// Rows of f32 that are made as they are asked for.
trait RowSource {
    /// Row `i`, which is asked for once.
    fn row<S: Simd>(&mut self, s: S, i: usize) -> &[f32];
}

/// Rows that are there.
struct Given<'a> {
    x: &'a [f32],
    cols: usize,
}

impl RowSource for Given<'_> {
    #[inline(always)]
    fn row<S: Simd>(&mut self, _: S, i: usize) -> &[f32] {
        &self.x[i * self.cols..(i + 1) * self.cols]
    }
}

/// Rows after a norm.
struct Normed<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    row: &'a mut [f32],
}

impl RowSource for Normed<'_> {
    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S, i: usize) -> &[f32] {
        let cols = self.row.len();
        rms_norm_row(s, &self.x[i * cols..(i + 1) * cols], self.weight, self.eps, self.row);
        self.row
    }
}

/// `activation(gate) * up`.
struct Gated<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
    cols: usize,
    activation: Activation,
}

impl RowSource for Gated<'_> {
    #[inline(always)]
    fn row<S: Simd>(&mut self, s: S, i: usize) -> &[f32] {
        let row = i * self.cols..(i + 1) * self.cols;
        let gate = &mut self.gate[row.clone()];
        glu_in_place(s, gate, &self.up[row], self.activation);
        gate
    }
}

struct Quantize<'a, R> {
    rows: R,
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
            for token in 0..tile.1 {
                let row = self.rows.row(s, tile.0 + token);
                for (block, x) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                    quantize_to::<S, BLOCK, PART>(s, kind, x, self.piece.block(tile, token, block));
                }
            }
        }
    }
}

/// Quantises one block.
#[inline(always)]
fn quantize_to<S: Simd, const BLOCK: usize, const PART: usize>(
    s: S,
    kind: Kind,
    x: &[f32; BLOCK],
    out: Block<'_>,
) {
    let (scale, inverse) = scale_of(s, x);
    *out.scale = scale;
    let parts = x.as_chunks::<PART>().0.iter().zip(out.q.as_chunks_mut::<PART>().0);
    for ((x, q), (bias, sums)) in parts.zip(out.bias.iter_mut().zip(out.sums)) {
        let sum = round_part(s, x, inverse, q);
        *bias = kind.zero() - kind.offset * sum;
        *sums = sum as i16;
        *out.float_sums = sum as f32;
    }
}

/// Values times `inverse` as i8, and their sum.
#[inline(always)]
fn round_part<S: Simd, const PART: usize>(s: S, x: &[f32; PART], inverse: S::F, q: &mut [u8; PART]) -> i32 {
    if !PART.is_multiple_of(16) {
        round_all(s, x, inverse, q);
        return sum_bytes(s, q);
    }
    let mut sum = s.splat_i32(0);
    for (x, q) in x.as_chunks::<16>().0.iter().zip(q.as_chunks_mut::<16>().0) {
        let rounded = s.round_i32(s.mul(s.load(x), inverse));
        s.store_low_bytes(rounded, q);
        // The low byte of each lane by 1.
        sum = s.dot_u7(sum, s.splat_i32(1), rounded);
    }
    s.sum_i32(sum)
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
    let mut largest = s.splat_i32(0);
    let (x, rest) = x.as_chunks::<16>();
    for x in x {
        largest = s.max_i32(largest, s.bits(s.abs(s.load(x))));
    }
    if !rest.is_empty() {
        largest = s.max_i32(largest, s.bits(s.abs(load_padded(s, rest))));
    }
    f32::from_bits(s.max_lane_i32(largest) as u32)
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
