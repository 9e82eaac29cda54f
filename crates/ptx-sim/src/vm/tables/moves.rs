//! Moves, and vectors packed into a register.

use super::super::{
    compute::Table,
    window::{LOCAL, PARAM, SHARED, window},
};

pub(super) fn fill(table: &mut Table) {
    table.unary("mov.pred", |a: bool| a);
    macro_rules! moves {
        ($type:ty, $($name:literal)*) => {$(
            table.unary(concat!("mov.", $name), |a: $type| a);
        )*};
    }
    moves!(u16, "b16" "u16" "s16" "f16" "bf16");
    moves!(u32, "b32" "u32" "s32" "f32" "f16x2" "bf16x2");
    moves!(u64, "b64" "u64" "s64" "f64");

    // `pack.to.from` of a vector, the first element lowest; `unpack.from.to.index`.
    table.binary("pack.64.32", |low: u32, high: u32| u64::from(high) << 32 | u64::from(low));
    table.binary("pack.32.16", |low: u16, high: u16| u32::from(high) << 16 | u32::from(low));
    table.quaternary("pack.64.16", |a: u16, b: u16, c: u16, d: u16| {
        u64::from(d) << 48 | u64::from(c) << 32 | u64::from(b) << 16 | u64::from(a)
    });
    table.binary("pack.16.8", |low: u8, high: u8| u16::from(high) << 8 | u16::from(low));
    table.quaternary("pack.32.8", |a: u8, b: u8, c: u8, d: u8| u32::from_le_bytes([a, b, c, d]));
    for index in 0..4 {
        table.unary(format!("unpack.64.32.{index}"), move |a: u64| (a >> (32 * (index & 1))) as u32);
        table.unary(format!("unpack.32.16.{index}"), move |a: u32| (a >> (16 * (index & 1))) as u16);
        table.unary(format!("unpack.64.16.{index}"), move |a: u64| (a >> (16 * index)) as u16);
        table.unary(format!("unpack.32.8.{index}"), move |a: u32| a.to_le_bytes()[index]);
        table.unary(format!("unpack.16.8.{index}"), move |a: u16| a.to_le_bytes()[index & 1]);
    }

    for (name, base) in [("global", 0), ("const", 0), ("shared", SHARED), ("local", LOCAL), ("param", PARAM)]
    {
        table.unary(format!("cvta.{name}.u64"), move |a: u64| a.wrapping_add(base));
        table.unary(format!("cvta.to.{name}.u64"), move |a: u64| a.wrapping_sub(base));
        table.unary(format!("isspacep.{name}"), move |a: u64| window(a) == base);
    }

    // Between kinds of registers, where an operand is wider than the type of its instruction, or narrower.
    table.unary("fit.wide.narrow", |a: u64| a as u32);
    table.unary("fit.narrow.wide", |a: u32| u64::from(a));
    table.unary("fit.narrow.wide.signed", |a: i32| i64::from(a));
}
