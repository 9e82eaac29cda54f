//! Loads, stores, atomics and asynchronous copies.

mod common;

use common::{Bench, HEADER, kernel};

#[test]
fn widths_and_signs() {
    let bench = Bench::new();
    let input = [0x8182_8384_ff7f_fe80, 0x0102_0304_0506_0708];
    let load = |code: &str| {
        bench.map(
            &kernel(&format!(
                "\t.reg .b64 %d; .reg .b32 %w; .reg .b16 %h;\n\t{code}\n\tst.global.u64 [%out], %d;\n"
            )),
            &input,
            1,
        )[0]
    };
    assert_eq!(load("ld.global.u8 %d, [%in];"), 0x80);
    assert_eq!(load("ld.global.s8 %d, [%in];"), 0xffff_ffff_ffff_ff80);
    assert_eq!(load("ld.global.s16 %d, [%in+2];"), 0xffff_ffff_ffff_ff7f);
    assert_eq!(load("ld.global.u32 %d, [%in+4];"), 0x8182_8384);
    assert_eq!(load("ld.global.s8 %w, [%in+1]; cvt.u64.u32 %d, %w;"), 0xffff_fffe);
    assert_eq!(load("ld.volatile.global.u64 %d, [%in+8];"), 0x0102_0304_0506_0708);
    assert_eq!(load("ld.global.L1::no_allocate.L2::128B.b64 %d, [%in];"), 0x8182_8384_ff7f_fe80);
    assert_eq!(load("ld.relaxed.gpu.global.b64 %d, [%in];"), 0x8182_8384_ff7f_fe80);
    assert_eq!(load("ld.global.nc.v2.u32 {%w, _}, [%in+8]; cvt.u64.u32 %d, %w;"), 0x0506_0708);
    assert_eq!(load("{ .reg .b64 %x; ld.global.v2.u64 {_, %d}, [%in]; }"), 0x0102_0304_0506_0708);
    assert_eq!(
        load("{ .reg .b32 %x<4>; ld.global.v4.f32 {%x0, %x1, %x2, %x3}, [%in]; cvt.u64.u32 %d, %x3; }"),
        0x0102_0304
    );
    // A store keeps the low bits of a wider register.
    assert_eq!(
        load(
            "mov.u64 %d, 0x1122334455667788; st.global.u64 [%out], 0; st.global.u16 [%out+4], %d; ld.global.u64 %d, [%out];"
        ),
        0x7788_0000_0000
    );
}

#[test]
fn spaces_have_generic_addresses() {
    let bench = Bench::new();
    let text = kernel(
        "
	.shared .align 8 .b8 tile[64];
	.local .align 8 .b8 mine[16];
	mov.u64 %rd1, tile;
	cvta.shared.u64 %rd1, %rd1;
	mov.u64 %rd2, mine;
	cvta.local.u64 %rd2, %rd2;
	st.u32 [%rd1+4], 17;
	st.u32 [%rd2+8], 4;
	ld.shared.u32 %r1, [tile+4];
	ld.local.u32 %r2, [mine+8];
	ld.u32 %r3, [%in];
	add.u32 %r1, %r1, %r2;
	add.u32 %r1, %r1, %r3;
	cvta.to.shared.u64 %rd3, %rd1;
	cvt.u32.u64 %r4, %rd3;
	ld.shared.u32 %r5, [%r4+4];
	add.u32 %r1, %r1, %r5;
	isspacep.shared %p1, %rd1;
	isspacep.shared %p2, %in;
	selp.u32 %r6, 1000, 0, %p1;
	add.u32 %r1, %r1, %r6;
	selp.u32 %r6, 5000, 0, %p2;
	add.u32 %r1, %r1, %r6;
	st.u32 [%out], %r1;
",
    );
    assert_eq!(bench.map(&text, &[100], 1), [1138]);
}

#[test]
fn variables_of_a_module() {
    let bench = Bench::new();
    let text = kernel(
        "
	ld.const.f32 %f1, [table+4];
	mov.u64 %rd1, table;
	ld.const.f32 %f2, [%rd1+8];
	add.rn.f32 %f1, %f1, %f2;
	cvt.rzi.u32.f32 %r1, %f1;
	ld.global.u32 %r2, [counter];
	add.u32 %r1, %r1, %r2;
	st.global.u32 [counter], %r1;
	ld.global.u8 %r3, [bytes+2];
	add.u32 %r1, %r1, %r3;
	st.global.u32 [%out], %r1;
",
    );
    let variables = "
.const .align 4 .f32 table[4] = {0f3F800000, 2.0, 0f40400000, 4.5};
.global .align 4 .u32 counter = 10;
.global .align 1 .b8 bytes[4] = {1, 2, 3};
";
    let text = text.replace(HEADER, &format!("{HEADER}{variables}"));
    assert_eq!(bench.map(&text, &[], 1), [18]);
}

#[test]
fn atomics() {
    let bench = Bench::new();
    let both = |code: &str, start: u64| {
        let text =
            kernel(&format!("\tld.global.u64 %rd1, [%in];\n\tst.global.u64 [%out], %rd1;\n\t{code}\n"));
        bench.map(&text, &[start], 1)[0]
    };
    assert_eq!(both("atom.global.add.u32 %r1, [%out], 5; st.global.u32 [%out+4], %r1;", 7), 7 << 32 | 12);
    assert_eq!(both("red.global.min.s32 [%out], -1;", 7), 0xffff_ffff);
    assert_eq!(both("red.global.max.u32 [%out], -1;", 7), 0xffff_ffff);
    assert_eq!(both("atom.relaxed.gpu.global.cas.b32 %r1, [%out], 7, 9;", 7), 9);
    assert_eq!(both("atom.global.cas.b32 %r1, [%out], 8, 9;", 7), 7);
    assert_eq!(both("atom.global.exch.b32 %r1, [%out], 3;", 7), 3);
    assert_eq!(both("atom.global.inc.u32 %r1, [%out], 7;", 7), 0);
    assert_eq!(both("atom.global.inc.u32 %r1, [%out], 8;", 7), 8);
    assert_eq!(both("atom.global.dec.u32 %r1, [%out], 5;", 0), 5);
    assert_eq!(both("red.global.xor.b32 [%out], 3;", 5), 6);
    assert_eq!(both("red.global.and.b32 [%out], 3;", 5), 1);
    assert_eq!(both("red.or.b64 [%out], 0x100000000;", 5), 1 << 32 | 5);
    assert_eq!(both("atom.add.u64 %rd2, [%out], 0xffffffff;", 5), 1 << 32 | 4);
    let shared = kernel(
        "
	.shared .align 4 .u32 sum;
	setp.ne.u32 %p1, %t, 0;
	@!%p1 st.shared.u32 [sum], 0;
	bar.sync 0;
	atom.shared.add.u32 %r1, [sum], %t;
	bar.sync 0;
	ld.shared.u32 %r2, [sum];
	mad.wide.u32 %rd1, %t, 8, %out;
	st.global.u32 [%rd1], %r2;
",
    );
    assert_eq!(bench.map(&shared, &[], 128), vec![127 * 64; 128]);
}

#[test]
fn asynchronous_copies_land_at_the_wait() {
    let bench = Bench::new();
    let text = kernel(
        "
	.shared .align 16 .b8 tile[64];
	mov.u32 %r1, tile;
	cp.async.cg.shared.global [%r1], [%in], 16;
	cp.async.commit_group;
	cp.async.ca.shared.global [%r1+16], [%in+16], 8, 3;
	cp.async.commit_group;
	mov.u32 %r9, 0;
	cp.async.cg.shared.global [%r1+32], [%in], 16, %r9;
	cp.async.wait_group 1;
	ld.shared.u64 %rd1, [%r1+8];
	st.global.u64 [%out], %rd1;
	cp.async.wait_all;
	ld.shared.v2.u64 {%rd2, %rd3}, [%r1+32];
	ld.shared.u64 %rd4, [%r1+16];
	add.u64 %rd2, %rd2, %rd3;
	add.u64 %rd2, %rd2, %rd4;
	st.global.u64 [%out+8], %rd2;
",
    );
    let one =
        text.replace("mov.u32 %t, %tid.x;", "mov.u32 %t, %tid.x;\n\tsetp.ne.u32 %p9, %t, 0;\n\t@%p9 ret;");
    let results = bench.map(&one, &[1, 0x1122_3344_5566_7788, 0x8877_6655_4433_2211, 0], 2);
    assert_eq!(results, [0x1122_3344_5566_7788, 0x33_2211]);
}
