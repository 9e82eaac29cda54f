//! A device for tests.

#[allow(dead_code)]
pub(crate) mod linear;

use samebits_cuda::Cuda;

/// The device, with memory of its own: of the driver that is found with `SAMEBITS_CUDA_DRIVER`, of the stand-in otherwise.
pub(crate) fn cuda() -> Cuda {
    if std::env::var_os("SAMEBITS_CUDA_DRIVER").is_none() {
        ptx_sim::install().expect("the stand-in for the driver");
    }
    Cuda::builder().memory_bytes(256 << 20).open().expect("a device")
}
