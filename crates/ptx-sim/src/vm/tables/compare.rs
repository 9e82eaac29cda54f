//! Comparisons, and choices between two values.
#![allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::double_comparisons,
    reason = "the unordered comparisons are the negations of the opposite ordered ones, and a NaN is not less or greater"
)]

use super::super::compute::Table;

pub(super) fn fill(table: &mut Table) {
    macro_rules! ordered {
        ($name:literal, $type:ty) => {
            table.binary(concat!("setp.eq.", $name), |a: $type, b: $type| a == b);
            table.binary(concat!("setp.ne.", $name), |a: $type, b: $type| a < b || a > b);
            table.binary(concat!("setp.lt.", $name), |a: $type, b: $type| a < b);
            table.binary(concat!("setp.le.", $name), |a: $type, b: $type| a <= b);
            table.binary(concat!("setp.gt.", $name), |a: $type, b: $type| a > b);
            table.binary(concat!("setp.ge.", $name), |a: $type, b: $type| a >= b);
        };
    }
    ordered!("u16", u16);
    ordered!("u32", u32);
    ordered!("u64", u64);
    ordered!("s16", i16);
    ordered!("s32", i32);
    ordered!("s64", i64);
    ordered!("f32", f32);
    ordered!("f64", f64);
    macro_rules! unsigned {
        ($name:literal, $type:ty) => {
            table.binary(concat!("setp.lo.", $name), |a: $type, b: $type| a < b);
            table.binary(concat!("setp.ls.", $name), |a: $type, b: $type| a <= b);
            table.binary(concat!("setp.hi.", $name), |a: $type, b: $type| a > b);
            table.binary(concat!("setp.hs.", $name), |a: $type, b: $type| a >= b);
        };
    }
    unsigned!("u16", u16);
    unsigned!("u32", u32);
    unsigned!("u64", u64);
    macro_rules! bits {
        ($name:literal, $type:ty) => {
            table.binary(concat!("setp.eq.", $name), |a: $type, b: $type| a == b);
            table.binary(concat!("setp.ne.", $name), |a: $type, b: $type| a != b);
        };
    }
    bits!("b16", u16);
    bits!("b32", u32);
    bits!("b64", u64);
    // These hold if an operand is NaN.
    macro_rules! unordered {
        ($name:literal, $type:ty) => {
            table.binary(concat!("setp.equ.", $name), |a: $type, b: $type| !(a < b || a > b));
            table.binary(concat!("setp.neu.", $name), |a: $type, b: $type| a != b);
            table.binary(concat!("setp.ltu.", $name), |a: $type, b: $type| !(a >= b));
            table.binary(concat!("setp.leu.", $name), |a: $type, b: $type| !(a > b));
            table.binary(concat!("setp.gtu.", $name), |a: $type, b: $type| !(a <= b));
            table.binary(concat!("setp.geu.", $name), |a: $type, b: $type| !(a < b));
            table.binary(concat!("setp.num.", $name), |a: $type, b: $type| !a.is_nan() && !b.is_nan());
            table.binary(concat!("setp.nan.", $name), |a: $type, b: $type| a.is_nan() || b.is_nan());
        };
    }
    unordered!("f32", f32);
    unordered!("f64", f64);

    macro_rules! select {
        ($type:ty, $($name:literal)*) => {$(
            table.ternary(concat!("selp.", $name), |a: $type, b: $type, choice: bool| if choice { a } else { b });
            table.ternary(concat!("slct.", $name, ".s32"), |a: $type, b: $type, c: i32| if c >= 0 { a } else { b });
            table.ternary(concat!("slct.", $name, ".f32"), |a: $type, b: $type, c: f32| if c >= 0.0 { a } else { b });
        )*};
    }
    select!(u16, "b16" "u16" "s16");
    select!(u32, "b32" "u32" "s32" "f32");
    select!(u64, "b64" "u64" "s64" "f64");
    // What `set` makes of a comparison's result.
    table.unary("set.u32", |holds: bool| if holds { u32::MAX } else { 0 });
    table.unary("set.s32", |holds: bool| if holds { u32::MAX } else { 0 });
    table.unary("set.f32", |holds: bool| if holds { 1f32 } else { 0.0 });
}
