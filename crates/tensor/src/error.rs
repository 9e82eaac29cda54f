use crate::{DType, Format, FormatError, Shape};

/// Result of a tensor operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a tensor operation; every variant names the operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Operands whose shapes do not fit the operation.
    #[error("{op}: {detail}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which operand, what was expected and what was found.
        detail: String,
    },
    /// An operand of a type that the operation does not take.
    #[error("{op}: operand is {found}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The type or types that the operation takes.
        expected: &'static str,
        /// The operand's type.
        found: DType,
    },
    /// An index outside of the indexed tensor.
    #[error("{op}: index {index} is outside of 0..{len}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// Rows of the indexed tensor.
        len: usize,
    },
    /// Bytes that do not fill the shape they come with.
    #[error("{what}: {found} bytes, but {shape} of {dtype} needs {expected}")]
    Bytes {
        /// The tensor.
        what: String,
        /// Its shape.
        shape: Shape,
        /// Its dtype or block format.
        dtype: String,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A weight that the backend or the operation does not take.
    #[error("weight {name}: {detail}")]
    Weight {
        /// The weight's name in the checkpoint.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A block format that the backend does not offer.
    #[error("weight {name}: format {format} is not supported by the backend {backend}")]
    Format {
        /// The weight's name in the checkpoint.
        name: String,
        /// Its format.
        format: Format,
        /// The backend's name.
        backend: String,
    },
    /// A row length that a block format cannot hold.
    #[error(transparent)]
    Block(#[from] FormatError),
    /// A value was asked of a tensor that has none yet.
    #[error("{op}: a traced tensor has no value; run the graph first")]
    Traced {
        /// The operation.
        op: &'static str,
    },
    /// The device or library beneath the backend failed.
    #[error("{backend}: {op}: {detail}")]
    Backend {
        /// The backend's name.
        backend: String,
        /// The operation.
        op: &'static str,
        /// The failure, in the device's words.
        detail: String,
    },
}

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, detail: impl Into<String>) -> Self {
        Error::Shape { op, detail: detail.into() }
    }
}
