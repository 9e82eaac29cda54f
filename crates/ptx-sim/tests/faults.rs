//! A kernel for each check, which commits what the check finds.

mod common;

use common::{Bench, kernel};

/// Asserts that each part is in the text.
#[track_caller]
fn says(fault: &str, parts: &[&str]) {
    for part in parts {
        assert!(fault.contains(part), "{fault:?} does not say {part:?}");
    }
}

#[test]
fn bounds_of_global_memory() {
    let bench = Bench::new();
    let after = bench.fault("\tmad.wide.u32 %rd1, %t, 8, %out;\n\tst.global.u64 [%rd1+8], %rd1;\n", 32, 1);
    says(
        &after,
        &[
            "thread [31, 0, 0]",
            "st.global.u64",
            "8 bytes at 0x",
            "out of bounds",
            "256 bytes at",
            "begin 256 before",
        ],
    );
    let null = bench.fault("\tmov.u64 %rd1, 0;\n\tld.global.u32 %r1, [%rd1+4];\n", 1, 1);
    says(&null, &["4 bytes at 0x4 of global memory", "out of bounds"]);
}

#[test]
fn freed_memory() {
    let bench = Bench::new();
    let freed = bench.stream.alloc_zeros::<u64>(4).unwrap();
    let address = {
        use cudarc::driver::DevicePtr;
        freed.device_ptr(&bench.stream).0
    };
    drop(freed);
    let fault = bench.fault(&format!("\tmov.u64 %rd1, {address};\n\tld.global.u32 %r1, [%rd1+8];\n"), 1, 1);
    says(&fault, &["were freed", "byte 8 of 32"]);
}

#[test]
fn alignment() {
    let bench = Bench::new();
    says(&bench.fault("\tld.global.u32 %r1, [%in+2];\n", 1, 1), &["not aligned", "4 bytes", "ld.global.u32"]);
    let vector = "\t.shared .align 16 .b8 tile[64];\n\tmov.u32 %r9, tile;\n\tld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [%r9+8];\n";
    says(&bench.fault(vector, 1, 1), &["16 bytes at 0x8 of shared memory are not aligned"]);
}

#[test]
fn bounds_of_shared_and_local_memory() {
    let bench = Bench::new();
    let shared = "\t.shared .align 4 .b8 tile[64];\n\tmov.u32 %r9, tile;\n\tst.shared.u32 [%r9+64], %t;\n";
    says(&bench.fault(shared, 1, 1), &["4 bytes at 0x40 of shared memory are out of bounds"]);
    let local = "\t.local .align 4 .b8 mine[64];\n\tmov.u32 %r9, mine;\n\tst.local.u32 [%r9+64], %t;\n";
    says(&bench.fault(local, 1, 1), &["4 bytes at 0x40 of local memory are out of bounds"]);
}

#[test]
fn what_nobody_wrote() {
    let bench = Bench::new();
    says(
        &bench.fault("\tadd.u32 %r1, %r2, 1;\n", 1, 1),
        &["a register is read before it is written", "add.u32"],
    );
    says(&bench.fault("\t@%p3 add.u32 %r1, %t, 1;\n", 1, 1), &["a register is read before it is written"]);
    says(&bench.fault("\tst.global.u32 [%out], %r7;\n", 1, 1), &["a register is read before it is written"]);
    let shared = "\t.shared .align 4 .b8 tile[64];\n\tld.shared.u32 %r1, [tile+4];\n";
    says(&bench.fault(shared, 1, 1), &["4 bytes at 0x4 of shared memory are read before they are written"]);
    let local = "\t.local .align 4 .b8 mine[64];\n\tst.local.u8 [mine], 1;\n\tld.local.u32 %r1, [mine];\n";
    says(&bench.fault(local, 1, 1), &["4 bytes at 0x0 of local memory are read before they are written"]);
    // SAFETY: the memory is not read by the host.
    let fresh = unsafe { bench.stream.alloc::<u32>(64) }.unwrap();
    let address = {
        use cudarc::driver::DevicePtr;
        fresh.device_ptr(&bench.stream).0
    };
    let global =
        format!("\tmov.u64 %rd1, {address};\n\tst.global.u8 [%rd1+5], 1;\n\tld.global.u32 %r1, [%rd1+4];\n");
    says(&bench.fault(&global, 1, 1), &["4 bytes at 0x", "global memory are read before they are written"]);
}

#[test]
fn shared_memory_without_a_barrier() {
    let bench = Bench::new();
    // Each thread writes its word and reads that of the thread 32 further.
    let body = |between: &str| {
        format!(
            "
	.shared .align 4 .b8 tile[256];
	mov.u32 %r1, tile;
	shl.b32 %r2, %t, 2;
	add.u32 %r3, %r1, %r2;
	xor.b32 %r4, %r2, 128;
	add.u32 %r4, %r1, %r4;
	st.shared.u32 [%r3], %t;
	{between}
	ld.shared.u32 %r5, [%r4];
"
        )
    };
    bench.passes(&body("bar.sync 0;"), 64, 1);
    for order in ["ascending", "descending"] {
        bench.sim.set("PTX_SIM_WARPS", order);
        let text = kernel(&body(""));
        assert!(bench.run(&text, &[], 64, 1).is_err());
        // What the first warp reads was not written; what the second one reads races with the first.
        says(&bench.sim.fault().unwrap(), &["shared memory"]);
        bench.recover();
    }
    // The barrier of a warp is none of the block: the other warp reads what is written.
    let again = format!("{}\tbar.warp.sync -1;\n\tst.shared.u32 [%r3], %t;\n", body("bar.sync 0;"));
    says(&bench.fault(&again, 64, 1), &["races with"]);
    let race = body("bar.sync 0;\n\tst.shared.u32 [%r3], %t;");
    says(
        &bench.fault(&race, 64, 1),
        &["a read races with a write of thread", "line"]
            .map(|part| if part == "line" { part } else { "races" }),
    );
}

#[test]
fn lanes_without_a_barrier_of_the_warp() {
    let bench = Bench::new();
    let body = |between: &str| {
        format!(
            "
	.shared .align 4 .b8 tile[128];
	mov.u32 %r1, tile;
	shl.b32 %r2, %t, 2;
	add.u32 %r3, %r1, %r2;
	xor.b32 %r4, %r2, 4;
	add.u32 %r4, %r1, %r4;
	st.shared.u32 [%r3], %t;
	{between}
	ld.shared.u32 %r5, [%r4];
"
        )
    };
    bench.passes(&body("bar.warp.sync -1;"), 32, 1);
    let fault = bench.fault(&body(""), 32, 1);
    says(&fault, &["a read races with a write", "thread [0, 0, 0]", "thread 1"]);
    // Pairs of lanes are enough for pairs of lanes.
    let pairs = "shr.u32 %r6, %t, 1;\n\tshl.b32 %r6, %r6, 1;\n\tshl.b32 %r7, 3, %r6;\n\tbar.warp.sync %r7;";
    bench.passes(&body(pairs), 32, 1);
    // Lanes that write the same at once do not race; those that write different values do.
    bench.passes("\t.shared .align 4 .u32 one;\n\tst.shared.u32 [one], 5;\n", 32, 1);
    says(
        &bench.fault("\t.shared .align 4 .u32 one;\n\tst.shared.u32 [one], %t;\n", 32, 1),
        &["a write races with a write"],
    );
}

#[test]
fn writes_behind_reads() {
    let bench = Bench::new();
    // All read a word, then one of another warp writes it.
    let body = |between: &str| {
        format!(
            "
	.shared .align 4 .u32 one;
	setp.ne.u32 %p1, %t, 0;
	@!%p1 st.shared.u32 [one], 5;
	bar.sync 0;
	ld.shared.u32 %r1, [one];
	{between}
	setp.ne.u32 %p2, %t, 40;
	@!%p2 st.shared.u32 [one], 6;
"
        )
    };
    bench.passes(&body("bar.sync 0;"), 64, 1);
    says(&bench.fault(&body(""), 64, 1), &["a write races with a read", "thread [40, 0, 0]"]);
}

#[test]
fn asynchronous_copies() {
    let bench = Bench::new();
    let body = |wait: &str| {
        format!(
            "
	.shared .align 16 .b8 tile[16];
	mov.u32 %r1, tile;
	st.shared.u64 [tile], 0;
	cp.async.ca.shared.global [%r1], [%in], 8;
	{wait}
	ld.shared.u64 %rd1, [tile];
"
        )
    };
    bench.passes(&body("cp.async.wait_all;"), 1, 1);
    bench.passes(&body("cp.async.commit_group;\n\tcp.async.wait_group 0;"), 1, 1);
    says(
        &bench.fault(&body("cp.async.commit_group;\n\tcp.async.wait_group 1;"), 1, 1),
        &["before the wait for the asynchronous copy"],
    );
    says(
        &bench.fault(&body("cp.async.wait_group 0;"), 1, 1),
        &["before the wait for the asynchronous copy", "ld.shared.u64"],
    );
    says(&bench.fault("\t.shared .align 16 .b8 tile[16];\n\tmov.u32 %r1, tile;\n\tcp.async.ca.shared.global [%r1], [%in], 4, 5;\n", 1, 1), &["takes 5 of 4 bytes"]);
}

#[test]
fn barriers() {
    let bench = Bench::new();
    says(
        &bench.fault("\tsetp.lt.u32 %p1, %t, 7;\n\t@%p1 bar.sync 0;\n", 32, 1),
        &["only some threads reach", "0x0000007f"],
    );
    let two = "\tsetp.lt.u32 %p1, %t, 32;\n\t@%p1 bra $one;\n\tbar.sync 0;\n\tbra $end;\n$one:\n\tbar.sync 0;\n$end:\n";
    says(&bench.fault(two, 64, 1), &["only some threads reach"]);
    let numbers = "\tsetp.lt.u32 %p1, %t, 32;\n\t@%p1 bra $one;\n\tbar.sync 1;\n\tbra $end;\n$one:\n\tbar.sync 0;\n$end:\n";
    says(&bench.fault(numbers, 64, 1), &["none can go on", "warp 0 at 0", "warp 1 at 1"]);
    says(&bench.fault("\tbar.sync 16;\n", 32, 1), &["a barrier number of 16"]);
    says(&bench.fault("\tbar.sync 1, 33;\n", 64, 1), &["33 threads"]);
    // Threads that have ended are not waited for.
    bench.passes("\tsetp.ge.u32 %p1, %t, 20;\n\t@%p1 ret;\n\tbar.sync 0;\n", 64, 1);
}

#[test]
fn masks() {
    let bench = Bench::new();
    let some = "\tsetp.lt.u32 %p1, %t, 7;\n\t@%p1 shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;\n";
    says(&bench.fault(some, 32, 1), &["do not come here", "0x0000007f of 0xffffffff"]);
    let source = "\tsetp.lt.u32 %p1, %t, 7;\n\t@%p1 shfl.sync.idx.b32 %r1, %t, 9, 31, 0x7f;\n";
    says(&bench.fault(source, 32, 1), &["from lane 9, which does not take part"]);
    says(
        &bench.fault("\tshfl.sync.bfly.b32 %r1, %t, 1, 31, 0xfffffffe;\n", 32, 1),
        &["without the lane itself"],
    );
    says(&bench.fault("\tsetp.lt.u32 %p1, %t, 7;\n\t@%p1 bar.warp.sync -1;\n", 32, 1), &["do not come here"]);
    says(
        &bench.fault("\tsetp.lt.u32 %p1, %t, 7;\n\t@%p1 vote.sync.any.pred %p2, %p1, -1;\n", 32, 1),
        &["do not come here"],
    );
    // A block of 20 threads has no lane 20.
    says(
        &bench.fault("\tshfl.sync.down.b32 %r1, %t, 1, 31, -1;\n", 20, 1),
        &["lane 20, which does not take part"],
    );
}

#[test]
fn tensor_cores_whose_sum_depends_on_its_order() {
    let bench = Bench::new();
    // 2²⁴ + 1 has no place in f32.
    let body = |start: &str| {
        format!(
            "
	mov.b32 %r1, 0x3f803f80;
	mov.b32 %r2, {start};
	mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {{%r4, %r5, %r6, %r7}}, {{%r1, %r1}}, {{%r1}}, {{%r2, %r2, %r2, %r2}};
"
        )
    };
    bench.passes(&body("0x4b7ffff0"), 32, 1);
    says(&bench.fault(&body("0x4b800000"), 32, 1), &["not exact in f32", "row 0, column 0"]);
}

#[test]
fn kernels_that_do_not_end() {
    let bench = Bench::new();
    bench.sim.set("PTX_SIM_LIMIT", "100000");
    let text = kernel("$again:\n\tbra $again;\n");
    assert!(bench.run(&text, &[], 1, 1).is_err());
    says(&bench.sim.fault().unwrap(), &["executed 100000 instructions"]);
    bench.recover();
    says(&bench.fault("\ttrap;\n", 1, 1), &["stopped itself"]);
}

#[test]
fn constants_are_not_written() {
    let bench = Bench::new();
    let text = kernel("\tmov.u64 %rd1, table;\n\tst.global.u32 [%rd1], 1;\n");
    let text = text.replace(".visible", ".const .align 4 .u32 table = 7;\n.visible");
    assert!(bench.run(&text, &[], 1, 1).is_err());
    says(&bench.sim.fault().unwrap(), &["that is read-only"]);
}

#[test]
fn blocks_that_use_the_same_memory() {
    let bench = Bench::new();
    let own = "\tmov.u32 %r1, %ctaid.x;\n\tmad.wide.u32 %rd1, %r1, 8, %out;\n\tst.global.u32 [%rd1], %r1;\n";
    let same = "\tmov.u32 %r1, %ctaid.x;\n\tst.global.u32 [%out], %r1;\n";
    let read = "\tmov.u32 %r1, %ctaid.x;\n\tsetp.eq.u32 %p1, %r1, 2;\n\t@%p1 st.global.u32 [%in], %r1;\n\tld.global.u32 %r2, [%in];\n";
    let atomic = "\tred.global.add.u32 [%out], 1;\n";
    let all = |body: &str| {
        bench.sim.set("PTX_SIM_CHECKS", "all");
        let done = bench.run(&kernel(body), &[], 32, 4);
        let fault = bench.sim.fault();
        bench.recover();
        assert_eq!(done.is_err(), fault.is_some());
        fault.unwrap_or_default()
    };
    assert_eq!(all(own), "");
    assert_eq!(all(atomic), "");
    says(&all(same), &["a write races with a write by block", "global memory"]);
    says(&all(read), &["races with", "global memory"]);
}

#[test]
fn what_is_not_interpreted() {
    let bench = Bench::new();
    for (code, opcode) in [
        ("ex2.approx.f32 %f1, %f1;", "ex2.approx.f32"),
        ("rsqrt.approx.ftz.f32 %f1, %f1;", "rsqrt.approx.ftz.f32"),
        ("div.full.f32 %f1, %f1, %f1;", "div.full.f32"),
        ("div.rz.f32 %f1, %f1, %f1;", "div.rz.f32"),
        ("griddepcontrol.wait;", "griddepcontrol.wait"),
        (
            "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%r1,%r1,%r1,%r1}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%r1,%r1,%r1,%r1};",
            "satfinite",
        ),
        ("red.global.add.f32 [%out], %f1;", "no order"),
        ("wgmma.fence.sync.aligned;", "wgmma.fence"),
    ] {
        let error = bench.context.load_module(kernel(&format!("\t{code}\n")).into()).map(drop).unwrap_err();
        assert_eq!(error.0, cudarc::driver::sys::CUresult::CUDA_ERROR_INVALID_PTX);
        let said = bench.sim.refused().unwrap();
        says(&said, &["line 17", "in test", opcode]);
    }
}

#[test]
fn bytes_of_a_word_have_threads_of_their_own() {
    let bench = Bench::new();
    // Each thread writes its byte; then each reads that of the thread 32 further.
    let body = |between: &str| {
        format!(
            "
	.shared .align 4 .b8 tile[64];
	mov.u32 %r1, tile;
	add.u32 %r3, %r1, %t;
	xor.b32 %r4, %t, 32;
	add.u32 %r4, %r1, %r4;
	st.shared.u8 [%r3], %t;
	{between}
	ld.shared.u8 %r5, [%r4];
"
        )
    };
    bench.passes(&body("bar.sync 0;"), 64, 1);
    bench.fault(&body("bar.warp.sync -1;"), 64, 1);
    // Whole words behind bytes, and bytes behind whole words.
    let words = "bar.sync 0;\n\tshl.b32 %r6, %t, 2;\n\tadd.u32 %r6, %r1, %r6;\n\tsetp.lt.u32 %p1, %t, 16;\n\t@%p1 ld.shared.u32 %r7, [%r6];";
    bench.passes(&body(words), 64, 1);
    let written = words.replace("ld.shared.u32 %r7, [%r6]", "st.shared.u32 [%r6], %t");
    says(&bench.fault(&body(&written), 64, 1), &["races with", "ld.shared.u8"]);
    bench.passes(&body(&format!("{written}\n\tbar.sync 0;")), 64, 1);
    // Of a word, only the first byte is written.
    let part = "\t.shared .align 4 .b8 tile[4];\n\tst.shared.u8 [tile], 1;\n\tld.shared.u32 %r1, [tile];\n";
    says(&bench.fault(part, 1, 1), &["are read before they are written"]);
}

/// The text without its `index`th line that says `what`; none if there are not as many.
fn without(text: &str, what: &str, index: usize) -> Option<String> {
    let (line, _) =
        text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(what)).nth(index)?;
    let others = text.lines().enumerate().filter(|(other, _)| *other != line);
    Some(others.flat_map(|(_, line)| [line, "\n"]).collect())
}

#[test]
fn no_barrier_can_be_left_out() {
    use cudarc::driver::{LaunchConfig, PushKernelArg};
    let bench = Bench::new();
    let run = |text: &str, kernel: &str, threads: u32| {
        let function = bench.context.load_module(text.into()).unwrap().load_function(kernel).unwrap();
        let input = bench.stream.clone_htod(&[1f32; 4096]).unwrap();
        let mut output = bench.stream.alloc_zeros::<f32>(16).unwrap();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernels.
        unsafe {
            bench.stream.launch_builder(&function).arg(&mut output).arg(&input).arg(&3u32).launch(config)
        }
        .unwrap();
        drop((output, input));
        let fault = bench.sim.fault();
        bench.recover();
        fault
    };
    let kernels = include_str!("../benches/kernels.ptx");
    for order in ["ascending", "descending", "5"] {
        for (barrier, kernel, threads, count) in [
            ("bar.sync", "exchange", 256, 2),
            ("bar.warp.sync", "matrices", 32, 2),
            ("cp.async.wait", "matrices", 32, 1),
        ] {
            bench.sim.set("PTX_SIM_WARPS", order);
            assert_eq!(run(kernels, kernel, threads), None);
            for index in 0..count {
                bench.sim.set("PTX_SIM_WARPS", order);
                let text = without(kernels, barrier, index).unwrap();
                assert!(
                    run(&text, kernel, threads).is_some(),
                    "{kernel} passes without its {barrier} number {index}"
                );
            }
            assert!(without(kernels, barrier, count).is_none());
        }
    }
}
