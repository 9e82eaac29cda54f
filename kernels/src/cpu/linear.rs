//! Linear layers over weights in blocks: exact integer dots, and one float term a block, in the contract's order.

use std::marker::PhantomData;

use samebits_tensor::{Format, contract::DOT_SPAN};

use super::{
    codec::{
        Codec, Iq4Nl, Mxfp4, Signed3, Signed4, Signed5, Signed6, Signed8, Unsigned2, Unsigned4, Unsigned5,
    },
    dense::store_rows,
    isa::{Isa, Kernel},
    matrix::MatrixMut,
    panel::{LANES, PanelLayout, Side},
    quantize::{Activations, Tile},
    simd::Simd,
};

/// Quantised activations times the transpose of the rows in `panels`, into `out [m, rows]`. The last panel may have fewer
/// rows than 16.
///
/// # Panics
/// If the activations are not for the layout, or a size does not fit.
pub fn linear_blocks(isa: Isa, layout: &PanelLayout, panels: &[u8], x: &Activations, out: MatrixMut<'_>) {
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
    x: &'a Activations,
    out: MatrixMut<'a>,
}

/// A task whose integers are encoded by `C` in blocks of kind `B`.
struct Blocks<'a, C, B> {
    task: Task<'a>,
    encoding: PhantomData<(C, B)>,
}

impl<C: Codec, B: BlockKind> Kernel for Blocks<'_, C, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let Task { layout, panels, x, .. } = self.task;
        for (p, panel) in panels.chunks_exact(layout.bytes()).enumerate() {
            for (start, width) in x.tiles() {
                match width {
                    8 => self.tile::<S, 8>(s, p, panel, start),
                    4 => self.tile::<S, 4>(s, p, panel, start),
                    2 => self.tile::<S, 2>(s, p, panel, start),
                    _ => self.tile::<S, 1>(s, p, panel, start),
                }
            }
        }
    }
}

impl<'a, C: Codec, B: BlockKind> Blocks<'a, C, B> {
    fn new(task: Task<'a>) -> Self {
        Blocks { task, encoding: PhantomData }
    }

    /// 16 rows by `T` tokens.
    #[inline(always)]
    fn tile<S: Simd, const T: usize>(&mut self, s: S, p: usize, panel: &[u8], start: usize) {
        if T > S::TILE {
            return;
        }
        let Task { layout, x, out, .. } = &mut self.task;
        let sums = spans::<S, C, B, T>(s, layout, panel, x.tile(start, T));
        for (t, sum) in sums.into_iter().enumerate() {
            store_rows(s, sum, &mut out.row(start + t)[p * LANES..]);
        }
    }
}

/// The terms of one kind of block.
trait BlockKind {
    /// Columns of a block.
    const LEN: usize;
    /// Sub-blocks of a block.
    const SUBS: usize;
    /// Where the scales of a block are.
    fn side(exponents: bool) -> Side;
    /// Adds the term of one block to each token's accumulator.
    fn add<S: Simd, C: Codec, const T: usize>(s: S, block: Block<'_>, acc: &mut [S::F; T]);
}

/// One block of 16 rows and of a tile's tokens.
struct Block<'a> {
    units: &'a [u8],
    side: &'a [u8],
    x: Tile<'a>,
}

/// `dot`: one accumulator a span of 512 columns, then the spans in order. (No sum that starts at +0 is ever -0, so the
/// first span may be added to +0.)
#[inline(always)]
fn spans<S: Simd, C: Codec, B: BlockKind, const T: usize>(
    s: S,
    layout: &PanelLayout,
    panel: &[u8],
    x: Tile<'_>,
) -> [S::F; T] {
    let per_span = DOT_SPAN / B::LEN;
    let (unit, side) = (C::UNIT * (B::LEN / 32), B::side(C::EXPONENTS).bytes);
    let (units, sides) = panel.split_at(layout.units_bytes());
    let spans = units
        .chunks(per_span * unit)
        .zip(sides.chunks(per_span * side))
        .zip(x.q.chunks(per_span * T * B::LEN))
        .zip(x.scale.chunks(per_span * T))
        .zip(x.bias.chunks(per_span * T * B::SUBS))
        .zip(x.sums.chunks(per_span * T * B::SUBS));
    let mut total = [s.splat(0.0); T];
    for (((((units, sides), q), scale), bias), sums) in spans {
        let blocks = units
            .chunks_exact(unit)
            .zip(sides.chunks_exact(side))
            .zip(q.chunks_exact(T * B::LEN))
            .zip(scale.chunks_exact(T))
            .zip(bias.chunks_exact(T * B::SUBS))
            .zip(sums.chunks_exact(T * B::SUBS));
        let mut acc = [s.splat(0.0); T];
        for (((((units, side), q), scale), bias), sums) in blocks {
            B::add::<S, C, T>(s, Block { units, side, x: Tile { q, scale, bias, sums } }, &mut acc);
        }
        for (total, acc) in total.iter_mut().zip(acc) {
            *total = s.add(*total, acc);
        }
    }
    total
}

/// Four activations of one token, in all lanes.
#[inline(always)]
fn four<S: Simd>(s: S, q: &[u8], group: usize) -> S::I {
    s.splat_i32(i32::from_le_bytes([q[4 * group], q[4 * group + 1], q[4 * group + 2], q[4 * group + 3]]))
}

#[inline(always)]
fn f16s<S: Simd>(s: S, side: &[u8]) -> S::F {
    s.load_f16(side.first_chunk().expect("16 scales"))
}

/// Blocks of 32, perhaps with minima: `(scale * d) * isum (+ (min * d) * xsum)`.
struct Of32<const MIN: bool>;

impl<const MIN: bool> BlockKind for Of32<MIN> {
    const LEN: usize = 32;
    const SUBS: usize = 1;

    #[inline(always)]
    fn side(exponents: bool) -> Side {
        Side::of(exponents, 0, MIN)
    }

    #[inline(always)]
    fn add<S: Simd, C: Codec, const T: usize>(s: S, block: Block<'_>, acc: &mut [S::F; T]) {
        let side = Self::side(C::EXPONENTS);
        let weights = C::decode(s, block.units);
        let scales = if C::EXPONENTS {
            s.of_bits(s.shl::<23>(s.load_u8(block.side.first_chunk().expect("16 exponents"))))
        } else {
            f16s(s, block.side)
        };
        let Tile { q, scale, bias, sums } = block.x;
        for (t, acc) in acc.iter_mut().enumerate() {
            let mut isum = s.splat_i32(bias[t]);
            for (g, &weights) in weights.iter().enumerate() {
                isum = C::dot(s, isum, weights, four(s, &q[32 * t..32 * (t + 1)], g));
            }
            let d = s.splat(scale[t]);
            let mut term = s.mul(s.mul(scales, d), s.to_f32(isum));
            if MIN {
                let min = s.mul(f16s(s, &block.side[side.min..]), d);
                term = s.add(term, s.mul(min, s.splat(f32::from(sums[t]))));
            }
            *acc = s.add(*acc, term);
        }
    }
}

/// Blocks of 256 with integer scales for sub-blocks, perhaps with minima:
/// `(scale * d) * isum (- (min * d) * msum)`, with `isum` the sum of `sub_scale * dot` and `msum` that of
/// `sub_min * xsum`.
struct Of256<const SUB: usize, const MIN: bool>;

impl<const SUB: usize, const MIN: bool> BlockKind for Of256<SUB, MIN> {
    const LEN: usize = 256;
    const SUBS: usize = 256 / SUB;

    #[inline(always)]
    fn side(_exponents: bool) -> Side {
        Side::of(false, 256 / SUB, MIN)
    }

    #[inline(always)]
    fn add<S: Simd, C: Codec, const T: usize>(s: S, block: Block<'_>, acc: &mut [S::F; T]) {
        let side = Self::side(false);
        let Tile { q, scale, bias, sums } = block.x;
        let mut isum = [s.splat_i32(0); T];
        for (u, unit) in block.units.chunks_exact(C::UNIT).enumerate() {
            let weights = C::decode(s, unit);
            for part in 0..32 / SUB {
                let sub = u * (32 / SUB) + part;
                let sub_scales = &block.side[side.sub_scale + LANES * sub..];
                let sub_scale = s.load_i8(sub_scales.first_chunk().expect("16 scales"));
                for (t, isum) in isum.iter_mut().enumerate() {
                    let q = &q[256 * t + 32 * u..256 * t + 32 * (u + 1)];
                    let mut dot = s.splat_i32(bias[t * Self::SUBS + sub]);
                    let groups = part * (SUB / 4)..(part + 1) * (SUB / 4);
                    for (&weights, g) in weights[groups.clone()].iter().zip(groups) {
                        dot = C::dot(s, dot, weights, four(s, q, g));
                    }
                    *isum = s.add_i32(*isum, s.mul_i32(dot, sub_scale));
                }
            }
        }
        let scales = f16s(s, block.side);
        for (t, (acc, isum)) in acc.iter_mut().zip(isum).enumerate() {
            let d = s.splat(scale[t]);
            let mut term = s.mul(s.mul(scales, d), s.to_f32(isum));
            if MIN {
                let sums = &sums[t * Self::SUBS..(t + 1) * Self::SUBS];
                let msum = minima(s, &block.side[side.sub_min..], sums);
                let min = s.mul(f16s(s, &block.side[side.min..]), d);
                term = s.sub(term, s.mul(min, s.to_f32(msum)));
            }
            *acc = s.add(*acc, term);
        }
    }
}

/// Sum of `sub_min * xsum` over the sub-blocks, two at a time.
#[inline(always)]
fn minima<S: Simd>(s: S, sub_min: &[u8], sums: &[i16]) -> S::I {
    let mut msum = s.splat_i32(0);
    for (mins, &sums) in sub_min.as_chunks::<{ 2 * LANES }>().0.iter().zip(sums.as_chunks::<2>().0) {
        msum = s.dot_pairs(msum, mins, sums);
    }
    msum
}
