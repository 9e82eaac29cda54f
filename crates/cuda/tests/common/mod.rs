//! A device for tests.

use samebits_cuda::Cuda;

/// The device, with memory of its own.
pub(crate) fn cuda() -> Cuda {
    ptx_sim::install().expect("the stand-in for the driver");
    Cuda::builder().memory_bytes(256 << 20).open().expect("a device")
}
