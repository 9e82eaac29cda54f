use samebits_tensor::{DType, Shape};

/// What can go wrong when a graph is recorded or run.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GraphError {
    /// A tensor given as an input was computed.
    #[error("input {index} of the graph is not a traced input; make it with Trace::input")]
    NotAnInput {
        /// Its place in the list.
        index: usize,
    },
    /// An output depends on an input that the list of inputs lacks.
    #[error("the outputs need the input {name}, which is not among the inputs of the graph")]
    MissingInput {
        /// Its name.
        name: String,
    },
    /// Two inputs, or two outputs, of one name.
    #[error("the name {name} is used twice among the {what} of the graph")]
    DuplicateName {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Another number of tensors than the graph has inputs.
    #[error("the graph takes {expected} inputs, {found} were given")]
    InputCount {
        /// Inputs of the graph.
        expected: usize,
        /// Tensors given.
        found: usize,
    },
    /// A tensor that does not fit its input.
    #[error("input {name}: expected {expected_dtype} {expected}, found {found_dtype} {found}")]
    InputKind {
        /// The input.
        name: String,
        /// Its shape.
        expected: Box<Shape>,
        /// Its dtype.
        expected_dtype: DType,
        /// Shape of the tensor given.
        found: Box<Shape>,
        /// Dtype of the tensor given.
        found_dtype: DType,
    },
    /// A constant that the trace gave to a device and kept no value of.
    #[error("the constant {name} is on the device that the trace placed it on; run the graph there")]
    NoValue {
        /// Its name.
        name: String,
    },
    /// A backend refused an operation.
    #[error(transparent)]
    Tensor(#[from] samebits_tensor::Error),
}
