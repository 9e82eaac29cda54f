//! Changes of kernels: which there are, that each does what its name says, and that they end.

mod common;

use common::{Bench, kernel};
use ptx_sim::{Mutation, mutants};

/// Two threads exchange values through shared memory; each writes its own plus one, at most 40.
const BODY: &str = "\t.shared .align 8 .b8 tile[64];
\tmov.u32 %r9, tile;
\tmul.lo.s32 %r1, %t, 8;
\tadd.s32 %r2, %r9, %r1;
\tadd.s32 %r3, %t, 1;
\tst.shared.u32 [%r2], %r3;
\tbar.sync 0;
\tld.shared.u32 %r4, [%r2];
\tmin.u32 %r4, %r4, 40;
\tsetp.lt.u32 %p1, %t, 2;
\tmad.wide.u32 %rd1, %t, 8, %out;
\tcvt.u64.u32 %rd2, %r4;
\tst.global.u64 [%rd1], %rd2;
";

fn all(text: &str) -> Vec<(String, Mutation)> {
    let mutants = mutants(text).unwrap();
    let name = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    mutants.into_iter().map(|mutant| (name(&mutant.text), mutant.mutation)).collect()
}

fn find(text: &str, opcode: &str, operator: &str) -> Mutation {
    let found =
        all(text).into_iter().find(|(name, mutation)| name == opcode && mutation.operator == operator);
    found.unwrap_or_else(|| panic!("no {operator} of {opcode}")).1
}

#[test]
fn every_kind_of_instruction_has_its_operators() {
    let text = kernel(BODY);
    let of = |opcode: &str| -> Vec<String> {
        let here = all(&text).into_iter().filter(|(name, _)| name == opcode);
        here.map(|(_, mutation)| mutation.operator).collect()
    };
    assert_eq!(of("bar.sync"), ["barrier"]);
    assert_eq!(of("st.shared.u32"), ["offset+", "offset-", "store"]);
    assert_eq!(of("ld.shared.u32"), ["offset+", "offset-"]);
    assert_eq!(of("min.u32"), ["minmax", "immediate"]);
    assert_eq!(of("setp.lt.u32"), ["negate", "boundary"]);
    assert_eq!(of("mul.lo.s32"), ["drop", "immediate"]);
    assert_eq!(of("mov.u32"), Vec::<String>::new());
}

#[test]
fn a_mutation_changes_loaded_modules_until_it_is_taken_back() {
    let bench = Bench::new();
    let text = kernel(BODY);
    let run = || bench.map(&text, &[], 2);
    assert_eq!(run(), [1, 2]);
    let minmax = find(&text, "min.u32", "minmax");
    bench.sim.mutate(Some(&minmax)).unwrap();
    assert_eq!(run(), [40, 40]);
    bench.sim.mutate(Some(&find(&text, "min.u32", "immediate"))).unwrap();
    assert_eq!(run(), [1, 2]);
    bench.sim.mutate(Some(&find(&text, "ld.shared.u32", "offset+"))).unwrap();
    assert!(bench.run(&text, &[], 2, 1).is_err());
    assert_eq!(bench.sim.fault_name().as_deref(), Some("unwritten memory"));
    bench.recover();
    assert_eq!(run(), [1, 2]);
    assert_eq!(minmax.to_string().parse(), Ok(minmax));
}

#[test]
fn a_function_that_was_found_before_runs_the_mutant_too() {
    let bench = Bench::new();
    let text = kernel(BODY);
    let function = bench.context.load_module(text.as_str().into()).unwrap().load_function("test").unwrap();
    let mut output = bench.stream.alloc_zeros::<u64>(2).unwrap();
    let mut run = |mutation: Option<&Mutation>| {
        use cudarc::driver::{LaunchConfig, PushKernelArg};
        bench.sim.mutate(mutation).unwrap();
        let input = bench.stream.clone_htod(&[0u64]).unwrap();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (2, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel, and the stand-in checks bounds.
        unsafe { bench.stream.launch_builder(&function).arg(&mut output).arg(&input).launch(config) }
            .unwrap();
        bench.stream.clone_dtoh(&output).unwrap()
    };
    assert_eq!(run(None), [1, 2]);
    assert_eq!(run(Some(&find(&text, "min.u32", "minmax"))), [40, 40]);
    assert_eq!(run(None), [1, 2]);
}

#[test]
fn what_is_no_mutation_is_refused() {
    let bench = Bench::new();
    let text = kernel(BODY);
    bench.map(&text, &[], 2);
    let wrong = |change: fn(&mut Mutation)| {
        let mut mutation = find(&text, "bar.sync", "barrier");
        change(&mut mutation);
        let _kept = bench.context.load_module(text.as_str().into()).unwrap().load_function("test");
        bench.sim.mutate(Some(&mutation)).unwrap_err()
    };
    assert!(wrong(|it| it.operator = "minmax".into()).contains("no mutation of this text"));
    bench.sim.reset();
    assert!(wrong(|it| it.line += 1000).contains("no mutation of this text"));
    assert!("kernel:line:x".parse::<Mutation>().is_err() && "kernel".parse::<Mutation>().is_err());
}

#[test]
fn a_mask_and_a_lane_of_a_shuffle_and_an_order_of_a_matrix_are_changed() {
    let shuffle = kernel("\tmov.u32 %r2, 16;\n\tshfl.sync.bfly.b32 %r1, %t, %r2, 31, -1;\n");
    let operators = |text: &str, opcode: &str| -> Vec<String> {
        all(text)
            .into_iter()
            .filter(|(name, _)| name == opcode)
            .map(|(_, mutation)| mutation.operator)
            .collect()
    };
    assert_eq!(operators(&shuffle, "shfl.sync.bfly.b32"), ["shuffle", "mask"]);
    // A distance that is 1 more would still reach every lane.
    assert_eq!(operators(&shuffle, "mov.u32"), Vec::<String>::new());
    let copies = kernel("\tcp.async.commit_group;\n\tcp.async.wait_group 1;\n");
    assert_eq!(operators(&copies, "cp.async.commit_group;"), ["commit"]);
    assert_eq!(operators(&copies, "cp.async.wait_group"), ["wait", "wait+"]);
}

#[test]
fn a_constant_that_selects_the_same_bits_is_not_changed() {
    let operators = |code: &str, opcode: &str| -> Vec<String> {
        let text = kernel(&format!("\tshl.b32 %r1, %t, 2;\n\t{code};\n"));
        let here = all(&text).into_iter().filter(|(name, _)| name == opcode);
        here.map(|(_, mutation)| mutation.operator).collect()
    };
    assert_eq!(operators("and.b32 %r2, %r1, 124", "and.b32"), ["logic"]);
    assert_eq!(operators("and.b32 %r2, %r1, 127", "and.b32"), ["logic", "immediate"]);
    assert_eq!(operators("and.b32 %r2, %t, 124", "and.b32"), ["logic", "immediate"]);
    assert_eq!(operators("bfi.b32 %r2, %r1, %t, 5, 27", "bfi.b32"), Vec::<String>::new());
    assert_eq!(operators("bfi.b32 %r2, %r1, %t, 5, 26", "bfi.b32"), ["immediate"]);
}

#[test]
fn lines_that_were_executed_are_known() {
    let bench = Bench::new();
    let text = kernel(
        "\tsetp.eq.u32 %p1, %t, 99;\n\t@!%p1 bra $end;\n\tadd.s32 %r1, %t, 1;\n$end:\n\tmov.u32 %r2, 1;\n",
    );
    bench.sim.reset();
    bench.map(&text, &[], 2);
    let lines = bench.sim.lines();
    let lines: Vec<u64> =
        lines["test"].as_array().unwrap().iter().map(|line| line.as_u64().unwrap()).collect();
    let line = |code: &str| text.lines().position(|line| line.contains(code)).unwrap() as u64 + 1;
    assert!(lines.contains(&line("setp.eq")) && lines.contains(&line("mov.u32 %r2")), "{lines:?}");
    assert!(!lines.contains(&line("add.s32 %r1, %t")), "{lines:?}");
}
