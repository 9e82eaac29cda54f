//! Quantised activations, in the order in which linear layers read them.

use samebits_tensor::{
    Format, FormatKind,
    contract::{Q8_MAX, Q8_MAX_RECIPROCAL, TINY},
};

use super::{
    codec::Codec,
    isa::{Isa, Kernel},
    panel::with_codec,
    simd::{Simd, ZERO_BITS},
};
use crate::parts::{Chunks, Parts};

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
        with_codec!(format, C => Kind { block, part: C::PART.min(sub), offset: C::OFFSET })
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

    /// Pieces of about `tokens` tokens with their rows of `x [m, k]`, to be quantised in any order.
    ///
    /// # Panics
    /// If `x` is not as long, or has no columns.
    pub fn pieces<'a>(&'a mut self, x: &'a [f32], tokens: usize) -> Pieces<'a> {
        let Activations { kind, m, k, tile, .. } = *self;
        assert!(x.len() == m * k && k > 0, "activations [{m}, {k}]");
        // A piece is whole tiles, so that it is laid out as a matrix of its own.
        let tokens = tokens.max(1).next_multiple_of(tile);
        let (blocks, parts) = (k / kind.block, k / kind.part);
        let out = (
            Chunks::new(&mut self.q[..m * k], tokens * k),
            Chunks::new(&mut self.scale[..m * blocks], tokens * blocks),
            Chunks::new(&mut self.float_sums[..m * blocks], tokens * blocks),
            Chunks::new(&mut self.bias[..m * parts], tokens * parts),
            Chunks::new(&mut self.sums[..m * parts], tokens * parts),
        );
        Pieces { kind, k, tile, tokens, x, out }
    }

    /// Whether these serve a weight of `format` too.
    pub fn serve(&self, format: Format) -> bool {
        format.is_quantized() && self.kind == Kind::of(format)
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.m
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.k
    }

    /// First token and width of each tile from token `start` on.
    #[inline(always)]
    pub(super) fn tiles_from(&self, start: usize) -> Tiles {
        Tiles { next: start, end: self.m, widest: self.tile }
    }

    /// The tile of `width` tokens from `start` on.
    #[inline(always)]
    pub(super) fn tile(&self, start: usize, width: usize) -> Tile<'_> {
        let part = |per_token: usize| start * per_token..(start + width) * per_token;
        let (blocks, parts) = (part(self.k / self.kind.block), part(self.k / self.kind.part));
        Tile {
            q: &self.q[part(self.k)],
            scale: &self.scale[blocks.clone()],
            float_sums: &self.float_sums[blocks],
            bias: &self.bias[parts.clone()],
            sums: &self.sums[parts],
        }
    }
}

/// Cuts tokens into tiles whose widths are powers of two.
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

/// [`Activations`] in pieces of whole tiles.
pub struct Pieces<'a> {
    kind: Kind,
    k: usize,
    tile: usize,
    tokens: usize,
    x: &'a [f32],
    out: Out<'a>,
}

/// The parts of [`Activations`]: `q`, `scale`, `float_sums`, `bias` and `sums`.
type Out<'a> = (Chunks<'a, u8>, Chunks<'a, f32>, Chunks<'a, f32>, Chunks<'a, i32>, Chunks<'a, i16>);

// SAFETY: the parts of each are disjoint.
unsafe impl<'a> Parts for Pieces<'a> {
    type Part = Piece<'a>;

    fn count(&self) -> usize {
        self.out.count()
    }

    unsafe fn part(&self, i: usize) -> Piece<'a> {
        let Pieces { kind, k, tile, tokens, x, .. } = *self;
        let rows = i * tokens * k..((i + 1) * tokens * k).min(x.len());
        // SAFETY: as the caller promises.
        let (q, scale, float_sums, bias, sums) = unsafe { self.out.part(i) };
        Piece { kind, k, tile, x: &x[rows], q, scale, float_sums, bias, sums }
    }
}

/// Some tokens of [`Activations`], and the rows that they come from.
pub struct Piece<'a> {
    kind: Kind,
    k: usize,
    tile: usize,
    x: &'a [f32],
    q: &'a mut [u8],
    scale: &'a mut [f32],
    float_sums: &'a mut [f32],
    bias: &'a mut [i32],
    sums: &'a mut [i16],
}

impl Piece<'_> {
    /// Quantises the rows.
    pub fn quantize(self, isa: Isa) {
        isa.run(self);
    }
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Piece { kind, k, .. } = self;
        let (blocks, parts) = (k / kind.block, kind.block / kind.part);
        for (start, width) in (Tiles { next: 0, end: self.x.len() / k, widest: self.tile }) {
            for token in 0..width {
                let row = &self.x[(start + token) * k..(start + token + 1) * k];
                for (block, x) in row.chunks_exact(kind.block).enumerate() {
                    let at = start * blocks + block * width + token;
                    let q = &mut self.q[at * kind.block..(at + 1) * kind.block];
                    self.scale[at] = block_of(s, x, q);
                    for (part, q) in q.chunks_exact(kind.part).enumerate() {
                        let sum = sum_bytes(s, q);
                        self.bias[at * parts + part] = kind.zero() - kind.offset * sum;
                        self.sums[at * parts + part] = sum as i16;
                        self.float_sums[at] = sum as f32;
                    }
                }
            }
        }
    }
}

/// The contract's `quantize_blocks` of one block of any length; returns its scale.
#[inline(always)]
pub(super) fn block_of<S: Simd>(s: S, x: &[f32], q: &mut [u8]) -> f32 {
    assert_eq!(x.len(), q.len(), "a block and its integers");
    let largest = largest_magnitude(s, x);
    let scale = largest * Q8_MAX_RECIPROCAL;
    let tiny = scale < TINY;
    let inverse = s.splat(if tiny { 0.0 } else { Q8_MAX / largest });
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
    if tiny { 0.0 } else { scale }
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
