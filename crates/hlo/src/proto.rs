//! The messages of an HLO module that are written and checked here, with the field numbers of OpenXLA's `hlo.proto` and
//! `xla_data.proto`.
//!
//! Fields of other numbers are dropped when a module is read.

use std::collections::BTreeMap;

use prost::{Enumeration, Message};

/// A module: `HloModuleProto`.
#[derive(Clone, PartialEq, Message)]
pub struct HloModule {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Name of the computation that is run.
    #[prost(string, tag = "2")]
    pub entry_computation_name: String,
    /// All computations; called ones before their callers.
    #[prost(message, repeated, tag = "3")]
    pub computations: Vec<Computation>,
    /// What the entry takes and returns.
    #[prost(message, optional, tag = "4")]
    pub host_program_shape: Option<ProgramShape>,
    /// Id of the computation that is run.
    #[prost(int64, tag = "6")]
    pub entry_computation_id: i64,
    /// Outputs that take over the memory of a parameter.
    #[prost(message, optional, tag = "8")]
    pub input_output_alias: Option<InputOutputAlias>,
}

/// A function: `HloComputationProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Computation {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Operands come before the instructions that use them.
    #[prost(message, repeated, tag = "2")]
    pub instructions: Vec<Instruction>,
    /// What it takes and returns.
    #[prost(message, optional, tag = "4")]
    pub program_shape: Option<ProgramShape>,
    /// Unique in the module.
    #[prost(int64, tag = "5")]
    pub id: i64,
    /// Id of the instruction whose value is returned.
    #[prost(int64, tag = "6")]
    pub root_id: i64,
}

/// One operation: `HloInstructionProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Instruction {
    /// Unique in the computation.
    #[prost(string, tag = "1")]
    pub name: String,
    /// As in HLO text: `add`, `round-nearest-even`.
    #[prost(string, tag = "2")]
    pub opcode: String,
    /// Of its result.
    #[prost(message, optional, tag = "3")]
    pub shape: Option<Shape>,
    /// Where it comes from.
    #[prost(message, optional, tag = "7")]
    pub metadata: Option<Metadata>,
    /// Of `constant`.
    #[prost(message, optional, tag = "8")]
    pub literal: Option<Literal>,
    /// Of `parameter`.
    #[prost(int64, tag = "9")]
    pub parameter_number: i64,
    /// Of `all-gather`, `broadcast`, `concatenate`, `iota`, `reduce`, `transpose`.
    #[prost(int64, repeated, tag = "14")]
    pub dimensions: Vec<i64>,
    /// Of `slice`.
    #[prost(message, repeated, tag = "17")]
    pub slice_dimensions: Vec<SliceDimensions>,
    /// Of a collective operation across partitions.
    #[prost(int64, tag = "26")]
    pub channel_id: i64,
    /// Of `custom-call`.
    #[prost(string, tag = "28")]
    pub custom_call_target: String,
    /// Of `dot`.
    #[prost(message, optional, tag = "30")]
    pub dot_dimension_numbers: Option<DotDimensions>,
    /// Of `gather`.
    #[prost(message, optional, tag = "33")]
    pub gather_dimension_numbers: Option<GatherDimensions>,
    /// Of `gather`.
    #[prost(int64, repeated, tag = "34")]
    pub gather_slice_sizes: Vec<i64>,
    /// Unique in the module.
    #[prost(int64, tag = "35")]
    pub id: i64,
    /// Ids of its operands.
    #[prost(int64, repeated, tag = "36")]
    pub operand_ids: Vec<i64>,
    /// Ids of the functions it applies.
    #[prost(int64, repeated, tag = "38")]
    pub called_computation_ids: Vec<i64>,
    /// Of `scatter`.
    #[prost(message, optional, tag = "48")]
    pub scatter_dimension_numbers: Option<ScatterDimensions>,
    /// Of a collective operation.
    #[prost(message, repeated, tag = "49")]
    pub replica_groups: Vec<ReplicaGroup>,
    /// Of `compare`: `LT`, `LE`, `EQ`.
    #[prost(string, tag = "63")]
    pub comparison_direction: String,
    /// Names of tensors for the Neuron runtime.
    #[prost(message, optional, tag = "68")]
    pub frontend_attributes: Option<FrontendAttributes>,
    /// Of `rng-bit-generator`; 0 is the default of the device.
    #[prost(int32, tag = "70")]
    pub rng_algorithm: i32,
    /// Of `compare`: `FLOAT`, `SIGNED`.
    #[prost(string, tag = "72")]
    pub comparison_type: String,
}

/// Shape of a value, or of a tuple of values: `ShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    /// Type of the elements, or that of tuples.
    #[prost(enumeration = "ElementType", tag = "2")]
    pub element_type: i32,
    /// Extents, outermost first.
    #[prost(int64, repeated, tag = "3")]
    pub dimensions: Vec<i64>,
    /// Shapes of a tuple's values.
    #[prost(message, repeated, tag = "4")]
    pub tuple_shapes: Vec<Shape>,
    /// Order of the axes in memory.
    #[prost(message, optional, tag = "5")]
    pub layout: Option<Layout>,
    /// Axes whose extent is known at run time only.
    #[prost(bool, repeated, tag = "6")]
    pub is_dynamic_dimension: Vec<bool>,
}

/// Order of axes in memory: `LayoutProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Layout {
    /// Axes from the fastest to the slowest.
    #[prost(int64, repeated, tag = "1")]
    pub minor_to_major: Vec<i64>,
}

/// Types of elements: `PrimitiveType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum ElementType {
    /// None.
    Invalid = 0,
    /// A byte, 0 or 1.
    Pred = 1,
    /// Signed byte.
    S8 = 2,
    /// Signed, 16 bits.
    S16 = 3,
    /// Signed, 32 bits.
    S32 = 4,
    /// Signed, 64 bits.
    S64 = 5,
    /// Unsigned byte.
    U8 = 6,
    /// Unsigned, 16 bits.
    U16 = 7,
    /// Unsigned, 32 bits.
    U32 = 8,
    /// Unsigned, 64 bits.
    U64 = 9,
    /// binary16.
    F16 = 10,
    /// binary32.
    F32 = 11,
    /// binary64.
    F64 = 12,
    /// Several values.
    Tuple = 13,
    /// bfloat16.
    Bf16 = 16,
    /// 8 bits, 5 of them an exponent.
    F8e5m2 = 19,
    /// 8 bits, 4 of them an exponent, without infinities.
    F8e4m3fn = 20,
}

/// Parameters and result of a computation: `ProgramShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct ProgramShape {
    /// Shapes of the parameters.
    #[prost(message, repeated, tag = "1")]
    pub parameters: Vec<Shape>,
    /// Shape of the result.
    #[prost(message, optional, tag = "2")]
    pub result: Option<Shape>,
    /// Names of the parameters.
    #[prost(string, repeated, tag = "3")]
    pub parameter_names: Vec<String>,
}

/// A value that is known: `LiteralProto`.
#[derive(Clone, PartialEq, Message)]
pub struct Literal {
    /// Its shape.
    #[prost(message, optional, tag = "1")]
    pub shape: Option<Shape>,
    /// Elements of `pred`.
    #[prost(bool, repeated, tag = "2")]
    pub preds: Vec<bool>,
    /// Elements of `s32`.
    #[prost(int32, repeated, tag = "4")]
    pub s32s: Vec<i32>,
    /// Elements of `s64`.
    #[prost(int64, repeated, tag = "5")]
    pub s64s: Vec<i64>,
    /// Elements of `f32`.
    #[prost(float, repeated, tag = "8")]
    pub f32s: Vec<f32>,
    /// Elements of `s8`.
    #[prost(bytes = "vec", tag = "15")]
    pub s8s: Vec<u8>,
}

/// Where an instruction comes from: `OpMetadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// The primitive.
    #[prost(string, tag = "1")]
    pub op_type: String,
    /// The fused operation: `linear(blk.0.attn_q.weight)`.
    #[prost(string, tag = "2")]
    pub op_name: String,
}

/// The range of one axis.
#[derive(Clone, PartialEq, Message)]
pub struct SliceDimensions {
    /// First index.
    #[prost(int64, tag = "1")]
    pub start: i64,
    /// Index after the last.
    #[prost(int64, tag = "2")]
    pub limit: i64,
    /// Step.
    #[prost(int64, tag = "3")]
    pub stride: i64,
}

/// Axes of a product: `DotDimensionNumbers`.
#[derive(Clone, PartialEq, Message)]
pub struct DotDimensions {
    /// Summed over, in the left operand.
    #[prost(int64, repeated, tag = "1")]
    pub lhs_contracting: Vec<i64>,
    /// Summed over, in the right operand.
    #[prost(int64, repeated, tag = "2")]
    pub rhs_contracting: Vec<i64>,
    /// Shared, in the left operand.
    #[prost(int64, repeated, tag = "3")]
    pub lhs_batch: Vec<i64>,
    /// Shared, in the right operand.
    #[prost(int64, repeated, tag = "4")]
    pub rhs_batch: Vec<i64>,
}

/// Axes of a gather: `GatherDimensionNumbers`.
#[derive(Clone, PartialEq, Message)]
pub struct GatherDimensions {
    /// Axes of the result that are the slice's.
    #[prost(int64, repeated, tag = "1")]
    pub offset_dims: Vec<i64>,
    /// Axes of the slice that are dropped.
    #[prost(int64, repeated, tag = "2")]
    pub collapsed_slice_dims: Vec<i64>,
    /// Axes that the indices choose on.
    #[prost(int64, repeated, tag = "3")]
    pub start_index_map: Vec<i64>,
    /// Axis of the indices that holds one index.
    #[prost(int64, tag = "4")]
    pub index_vector_dim: i64,
}

/// Axes of a scatter: `ScatterDimensionNumbers`.
#[derive(Clone, PartialEq, Message)]
pub struct ScatterDimensions {
    /// Axes of the updates that are the slice's.
    #[prost(int64, repeated, tag = "1")]
    pub update_window_dims: Vec<i64>,
    /// Axes of the operand that the updates lack.
    #[prost(int64, repeated, tag = "2")]
    pub inserted_window_dims: Vec<i64>,
    /// Axes that the indices choose on.
    #[prost(int64, repeated, tag = "3")]
    pub scatter_dims_to_operand_dims: Vec<i64>,
    /// Axis of the indices that holds one index.
    #[prost(int64, tag = "4")]
    pub index_vector_dim: i64,
}

/// Devices that take part in a collective operation together.
#[derive(Clone, PartialEq, Message)]
pub struct ReplicaGroup {
    /// Their numbers.
    #[prost(int64, repeated, tag = "1")]
    pub replica_ids: Vec<i64>,
}

/// Names for the tools around a compiler.
#[derive(Clone, PartialEq, Message)]
pub struct FrontendAttributes {
    /// By name.
    #[prost(btree_map = "string, string", tag = "1")]
    pub map: BTreeMap<String, String>,
}

/// Outputs in the memory of parameters: `HloInputOutputAliasProto`.
#[derive(Clone, PartialEq, Message)]
pub struct InputOutputAlias {
    /// One for each such output.
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<AliasEntry>,
}

/// An output in the memory of a parameter.
#[derive(Clone, PartialEq, Message)]
pub struct AliasEntry {
    /// Place of the output in the result's tuple.
    #[prost(int64, repeated, tag = "1")]
    pub output_shape_index: Vec<i64>,
    /// The parameter.
    #[prost(int64, tag = "2")]
    pub parameter_number: i64,
    /// Place in the parameter, where that is a tuple.
    #[prost(int64, repeated, tag = "3")]
    pub parameter_shape_index: Vec<i64>,
    /// Whether the memory may, or must, be shared.
    #[prost(enumeration = "AliasKind", tag = "4")]
    pub kind: i32,
}

/// How binding an alias is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Enumeration)]
#[repr(i32)]
pub enum AliasKind {
    /// None.
    Undefined = 0,
    /// Where the caller gives the parameter's memory up.
    May = 1,
    /// Always.
    Must = 2,
}

impl ElementType {
    /// As in HLO text.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::Invalid => "invalid",
            ElementType::Pred => "pred",
            ElementType::S8 => "s8",
            ElementType::S16 => "s16",
            ElementType::S32 => "s32",
            ElementType::S64 => "s64",
            ElementType::U8 => "u8",
            ElementType::U16 => "u16",
            ElementType::U32 => "u32",
            ElementType::U64 => "u64",
            ElementType::F16 => "f16",
            ElementType::F32 => "f32",
            ElementType::F64 => "f64",
            ElementType::Tuple => "tuple",
            ElementType::Bf16 => "bf16",
            ElementType::F8e5m2 => "f8e5m2",
            ElementType::F8e4m3fn => "f8e4m3fn",
        }
    }
}
