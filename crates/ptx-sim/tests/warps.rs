//! Instructions of lanes together, and lanes that go different ways.

mod common;

use common::{Bench, kernel};

/// What 32 lanes store in %r1.
fn lanes(bench: &Bench, body: &str) -> Vec<u64> {
    bench.map(
        &kernel(&format!("{body}\tmad.wide.u32 %rd30, %t, 8, %out;\n\tst.global.u32 [%rd30], %r1;\n")),
        &[],
        32,
    )
}

fn expected(lane: impl Fn(u64) -> u64) -> Vec<u64> {
    (0..32).map(lane).collect()
}

#[test]
fn shuffles() {
    let bench = Bench::new();
    let value = "\tadd.u32 %r0, %t, 100;\n";
    let shuffle = |code: &str| lanes(&bench, &format!("{value}\t{code}\n"));
    assert_eq!(shuffle("shfl.sync.bfly.b32 %r1, %r0, 5, 31, -1;"), expected(|lane| 100 + (lane ^ 5)));
    assert_eq!(
        shuffle("shfl.sync.down.b32 %r1, %r0, 3, 31, -1;"),
        expected(|lane| 100 + if lane < 29 { lane + 3 } else { lane })
    );
    assert_eq!(
        shuffle("shfl.sync.up.b32 %r1, %r0, 3, 0, -1;"),
        expected(|lane| 100 + if lane >= 3 { lane - 3 } else { lane })
    );
    assert_eq!(shuffle("shfl.sync.idx.b32 %r1, %r0, 7, 31, -1;"), expected(|_| 107));
    // Segments of 8: the clamp has the mask 24 above.
    assert_eq!(shuffle("shfl.sync.idx.b32 %r1, %r0, 3, 0x181f, -1;"), expected(|lane| 100 + (lane & 24) + 3));
    assert_eq!(
        shuffle("shfl.sync.down.b32 %r1, %r0, 2, 0x181f, -1;"),
        expected(|lane| 100 + if lane % 8 < 6 { lane + 2 } else { lane })
    );
    // The predicate says whether the source was in range.
    let in_range = shuffle("shfl.sync.up.b32 %r2|%p1, %r0, 4, 0, -1;\n\tselp.u32 %r1, 1, 0, %p1;");
    assert_eq!(in_range, expected(|lane| u64::from(lane >= 4)));
}

#[test]
fn groups_of_lanes_have_masks_of_their_own() {
    let bench = Bench::new();
    // Each 8 lanes sum their numbers, with a mask of just these.
    let body = "
	and.b32 %r2, %t, 24;
	shl.b32 %r3, 0xff, %r2;
	mov.u32 %r1, %t;
	shfl.sync.bfly.b32 %r4, %r1, 4, 31, %r3;
	add.u32 %r1, %r1, %r4;
	shfl.sync.bfly.b32 %r4, %r1, 2, 31, %r3;
	add.u32 %r1, %r1, %r4;
	shfl.sync.bfly.b32 %r4, %r1, 1, 31, %r3;
	add.u32 %r1, %r1, %r4;
";
    assert_eq!(lanes(&bench, body), expected(|lane| 8 * (lane & 24) + 28));
}

#[test]
fn votes() {
    let bench = Bench::new();
    let odd = "\tand.b32 %r0, %t, 1;\n\tsetp.ne.u32 %p0, %r0, 0;\n";
    let vote = |code: &str| lanes(&bench, &format!("{odd}\t{code}\n"))[0];
    assert_eq!(vote("vote.sync.ballot.b32 %r1, %p0, -1;"), 0xaaaa_aaaa);
    assert_eq!(vote("vote.sync.any.pred %p1, %p0, -1;\n\tselp.u32 %r1, 1, 0, %p1;"), 1);
    assert_eq!(vote("vote.sync.all.pred %p1, %p0, -1;\n\tselp.u32 %r1, 1, 0, %p1;"), 0);
    assert_eq!(vote("vote.sync.uni.pred %p1, %p0, -1;\n\tselp.u32 %r1, 1, 0, %p1;"), 0);
    assert_eq!(vote("vote.sync.all.pred %p1, !%p0, -1;\n\tselp.u32 %r1, 1, 0, %p1;"), 0);
    assert_eq!(
        vote(
            "mov.u32 %r1, 0;\n\t@%p0 vote.sync.all.pred %p1, %p0, 0xaaaaaaaa;\n\t@%p0 selp.u32 %r1, 1, 0, %p1;"
        ),
        0
    );
}

#[test]
fn matches_and_reductions() {
    let bench = Bench::new();
    let value = "\tshr.u32 %r0, %t, 3;\n";
    let matched = lanes(&bench, &format!("{value}\tmatch.any.sync.b32 %r1, %r0, -1;\n"));
    assert_eq!(matched, expected(|lane| 0xff << (lane & 24)));
    assert_eq!(lanes(&bench, &format!("{value}\tmatch.all.sync.b32 %r1|%p1, %r0, -1;\n")), expected(|_| 0));
    let reduce = |code: &str| lanes(&bench, &format!("\tsub.s32 %r0, %t, 10;\n\t{code}\n"))[5];
    assert_eq!(reduce("redux.sync.add.s32 %r1, %r0, -1;"), 176);
    assert_eq!(reduce("redux.sync.min.s32 %r1, %r0, -1;"), 0xffff_fff6);
    assert_eq!(reduce("redux.sync.max.s32 %r1, %r0, -1;"), 21);
    assert_eq!(reduce("redux.sync.min.u32 %r1, %r0, -1;"), 0);
    assert_eq!(reduce("redux.sync.and.b32 %r1, %t, -1;"), 0);
    assert_eq!(reduce("redux.sync.or.b32 %r1, %t, -1;"), 31);
    assert_eq!(reduce("redux.sync.xor.b32 %r1, %t, -1;"), 0);
}

#[test]
fn lanes_part_and_meet() {
    let bench = Bench::new();
    // Odd lanes loop as often as their number says, then all exchange.
    let body = "
	and.b32 %r2, %t, 1;
	setp.eq.u32 %p0, %r2, 0;
	mov.u32 %r3, 0;
	@%p0 bra $even;
	mov.u32 %r4, %t;
$again:
	add.u32 %r3, %r3, 2;
	sub.u32 %r4, %r4, 1;
	setp.ne.u32 %p1, %r4, 0;
	@%p1 bra $again;
	bra $meet;
$even:
	mov.u32 %r3, 7;
$meet:
	shfl.sync.bfly.b32 %r1, %r3, 1, 31, -1;
";
    assert_eq!(lanes(&bench, body), expected(|lane| if lane % 2 == 0 { 2 * (lane + 1) } else { 7 }));
}

#[test]
fn a_cold_block_behind_the_end_comes_back() {
    let bench = Bench::new();
    // The lanes that jump ahead come back to a shuffle that the others reached long before.
    let body = "
	mov.u32 %r3, 1;
	setp.lt.u32 %p0, %t, 4;
	@%p0 bra $cold;
$back:
	shfl.sync.idx.b32 %r1, %r3, 0, 31, -1;
	bra $end;
$cold:
	mov.u32 %r3, 9;
	bra $back;
$end:
";
    assert_eq!(lanes(&bench, body), expected(|_| 9));
}

#[test]
fn branches_by_index() {
    let bench = Bench::new();
    let body = "
	and.b32 %r2, %t, 3;
	setp.eq.u32 %p0, %r2, 3;
	mov.u32 %r1, 99;
	@%p0 bra $done;
$list:	.branchtargets $one, $two, $three;
	brx.idx %r2, $list;
$one:
	mov.u32 %r1, 10;
	bra $done;
$two:
	mov.u32 %r1, 20;
	bra $done;
$three:
	mov.u32 %r1, 30;
$done:
";
    assert_eq!(lanes(&bench, body), expected(|lane| [10, 20, 30, 99][lane as usize % 4]));
}

#[test]
fn special_registers() {
    let bench = Bench::new();
    assert_eq!(lanes(&bench, "\tmov.u32 %r1, %laneid;\n"), expected(|lane| lane));
    assert_eq!(lanes(&bench, "\tmov.u32 %r1, %lanemask_lt;\n"), expected(|lane| (1 << lane) - 1));
    assert_eq!(
        lanes(&bench, "\tmov.u32 %r1, %lanemask_ge;\n"),
        expected(|lane| 0xffff_ffff << lane & 0xffff_ffff)
    );
    assert_eq!(lanes(&bench, "\tmov.u32 %r1, %ntid.x;\n"), expected(|_| 32));
    assert_eq!(lanes(&bench, "\tactivemask.b32 %r1;\n"), expected(|_| 0xffff_ffff));
    assert_eq!(lanes(&bench, "\tmad.lo.u32 %r1, %ctaid.x, %ntid.x, %tid.x;\n"), expected(|lane| lane));
    assert_eq!(lanes(&bench, "\tmov.u32 %r1, %nctaid.y;\n"), expected(|_| 1));
}

#[test]
fn functions_are_called() {
    let bench = Bench::new();
    let function = "
.func (.param .b32 sum) add_twice(.param .b32 add_twice_a, .param .b32 add_twice_b)
{
	.reg .b32 %r<4>;
	.reg .pred %p;
	ld.param.u32 %r1, [add_twice_a];
	ld.param.u32 %r2, [add_twice_b];
	setp.eq.u32 %p, %r1, 3;
	add.u32 %r3, %r1, %r2;
	@%p bra $early;
	add.u32 %r3, %r3, %r2;
$early:
	st.param.b32 [sum], %r3;
	ret;
}
";
    let body = "
	{
	.param .b32 first;
	st.param.b32 [first], %t;
	.param .b32 second;
	st.param.b32 [second], 5;
	.param .b32 result;
	call.uni (result), add_twice, (first, second);
	ld.param.b32 %r1, [result];
	}
	mad.wide.u32 %rd30, %t, 8, %out;
	st.global.u32 [%rd30], %r1;
";
    let text = kernel(body).replace(".visible", &format!("{function}.visible"));
    assert_eq!(bench.map(&text, &[], 32), expected(|lane| lane + if lane == 3 { 5 } else { 10 }));
}

#[test]
fn barriers_reduce() {
    let bench = Bench::new();
    let body = "
	setp.lt.u32 %p0, %t, 70;
	bar.red.popc.u32 %r1, 0, %p0;
	bar.red.and.pred %p1, 0, %p0;
	bar.red.or.pred %p2, 0, %p0;
	selp.u32 %r2, 100, 0, %p1;
	add.u32 %r1, %r1, %r2;
	selp.u32 %r2, 1000, 0, %p2;
	add.u32 %r1, %r1, %r2;
	mad.wide.u32 %rd30, %t, 8, %out;
	st.global.u32 [%rd30], %r1;
";
    assert_eq!(bench.map(&kernel(body), &[], 128), vec![1070; 128]);
}

#[test]
fn half_of_a_block_waits_at_its_own_barrier() {
    let bench = Bench::new();
    // The first two warps fill shared memory, the others wait for them at barrier 1, and all meet at barrier 0.
    let body = "
	.shared .align 4 .b8 tile[256];
	mov.u32 %r10, tile;
	and.b32 %r2, %t, 63;
	shl.b32 %r3, %r2, 2;
	add.u32 %r4, %r10, %r3;
	setp.ge.u32 %p0, %t, 64;
	@%p0 bra $consume;
	add.u32 %r5, %t, 7;
	st.shared.u32 [%r4], %r5;
	bar.arrive 1, 128;
	mov.u32 %r1, 0;
	bra $join;
$consume:
	bar.sync 1, 128;
	ld.shared.u32 %r1, [%r4];
$join:
	bar.sync 0;
	mad.wide.u32 %rd30, %t, 8, %out;
	st.global.u32 [%rd30], %r1;
";
    let expected: Vec<u64> = (0..128).map(|thread| if thread < 64 { 0 } else { thread - 64 + 7 }).collect();
    for order in ["ascending", "descending", "3"] {
        bench.sim.set("PTX_SIM_WARPS", order);
        assert_eq!(bench.map(&kernel(body), &[], 128), expected);
    }
}
