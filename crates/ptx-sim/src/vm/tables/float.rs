//! Floats of 32 and 64 bits: rounded to nearest even, with subnormals unless `.ftz` is written; a NaN that f32 instructions
//! give is 0x7fffffff.

use super::{
    super::{compute::Table, registers::Lanes},
    convert::{F32, Rounding, odd_sum, round},
};

pub(super) fn fill(table: &mut Table) {
    macro_rules! both {
        ($name:literal, $type:ty, $nan:expr) => {
            table.binary(concat!("add.", $name), |a: $type, b: $type| canonical!(a + b, $nan));
            table.binary(concat!("sub.", $name), |a: $type, b: $type| canonical!(a - b, $nan));
            table.binary(concat!("mul.", $name), |a: $type, b: $type| canonical!(a * b, $nan));
            table.binary(concat!("div.", $name), |a: $type, b: $type| canonical!(a / b, $nan));
            table.unary(concat!("sqrt.", $name), |a: $type| canonical!(a.sqrt(), $nan));
            table.unary(concat!("rcp.", $name), |a: $type| canonical!(1.0 / a, $nan));
            table
                .binary(concat!("min.", $name), |a: $type, b: $type| canonical!(smaller!(a, b, $type), $nan));
            table.binary(concat!("max.", $name), |a: $type, b: $type| canonical!(larger!(a, b, $type), $nan));
            // The result has the sign of the first operand.
            table.binary(concat!("copysign.", $name), |a: $type, b: $type| b.copysign(a));
            table.unary(concat!("testp.finite.", $name), |a: $type| a.is_finite());
            table.unary(concat!("testp.infinite.", $name), |a: $type| a.is_infinite());
            table.unary(concat!("testp.number.", $name), |a: $type| !a.is_nan());
            table.unary(concat!("testp.notanumber.", $name), |a: $type| a.is_nan());
            table.unary(concat!("testp.normal.", $name), |a: $type| a.is_normal() || a == 0.0);
            table.unary(concat!("testp.subnormal.", $name), |a: $type| a.is_subnormal());
        };
    }
    macro_rules! canonical {
        ($value:expr, $nan:expr) => {
            $value.canonical($nan)
        };
    }
    // A NaN is dropped if the other is a number; -0 is below +0.
    macro_rules! smaller {
        ($a:expr, $b:expr, $type:ty) => {
            if $a.is_nan() || $b < $a {
                $b
            } else if $a == $b {
                <$type>::from_bits($a.to_bits() | $b.to_bits())
            } else {
                $a
            }
        };
    }
    macro_rules! larger {
        ($a:expr, $b:expr, $type:ty) => {
            if $a.is_nan() || $b > $a {
                $b
            } else if $a == $b {
                <$type>::from_bits($a.to_bits() & $b.to_bits())
            } else {
                $a
            }
        };
    }
    both!("f32", f32, NAN);
    table.ternary_lanes("fma.f32", |a, b, c| fused(a, b, c).map(|value| value.canonical(NAN)));
    table.ternary("fma.f64", |a: f64, b: f64, c: f64| a.mul_add(b, c).canonical(f64::NAN));
    both!("f64", f64, f64::NAN);
    table.unary("neg.f64", |a: f64| -a);
    table.unary("abs.f64", |a: f64| a.abs());
    table.unary("neg.f32", |a: f32| canonical!(-a, NAN));
    table.unary("abs.f32", |a: f32| canonical!(a.abs(), NAN));
    table.binary("min.NaN.f32", |a: f32, b: f32| match a.is_nan() || b.is_nan() {
        true => NAN,
        false => smaller!(a, b, f32),
    });
    table.binary("max.NaN.f32", |a: f32, b: f32| match a.is_nan() || b.is_nan() {
        true => NAN,
        false => larger!(a, b, f32),
    });
    saturated(table);
    directed(table);

    macro_rules! flushed {
        ($($name:literal: $function:expr;)*) => {$(
            let function: fn(f32, f32) -> f32 = $function;
            table.binary($name, move |a: f32, b: f32| flush(canonical!(function(flush(a), flush(b)), NAN)));
        )*};
    }
    flushed! {
        "add.ftz.f32": |a, b| a + b;
        "sub.ftz.f32": |a, b| a - b;
        "mul.ftz.f32": |a, b| a * b;
        "div.ftz.f32": |a, b| a / b;
        "min.ftz.f32": |a, b| smaller!(a, b, f32);
        "max.ftz.f32": |a, b| larger!(a, b, f32);
    }
    table.ternary("fma.ftz.f32", |a: f32, b: f32, c: f32| {
        flush(canonical!(flush(a).mul_add(flush(b), flush(c)), NAN))
    });
    table.unary("sqrt.ftz.f32", |a: f32| flush(canonical!(flush(a).sqrt(), NAN)));
    table.unary("rcp.ftz.f32", |a: f32| flush(canonical!(1.0 / flush(a), NAN)));
    table.unary("neg.ftz.f32", |a: f32| canonical!(-flush(a), NAN));
    table.unary("abs.ftz.f32", |a: f32| canonical!(flush(a).abs(), NAN));
}

/// a · b + c, rounded once.
fn fused(a: &Lanes<f32>, b: &Lanes<f32>, c: &Lanes<f32>) -> Lanes<f32> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the instruction.
        return unsafe { fused_by_hardware(a, b, c) };
    }
    std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
}

/// Without the instruction, each lane is a call of a library.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,fma")]
fn fused_by_hardware(a: &Lanes<f32>, b: &Lanes<f32>, c: &Lanes<f32>) -> Lanes<f32> {
    std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
}

trait Canonical {
    /// The value, or a NaN for a NaN. By bits: a comparison with itself is optimised together with what computed the value, and
    /// the optimiser does not care which NaN that is.
    fn canonical(self, nan: Self) -> Self;
}

impl Canonical for f32 {
    #[inline]
    fn canonical(self, nan: f32) -> f32 {
        if self.to_bits() << 1 > 0xff << 24 { nan } else { self }
    }
}

impl Canonical for f64 {
    #[inline]
    fn canonical(self, nan: f64) -> f64 {
        if self.to_bits() << 1 > 0x7ff << 53 { nan } else { self }
    }
}

/// Roundings other than to the nearest, from sums and products that f64 holds but for their last bits.
fn directed(table: &mut Table) {
    for (name, rounding) in Rounding::ALL.into_iter().skip(1) {
        let sum = move |a: f64, b: f64| match odd_sum(a, b) {
            // What cancels is -0 downwards, but zeros of one sign keep it.
            0.0 if rounding == Rounding::Down
                && (a != 0.0 || a.is_sign_negative() || b.is_sign_negative()) =>
            {
                -0.0
            }
            sum => f32::from_bits(round(sum, &F32, rounding)),
        };
        table.binary(format!("add.{name}.f32"), move |a: f32, b: f32| sum(a.into(), b.into()));
        table.binary(format!("sub.{name}.f32"), move |a: f32, b: f32| sum(a.into(), -f64::from(b)));
        table.binary(format!("mul.{name}.f32"), move |a: f32, b: f32| {
            f32::from_bits(round(f64::from(a) * f64::from(b), &F32, rounding))
        });
        table.ternary(format!("fma.{name}.f32"), move |a: f32, b: f32, c: f32| {
            sum(f64::from(a) * f64::from(b), c.into())
        });
    }
}

/// `.sat`: clamped to 0..=1, and a NaN is +0.
fn saturated(table: &mut Table) {
    table.binary("add.sat.f32", |a: f32, b: f32| saturate(a + b));
    table.binary("sub.sat.f32", |a: f32, b: f32| saturate(a - b));
    table.binary("mul.sat.f32", |a: f32, b: f32| saturate(a * b));
    table.ternary("fma.sat.f32", |a: f32, b: f32, c: f32| saturate(a.mul_add(b, c)));
}

/// The NaN of f32 instructions.
pub(super) const NAN: f32 = f32::from_bits(0x7fff_ffff);

pub(super) fn saturate(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// A subnormal as a zero of its sign.
pub(super) fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}
