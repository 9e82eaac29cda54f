//! Linear layers over float weights: the contract's `dot`, 16 rows side by side.

use std::{array, marker::PhantomData, ops::Range};

use bytemuck::Pod;
use samebits_tensor::{
    Format,
    contract::{DOT_SPAN, TINY},
};

use super::{
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    panel::LANES,
    simd::Simd,
};

/// Tokens whose activations of a span stay in a core's cache while the panels of a task pass by.
const BLOCK_TOKENS: usize = 240;

/// The packed layout of float weights: panels of 16 rows, a step of columns after the other. A step of F32 and F16 is a
/// column; one of BF16 is two, lane after lane, the first column in the high half of a word of 32 bits. Rows and columns
/// past the matrix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseLayout {
    format: Format,
    cols: usize,
}

impl DenseLayout {
    /// The layout of panels of `cols` columns.
    ///
    /// # Panics
    /// If `format` is no float format.
    pub fn new(format: Format, cols: usize) -> Self {
        assert!(!format.is_quantized(), "{format} is not a float format");
        DenseLayout { format, cols }
    }

    /// Bytes of one panel, a multiple of 64.
    pub fn bytes(&self) -> usize {
        self.cols.next_multiple_of(2) * LANES * self.format.block_bytes()
    }

    /// Packs at most 16 rows, as their file holds them, into a panel of zeros.
    ///
    /// # Panics
    /// If there are more rows, or a size does not fit the layout.
    pub fn pack(&self, rows: &[u8], panel: &mut [u8]) {
        let row_bytes = self.row_bytes();
        assert!(panel.len() == self.bytes() && rows.len() <= LANES * row_bytes, "panel of {self:?}");
        for (lane, row) in rows.chunks_exact(row_bytes.max(1)).enumerate() {
            match self.format {
                Format::F32 => scatter::<4>(row, &mut panel[4 * lane..]),
                Format::F16 => scatter::<2>(row, &mut panel[2 * lane..]),
                _ => scatter_pairs(row, &mut panel[4 * lane..]),
            }
        }
    }

    /// The bytes of row `lane` of a panel, as its file holds them.
    ///
    /// # Panics
    /// If a size does not fit the layout.
    pub fn unpack_row(&self, panel: &[u8], lane: usize, row: &mut [u8]) {
        assert!(panel.len() == self.bytes() && row.len() == self.row_bytes(), "row of {self:?}");
        for (col, out) in row.chunks_exact_mut(self.format.block_bytes()).enumerate() {
            let at = self.element(lane, col);
            out.copy_from_slice(&panel[at..at + self.format.block_bytes()]);
        }
    }

    fn row_bytes(&self) -> usize {
        self.cols * self.format.block_bytes()
    }

    fn element(&self, lane: usize, col: usize) -> usize {
        match self.format {
            Format::BF16 => (col / 2 * LANES + lane) * 4 + 2 * (1 - col % 2),
            _ => (col * LANES + lane) * self.format.block_bytes(),
        }
    }
}

/// The elements of a row, to one lane.
fn scatter<const SIZE: usize>(row: &[u8], lane: &mut [u8]) {
    for (element, out) in row.as_chunks::<SIZE>().0.iter().zip(lane.chunks_mut(SIZE * LANES)) {
        out[..SIZE].copy_from_slice(element);
    }
}

/// The pairs of a row, to one lane.
fn scatter_pairs(row: &[u8], lane: &mut [u8]) {
    for (pair, out) in row.chunks(4).zip(lane.chunks_mut(4 * LANES)) {
        out[2..4].copy_from_slice(&pair[..2]);
        out[..pair.len() - 2].copy_from_slice(&pair[2..]);
    }
}

/// Float weights, packed by [`DenseLayout`].
#[derive(Clone, Copy, Debug)]
pub struct DensePanels<'a> {
    /// [`Format::F32`], [`Format::F16`] or [`Format::BF16`].
    pub format: Format,
    /// Columns of a row.
    pub cols: usize,
    /// The panels.
    pub bytes: &'a [u8],
}

/// Activations `[m, k]` rounded to a weight's type, in tiles of tokens: `[words, tokens]` each. All tiles are as wide as
/// the widest that the instructions take but the last, which is as wide as needed; tokens past the last are zero.
pub struct Floats {
    format: Format,
    m: usize,
    k: usize,
    widest: usize,
    words: Vec<u32>,
    /// Bits of the largest magnitude of each tile.
    largest: Vec<u32>,
}

impl Default for Floats {
    fn default() -> Self {
        Self::new()
    }
}

impl Floats {
    /// No activations yet.
    pub const fn new() -> Self {
        Floats { format: Format::F32, m: 0, k: 0, widest: 1, words: Vec::new(), largest: Vec::new() }
    }

    /// Rounds `x [m, k]` to the type of `format`, in the memory of the last ones.
    ///
    /// # Panics
    /// As [`Floats::reset`] and [`Floats::pieces`].
    pub fn round(&mut self, isa: Isa, x: &[f32], m: usize, k: usize, format: Format) {
        self.reset(isa, m, k, format);
        self.pieces(x, m).for_each(|piece| piece.round(isa));
    }

    /// Makes room for the activations `[m, k]` of a weight of `format`, read on the given instructions; what is there
    /// already is used again, and its values stay until [`Floats::pieces`] are rounded.
    ///
    /// # Panics
    /// If `format` is no float format.
    pub fn reset(&mut self, isa: Isa, m: usize, k: usize, format: Format) {
        assert!(!format.is_quantized(), "{format} is not a float format");
        (self.format, self.m, self.k, self.widest) = (format, m, k, widest(isa));
        let padded = self.tiles().map(|tile| tile.width).sum::<usize>();
        self.words.resize(self.words.len().max(padded * words_per_token(format, k)), 0);
        self.largest.resize(self.largest.len().max(m.div_ceil(self.widest)), 0);
    }

    /// Pieces of about `tokens` tokens with their rows of `x [m, k]`, to be rounded in any order.
    ///
    /// # Panics
    /// If `x` is not as long, or has no columns.
    pub fn pieces<'a>(&'a mut self, x: &'a [f32], tokens: usize) -> impl Iterator<Item = FloatPiece<'a>> {
        let Floats { format, m, k, widest, .. } = *self;
        assert_eq!(x.len(), m * k, "activations [{m}, {k}]");
        let tokens = tokens.max(1).next_multiple_of(widest);
        let parts = x
            .chunks(tokens * k)
            .zip(self.words.chunks_mut(tokens * words_per_token(format, k)))
            .zip(self.largest.chunks_mut(tokens / widest));
        parts.map(move |((x, words), largest)| FloatPiece { format, k, widest, x, words, largest })
    }

    fn tiles(&self) -> Tiles {
        Tiles::new(self.m, self.widest)
    }

    /// The words of a tile.
    #[inline(always)]
    fn words(&self, tile: Tile) -> &[u32] {
        let per_token = words_per_token(self.format, self.k);
        &self.words[tile.start * per_token..(tile.start + tile.width) * per_token]
    }
}

/// Words of a token's activations: one a column, and +0 where BF16 has a column of padding.
fn words_per_token(format: Format, k: usize) -> usize {
    if format == Format::BF16 { k.next_multiple_of(2) } else { k }
}

/// Tokens of the widest tile.
fn widest(isa: Isa) -> usize {
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
struct Tile {
    start: usize,
    /// Tokens there is room for.
    width: usize,
    /// Tokens.
    used: usize,
}

/// Cuts `m` tokens into tiles.
struct Tiles {
    next: usize,
    end: usize,
    widest: usize,
}

/// Widths that there are kernels for.
const WIDTHS: [usize; 6] = [1, 2, 4, 6, 8, 12];

/// Runs `$body` with the width of a tile as the constant `$T`.
macro_rules! with_width {
    ($width:expr, $T:ident => $body:expr) => {
        match $width {
            1 => with_width!(@ 1, $T, $body),
            2 => with_width!(@ 2, $T, $body),
            4 => with_width!(@ 4, $T, $body),
            6 => with_width!(@ 6, $T, $body),
            8 => with_width!(@ 8, $T, $body),
            _ => with_width!(@ 12, $T, $body),
        }
    };
    (@ $width:literal, $T:ident, $body:expr) => {{
        const $T: usize = $width;
        $body
    }};
}

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

/// Some tokens of [`Floats`], and the rows that they come from.
pub struct FloatPiece<'a> {
    format: Format,
    k: usize,
    widest: usize,
    x: &'a [f32],
    words: &'a mut [u32],
    largest: &'a mut [u32],
}

impl FloatPiece<'_> {
    /// Rounds the rows to the type of the weights; what is below [`TINY`] becomes +0.
    pub fn round(self, isa: Isa) {
        match self.format {
            Format::F32 => isa.run(Rounding::<F32>(self, PhantomData)),
            Format::F16 => isa.run(Rounding::<F16>(self, PhantomData)),
            _ => isa.run(Rounding::<Bf16<true>>(self, PhantomData)),
        }
    }
}

struct Rounding<'a, E>(FloatPiece<'a>, PhantomData<E>);

impl<E: Element> Kernel for Rounding<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FloatPiece { format, k, widest, x, words, largest } = self.0;
        let per_token = words_per_token(format, k);
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
    for (x, words) in x.chunks(LANES).zip(words.chunks_mut(LANES)) {
        let bits = round_lanes::<S, E>(s, x, &mut largest);
        store_words(s, bits, words);
    }
    largest
}

/// The rows of `x`, side by side; returns the largest magnitudes.
#[inline(always)]
fn round_tile<S: Simd, E: Element>(s: S, x: &[f32], k: usize, width: usize, words: &mut [u32]) -> S::I {
    let mut largest = s.splat_i32(0);
    for (block, words) in words.chunks_mut(LANES * width).enumerate() {
        let mut rows = [s.splat_i32(0); LANES];
        let cols = block * LANES..k.min((block + 1) * LANES);
        for (row, x) in rows.iter_mut().zip(x.chunks_exact(k)) {
            *row = round_lanes::<S, E>(s, &x[cols.clone()], &mut largest);
        }
        // Each store's lanes past the width are those that the next one writes.
        for (i, column) in s.transpose(rows).into_iter().enumerate() {
            match words.get_mut(i * width..) {
                Some(words) => store_words(s, column, words),
                None => break,
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

/// Rounded activations times the transpose of the rows in `panels`, into `out [m, rows]`. The last panel may have fewer
/// rows than 16.
///
/// # Panics
/// If a size does not fit.
pub fn linear_dense(isa: Isa, panels: DensePanels<'_>, x: &Floats, out: MatrixMut<'_>) {
    let panel = DenseLayout::new(panels.format, panels.cols).bytes();
    let fits = x.format == panels.format && x.k == panels.cols && x.m == out.rows();
    assert!(fits && x.widest == widest(isa), "activations for {} columns", panels.cols);
    assert_eq!(panels.bytes.len(), out.cols().div_ceil(LANES) * panel, "panels of {}", panels.format);
    if panels.bytes.is_empty() || x.m == 0 {
        return;
    }
    match panels.format {
        Format::F32 => isa.run(Dense::<F32>::new(panels, x, out)),
        Format::F16 => isa.run(Dense::<F16>::new(panels, x, out)),
        _ => isa.run(Dense::<Bf16<true>>::new(panels, x, out)),
    }
}

/// How weights of a type are read and multiplied.
trait Element {
    /// Columns of a step, words of a token's activations in it, and vectors of weights.
    const COLS: usize;
    /// A step of 16 rows.
    type Step: Pod;
    /// The same with products that are rounded before they are added.
    type Rounded: Element<Step = Self::Step>;

    /// The columns of a step as f32, those below [`TINY`] as +0; of two, [`Self::COLS`] count. Keeps the largest.
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2];
    /// `acc + weights * x`.
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F;
    /// Activations rounded to the type of the weights.
    fn round<S: Simd>(s: S, x: S::F) -> S::F;
    /// Whether a product may be too large for [`Self::add`], given the largest weights and the bits of the largest
    /// activation.
    #[inline(always)]
    fn overflows<S: Simd>(_s: S, _weights: S::I, _x: u32) -> bool {
        false
    }
}

struct F32;
struct F16;
/// Fused or not.
struct Bf16<const FUSED: bool>;

impl Element for F32 {
    const COLS: usize = 1;
    type Step = [u8; 4 * LANES];
    type Rounded = F32;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, _: &mut S::I) -> [S::F; 2] {
        [without_tiny(s, s.of_bits(s.load_bytes(step))); 2]
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        s.add(acc, s.mul(weights, x))
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, x: S::F) -> S::F {
        x
    }
}

impl Element for F16 {
    const COLS: usize = 1;
    type Step = [u8; 2 * LANES];
    /// No product of two f16 is rounded or too large.
    type Rounded = F16;

    /// No f16 but zero is below [`TINY`].
    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, _: &mut S::I) -> [S::F; 2] {
        [s.load_f16(step); 2]
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        s.add_exact_product(acc, weights, x)
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        s.round_f16(x)
    }
}

/// The high half of each word.
const HIGH: i32 = 0xffff << 16;

impl<const FUSED: bool> Element for Bf16<FUSED> {
    const COLS: usize = 2;
    type Step = [u8; 4 * LANES];
    type Rounded = Bf16<false>;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2] {
        let pairs = s.at_least_u16(s.load_bytes(step), (TINY.to_bits() >> 16) as u16);
        if FUSED {
            *largest = s.max_u16(*largest, s.and(pairs, s.splat_i32(0x7fff_7fff)));
        }
        [s.of_bits(s.and(pairs, s.splat_i32(HIGH))), s.of_bits(s.shl::<16>(pairs))]
    }

    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        if FUSED { s.add_exact_product(acc, weights, x) } else { s.add(acc, s.mul(weights, x)) }
    }

    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        let bits = s.bits(x);
        let odd = s.and(s.shr::<16>(bits), s.splat_i32(1));
        let rounded = s.and(s.add_i32(bits, s.add_i32(odd, s.splat_i32(0x7fff))), s.splat_i32(HIGH));
        let is_nan = s.lt_i32(s.splat_i32(f32::INFINITY.to_bits() as i32), s.bits(s.abs(x)));
        s.select(is_nan, s.splat(f32::NAN), s.of_bits(rounded))
    }

    /// A product of two bf16 is exact unless it is too large.
    #[inline(always)]
    fn overflows<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
        let (high, low) = (s.shr::<16>(weights), s.and(weights, s.splat_i32(0xffff)));
        let weight = f32::from_bits((s.max_lane_i32(s.max_i32(high, low)) as u32) << 16);
        let largest = f64::from(weight) * f64::from(f32::from_bits(x));
        FUSED && !(largest < f64::from(f32::MAX) / 2.0)
    }
}

#[inline(always)]
fn without_tiny<S: Simd>(s: S, x: S::F) -> S::F {
    s.select(s.lt(s.abs(x), s.splat(TINY)), s.splat(0.0), x)
}

/// A task over weights of type `E`.
struct Dense<'a, E> {
    panels: &'a [u8],
    panel_bytes: usize,
    x: &'a Floats,
    out: MatrixMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Dense<'_, E> {
    type Output = ();

    /// Few tokens take the weights as they come; more of them share weights that are widened once a span.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let panels = self.panels.len() / self.panel_bytes;
        if self.x.m <= S::DENSE_TOKENS {
            for tile in self.x.tiles() {
                with_width!(tile.width, T => self.stream::<S, T>(s, tile, panels));
            }
        } else {
            let whole = panels - panels % S::DENSE_PANELS;
            if S::DENSE_PANELS == 2 {
                self.share::<S, 2>(s, 0..whole);
            }
            self.share::<S, 1>(s, if S::DENSE_PANELS == 2 { whole } else { 0 }..panels);
        }
    }
}

impl<'a, E: Element> Dense<'a, E> {
    fn new(panels: DensePanels<'a>, x: &'a Floats, out: MatrixMut<'a>) -> Self {
        let panel_bytes = DenseLayout::new(panels.format, panels.cols).bytes();
        Dense { panels: panels.bytes, panel_bytes, x, out, element: PhantomData }
    }

    /// One tile of tokens with all panels, several of them at a time so that many chains of sums are in flight.
    #[inline(always)]
    fn stream<S: Simd, const T: usize>(&mut self, s: S, tile: Tile, panels: usize) {
        if T > S::DENSE_TOKENS {
            return;
        }
        let most = const { if S::DENSE_PANELS * S::DENSE_TOKENS / T < 4 { 4 / T } else { S::DENSE_PANELS * S::DENSE_TOKENS / T } };
        let mut next = 0;
        while most >= 4 && next + 4 <= panels {
            self.stream_panels::<S, 4, T>(s, tile, next);
            next += 4;
        }
        while most >= 2 && next + 2 <= panels {
            self.stream_panels::<S, 2, T>(s, tile, next);
            next += 2;
        }
        while next < panels {
            self.stream_panels::<S, 1, T>(s, tile, next);
            next += 1;
        }
    }

    #[inline(always)]
    fn stream_panels<S: Simd, const P: usize, const T: usize>(&mut self, s: S, tile: Tile, first: usize) {
        let words = self.x.words(tile);
        let x_largest = self.x.largest[tile.start / self.x.widest];
        for (span, x) in words.chunks(DOT_SPAN * T).enumerate() {
            let panels = array::from_fn(|p| self.span(first + p, span, x.len() / T));
            let (sums, largest) = streamed::<S, E, P, T>(s, panels, x);
            if E::overflows(s, largest, x_largest) {
                for (p, panel) in panels.into_iter().enumerate() {
                    let sums = streamed::<S, E::Rounded, 1, T>(s, [panel], x).0;
                    self.put::<S, 1, T>(s, sums, first + p, span, tile);
                }
            } else {
                self.put::<S, P, T>(s, sums, first, span, tile);
            }
        }
    }

    /// All tiles with `P` panels at a time.
    #[inline(always)]
    fn share<S: Simd, const P: usize>(&mut self, s: S, panels: Range<usize>) {
        if panels.is_empty() {
            return;
        }
        let x = self.x;
        let mut weights = [[s.splat(0.0); P]; DOT_SPAN];
        for start in (0..x.m).step_by(BLOCK_TOKENS / S::DENSE_TOKENS * S::DENSE_TOKENS) {
            let tiles = Tiles { next: start, end: x.m.min(start + BLOCK_TOKENS / S::DENSE_TOKENS * S::DENSE_TOKENS), widest: x.widest };
            for span in 0..words_per_token(x.format, x.k).div_ceil(DOT_SPAN) {
                for first in panels.clone().step_by(P) {
                    let cols = DOT_SPAN.min(words_per_token(x.format, x.k) - span * DOT_SPAN);
                    let steps: [_; P] = array::from_fn(|p| self.span(first + p, span, cols));
                    let largest = widen::<S, E, P>(s, steps, &mut weights);
                    for tile in (Tiles { ..tiles }) {
                        with_width!(tile.width, T => self.share_tile::<S, P, T>(s, &weights[..cols], (steps, largest), first, span, tile));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn share_tile<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        weights: &[[S::F; P]],
        (steps, largest): ([&[E::Step]; P], S::I),
        first: usize,
        span: usize,
        tile: Tile,
    ) {
        if T > S::DENSE_TOKENS {
            return;
        }
        let x = &self.x.words(tile)[span * DOT_SPAN * T..][..weights.len() * T];
        if E::overflows(s, largest, self.x.largest[tile.start / self.x.widest]) {
            for (p, steps) in steps.into_iter().enumerate() {
                let sums = streamed::<S, E::Rounded, 1, T>(s, [steps], x).0;
                self.put::<S, 1, T>(s, sums, first + p, span, tile);
            }
            return;
        }
        let mut acc = [[s.splat(0.0); T]; P];
        for (weights, x) in weights.iter().zip(x.as_chunks::<T>().0) {
            column::<S, E, P, T>(s, *weights, x, &mut acc);
        }
        self.put::<S, P, T>(s, acc, first, span, tile);
    }

    /// The steps of `cols` columns of a span of a panel.
    #[inline(always)]
    fn span(&self, panel: usize, span: usize, cols: usize) -> &'a [E::Step] {
        let (size, start) = (size_of::<E::Step>(), panel * self.panel_bytes);
        let at = start + span * (DOT_SPAN / E::COLS) * size;
        bytemuck::cast_slice(&self.panels[at..at + cols / E::COLS * size])
    }

    /// Adds the sums of a span to those of the spans before. (No sum that starts at +0 is ever -0, so the first need not
    /// be added to +0.)
    #[inline(always)]
    fn put<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        sums: [[S::F; T]; P],
        first: usize,
        span: usize,
        tile: Tile,
    ) {
        for (t, _) in (0..T).zip(0..tile.used) {
            let row = self.out.row(tile.start + t);
            for (p, sums) in sums.iter().enumerate() {
                let out = &mut row[(first + p) * LANES..];
                let sum = if span == 0 { sums[t] } else { s.add(load_rows(s, out), sums[t]) };
                store_rows(s, sum, out);
            }
        }
    }
}

/// The sums of one span, in the order of the columns, from +0 on; and the largest weights.
#[inline(always)]
fn streamed<S: Simd, E: Element, const P: usize, const T: usize>(
    s: S,
    panels: [&[E::Step]; P],
    x: &[u32],
) -> ([[S::F; T]; P], S::I) {
    let mut acc = [[s.splat(0.0); T]; P];
    let mut largest = s.splat_i32(0);
    let steps = panels[0].len();
    let panels = panels.map(|panel| &panel[..steps]);
    let (x, _) = x.as_chunks::<T>();
    for (i, x) in x.chunks_exact(E::COLS).enumerate().take(steps) {
        let mut weights = [[s.splat(0.0); 2]; P];
        for (weights, panel) in weights.iter_mut().zip(panels) {
            *weights = E::load(s, &panel[i], &mut largest);
        }
        for (col, x) in x.iter().enumerate() {
            column::<S, E, P, T>(s, weights.map(|weights| weights[col]), x, &mut acc);
        }
    }
    (acc, largest)
}

/// The columns of a span as f32, and the largest weights.
#[inline(always)]
fn widen<S: Simd, E: Element, const P: usize>(
    s: S,
    panels: [&[E::Step]; P],
    out: &mut [[S::F; P]; DOT_SPAN],
) -> S::I {
    let mut largest = s.splat_i32(0);
    for (p, panel) in panels.into_iter().enumerate() {
        for (step, out) in panel.iter().zip(out.chunks_exact_mut(E::COLS)) {
            let weights = E::load(s, step, &mut largest);
            for (out, weights) in out.iter_mut().zip(weights) {
                out[p] = weights;
            }
        }
    }
    largest
}

/// Adds the products of one column.
#[inline(always)]
fn column<S: Simd, E: Element, const P: usize, const T: usize>(
    s: S,
    weights: [S::F; P],
    x: &[u32; T],
    acc: &mut [[S::F; T]; P],
) {
    for t in 0..T {
        let x = s.of_bits(s.splat_i32(x[t] as i32));
        for p in 0..P {
            acc[p][t] = E::add(s, acc[p][t], weights[p], x);
        }
    }
}

/// The values of 16 rows, or of as many as there are.
#[inline(always)]
fn load_rows<S: Simd>(s: S, rows: &[f32]) -> S::F {
    match rows.first_chunk() {
        Some(rows) => s.load(rows),
        None => {
            let mut lanes = [0.0; LANES];
            lanes[..rows.len()].copy_from_slice(rows);
            s.load(&lanes)
        }
    }
}

/// The values of 16 rows, or of as many as are left.
#[inline(always)]
pub(super) fn store_rows<S: Simd>(s: S, rows: S::F, out: &mut [f32]) {
    match out.first_chunk_mut() {
        Some(out) => s.store(rows, out),
        None => {
            let mut lanes = [0.0; LANES];
            s.store(rows, &mut lanes);
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}
