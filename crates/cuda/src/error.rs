use cudarc::driver::{DriverError, sys::CUresult};

/// Why a device could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No driver's library on this machine.
    #[error("no CUDA driver: none of {looked_for} could be loaded; install NVIDIA's driver")]
    NoDriver {
        /// Names that were looked for.
        looked_for: String,
    },
    /// A library that is not the driver, or part of one.
    #[error("the CUDA driver {library} has no function {function}; install NVIDIA's driver anew")]
    BrokenDriver {
        /// The library's name.
        library: String,
        /// What it lacks.
        function: &'static str,
    },
    /// A driver from before the kernels' version of PTX.
    #[error(
        "the CUDA driver is for CUDA {found}; the kernels need one for {needed} or later: update the driver"
    )]
    OldDriver {
        /// The driver's version.
        found: String,
        /// The first that would do.
        needed: String,
    },
    /// No device, or not as many.
    #[error("no CUDA device {ordinal}: the driver shows {count}{}", hidden_by(.visible))]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many devices there are.
        count: u32,
        /// `CUDA_VISIBLE_DEVICES`, which hides the others.
        visible: Option<String>,
    },
    /// A device too old for the kernels.
    #[error("{device} has compute capability {found}; the kernels need 8.0 or later")]
    Architecture {
        /// Its name.
        device: String,
        /// Its compute capability.
        found: String,
    },
    /// Less memory than opening takes.
    #[error("{device}: no memory for {what}; end other programs that use it")]
    OutOfMemory {
        /// The device.
        device: String,
        /// What memory was asked for.
        what: &'static str,
    },
    /// No cuBLASLt on this machine.
    #[error(
        "no cuBLASLt: none of {looked_for} could be loaded; install NVIDIA's cuBLAS, name its library in SAMEBITS_CUBLASLT, or leave numerics exact"
    )]
    NoBlas {
        /// Names that were looked for.
        looked_for: String,
    },
    /// A library that is not cuBLASLt, or part of one.
    #[error("{library} has no function {function}; it is not cuBLASLt as it should be")]
    BrokenBlas {
        /// The library's name.
        library: String,
        /// What it lacks.
        function: &'static str,
    },
    /// cuBLASLt refused to start.
    #[error("{library}: {detail}")]
    Blas {
        /// The library's name.
        library: String,
        /// The call that failed, and the library's words.
        detail: String,
    },
    /// Any other failure of the driver.
    #[error("CUDA: {call}: {detail}")]
    Driver {
        /// The call that failed.
        call: &'static str,
        /// The driver's words.
        detail: String,
    },
}

fn hidden_by(visible: &Option<String>) -> String {
    visible.as_ref().map_or(String::new(), |it| format!(", and CUDA_VISIBLE_DEVICES is {it:?}"))
}

impl OpenError {
    pub(crate) fn driver(call: &'static str, error: DriverError) -> Self {
        OpenError::Driver { call, detail: words(error) }
    }
}

/// The driver's name and text of an error, and what to do where it is of a kind that ends the context.
pub(crate) fn words(error: DriverError) -> String {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| format!("error {}", error.0 as u32), |text| text.to_string_lossy().into_owned())
    };
    let advice = if is_lost(error) {
        "; the device is lost to this process, which has to be started anew"
    } else {
        ""
    };
    format!("{} ({}){advice}", text(error.error_name()), text(error.error_string()))
}

/// Whether nothing works any more on a context after this error.
fn is_lost(error: DriverError) -> bool {
    use CUresult::*;
    matches!(
        error.0,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_DEINITIALIZED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_device_is_said_to_be_hidden() {
        let error = |visible| OpenError::NoDevice { ordinal: 1, count: 0, visible }.to_string();
        assert_eq!(error(None), "no CUDA device 1: the driver shows 0");
        assert!(error(Some("".into())).ends_with("and CUDA_VISIBLE_DEVICES is \"\""));
    }
}
