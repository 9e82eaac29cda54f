//! A device for tests.

#[allow(dead_code)]
pub(crate) mod linear;

use samebits_cuda::Cuda;

/// The device, with memory of its own: of the driver that is found with `SAMEBITS_CUDA_DRIVER`, of the stand-in otherwise. Each
/// tensor is an allocation with `SAMEBITS_CUDA_APART`, for tools that watch memory.
pub(crate) fn cuda() -> Cuda {
    if std::env::var_os("SAMEBITS_CUDA_DRIVER").is_none() {
        ptx_sim::install().expect("the stand-in for the driver");
    }
    let mut builder = Cuda::builder().memory_bytes(256 << 20);
    if std::env::var_os("SAMEBITS_CUDA_APART").is_some() {
        builder = builder.tensors_apart();
    }
    builder.open().expect("a device")
}
