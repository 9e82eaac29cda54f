//! Integer arithmetic: it wraps unless `.sat` is written; what is divided by 0 has all bits set.

use super::super::compute::Table;

pub(super) fn fill(table: &mut Table) {
    macro_rules! common {
        ($name:literal, $type:ty) => {
            table.binary(concat!("add.", $name), |a: $type, b: $type| a.wrapping_add(b));
            table.binary(concat!("sub.", $name), |a: $type, b: $type| a.wrapping_sub(b));
            table.binary(concat!("mul.lo.", $name), |a: $type, b: $type| a.wrapping_mul(b));
            table.ternary(concat!("mad.lo.", $name), |a: $type, b: $type, c: $type| {
                a.wrapping_mul(b).wrapping_add(c)
            });
            table.binary(concat!("div.", $name), |a: $type, b: $type| match b {
                0 => !0,
                _ => a.wrapping_div(b),
            });
            table.binary(concat!("rem.", $name), |a: $type, b: $type| match b {
                0 => a,
                _ => a.wrapping_rem(b),
            });
            table.binary(concat!("min.", $name), |a: $type, b: $type| a.min(b));
            table.binary(concat!("max.", $name), |a: $type, b: $type| a.max(b));
        };
    }
    common!("u16", u16);
    common!("u32", u32);
    common!("u64", u64);
    common!("s16", i16);
    common!("s32", i32);
    common!("s64", i64);

    macro_rules! signed {
        ($name:literal, $type:ty) => {
            table.unary(concat!("neg.", $name), |a: $type| a.wrapping_neg());
            table.unary(concat!("abs.", $name), |a: $type| a.wrapping_abs());
        };
    }
    signed!("s16", i16);
    signed!("s32", i32);
    signed!("s64", i64);

    macro_rules! high_and_wide {
        ($name:literal, $type:ty, $double:ty) => {
            high!($name, $type, $double);
            table.binary(concat!("mul.wide.", $name), |a: $type, b: $type| a as $double * b as $double);
            table.ternary(concat!("mad.wide.", $name), |a: $type, b: $type, c: $double| {
                (a as $double * b as $double).wrapping_add(c)
            });
        };
    }
    macro_rules! high {
        ($name:literal, $type:ty, $double:ty) => {
            table.binary(concat!("mul.hi.", $name), |a: $type, b: $type| {
                ((a as $double * b as $double) >> <$type>::BITS) as $type
            });
            table.ternary(concat!("mad.hi.", $name), |a: $type, b: $type, c: $type| {
                (((a as $double * b as $double) >> <$type>::BITS) as $type).wrapping_add(c)
            });
        };
    }
    high_and_wide!("u16", u16, u32);
    high_and_wide!("s16", i16, i32);
    high_and_wide!("u32", u32, u64);
    high_and_wide!("s32", i32, i64);
    high!("u64", u64, u128);
    high!("s64", i64, i128);

    macro_rules! carry {
        ($name:literal, $type:ty) => {
            table.ternary(concat!("addc.", $name), |a: $type, b: $type, carry: bool| {
                a.wrapping_add(b).wrapping_add(carry.into())
            });
            table.ternary(concat!("addc.carry.", $name), |a: $type, b: $type, carry: bool| {
                a.checked_add(b).and_then(|sum| sum.checked_add(carry.into())).is_none()
            });
            table.ternary(concat!("subc.", $name), |a: $type, b: $type, borrow: bool| {
                a.wrapping_sub(b).wrapping_sub(borrow.into())
            });
            table.ternary(concat!("subc.carry.", $name), |a: $type, b: $type, borrow: bool| {
                a.checked_sub(b).and_then(|difference| difference.checked_sub(borrow.into())).is_none()
            });
        };
    }
    carry!("u32", u32);
    carry!("u64", u64);

    table.binary("add.sat.s32", |a: i32, b: i32| a.saturating_add(b));
    table.binary("sub.sat.s32", |a: i32, b: i32| a.saturating_sub(b));
    table.ternary("sad.u32", |a: u32, b: u32, c: u32| a.abs_diff(b).wrapping_add(c));
    table.ternary("sad.s32", |a: i32, b: i32, c: u32| a.abs_diff(b).wrapping_add(c));
    twenty_four(table);
    pairs(table);
    dots(table);
}

/// Integers of 16 bits in pairs, and the differences of bytes.
fn pairs(table: &mut Table) {
    macro_rules! pair {
        ($name:literal, $type:ty) => {
            for (operation, function) in [
                ("add", <$type>::wrapping_add as fn($type, $type) -> $type),
                ("min", |a, b| a.min(b)),
                ("max", |a, b| a.max(b)),
            ] {
                table.binary(format!("{operation}.{}x2", $name), move |a: u32, b: u32| {
                    let half = |shift: u32| function((a >> shift) as $type, (b >> shift) as $type) as u16;
                    u32::from(half(16)) << 16 | u32::from(half(0))
                });
            }
        };
    }
    pair!("u16", u16);
    pair!("s16", i16);
    fn differences(a: u32, b: u32) -> [u8; 4] {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        std::array::from_fn(|index| a[index].abs_diff(b[index]))
    }
    table.ternary("vabsdiff4.u32.u32.u32", |a: u32, b: u32, _: u32| u32::from_le_bytes(differences(a, b)));
    table.ternary("vabsdiff4.u32.u32.u32.add", |a: u32, b: u32, c: u32| {
        differences(a, b).iter().fold(c, |sum, &difference| sum.wrapping_add(difference.into()))
    });
}

/// Products of the low 24 bits; `.hi` is bits 16 to 47.
fn twenty_four(table: &mut Table) {
    fn signed(value: i32) -> i64 {
        i64::from(value << 8 >> 8)
    }
    fn unsigned(value: u32) -> u64 {
        u64::from(value & 0x00ff_ffff)
    }
    table.binary("mul24.lo.u32", |a: u32, b: u32| (unsigned(a) * unsigned(b)) as u32);
    table.binary("mul24.hi.u32", |a: u32, b: u32| ((unsigned(a) * unsigned(b)) >> 16) as u32);
    table.binary("mul24.lo.s32", |a: i32, b: i32| (signed(a) * signed(b)) as i32);
    table.binary("mul24.hi.s32", |a: i32, b: i32| ((signed(a) * signed(b)) >> 16) as i32);
    table.ternary("mad24.lo.u32", |a: u32, b: u32, c: u32| {
        ((unsigned(a) * unsigned(b)) as u32).wrapping_add(c)
    });
    table.ternary("mad24.lo.s32", |a: i32, b: i32, c: i32| ((signed(a) * signed(b)) as i32).wrapping_add(c));
}

/// `dp4a.atype.btype`: four products of bytes; `dp2a.mode.atype.btype`: two of 16 bits with 8, from the low or high half of `b`.
fn dots(table: &mut Table) {
    macro_rules! dots {
        ($names:literal, $a8:ty, $a16:ty, $b8:ty) => {
            table.ternary(concat!("dp4a.", $names), |a: u32, b: u32, c: u32| {
                let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
                (0..4).fold(c, |sum, k| sum.wrapping_add((a[k] as $a8 as i32 * b[k] as $b8 as i32) as u32))
            });
            table.ternary(concat!("dp2a.lo.", $names), |a: u32, b: u32, c: u32| {
                let halves = [a as u16, (a >> 16) as u16];
                let b = b.to_le_bytes();
                (0..2).fold(c, |sum, k| {
                    sum.wrapping_add((halves[k] as $a16 as i32 * b[k] as $b8 as i32) as u32)
                })
            });
            table.ternary(concat!("dp2a.hi.", $names), |a: u32, b: u32, c: u32| {
                let halves = [a as u16, (a >> 16) as u16];
                let b = (b >> 16).to_le_bytes();
                (0..2).fold(c, |sum, k| {
                    sum.wrapping_add((halves[k] as $a16 as i32 * b[k] as $b8 as i32) as u32)
                })
            });
        };
    }
    dots!("s32.s32", i8, i16, i8);
    dots!("s32.u32", i8, i16, u8);
    dots!("u32.s32", u8, u16, i8);
    dots!("u32.u32", u8, u16, u8);
}
