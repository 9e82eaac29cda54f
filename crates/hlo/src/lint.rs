//! What neuronx-cc refuses, found before it is started: it takes minutes to say so.
//!
//! The rules are those of the Neuron SDK's list of compiler errors (AWS Neuron documentation, "Neuron Compiler Error Codes",
//! SDK 2.28 to 2.33), each under its code.

use std::{collections::HashMap, fmt};

use crate::proto::{Computation, ElementType, HloModule, Instruction, Shape};

/// A chip of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chip {
    /// Inferentia 2.
    Inf2,
    /// Trainium 1.
    Trn1,
    /// Trainium 2.
    Trn2,
    /// Trainium 3.
    Trn3,
}

impl Chip {
    /// As the compiler's `--target` has it.
    pub fn name(self) -> &'static str {
        match self {
            Chip::Inf2 => "inf2",
            Chip::Trn1 => "trn1",
            Chip::Trn2 => "trn2",
            Chip::Trn3 => "trn3",
        }
    }

    /// Every chip.
    pub const ALL: [Chip; 4] = [Chip::Inf2, Chip::Trn1, Chip::Trn2, Chip::Trn3];
}

impl fmt::Display for Chip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The chip.
    pub chip: Chip,
    /// Physical cores that act as one: 1 or 2.
    pub cores_per_logical_core: u32,
}

/// Why neuronx-cc would refuse a module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {rule} (at {instruction})", code = .rule.code())]
pub struct Refusal {
    /// The instruction, or the module.
    pub instruction: String,
    /// The rule that it breaks.
    pub rule: Rule,
}

/// A rule of neuronx-cc. The message says how to keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// Two physical cores as one, where the chip cannot.
    #[error("{chip} has no logical cores of {cores}; ask for 1")]
    LogicalCores {
        /// The chip.
        chip: Chip,
        /// What was asked for.
        cores: u32,
    },
    /// An extent that is not known.
    #[error("a dynamic dimension; record one graph for each bucket of shapes")]
    DynamicShape,
    /// A dot of integers.
    #[error("a dot of {0} operands; convert them to bf16 and the result back, exact below 2^24")]
    IntegerDot(&'static str),
    /// A sum of integers across devices.
    #[error("an all-reduce of {0}; convert to f32 first")]
    IntegerAllReduce(&'static str),
    /// A sum of integers across devices, in parts.
    #[error("a reduce-scatter of {0}; convert to f32 first")]
    IntegerReduceScatter(&'static str),
    /// A scatter of wide integers that computes.
    #[error("a scatter that computes on {0}; replace rows instead, or convert to f32")]
    IntegerScatter(&'static str),
    /// A scatter of small integers or masks that computes.
    #[error("a scatter that reduces {0}; replace rows instead, or convert to f32")]
    SmallIntegerScatter(&'static str),
    /// A constant that 32 bits cannot hold.
    #[error("a constant of {0}; use 32 bits")]
    WideConstant(&'static str),
    /// Indices that leave the operand, as an iota shows.
    #[error("a gather with indices up to {last} from {rows} rows; keep them below the number of rows")]
    GatherRange {
        /// Largest index.
        last: i64,
        /// Rows of the operand.
        rows: i64,
    },
    /// The same, of a scatter.
    #[error("a scatter with indices up to {last} into {rows} rows; keep them below the number of rows")]
    ScatterRange {
        /// Largest index.
        last: i64,
        /// Rows of the operand.
        rows: i64,
    },
    /// The largest values of something else than floats.
    #[error("the largest values of {0}; convert to f32 first")]
    TopKType(&'static str),
    /// Too many of the largest values.
    #[error("the {k} largest values; at most 16384 can be had")]
    TopKCount {
        /// How many.
        k: i64,
    },
    /// A type of 8 bits that came with Trainium 3.
    #[error("f8e4m3fn, which trn3 is the first to have; use bf16")]
    Float8,
    /// A generator of random numbers that is named.
    #[error("random numbers by an algorithm of a name; take the default, or draw them on the host")]
    RandomAlgorithm,
    /// More machine instructions than a program may have.
    #[error("at least {at_least} machine instructions, of 5000000; split the model over layers or devices")]
    TooManyInstructions {
        /// A lower bound.
        at_least: i64,
    },
    /// A branch, or a loop of unknown length.
    #[error("control flow; unroll it when the graph is recorded")]
    ControlFlow,
    /// A reduction of several operands at once.
    #[error("a reduction of {0} operands at once; reduce each by itself")]
    VariadicReduce(usize),
    /// A custom call that the compiler does not know.
    #[error("a custom call that the compiler does not know; write it with primitives")]
    CustomCall,
}

impl Rule {
    /// The compiler's code for it; `HLO` where its documentation gives none.
    pub fn code(&self) -> &'static str {
        match self {
            Rule::LogicalCores { .. } => "NCC_EARG001",
            Rule::DynamicShape => "NCC_EMOD025",
            Rule::IntegerDot(_) => "NCC_EVRF035",
            Rule::IntegerAllReduce(_) => "NCC_EVRF061",
            Rule::IntegerReduceScatter(_) => "NCC_EVRF063",
            Rule::IntegerScatter(_) => "NCC_EVRF060",
            Rule::SmallIntegerScatter(_) => "NCC_EVRF016",
            Rule::WideConstant(_) => "NCC_ESFH002",
            Rule::GatherRange { .. } => "NCC_EVRF056",
            Rule::ScatterRange { .. } => "NCC_EVRF031",
            Rule::TopKType(_) => "NCC_EVRF013",
            Rule::TopKCount { .. } => "NCC_EVRF014",
            Rule::Float8 => "NCC_EVRF051",
            Rule::RandomAlgorithm => "NCC_EVRF006",
            Rule::TooManyInstructions { .. } => "NCC_EBVF030",
            Rule::CustomCall => "NCC_EHCA005",
            Rule::ControlFlow | Rule::VariadicReduce(_) => "HLO",
        }
    }
}

/// Everything that neuronx-cc would refuse in a module; nothing of a module that it should take.
pub fn lint(module: &HloModule, target: Target) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse = |instruction: &str, rule| {
        refusals.push(Refusal { instruction: instruction.into(), rule });
    };
    let (chip, cores) = (target.chip, target.cores_per_logical_core);
    if cores != 1 && !(cores == 2 && chip >= Chip::Trn2) {
        refuse(&module.name, Rule::LogicalCores { chip, cores });
    }
    let mut machine_instructions = 0;
    for computation in &module.computations {
        let scope = Scope::new(module, computation);
        for it in &computation.instructions {
            RULES.iter().filter_map(|rule| rule(it, &scope, chip)).for_each(|rule| refuse(&it.name, rule));
            machine_instructions += least_machine_instructions(it, &scope);
        }
    }
    if machine_instructions > MACHINE_INSTRUCTIONS {
        refuse(&module.name, Rule::TooManyInstructions { at_least: machine_instructions });
    }
    refusals
}

/// Most machine instructions of a program.
const MACHINE_INSTRUCTIONS: i64 = 5_000_000;

type Check = fn(&Instruction, &Scope<'_>, Chip) -> Option<Rule>;

const RULES: [Check; 11] = [
    dynamic_shape,
    integer_dot,
    integer_collective,
    computing_scatter,
    wide_constant,
    index_range,
    top_k,
    float8,
    random,
    control_flow,
    variadic_reduce,
];

/// The computation that an instruction is in, and those that it may apply.
struct Scope<'a> {
    by_id: HashMap<i64, &'a Instruction>,
    computations: HashMap<i64, &'a Computation>,
}

impl<'a> Scope<'a> {
    fn new(module: &'a HloModule, computation: &'a Computation) -> Self {
        Scope {
            by_id: computation.instructions.iter().map(|it| (it.id, it)).collect(),
            computations: module.computations.iter().map(|it| (it.id, it)).collect(),
        }
    }

    fn operand(&self, it: &Instruction, index: usize) -> Option<&'a Instruction> {
        self.by_id.get(it.operand_ids.get(index)?).copied()
    }

    fn operand_shape(&self, it: &Instruction, index: usize) -> Option<&'a Shape> {
        self.operand(it, index)?.shape.as_ref()
    }

    /// Whether the function that `it` applies does more than return an operand.
    fn computes(&self, it: &Instruction) -> bool {
        let applied = it.called_computation_ids.first().and_then(|id| self.computations.get(id));
        applied.is_some_and(|applied| applied.instructions.iter().any(|it| it.opcode != "parameter"))
    }

    /// The largest value of an iota behind moves of shape.
    fn largest_iota(&self, it: &Instruction) -> Option<i64> {
        let mut it = it;
        while matches!(it.opcode.as_str(), "reshape" | "broadcast" | "transpose" | "copy") {
            it = self.operand(it, 0)?;
        }
        let axis = usize::try_from(*it.dimensions.first()?).ok()?;
        (it.opcode == "iota").then_some(it.shape.as_ref()?.dimensions.get(axis)? - 1)
    }
}

fn is_integer(element: ElementType) -> bool {
    is_wide(element)
        || matches!(
            element,
            ElementType::Pred | ElementType::S8 | ElementType::U8 | ElementType::S16 | ElementType::U16
        )
}

/// An integer that f32 cannot hold.
fn is_wide(element: ElementType) -> bool {
    is_64_bit(element) || matches!(element, ElementType::S32 | ElementType::U32)
}

fn is_64_bit(element: ElementType) -> bool {
    matches!(element, ElementType::S64 | ElementType::U64)
}

fn shapes(shape: &Shape) -> Vec<&Shape> {
    if shape.tuple_shapes.is_empty() {
        vec![shape]
    } else {
        shape.tuple_shapes.iter().flat_map(shapes).collect()
    }
}

fn dynamic_shape(it: &Instruction, _: &Scope<'_>, _: Chip) -> Option<Rule> {
    let dynamic = |shape: &&Shape| shape.is_dynamic_dimension.contains(&true);
    let found = shapes(it.shape.as_ref()?).iter().any(dynamic) || it.opcode == "set-dimension-size";
    found.then_some(Rule::DynamicShape)
}

fn integer_dot(it: &Instruction, scope: &Scope<'_>, chip: Chip) -> Option<Rule> {
    let refused = |element| is_64_bit(element) || (is_wide(element) && chip >= Chip::Trn2);
    let elements = (0..2).filter_map(|index| Some(scope.operand_shape(it, index)?.element_type()));
    let found = elements.filter(|_| it.opcode == "dot").find(|&element| refused(element))?;
    Some(Rule::IntegerDot(found.name()))
}

fn integer_collective(it: &Instruction, scope: &Scope<'_>, _: Chip) -> Option<Rule> {
    let element = scope.operand_shape(it, 0)?.element_type();
    match it.opcode.as_str() {
        "all-reduce" if is_wide(element) => Some(Rule::IntegerAllReduce(element.name())),
        "reduce-scatter" if is_wide(element) => Some(Rule::IntegerReduceScatter(element.name())),
        _ => None,
    }
}

fn computing_scatter(it: &Instruction, scope: &Scope<'_>, _: Chip) -> Option<Rule> {
    let element = it.shape.as_ref()?.element_type();
    if it.opcode != "scatter" || !is_integer(element) || !scope.computes(it) {
        return None;
    }
    let rule = if is_wide(element) { Rule::IntegerScatter } else { Rule::SmallIntegerScatter };
    Some(rule(element.name()))
}

fn wide_constant(it: &Instruction, _: &Scope<'_>, _: Chip) -> Option<Rule> {
    let element = it.shape.as_ref()?.element_type();
    let wide = is_64_bit(element) || element == ElementType::F64;
    (it.opcode == "constant" && wide).then_some(Rule::WideConstant(element.name()))
}

fn index_range(it: &Instruction, scope: &Scope<'_>, _: Chip) -> Option<Rule> {
    let map = match it.opcode.as_str() {
        "gather" => &it.gather_dimension_numbers.as_ref()?.start_index_map,
        "scatter" => &it.scatter_dimension_numbers.as_ref()?.scatter_dims_to_operand_dims,
        _ => return None,
    };
    let axis = usize::try_from(*map.first()?).ok()?;
    let rows = *scope.operand_shape(it, 0)?.dimensions.get(axis)?;
    let last = scope.largest_iota(scope.operand(it, 1)?).filter(|&last| last >= rows)?;
    Some(if it.opcode == "gather" {
        Rule::GatherRange { last, rows }
    } else {
        Rule::ScatterRange { last, rows }
    })
}

/// Custom calls that the compiler knows.
const CUSTOM_CALLS: [&str; 7] = [
    "AwsNeuronCustomNativeKernel",
    "AwsNeuronRmsNorm",
    "AwsNeuronSilu",
    "AwsNeuronSoftmax",
    "AwsNeuronTopK",
    "Sharding",
    "TopK",
];

fn top_k(it: &Instruction, scope: &Scope<'_>, _: Chip) -> Option<Rule> {
    let is_custom = it.opcode == "custom-call";
    if is_custom && !CUSTOM_CALLS.contains(&it.custom_call_target.as_str()) {
        return Some(Rule::CustomCall);
    }
    if !(it.opcode == "topk" || is_custom && it.custom_call_target.ends_with("TopK")) {
        return None;
    }
    let element = scope.operand_shape(it, 0)?.element_type();
    if is_integer(element) {
        return Some(Rule::TopKType(element.name()));
    }
    let k = *shapes(it.shape.as_ref()?).first()?.dimensions.last()?;
    (k > 16_384).then_some(Rule::TopKCount { k })
}

fn float8(it: &Instruction, _: &Scope<'_>, chip: Chip) -> Option<Rule> {
    let found = shapes(it.shape.as_ref()?).iter().any(|shape| shape.element_type() == ElementType::F8e4m3fn);
    (found && chip < Chip::Trn3).then_some(Rule::Float8)
}

fn random(it: &Instruction, _: &Scope<'_>, _: Chip) -> Option<Rule> {
    (it.opcode == "rng-bit-generator" && it.rng_algorithm != 0).then_some(Rule::RandomAlgorithm)
}

fn control_flow(it: &Instruction, _: &Scope<'_>, _: Chip) -> Option<Rule> {
    matches!(it.opcode.as_str(), "conditional" | "while").then_some(Rule::ControlFlow)
}

fn variadic_reduce(it: &Instruction, _: &Scope<'_>, _: Chip) -> Option<Rule> {
    let operands = it.operand_ids.len();
    let reduces = matches!(it.opcode.as_str(), "reduce" | "reduce-window");
    (reduces && operands > 2).then_some(Rule::VariadicReduce(operands / 2))
}

/// A lower bound: an engine's instruction takes at most 128 partitions of 48 Ki elements, which is all of the memory beside
/// it, and one of the matrix engine at most 128 by 128 by 512 products.
fn least_machine_instructions(it: &Instruction, scope: &Scope<'_>) -> i64 {
    let Some(shape) = &it.shape else { return 0 };
    let elements = shape.dimensions.iter().fold(1i64, |all, &extent| all.saturating_mul(extent));
    match it.opcode.as_str() {
        "parameter" | "constant" | "tuple" | "reshape" | "bitcast-convert" => 0,
        "dot" => {
            let axis = it.dot_dimension_numbers.as_ref().and_then(|dims| dims.lhs_contracting.first());
            let axis = axis.and_then(|&axis| usize::try_from(axis).ok()).unwrap_or(0);
            let lhs = scope.operand_shape(it, 0);
            let depth = lhs.and_then(|lhs| lhs.dimensions.get(axis).copied()).unwrap_or(1);
            elements.saturating_mul(depth) / (128 * 128 * 512)
        }
        _ => elements / (128 * 48 * 1024),
    }
}
