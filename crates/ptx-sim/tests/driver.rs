//! The driver API as cudarc uses it, without a change to cudarc.

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, LaunchConfig, PushKernelArg, sys};
use ptx_sim::Sim;
use std::sync::Arc;

const PTX: &str = include_str!("ptx/scale.ptx");

fn open() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    (context, stream)
}

fn function(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    context.load_module(PTX.into()).unwrap().load_function(name).unwrap()
}

fn config(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

#[test]
fn a_kernel_runs() {
    let _sim = Sim::alone().unwrap();
    let (context, stream) = open();
    let scale = function(&context, "scale");
    let x: Vec<f32> = (0..1000).map(|i| i as f32 * 0.25 - 7.0).collect();
    let device = stream.clone_htod(&x).unwrap();
    let mut y = stream.alloc_zeros::<f32>(1000).unwrap();
    let launch = config(4, 256);
    // SAFETY: the arguments are those of the kernel.
    unsafe {
        stream.launch_builder(&scale).arg(&mut y).arg(&device).arg(&1.5f32).arg(&1000u32).launch(launch)
    }
    .unwrap();
    let expected: Vec<f32> = x.iter().map(|x| x * 1.5).collect();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), expected);
}

#[test]
fn blocks_add_to_a_total() {
    let sim = Sim::alone().unwrap();
    let (context, stream) = open();
    let total = function(&context, "total");
    let x: Vec<u32> = (0..256 * 64).collect();
    let device = stream.clone_htod(&x).unwrap();
    for order in ["ascending", "descending", "7"] {
        sim.set("PTX_SIM_WARPS", order);
        let mut sum = stream.alloc_zeros::<u32>(1).unwrap();
        // SAFETY: the arguments are those of the kernel.
        unsafe { stream.launch_builder(&total).arg(&mut sum).arg(&device).launch(config(64, 256)) }.unwrap();
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), [x.iter().sum::<u32>()]);
    }
}

#[test]
fn a_graph_is_captured_and_replayed() {
    let _sim = Sim::alone().unwrap();
    let (context, stream) = open();
    // SAFETY: one stream does all the work.
    unsafe { context.disable_event_tracking() };
    let scale = function(&context, "scale");
    let mut x = stream.clone_htod(&[1f32, 2.0, 3.0]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(3).unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    // SAFETY: the arguments are those of the kernel.
    unsafe { stream.launch_builder(&scale).arg(&mut y).arg(&x).arg(&2f32).arg(&3u32).launch(config(1, 32)) }
        .unwrap();
    stream.memcpy_dtod(&y, &mut x).unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [0.0; 3], "capture runs nothing");
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [8.0, 16.0, 24.0]);
}

#[test]
fn a_fault_stays() {
    let sim = Sim::alone().unwrap();
    let (context, stream) = open();
    let scale = function(&context, "scale");
    let x = stream.clone_htod(&[1f32; 8]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(8).unwrap();
    // SAFETY: one stream does all the work.
    unsafe { context.disable_event_tracking() };
    // SAFETY: the arguments are those of the kernel but for the count, and the stand-in checks bounds.
    unsafe { stream.launch_builder(&scale).arg(&mut y).arg(&x).arg(&2f32).arg(&9u32).launch(config(1, 32)) }
        .unwrap();
    let illegal = Err(DriverError(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    assert_eq!(stream.synchronize(), illegal);
    assert_eq!(stream.clone_dtoh(&y).map(drop), illegal);
    let fault = sim.fault().unwrap();
    assert!(
        fault.starts_with(
            "scale, block [0, 0, 0], thread [8, 0, 0], line 32 (ld.global.nc.f32): 4 bytes at 0x"
        ),
        "{fault}"
    );
    sim.reset();
    drop((x, y));
}
