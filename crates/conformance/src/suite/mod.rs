//! The cases.

mod attention;
mod experts;
mod invariance;
mod layout;
mod linear;
mod rows;
mod scalar;
mod values;

use crate::Case;

/// The checks of one operation, or of one property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// [`samebits_tensor::Backend::full`].
    Full,
    /// [`samebits_tensor::Backend::iota`].
    Iota,
    /// [`samebits_tensor::Backend::reshape`].
    Reshape,
    /// [`samebits_tensor::Backend::permute`].
    Permute,
    /// [`samebits_tensor::Backend::slice`].
    Slice,
    /// [`samebits_tensor::Backend::broadcast`].
    Broadcast,
    /// [`samebits_tensor::Backend::concat`].
    Concat,
    /// [`samebits_tensor::Backend::cast`].
    Cast,
    /// [`samebits_tensor::Backend::bitcast`].
    Bitcast,
    /// [`samebits_tensor::Backend::unary`].
    Unary,
    /// [`samebits_tensor::Backend::binary`].
    Binary,
    /// [`samebits_tensor::Backend::compare`].
    Compare,
    /// [`samebits_tensor::Backend::select`].
    Select,
    /// [`samebits_tensor::Backend::max_reduce`].
    MaxReduce,
    /// [`samebits_tensor::Backend::matmul_exact`].
    MatmulExact,
    /// [`samebits_tensor::Backend::gather`].
    Gather,
    /// [`samebits_tensor::Backend::scatter`].
    Scatter,
    /// [`samebits_tensor::Backend::plain`] of a packed weight.
    Plain,
    /// [`samebits_tensor::Backend::linear`] and `linears` with float weights.
    LinearDense,
    /// [`samebits_tensor::Backend::linear`] and `linears` with formats in blocks of 32.
    LinearBlocks32,
    /// [`samebits_tensor::Backend::linear`] and `linears` with formats in blocks of 256.
    LinearBlocks256,
    /// [`samebits_tensor::Backend::linears`] of a normalised input.
    NormLinears,
    /// [`samebits_tensor::Backend::feed_forward`].
    FeedForward,
    /// [`samebits_tensor::Backend::route`].
    Route,
    /// [`samebits_tensor::Backend::experts`].
    Experts,
    /// [`samebits_tensor::Backend::embedding`].
    Embedding,
    /// [`samebits_tensor::Backend::rms_norm`].
    RmsNorm,
    /// [`samebits_tensor::Backend::layer_norm`].
    LayerNorm,
    /// [`samebits_tensor::Backend::rope`].
    Rope,
    /// [`samebits_tensor::Backend::store_kv`].
    StoreKv,
    /// [`samebits_tensor::Backend::rotate_and_store`].
    RotateAndStore,
    /// [`samebits_tensor::Backend::attention`].
    Attention,
    /// [`samebits_tensor::Backend::glu`].
    Glu,
    /// [`samebits_tensor::Backend::activate`].
    Activate,
    /// [`samebits_tensor::Backend::softmax`].
    Softmax,
    /// [`samebits_tensor::Backend::soft_cap`].
    SoftCap,
    /// [`samebits_tensor::Backend::top_k`].
    TopK,
    /// A row alone has the bits that it has in a batch.
    BatchInvariance,
    /// A prompt fed in pieces has the bits of a prompt fed at once.
    ChunkInvariance,
    /// Padding tokens, padding pages and a larger context bound change no bit.
    PaddingInvariance,
}

/// One check of a group.
#[derive(Clone, Debug)]
pub enum Check {
    /// The subject's bits are the reference's.
    Reference(Case),
    /// The subject's bits of one case are its bits of another.
    Invariance(Box<Invariance>),
}

/// Two ways to compute the same rows.
#[derive(Clone, Debug)]
pub struct Invariance {
    /// `group/detail`, unique in the suite.
    pub name: String,
    /// The larger case.
    pub whole: Case,
    /// The smaller case.
    pub part: Case,
    /// Row `rows[i]` of the larger case's first result is row `i` of the smaller one's.
    pub rows: Vec<usize>,
}

impl Check {
    /// `group/detail`, unique in the suite.
    pub fn name(&self) -> &str {
        match self {
            Check::Reference(case) => &case.name,
            Check::Invariance(invariance) => &invariance.name,
        }
    }

    /// The cases that it runs.
    pub fn cases(&self) -> impl Iterator<Item = &Case> {
        let (first, second) = match self {
            Check::Reference(case) => (case, None),
            Check::Invariance(invariance) => (&invariance.whole, Some(&invariance.part)),
        };
        std::iter::once(first).chain(second)
    }
}

macro_rules! groups {
    ($($group:ident $name:literal $checks:expr;)*) => {
        impl Group {
            /// Every group, primitives first.
            pub const ALL: &[Group] = &[$(Group::$group),*];

            /// Name of the operation or property; also the start of its cases' names.
            pub fn name(self) -> &'static str {
                match self {
                    $(Group::$group => $name),*
                }
            }

            /// The checks of this group, the same in every run.
            pub fn checks(self) -> Vec<Check> {
                match self {
                    $(Group::$group => $checks),*
                }
            }
        }
    };
}
groups! {
    Full "full" reference(layout::full());
    Iota "iota" reference(layout::iota());
    Reshape "reshape" reference(layout::reshape());
    Permute "permute" reference(layout::permute());
    Slice "slice" reference(layout::slice());
    Broadcast "broadcast" reference(layout::broadcast());
    Concat "concat" reference(layout::concat());
    Cast "cast" reference(scalar::cast());
    Bitcast "bitcast" reference(scalar::bitcast());
    Unary "unary" reference(scalar::unary());
    Binary "binary" reference(scalar::binary());
    Compare "compare" reference(scalar::compare());
    Select "select" reference(scalar::select());
    MaxReduce "max_reduce" reference(scalar::max_reduce());
    MatmulExact "matmul_exact" reference(scalar::matmul_exact());
    Gather "gather" reference(layout::gather());
    Scatter "scatter" reference(layout::scatter());
    Plain "plain" reference(linear::plain());
    LinearDense "linear_dense" reference(linear::linear(linear::DENSE));
    LinearBlocks32 "linear_blocks32" reference(linear::linear(linear::BLOCKS32));
    LinearBlocks256 "linear_blocks256" reference(linear::linear(linear::BLOCKS256));
    NormLinears "norm_linears" reference(linear::norm_linears());
    FeedForward "feed_forward" reference(linear::feed_forward());
    Route "route" reference(experts::route());
    Experts "experts" reference(experts::experts());
    Embedding "embedding" reference(linear::embedding());
    RmsNorm "rms_norm" reference(rows::rms_norm());
    LayerNorm "layer_norm" reference(rows::layer_norm());
    Rope "rope" reference(rows::rope());
    StoreKv "store_kv" reference(attention::store_kv());
    RotateAndStore "rotate_and_store" reference(attention::rotate_and_store());
    Attention "attention" reference(attention::attention());
    Glu "glu" reference(rows::glu());
    Activate "activate" reference(rows::activate());
    Softmax "softmax" reference(rows::softmax());
    SoftCap "soft_cap" reference(rows::soft_cap());
    TopK "top_k" reference(rows::top_k());
    BatchInvariance "batch_invariance" invariance(invariance::batch());
    ChunkInvariance "chunk_invariance" invariance(invariance::chunk());
    PaddingInvariance "padding_invariance" invariance(invariance::padding());
}

fn reference(cases: Vec<Case>) -> Vec<Check> {
    cases.into_iter().map(Check::Reference).collect()
}

fn invariance(pairs: Vec<Invariance>) -> Vec<Check> {
    pairs.into_iter().map(|pair| Check::Invariance(Box::new(pair))).collect()
}
