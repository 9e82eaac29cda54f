//! Numbers and structures of libnrt's C API, as AWS documents them for runtimes 2.x on 64-bit machines.

use std::{
    ffi::{CStr, c_char},
    fmt,
};

/// `NRT_FRAMEWORK_TYPE_NO_FW`: a program of no framework that AWS knows.
pub const FRAMEWORK_NONE: i32 = 1;
/// `NRT_TENSOR_PLACEMENT_DEVICE`: a tensor in a device's memory.
pub const PLACEMENT_DEVICE: i32 = 0;
/// `NRT_TENSOR_PLACEMENT_HOST`: a tensor in the host's memory.
pub const PLACEMENT_HOST: i32 = 1;
/// `NRT_TENSOR_USAGE_INPUT`.
pub const USAGE_INPUT: i32 = 0;
/// `NRT_TENSOR_USAGE_OUTPUT`.
pub const USAGE_OUTPUT: i32 = 1;
/// Longest name of a tensor, with its end.
pub const NAME_BYTES: usize = 256;

/// A loaded program: `nrt_model_t`.
#[repr(C)]
pub struct Model {
    _opaque: [u8; 0],
}

/// Memory of a device or the host: `nrt_tensor_t`.
#[repr(C)]
pub struct Tensor {
    _opaque: [u8; 0],
}

/// Tensors by name: `nrt_tensor_set_t`.
#[repr(C)]
pub struct TensorSet {
    _opaque: [u8; 0],
}

/// `nrt_version_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Version {
    /// Changes with the API.
    pub major: u64,
    /// Changes with what the runtime can do.
    pub minor: u64,
    /// Of corrections.
    pub patch: u64,
    /// Of the build.
    pub maintenance: u64,
    /// More, in words.
    pub detail: [c_char; 128],
    /// Of the source.
    pub hash: [c_char; 64],
}

/// `nrt_vnc_memory_stats_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use now.
    pub bytes_used: u64,
    /// The most that may be in use.
    pub bytes_limit: u64,
}

/// What a loaded program says of one tensor: `nrt_tensor_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TensorInfo {
    /// Ends with a zero.
    pub name: [c_char; NAME_BYTES],
    /// [`USAGE_INPUT`] or [`USAGE_OUTPUT`].
    pub usage: i32,
    /// Bytes.
    pub size: usize,
    /// `nrt_dtype_t`.
    pub dtype: i32,
    /// The extents, outermost first.
    pub shape: *mut u32,
    /// How many extents.
    pub rank: u32,
}

/// The head of `nrt_tensor_info_array_t`; as many [`TensorInfo`] follow.
#[repr(C)]
pub struct TensorInfos {
    /// How many.
    pub count: u64,
    /// The first.
    pub first: [TensorInfo; 0],
}

/// Bytes up to a zero as text.
pub fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&char| char.to_ne_bytes()[0]).collect();
    let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_bytes);
    String::from_utf8_lossy(text.unwrap_or(&bytes)).into_owned()
}

/// How a call ended, if not well: `NRT_STATUS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Anything that has no other number.
    Failure,
    /// An argument that is wrong.
    Invalid,
    /// An object that is not there.
    InvalidHandle,
    /// Out of memory, or of something else that is limited.
    Resource,
    /// It took too long.
    Timeout,
    /// The hardware failed.
    HardwareError,
    /// Too many executions wait.
    QueueFull,
    /// More cores are needed than there are.
    NotEnoughCores,
    /// A program of another generation.
    UnsupportedNeff,
    /// Out of the host's memory.
    HostMemory,
    /// Before `nrt_init`.
    Uninitialized,
    /// After `nrt_close`.
    Closed,
    /// Nothing waits.
    QueueEmpty,
    /// The core cannot go on.
    Unrecoverable,
    /// Inputs that do not fit the program.
    BadInput,
    /// A number that is none was computed.
    NumericalError,
    /// An execution ended with an error.
    CompletedWithError,
    /// The core is used by another.
    CoreBusy,
    /// An index of a gather or scatter was out of range.
    OutOfBounds,
    /// A collective operation goes on.
    CollectivesPending,
    /// A collective operation does not end.
    Collectives,
    /// Device memory has an error that could not be corrected.
    MemoryError,
    /// Memory of a core has such an error.
    CoreError,
    /// A copy was aborted.
    CopyAborted,
    /// More was told than there is room for.
    NotificationsOverflow,
    /// Device memory has an error that a reset repairs.
    RepairableMemoryError,
    /// The network between devices failed.
    Network,
    /// A number that is unknown here.
    Other(i32),
}

/// Number, name and advice of each status of `nrt_status.h`.
const STATUSES: [(i32, Status, &str, &str); 27] = {
    use Status::*;
    [
        (1, Failure, "NRT_FAILURE", "see what the runtime logged"),
        (2, Invalid, "NRT_INVALID", "report this: an argument was wrong"),
        (3, InvalidHandle, "NRT_INVALID_HANDLE", "report this: an object was used that is gone"),
        (4, Resource, "NRT_RESOURCE", "use a smaller model, fewer pages of cache, or more cores"),
        (5, Timeout, "NRT_TIMEOUT", "try again; raise NEURON_RT_EXEC_TIMEOUT for long programs"),
        (6, HardwareError, "NRT_HW_ERROR", "restart the process; if it comes again, replace the instance"),
        (7, QueueFull, "NRT_QUEUE_FULL", "try again when executions have ended"),
        (9, NotEnoughCores, "NRT_LOAD_NOT_ENOUGH_NC", "give more cores by NEURON_RT_NUM_CORES"),
        (
            10,
            UnsupportedNeff,
            "NRT_UNSUPPORTED_NEFF_VERSION",
            "install the runtime of the compiler's release",
        ),
        (11, HostMemory, "NRT_FAIL_HOST_MEM_ALLOC", "give the process more memory"),
        (13, Uninitialized, "NRT_UNINITIALIZED", "restart the process"),
        (14, Closed, "NRT_CLOSED", "restart the process"),
        (15, QueueEmpty, "NRT_QUEUE_EMPTY", "report this: nothing was started"),
        (101, Unrecoverable, "NRT_EXEC_UNIT_UNRECOVERABLE", "restart the process"),
        (1002, BadInput, "NRT_EXEC_BAD_INPUT", "report this: inputs do not fit the program"),
        (1003, NumericalError, "NRT_EXEC_COMPLETED_WITH_NUM_ERR", "check the weights for NaN and infinity"),
        (1004, CompletedWithError, "NRT_EXEC_COMPLETED_WITH_ERR", "see what the runtime logged"),
        (1005, CoreBusy, "NRT_EXEC_NC_BUSY", "end the process that uses the core, or choose another core"),
        (1006, OutOfBounds, "NRT_EXEC_OOB", "report this: an index was out of range"),
        (1100, CollectivesPending, "NRT_COLL_PENDING", "report this: nothing collective is started"),
        (1200, Collectives, "NRT_EXEC_HW_ERR_COLLECTIVES", "check that all ranks run and see each other"),
        (1201, MemoryError, "NRT_EXEC_HW_ERR_HBM_UE", "replace the instance: its memory is faulty"),
        (1202, CoreError, "NRT_EXEC_HW_ERR_NC_UE", "replace the instance: its core is faulty"),
        (
            1203,
            CopyAborted,
            "NRT_EXEC_HW_ERR_DMA_ABORT",
            "restart the process; if it comes again, replace the instance",
        ),
        (1204, NotificationsOverflow, "NRT_EXEC_SW_NQ_OVERFLOW", "see what the runtime logged"),
        (
            1205,
            RepairableMemoryError,
            "NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE",
            "restart the process: its memory is repaired on a reset",
        ),
        (1206, Network, "NRT_NETWORK_PROXY_FAILURE", "check the network between instances"),
    ]
};

impl Status {
    /// Every status that AWS documents.
    pub fn all() -> impl Iterator<Item = Status> {
        STATUSES.iter().map(|row| row.1)
    }

    /// The status of a number; nothing for 0, which is success.
    pub fn of(raw: i32) -> Option<Self> {
        let known = STATUSES.iter().find(|row| row.0 == raw).map(|row| row.1);
        (raw != 0).then(|| known.unwrap_or(Status::Other(raw)))
    }

    /// Its number.
    pub fn raw(self) -> i32 {
        match self {
            Status::Other(raw) => raw,
            known => known.row().map_or(1, |row| row.0),
        }
    }

    /// What to do next.
    pub fn advice(self) -> &'static str {
        self.row().map_or("see what the runtime logged", |row| row.3)
    }

    /// Whether the device is of no use afterwards.
    pub fn is_fatal(self) -> bool {
        use Status::*;
        matches!(
            self,
            HardwareError
                | Uninitialized
                | Closed
                | Unrecoverable
                | MemoryError
                | CoreError
                | CopyAborted
                | RepairableMemoryError
        )
    }

    /// Whether the same may succeed later.
    pub fn is_passing(self) -> bool {
        use Status::*;
        matches!(self, Resource | Timeout | QueueFull | HostMemory | CoreBusy)
    }

    /// Whether an execution that ends so was refused before it wrote anything.
    pub fn is_refusal(self) -> bool {
        use Status::*;
        matches!(self, Invalid | InvalidHandle | Resource | QueueFull | HostMemory | BadInput | CoreBusy)
    }

    fn row(self) -> Option<&'static (i32, Status, &'static str, &'static str)> {
        STATUSES.iter().find(|row| row.1 == self)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some(row) => f.write_str(row.2),
            None => write!(f, "status {}", self.raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn structures_are_laid_out_as_on_64_bit_machines() {
        assert_eq!(size_of::<Version>(), 224);
        assert_eq!(size_of::<MemoryStats>(), 16);
        assert_eq!(size_of::<TensorInfo>(), 296);
        let offsets = [
            offset_of!(TensorInfo, name),
            offset_of!(TensorInfo, usage),
            offset_of!(TensorInfo, size),
            offset_of!(TensorInfo, dtype),
            offset_of!(TensorInfo, shape),
            offset_of!(TensorInfo, rank),
        ];
        assert_eq!(offsets, [0, 256, 264, 272, 280, 288]);
        assert_eq!(offset_of!(TensorInfos, first), 8);
    }

    #[test]
    fn numbers_come_back() {
        assert_eq!(Status::of(0), None);
        for row in &STATUSES {
            assert_eq!(Status::of(row.0), Some(row.1), "{}", row.2);
            assert_eq!(row.1.raw(), row.0);
            assert_eq!(row.1.to_string(), row.2);
        }
        assert_eq!(Status::of(-5).map(Status::raw), Some(-5));
        assert_eq!(Status::Other(77).to_string(), "status 77");
    }

    #[test]
    fn text_ends_at_a_zero() {
        let chars = [b'a', b'b', 0, b'c'].map(|byte| byte as c_char);
        assert_eq!(text(&chars), "ab");
        assert_eq!(text(&chars[..2]), "ab");
    }
}
