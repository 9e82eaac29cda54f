//! Linear layers over weights in blocks: exact integer dots, and one float term a block, in the contract's order.

mod kinds;

use std::{cell::Cell, marker::PhantomData, ops::Range};

use samebits_tensor::{Format, contract::DOT_SPAN};

use self::kinds::{BlockKind, Of32, Of256, StagedBlock, StagedScales, Unit, ask_ahead, tile_blocks};
use super::{
    codec::{
        Codec, Iq4Nl, Mxfp4, Signed3, Signed4, Signed5, Signed6, Signed8, Unsigned2, Unsigned4, Unsigned5,
    },
    elementwise::store_at,
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    panel::{LANES, PanelLayout},
    quantize::{Rows, Tile},
    simd::{FAR, Simd, prefetch},
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
        let block = (CACHED / self.task.x.cols().max(1)).clamp(T, tokens.max(T)) / T * T;
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
        let totals = room.totals.as_chunks_mut::<T>().0.as_chunks_mut::<P>().0;
        let (cols, tiles) = (self.task.layout.cols(), tokens.len() / T);
        let (spans, whole) = (cols.div_ceil(DOT_SPAN), (cols / DOT_SPAN).max(1));
        let panels = part(self.task.panels, p / P, P * self.task.layout.bytes());
        let ask = 64 * panels.len().div_ceil(64).div_ceil(whole * tiles);
        for first in 0..whole {
            let group = first..if first + 1 == whole { spans } else { first + 1 };
            let mut sides = [[[].as_slice(); P]; 2];
            for ((span, sides), stages) in group.clone().zip(&mut sides).zip(&mut room.stages) {
                for (i, (side, stage)) in sides.iter_mut().zip(stages).enumerate() {
                    let span = self.panel_span(p + i, span);
                    *side = split::<C, B>(span).1;
                    stage.decode::<S, C, B>(s, span);
                }
            }
            for ((tile, start), totals) in tokens.clone().step_by(T).enumerate().zip(&mut *totals) {
                prefetch(s, part(panels, first * tiles + tile, ask), panels.len());
                for ((span, sides), stages) in group.clone().zip(sides).zip(&room.stages) {
                    let stages = stages.first_chunk().expect("a stage for each panel");
                    let x = self.x_span(start, T, span);
                    let mut acc = staged_span::<S, C, B, P, T>(s, stages, sides, x);
                    if span > 0 {
                        add_totals(s, totals, &mut acc);
                    }
                    match span + 1 == spans {
                        true => self.store(s, p, start, acc),
                        false => keep_totals(s, acc, totals),
                    }
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
