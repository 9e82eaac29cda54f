//! How the integers of a weight lie in memory: planes of bits, 16 rows side by side.
//!
//! A unit is 32 columns of 16 rows, as eight groups of four columns; a group is a vector of 64 bytes, byte `4r + i` being
//! column `i` of row `r`, which is what an integer dot of four bytes takes. Values are stored unsigned, less their offset.

use samebits_tensor::blocks::{IQ4_NL_VALUES, MXFP4_VALUES};

use super::simd::Simd;

/// An encoding of the integers of a unit.
pub(super) trait Codec {
    /// Bytes of a unit, a multiple of 64.
    const UNIT: usize;
    /// What is added to a value to make it unsigned.
    const OFFSET: i32;
    /// Whether the unsigned values stay below 128.
    const NARROW: bool;
    /// The largest magnitude of a value.
    const LARGEST: usize;
    /// Most columns of a dot that one sub-scale multiplies: fewer than a sub-block has where that keeps a dot in 16 bits.
    const PART: usize = 32;
    /// Whether scales are powers of two, stored as exponents.
    const EXPONENTS: bool = false;

    /// Columns of activations that are summed: those of a dot where it starts with their sum, and else of a sub-block.
    #[inline(always)]
    fn summed(sub: usize) -> usize {
        if Self::OFFSET == 0 { sub } else { Self::PART.min(sub) }
    }

    /// The eight groups of a unit.
    fn decode<S: Simd>(s: S, unit: &[u8]) -> [S::I; 8];
    /// Byte `byte` of group `group`.
    fn get(unit: &[u8], group: usize, byte: usize) -> u8;
    /// Sets a byte of a group in a unit of zeros, slowly.
    #[cfg(test)]
    fn put(unit: &mut [u8], group: usize, byte: usize, value: u8);

    /// Sum of products of one group with four activations.
    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I, group: S::I, x: S::I) -> S::I {
        if Self::NARROW { s.dot_u7(acc, group, x) } else { s.dot_u8(acc, group, x) }
    }
}

/// A codec's values as they are, plus an offset.
macro_rules! linear_codec {
    ($(#[$doc:meta])* $name:ident, $planes:ident, offset $offset:literal, largest $largest:literal $(, part $part:literal)?) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Codec for $name {
            const UNIT: usize = $planes::UNIT;
            const OFFSET: i32 = $offset;
            const NARROW: bool = $planes::NARROW;
            const LARGEST: usize = $largest;
            $(const PART: usize = $part;)?

            #[inline(always)]
            fn decode<S: Simd>(s: S, unit: &[u8]) -> [S::I; 8] {
                $planes::decode(s, unit)
            }
            fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
                $planes::get(unit, group, byte)
            }
            #[cfg(test)]
            fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
                $planes::put(unit, group, byte, value)
            }
        }
    };
}

linear_codec!(
    /// Q4_0.
    Signed4, Bits4, offset 8, largest 8
);
linear_codec!(
    /// Q4_1 and Q4_K.
    Unsigned4, Bits4, offset 0, largest 15, part 16
);
linear_codec!(
    /// Q5_0.
    Signed5, Bits5, offset 16, largest 16
);
linear_codec!(
    /// Q5_1 and Q5_K.
    Unsigned5, Bits5, offset 0, largest 31
);
linear_codec!(
    /// Q8_0.
    Signed8, Bits8, offset 128, largest 128
);
linear_codec!(
    /// Q2_K.
    Unsigned2, Bits2, offset 0, largest 3
);
linear_codec!(
    /// Q3_K.
    Signed3, Bits3, offset 4, largest 4
);
linear_codec!(
    /// Q6_K.
    Signed6, Bits6, offset 32, largest 32, part 8
);

/// A codec of indices of a table.
macro_rules! table_codec {
    ($(#[$doc:meta])* $name:ident, $values:ident, offset $offset:literal, narrow $narrow:literal, exponents $exponents:literal, largest $largest:literal) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            const TABLE: [u8; 16] = shifted($values, $offset);
        }

        impl Codec for $name {
            const UNIT: usize = Bits4::UNIT;
            const OFFSET: i32 = $offset;
            const NARROW: bool = $narrow;
            const EXPONENTS: bool = $exponents;
            const LARGEST: usize = $largest;

            #[inline(always)]
            fn decode<S: Simd>(s: S, unit: &[u8]) -> [S::I; 8] {
                let mut groups = Bits4::decode(s, unit);
                for group in &mut groups {
                    *group = s.lookup(&Self::TABLE, *group);
                }
                groups
            }
            fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
                Self::TABLE[usize::from(Bits4::get(unit, group, byte))]
            }
            #[cfg(test)]
            fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
                let index = Self::TABLE.iter().position(|&entry| entry == value);
                Bits4::put(unit, group, byte, index.expect("a value of the table") as u8)
            }
        }
    };
}

table_codec!(
    /// IQ4_NL.
    Iq4Nl, IQ4_NL_VALUES, offset 128, narrow false, exponents false, largest 127
);
table_codec!(
    /// MXFP4.
    Mxfp4, MXFP4_VALUES, offset 12, narrow true, exponents true, largest 12
);

const fn shifted(values: [i8; 16], offset: i16) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (values[i] as i16 + offset) as u8;
        i += 1;
    }
    table
}

/// Vector `i` of a unit.
#[inline(always)]
fn vector<S: Simd>(s: S, unit: &[u8], i: usize) -> S::I {
    s.load_bytes(unit[64 * i..].first_chunk().expect("a whole unit"))
}

/// A byte in all 64 places.
#[inline(always)]
fn bytes<S: Simd>(s: S, byte: u8) -> S::I {
    s.splat_i32(i32::from_le_bytes([byte; 4]))
}

/// One byte a value.
struct Bits8;

impl Bits8 {
    const UNIT: usize = 512;
    const NARROW: bool = false;

    #[inline(always)]
    fn decode<S: Simd>(s: S, unit: &[u8]) -> [S::I; 8] {
        let mut groups = [s.splat_i32(0); 8];
        for (g, group) in groups.iter_mut().enumerate() {
            *group = vector(s, unit, g);
        }
        groups
    }
    fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
        unit[64 * group + byte]
    }
    #[cfg(test)]
    fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
        unit[64 * group + byte] = value;
    }
}

/// Nibbles: vector `j` holds group `j` in its low and group `4 + j` in its high halves.
struct Bits4;

impl Bits4 {
    const UNIT: usize = 256;
    const NARROW: bool = true;

    #[inline(always)]
    fn decode<S: Simd>(s: S, unit: &[u8]) -> [S::I; 8] {
        let mask = bytes(s, 15);
        let mut groups = [mask; 8];
        for j in 0..4 {
            let pair = vector(s, unit, j);
            groups[j] = s.and(pair, mask);
            groups[4 + j] = s.and(s.shr::<4>(pair), mask);
        }
        groups
    }
    fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
        unit[64 * (group % 4) + byte] >> (4 * (group / 4)) & 15
    }
    #[cfg(test)]
    fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
        unit[64 * (group % 4) + byte] |= (value & 15) << (4 * (group / 4));
    }
}

/// Pairs of bits: vector `v` holds group `4v + j` in bits `2j..2j + 2`.
struct Bits2;

impl Bits2 {
    const UNIT: usize = 128;
    const NARROW: bool = true;

    #[inline(always)]
    fn decode<S: Simd>(s: S, unit: &[u8]) -> [S::I; 8] {
        let mask = bytes(s, 3);
        let mut groups = [mask; 8];
        for v in 0..2 {
            let four = vector(s, unit, v);
            groups[4 * v] = s.and(four, mask);
            groups[4 * v + 1] = s.and(s.shr::<2>(four), mask);
            groups[4 * v + 2] = s.and(s.shr::<4>(four), mask);
            groups[4 * v + 3] = s.and(s.shr::<6>(four), mask);
        }
        groups
    }
    fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
        unit[64 * (group / 4) + byte] >> (2 * (group % 4)) & 3
    }
    #[cfg(test)]
    fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
        unit[64 * (group / 4) + byte] |= (value & 3) << (2 * (group % 4));
    }
}

/// One bit a value: bit `g` of a byte belongs to group `g`.
struct Bits1;

impl Bits1 {
    /// The groups, each bit moved to place `AT`, which is 2 or 4.
    #[inline(always)]
    fn decode<S: Simd, const AT: usize>(s: S, unit: &[u8]) -> [S::I; 8] {
        let mask = bytes(s, 1 << AT);
        let all = vector(s, unit, 0);
        let moved = if AT == 4 {
            [
                s.shl::<4>(all),
                s.shl::<3>(all),
                s.shl::<2>(all),
                s.shl::<1>(all),
                all,
                s.shr::<1>(all),
                s.shr::<2>(all),
                s.shr::<3>(all),
            ]
        } else {
            [
                s.shl::<2>(all),
                s.shl::<1>(all),
                all,
                s.shr::<1>(all),
                s.shr::<2>(all),
                s.shr::<3>(all),
                s.shr::<4>(all),
                s.shr::<5>(all),
            ]
        };
        let mut groups = moved;
        for group in &mut groups {
            *group = s.and(*group, mask);
        }
        groups
    }
    fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
        unit[byte] >> group & 1
    }
    #[cfg(test)]
    fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
        unit[byte] |= (value & 1) << group;
    }
}

/// Two planes: the low bits, then the high ones.
macro_rules! two_planes {
    ($name:ident, $low:ident $low_bits:literal, $high:ident $high_bytes:literal, |$s:ident, $unit:ident| $decode:expr) => {
        struct $name;

        impl $name {
            const UNIT: usize = $low::UNIT + $high_bytes;
            const NARROW: bool = true;

            #[inline(always)]
            fn decode<S: Simd>($s: S, unit: &[u8]) -> [S::I; 8] {
                let mut groups = $low::decode($s, unit);
                let $unit = &unit[$low::UNIT..];
                for (group, high) in groups.iter_mut().zip($decode) {
                    *group = $s.or(*group, high);
                }
                groups
            }
            fn get(unit: &[u8], group: usize, byte: usize) -> u8 {
                let (low, high) = unit.split_at($low::UNIT);
                $low::get(low, group, byte) | $high::get(high, group, byte) << $low_bits
            }
            #[cfg(test)]
            fn put(unit: &mut [u8], group: usize, byte: usize, value: u8) {
                let (low, high) = unit.split_at_mut($low::UNIT);
                $low::put(low, group, byte, value);
                $high::put(high, group, byte, value >> $low_bits);
            }
        }
    };
}

two_planes!(Bits3, Bits2 2, Bits1 64, |s, unit| Bits1::decode::<S, 2>(s, unit));
two_planes!(Bits5, Bits4 4, Bits1 64, |s, unit| Bits1::decode::<S, 4>(s, unit));
two_planes!(Bits6, Bits4 4, Bits2 128, |s, unit| {
    let mut high = Bits2::decode(s, unit);
    for group in &mut high {
        *group = s.shl::<4>(*group);
    }
    high
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::{Isa, Kernel};

    /// Decodes a unit to bytes on some instruction set.
    struct Decode<'a, C>(&'a [u8], std::marker::PhantomData<C>);

    impl<C: Codec> Kernel for Decode<'_, C> {
        type Output = [[u8; 64]; 8];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut out = [[0; 64]; 8];
            for (out, group) in out.iter_mut().zip(C::decode(s, self.0)) {
                s.store_bytes(group, out);
            }
            out
        }
    }

    fn check<C: Codec>(values: &[u8]) {
        let mut unit = vec![0; C::UNIT];
        let value = |group: usize, byte: usize| values[(group * 67 + byte * 13) % values.len()];
        for (group, byte) in (0..8).flat_map(|group| (0..64).map(move |byte| (group, byte))) {
            C::put(&mut unit, group, byte, value(group, byte));
        }
        for isa in Isa::available() {
            let groups = isa.run(Decode::<C>(&unit, std::marker::PhantomData));
            for (group, byte) in (0..8).flat_map(|group| (0..64).map(move |byte| (group, byte))) {
                assert_eq!(C::get(&unit, group, byte), value(group, byte), "{group} {byte}");
                assert_eq!(groups[group][byte], value(group, byte), "{} {group} {byte}", isa.name());
            }
        }
    }

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        let below = |n: u16| (0..n).map(|value| value as u8).collect::<Vec<_>>();
        check::<Signed4>(&below(16));
        check::<Unsigned4>(&below(16));
        check::<Signed5>(&below(32));
        check::<Unsigned5>(&below(32));
        check::<Signed8>(&below(256));
        check::<Unsigned2>(&below(4));
        check::<Signed3>(&below(8));
        check::<Signed6>(&below(64));
        check::<Iq4Nl>(&Iq4Nl::TABLE);
        check::<Mxfp4>(&Mxfp4::TABLE);
    }
}
