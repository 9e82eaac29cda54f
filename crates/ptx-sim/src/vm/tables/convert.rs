//! `cvt`: between integers it keeps the low bits, or clamps with `.sat`; floats become integers clamped to their range.

use half::{bf16, f16};

use super::{
    super::compute::Table,
    float::{NAN, flush, saturate},
};

/// How a value between two that a type holds becomes one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

impl Rounding {
    pub(super) const ALL: [(&'static str, Rounding); 4] =
        [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)];

    pub(super) fn integral(self, value: f64) -> f64 {
        match self {
            Rounding::Nearest => value.round_ties_even(),
            Rounding::Zero => value.trunc(),
            Rounding::Down => value.floor(),
            Rounding::Up => value.ceil(),
        }
    }
}

pub(super) fn fill(table: &mut Table) {
    integers(table);
    floats_to_integers(table);
    integers_to_floats(table);
    floats(table);
    pairs(table);
}

/// Calls a macro with the name and the type of each integer.
macro_rules! each_integer {
    ($macro:ident, $($arguments:tt)*) => {
        $macro!("u8", u8, $($arguments)*);
        $macro!("u16", u16, $($arguments)*);
        $macro!("u32", u32, $($arguments)*);
        $macro!("u64", u64, $($arguments)*);
        $macro!("s8", i8, $($arguments)*);
        $macro!("s16", i16, $($arguments)*);
        $macro!("s32", i32, $($arguments)*);
        $macro!("s64", i64, $($arguments)*);
    };
}

fn integers(table: &mut Table) {
    macro_rules! pair {
        ($from:literal, $source:ty, $to:literal, $target:ty) => {
            table.unary(concat!("cvt.", $to, ".", $from), |a: $source| a as $target);
            table.unary(concat!("cvt.sat.", $to, ".", $from), |a: $source| {
                i128::from(a).clamp(<$target>::MIN.into(), <$target>::MAX.into()) as $target
            });
        };
    }
    macro_rules! target {
        ($to:literal, $target:ty,) => {
            each_integer!(pair, $to, $target);
        };
    }
    each_integer!(target,);
}

/// A NaN is 0 from f32 or f16 to at most 32 bits, and else the highest bit alone. Rust's `as` clamps.
fn floats_to_integers(table: &mut Table) {
    macro_rules! target {
        ($to:literal, $target:ty,) => {
            for (name, rounding) in Rounding::ALL {
                let nan = match <$target>::BITS {
                    64 => (1 as $target).rotate_right(1),
                    _ => 0,
                };
                let convert = move |value: f64| match value.is_nan() {
                    true => nan,
                    false => rounding.integral(value) as $target,
                };
                table.unary(format!("cvt.{name}i.{}.f32", $to), move |a: f32| convert(a.into()));
                table.unary(format!("cvt.{name}i.ftz.{}.f32", $to), move |a: f32| convert(flush(a).into()));
                table.unary(format!("cvt.{name}i.{}.f16", $to), move |a: f16| convert(a.into()));
                table.unary(format!("cvt.{name}i.{}.bf16", $to), move |a: bf16| convert(a.into()));
                table.unary(format!("cvt.{name}i.{}.f64", $to), move |a: f64| match a.is_nan() {
                    true => (1 as $target).rotate_right(1),
                    false => rounding.integral(a) as $target,
                });
            }
        };
    }
    each_integer!(target,);
}

fn integers_to_floats(table: &mut Table) {
    macro_rules! source {
        ($from:literal, $source:ty,) => {
            for (name, rounding) in Rounding::ALL {
                table.unary(format!("cvt.{name}.f32.{}", $from), move |a: $source| {
                    let nearest = a as f32;
                    directed!(nearest, i128::from(a), rounding)
                });
                table.unary(format!("cvt.{name}.f64.{}", $from), move |a: $source| {
                    let nearest = a as f64;
                    directed!(nearest, i128::from(a), rounding)
                });
            }
            // Integers of 64 bits would be rounded twice.
            if <$source>::BITS <= 32 {
                table.unary(concat!("cvt.rn.f16.", $from), |a: $source| {
                    f16::from_bits(round(a as f64, &F16, Rounding::Nearest) as u16)
                });
                table.unary(concat!("cvt.rn.bf16.", $from), |a: $source| {
                    bf16::from_bits(round(a as f64, &BF16, Rounding::Nearest) as u16)
                });
            }
        };
    }
    // One step from the nearest where that is on the wrong side.
    macro_rules! directed {
        ($nearest:ident, $exact:expr, $rounding:ident) => {{
            let (rounded, exact) = ($nearest as i128, $exact);
            match $rounding {
                Rounding::Zero if rounded.abs() > exact.abs() && exact > 0 => $nearest.next_down(),
                Rounding::Zero if rounded.abs() > exact.abs() => $nearest.next_up(),
                Rounding::Down if rounded > exact => $nearest.next_down(),
                Rounding::Up if rounded < exact => $nearest.next_up(),
                _ => $nearest,
            }
        }};
    }
    each_integer!(source,);
}

fn floats(table: &mut Table) {
    table.unary("cvt.f64.f32", |a: f32| f64::from(a));
    table.unary("cvt.ftz.f64.f32", |a: f32| f64::from(flush(a)));
    table.unary("cvt.f64.f64", |a: f64| a);
    table.unary("cvt.f32.f32", number);
    table.unary("cvt.ftz.f32.f32", |a: f32| flush(number(a)));
    table.unary("cvt.sat.f32.f32", saturate);
    table.unary("cvt.ftz.sat.f32.f32", |a: f32| saturate(flush(a)));
    table.unary("cvt.f32.f16", |a: f16| number(a.to_f32()));
    table.unary("cvt.f32.bf16", |a: bf16| number(a.to_f32()));
    table.unary("cvt.f64.f16", |a: f16| a.to_f64());
    table.unary("cvt.f64.bf16", |a: bf16| a.to_f64());
    table.unary("cvt.f16.f16", |a: f16| a);
    for (name, rounding) in Rounding::ALL {
        table.unary(format!("cvt.{name}i.f32.f32"), move |a: f32| number(rounding.integral(a.into()) as f32));
        table.unary(format!("cvt.{name}i.ftz.f32.f32"), move |a: f32| {
            number(rounding.integral(flush(a).into()) as f32)
        });
        table.unary(format!("cvt.{name}i.f64.f64"), move |a: f64| rounding.integral(a));
        table.unary(format!("cvt.{name}i.f16.f16"), move |a: f16| {
            to_f16(rounding.integral(a.into()), rounding)
        });
        table.unary(format!("cvt.{name}.f32.f64"), move |a: f64| f32::from_bits(round(a, &F32, rounding)));
        table.unary(format!("cvt.{name}.ftz.f32.f64"), move |a: f64| {
            flush(f32::from_bits(round(a, &F32, rounding)))
        });
        table.unary(format!("cvt.{name}.f16.f32"), move |a: f32| to_f16(a.into(), rounding));
        table.unary(format!("cvt.{name}.f16.f64"), move |a: f64| to_f16(a, rounding));
        table.unary(format!("cvt.{name}.bf16.f32"), move |a: f32| to_bf16(a.into(), rounding));
    }
}

/// Two values into one register, the first operand in its upper half.
fn pairs(table: &mut Table) {
    table.binary("cvt.pack.sat.u16.s32", |high: i32, low: i32| {
        (high.clamp(0, 0xffff) << 16 | low.clamp(0, 0xffff)) as u32
    });
    table.binary("cvt.pack.sat.s16.s32", |high: i32, low: i32| {
        (high.clamp(-0x8000, 0x7fff) << 16 | low.clamp(-0x8000, 0x7fff) & 0xffff) as u32
    });
    // The third operand's lower half becomes the upper one.
    table.ternary("cvt.pack.sat.u8.s32.b32", |high: i32, low: i32, upper: u32| {
        upper << 16 | (high.clamp(0, 255) << 8 | low.clamp(0, 255)) as u32
    });
    table.ternary("cvt.pack.sat.s8.s32.b32", |high: i32, low: i32, upper: u32| {
        let byte = |value: i32| value.clamp(-128, 127) as u32 & 255;
        upper << 16 | byte(high) << 8 | byte(low)
    });
    for (name, rounding) in Rounding::ALL {
        table.binary(format!("cvt.{name}.f16x2.f32"), move |high: f32, low: f32| {
            round(high.into(), &F16, rounding) << 16 | round(low.into(), &F16, rounding)
        });
        table.binary(format!("cvt.{name}.bf16x2.f32"), move |high: f32, low: f32| {
            round(high.into(), &BF16, rounding) << 16 | round(low.into(), &BF16, rounding)
        });
    }
}

fn number(value: f32) -> f32 {
    if value.to_bits() << 1 > 0xff << 24 { NAN } else { value }
}

fn to_f16(value: f64, rounding: Rounding) -> f16 {
    f16::from_bits(round(value, &F16, rounding) as u16)
}

fn to_bf16(value: f64, rounding: Rounding) -> bf16 {
    bf16::from_bits(round(value, &BF16, rounding) as u16)
}

/// A format of binary floats of at most 32 bits.
pub(super) struct Format {
    /// Bits of the significand, with the one that is not stored.
    precision: i32,
    /// Of the smallest normal number, and of the largest.
    exponents: (i32, i32),
    nan: u32,
}

pub(super) const F16: Format = Format { precision: 11, exponents: (-14, 15), nan: 0x7fff };
pub(super) const BF16: Format = Format { precision: 8, exponents: (-126, 127), nan: 0x7fff };
pub(super) const F32: Format = Format { precision: 24, exponents: (-126, 127), nan: 0x7fff_ffff };

/// The bits of `value` in a format, rounded once.
pub(super) fn round(value: f64, format: &Format, rounding: Rounding) -> u32 {
    let stored = format.precision - 1;
    let infinity = ((2 * format.exponents.1 + 1) as u32) << stored;
    let sign_bit = (infinity >> stored).count_ones() + stored as u32;
    let sign = u32::from(value.is_sign_negative()) << sign_bit;
    if value.is_nan() {
        return format.nan;
    }
    if value == 0.0 || value.is_infinite() {
        return sign | if value == 0.0 { 0 } else { infinity };
    }
    let exponent = ((value.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(format.exponents.0);
    let quantum = exponent - stored;
    let scale = f64::from_bits(((1023 - quantum).clamp(1, 2046) as u64) << 52);
    let significand = rounding.integral(value * scale).abs() as u64;
    // A carry out of the significand raises the exponent, as the fields are beside each other.
    let biased = (exponent - format.exponents.0) as u32;
    let bits = (biased << stored) + significand as u32;
    if exponent > format.exponents.1 || bits >= infinity {
        let away = match rounding {
            Rounding::Nearest => true,
            Rounding::Zero => false,
            Rounding::Down => sign != 0,
            Rounding::Up => sign == 0,
        };
        return sign | if away { infinity } else { infinity - 1 };
    }
    sign | bits
}

/// A sum of which all that matters to a later rounding to fewer bits is kept: if it is not exact, its last bit is odd, so that it is on
/// no boundary, and on the right side of each.
pub(super) fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let shadow = sum - a;
    let error = (a - (sum - shadow)) + (b - shadow);
    if error == 0.0 || !sum.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    let away = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}
