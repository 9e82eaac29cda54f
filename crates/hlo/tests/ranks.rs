//! Modules that several ranks run together.

use samebits_graph::Trace;
use samebits_hlo::{Chip, Options, Target, lint, lower};
use samebits_tensor::{DType, Rank};

#[test]
fn ranks_are_replicas_that_gather() {
    let trace = Trace::new().with_rank(Rank { index: 1, count: 2 });
    let x = trace.input("x", [3, 4], DType::F32).unwrap();
    let all = x.clone().all_gather(1).unwrap();
    assert_eq!(all.dims(), [3, 8]);
    let graph = trace.graph(&[&x], &[("all", &all)]).unwrap();
    assert!(graph.to_string().contains("all_gather %0 axis=1 : f32 [3, 8]"), "{graph}");
    let program = lower(&graph, &Options { ranks: 2, ..Options::neuron("gather") });
    let text = program.module.to_string();
    assert!(text.contains("f32[3,8]") && text.contains("dimensions={1}, replica_groups={{0,1}}"), "{text}");
    let target = Target { chip: Chip::Trn2, cores_per_logical_core: 1 };
    assert!(lint(&program.module, target).is_empty());
}

#[test]
fn alone_nothing_is_gathered() {
    let trace = Trace::new();
    let x = trace.input("x", [3, 4], DType::F32).unwrap();
    let graph = trace.graph(&[&x], &[("all", &x.clone().all_gather(1).unwrap())]).unwrap();
    assert_eq!(graph.nodes().len(), 1);
}

#[test]
fn constants_of_ranks_are_never_shared() {
    let count = |rank| {
        let trace = Trace::new().with_rank(rank);
        let zeros = || samebits_tensor::Tensor::of(&trace, [2], &[0.0f32; 2]).unwrap();
        let sum = zeros().add(&zeros()).unwrap();
        trace.graph(&[], &[("sum", &sum)]).unwrap().constants().len()
    };
    assert_eq!((count(Rank::ALONE), count(Rank { index: 0, count: 2 })), (1, 2));
}
