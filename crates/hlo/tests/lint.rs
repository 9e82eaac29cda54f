//! Each rule of neuronx-cc finds the module that breaks it, and only that; what is lowered here breaks none.

use samebits_graph::{Graph, Trace};
use samebits_hlo::{
    Chip, ExactDot, Options, Rule, Target, lint, lower,
    proto::{
        Computation, DotDimensions, ElementType, GatherDimensions, HloModule, Instruction, Literal,
        ScatterDimensions, Shape,
    },
};
use samebits_tensor::{AttentionBatch, AttentionParams, DType, KvCache, KvShape, Tensor};

fn shape(element: ElementType, dimensions: &[i64]) -> Shape {
    let element_type = element.into();
    Shape { element_type, dimensions: dimensions.to_vec(), ..Shape::default() }
}

fn it(opcode: &str, id: i64, shape: Shape, operands: &[i64]) -> Instruction {
    Instruction {
        name: format!("{opcode}.{id}"),
        opcode: opcode.into(),
        id,
        shape: Some(shape),
        operand_ids: operands.to_vec(),
        ..Instruction::default()
    }
}

fn parameter(id: i64, element: ElementType, dimensions: &[i64]) -> Instruction {
    it("parameter", id, shape(element, dimensions), &[])
}

/// A module whose other computation, of id 1, adds.
fn module(instructions: Vec<Instruction>) -> HloModule {
    let scalar = || shape(ElementType::F32, &[]);
    let add = Computation {
        name: "add".into(),
        id: 1,
        instructions: vec![it("parameter", 1, scalar(), &[]), it("add", 2, scalar(), &[1, 1])],
        ..Computation::default()
    };
    let main = Computation { name: "main".into(), id: 2, instructions, ..Computation::default() };
    HloModule { name: "module".into(), computations: vec![add, main], ..HloModule::default() }
}

fn rules(instructions: Vec<Instruction>, chip: Chip) -> Vec<Rule> {
    let target = Target { chip, cores_per_logical_core: 1 };
    lint(&module(instructions), target).into_iter().map(|refusal| refusal.rule).collect()
}

fn dot(element: ElementType) -> Vec<Instruction> {
    let numbers = DotDimensions { lhs_contracting: vec![1], rhs_contracting: vec![0], ..Default::default() };
    let product = it("dot", 3, shape(element, &[4, 4]), &[1, 2]);
    let operands = [parameter(1, element, &[4, 4]), parameter(2, element, &[4, 4])];
    operands.into_iter().chain([Instruction { dot_dimension_numbers: Some(numbers), ..product }]).collect()
}

#[test]
fn integer_dots() {
    for chip in Chip::ALL {
        assert_eq!(rules(dot(ElementType::S64), chip), [Rule::IntegerDot("s64")], "{chip}");
        assert_eq!(rules(dot(ElementType::Bf16), chip), [], "{chip}");
        let s32 = if chip >= Chip::Trn2 { vec![Rule::IntegerDot("s32")] } else { vec![] };
        assert_eq!(rules(dot(ElementType::S32), chip), s32, "{chip}");
    }
}

#[test]
fn dynamic_shapes() {
    let mut x = parameter(1, ElementType::F32, &[4]);
    x.shape.as_mut().unwrap().is_dynamic_dimension = vec![true];
    assert_eq!(rules(vec![x], Chip::Trn2), [Rule::DynamicShape]);
}

fn collective(opcode: &str, element: ElementType) -> Vec<Instruction> {
    let sum = it(opcode, 2, shape(element, &[4]), &[1]);
    vec![parameter(1, element, &[4]), Instruction { called_computation_ids: vec![1], ..sum }]
}

#[test]
fn integer_collectives() {
    let rule = |opcode, element| rules(collective(opcode, element), Chip::Trn1);
    assert_eq!(rule("all-reduce", ElementType::S32), [Rule::IntegerAllReduce("s32")]);
    assert_eq!(rule("reduce-scatter", ElementType::U64), [Rule::IntegerReduceScatter("u64")]);
    assert_eq!(rule("all-reduce", ElementType::F32), []);
    assert_eq!(rule("all-gather", ElementType::S32), []);
}

fn scatter(element: ElementType, applied: i64, rows: i64, indices: Instruction) -> Vec<Instruction> {
    let scatter = it("scatter", 4, shape(element, &[rows]), &[1, 2, 3]);
    let numbers = ScatterDimensions { scatter_dims_to_operand_dims: vec![0], ..Default::default() };
    let scatter = Instruction {
        scatter_dimension_numbers: Some(numbers),
        called_computation_ids: vec![applied],
        ..scatter
    };
    vec![parameter(1, element, &[rows]), indices, parameter(3, element, &[10]), scatter]
}

#[test]
fn scatters_that_compute() {
    let indices = || parameter(2, ElementType::S32, &[10]);
    let rule = |element, applied| rules(scatter(element, applied, 20, indices()), Chip::Trn3);
    assert_eq!(rule(ElementType::S32, 1), [Rule::IntegerScatter("s32")]);
    assert_eq!(rule(ElementType::S8, 1), [Rule::SmallIntegerScatter("s8")]);
    assert_eq!(rule(ElementType::F32, 1), []);
    // No computation of that id: nothing is computed.
    assert_eq!(rule(ElementType::S8, 9), []);
}

#[test]
fn indices_out_of_range() {
    let iota = |extent| it("iota", 2, shape(ElementType::S32, &[extent]), &[]);
    let iota = |extent| Instruction { dimensions: vec![0], ..iota(extent) };
    let rule = |extent| rules(scatter(ElementType::F32, 9, 3, iota(extent)), Chip::Trn2);
    assert_eq!(rule(10), [Rule::ScatterRange { last: 9, rows: 3 }]);
    assert_eq!(rule(3), []);
    let gather = |extent| {
        let numbers = GatherDimensions { start_index_map: vec![0], ..Default::default() };
        let reshaped = it("reshape", 4, shape(ElementType::S32, &[extent, 1]), &[2]);
        let gather = it("gather", 3, shape(ElementType::F32, &[extent]), &[1, 4]);
        let gather = Instruction { gather_dimension_numbers: Some(numbers), ..gather };
        rules(vec![parameter(1, ElementType::F32, &[5]), iota(extent), reshaped, gather], Chip::Trn2)
    };
    assert_eq!(gather(6), [Rule::GatherRange { last: 5, rows: 5 }]);
    assert_eq!(gather(5), []);
}

#[test]
fn wide_constants() {
    let literal = Literal { s64s: vec![1 << 40], ..Literal::default() };
    let constant = it("constant", 1, shape(ElementType::S64, &[]), &[]);
    let rule = rules(vec![Instruction { literal: Some(literal), ..constant }], Chip::Inf2);
    assert_eq!(rule, [Rule::WideConstant("s64")]);
}

#[test]
fn largest_values() {
    let top = |element, k| {
        let call = it("custom-call", 2, shape(element, &[k]), &[1]);
        let call = Instruction { custom_call_target: "AwsNeuronTopK".into(), ..call };
        rules(vec![parameter(1, element, &[100_000]), call], Chip::Trn2)
    };
    assert_eq!(top(ElementType::S32, 8), [Rule::TopKType("s32")]);
    assert_eq!(top(ElementType::F32, 16_385), [Rule::TopKCount { k: 16_385 }]);
    assert_eq!(top(ElementType::F32, 16_384), []);
    let unknown = it("custom-call", 1, shape(ElementType::F32, &[4]), &[]);
    let unknown = Instruction { custom_call_target: "SomebodysKernel".into(), ..unknown };
    assert_eq!(rules(vec![unknown], Chip::Trn2), [Rule::CustomCall]);
}

#[test]
fn types_and_operations_that_are_missing() {
    let float8 = vec![parameter(1, ElementType::F8e4m3fn, &[4])];
    assert_eq!(rules(float8.clone(), Chip::Trn2), [Rule::Float8]);
    assert_eq!(rules(float8, Chip::Trn3), []);
    let random = it("rng-bit-generator", 1, shape(ElementType::U32, &[4]), &[]);
    assert_eq!(rules(vec![random.clone()], Chip::Trn2), []);
    let random = Instruction { rng_algorithm: 2, ..random };
    assert_eq!(rules(vec![random], Chip::Trn2), [Rule::RandomAlgorithm]);
    for opcode in ["while", "conditional"] {
        let branch = it(opcode, 1, shape(ElementType::F32, &[4]), &[]);
        assert_eq!(rules(vec![branch], Chip::Trn2), [Rule::ControlFlow], "{opcode}");
    }
    let reduce = it("reduce", 1, shape(ElementType::F32, &[4]), &[2, 3, 4, 5]);
    assert_eq!(rules(vec![reduce], Chip::Trn2), [Rule::VariadicReduce(2)]);
}

#[test]
fn programs_that_are_too_large() {
    let huge = parameter(1, ElementType::F32, &[1 << 20, 1 << 30]);
    let sum = it("add", 2, shape(ElementType::F32, &[1 << 20, 1 << 30]), &[1, 1]);
    let found = rules(vec![huge, sum], Chip::Trn2);
    assert!(
        matches!(found[..], [Rule::TooManyInstructions { at_least }] if at_least > 5_000_000),
        "{found:?}"
    );
}

#[test]
fn logical_cores() {
    let empty = module(vec![]);
    let refusals = |chip, cores| lint(&empty, Target { chip, cores_per_logical_core: cores });
    for chip in Chip::ALL {
        assert_eq!(refusals(chip, 1), [], "{chip}");
        let expected = if chip >= Chip::Trn2 { 0 } else { 1 };
        assert_eq!(refusals(chip, 2).len(), expected, "{chip}");
        assert_eq!(refusals(chip, 3).len(), 1, "{chip}");
    }
    let message = refusals(Chip::Trn1, 2)[0].to_string();
    assert_eq!(message, "NCC_EARG001: trn1 has no logical cores of 2; ask for 1 (at module)");
}

fn attention() -> Graph {
    let trace = Trace::new();
    let shape = KvShape { pages: 8, page_size: 16, kv_heads: 2, head_dim: 32 };
    let input = |name: &str, dims: &[usize], dtype| trace.input(name, dims, dtype).unwrap();
    let (k, v) = (input("k", &[3, 2, 32], DType::F32), input("v", &[3, 2, 32], DType::F32));
    let (q, slots) = (input("q", &[3, 4, 32], DType::F32), input("slots", &[3], DType::I32));
    let (cache_k, cache_v) =
        (input("cache.k", &[256, 32], DType::I8), input("cache.v", &[256, 32], DType::I8));
    let scales =
        [input("cache.k_scale", &[256, 1], DType::F32), input("cache.v_scale", &[256, 1], DType::F32)];
    let [k_scale, v_scale] = scales.clone();
    let mut cache = KvCache { shape, k: cache_k.clone(), k_scale, v: cache_v.clone(), v_scale };
    cache.store(&k, &v, &slots).unwrap();
    let batch = AttentionBatch {
        positions: input("positions", &[3], DType::I32),
        sequences: input("sequences", &[3], DType::I32),
        block_tables: input("block_tables", &[1, 8], DType::I32),
        max_context: 128,
    };
    let params = AttentionParams { scale: 0.18, window: Some(64), soft_cap: Some(30.0) };
    let out = q.attention(&cache, &batch, &params).unwrap();
    let inputs: [&Tensor<Trace>; 11] = [
        &k,
        &v,
        &q,
        &slots,
        &cache_k,
        &scales[0],
        &cache_v,
        &scales[1],
        &batch.positions,
        &batch.sequences,
        &batch.block_tables,
    ];
    let outputs =
        [("out", &out), ("k'", &cache.k), ("ks'", &cache.k_scale), ("v'", &cache.v), ("vs'", &cache.v_scale)];
    trace.graph(&inputs, &outputs).unwrap()
}

#[test]
fn what_is_lowered_breaks_no_rule() {
    let graph = attention();
    let program = lower(&graph, &Options::neuron("attention"));
    for chip in Chip::ALL {
        let target = Target { chip, cores_per_logical_core: 1 };
        assert_eq!(lint(&program.module, target), [], "{chip}");
    }
    let integers = Options { exact_dot: ExactDot::Integer, ..Options::neuron("attention") };
    let refusals =
        lint(&lower(&graph, &integers).module, Target { chip: Chip::Trn2, cores_per_logical_core: 1 });
    assert!(refusals.iter().any(|refusal| refusal.rule == Rule::IntegerDot("s32")));
}

#[test]
fn caches_share_the_memory_of_their_parameters() {
    let program = lower(&attention(), &Options::neuron("attention"));
    let aliases = program.module.input_output_alias.as_ref().expect("aliases");
    let pairs: Vec<_> =
        aliases.entries.iter().map(|it| (it.output_shape_index[0], it.parameter_number)).collect();
    assert_eq!(pairs, [(1, 4), (2, 5), (3, 6), (4, 7)]);
    let named = program.parameters.iter().filter(|it| it.name.ends_with(".must_alias_input"));
    assert_eq!(named.map(|it| it.name.as_str()).next(), Some("cache.k.must_alias_input"));
    let text = program.module.to_string();
    assert!(text.contains("input_output_alias={ {1}: (4, {}, must-alias)"), "{}", &text[..300]);
}
