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

#[test]
fn devices_that_are_not_there_or_too_old() {
    let sim = Sim::alone().unwrap();
    sim.set("PTX_SIM_DEVICES", "0");
    let error = CudaContext::new(0).map(drop).unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_NO_DEVICE);
    sim.set("PTX_SIM_DEVICES", "2");
    assert_eq!(CudaContext::device_count(), Ok(2));
    assert_eq!(CudaContext::new(2).map(drop).unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_DEVICE);
    let second = CudaContext::new(1).unwrap();
    sim.set("PTX_SIM_CAPABILITY", "75");
    assert_eq!(second.compute_capability(), Ok((7, 5)));
    assert_eq!(
        second.load_module(PTX.into()).map(drop).unwrap_err().0,
        sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    sim.set("PTX_SIM_CAPABILITY", "90");
    sim.set("PTX_SIM_DRIVER", "11080");
    let old = second.load_module(PTX.into()).map(drop).unwrap_err();
    assert_eq!(old.0, sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
}

#[test]
fn memory_runs_out() {
    let sim = Sim::alone().unwrap();
    let (context, stream) = open();
    let before = context.mem_get_info().unwrap().0;
    let held = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, before - (1 << 20));
    sim.set("PTX_SIM_BYTES", &(3 << 20).to_string());
    let error = stream.alloc_zeros::<u8>(16 << 20).map(drop).unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let live = sim.live();
    drop(held);
    assert_eq!(sim.live(), live - 1);
}

#[test]
fn calls_fail_where_it_is_planned() {
    let sim = Sim::alone().unwrap();
    let (context, stream) = open();
    sim.faults("cuMemAllocAsync:2=2");
    let first = stream.alloc_zeros::<u8>(16).unwrap();
    assert_eq!(
        stream.alloc_zeros::<u8>(16).map(drop).unwrap_err().0,
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
    );
    drop(stream.alloc_zeros::<u8>(16).unwrap());
    assert_eq!(sim.calls("cuMemAllocAsync"), 3);
    sim.faults("cuMemAllocAsync:1+=1");
    for _ in 0..2 {
        assert_eq!(
            stream.alloc_zeros::<u8>(16).map(drop).unwrap_err().0,
            sys::CUresult::CUDA_ERROR_INVALID_VALUE
        );
    }
    // A device that is lost stays so.
    sim.faults("cuStreamSynchronize:1=214!");
    let lost = sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE;
    assert_eq!(stream.synchronize().unwrap_err().0, lost);
    assert_eq!(stream.clone_dtoh(&first).map(drop).unwrap_err().0, lost);
    assert_eq!(context.mem_get_info().unwrap_err().0, lost);
    sim.reset();
    assert!(context.mem_get_info().is_ok());
}

#[test]
fn launches_have_limits() {
    let _sim = Sim::alone().unwrap();
    let (context, stream) = open();
    let scale = function(&context, "scale");
    let x = stream.clone_htod(&[1f32; 8]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(8).unwrap();
    // More threads than .maxntid, and more shared memory than was asked for.
    for (threads, shared) in [(512, 0), (0, 0), (32, 64 << 10)] {
        let config = LaunchConfig { shared_mem_bytes: shared, ..config(1, threads) };
        // SAFETY: the arguments are those of the kernel.
        let done =
            unsafe { stream.launch_builder(&scale).arg(&mut y).arg(&x).arg(&2f32).arg(&8u32).launch(config) };
        assert_eq!(done.map(drop).unwrap_err().0, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let dynamic = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    scale.set_attribute(dynamic, 64 << 10).unwrap();
    let config = LaunchConfig { shared_mem_bytes: 64 << 10, ..config(1, 32) };
    // SAFETY: the arguments are those of the kernel.
    unsafe { stream.launch_builder(&scale).arg(&mut y).arg(&x).arg(&2f32).arg(&8u32).launch(config) }
        .unwrap();
    assert!(scale.set_attribute(dynamic, 228 << 10).is_err());
    assert_eq!(scale.occupancy_max_active_blocks_per_multiprocessor(256, 64 << 10, None), Ok(3));
}

#[test]
fn captures_are_broken_by_what_cannot_be_repeated() {
    let _sim = Sim::alone().unwrap();
    let (_context, stream) = open();
    let x = stream.clone_htod(&[1f32; 8]).unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let ended = stream.end_capture(flags).map(drop);
    assert_eq!(ended.unwrap_err().0, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1.0; 8]);
}

#[test]
fn a_report_counts() {
    let sim = Sim::alone().unwrap();
    sim.set("PTX_SIM_COUNT", "1");
    let (context, stream) = open();
    let scale = function(&context, "scale");
    let x = stream.clone_htod(&[1f32; 96]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(96).unwrap();
    for _ in 0..2 {
        // SAFETY: the arguments are those of the kernel.
        unsafe {
            stream.launch_builder(&scale).arg(&mut y).arg(&x).arg(&2f32).arg(&80u32).launch(config(1, 96))
        }
        .unwrap();
    }
    let report = &sim.report()["scale"];
    assert_eq!(report["launches"], 2);
    assert_eq!(report["opcodes"]["mul.rn.f32"], 6);
    assert_eq!(report["opcodes"]["bra"], 6);
    assert_eq!(report["loaded_bytes"], 2 * 80 * 4);
    assert_eq!(report["stored_bytes"], 2 * 80 * 4);
    assert_eq!(report["loaded_sectors"], 2 * 10);
    assert_eq!(report["bank_conflicts"], 0);
}

#[test]
fn functions_are_found_by_name() {
    let _sim = Sim::alone().unwrap();
    let (mut address, mut found) =
        (std::ptr::null_mut(), sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
    // SAFETY: the name ends with 0, and the results have their places.
    let mut ask = |name: &std::ffi::CStr| unsafe {
        sys::cuGetProcAddress_v2(name.as_ptr(), &mut address, 13000, 0, &mut found).result().map(|()| address)
    };
    assert!(!ask(c"cuMemAlloc").unwrap().is_null());
    assert!(!ask(c"cuInit").unwrap().is_null());
    assert_eq!(ask(c"cuNothing").unwrap_err().0, sys::CUresult::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn a_process_writes_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let test = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(test);
    child.args(["--exact", "blocks_add_to_a_total"]).env("PTX_SIM_REPORT", &path).env("PTX_SIM_THREADS", "2");
    assert!(child.output().unwrap().status.success());
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(report["total"]["launches"], 3);
    assert_eq!(report["total"]["opcodes"]["redux.sync.add.u32"], 3 * 64 * (8 + 1));
    assert_eq!(report["total"]["loaded_sectors"], 3 * 64 * 8 * 4);
}

#[test]
fn bank_conflicts_are_counted() {
    let sim = Sim::alone().unwrap();
    sim.set("PTX_SIM_COUNT", "1");
    let (context, stream) = open();
    // Each lane stores a word `stride` words from that of the lane before.
    for (stride, conflicts) in [(1, 0), (2, 1), (32, 31), (33, 0)] {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry strided()\n{{\n\t.reg .b32 %r<4>;\n\t.shared .align 4 .b8 tile[8192];\n\
             \tmov.u32 %r1, %tid.x;\n\tmul.lo.u32 %r2, %r1, {};\n\tmov.u32 %r3, tile;\n\tadd.u32 %r2, %r2, %r3;\n\tst.shared.u32 [%r2], %r1;\n\tret;\n}}\n",
            4 * stride
        );
        let strided = context.load_module(text.into()).unwrap().load_function("strided").unwrap();
        let before = sim.report()["strided"]["bank_conflicts"].as_u64().unwrap_or(0);
        // SAFETY: the kernel has no arguments.
        unsafe { stream.launch_builder(&strided).launch(config(1, 32)) }.unwrap();
        assert_eq!(
            sim.report()["strided"]["bank_conflicts"].as_u64().unwrap() - before,
            conflicts,
            "stride {stride}"
        );
    }
}
