//! What is to be known of a device: what it is, its bits, its rates, and how long each operation takes. `cargo xtask device-check
//! cuda` runs the parts one by one; the tests run them on the stand-in, where they are small and times say nothing.

mod golden;
mod timings;

use std::env;

use samebits_cuda::Cuda;
use samebits_tensor::Backend;
use serde_json::{Value, json};

/// Says which part is to run, and `simulator:` before it where that is on the stand-in.
const PART: &str = "SAMEBITS_DEVICE_PART";

/// Before the answer, since the test harness writes too.
const ANSWER: &str = "=answer ";

/// How much is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Shapes of models.
    Device,
    /// The least.
    Simulator,
}

#[test]
#[ignore = "a part of cargo xtask device-check cuda"]
fn part() {
    let part = env::var(PART).expect("the name of a part");
    let (size, part) = match part.strip_prefix("simulator:") {
        Some(part) => (Size::Simulator, part),
        None => (Size::Device, part.as_str()),
    };
    println!("\n{ANSWER}{}", run(part, size));
}

#[test]
fn every_part_runs_on_the_stand_in() {
    let device = run("device", Size::Simulator);
    assert!(device["device"].as_str().unwrap().contains("sm_90"), "{device}");
    let rates = run("rates", Size::Simulator);
    assert!(rates["bytes_per_second"].as_f64().unwrap() > 0.0, "{rates}");
    let golden = run("golden", Size::Simulator);
    assert!(golden["cases"].as_u64().unwrap() > 100 && golden["differ"] == json!([]), "{golden}");
    let timings = run("timings", Size::Simulator);
    let timings = timings.as_array().unwrap();
    assert!(timings.len() >= 20, "{timings:?}");
    for timing in timings {
        assert!(timing["seconds"].as_f64().unwrap() > 0.0, "{timing}");
        assert!(timing["share_of_bytes"].is_number() && timing["share_of_int8"].is_number(), "{timing}");
    }
}

fn run(part: &str, size: Size) -> Value {
    let cuda = open(size);
    match part {
        "device" => describe(&cuda),
        "golden" => golden::compare(&cuda, size),
        "rates" => rates(&cuda, size).1,
        "timings" => timings::all(&cuda, size, rates(&cuda, size).0),
        _ => panic!("{part} is no part: device, golden, rates, timings"),
    }
}

fn open(size: Size) -> Cuda {
    if size == Size::Device {
        return Cuda::open(0).expect("a device");
    }
    ptx_sim::install().expect("the stand-in for the driver");
    Cuda::builder().memory_bytes(64 << 20).open().expect("the stand-in's device")
}

fn describe(cuda: &Cuda) -> Value {
    let (capabilities, hardware) = (cuda.capabilities(), cuda.hardware().expect("the driver's words"));
    json!({
        "device": capabilities.device,
        "memory_bytes": capabilities.memory_bytes,
        "multiprocessors": hardware.multiprocessors,
        "clock_khz": hardware.clock_khz,
        "memory_clock_khz": hardware.memory_clock_khz,
        "memory_bus_bits": hardware.memory_bus_bits,
        "l2_bytes": hardware.l2_bytes,
    })
}

fn rates(cuda: &Cuda, size: Size) -> (samebits_cuda::Rates, Value) {
    let (bytes, rounds) = if size == Size::Device { (1 << 30, 20_000) } else { (1 << 16, 1) };
    let rates = cuda.rates(bytes, rounds).expect("rates");
    let value = json!({
        "bytes_per_second": rates.bytes_per_second,
        "int8_operations_per_second": rates.int8_operations_per_second,
    });
    (rates, value)
}
