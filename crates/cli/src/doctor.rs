use std::process::ExitCode;

use samebits::{
    Device, DeviceOptions, Isa, NUMERICS_VERSION, SelfTest, available_memory, capabilities, checkpoint,
    self_test, tensor::Capabilities,
};
use serde_json::{Value, json};

use crate::{args::DoctorArgs, output};

/// A device and what was found of it.
struct Finding {
    name: &'static str,
    found: Result<Capabilities, String>,
}

pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    if let Some(device) = &args.device {
        return test(&device.parse()?, args);
    }
    // Which runtime and compiler are looked for.
    let options = DeviceOptions { neuron: args.neuron.options(&NEURON)?, ..DeviceOptions::default() };
    match args.json {
        true => println!("{:#}", json_report(&options)),
        false => print!("{}", text_report(&options)),
    }
    Ok(ExitCode::SUCCESS)
}

const NEURON: Device = Device::Neuron { core: 0, ranks: 1 };

/// Of each operation; a compiler may take a minute for one.
const CASES: usize = 2;

/// Tests one device, and fails if it failed.
fn test(device: &Device, args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let options = DeviceOptions { neuron: args.neuron.options(device)?, ..DeviceOptions::default() };
    let bar = output::operations_bar();
    let cases = args.cases.map_or(CASES, usize::from);
    let result = self_test(device, &options, cases, &|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    match args.json {
        true => println!("{:#}", result.to_json()),
        false => print!("{}", test_report(&result)),
    }
    Ok(if result.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn test_report(test: &SelfTest) -> String {
    let failures: Vec<_> = test.conformance.groups.iter().flat_map(|group| &group.failures).collect();
    let model = match &test.model {
        Err(why) => format!("failed: {why}"),
        Ok(model) => {
            let same = match model.differs_at {
                None => "the CPU's bits".to_owned(),
                Some(token) => format!("failed: other bits than the CPU's from token {token} on"),
            };
            format!("{} tokens, {:.1} a second; {same}", model.tokens, model.tokens_per_second)
        }
    };
    let seconds: f64 = test.programs.iter().map(|(_, seconds)| seconds).sum();
    let mut rows = vec![
        ("device", format!("{}: {}", test.device, test.description)),
        ("operations", format!("{} cases, {} failed", test.conformance.cases(), failures.len())),
    ];
    if !test.programs.is_empty() {
        rows.insert(1, ("programs", format!("{} compiled or found in {seconds:.1} s", test.programs.len())));
    }
    rows.extend(failures.iter().map(|failure| ("failed", format!("{}: {}", failure.case, failure.detail))));
    rows.push(("model", model));
    rows.push(("result", if test.passed() { "passed" } else { "FAILED" }.into()));
    output::table(&rows)
}

fn findings(options: &DeviceOptions) -> Vec<Finding> {
    let others = [Device::Cuda { ordinal: 0 }, Device::Pjrt { plugin: None, ranks: 1 }, NEURON];
    let devices = Device::BUILT_IN.into_iter().chain(others);
    let findings = devices.map(|device| Finding {
        name: device.name(),
        found: capabilities(&device, options).map_err(|error| error.to_string()),
    });
    findings.collect()
}

/// Instruction sets of this processor that there are kernels for: name and title, the best last.
fn instruction_sets() -> Vec<(&'static str, &'static str)> {
    Isa::available().map(|isa| (isa.name(), isa.title())).collect()
}

fn text_report(options: &DeviceOptions) -> String {
    let chosen = Isa::from_env();
    let mut rows = vec![
        ("samebits", format!("{}, numerics version {NUMERICS_VERSION}", env!("CARGO_PKG_VERSION"))),
        ("processor", format!("{}, {} threads", std::env::consts::ARCH, threads())),
        (
            "memory",
            available_memory().map_or("not told by the system".into(), |n| output::bytes(n) + " available"),
        ),
        ("model cache", checkpoint::Resolver::from_env().cache.display().to_string()),
    ];
    for (name, title) in instruction_sets() {
        let is_chosen = chosen.as_ref().is_ok_and(|isa| isa.name() == name);
        rows.push((
            "instruction set",
            format!("{name} ({title}){}", if is_chosen { ": chosen" } else { "" }),
        ));
    }
    if let Err(error) = &chosen {
        rows.push(("instruction set", format!("problem: {error}")));
    }
    for Finding { name, found } in findings(options) {
        let text = found.map_or_else(|why| format!("not available: {why}"), |found| found.device);
        rows.push(("device", format!("{name}: {text}")));
    }
    output::table(&rows)
}

fn json_report(options: &DeviceOptions) -> Value {
    let sets = instruction_sets();
    let sets = sets.iter().map(|(name, title)| json!({"name": name, "title": title}));
    let devices = findings(options).into_iter().map(|Finding { name, found }| match found {
        Ok(Capabilities { device, numerics, .. }) => {
            json!({"name": name, "available": true, "device": device, "numerics": numerics})
        }
        Err(why) => json!({"name": name, "available": false, "reason": why}),
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "numerics_version": NUMERICS_VERSION,
        "architecture": std::env::consts::ARCH,
        "threads": threads(),
        "available_memory_bytes": available_memory(),
        "model_cache": checkpoint::Resolver::from_env().cache,
        "instruction_set": Isa::from_env().ok().map(Isa::name),
        "instruction_sets": sets.collect::<Vec<_>>(),
        "devices": devices.collect::<Vec<_>>(),
    })
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
