//! What a recording keeps, how it reads, and that running it is the same as not recording it.

use samebits_conformance::{Rng, compare};
use samebits_cpu::Host;
use samebits_graph::{Graph, GraphError, Op, Trace};
use samebits_tensor::{
    Backend, BinaryOp, CompareOp, DType, Format, HostWeight, KvCache, KvShape, Result, Tensor, UnaryOp,
    Weight, testing::random_blocks,
};

fn weight(format: Format, rows: usize, cols: usize) -> HostWeight {
    let bytes = random_blocks(format, rows, cols, 7).into();
    HostWeight { name: "proj.weight".into(), format, shape: vec![rows, cols], bytes }
}

fn ops(graph: &Graph, name: &str) -> usize {
    graph.nodes().iter().filter(|node| node.op.name() == name).count()
}

#[test]
fn the_dump_names_ops_shapes_scopes_and_weights() -> Result<(), GraphError> {
    let trace = Trace::new();
    let x = trace.input("x", [2, 32], DType::F32)?;
    let proj = Weight::pack(&trace, &weight(Format::Q4_1, 3, 32))?;
    let y = x.linear(&proj)?.unary(UnaryOp::Neg)?;
    let graph = trace.graph(&[&x], &[("y", &y)])?;
    insta::assert_snapshot!("dump", graph);
    insta::assert_snapshot!("summary", graph.summary());
    Ok(())
}

#[test]
fn equal_nodes_and_equal_constants_are_recorded_once() -> Result<(), GraphError> {
    let trace = Trace::new();
    let x = trace.input("x", [4], DType::F32)?;
    let one = Tensor::of(&trace, [4], &[1.0f32; 4])?;
    let also_one = Tensor::of(&trace, [4], &[1.0f32; 4])?;
    let y = x.add(&one)?.mul(&x.add(&also_one)?)?;
    let graph = trace.graph(&[&x], &[("y", &y)])?;
    assert_eq!((ops(&graph, "constant"), ops(&graph, "add"), ops(&graph, "mul")), (1, 1, 1));
    Ok(())
}

#[test]
fn zeros_of_either_sign_are_not_the_same_node() -> Result<(), GraphError> {
    let trace = Trace::new();
    let zero = Tensor::full(&trace, [1], 0.0)?;
    let minus_zero = Tensor::full(&trace, [1], -0.0)?;
    let graph = trace.graph(&[], &[("zero", &zero), ("minus zero", &minus_zero)])?;
    let results = graph.run(&Host, vec![])?;
    assert_eq!(results[0].to_vec::<f32>()?[0].to_bits(), 0);
    assert_eq!(results[1].to_vec::<f32>()?[0].to_bits(), 1 << 31);
    Ok(())
}

#[test]
fn what_no_output_needs_is_left_out_but_inputs_stay() -> Result<(), GraphError> {
    let trace = Trace::new();
    let x = trace.input("x", [4], DType::F32)?;
    let unused = trace.input("unused", [9], DType::I32)?;
    x.unary(UnaryOp::Sqrt)?;
    let y = x.unary(UnaryOp::Neg)?;
    let graph = trace.graph(&[&x, &unused], &[("y", &y)])?;
    assert_eq!(graph.nodes().len(), 3);
    assert_eq!(graph.inputs().iter().map(|input| input.name.as_str()).collect::<Vec<_>>(), ["x", "unused"]);
    Ok(())
}

#[test]
fn one_trace_gives_many_graphs_over_the_same_weights() -> Result<(), GraphError> {
    let trace = Trace::new();
    let host = weight(Format::Q8_0, 5, 64);
    let proj = Weight::pack(&trace, &host)?;
    let direct = Weight::pack(&Host, &host)?;
    for m in [1, 4] {
        let x = trace.input("x", [m, 64], DType::F32)?;
        let graph = trace.graph(&[&x], &[("y", &x.linear(&proj)?)])?;
        assert_eq!(graph.inputs().len(), 1);
        let x = Tensor::of(&Host, [m, 64], &Rng::named("buckets").bells(m * 64))?;
        let found = graph.run(&Host, vec![x.clone()])?[0].download()?;
        assert_eq!(compare(&[x.linear(&direct)?.download()?], &[found], false), None);
    }
    Ok(())
}

#[test]
fn a_cache_that_is_stored_into_donates_its_inputs() -> Result<(), GraphError> {
    let trace = Trace::new();
    let shape = KvShape { pages: 2, page_size: 16, kv_heads: 1, head_dim: 32 };
    let input = |name, cols, dtype| trace.input(name, [shape.rows(), cols], dtype);
    let before = KvCache {
        shape,
        k: input("k", 32, DType::I8)?,
        k_scale: input("k_scale", 1, DType::F32)?,
        v: input("v", 32, DType::I8)?,
        v_scale: input("v_scale", 1, DType::F32)?,
    };
    let new = trace.input("new", [1, 1, 32], DType::F32)?;
    let slots = trace.input("slots", [1], DType::I32)?;
    let mut after = before.clone();
    after.store(&new, &new, &slots)?;
    let inputs = [&before.k, &before.k_scale, &before.v, &before.v_scale, &new, &slots];
    let outputs = [("k", &after.k), ("v", &after.v), ("copy of k", &after.k), ("kept", &before.v)];
    let graph = trace.graph(&inputs, &outputs)?;
    let donations: Vec<Option<usize>> = graph.outputs().iter().map(|output| output.donates).collect();
    assert_eq!(donations, [Some(0), Some(2), None, None]);
    Ok(())
}

#[test]
fn a_value_used_after_a_scatter_into_it_keeps_its_elements() -> Result<(), GraphError> {
    let trace = Trace::new();
    let x = trace.input("x", [3], DType::I32)?;
    let index = Tensor::of(&trace, [1], &[1])?;
    let row = Tensor::of(&trace, [1], &[70])?;
    let mut scattered = x.clone();
    scattered.scatter(&index, &row)?;
    let sum = scattered.add(&x)?;
    let graph = trace.graph(&[&x], &[("scattered", &scattered), ("sum", &sum)])?;
    let results = graph.run(&Host, vec![Tensor::of(&Host, [3], &[1, 2, 3])?])?;
    assert_eq!(results[0].to_vec::<i32>()?, [1, 70, 3]);
    assert_eq!(results[1].to_vec::<i32>()?, [2, 72, 6]);
    Ok(())
}

#[test]
fn a_scatter_into_a_value_that_dies_is_in_place() -> Result<(), GraphError> {
    let trace = Trace::new();
    let x = trace.input("x", [1000], DType::F32)?;
    let mut scattered = x.clone();
    scattered.scatter(&Tensor::of(&trace, [1], &[3])?, &Tensor::of(&trace, [1], &[5.0f32])?)?;
    let graph = trace.graph(&[&x], &[("x", &scattered)])?;
    let x = Tensor::of(&Host, [1000], &[1.0f32; 1000])?;
    let before = x.data().f32("test")?.as_ptr();
    let results = graph.run(&Host, vec![x])?;
    assert_eq!(results[0].data().f32("test")?.as_ptr(), before);
    assert_eq!(results[0].to_vec::<f32>()?[2..5], [1.0, 5.0, 1.0]);
    Ok(())
}

#[test]
fn mistakes_are_errors_that_name_the_input() -> Result<(), GraphError> {
    let trace = Trace::new();
    let x = trace.input("x", [2], DType::F32)?;
    let y = trace.input("y", [2], DType::F32)?;
    let sum = x.add(&y)?;
    let message = |result: Result<Graph, GraphError>| result.expect_err("a mistake").to_string();
    assert!(message(trace.graph(&[&x], &[("sum", &sum)])).contains("the input y"));
    assert!(message(trace.graph(&[&sum], &[("sum", &sum)])).contains("input 0"));
    assert!(message(trace.graph(&[&x, &y], &[("a", &sum), ("a", &x)])).contains("name a"));
    let graph = trace.graph(&[&x, &y], &[("sum", &sum)])?;
    let short = Tensor::of(&Host, [1], &[1.0f32])?;
    let run = |inputs| graph.run(&Host, inputs).err().expect("a mistake").to_string();
    assert!(run(vec![short.clone()]).contains("takes 2 inputs, 1"));
    assert!(run(vec![short.clone(), short]).contains("input x: expected f32 [2], found f32 [1]"));
    assert!(sum.download().is_err());
    Ok(())
}

/// Random programs over a pool of `[4, 6]` tensors, run directly and from their recording.
#[test]
fn random_programs_have_the_same_bits_recorded() -> Result<(), GraphError> {
    for seed in 0..200 {
        let name = format!("program {seed}");
        let mut rng = Rng::named(&name);
        let host: Vec<_> =
            (0..3).map(|_| Tensor::of(&Host, [4, 6], &rng.bells(24))).collect::<Result<_>>()?;
        let expected = program(&mut rng.clone(), &Host, host.clone())?;
        let trace = Trace::new();
        let inputs = ["a", "b", "c"].map(|name| trace.input(name, [4, 6], DType::F32));
        let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
        let outputs = program(&mut rng, &trace, inputs.clone())?;
        let names: Vec<String> = (0..outputs.len()).map(|i| i.to_string()).collect();
        let outputs: Vec<_> = names.iter().map(String::as_str).zip(&outputs).collect();
        let graph = trace.graph(&inputs.iter().collect::<Vec<_>>(), &outputs)?;
        let found = graph.run(&Host, host)?;
        let download = |xs: &[Tensor<Host>]| xs.iter().map(Tensor::download).collect::<Result<Vec<_>>>();
        assert_eq!(compare(&download(&expected)?, &download(&found)?, false), None, "{name}\n{graph}");
        assert!(
            graph.nodes().iter().all(|node| !matches!(node.op, Op::Concat(_)) || node.operands.len() > 1)
        );
    }
    Ok(())
}

fn program<B: Backend>(rng: &mut Rng, backend: &B, mut pool: Vec<Tensor<B>>) -> Result<Vec<Tensor<B>>> {
    for _ in 0..30 {
        let a = pool[rng.below(pool.len())].clone();
        let b = pool[rng.below(pool.len())].clone();
        let next = match rng.below(10) {
            0 => a.add(&b)?,
            1 => a.mul(&b)?,
            2 => a.max(&b)?,
            3 => a.unary(UnaryOp::RoundEven)?,
            4 => a.compare(CompareOp::Le, &b)?.select(&a, &b)?,
            5 => a.permute(&[1, 0])?.reshape([4, 6])?,
            6 => Tensor::concat(&[&a.narrow(0, 1..3)?, &b.narrow(0, 0..2)?], 0)?,
            7 => a.max_last()?.repeat(1, 6)?,
            8 => a.cast(DType::I32)?.scalar(BinaryOp::And, 255)?.cast(DType::F32)?,
            _ => {
                let row = rng.below(4);
                let mut scattered = a.clone();
                let index = Tensor::of(backend, [1], &[row as i32])?;
                scattered.scatter(&index, &b.narrow(0, row..row + 1)?)?;
                scattered
            }
        };
        pool.push(next);
    }
    Ok(pool.split_off(pool.len() - 4))
}
