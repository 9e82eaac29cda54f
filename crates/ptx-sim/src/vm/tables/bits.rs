//! Logic, shifts and moves of bits.

use super::super::compute::Table;

pub(super) fn fill(table: &mut Table) {
    macro_rules! logic {
        ($name:literal, $type:ty) => {
            table.binary(concat!("and.", $name), |a: $type, b: $type| a & b);
            table.binary(concat!("or.", $name), |a: $type, b: $type| a | b);
            table.binary(concat!("xor.", $name), |a: $type, b: $type| a ^ b);
            table.unary(concat!("not.", $name), |a: $type| !a);
            table.unary(concat!("cnot.", $name), |a: $type| <$type>::from(a == <$type>::default()));
        };
    }
    logic!("pred", bool);
    logic!("b16", u16);
    logic!("b32", u32);
    logic!("b64", u64);

    // What is shifted out by as many bits as there are, or more, is 0 or all sign.
    macro_rules! shift {
        ($name:literal, $unsigned:ty, $signed:ty) => {
            table.binary(concat!("shl.b", $name), |a: $unsigned, b: u32| a.checked_shl(b).unwrap_or(0));
            table.binary(concat!("shr.u", $name), |a: $unsigned, b: u32| a.checked_shr(b).unwrap_or(0));
            table.binary(concat!("shr.s", $name), |a: $signed, b: u32| a >> b.min(<$signed>::BITS - 1));
        };
    }
    shift!("16", u16, i16);
    shift!("32", u32, i32);
    shift!("64", u64, i64);
    table.ternary("shf.l.wrap.b32", |low: u32, high: u32, by: u32| funnel_left(low, high, by & 31));
    table.ternary("shf.l.clamp.b32", |low: u32, high: u32, by: u32| funnel_left(low, high, by.min(32)));
    table.ternary("shf.r.wrap.b32", |low: u32, high: u32, by: u32| funnel_right(low, high, by & 31));
    table.ternary("shf.r.clamp.b32", |low: u32, high: u32, by: u32| funnel_right(low, high, by.min(32)));

    macro_rules! count {
        ($name:literal, $type:ty) => {
            table.unary(concat!("popc.", $name), |a: $type| a.count_ones());
            table.unary(concat!("clz.", $name), |a: $type| a.leading_zeros());
            table.unary(concat!("brev.", $name), |a: $type| a.reverse_bits());
        };
    }
    count!("b32", u32);
    count!("b64", u64);
    find(table);
    fields(table);
    table.ternary("prmt.b32", permute);
    let modes: [(&str, Selector); 6] = [
        ("f4e", forward_4),
        ("b4e", backward_4),
        ("rc8", replicate_8),
        ("ecl", edge_left),
        ("ecr", edge_right),
        ("rc16", replicate_16),
    ];
    for (name, selector) in modes {
        table.ternary(format!("prmt.b32.{name}"), move |a: u32, b: u32, mode: u32| {
            permute(a, b, selector(mode & 3))
        });
    }
    for truth in 0..=255u32 {
        table.ternary(format!("lop3.b32.{truth}"), move |a: u32, b: u32, c: u32| logic_3(a, b, c, truth));
    }
}

/// The bytes that a mode of `prmt` chooses, from the low bits of its third operand.
type Selector = fn(u32) -> u32;

fn funnel_left(low: u32, high: u32, by: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) << by >> 32) as u32
}

fn funnel_right(low: u32, high: u32, by: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) >> by) as u32
}

/// The highest bit that differs from the sign, or from 0; all bits set where there is none.
fn find(table: &mut Table) {
    fn highest(value: u64) -> u32 {
        63u32.wrapping_sub(value.leading_zeros())
    }
    fn shift(value: u64, bits: u32) -> u32 {
        if value == 0 { u32::MAX } else { bits - 1 - highest(value) }
    }
    table.unary("bfind.u32", |a: u32| highest(a.into()));
    table.unary("bfind.s32", |a: i32| highest(((a ^ (a >> 31)) as u32).into()));
    table.unary("bfind.u64", highest);
    table.unary("bfind.s64", |a: i64| highest((a ^ (a >> 63)) as u64));
    table.unary("bfind.shiftamt.u32", |a: u32| shift(a.into(), 32));
    table.unary("bfind.shiftamt.s32", |a: i32| shift(((a ^ (a >> 31)) as u32).into(), 32));
    table.unary("bfind.shiftamt.u64", |a: u64| shift(a, 64));
    table.unary("bfind.shiftamt.s64", |a: i64| shift((a ^ (a >> 63)) as u64, 64));
}

/// Bit fields: position and length are the low 8 bits of their operands.
fn fields(table: &mut Table) {
    macro_rules! fields {
        ($bits:literal, $unsigned:ty, $signed:ty) => {
            table.ternary(concat!("bfe.u", $bits), |a: $unsigned, position: u32, length: u32| {
                let (position, length) = (position & 255, length & 255);
                let ones = (1 as $unsigned).checked_shl(length).unwrap_or(0).wrapping_sub(1);
                a.checked_shr(position).unwrap_or(0) & ones
            });
            table.ternary(concat!("bfe.s", $bits), |a: $signed, position: u32, length: u32| {
                let (position, length) = (position & 255, length & 255);
                if length == 0 {
                    return 0;
                }
                let shifted = a >> position.min(<$signed>::BITS - 1);
                let unused = <$signed>::BITS.saturating_sub(length);
                shifted << unused >> unused
            });
            table.quaternary(
                concat!("bfi.b", $bits),
                |from: $unsigned, into: $unsigned, position: u32, length: u32| {
                    let (position, length) = (position & 255, length & 255);
                    let ones = (1 as $unsigned).checked_shl(length).unwrap_or(0).wrapping_sub(1);
                    let field = ones.checked_shl(position).unwrap_or(0);
                    into & !field | from.checked_shl(position).unwrap_or(0) & field
                },
            );
        };
    }
    fields!("32", u32, i32);
    fields!("64", u64, i64);
    table.binary("bmsk.clamp.b32", |position: u32, length: u32| {
        let ones = 1u32.checked_shl(length).unwrap_or(0).wrapping_sub(1);
        ones.checked_shl(position).unwrap_or(0)
    });
    table.binary("bmsk.wrap.b32", |position: u32, length: u32| {
        ((1u32 << (length & 31)) - 1) << (position & 31)
    });
    table.binary("szext.clamp.u32", |a: u32, bits: u32| {
        a & 1u32.checked_shl(bits).unwrap_or(0).wrapping_sub(1)
    });
    table.binary("szext.clamp.s32", |a: i32, bits: u32| match bits {
        0 => 0,
        _ => a << (32 - bits.min(32)) >> (32 - bits.min(32)),
    });
}

/// Bytes of `b` and `a`, chosen by four bits each, of which the highest asks for the sign of the byte in all its bits.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let byte = |index: u32| {
        let choice = selector >> (4 * index) & 15;
        let byte = bytes[(choice & 7) as usize];
        if choice & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte }
    };
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

fn forward_4(mode: u32) -> u32 {
    [0x3210, 0x4321, 0x5432, 0x6543][mode as usize]
}

fn backward_4(mode: u32) -> u32 {
    [0x5670, 0x6701, 0x7012, 0x0123][mode as usize]
}

fn replicate_8(mode: u32) -> u32 {
    mode * 0x1111
}

fn edge_left(mode: u32) -> u32 {
    [0x3210, 0x3211, 0x3222, 0x3333][mode as usize]
}

fn edge_right(mode: u32) -> u32 {
    [0x0000, 0x1110, 0x2210, 0x3210][mode as usize]
}

fn replicate_16(mode: u32) -> u32 {
    if mode & 1 == 0 { 0x1010 } else { 0x3232 }
}

/// `truth` is what the function gives for a = 0xF0, b = 0xCC, c = 0xAA.
fn logic_3(a: u32, b: u32, c: u32, truth: u32) -> u32 {
    let mut result = 0;
    for row in 0..8 {
        if truth >> row & 1 != 0 {
            let a = if row & 4 != 0 { a } else { !a };
            let b = if row & 2 != 0 { b } else { !b };
            let c = if row & 1 != 0 { c } else { !c };
            result |= a & b & c;
        }
    }
    result
}
