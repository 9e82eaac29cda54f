//! Linear layers over float weights: the contract's `dot`, 16 rows side by side.

use std::{array, cmp::Ordering, marker::PhantomData};

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
    rounding: Rounding,
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
        Floats { rounding: Rounding::F32, m: 0, k: 0, widest: 1, words: Vec::new(), largest: Vec::new() }
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
        (self.rounding, self.m, self.k, self.widest) = (Rounding::of(isa, format), m, k, widest(isa));
        let padded = self.tiles().map(|tile| tile.width).sum::<usize>();
        self.words.resize(self.words.len().max(padded * self.rounding.words(k)), 0);
        self.largest.resize(self.largest.len().max(m.div_ceil(self.widest)), 0);
    }

    /// Pieces of about `tokens` tokens with their rows of `x [m, k]`, to be rounded in any order.
    ///
    /// # Panics
    /// If `x` is not as long, or has no columns.
    pub fn pieces<'a>(&'a mut self, x: &'a [f32], tokens: usize) -> impl Iterator<Item = FloatPiece<'a>> {
        let Floats { rounding, m, k, widest, .. } = *self;
        assert_eq!(x.len(), m * k, "activations [{m}, {k}]");
        let tokens = tokens.max(1).next_multiple_of(widest);
        let parts = x
            .chunks(tokens * k)
            .zip(self.words.chunks_mut(tokens * rounding.words(k)))
            .zip(self.largest.chunks_mut(tokens / widest));
        parts.map(move |((x, words), largest)| FloatPiece { rounding, k, widest, x, words, largest })
    }

    fn tiles(&self) -> Tiles {
        Tiles::new(self.m, self.widest)
    }

    /// The words of a tile.
    #[inline(always)]
    fn words(&self, tile: Tile) -> &[u32] {
        let per_token = self.rounding.words(self.k);
        &self.words[tile.start * per_token..(tile.start + tile.width) * per_token]
    }
}

/// What activations are rounded to, and what a word of them holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
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
    fn of(isa: Isa, format: Format) -> Self {
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
    fn words(self, k: usize) -> usize {
        match self {
            Rounding::F32 | Rounding::F16 => k,
            Rounding::Bf16 => k.next_multiple_of(2),
            Rounding::Bf16Pairs => k.div_ceil(2),
        }
    }
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
    rounding: Rounding,
    k: usize,
    widest: usize,
    x: &'a [f32],
    words: &'a mut [u32],
    largest: &'a mut [u32],
}

impl FloatPiece<'_> {
    /// Rounds the rows to the type of the weights; what is below [`TINY`] becomes +0.
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

/// Two columns of rounded values in a word each.
#[inline(always)]
fn pairs<S: Simd>(s: S, first: S::I, second: S::I) -> S::I {
    s.or(s.and(first, s.splat_i32(HIGH)), s.shr::<16>(second))
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

/// Rounded activations times the transpose of the rows in `panels`, into `out [m, rows]`. The last panel may have fewer
/// rows than 16.
///
/// # Panics
/// If a size does not fit.
pub fn linear_dense(isa: Isa, panels: DensePanels<'_>, x: &Floats, out: MatrixMut<'_>) {
    let panel = DenseLayout::new(panels.format, panels.cols).bytes();
    let rounding = Rounding::of(isa, panels.format);
    let fits = x.rounding == rounding && x.widest == widest(isa) && x.k == panels.cols && x.m == out.rows();
    assert!(fits, "activations for {} columns of {}", panels.cols, panels.format);
    assert_eq!(panels.bytes.len(), out.cols().div_ceil(LANES) * panel, "panels of {}", panels.format);
    if panels.bytes.is_empty() || x.m == 0 {
        return;
    }
    match rounding {
        Rounding::F32 => isa.run(Dense::<F32>::new(panels, x, out)),
        Rounding::F16 => isa.run(Dense::<F16>::new(panels, x, out)),
        Rounding::Bf16 => isa.run(Dense::<Bf16<true>>::new(panels, x, out)),
        Rounding::Bf16Pairs => isa.run(Dense::<Bf16Pairs<true>>::new(panels, x, out)),
    }
}

/// How weights of a type are read and multiplied.
trait Element {
    /// Columns of a step.
    const COLS: usize;
    /// Vectors of weights of a step, and words of a token's activations.
    const VECTORS: usize;
    /// Vectors of a span.
    const SPAN: usize = DOT_SPAN / Self::COLS * Self::VECTORS;
    /// Whether [`Simd::dot_bf16`] is used.
    const BF16_DOTS: bool = false;
    /// A step of 16 rows.
    type Step: Pod;
    /// The same with products that are rounded before they are added.
    type Rounded: Element<Step = Self::Step>;

    /// The weights of a step, those below [`TINY`] as +0, in [`Self::VECTORS`] of two vectors. Keeps the largest.
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2];
    /// `acc + weights * x`, of a pair the first column first.
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
/// Columns apart; fused or not.
struct Bf16<const FUSED: bool>;
/// Columns in pairs; fused or not.
struct Bf16Pairs<const FUSED: bool>;

impl Element for F32 {
    const COLS: usize = 1;
    const VECTORS: usize = 1;
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
    const VECTORS: usize = 1;
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
    const VECTORS: usize = 2;
    type Step = [u8; 4 * LANES];
    type Rounded = Bf16<false>;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2] {
        halves(s, load_pairs::<S, FUSED>(s, step, largest))
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        if FUSED { s.add_exact_product(acc, weights, x) } else { s.add(acc, s.mul(weights, x)) }
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        round_bf16(s, x)
    }
    #[inline(always)]
    fn overflows<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
        FUSED && pairs_overflow(s, weights, x)
    }
}

impl<const FUSED: bool> Element for Bf16Pairs<FUSED> {
    const COLS: usize = 2;
    const VECTORS: usize = 1;
    const BF16_DOTS: bool = FUSED;
    type Step = [u8; 4 * LANES];
    type Rounded = Bf16Pairs<false>;

    #[inline(always)]
    fn load<S: Simd>(s: S, step: &Self::Step, largest: &mut S::I) -> [S::F; 2] {
        [s.of_bits(load_pairs::<S, FUSED>(s, step, largest)); 2]
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, acc: S::F, weights: S::F, x: S::F) -> S::F {
        let (weights, x) = (s.bits(weights), s.bits(x));
        if FUSED {
            return s.dot_bf16(acc, weights, x);
        }
        let ([w0, w1], [x0, x1]) = (halves(s, weights), halves(s, x));
        s.add(s.add(acc, s.mul(w0, x0)), s.mul(w1, x1))
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, x: S::F) -> S::F {
        round_bf16(s, x)
    }
    #[inline(always)]
    fn overflows<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
        FUSED && pairs_overflow(s, weights, x)
    }
}

/// Pairs of weights, those below [`TINY`] as +0. Keeps the largest if asked to.
#[inline(always)]
fn load_pairs<S: Simd, const KEEP: bool>(s: S, step: &[u8; 4 * LANES], largest: &mut S::I) -> S::I {
    let pairs = s.at_least_u16(s.load_bytes(step), (TINY.to_bits() >> 16) as u16);
    if KEEP {
        *largest = s.max_u16(*largest, s.and(pairs, s.splat_i32(0x7fff_7fff)));
    }
    pairs
}

/// The columns of pairs, widened.
#[inline(always)]
fn halves<S: Simd>(s: S, pairs: S::I) -> [S::F; 2] {
    [s.of_bits(s.and(pairs, s.splat_i32(HIGH))), s.of_bits(s.shl::<16>(pairs))]
}

/// The nearest bf16, ties to even, widened.
#[inline(always)]
fn round_bf16<S: Simd>(s: S, x: S::F) -> S::F {
    let bits = s.bits(x);
    let odd = s.and(s.shr::<16>(bits), s.splat_i32(1));
    let rounded = s.and(s.add_i32(bits, s.add_i32(odd, s.splat_i32(0x7fff))), s.splat_i32(HIGH));
    let is_nan = s.lt_i32(s.splat_i32(f32::INFINITY.to_bits() as i32), s.bits(s.abs(x)));
    s.select(is_nan, s.splat(f32::NAN), s.of_bits(rounded))
}

/// Whether a product of two bf16 may be too large for an f32; it is one exactly otherwise.
#[inline(always)]
fn pairs_overflow<S: Simd>(s: S, weights: S::I, x: u32) -> bool {
    let (high, low) = (s.shr::<16>(weights), s.and(weights, s.splat_i32(0xffff)));
    let weight = f32::from_bits((s.max_lane_i32(s.max_i32(high, low)) as u32) << 16);
    let largest = f64::from(weight) * f64::from(f32::from_bits(x));
    // True for NaN as well.
    !matches!(largest.partial_cmp(&f64::from(f32::MAX)), Some(Ordering::Less))
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
    const BF16_DOTS: bool = E::BF16_DOTS;
    type Output = ();

    /// Few tokens take the weights as they come; more of them share weights that are widened once.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let tile = match self.x.tiles().next() {
            Some(tile) if tile.used == self.x.m => tile,
            _ if const { S::DENSE_PANELS == 2 } => return self.share::<S, 2>(s),
            _ => return self.share::<S, 1>(s),
        };
        with_width!(tile.width, T => self.stream::<S, T>(s, tile));
    }
}

impl<'a, E: Element> Dense<'a, E> {
    fn new(panels: DensePanels<'a>, x: &'a Floats, out: MatrixMut<'a>) -> Self {
        let panel_bytes = DenseLayout::new(panels.format, panels.cols).bytes();
        Dense { panels: panels.bytes, panel_bytes, x, out, element: PhantomData }
    }

    fn panels(&self) -> usize {
        self.panels.len() / self.panel_bytes
    }

    /// One tile of tokens with all panels; one token takes several panels at a time, so that many sums are in flight.
    #[inline(always)]
    fn stream<S: Simd, const T: usize>(&mut self, s: S, tile: Tile) {
        let (panels, mut first) = (self.panels(), 0);
        while first < panels {
            first += match panels - first {
                _ if const { T > S::DENSE_TOKENS } => return,
                _ if const { T > 1 && S::DENSE_PANELS == 2 } => self.stream_panels::<S, 2, T>(s, tile, first),
                _ if const { T > 1 } => self.stream_panels::<S, 1, T>(s, tile, first),
                1 => self.stream_panels::<S, 1, T>(s, tile, first),
                2 | 3 => self.stream_panels::<S, 2, T>(s, tile, first),
                _ => self.stream_panels::<S, 4, T>(s, tile, first),
            };
        }
    }

    /// Returns how many panels it takes; the last one stands in for those past it.
    #[inline(always)]
    fn stream_panels<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        tile: Tile,
        first: usize,
    ) -> usize {
        let last = self.panels() - 1;
        for (span, x) in self.x.words(tile).chunks(E::SPAN * T).enumerate() {
            let panels = array::from_fn(|p| self.span(last.min(first + p), span, x.len() / T));
            let (sums, largest) = streamed::<S, E, P, T>(s, panels, x);
            if E::overflows(s, largest, self.x.largest[0]) {
                self.rounded::<S, P, T>(s, panels, x, first, span, tile);
            } else {
                self.put::<S, P, T>(s, sums, first, span, tile);
            }
        }
        P
    }

    /// All tiles with `P` panels at a time: some hundred tokens at once, a span after the other, so that their activations
    /// stay in the cache as the panels pass by.
    #[inline(always)]
    fn share<S: Simd, const P: usize>(&mut self, s: S) {
        let (x, last) = (self.x, self.panels() - 1);
        let mut weights = [[s.splat(0.0); P]; DOT_SPAN];
        let (per_token, block) = (x.rounding.words(x.k), BLOCK_TOKENS / S::DENSE_TOKENS * S::DENSE_TOKENS);
        for start in (0..x.m).step_by(block) {
            for span in 0..per_token.div_ceil(E::SPAN) {
                let words = E::SPAN.min(per_token - span * E::SPAN);
                for first in (0..=last).step_by(P) {
                    let steps = array::from_fn(|p| self.span(last.min(first + p), span, words));
                    let largest = widen::<S, E, P>(s, steps, &mut weights);
                    let group = Group { first, span, steps, weights: &weights[..words], largest };
                    for tile in (Tiles { next: start, end: x.m.min(start + block), widest: x.widest }) {
                        with_width!(tile.width, T => self.share_tile::<S, P, T>(s, &group, tile));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn share_tile<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        group: &Group<'_, S, E::Step, P>,
        tile: Tile,
    ) {
        if const { T > S::DENSE_TOKENS } {
            return;
        }
        let &Group { first, span, steps, weights, largest } = group;
        let x = &self.x.words(tile)[span * E::SPAN * T..][..weights.len() * T];
        if E::overflows(s, largest, self.x.largest[tile.start / self.x.widest]) {
            return self.rounded::<S, P, T>(s, steps, x, first, span, tile);
        }
        let mut acc = [[s.splat(0.0); T]; P];
        for (weights, x) in weights.iter().zip(x.as_chunks::<T>().0) {
            column::<S, E, P, T>(s, *weights, x, &mut acc);
        }
        self.put::<S, P, T>(s, acc, first, span, tile);
    }

    /// A span with products that are rounded before they are added.
    #[inline(always)]
    fn rounded<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        panels: [&[E::Step]; P],
        x: &[u32],
        first: usize,
        span: usize,
        tile: Tile,
    ) {
        for (p, steps) in panels.into_iter().enumerate() {
            let (sums, _) = streamed::<S, E::Rounded, 1, T>(s, [steps], x);
            self.put::<S, 1, T>(s, sums, first + p, span, tile);
        }
    }

    /// The steps of `vectors` vectors of a span of a panel.
    #[inline(always)]
    fn span(&self, panel: usize, span: usize, vectors: usize) -> &'a [E::Step] {
        let size = size_of::<E::Step>();
        let at = panel * self.panel_bytes + span * (DOT_SPAN / E::COLS) * size;
        bytemuck::cast_slice(&self.panels[at..at + vectors / E::VECTORS * size])
    }

    /// Adds the sums of a span to those of the spans before, in rows that there are. (No sum that starts at +0 is ever -0, so the first need not
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
                if let Some(out) = row.get_mut((first + p) * LANES..) {
                    let sum = if span == 0 { sums[t] } else { s.add(load_rows(s, out), sums[t]) };
                    store_rows(s, sum, out);
                }
            }
        }
    }
}

/// Panels that many tiles share, in one span.
struct Group<'a, S: Simd, Step, const P: usize> {
    first: usize,
    span: usize,
    steps: [&'a [Step]; P],
    weights: &'a [[S::F; P]],
    largest: S::I,
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
    for (i, x) in x.chunks_exact(E::VECTORS).enumerate().take(steps) {
        let mut weights = [[s.splat(0.0); 2]; P];
        for (weights, panel) in weights.iter_mut().zip(panels) {
            *weights = E::load(s, &panel[i], &mut largest);
        }
        for (v, x) in x.iter().enumerate() {
            column::<S, E, P, T>(s, weights.map(|weights| weights[v]), x, &mut acc);
        }
    }
    (acc, largest)
}

/// The weights of a span, and the largest of them.
#[inline(always)]
fn widen<S: Simd, E: Element, const P: usize>(
    s: S,
    panels: [&[E::Step]; P],
    out: &mut [[S::F; P]; DOT_SPAN],
) -> S::I {
    let mut largest = s.splat_i32(0);
    for (p, panel) in panels.into_iter().enumerate() {
        for (step, out) in panel.iter().zip(out.chunks_exact_mut(E::VECTORS)) {
            let weights = E::load(s, step, &mut largest);
            for (out, weights) in out.iter_mut().zip(weights) {
                out[p] = weights;
            }
        }
    }
    largest
}

/// Adds the products of one vector of weights.
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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::BF16];

    /// `[rows, k]` times the transpose of `[rows, k]`.
    struct Case {
        format: Format,
        x: Vec<f32>,
        weights: Vec<u8>,
        m: usize,
        rows: usize,
        k: usize,
    }

    impl Case {
        fn new(format: Format, [m, rows, k]: [usize; 3], mut value: impl FnMut() -> f32) -> Self {
            let x = (0..m * k).map(|_| value()).collect();
            let weights = (0..rows * k).flat_map(|_| encode(format, value())).collect();
            Case { format, x, weights, m, rows, k }
        }

        /// The contract's `dot`, an element after the other.
        fn expected(&self) -> Vec<f32> {
            let size = self.format.block_bytes();
            let operand = |x: f32| if x.abs() < TINY { 0.0 } else { x };
            let weights: Vec<f32> =
                self.weights.chunks_exact(size).map(|bytes| operand(decode(self.format, bytes))).collect();
            let round = |&x: &f32| operand(decode(self.format, &encode(self.format, x)));
            let x: Vec<f32> = self.x.iter().map(round).collect();
            let dot = |x: &[f32], w: &[f32]| {
                let spans = x.chunks(DOT_SPAN).zip(w.chunks(DOT_SPAN));
                spans.fold(0.0, |sum, (x, w)| sum + x.iter().zip(w).fold(0.0, |acc, (x, w)| acc + x * w))
            };
            x.chunks(self.k).flat_map(|x| weights.chunks(self.k).map(move |w| dot(x, w))).collect()
        }

        fn found(&self, isa: Isa) -> Vec<f32> {
            let &Case { format, m, rows, k, .. } = self;
            let layout = DenseLayout::new(format, k);
            let mut bytes = vec![0; rows.div_ceil(LANES) * layout.bytes()];
            let packed =
                bytes.chunks_mut(layout.bytes()).zip(self.weights.chunks(LANES * layout.row_bytes()));
            packed.for_each(|(panel, rows)| layout.pack(rows, panel));
            let mut x = Floats::new();
            // Memory that has been used before.
            x.round(isa, &vec![f32::NAN; 2 * m * (k + 1)], 2 * m, k + 1, format);
            x.reset(isa, m, k, format);
            x.pieces(&self.x, 5).for_each(|piece| piece.round(isa));
            let mut out = vec![f32::NAN; m * rows];
            let panels = DensePanels { format, cols: k, bytes: &bytes };
            linear_dense(isa, panels, &x, MatrixMut::new(&mut out, m, rows));
            out
        }

        fn check(&self) -> Vec<f32> {
            let expected = self.expected();
            for isa in Isa::available() {
                let found = self.found(isa);
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let differs = expected.iter().zip(&found).position(|pair| !same(pair));
                let Case { format, m, rows, k, .. } = self;
                assert_eq!(differs, None, "{format} [{m}, {k}] by {rows} rows on {}", isa.name());
            }
            expected
        }
    }

    fn encode(format: Format, x: f32) -> Vec<u8> {
        match format {
            Format::F32 => x.to_le_bytes().to_vec(),
            Format::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
            _ => bf16::from_f32(x).to_le_bytes().to_vec(),
        }
    }

    fn decode(format: Format, bytes: &[u8]) -> f32 {
        match format {
            Format::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Format::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            _ => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    fn random() -> impl FnMut() -> u32 {
        let mut state = 1u64;
        move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 32) as u32
        }
    }

    /// In [-1, 1].
    fn unit(random: u32) -> f32 {
        random as i32 as f32 * 2f32.powi(-31)
    }

    #[test]
    fn every_shape_has_the_contracts_bits() {
        let mut random = random();
        for format in FORMATS {
            for (i, m) in [1, 2, 3, 5, 7, 11, 12, 13, 14, 25, 30, 241].into_iter().enumerate() {
                let (rows, k) = ([1, 17, 33, 48, 79, 95][i % 6], [1, 18, 515, 37, 1061][i % 5]);
                Case::new(format, [m, rows, k], || unit(random())).check();
            }
        }
    }

    #[test]
    fn edges_have_the_contracts_bits() {
        let edges = [
            0.0,
            -0.0,
            TINY,
            -TINY,
            TINY * (1.0 - f32::EPSILON),
            TINY * (1.0 + f32::EPSILON),
            1e-40,
            -6e-8,
            65504.0,
            65520.0,
            -1e30,
        ];
        let mut random = random();
        for format in FORMATS {
            for (m, k) in [(1, 40), (4, 33), (26, 530)] {
                let case = Case::new(format, [m, 35, k], || match random() % 4 {
                    0 => edges[random() as usize % edges.len()],
                    _ => unit(random()) * 1e-3,
                });
                case.check();
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_token() {
        let mut random = random();
        for format in FORMATS {
            for m in [3, 29] {
                let mut case = Case::new(format, [m, 20, 70], || unit(random()));
                case.x[70 + 3] = f32::NAN;
                case.x[2 * 70 + 69] = f32::INFINITY;
                let expected = case.check();
                assert!(expected[20..40].iter().all(|x| x.is_nan()));
                assert!(expected[..20].iter().all(|x| x.is_finite()));
            }
        }
    }

    /// `-1.5 * 2^127 + 2^128`: the product alone is no f32, the sum is.
    #[test]
    fn products_too_large_for_f32_are_infinite_before_they_are_added() {
        let (columns, power) = ([(-1.5, 27), (1.0, 28)], |n: u32| f32::from_bits((127 + n) << 23));
        for m in [1, 2, 12, 13, 40] {
            let mut case = Case::new(Format::BF16, [m, 33, 2], || 0.0);
            for (i, x) in case.x.iter_mut().enumerate() {
                *x = columns[i % 2].0 * power(100);
            }
            case.weights = (0..33 * 2).flat_map(|i| encode(Format::BF16, power(columns[i % 2].1))).collect();
            assert!(case.check().iter().all(|&x| x == f32::INFINITY));
        }
    }

    #[test]
    fn panels_give_their_rows_back() {
        let mut random = random();
        for format in FORMATS {
            for (rows, k) in [(1, 1), (16, 2), (5, 33)] {
                let layout = DenseLayout::new(format, k);
                let bytes: Vec<u8> = (0..rows * layout.row_bytes()).map(|_| random() as u8).collect();
                let mut panel = vec![0; layout.bytes()];
                layout.pack(&bytes, &mut panel);
                for (lane, row) in bytes.chunks(layout.row_bytes()).enumerate() {
                    let mut found = vec![0; row.len()];
                    layout.unpack_row(&panel, lane, &mut found);
                    assert_eq!(found, row, "{format}");
                }
            }
        }
    }
}
