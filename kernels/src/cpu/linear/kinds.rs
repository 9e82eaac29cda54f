//! The two kinds of blocks, and what they add to a sum.

use std::ops::Range;

use super::super::{
    codec::Codec,
    panel::{LANES, Side},
    quantize::Tile,
    simd::{Simd, ZERO, ZERO_BITS, prefetch_near},
};

/// The eight groups of a decoded unit.
pub(super) type Unit = [[u8; 64]; 8];

/// What a [`Scales`] holds, in memory.
pub(super) type StagedScales = [[f32; 16]; 3];

/// A block of a staged panel.
#[derive(Clone, Copy)]
pub(super) struct StagedBlock<'a> {
    pub(super) units: &'a [Unit],
    pub(super) scales: &'a StagedScales,
    pub(super) side: &'a [u8],
}

/// The terms of one kind of block. Both ways of adding a block to the accumulators have the same terms.
pub(super) trait BlockKind {
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
pub(super) fn tile_blocks<C: Codec, B: BlockKind, const T: usize>(
    x: Tile<'_>,
) -> impl Iterator<Item = Tile<'_>> {
    x.q.chunks_exact(T * B::LEN)
        .zip(x.scale.chunks_exact(T))
        .zip(x.float_sums.chunks_exact(T))
        .zip(x.bias.chunks_exact(T * B::parts::<C>()))
        .zip(x.sums.chunks_exact(T * B::parts::<C>()))
        .map(|((((q, scale), float_sums), bias), sums)| Tile { q, scale, float_sums, bias, sums })
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
pub(super) fn ask_ahead<S: Simd, const N: usize>(s: S, weights: &[u8], ahead: usize) {
    let lines = (0..weights.len()).step_by(64 * N);
    lines.for_each(|line| s.prefetch_ahead::<false>(weights, ahead + line));
    prefetch_near(s, weights);
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
pub(super) struct Of32<const MIN: bool>;

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
pub(super) struct Of256<const SUB: usize, const MIN: bool>;

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
