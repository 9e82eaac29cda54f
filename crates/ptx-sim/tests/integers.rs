//! Integer instructions, with results from the PTX manual's definitions.

mod common;

use common::Bench;

#[test]
fn sums_and_products() {
    let bench = Bench::new();
    bench.check(
        "add.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[(&[0xffff_ffff, 1], 0), (&[0x7fff_ffff, 1], 0x8000_0000)],
    );
    bench.check(
        "add.sat.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[
            (&[0x7fff_ffff, 1], 0x7fff_ffff),
            (&[0x8000_0000, 0xffff_ffff], 0x8000_0000),
            (&[5, 0xffff_fffd], 2),
        ],
    );
    bench.check("sub.u16 %d, %a, %b;", "b16 b16 b16", &[(&[0, 1], 0xffff), (&[0x8000, 1], 0x7fff)]);
    bench.check("sub.s64 %d, %a, %b;", "b64 b64 b64", &[(&[0, 1], u64::MAX), (&[1 << 40, 1], (1 << 40) - 1)]);
    bench.check(
        "mul.lo.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[(&[0x1_0000, 0x1_0000], 0), (&[0xffff_ffff, 3], 0xffff_fffd)],
    );
    bench.check("mul.hi.u32 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_ffff, 0xffff_ffff], 0xffff_fffe)]);
    bench.check(
        "mul.hi.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[
            (&[0xffff_ffff, 0xffff_ffff], 0),
            (&[0x8000_0000, 0x8000_0000], 0x4000_0000),
            (&[0xffff_ffff, 1], 0xffff_ffff),
        ],
    );
    bench.check("mul.hi.u64 %d, %a, %b;", "b64 b64 b64", &[(&[u64::MAX, u64::MAX], u64::MAX - 1)]);
    bench.check(
        "mul.hi.s64 %d, %a, %b;",
        "b64 b64 b64",
        &[(&[u64::MAX, 1], u64::MAX), (&[1 << 63, 2], u64::MAX)],
    );
    bench.check("mul.wide.s32 %d, %a, %b;", "b32 b32 b64", &[(&[0xffff_ffff, 7], 0xffff_ffff_ffff_fff9)]);
    bench.check("mul.wide.u32 %d, %a, %b;", "b32 b32 b64", &[(&[0xffff_ffff, 7], 0x6_ffff_fff9)]);
    bench.check(
        "mul.wide.s16 %d, %a, %b;",
        "b16 b16 b32",
        &[(&[0xffff, 7], 0xffff_fff9), (&[0x8000, 0x8000], 0x4000_0000)],
    );
    bench.check("mad.lo.s32 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[3, 5, 0xffff_fff0], 0xffff_ffff)]);
    bench.check("mad.hi.u32 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[0x8000_0000, 4, 0xffff_ffff], 1)]);
    bench.check("mad.wide.u32 %d, %a, %b, %c;", "b32 b32 b64 b64", &[(&[0xffff_ffff, 2, 5], 0x2_0000_0003)]);
    bench.check("mul24.lo.s32 %d, %a, %b;", "b32 b32 b32", &[(&[0x00ff_ffff, 2], 0xffff_fffe)]);
    bench.check("mul24.hi.u32 %d, %a, %b;", "b32 b32 b32", &[(&[0xff00_0100, 0x0001_0000], 0x100)]);
    bench.check(
        "sad.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0xffff_ffff, 4, 10], 15), (&[4, 0xffff_ffff, 10], 15)],
    );
}

#[test]
fn quotients() {
    let bench = Bench::new();
    bench.check(
        "div.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[
            (&[0xffff_fff9, 2], 0xffff_fffd),
            (&[7, 0xffff_fffe], 0xffff_fffd),
            (&[0x8000_0000, 0xffff_ffff], 0x8000_0000),
        ],
    );
    bench.check("div.u32 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_fff9, 2], 0x7fff_fffc)]);
    bench.check(
        "rem.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[(&[0xffff_fff9, 2], 0xffff_ffff), (&[7, 0xffff_fffe], 1)],
    );
    bench.check("rem.u64 %d, %a, %b;", "b64 b64 b64", &[(&[u64::MAX, 10], 5)]);
    bench.check("div.s64 %d, %a, %b;", "b64 b64 b64", &[(&[u64::MAX - 6, 2], u64::MAX - 2)]);
}

#[test]
fn signs_and_limits() {
    let bench = Bench::new();
    bench.check("neg.s32 %d, %a;", "b32 b32", &[(&[1], 0xffff_ffff), (&[0x8000_0000], 0x8000_0000)]);
    bench.check("abs.s32 %d, %a;", "b32 b32", &[(&[0xffff_ffff], 1), (&[0x8000_0000], 0x8000_0000)]);
    bench.check("abs.s16 %d, %a;", "b16 b16", &[(&[0xfffe], 2)]);
    bench.check("min.s32 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_ffff, 1], 0xffff_ffff)]);
    bench.check("min.u32 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_ffff, 1], 1)]);
    bench.check("max.s16 %d, %a, %b;", "b16 b16 b16", &[(&[0xffff, 1], 1)]);
    bench.check("max.u64 %d, %a, %b;", "b64 b64 b64", &[(&[u64::MAX, 1], u64::MAX)]);
    bench.check("min.s64 %d, %a, %b;", "b64 b64 b64", &[(&[u64::MAX, 1], u64::MAX)]);
}

#[test]
fn dots() {
    let bench = Bench::new();
    // (-1, 2, -128, 127) · (127, -1, -128, 1) = -127 - 2 + 16384 + 127 = 16382
    bench.check(
        "dp4a.s32.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x7f80_02ff, 0x0180_ff7f, 10], 16392)],
    );
    // (255, 2, 128, 127) · (127, -1, -128, 1) = 32385 - 2 - 16384 + 127 = 16126
    bench.check(
        "dp4a.u32.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x7f80_02ff, 0x0180_ff7f, 0], 16126)],
    );
    // (-1, 2, -128, 127) · (127, 255, 128, 1) = -127 + 510 - 16384 + 127 = -15874
    bench.check(
        "dp4a.s32.u32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x7f80_02ff, 0x0180_ff7f, 0], 0xffff_c1fe)],
    );
    bench.check(
        "dp4a.u32.u32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0xffff_ffff, 0xffff_ffff, 1], 260_101)],
    );
    // The sum wraps.
    bench.check("dp4a.s32.s32 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[1, 1, 0x7fff_ffff], 0x8000_0000)]);
    // (-2, 300) · low (3, -4) = -6 - 1200; high (5, 6) = -10 + 1800
    bench.check(
        "dp2a.lo.s32.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x012c_fffe, 0x0605_fc03, 0], 0xffff_fb4a)],
    );
    bench.check(
        "dp2a.hi.s32.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x012c_fffe, 0x0605_fc03, 0], 1790)],
    );
}

#[test]
fn logic_and_shifts() {
    let bench = Bench::new();
    bench.check("and.b32 %d, %a, %b;", "b32 b32 b32", &[(&[0xff00_ff00, 0x0ff0_0ff0], 0x0f00_0f00)]);
    bench.check("or.b64 %d, %a, %b;", "b64 b64 b64", &[(&[1 << 63, 1], 1 << 63 | 1)]);
    bench.check("xor.b16 %d, %a, %b;", "b16 b16 b16", &[(&[0xff00, 0x0ff0], 0xf0f0)]);
    bench.check("not.b32 %d, %a;", "b32 b32", &[(&[0x0000_ffff], 0xffff_0000)]);
    bench.check("cnot.b32 %d, %a;", "b32 b32", &[(&[0], 1), (&[7], 0)]);
    bench.check("xor.pred %d, %a, %b;", "pred pred pred", &[(&[1, 1], 0), (&[1, 0], 1), (&[0, 0], 0)]);
    bench.check("not.pred %d, %a;", "pred pred", &[(&[1], 0), (&[0], 1)]);
    // Shifts by 32 and more are clamped.
    bench.check(
        "shl.b32 %d, %a, %b;",
        "b32 b32 b32",
        &[(&[1, 31], 0x8000_0000), (&[1, 32], 0), (&[1, 0xffff_ffff], 0)],
    );
    bench.check("shr.u32 %d, %a, %b;", "b32 b32 b32", &[(&[0x8000_0000, 31], 1), (&[0x8000_0000, 32], 0)]);
    bench.check(
        "shr.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[(&[0x8000_0000, 31], 0xffff_ffff), (&[0x8000_0000, 99], 0xffff_ffff)],
    );
    bench.check("shr.s64 %d, %a, %b;", "b64 b32 b64", &[(&[1 << 63, 63], u64::MAX), (&[1 << 62, 64], 0)]);
    bench.check("shr.s16 %d, %a, %b;", "b16 b32 b16", &[(&[0x8000, 15], 0xffff), (&[0x8000, 16], 0xffff)]);
    bench.check("shl.b64 %d, %a, %b;", "b64 b32 b64", &[(&[1, 63], 1 << 63), (&[1, 64], 0)]);
    bench.check(
        "shf.l.wrap.b32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x8000_0001, 0x0000_0002, 1], 5), (&[0x8000_0001, 0x0000_0002, 32], 2)],
    );
    bench.check(
        "shf.r.wrap.b32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x8000_0001, 0x0000_0003, 1], 0xc000_0000)],
    );
    bench.check("shf.l.clamp.b32 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[7, 9, 32], 7), (&[7, 9, 99], 7)]);
    bench.check("shf.r.clamp.b32 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[7, 9, 32], 9), (&[7, 9, 99], 9)]);
    // 0xCA chooses b where a, else c.
    bench.check(
        "lop3.b32 %d, %a, %b, %c, 0xCA;",
        "b32 b32 b32 b32",
        &[(&[0xffff_0000, 0x1234_5678, 0x9abc_def0], 0x1234_def0)],
    );
    bench.check("lop3.b32 %d, %a, %b, %c, 0x96;", "b32 b32 b32 b32", &[(&[0xf0f0, 0xcccc, 0xaaaa], 0x9696)]);
}

#[test]
fn counts_and_fields() {
    let bench = Bench::new();
    bench.check("popc.b32 %d, %a;", "b32 b32", &[(&[0xffff_ffff], 32), (&[0x8001_0000], 2), (&[0], 0)]);
    bench.check("popc.b64 %d, %a;", "b64 b32", &[(&[u64::MAX], 64)]);
    bench.check("clz.b32 %d, %a;", "b32 b32", &[(&[0], 32), (&[1], 31), (&[0x8000_0000], 0)]);
    bench.check("clz.b64 %d, %a;", "b64 b32", &[(&[0], 64), (&[1], 63)]);
    bench.check("brev.b32 %d, %a;", "b32 b32", &[(&[0x8000_0001], 0x8000_0001), (&[3], 0xc000_0000)]);
    bench.check("bfind.u32 %d, %a;", "b32 b32", &[(&[0], 0xffff_ffff), (&[1], 0), (&[0x8000_0000], 31)]);
    bench.check(
        "bfind.s32 %d, %a;",
        "b32 b32",
        &[(&[0xffff_ffff], 0xffff_ffff), (&[0xffff_fffe], 0), (&[0x4000_0000], 30)],
    );
    bench.check("bfind.shiftamt.u32 %d, %a;", "b32 b32", &[(&[1], 31), (&[0], 0xffff_ffff)]);
    bench.check(
        "bfe.u32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[
            (&[0x1234_5678, 8, 8], 0x56),
            (&[0xffff_ffff, 28, 8], 0xf),
            (&[0xffff_ffff, 40, 8], 0),
            (&[0xffff_ffff, 0, 0], 0),
            (&[0x1234_5678, 0, 32], 0x1234_5678),
        ],
    );
    bench.check(
        "bfe.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[
            (&[0x0000_0080, 4, 4], 0xffff_fff8),
            (&[0x8000_0000, 28, 8], 0xffff_fff8),
            (&[0x8000_0000, 40, 8], 0xffff_ffff),
            (&[0xffff_ffff, 3, 0], 0),
        ],
    );
    bench.check(
        "bfi.b32 %d, %a, %b, %c, %e;",
        "b32 b32 b32 b32 b32",
        &[
            (&[0xab, 0x1111_1111, 8, 8], 0x1111_ab11),
            (&[0xff, 0, 28, 8], 0xf000_0000),
            (&[0xff, 5, 32, 8], 5),
            (&[0x1234_5678, 5, 0, 32], 0x1234_5678),
        ],
    );
    bench.check("bfi.b64 %d, %a, %b, %c, %e;", "b64 b64 b32 b32 b64", &[(&[0xab, 0, 56, 8], 0xab << 56)]);
    bench.check(
        "prmt.b32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[
            (&[0x3322_1100, 0x7766_5544, 0x7531], 0x7755_3311),
            // The highest bit of a choice asks for the sign.
            (&[0x0080_7f00, 0, 0xa9a0], 0xff00_ff00),
        ],
    );
    bench.check(
        "prmt.b32.f4e %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x3322_1100, 0x7766_5544, 1], 0x4433_2211)],
    );
    bench.check(
        "prmt.b32.b4e %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x3322_1100, 0x7766_5544, 0], 0x5566_7700)],
    );
    bench.check("prmt.b32.rc8 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[0x3322_1100, 0, 2], 0x2222_2222)]);
    bench.check("prmt.b32.rc16 %d, %a, %b, %c;", "b32 b32 b32 b32", &[(&[0x3322_1100, 0, 1], 0x3322_3322)]);
}

#[test]
fn comparisons_and_choices() {
    let bench = Bench::new();
    bench.check("setp.lt.s32 %d, %a, %b;", "b32 b32 pred", &[(&[0xffff_ffff, 0], 1), (&[0, 0], 0)]);
    bench.check("setp.lo.u32 %d, %a, %b;", "b32 b32 pred", &[(&[0xffff_ffff, 0], 0), (&[0, 1], 1)]);
    bench.check("setp.hs.u32 %d, %a, %b;", "b32 b32 pred", &[(&[0xffff_ffff, 0], 1), (&[0, 0], 1)]);
    bench.check("setp.ge.s64 %d, %a, %b;", "b64 b64 pred", &[(&[u64::MAX, 0], 0), (&[0, u64::MAX], 1)]);
    bench.check("setp.ne.b16 %d, %a, %b;", "b16 b16 pred", &[(&[7, 7], 0), (&[7, 8], 1)]);
    bench.check(
        "setp.gt.and.s32 %d, %a, %b, %c;",
        "b32 b32 pred pred",
        &[(&[2, 1, 1], 1), (&[2, 1, 0], 0), (&[1, 1, 1], 0)],
    );
    bench.check("setp.gt.or.s32 %d, %a, %b, !%c;", "b32 b32 pred pred", &[(&[1, 1, 0], 1), (&[1, 1, 1], 0)]);
    // p = !(a > b) xor c, of the second result.
    bench.check(
        ".reg .pred %q; setp.gt.xor.s32 %q|%d, %a, %b, %c;",
        "b32 b32 pred pred",
        &[(&[2, 1, 1], 1), (&[1, 1, 1], 0)],
    );
    bench.check("selp.b32 %d, %a, %b, %c;", "b32 b32 pred b32", &[(&[3, 4, 1], 3), (&[3, 4, 0], 4)]);
    bench.check(
        "slct.u32.s32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[3, 4, 0], 3), (&[3, 4, 0xffff_ffff], 4)],
    );
    bench.check(
        "set.lt.u32.s32 %d, %a, %b;",
        "b32 b32 b32",
        &[(&[0xffff_ffff, 0], 0xffff_ffff), (&[0, 0], 0)],
    );
    bench.check("set.eq.f32.u32 %d, %a, %b;", "b32 b32 b32", &[(&[5, 5], 0x3f80_0000), (&[5, 4], 0)]);
}

#[test]
fn vectors_in_registers() {
    let bench = Bench::new();
    bench.check("mov.b64 %d, {%a, %b};", "b32 b32 b64", &[(&[1, 2], 0x2_0000_0001)]);
    bench.check("mov.b32 %d, {%a, %b};", "b16 b16 b32", &[(&[0xffff, 2], 0x2_ffff)]);
    bench.check(".reg .b32 %low; mov.b64 {%low, %d}, %a;", "b64 b32", &[(&[0x2_0000_0001], 2)]);
    bench.check(".reg .b16 %low; mov.b32 {%low, %d}, %a;", "b32 b16", &[(&[0x1234_5678], 0x1234)]);
    bench.check("mov.b64 {_, %d}, %a;", "b64 b32", &[(&[0x7_0000_0001], 7)]);
}

#[test]
fn sums_with_a_carry() {
    let bench = Bench::new();
    // Of 128 bits: the upper word of a sum, and of a difference.
    let sum = ".reg .b64 %low; add.cc.s64 %low, %a, %b; addc.cc.s64 %d, %c, %e;";
    bench.check(
        sum,
        "b64 b64 b64 b64 b64",
        &[(&[u64::MAX, 1, 5, 6], 12), (&[u64::MAX - 1, 1, 5, 6], 11), (&[1, u64::MAX, u64::MAX, 0], 0)],
    );
    let difference = ".reg .b32 %low; sub.cc.u32 %low, %a, %b; subc.u32 %d, %c, %e;";
    bench.check(difference, "b32 b32 b32 b32 b32", &[(&[0, 1, 5, 2], 2), (&[1, 1, 5, 2], 3)]);
    // The carry of a product's low half goes into its high half: 0xffffffff · 0xffffffff + 0xffffffff.
    let product = ".reg .b32 %low; mad.lo.cc.u32 %low, %a, %b, %c; madc.hi.u32 %d, %a, %b, %e;";
    bench.check(
        product,
        "b32 b32 b32 b32 b32",
        &[(&[0xffff_ffff, 0xffff_ffff, 0xffff_ffff, 0], 0xffff_ffff)],
    );
}

#[test]
fn several_in_a_register() {
    let bench = Bench::new();
    bench.check("add.u16x2 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_0001, 0x0001_ffff], 0)]);
    bench.check("min.s16x2 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_0001, 0x0001_ffff], 0xffff_ffff)]);
    bench.check("max.u16x2 %d, %a, %b;", "b32 b32 b32", &[(&[0xffff_0001, 0x0001_0002], 0xffff_0002)]);
    bench.check(
        "vabsdiff4.u32.u32.u32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x00ff_1005, 0xff00_0506, 9], 0xffff_0b01)],
    );
    bench.check(
        "vabsdiff4.u32.u32.u32.add %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x00ff_1005, 0xff00_0506, 9], 531)],
    );
}
