//! Instructions of floats and conversions, with results from IEEE 754 and the PTX manual.

mod common;

use common::{Bench, f32_bits as f};

const NAN: u64 = 0x7fff_ffff;
const QUIET: u64 = 0x7fc0_0001;
const INF: u64 = 0x7f80_0000;
const MINUS: u64 = 0x8000_0000;

#[test]
fn arithmetic_rounds_to_nearest() {
    let bench = Bench::new();
    // 1 + 2⁻²⁴ is a tie that goes to even, 1 + 3·2⁻²⁴ one that goes up.
    bench.check(
        "add.rn.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[
            (&[0x3f80_0000, 0x3380_0000], 0x3f80_0000),
            (&[0x3f80_0001, 0x3380_0000], 0x3f80_0002),
            (&[QUIET, 0x3f80_0000], NAN),
            (&[INF, INF | MINUS], NAN),
            (&[0x0000_0001, 0x0000_0001], 0x0000_0002),
            (&[MINUS, 0], 0),
            (&[MINUS, MINUS], MINUS),
        ],
    );
    bench.check(
        "sub.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[0x3f80_0000, 0x3f80_0000], 0), (&[INF, INF], NAN)],
    );
    bench.check(
        "mul.rn.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[
            // (1 + 2⁻²³)² = 1 + 2⁻²² + 2⁻⁴⁶
            (&[0x3f80_0001, 0x3f80_0001], 0x3f80_0002),
            // 2⁻¹²⁶ · 0.5 is subnormal.
            (&[0x0080_0000, 0x3f00_0000], 0x0040_0000),
            (&[0, INF], NAN),
        ],
    );
    // (1 + 2⁻²³)² - (1 + 2⁻²²) = 2⁻⁴⁶ only if the product is not rounded.
    bench.check(
        "fma.rn.f32 %d, %a, %b, %c;",
        "f32 f32 f32 f32",
        &[
            (&[0x3f80_0001, 0x3f80_0001, 0xbf80_0002], 0x2880_0000),
            // 2¹²⁷ · 2 - 2¹²⁷ does not overflow.
            (&[0x7f00_0000, 0x4000_0000, 0xff00_0000], 0x7f00_0000),
            (&[INF, 0, 0x3f80_0000], NAN),
            // Not through f64, where 1 + 2⁻²³ + 2⁻²⁴ - 2⁻⁷⁰ would become a tie.
            (&[0x3980_0001, 0x397f_fffe, 0x3f80_0001], 0x3f80_0001),
        ],
    );
    bench.check(
        "div.rn.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[
            (&[0x3f80_0000, 0x4040_0000], 0x3eaa_aaab),
            (&[0x3f80_0000, 0], INF),
            (&[0x3f80_0000, MINUS], INF | MINUS),
            (&[0, 0], NAN),
        ],
    );
    bench.check(
        "sqrt.rn.f32 %d, %a;",
        "f32 f32",
        &[(&[0x4000_0000], 0x3fb5_04f3), (&[0xbf80_0000], NAN), (&[MINUS], MINUS)],
    );
    bench.check("rcp.rn.f32 %d, %a;", "f32 f32", &[(&[0x4040_0000], 0x3eaa_aaab), (&[MINUS], INF | MINUS)]);
    bench.check(
        "mad.rn.f32 %d, %a, %b, %c;",
        "f32 f32 f32 f32",
        &[(&[0x3f80_0001, 0x3f80_0001, 0xbf80_0002], 0x2880_0000)],
    );
    bench.check(
        "add.sat.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[0x3f80_0000, 0x3f80_0000], 0x3f80_0000), (&[QUIET, 0], 0), (&[0xbf80_0000, 0], 0)],
    );
}

#[test]
fn flushing_is_only_where_it_is_written() {
    let bench = Bench::new();
    bench.check(
        "add.ftz.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[0x0000_0001, 0], 0), (&[0x8000_0001, MINUS], MINUS)],
    );
    bench.check("mul.ftz.f32 %d, %a, %b;", "f32 f32 f32", &[(&[0x0080_0000, 0x3f00_0000], 0)]);
    bench.check(
        "setp.gt.ftz.f32 %d, %a, %b;",
        "f32 f32 pred",
        &[(&[0x0000_0001, 0], 0), (&[0x0080_0000, 0], 1)],
    );
    bench.check("setp.gt.f32 %d, %a, %b;", "f32 f32 pred", &[(&[0x0000_0001, 0], 1)]);
}

#[test]
fn minima_drop_nan() {
    let bench = Bench::new();
    let one = 0x3f80_0000;
    bench.check(
        "min.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[
            (&[QUIET, 0x3f80_0000], one),
            (&[0x3f80_0000, QUIET], one),
            (&[QUIET, QUIET], NAN),
            (&[0, MINUS], MINUS),
            (&[MINUS, 0], MINUS),
        ],
    );
    bench.check(
        "max.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[QUIET, 0xff80_0000], 0xff80_0000), (&[0, MINUS], 0), (&[MINUS, 0], 0)],
    );
    bench.check(
        "max.NaN.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[QUIET, 0x3f80_0000], NAN), (&[0, 0x3f80_0000], one)],
    );
    bench.check("abs.f32 %d, %a;", "f32 f32", &[(&[0xbf80_0000], 0x3f80_0000), (&[MINUS], 0)]);
    bench.check("neg.f32 %d, %a;", "f32 f32", &[(&[0], MINUS)]);
    // The sign of the first, the magnitude of the second.
    bench.check("copysign.f32 %d, %a, %b;", "f32 f32 f32", &[(&[MINUS, 0x3f80_0000], 0xbf80_0000)]);
}

#[test]
fn comparisons_with_nan() {
    let bench = Bench::new();
    for (comparison, ordered, unordered) in
        [("eq", 0, 1), ("ne", 1, 1), ("lt", 1, 1), ("le", 1, 1), ("gt", 0, 1), ("ge", 0, 1)]
    {
        // Of 1 and 2: eq is false, lt true; with NaN the ordered ones are false.
        let code = format!("setp.{comparison}.f32 %d, %a, %b;");
        bench.check(
            &code,
            "f32 f32 pred",
            &[(&[0x3f80_0000, 0x4000_0000], ordered), (&[QUIET, 0x3f80_0000], 0)],
        );
        let code = format!("setp.{comparison}u.f32 %d, %a, %b;");
        bench.check(
            &code,
            "f32 f32 pred",
            &[(&[0x3f80_0000, 0x4000_0000], ordered), (&[QUIET, 0x3f80_0000], unordered)],
        );
    }
    bench.check("setp.num.f32 %d, %a, %b;", "f32 f32 pred", &[(&[0, 0], 1), (&[0, QUIET], 0)]);
    bench.check("setp.nan.f32 %d, %a, %b;", "f32 f32 pred", &[(&[0, 0], 0), (&[0, QUIET], 1)]);
    bench.check("testp.subnormal.f32 %d, %a;", "f32 pred", &[(&[1], 1), (&[0x0080_0000], 0)]);
    bench.check("testp.infinite.f32 %d, %a;", "f32 pred", &[(&[INF], 1), (&[QUIET], 0)]);
    bench.check("testp.notanumber.f32 %d, %a;", "f32 pred", &[(&[INF], 0), (&[QUIET], 1)]);
}

#[test]
fn floats_of_64_bits() {
    let bench = Bench::new();
    const ONE: u64 = 0x3ff0_0000_0000_0000;
    bench.check("add.rn.f64 %d, %a, %b;", "f64 f64 f64", &[(&[ONE, 0x3ca0_0000_0000_0000], ONE)]);
    bench.check(
        "fma.rn.f64 %d, %a, %b, %c;",
        "f64 f64 f64 f64",
        &[(&[ONE + 1, ONE + 1, 0xbff0_0000_0000_0002], 0x3970_0000_0000_0000)],
    );
    bench.check(
        "div.rn.f64 %d, %a, %b;",
        "f64 f64 f64",
        &[(&[ONE, 0x4008_0000_0000_0000], 0x3fd5_5555_5555_5555)],
    );
    bench.check("sqrt.rn.f64 %d, %a;", "f64 f64", &[(&[0x4000_0000_0000_0000], 0x3ff6_a09e_667f_3bcd)]);
    bench.check(
        "cvt.rn.f32.f64 %d, %a;",
        "f64 f32",
        &[
            // 1 + 2⁻²⁴ ties to 1, a little more goes up.
            (&[0x3ff0_0000_1000_0000], 0x3f80_0000),
            (&[0x3ff0_0000_1000_0001], 0x3f80_0001),
            // 2⁻¹⁵⁰ ties to 0, and what is above to the smallest subnormal.
            (&[0x3690_0000_0000_0000], 0),
            (&[0x3690_0000_0000_0001], 1),
            (&[0x47f0_0000_0000_0000], INF),
        ],
    );
    bench.check(
        "cvt.rz.f32.f64 %d, %a;",
        "f64 f32",
        &[(&[0x3ff0_0000_1fff_ffff], 0x3f80_0000), (&[0x47f0_0000_0000_0000], 0x7f7f_ffff)],
    );
    bench.check(
        "cvt.rp.f32.f64 %d, %a;",
        "f64 f32",
        &[(&[0x3ff0_0000_0000_0001], 0x3f80_0001), (&[0xbff0_0000_0000_0001], 0xbf80_0000)],
    );
    bench.check("cvt.f64.f32 %d, %a;", "f32 f64", &[(&[0x3f80_0000], ONE), (&[1], 0x36a0_0000_0000_0000)]);
}

#[test]
fn floats_become_integers() {
    let bench = Bench::new();
    let (half, one_and_half, minus) = (0x3f00_0000, 0x3fc0_0000, 0xbfc0_0000);
    assert_eq!([f(0.5), f(1.5), f(-1.5)], [half, one_and_half, minus]);
    bench.check(
        "cvt.rni.s32.f32 %d, %a;",
        "f32 b32",
        &[
            (&[0x3f00_0000], 0),
            (&[0x3fc0_0000], 2),
            (&[0xbfc0_0000], 0xffff_fffe),
            (&[0x4f00_0000], 0x7fff_ffff),
            (&[0xff80_0000], 0x8000_0000),
            (&[QUIET], 0),
        ],
    );
    bench.check("cvt.rzi.s32.f32 %d, %a;", "f32 b32", &[(&[0x3fc0_0000], 1), (&[0xbfc0_0000], 0xffff_ffff)]);
    bench.check("cvt.rmi.s32.f32 %d, %a;", "f32 b32", &[(&[0x3fc0_0000], 1), (&[0xbfc0_0000], 0xffff_fffe)]);
    bench.check("cvt.rpi.s32.f32 %d, %a;", "f32 b32", &[(&[0x3fc0_0000], 2), (&[0xbfc0_0000], 0xffff_ffff)]);
    bench.check("cvt.rzi.u32.f32 %d, %a;", "f32 b32", &[(&[0xbfc0_0000], 0), (&[0x4f80_0000], 0xffff_ffff)]);
    bench.check("cvt.rzi.s8.f32 %d, %a;", "f32 b32", &[(&[0x4380_0000], 127), (&[0xc380_0000], 0xffff_ff80)]);
    bench.check(
        "cvt.rzi.s64.f32 %d, %a;",
        "f32 b64",
        &[(&[0x5f00_0000], i64::MAX as u64), (&[QUIET], 1 << 63)],
    );
    bench.check(
        "cvt.rzi.s32.f64 %d, %a;",
        "f64 b32",
        &[(&[0x7ff8_0000_0000_0000], 0x8000_0000), (&[0x4000_0000_0000_0000], 2)],
    );
    bench.check(
        "cvt.rni.f32.f32 %d, %a;",
        "f32 f32",
        &[(&[0x3f00_0000], 0), (&[0xbf00_0000], MINUS), (&[0x4020_0000], 0x4000_0000)],
    );
    bench.check("cvt.rmi.f32.f32 %d, %a;", "f32 f32", &[(&[0xbf00_0000], 0xbf80_0000)]);
    bench.check("cvt.sat.f32.f32 %d, %a;", "f32 f32", &[(&[0x4000_0000], 0x3f80_0000), (&[QUIET], 0)]);
}

#[test]
fn integers_become_floats_and_integers() {
    let bench = Bench::new();
    bench.check(
        "cvt.rn.f32.s32 %d, %a;",
        "b32 f32",
        &[
            // 2²⁴ + 1 ties to even, 2²⁴ + 3 goes up.
            (&[0x0100_0001], 0x4b80_0000),
            (&[0x0100_0003], 0x4b80_0002),
            (&[0xffff_ffff], 0xbf80_0000),
        ],
    );
    bench.check(
        "cvt.rz.f32.s32 %d, %a;",
        "b32 f32",
        &[(&[0x0100_0003], 0x4b80_0001), (&[0xfeff_fffd], 0xcb80_0001)],
    );
    bench.check(
        "cvt.rm.f32.s32 %d, %a;",
        "b32 f32",
        &[(&[0x0100_0003], 0x4b80_0001), (&[0xfeff_fffd], 0xcb80_0002)],
    );
    bench.check(
        "cvt.rp.f32.u32 %d, %a;",
        "b32 f32",
        &[(&[0x0100_0001], 0x4b80_0001), (&[0xffff_ffff], 0x4f80_0000)],
    );
    bench.check(
        "cvt.rn.f32.u64 %d, %a;",
        "b64 f32",
        &[(&[u64::MAX], 0x5f80_0000), (&[0x0100_0001], 0x4b80_0000)],
    );
    bench.check("cvt.rn.f64.s64 %d, %a;", "b64 f64", &[(&[u64::MAX], 0xbff0_0000_0000_0000)]);
    bench.check("cvt.rn.f32.u16 %d, %a;", "b16 f32", &[(&[0xffff], 0x477f_ff00)]);
    bench.check("cvt.rn.f32.s8 %d, %a;", "b8 f32", &[(&[0x80], 0xc300_0000)]);
    bench.check("cvt.s32.s8 %d, %a;", "b32 b32", &[(&[0x1ff], 0xffff_ffff), (&[0x17f], 0x7f)]);
    bench.check("cvt.u64.u32 %d, %a;", "b32 b64", &[(&[0xffff_ffff], 0xffff_ffff)]);
    bench.check("cvt.s64.s32 %d, %a;", "b32 b64", &[(&[0xffff_ffff], u64::MAX)]);
    bench.check("cvt.u32.u64 %d, %a;", "b64 b32", &[(&[0x1_0000_0007], 7)]);
    bench.check("cvt.sat.s8.s32 %d, %a;", "b32 b32", &[(&[200], 127), (&[0xffff_ff00], 0xffff_ff80)]);
    bench.check("cvt.sat.u8.s32 %d, %a;", "b32 b32", &[(&[300], 255), (&[0xffff_ffff], 0)]);
    // A source register may be wider than its type, and a result is extended.
    bench.check("cvt.s64.s8 %d, %a;", "b32 b64", &[(&[0x180], 0xffff_ffff_ffff_ff80)]);
    bench.check("cvt.u16.u32 %d, %a;", "b32 b16", &[(&[0x1_2345], 0x2345)]);
    bench.check(
        "cvt.pack.sat.s8.s32.b32 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[200, 0xffff_ff00, 0x1234_5678], 0x5678_7f80)],
    );
}

#[test]
fn halves() {
    let bench = Bench::new();
    bench.check(
        "cvt.f32.f16 %d, %a;",
        "b16 f32",
        &[(&[0x3c00], 0x3f80_0000), (&[0x0001], 0x3380_0000), (&[0xfc00], 0xff80_0000), (&[0x7e00], NAN)],
    );
    bench.check(
        "cvt.rn.f16.f32 %d, %a;",
        "f32 b16",
        &[
            // 1 + 2⁻¹¹ ties to 1, 65520 to infinity; below it to the largest.
            (&[0x3f80_1000], 0x3c00),
            (&[0x3f80_1001], 0x3c01),
            (&[0x477f_f000], 0x7c00),
            (&[0x477f_efff], 0x7bff),
            // 2⁻²⁵ ties to 0, 3·2⁻²⁵ to 2·2⁻²⁴.
            (&[0x3300_0000], 0),
            (&[0x33c0_0000], 2),
            (&[QUIET], 0x7fff),
        ],
    );
    bench.check("cvt.rz.f16.f32 %d, %a;", "f32 b16", &[(&[0x3f80_1fff], 0x3c00), (&[0x4780_0000], 0x7bff)]);
    bench.check("cvt.f32.bf16 %d, %a;", "b16 f32", &[(&[0x3f80], 0x3f80_0000), (&[0x0001], 0x0001_0000)]);
    bench.check(
        "cvt.rn.bf16.f32 %d, %a;",
        "f32 b16",
        &[(&[0x3f80_8000], 0x3f80), (&[0x3f81_8000], 0x3f82), (&[0x7f7f_ffff], 0x7f80), (&[QUIET], 0x7fff)],
    );
    // The first operand is in the upper half.
    bench.check("cvt.rn.f16x2.f32 %d, %a, %b;", "f32 f32 b32", &[(&[0x4000_0000, 0x3f80_0000], 0x4000_3c00)]);
    bench.check(
        "cvt.rn.bf16x2.f32 %d, %a, %b;",
        "f32 f32 b32",
        &[(&[0x4000_0000, 0x3f80_0000], 0x4000_3f80)],
    );
    bench.check("add.f16x2 %d, %a, %b;", "b32 b32 b32", &[(&[0x3c00_0001, 0x3c00_0001], 0x4000_0002)]);
    bench.check("mul.rn.bf16 %d, %a, %b;", "b16 b16 b16", &[(&[0x3f81, 0x3f81], 0x3f82)]);
    // (1 + 2⁻¹⁰)² - (1 + 2⁻⁹) = 2⁻²⁰ only if the product is not rounded.
    bench.check("fma.rn.f16 %d, %a, %b, %c;", "b16 b16 b16 b16", &[(&[0x3c01, 0x3c01, 0xbc02], 0x0010)]);
    bench.check(
        "fma.rn.bf16x2 %d, %a, %b, %c;",
        "b32 b32 b32 b32",
        &[(&[0x3f80_4000, 0x4000_4040, 0x3f80_bf80], 0x4040_40a0)],
    );
    bench.check("max.f16 %d, %a, %b;", "b16 b16 b16", &[(&[0x7e00, 0x3c00], 0x3c00), (&[0x8000, 0], 0)]);
    bench.check("neg.f16x2 %d, %a;", "b32 b32", &[(&[0x3c00_bc00], 0xbc00_3c00)]);
}

#[test]
fn arithmetic_rounds_in_other_directions() {
    let bench = Bench::new();
    // 1 + 2⁻¹⁴⁹ is between 1 and the next.
    bench.check(
        "add.rz.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[0x3f80_0000, 0x0000_0001], 0x3f80_0000), (&[0xbf80_0000, 0x8000_0001], 0xbf80_0000)],
    );
    bench.check(
        "add.rp.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[(&[0x3f80_0000, 0x0000_0001], 0x3f80_0001), (&[0xbf80_0000, 0x8000_0001], 0xbf80_0000)],
    );
    bench.check(
        "add.rm.f32 %d, %a, %b;",
        "f32 f32 f32",
        &[
            (&[0x3f80_0000, 0x0000_0001], 0x3f80_0000),
            (&[0xbf80_0000, 0x8000_0001], 0xbf80_0001),
            (&[0x3f80_0000, 0xbf80_0000], MINUS),
            (&[0, 0], 0),
        ],
    );
    bench.check("sub.rm.f32 %d, %a, %b;", "f32 f32 f32", &[(&[0x3f80_0000, 0x0000_0001], 0x3f7f_ffff)]);
    // (1 + 2⁻²³)² = 1 + 2⁻²² + 2⁻⁴⁶
    bench.check("mul.rp.f32 %d, %a, %b;", "f32 f32 f32", &[(&[0x3f80_0001, 0x3f80_0001], 0x3f80_0003)]);
    bench.check("mul.rz.f32 %d, %a, %b;", "f32 f32 f32", &[(&[0x7f00_0000, 0x4080_0000], 0x7f7f_ffff)]);
    bench.check(
        "fma.rz.f32 %d, %a, %b, %c;",
        "f32 f32 f32 f32",
        &[(&[0x3f80_0001, 0x3f80_0001, 0xb380_0000], 0x3f80_0001)],
    );
    bench.check(
        "fma.rp.f32 %d, %a, %b, %c;",
        "f32 f32 f32 f32",
        &[(&[0x3f80_0001, 0x3f80_0001, 0x0000_0001], 0x3f80_0003)],
    );
}
