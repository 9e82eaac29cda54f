//! Calls of the driver that fail: an error that names what failed, no panic, and nothing left behind.

use ptx_sim::Sim;
use samebits_cuda::{Cuda, OpenError};
use samebits_tensor::{Tensor, UnaryOp};

const OUT_OF_MEMORY: u32 = 2;
const ILLEGAL_ADDRESS: u32 = 700;
const UNKNOWN: u32 = 999;

fn open() -> Result<Cuda, OpenError> {
    Cuda::builder().memory_bytes(1 << 20).open()
}

#[test]
fn opening_survives_the_failure_of_every_call() {
    let sim = Sim::alone().unwrap();
    // What was on a device that another test lost.
    let before = sim.live();
    let calls = [
        "cuInit",
        "cuDriverGetVersion",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuEventCreate",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemHostAlloc",
        "cuMemcpyHtoDAsync_v2",
        "cuModuleLoadData",
        "cuModuleGetFunction",
    ];
    for call in calls {
        sim.faults(&format!("{call}:1={UNKNOWN}"));
        let error = std::thread::spawn(|| open().err()).join().unwrap();
        let error = error.unwrap_or_else(|| panic!("{call} was not called")).to_string();
        assert!(error.contains("CUDA_ERROR_UNKNOWN"), "{call}: {error}");
        sim.reset();
        assert_eq!(sim.live(), before, "memory left by the failure of {call}");
    }
    open().unwrap();
    assert_eq!(sim.live(), before);
}

#[test]
fn no_memory_for_a_context() {
    let sim = Sim::alone().unwrap();
    sim.faults(&format!("cuDevicePrimaryCtxRetain:1={OUT_OF_MEMORY}"));
    let error = open().err().unwrap();
    assert!(matches!(error, OpenError::OutOfMemory { what: "a context", .. }), "{error}");
}

#[test]
fn no_memory_to_reserve() {
    let sim = Sim::alone().unwrap();
    let cuda = open().unwrap();
    sim.faults(&format!("cuMemAlloc_v2:1={OUT_OF_MEMORY}"));
    let error = Tensor::full(&cuda, [4], 1.0).err().unwrap().to_string();
    assert!(error.contains("1048576 bytes of the device could not be reserved"), "{error}");
    // It may be there later.
    Tensor::full(&cuda, [4], 1.0).unwrap();
}

#[test]
fn a_launch_that_is_refused_names_its_kernel_and_shape() {
    let sim = Sim::alone().unwrap();
    let cuda = open().unwrap();
    let x = Tensor::full(&cuda, [4, 3], 1.0).unwrap();
    sim.faults(&format!("cuLaunchKernel:1={UNKNOWN}"));
    let error = x.unary(UnaryOp::Sqrt).err().unwrap().to_string();
    assert!(error.starts_with("cuda: sqrt_f32: of [4, 3]: CUDA_ERROR_UNKNOWN"), "{error}");
    assert_eq!(x.unary(UnaryOp::Sqrt).unwrap().to_vec::<f32>().unwrap(), [1.0; 12]);
}

#[test]
fn a_lost_device_is_an_error_of_the_download_and_of_all_that_follows() {
    let sim = Sim::alone().unwrap();
    let cuda = open().unwrap();
    let x = Tensor::full(&cuda, [4, 3], 1.0).unwrap();
    let y = x.unary(UnaryOp::Sqrt).unwrap();
    sim.faults(&format!("cuStreamSynchronize:1={ILLEGAL_ADDRESS}!"));
    let error = y.to_vec::<f32>().unwrap_err().to_string();
    assert!(error.starts_with("cuda: download: CUDA_ERROR_ILLEGAL_ADDRESS"), "{error}");
    assert!(error.contains("lost to this process") && error.ends_with("sqrt_f32 of [4, 3]"), "{error}");
    assert!(x.unary(UnaryOp::Sqrt).and_then(|y| y.to_vec::<f32>()).is_err());
    drop((x, y, cuda));
    sim.reset();
    open().unwrap();
}
