//! Floats of 16 bits, alone and in pairs: computed in f64 and rounded once.
#![allow(clippy::double_comparisons, reason = "a NaN is not less or greater")]

use half::{bf16, f16};

use super::{
    super::compute::Table,
    convert::{BF16, F16, Format, Rounding, odd_sum, round},
};

pub(super) fn fill(table: &mut Table) {
    macro_rules! both {
        ($name:literal, $type:ident, $format:expr) => {
            for (operation, function) in BINARY {
                let one = move |a: $type, b: $type| {
                    $type::from_bits(
                        round(function(a.to_f64(), b.to_f64()), &$format, Rounding::Nearest) as u16
                    )
                };
                table.binary(format!("{operation}.{}", $name), one);
                table.binary(format!("{operation}.{}x2", $name), move |a: u32, b: u32| {
                    pair(|shift| one(half!($type, a, shift), half!($type, b, shift)).to_bits())
                });
            }
            let fma = |a: $type, b: $type, c: $type| {
                $type::from_bits(fused(a.to_f64(), b.to_f64(), c.to_f64(), &$format) as u16)
            };
            table.ternary(concat!("fma.", $name), fma);
            table.ternary(concat!("fma.", $name, "x2"), move |a: u32, b: u32, c: u32| {
                pair(|shift| {
                    fma(half!($type, a, shift), half!($type, b, shift), half!($type, c, shift)).to_bits()
                })
            });
            table.unary(concat!("neg.", $name), |a: u16| a ^ 0x8000);
            table.unary(concat!("abs.", $name), |a: u16| a & 0x7fff);
            table.unary(concat!("neg.", $name, "x2"), |a: u32| a ^ 0x8000_8000);
            table.unary(concat!("abs.", $name, "x2"), |a: u32| a & 0x7fff_7fff);
            table.binary(concat!("setp.eq.", $name), |a: $type, b: $type| a == b);
            table.binary(concat!("setp.ne.", $name), |a: $type, b: $type| a < b || a > b);
            table.binary(concat!("setp.neu.", $name), |a: $type, b: $type| a != b);
            table.binary(concat!("setp.lt.", $name), |a: $type, b: $type| a < b);
            table.binary(concat!("setp.le.", $name), |a: $type, b: $type| a <= b);
            table.binary(concat!("setp.gt.", $name), |a: $type, b: $type| a > b);
            table.binary(concat!("setp.ge.", $name), |a: $type, b: $type| a >= b);
            table.binary(concat!("setp.nan.", $name), |a: $type, b: $type| a.is_nan() || b.is_nan());
        };
    }
    macro_rules! half {
        ($type:ident, $value:ident, $shift:ident) => {
            $type::from_bits(($value >> $shift) as u16)
        };
    }
    both!("f16", f16, F16);
    both!("bf16", bf16, BF16);
}

type Binary = fn(f64, f64) -> f64;

const BINARY: [(&str, Binary); 7] = [
    ("add", |a, b| a + b),
    ("sub", |a, b| a - b),
    ("mul", |a, b| a * b),
    ("min", |a, b| smaller(a, b)),
    ("max", |a, b| -smaller(-a, -b)),
    ("min.NaN", |a, b| {
        if a.is_nan() {
            a
        } else if b.is_nan() {
            b
        } else {
            smaller(a, b)
        }
    }),
    ("max.NaN", |a, b| {
        if a.is_nan() {
            a
        } else if b.is_nan() {
            b
        } else {
            -smaller(-a, -b)
        }
    }),
];

/// A NaN is dropped if the other is a number; -0 is below +0.
fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || b < a || (a == b && b.is_sign_negative()) { b } else { a }
}

fn pair(half: impl Fn(u32) -> u16) -> u32 {
    u32::from(half(16)) << 16 | u32::from(half(0))
}

/// The product is exact in f64.
fn fused(a: f64, b: f64, c: f64, format: &Format) -> u32 {
    round(odd_sum(a * b, c), format, Rounding::Nearest)
}
