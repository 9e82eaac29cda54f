//! The vector machine that every kernel is written for.

use half::f16;

/// Sixteen 32-bit lanes of an instruction set, whatever the width of its registers.
///
/// A value of the type proves that the CPU has the instructions, so the methods are safe. A vector of integers
/// `I` is also seen as 64 bytes, byte `4l + i` being byte `i` of lane `l`. No method fuses, reorders or approximates.
pub(super) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32, or 64 bytes.
    type I: Copy;
    /// One bool a lane.
    type M: Copy;
    /// Tokens of the widest tile of a linear layer: as many accumulators as the registers hold.
    const TILE: usize;
    /// Panels of quantised weights that a tile of [`Self::TILE`] tokens takes at once.
    const PANELS: usize = 1;
    /// Panels and tokens of the widest tile of a float linear layer: as many accumulators as the registers hold.
    const DENSE_PANELS: usize = 1;
    /// See [`Self::DENSE_PANELS`]; 1, 2, 4, 6, 8 or 12.
    const DENSE_TOKENS: usize = 2;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; 16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, x: Self::F) -> Self::F;
    fn neg(self, x: Self::F) -> Self::F;
    /// The larger of both; NaN if either is.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of both, neither of which is NaN; unspecified otherwise.
    #[inline(always)]
    fn larger(self, a: Self::F, b: Self::F) -> Self::F {
        self.max(a, b)
    }
    /// `c + a * b` where `a * b` is an f32 exactly, so that fusing changes no bit.
    #[inline(always)]
    fn add_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        self.add(self.mul(a, b), c)
    }
    /// `c - a * b` where `a * b` is an f32 exactly, so that fusing changes no bit.
    #[inline(always)]
    fn sub_exact_product(self, c: Self::F, a: Self::F, b: Self::F) -> Self::F {
        self.sub(c, self.mul(a, b))
    }
    /// `(x - ZERO_BITS) * scale`, rounded once: `x` is the bits of an f32 between [`ZERO`] - 2^22 and `ZERO` + 2^22, which
    /// is that integer more than `ZERO`, `scale` an f16, and `offset` is `-ZERO * scale`, which is exact.
    #[inline(always)]
    fn scaled_integer(self, x: Self::I, scale: Self::F, offset: Self::F) -> Self::F {
        let _ = offset;
        self.mul(self.sub(self.of_bits(x), self.splat(ZERO)), scale)
    }
    /// `a < b`; false where either is NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    /// `a` where the mask holds, else `b`.
    fn select(self, mask: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Widened f16, exactly.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;

    fn splat_i32(self, x: i32) -> Self::I;
    fn load_i32(self, x: &[i32; 16]) -> Self::I;
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]);
    fn load_bytes(self, x: &[u8; 64]) -> Self::I;
    fn store_bytes(self, x: Self::I, out: &mut [u8; 64]);
    /// Sixteen u8, widened.
    fn load_u8(self, x: &[u8; 16]) -> Self::I;
    /// Sixteen i8, widened.
    fn load_i8(self, x: &[u8; 16]) -> Self::I;
    /// The lowest byte of each lane.
    fn store_low_bytes(self, x: Self::I, out: &mut [u8; 16]);
    /// Wrapping sum.
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// Low half of the product.
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `acc + a * b`, where each `a` fits i16 and each `b` i8.
    #[inline(always)]
    fn add_product_i16(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        self.add_i32(acc, self.mul_i32(a, b))
    }
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Lanes shifted left.
    fn shl<const N: u32>(self, x: Self::I) -> Self::I;
    /// Lanes shifted right, zeros shifted in.
    fn shr<const N: u32>(self, x: Self::I) -> Self::I;
    fn lt_i32(self, a: Self::I, b: Self::I) -> Self::M;
    fn and_mask(self, a: Self::M, b: Self::M) -> Self::M;
    /// Entry `index` of a table for each byte; indices are below 16.
    fn lookup(self, table: &[u8; 16], index: Self::I) -> Self::I;
    /// The nearest f32.
    fn to_f32(self, x: Self::I) -> Self::F;
    /// The nearest integer, ties to even, of values in the range of i32; unspecified for NaN and others.
    fn round_i32(self, x: Self::F) -> Self::I;
    fn bits(self, x: Self::F) -> Self::I;
    fn of_bits(self, x: Self::I) -> Self::F;

    /// `acc + sum of u[i] * s[i]` over the four bytes of each lane: `u` unsigned, `s` signed and not -128. Exact.
    fn dot_u8(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I;
    /// [`Self::dot_u8`] for `u` below 128.
    fn dot_u7(self, acc: Self::I, u: Self::I, s: Self::I) -> Self::I;
    /// `acc + u[0] * s[0] + u[1] * s[1]` for each lane: two unsigned bytes by two signed 16-bit integers.
    fn dot_pairs(self, acc: Self::I, u: &[u8; 32], s: [i16; 2]) -> Self::I;

    /// `acc` plus the product of the high halves as bf16, then plus that of the low ones. Products are f32 exactly, and neither
    /// they nor sums are subnormal.
    #[inline(always)]
    fn dot_bf16(self, acc: Self::F, a: Self::I, b: Self::I) -> Self::F {
        dot_bf16(self, acc, a, b)
    }
    /// The nearest f16, ties to even, widened.
    #[inline(always)]
    fn round_f16(self, x: Self::F) -> Self::F {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        self.load(&lanes.map(|x| f16::from_f32(x).to_f32()))
    }
    /// The larger of the unsigned 16-bit halves of each lane.
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        let low = self.splat_i32(0xffff);
        let high = self.max_i32(self.shr::<16>(a), self.shr::<16>(b));
        self.or(self.shl::<16>(high), self.max_i32(self.and(a, low), self.and(b, low)))
    }
    /// The 16-bit halves of each lane whose lower 15 bits are `least` or more, and 0 for the others.
    #[inline(always)]
    fn at_least_u16(self, x: Self::I, least: u16) -> Self::I {
        let (zero, low) = (self.splat(0.0), self.splat_i32(0xffff));
        let part = |mask: Self::M, x| self.bits(self.select(mask, zero, self.of_bits(x)));
        let high =
            self.lt_i32(self.and(self.shr::<16>(x), self.splat_i32(0x7fff)), self.splat_i32(least.into()));
        let high = part(high, self.shl::<16>(self.shr::<16>(x)));
        let small = self.lt_i32(self.and(x, self.splat_i32(0x7fff)), self.splat_i32(least.into()));
        self.or(high, part(small, self.and(x, low)))
    }

    /// All of `rows`, lane `l` of result `i` being lane `i` of row `l`.
    #[inline(always)]
    fn transpose(self, rows: [Self::I; 16]) -> [Self::I; 16] {
        let mut words = [[0; 16]; 16];
        for (words, row) in words.iter_mut().zip(rows) {
            self.store_i32(row, words);
        }
        let mut columns = rows;
        for (i, column) in columns.iter_mut().enumerate() {
            let mut lanes = [0; 16];
            for (lane, words) in lanes.iter_mut().zip(&words) {
                *lane = words[i];
            }
            *column = self.load_i32(&lanes);
        }
        columns
    }

    /// Bytes `4l + i` of the result are byte `l` of `rows[i]`.
    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; 4]) -> Self::I {
        let mut bytes = [0; 64];
        for l in 0..16 {
            for (i, row) in rows.iter().enumerate() {
                bytes[4 * l + i] = row[l];
            }
        }
        self.load_bytes(&bytes)
    }

    /// [`Self::interleave`] of 64 bytes a row, in an order of lanes of its own choice.
    #[inline(always)]
    fn interleave_wide(self, rows: [&[u8; 64]; 4]) -> [Self::I; 4] {
        let mut parts = [self.splat_i32(0); 4];
        for (i, part) in parts.iter_mut().enumerate() {
            let [a, b, c, d] = rows;
            *part = self.interleave([chunk(a, i), chunk(b, i), chunk(c, i), chunk(d, i)]);
        }
        parts
    }

    /// Lanes in the order of [`Self::interleave_wide`], put in the order of their bytes.
    #[inline(always)]
    fn in_order(self, wide: [Self::I; 4]) -> [Self::I; 4] {
        wide
    }

    /// Bytes 1 and bytes 0 of the lanes, as two vectors of 64. Lanes are below 65536.
    #[inline(always)]
    fn byte_slices(self, x: [Self::I; 4]) -> [Self::I; 2] {
        let (mut high, mut low) = ([0; 64], [0; 64]);
        let out = high.as_chunks_mut::<16>().0.iter_mut().zip(low.as_chunks_mut::<16>().0);
        for (x, (high, low)) in x.into_iter().zip(out) {
            self.store_low_bytes(self.shr::<8>(x), high);
            self.store_low_bytes(x, low);
        }
        [self.load_bytes(&high), self.load_bytes(&low)]
    }

    /// The even lanes of `a` and `b`, and the odd ones.
    #[inline(always)]
    fn even_odd(self, a: Self::F, b: Self::F) -> [Self::F; 2] {
        let mut lanes = [[0.0; 16]; 2];
        self.store(a, &mut lanes[0]);
        self.store(b, &mut lanes[1]);
        let (mut even, mut odd) = ([0.0; 16], [0.0; 16]);
        for (i, pair) in lanes.as_flattened().chunks_exact(2).enumerate() {
            (even[i], odd[i]) = (pair[0], pair[1]);
        }
        [self.load(&even), self.load(&odd)]
    }

    /// The largest of lanes of which none is NaN; unspecified otherwise.
    #[inline(always)]
    fn largest_lane(self, x: Self::F) -> f32 {
        self.max_lane(x)
    }

    /// Asks for the cache line of a byte, and waits for nothing.
    #[inline(always)]
    fn prefetch(self, _: &u8) {}

    /// Asks for the cache line `ahead` bytes after the start of `bytes`, be it inside of them or not, in the first cache if
    /// `NEAR` and in the second if not, and waits for nothing.
    #[inline(always)]
    fn prefetch_ahead<const NEAR: bool>(self, _bytes: &[u8], _ahead: usize) {}

    /// The halving tree of the contract's `sum`: lane `i` plus lane `i + 8`, then 4, 2, 1.
    #[inline(always)]
    fn tree(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// The largest lane; NaN if any is.
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; 16];
        self.store(x, &mut lanes);
        let mut largest = lanes[0];
        for lane in lanes {
            if lane > largest || lane.is_nan() {
                largest = lane;
            }
        }
        largest
    }

    /// Lane `i` of the result is the largest lane of `x[i]`.
    #[inline(always)]
    fn max_lanes_i32(self, x: [Self::I; 16]) -> Self::I {
        let mut lanes = [0; 16];
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = self.max_lane_i32(x);
        }
        self.load_i32(&lanes)
    }

    /// Lane `i` of the result is the sum of all lanes of `x[i]`.
    #[inline(always)]
    fn sum_lanes_i32(self, x: [Self::I; 16]) -> Self::I {
        let mut lanes = [0; 16];
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = self.sum_i32(x);
        }
        self.load_i32(&lanes)
    }

    /// The sum of all lanes.
    #[inline(always)]
    fn sum_i32(self, x: Self::I) -> i32 {
        let mut lanes = [0; 16];
        self.store_i32(x, &mut lanes);
        lanes.iter().sum()
    }

    /// The largest lane.
    #[inline(always)]
    fn max_lane_i32(self, x: Self::I) -> i32 {
        let mut lanes = [0; 16];
        self.store_i32(x, &mut lanes);
        lanes.into_iter().fold(i32::MIN, i32::max)
    }
}

/// Where the integers begin that an f32 holds in its lowest bits: sums that start at [`ZERO_BITS`] need no conversion.
pub(super) const ZERO: f32 = 1.5 * (1u32 << 23) as f32;

/// The bits of [`ZERO`].
pub(super) const ZERO_BITS: i32 = ZERO.to_bits() as i32;

/// Bytes between what is read and what is asked for to be in the second cache by then. What fetches ahead in hardware stops at
/// the ends of pages, and does not keep memory busy while a core computes.
pub(super) const FAR: usize = 32 << 10;

/// Asks for what will be read some time after `weights`.
#[inline(always)]
pub(super) fn prefetch_far<S: Simd>(s: S, weights: &[u8]) {
    prefetch(s, weights, FAR);
}

/// Asks for as many bytes as `weights` has, `ahead` of them.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(s: S, weights: &[u8], ahead: usize) {
    (0..weights.len()).step_by(64).for_each(|line| s.prefetch_ahead::<false>(weights, ahead + line));
}

/// Asks for what will be read soon after `weights`.
#[inline(always)]
pub(super) fn prefetch_near<S: Simd>(s: S, weights: &[u8]) {
    (0..weights.len()).step_by(64).for_each(|line| s.prefetch_ahead::<true>(weights, (2 << 10) + line));
}

/// What [`Simd::dot_bf16`] computes.
#[inline(always)]
pub(super) fn dot_bf16<S: Simd>(s: S, acc: S::F, a: S::I, b: S::I) -> S::F {
    let high = s.splat_i32(0xffff << 16);
    let acc = s.add_exact_product(acc, s.of_bits(s.and(a, high)), s.of_bits(s.and(b, high)));
    s.add_exact_product(acc, s.of_bits(s.shl::<16>(a)), s.of_bits(s.shl::<16>(b)))
}

/// Chunk `i` of 16 bytes.
#[inline(always)]
fn chunk(bytes: &[u8; 64], i: usize) -> &[u8; 16] {
    &bytes.as_chunks::<16>().0[i]
}
