//! Linear layers over weights in blocks: exact integer dots, and one float term a block, in the contract's order.

use std::{cell::Cell, marker::PhantomData, ops::Range};

use samebits_tensor::{Format, contract::DOT_SPAN};

use super::{
    codec::{
        Codec, Iq4Nl, Mxfp4, Signed3, Signed4, Signed5, Signed6, Signed8, Unsigned2, Unsigned4, Unsigned5,
    },
    elementwise::store_at,
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    panel::{LANES, PanelLayout, Side},
    quantize::{Rows, Tile},
    simd::{FAR, Simd, ZERO, ZERO_BITS, prefetch, prefetch_near},
};

/// Quantised activations times the transpose of the rows in `panels`, into `out [m, rows]`. The last panel may have fewer
/// rows than 16.
///
/// # Panics
/// If the activations are not for the layout, or a size does not fit.
pub fn linear_blocks(isa: Isa, layout: &PanelLayout, panels: &[u8], x: Rows<'_>, out: MatrixMut<'_>) {
    let fits = x.serve(layout.format()) && x.cols() == layout.cols() && out.rows() == x.tokens();
    assert!(fits, "activations for {layout:?}");
    assert_eq!(panels.len(), out.cols().div_ceil(LANES) * layout.bytes(), "panels of {layout:?}");
    if panels.is_empty() {
        return;
    }
    let task = Task { layout, panels, x, out };
    match layout.format() {
        Format::Q4_0 => isa.run(Blocks::<Signed4, Of32<false>>::new(task)),
        Format::Q4_1 => isa.run(Blocks::<Unsigned4, Of32<true>>::new(task)),
        Format::Q5_0 => isa.run(Blocks::<Signed5, Of32<false>>::new(task)),
        Format::Q5_1 => isa.run(Blocks::<Unsigned5, Of32<true>>::new(task)),
        Format::Q8_0 => isa.run(Blocks::<Signed8, Of32<false>>::new(task)),
        Format::Iq4Nl => isa.run(Blocks::<Iq4Nl, Of32<false>>::new(task)),
        Format::Mxfp4 => isa.run(Blocks::<Mxfp4, Of32<false>>::new(task)),
        Format::Q2K => isa.run(Blocks::<Unsigned2, Of256<16, true>>::new(task)),
        Format::Q3K => isa.run(Blocks::<Signed3, Of256<16, false>>::new(task)),
        Format::Q4K => isa.run(Blocks::<Unsigned4, Of256<32, true>>::new(task)),
        Format::Q5K => isa.run(Blocks::<Unsigned5, Of256<32, true>>::new(task)),
        Format::Q6K => isa.run(Blocks::<Signed6, Of256<16, false>>::new(task)),
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("a panel layout is of blocks"),
    }
}

struct Task<'a> {
    layout: &'a PanelLayout,
    panels: &'a [u8],
    x: Rows<'a>,
    out: MatrixMut<'a>,
}

/// A task whose integers are encoded by `C` in blocks of kind `B`.
struct Blocks<'a, C, B> {
    task: Task<'a>,
    encoding: PhantomData<(C, B)>,
}

impl<C: Codec, B: BlockKind> Kernel for Blocks<'_, C, B> {
    type Output = ();

    /// Many tiles of the full width share decoded weights; the others decode for themselves, as do those of a codec
    /// whose units are stored as they are read.
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let shared = match self.task.x.tokens() / S::TILE {
            many if many >= Self::WORTH_STAGING && C::UNIT < size_of::<Unit>() => many * S::TILE,
            _ => 0,
        };
        if shared > 0 {
            match (S::PANELS, S::TILE) {
                (2, 8) => self.wide::<S, 2, 8>(s, shared),
                (1, 4) => self.wide::<S, 1, 4>(s, shared),
                (1, 2) => self.wide::<S, 1, 2>(s, shared),
                _ => self.wide::<S, 1, 1>(s, shared),
            }
        }
        for (p, panel) in self.task.panels.chunks_exact(self.task.layout.bytes()).enumerate() {
            let tiles = self.task.x.tiles_from(shared);
            let count = tiles.clone().count();
            for (tile, (start, width)) in tiles.enumerate() {
                match (width, count) {
                    (8, 4..) if B::LEN == 32 => self.narrow::<S, 8, 4>(s, p, panel, start, tile),
                    (8, 2..) if B::LEN == 32 => self.narrow::<S, 8, 2>(s, p, panel, start, tile),
                    (8, _) => self.narrow::<S, 8, 1>(s, p, panel, start, tile),
                    (4, _) => self.narrow::<S, 4, 1>(s, p, panel, start, tile),
                    (2, _) => self.narrow::<S, 2, 1>(s, p, panel, start, tile),
                    _ => self.narrow::<S, 1, 1>(s, p, panel, start, tile),
                }
            }
        }
    }
}

/// Bytes of activations that stay in a core's second cache beside the weights that stream by.
const CACHED: usize = 512 << 10;

impl<'a, C: Codec, B: BlockKind> Blocks<'a, C, B> {
    /// Tiles from which on decoding weights to memory, once for all, is cheaper than decoding them to registers for each: more
    /// where that is a mask and a shift.
    const WORTH_STAGING: usize = if B::LEN == 32 && C::UNIT <= 256 { 5 } else { 3 };

    fn new(task: Task<'a>) -> Self {
        Blocks { task, encoding: PhantomData }
    }

    fn panels(&self) -> usize {
        self.task.panels.len() / self.task.layout.bytes()
    }

    /// The first `tokens` tokens, in tiles of `T`, by all panels, `P` at a time.
    #[inline(always)]
    fn wide<S: Simd, const P: usize, const T: usize>(&mut self, s: S, tokens: usize) {
        if P != S::PANELS || T != S::TILE {
            return;
        }
        let block = (CACHED / self.task.x.cols().max(1)).max(T) / T * T;
        let mut room = ROOM.take().unwrap_or_default();
        room.totals.resize(room.totals.len().max(P * block), [0.0; 16]);
        for start in (0..tokens).step_by(block) {
            let tokens = start..(start + block).min(tokens);
            let whole = self.panels() / P * P;
            for p in (0..whole).step_by(P) {
                self.staged::<S, P, T>(s, p, tokens.clone(), &mut room);
            }
            for p in whole..self.panels() {
                self.staged::<S, 1, T>(s, p, tokens.clone(), &mut room);
            }
        }
        ROOM.set(Some(room));
    }

    /// `P` panels by some tiles of `T` tokens. The integers of a span, and of a short one that is left after it, are decoded
    /// once for all tiles.
    #[inline(always)]
    fn staged<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        p: usize,
        tokens: Range<usize>,
        room: &mut Room,
    ) {
        let mut stages = room.stages.each_mut().map(|stages| stages.first_chunk_mut::<P>().expect("panels"));
        let totals = room.totals.as_chunks_mut::<T>().0.as_chunks_mut::<P>().0;
        let (cols, tiles) = (self.task.layout.cols(), tokens.len() / T);
        let (spans, whole) = (cols.div_ceil(DOT_SPAN), (cols / DOT_SPAN).max(1));
        let both = part(self.task.panels, p / P, P * self.task.layout.bytes());
        let ask = 64 * both.len().div_ceil(64).div_ceil(whole * tiles);
        for span in 0..whole {
            let last = span + 1 == whole;
            let count = if last { spans - span } else { 1 };
            let panels = [span, span + 1].map(|span| std::array::from_fn(|i| self.panel_span(p + i, span)));
            let sides = panels.map(|panels: [_; P]| panels.map(|span| split::<C, B>(span).1));
            for (stages, panels) in stages.iter_mut().zip(panels).take(count) {
                for (stage, span) in stages.iter_mut().zip(panels) {
                    stage.decode::<S, C, B>(s, span);
                }
            }
            for ((tile, start), totals) in tokens.clone().step_by(T).enumerate().zip(&mut *totals) {
                prefetch(s, part(both, span * tiles + tile, ask), both.len());
                let x = self.x_span(start, T, span);
                let mut acc = staged_span::<S, C, B, P, T>(s, stages[0], sides[0], x);
                if span > 0 {
                    add_totals(s, totals, &mut acc);
                }
                if count > 1 {
                    keep_totals(s, acc, totals);
                    let x = self.x_span(start, T, span + 1);
                    acc = staged_span::<S, C, B, P, T>(s, stages[1], sides[1], x);
                    add_totals(s, totals, &mut acc);
                }
                match last {
                    true => self.store(s, p, start, acc),
                    false => keep_totals(s, acc, totals),
                }
            }
        }
    }

    /// One panel by `T` tokens, which are tile `tile` of several. Of these `N` share in asking for the next panel, so that
    /// memory is as busy in the last as in the first; one alone asks for what comes [`FAR`] after it.
    #[inline(always)]
    fn narrow<S: Simd, const T: usize, const N: usize>(
        &mut self,
        s: S,
        p: usize,
        panel: &[u8],
        start: usize,
        tile: usize,
    ) {
        if T > S::TILE {
            return;
        }
        let ahead = if N == 1 { FAR } else { panel.len() + 64 * (tile % N) };
        let x = self.task.x.tile(start, T);
        let blocks = DOT_SPAN / B::LEN;
        let spans = panel
            .chunks(span_bytes::<C, B>())
            .zip(x.q.chunks(T * DOT_SPAN))
            .zip(x.scale.chunks(T * blocks))
            .zip(x.float_sums.chunks(T * blocks))
            .zip(x.bias.chunks(T * blocks * B::parts::<C>()))
            .zip(x.sums.chunks(T * blocks * B::parts::<C>()));
        let mut total = [s.splat(0.0); T];
        for (((((span, q), scale), float_sums), bias), sums) in spans {
            let x = Tile { q, scale, float_sums, bias, sums };
            let acc = packed_span::<S, C, B, T, N>(s, span, x, ahead);
            for (total, acc) in total.iter_mut().zip(acc) {
                *total = s.add(*total, acc);
            }
        }
        for (t, total) in total.into_iter().enumerate() {
            store_at(s, total, self.task.out.row(start + t), p);
        }
    }

    /// A span of a panel.
    #[inline(always)]
    fn panel_span(&self, p: usize, span: usize) -> &'a [u8] {
        part(part(self.task.panels, p, self.task.layout.bytes()), span, span_bytes::<C, B>())
    }

    /// The part of a tile in a span.
    #[inline(always)]
    fn x_span(&self, start: usize, width: usize, span: usize) -> Tile<'a> {
        let Tile { q, scale, float_sums, bias, sums } = self.task.x.tile(start, width);
        let blocks = DOT_SPAN / B::LEN * width;
        Tile {
            q: part(q, span, blocks * B::LEN),
            scale: part(scale, span, blocks),
            float_sums: part(float_sums, span, blocks),
            bias: part(bias, span, blocks * B::parts::<C>()),
            sums: part(sums, span, blocks * B::parts::<C>()),
        }
    }

    /// The product of `P` panels and a tile.
    #[inline(always)]
    fn store<S: Simd, const P: usize, const T: usize>(
        &mut self,
        s: S,
        p: usize,
        start: usize,
        totals: [[S::F; T]; P],
    ) {
        let Some(rows) = self.task.out.lanes::<T, P>(start, LANES * p) else {
            for t in 0..T {
                let row = self.task.out.row(start + t);
                (0..P).for_each(|i| store_at(s, totals[i][t], row, p + i));
            }
            return;
        };
        for (t, row) in rows.into_iter().enumerate() {
            (0..P).for_each(|i| s.store(totals[i][t], &mut row[i]));
        }
    }
}

/// The sums of the spans before, and that of this one. (No sum that starts at +0 is ever -0, so the first span's may stand
/// for itself.)
#[inline(always)]
fn add_totals<S: Simd, const P: usize, const T: usize>(
    s: S,
    totals: &[[[f32; 16]; T]; P],
    acc: &mut [[S::F; T]; P],
) {
    for (totals, acc) in totals.as_flattened().iter().zip(acc.as_flattened_mut()) {
        *acc = s.add(s.load(totals), *acc);
    }
}

#[inline(always)]
fn keep_totals<S: Simd, const P: usize, const T: usize>(
    s: S,
    acc: [[S::F; T]; P],
    totals: &mut [[[f32; 16]; T]; P],
) {
    for (acc, total) in acc.as_flattened().iter().zip(totals.as_flattened_mut()) {
        s.store(*acc, total);
    }
}

/// Bytes of a block of 16 rows: of its units, and of its scales.
#[inline(always)]
fn block_bytes<C: Codec, B: BlockKind>() -> [usize; 2] {
    [B::LEN / 32 * C::UNIT, B::side(C::EXPONENTS).bytes]
}

/// Bytes of a whole span of a panel.
#[inline(always)]
fn span_bytes<C: Codec, B: BlockKind>() -> usize {
    let [units, side] = block_bytes::<C, B>();
    DOT_SPAN / B::LEN * (units + side)
}

/// The units and the scales of a span, which may end with less than a block.
#[inline(always)]
fn split<C: Codec, B: BlockKind>(span: &[u8]) -> (&[u8], &[u8]) {
    let [units, side] = block_bytes::<C, B>();
    let blocks = span.len() / (units + side);
    let (units, sides) = span.split_at(blocks * units);
    (units, &sides[..blocks * side])
}

/// Part `i` of a slice cut every `len` elements.
#[inline(always)]
fn part<T>(values: &[T], i: usize, len: usize) -> &[T] {
    &values[(i * len).min(values.len())..((i + 1) * len).min(values.len())]
}

/// The eight groups of a decoded unit.
type Unit = [[u8; 64]; 8];

/// The largest [`Simd::PANELS`].
const MOST_PANELS: usize = 2;

thread_local! {
    /// Kept from task to task, since clearing it takes as long as some of them.
    static ROOM: Cell<Option<Box<Room>>> = const { Cell::new(None) };
}

/// What a thread needs for panels that many tiles share.
struct Room {
    /// Of a span, and of a short one after it.
    stages: [[Stage; MOST_PANELS]; 2],
    /// Sums of the spans so far, of each tile.
    totals: Vec<[f32; 16]>,
}

impl Default for Room {
    fn default() -> Self {
        Room { stages: [[Stage::zeros(); MOST_PANELS]; 2], totals: Vec::new() }
    }
}

/// The decoded units of a span of one panel, and the scales of its blocks of 32.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Stage {
    units: [Unit; DOT_SPAN / 32],
    scales: [StagedScales; DOT_SPAN / 32],
}

impl Stage {
    fn zeros() -> Self {
        Stage { units: [[[0; 64]; 8]; DOT_SPAN / 32], scales: [[[0.0; 16]; 3]; DOT_SPAN / 32] }
    }

    #[inline(always)]
    fn decode<S: Simd, C: Codec, B: BlockKind>(&mut self, s: S, span: &[u8]) {
        let (units, sides) = split::<C, B>(span);
        for (unit, out) in units.chunks_exact(C::UNIT).zip(&mut self.units) {
            for (group, out) in C::decode(s, unit).into_iter().zip(out) {
                s.store_bytes(group, out);
            }
        }
        for (side, out) in sides.chunks_exact(B::side(C::EXPONENTS).bytes).zip(&mut self.scales) {
            B::stage::<S, C>(s, side, out);
        }
    }
}

/// What a [`Scales`] holds, in memory.
type StagedScales = [[f32; 16]; 3];

/// A block of a staged panel.
#[derive(Clone, Copy)]
struct StagedBlock<'a> {
    units: &'a [Unit],
    scales: &'a StagedScales,
    side: &'a [u8],
}

/// The terms of one kind of block. Both ways of adding a block to the accumulators have the same terms.
trait BlockKind {
    /// Columns of a block.
    const LEN: usize;
    /// Parts of a block, each with a bias and a sum.
    fn parts<C: Codec>() -> usize;
    /// Where the scales of a block are.
    fn side(exponents: bool) -> Side;
    /// One panel: a unit in registers meets one token after the other. See [`ask_ahead`].
    fn packed<S: Simd, C: Codec, const T: usize, const N: usize>(
        s: S,
        units: &[u8],
        side: &[u8],
        x: Tile<'_>,
        ahead: usize,
        acc: &mut [S::F; T],
    );
    /// Converts the scales of a block once for many tiles, where that is worth it.
    fn stage<S: Simd, C: Codec>(s: S, side: &[u8], out: &mut StagedScales);
    /// Decoded panels: an activation in a register meets all panels.
    fn staged<S: Simd, C: Codec, const P: usize, const T: usize>(
        s: S,
        blocks: [StagedBlock<'_>; P],
        x: Tile<'_>,
        acc: &mut [[S::F; T]; P],
    );
}

/// The blocks of a part of a tile, with the tokens' `q`, `scale`, `bias` and `sums`.
#[inline(always)]
fn tile_blocks<C: Codec, B: BlockKind, const T: usize>(x: Tile<'_>) -> impl Iterator<Item = Tile<'_>> {
    x.q.chunks_exact(T * B::LEN)
        .zip(x.scale.chunks_exact(T))
        .zip(x.float_sums.chunks_exact(T))
        .zip(x.bias.chunks_exact(T * B::parts::<C>()))
        .zip(x.sums.chunks_exact(T * B::parts::<C>()))
        .map(|((((q, scale), float_sums), bias), sums)| Tile { q, scale, float_sums, bias, sums })
}

/// One accumulator a token for the blocks of a span, in order.
#[inline(always)]
fn packed_span<S: Simd, C: Codec, B: BlockKind, const T: usize, const N: usize>(
    s: S,
    span: &[u8],
    x: Tile<'_>,
    ahead: usize,
) -> [S::F; T] {
    let mut acc = [s.splat(0.0); T];
    let (units, sides) = split::<C, B>(span);
    let [unit_bytes, side_bytes] = block_bytes::<C, B>();
    for ((units, side), x) in
        units.chunks_exact(unit_bytes).zip(sides.chunks_exact(side_bytes)).zip(tile_blocks::<C, B, T>(x))
    {
        ask_ahead::<S, N>(s, side, ahead);
        B::packed::<S, C, T, N>(s, units, side, x, ahead, &mut acc);
    }
    acc
}

/// The eight groups of a unit.
#[inline(always)]
fn decode<S: Simd, C: Codec, const N: usize>(s: S, unit: &[u8], ahead: usize) -> [S::I; 8] {
    ask_ahead::<S, N>(s, unit, ahead);
    C::decode(s, unit)
}

/// Asks for one of `N` lines `ahead` bytes after a part of a panel, and for what is read soon. A core that asks for a whole
/// block at once has no room for what it reads itself.
#[inline(always)]
fn ask_ahead<S: Simd, const N: usize>(s: S, weights: &[u8], ahead: usize) {
    let lines = (0..weights.len()).step_by(64 * N);
    lines.for_each(|line| s.prefetch_ahead::<false>(weights, ahead + line));
    prefetch_near(s, weights);
}

/// [`packed_span`] of several panels.
#[inline(always)]
fn staged_span<S: Simd, C: Codec, B: BlockKind, const P: usize, const T: usize>(
    s: S,
    stage: &[Stage; P],
    sides: [&[u8]; P],
    x: Tile<'_>,
) -> [[S::F; T]; P] {
    let mut acc = [[s.splat(0.0); T]; P];
    let (per_block, bytes) = (B::LEN / 32, B::side(C::EXPONENTS).bytes);
    for (block, x) in tile_blocks::<C, B, T>(x).enumerate() {
        let of_panel = |p: usize| StagedBlock {
            units: &stage[p].units[block * per_block..(block + 1) * per_block],
            scales: &stage[p].scales[block],
            side: &sides[p][block * bytes..(block + 1) * bytes],
        };
        B::staged::<S, C, P, T>(s, std::array::from_fn(of_panel), x, &mut acc);
    }
    acc
}

/// Adds to `dot` the products of groups `groups` of a unit with 32 values of one token.
#[inline(always)]
fn dot<S: Simd, C: Codec>(s: S, mut dot: S::I, unit: &[S::I; 8], groups: Range<usize>, q: &[u8; 32]) -> S::I {
    for g in groups {
        dot = C::dot(s, dot, unit[g], four(s, q, g));
    }
    dot
}

/// [`dot`] for every token and panel.
#[inline(always)]
fn dots<S: Simd, C: Codec, const P: usize, const T: usize>(
    s: S,
    dots: &mut [[S::I; T]; P],
    units: [&Unit; P],
    groups: Range<usize>,
    q: [&[u8; 32]; T],
) {
    for g in groups {
        for t in 0..T {
            let x = four(s, q[t], g);
            for (unit, dots) in units.iter().zip(dots.iter_mut()) {
                dots[t] = C::dot(s, dots[t], s.load_bytes(&unit[g]), x);
            }
        }
    }
}

/// The 32 columns from `at` on of a token's values.
#[inline(always)]
fn columns(q: &[u8], at: usize) -> &[u8; 32] {
    q[at..].first_chunk().expect("32 columns")
}

/// Four activations of one token, in all lanes.
#[inline(always)]
fn four<S: Simd>(s: S, q: &[u8; 32], group: usize) -> S::I {
    s.splat_i32(i32::from_le_bytes([q[4 * group], q[4 * group + 1], q[4 * group + 2], q[4 * group + 3]]))
}

/// Where the dot of a part starts, by entry `at` of the tokens' `bias`: at `zero`, less what the offset of the codec adds.
#[inline(always)]
fn start<S: Simd, C: Codec>(s: S, zero: i32, bias: &[i32], at: usize) -> S::I {
    s.splat_i32(if C::OFFSET == 0 { zero } else { bias[at] })
}

#[inline(always)]
fn f16s<S: Simd>(s: S, side: &[u8]) -> S::F {
    s.load_f16(side.first_chunk().expect("16 scales"))
}

/// Blocks of 32, perhaps with minima: `(scale * isum (+ min * xsum)) * d`.
struct Of32<const MIN: bool>;

impl<const MIN: bool> BlockKind for Of32<MIN> {
    const LEN: usize = 32;

    #[inline(always)]
    fn parts<C: Codec>() -> usize {
        1
    }

    #[inline(always)]
    fn side(exponents: bool) -> Side {
        Side::of(exponents, 0, MIN)
    }

    #[inline(always)]
    fn packed<S: Simd, C: Codec, const T: usize, const N: usize>(
        s: S,
        units: &[u8],
        side: &[u8],
        x: Tile<'_>,
        ahead: usize,
        acc: &mut [S::F; T],
    ) {
        let unit = decode::<S, C, N>(s, units, ahead);
        let scales = Self::scales::<S, C>(s, side);
        for (t, acc) in acc.iter_mut().enumerate() {
            let zero = start::<S, C>(s, ZERO_BITS, x.bias, t);
            let isum = dot::<S, C>(s, zero, &unit, 0..8, columns(x.q, 32 * t));
            *acc = s.add(*acc, Self::term::<S, C>(s, scales, isum, x, t));
        }
    }

    #[inline(always)]
    fn stage<S: Simd, C: Codec>(s: S, side: &[u8], out: &mut StagedScales) {
        let Scales { scale, offset, min } = Self::scales::<S, C>(s, side);
        for (scales, out) in [scale, offset, min].into_iter().zip(out) {
            s.store(scales, out);
        }
    }

    #[inline(always)]
    fn staged<S: Simd, C: Codec, const P: usize, const T: usize>(
        s: S,
        blocks: [StagedBlock<'_>; P],
        x: Tile<'_>,
        acc: &mut [[S::F; T]; P],
    ) {
        let isum = std::array::from_fn(|t| start::<S, C>(s, ZERO_BITS, x.bias, t));
        let mut isum = [isum; P];
        let q = std::array::from_fn(|t| columns(x.q, 32 * t));
        dots::<S, C, P, T>(s, &mut isum, blocks.map(|block| &block.units[0]), 0..8, q);
        for p in 0..P {
            let [scale, offset, min] = blocks[p].scales.each_ref().map(|scales| s.load(scales));
            let scales = Scales { scale, offset, min };
            for t in 0..T {
                acc[p][t] = s.add(acc[p][t], Self::term::<S, C>(s, scales, isum[p][t], x, t));
            }
        }
    }
}

/// Scales and minima of a block of 16 rows.
#[derive(Clone, Copy)]
struct Scales<S: Simd> {
    scale: S::F,
    /// See [`Simd::scaled_integer`].
    offset: S::F,
    min: S::F,
}

impl<const MIN: bool> Of32<MIN> {
    #[inline(always)]
    fn scales<S: Simd, C: Codec>(s: S, side: &[u8]) -> Scales<S> {
        let scale = if C::EXPONENTS {
            s.of_bits(s.shl::<23>(s.load_u8(side.first_chunk().expect("16 exponents"))))
        } else {
            f16s(s, side)
        };
        let min = if MIN { f16s(s, &side[Self::side(false).min..]) } else { scale };
        Scales { scale, offset: s.mul(scale, s.splat(-ZERO)), min }
    }

    /// A product with an exponent as scale could overflow before the offset is taken off. One of a minimum is exact: an f16
    /// by an integer of 12 bits.
    #[inline(always)]
    fn term<S: Simd, C: Codec>(s: S, scales: Scales<S>, isum: S::I, x: Tile<'_>, t: usize) -> S::F {
        let Scales { scale, offset, min } = scales;
        let scaled = if C::EXPONENTS {
            s.mul(s.sub(s.of_bits(isum), s.splat(ZERO)), scale)
        } else {
            s.scaled_integer(isum, scale, offset)
        };
        let sum = if MIN { s.add_exact_product(scaled, min, s.splat(x.float_sums[t])) } else { scaled };
        s.mul(sum, s.splat(x.scale[t]))
    }
}

/// The groups of the parts of a unit that have `cols` columns each.
#[inline(always)]
fn parts(cols: usize) -> impl Iterator<Item = Range<usize>> {
    (0..8).step_by(cols / 4).map(move |start| start..start + cols / 4)
}

/// `sum + dot * scale`, where `dot` is over `cols` columns and `scale` fits i8.
#[inline(always)]
fn add_scaled<S: Simd, C: Codec>(s: S, sum: S::I, dot: S::I, scale: S::I, cols: usize) -> S::I {
    match cols * C::LARGEST * 127 < 1 << 15 {
        true => s.add_product_i16(sum, dot, scale),
        false => s.add_i32(sum, s.mul_i32(dot, scale)),
    }
}

/// Blocks of 256 with integer scales for sub-blocks, perhaps with minima:
/// `(scale * isum (- min * msum)) * d`, with `isum` the sum of `sub_scale * dot` and `msum` that of
/// `sub_min * xsum`.
struct Of256<const SUB: usize, const MIN: bool>;

impl<const SUB: usize, const MIN: bool> BlockKind for Of256<SUB, MIN> {
    const LEN: usize = 256;

    #[inline(always)]
    fn parts<C: Codec>() -> usize {
        256 / C::summed(SUB)
    }

    #[inline(always)]
    fn side(_exponents: bool) -> Side {
        Side::of(false, 256 / SUB, MIN)
    }

    #[inline(always)]
    fn packed<S: Simd, C: Codec, const T: usize, const N: usize>(
        s: S,
        units: &[u8],
        side: &[u8],
        x: Tile<'_>,
        ahead: usize,
        acc: &mut [S::F; T],
    ) {
        let mut isum = [s.splat_i32(0); T];
        for (u, unit) in units.chunks_exact(C::UNIT).enumerate() {
            let unit = decode::<S, C, N>(s, unit, ahead);
            for (part, groups) in parts(C::PART.min(SUB)).enumerate() {
                let sub_scale = Self::sub_scale(s, side, (32 * u + 4 * groups.start) / SUB);
                let part = u * Self::parts::<C>() / 8 + part;
                for (t, isum) in isum.iter_mut().enumerate() {
                    let zero = start::<S, C>(s, 0, x.bias, t * Self::parts::<C>() + part);
                    let q = columns(x.q, 256 * t + 32 * u);
                    let dot = dot::<S, C>(s, zero, &unit, groups.clone(), q);
                    *isum = add_scaled::<S, C>(s, *isum, dot, sub_scale, C::PART.min(SUB));
                }
            }
        }
        for (t, (acc, isum)) in acc.iter_mut().zip(isum).enumerate() {
            *acc = s.add(*acc, Self::term(s, side, isum, x, t));
        }
    }

    /// They are converted once for 256 columns, which is rare enough.
    #[inline(always)]
    fn stage<S: Simd, C: Codec>(_: S, _: &[u8], _: &mut StagedScales) {}

    #[inline(always)]
    fn staged<S: Simd, C: Codec, const P: usize, const T: usize>(
        s: S,
        blocks: [StagedBlock<'_>; P],
        x: Tile<'_>,
        acc: &mut [[S::F; T]; P],
    ) {
        let mut isum = [[s.splat_i32(0); T]; P];
        for u in 0..8 {
            let unit = blocks.map(|block| &block.units[u]);
            let q = std::array::from_fn(|t| columns(x.q, 256 * t + 32 * u));
            for (part, groups) in parts(C::summed(SUB)).enumerate() {
                let sub = (32 * u + 4 * groups.start) / SUB;
                let part = u * Self::parts::<C>() / 8 + part;
                let at = |t| t * Self::parts::<C>() + part;
                let dot = std::array::from_fn(|t| start::<S, C>(s, 0, x.bias, at(t)));
                let mut dot = [dot; P];
                dots::<S, C, P, T>(s, &mut dot, unit, groups, q);
                for p in 0..P {
                    let sub_scale = Self::sub_scale(s, blocks[p].side, sub);
                    for t in 0..T {
                        isum[p][t] = add_scaled::<S, C>(s, isum[p][t], dot[p][t], sub_scale, C::summed(SUB));
                    }
                }
            }
        }
        for p in 0..P {
            for t in 0..T {
                acc[p][t] = s.add(acc[p][t], Self::term(s, blocks[p].side, isum[p][t], x, t));
            }
        }
    }
}

impl<const SUB: usize, const MIN: bool> Of256<SUB, MIN> {
    #[inline(always)]
    fn sub_scale<S: Simd>(s: S, side: &[u8], sub: usize) -> S::I {
        let sub_scales = &side[Side::of(false, 256 / SUB, MIN).sub_scale + LANES * sub..];
        let sub_scales = sub_scales.first_chunk().expect("16 scales");
        // Those of formats with minima have no sign, which spares an instruction.
        if MIN { s.load_u8(sub_scales) } else { s.load_i8(sub_scales) }
    }

    #[inline(always)]
    fn term<S: Simd>(s: S, side: &[u8], isum: S::I, x: Tile<'_>, t: usize) -> S::F {
        let at = Side::of(false, 256 / SUB, MIN);
        let mut sum = s.mul(f16s(s, side), s.to_f32(isum));
        if MIN {
            let subs = 256 / SUB;
            let msum = minima_sum(s, &side[at.sub_min..], &x.sums[t * subs..(t + 1) * subs]);
            sum = s.sub(sum, s.mul(f16s(s, &side[at.min..]), s.to_f32(msum)));
        }
        s.mul(sum, s.splat(x.scale[t]))
    }
}

/// Sum of `sub_min * xsum` over the sub-blocks, two at a time.
#[inline(always)]
fn minima_sum<S: Simd>(s: S, sub_min: &[u8], sums: &[i16]) -> S::I {
    let mut msum = s.splat_i32(0);
    for (mins, &sums) in sub_min.as_chunks::<{ 2 * LANES }>().0.iter().zip(sums.as_chunks::<2>().0) {
        msum = s.dot_pairs(msum, mins, sums);
    }
    msum
}
