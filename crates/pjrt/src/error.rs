use std::{fmt, io, path::PathBuf};

use crate::ElementType;

/// What can go wrong between a program and a PJRT device; every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum PjrtError {
    /// A library that the system could not load.
    #[error("{}: the PJRT plugin cannot be loaded: {why}; check the path, and that the libraries it needs are installed", path.display())]
    Open {
        /// The library.
        path: PathBuf,
        /// The failure, in the loader's words.
        why: String,
    },
    /// A library without a PJRT table.
    #[error("{}: not a PJRT plugin ({why}); give the path of a library that exports `GetPjrtApi`", path.display())]
    NotAPlugin {
        /// The library.
        path: PathBuf,
        /// What it lacks.
        why: &'static str,
    },
    /// A plugin of another generation of the API.
    #[error(
        "{}: the plugin speaks PJRT {major}.{minor}, and 0.{oldest} or a later 0.x is needed; \
         install a plugin that was built with it", path.display()
    )]
    Version {
        /// The library.
        path: PathBuf,
        /// The plugin's major version.
        major: i32,
        /// The plugin's minor version.
        minor: i32,
        /// The oldest minor version that is understood.
        oldest: i32,
    },
    /// A function that the plugin does not have.
    #[error("the PJRT plugin has no function {function}; use a newer plugin, or do without what needs it")]
    Missing {
        /// Name of the C function.
        function: &'static str,
    },
    /// A function of the plugin that failed.
    #[error("{function}: {code}: {message}; {}", code.advice())]
    Call {
        /// Name of the C function.
        function: &'static str,
        /// What kind of failure.
        code: Code,
        /// The plugin's explanation.
        message: String,
    },
    /// Bytes that do not fill the tensor they are for.
    #[error("{what}: {found} bytes, but {element}{dims:?} has {expected}; pass exactly those bytes")]
    Bytes {
        /// What was asked for: an upload or a download.
        what: &'static str,
        /// Type of the elements.
        element: ElementType,
        /// Dimensions of the tensor.
        dims: Vec<usize>,
        /// Bytes of the tensor.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Dimensions whose product, or that product in bytes, is beyond the address space.
    #[error("{dims:?}: more elements than can be addressed; split the tensor")]
    TooLarge {
        /// The dimensions.
        dims: Vec<usize>,
    },
    /// A device that the client does not have.
    #[error("device {index}: the client has {count}; count from 0, or create the client with more devices")]
    Device {
        /// The device that was asked for.
        index: usize,
        /// Devices of the client.
        count: usize,
    },
    /// Arguments that do not fit the program; it was not started, and donated buffers are gone.
    #[error("execute: {why}; pass for each device one buffer there for each parameter")]
    Arguments {
        /// Which argument, what was expected and what was found.
        why: String,
    },
    /// An element type that is unknown here, or whose elements are not whole bytes.
    #[error("element type {raw} of the PJRT API is not supported; cast it to another in the program")]
    Element {
        /// The C enumeration's value.
        raw: i32,
    },
    /// Compile options that contradict each other or the client.
    #[error("compile options: {why}; name one device of the client for each replica of each partition")]
    Options {
        /// The contradiction.
        why: String,
    },
    /// A directory or file of the executable cache.
    #[error("{}: the cache of executables cannot be used: {why}; give another directory, or correct the rights to it", path.display())]
    Cache {
        /// The directory or file.
        path: PathBuf,
        /// The failure, in the system's words.
        why: io::Error,
    },
}

/// Kind of a failure in a plugin: the codes of `absl::Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The operation was cancelled.
    Cancelled,
    /// Anything that has no other code.
    Unknown,
    /// An argument that is wrong whatever the state.
    InvalidArgument,
    /// It took longer than allowed.
    DeadlineExceeded,
    /// Something named does not exist.
    NotFound,
    /// Something to be made exists.
    AlreadyExists,
    /// Not allowed.
    PermissionDenied,
    /// Out of memory, or of something else that is limited.
    ResourceExhausted,
    /// The state does not permit it.
    FailedPrecondition,
    /// Aborted, as by a conflict.
    Aborted,
    /// Past a limit, as an index.
    OutOfRange,
    /// Not implemented by the plugin.
    Unimplemented,
    /// A broken invariant of the plugin.
    Internal,
    /// Not available now.
    Unavailable,
    /// Data was lost or damaged.
    DataLoss,
    /// Credentials are missing.
    Unauthenticated,
    /// A code that is unknown here.
    Other(i32),
}

impl Code {
    pub(crate) fn from_raw(raw: i32) -> Self {
        let known = usize::try_from(i64::from(raw) - 1).ok().and_then(|index| CODES.get(index));
        known.copied().unwrap_or(Code::Other(raw))
    }

    /// What a user can do about it.
    fn advice(self) -> &'static str {
        match self {
            Code::ResourceExhausted => "free buffers, or use a smaller program or more devices",
            Code::Unimplemented => "use a plugin that implements it, or another program",
            Code::Unavailable | Code::Aborted | Code::Cancelled | Code::DeadlineExceeded => "try again",
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::AlreadyExists => {
                "correct the program, its arguments or the options"
            }
            Code::PermissionDenied | Code::Unauthenticated => "check the rights to the device",
            _ => "check the program, the device, and what the plugin has logged",
        }
    }
}

/// From 1 on, as the C enumeration counts.
const CODES: [Code; 16] = [
    Code::Cancelled,
    Code::Unknown,
    Code::InvalidArgument,
    Code::DeadlineExceeded,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::ResourceExhausted,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unauthenticated,
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Code::Other(raw) => write!(f, "status {raw}"),
            code => write!(f, "{code:?}"),
        }
    }
}

/// A plugin's message on one line, not longer than a screen.
pub(crate) fn printable(message: String) -> String {
    const CHARS_MAX: usize = 2000;
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ").chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_count_as_absl_does() {
        assert_eq!(Code::from_raw(3), Code::InvalidArgument);
        assert_eq!(Code::from_raw(16), Code::Unauthenticated);
        assert_eq!(Code::from_raw(0), Code::Other(0));
        assert_eq!(Code::from_raw(i32::MAX), Code::Other(i32::MAX));
    }
}
