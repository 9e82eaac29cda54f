//! Why a vocabulary was refused or a text could not be encoded.

/// A tokenizer that cannot be built, or a text it cannot encode.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A field of the vocabulary is missing, inconsistent or out of bounds.
    #[error("{field}: {problem}; the file is damaged or was converted wrongly, convert the model again")]
    Field {
        /// GGUF key or JSON path.
        field: &'static str,
        /// What is wrong with its value, with the offending index or token.
        problem: String,
    },
    /// A tokenizer construct that this crate does not implement.
    #[error("{field}: {name:?} is not supported; supported: {known}")]
    Unsupported {
        /// GGUF key or JSON path.
        field: &'static str,
        /// The value found there.
        name: String,
        /// The values that are supported.
        known: String,
    },
    /// A GGUF key of another type than its own.
    #[error(transparent)]
    Gguf(#[from] crate::GgufError),
    /// A file that is not the JSON it should be.
    #[error("{file}: {problem}; download the file again")]
    Json {
        /// The file's usual name.
        file: &'static str,
        /// The parser's message, with line and column.
        problem: String,
    },
    /// A text with a part that no token spells, in a vocabulary without an unknown token.
    #[error("byte {byte} of the text, {piece:?}, has no token and the vocabulary has no unknown token")]
    Unencodable {
        /// Offset of the part in the text's segment, in bytes.
        byte: usize,
        /// The part.
        piece: String,
    },
    /// A text longer than 4 GiB.
    #[error("the text has {bytes} bytes and at most {max} can be encoded at once; split it", max = u32::MAX)]
    TextTooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// A pre-tokenizer pattern that gave up on this text.
    #[error("the pre-tokenizer pattern gave up: {problem}; split the text")]
    Pattern {
        /// The regular expression engine's message.
        problem: String,
    },
}

impl TokenizerError {
    /// Our own error that passed through the `tokenizers` crate, or one of that crate's.
    pub(super) fn from_crate(error: tokenizers::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => *own,
            Err(other) => Self::field("tokenizer", other.to_string()),
        }
    }

    pub(super) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { field, problem: problem.into() }
    }
}
