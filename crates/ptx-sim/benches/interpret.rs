//! Lane-instructions a second, with the checks that are on by default, and without.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use ptx_sim::{Checks, Sim};

const ROUNDS: u32 = 1000;

fn interpret(criterion: &mut Criterion) {
    let sim = Sim::alone().expect("the library is built with the benchmark");
    sim.set("PTX_SIM_THREADS", "1");
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(include_str!("kernels.ptx").into()).unwrap();
    let input = stream.clone_htod(&[1f32; 4096]).unwrap();
    let mut output = stream.alloc_zeros::<f32>(16).unwrap();
    let mut group = criterion.benchmark_group("interpret");
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    for (kernel, threads) in [("arithmetic", 64), ("sum_global", 64), ("exchange", 256), ("matrices", 32)] {
        let function = module.load_function(kernel).unwrap();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let mut run = || {
            // SAFETY: the arguments are those of the kernels.
            unsafe {
                stream.launch_builder(&function).arg(&mut output).arg(&input).arg(&ROUNDS).launch(config)
            }
            .unwrap();
            stream.synchronize().unwrap();
        };
        run();
        let lanes = sim.report()[kernel]["lane_instructions"].as_u64().unwrap();
        for (name, checks) in [("checked", Checks::default()), ("unchecked", "none".parse().unwrap())] {
            sim.checks(checks);
            group.throughput(Throughput::Elements(lanes));
            group.bench_function(format!("{kernel}/{name}"), |bencher| bencher.iter(&mut run));
        }
        sim.checks(Checks::default());
    }
    let function = module.load_function("matrices").unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    group.throughput(Throughput::Elements(1));
    group.bench_function("launch", |bencher| {
        bencher.iter(|| {
            // SAFETY: the arguments are those of the kernel.
            unsafe {
                stream.launch_builder(&function).arg(&mut output).arg(&input).arg(&1u32).launch(config)
            }
            .unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, interpret);
criterion_main!(benches);
