use samebits::{CpuOptions, Device, Isa, NUMERICS_VERSION, available_memory, capabilities, checkpoint};
use serde_json::{Value, json};

use crate::{args::DoctorArgs, output};

/// Backends that this version does not have, and what stands for them.
const ABSENT: [(&str, &str); 2] =
    [("cuda", "this version has no CUDA backend"), ("neuron", "this version has no Neuron backend")];

/// A device and what was found of it.
struct Finding {
    name: &'static str,
    found: Result<String, String>,
}

pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<()> {
    match args.json {
        true => println!("{:#}", json_report()),
        false => print!("{}", text_report()),
    }
    Ok(())
}

fn findings() -> Vec<Finding> {
    let devices = Device::BUILT_IN.into_iter().chain([Device::Pjrt { plugin: None, ranks: 1 }]);
    let present = devices.map(|device| Finding {
        name: device.name(),
        found: capabilities(&device, &CpuOptions::default())
            .map(|capabilities| capabilities.device)
            .map_err(|error| error.to_string()),
    });
    let absent = ABSENT.into_iter().map(|(name, why)| Finding { name, found: Err(why.into()) });
    present.chain(absent).collect()
}

/// Instruction sets of this processor that there are kernels for: name and title, the best last.
fn instruction_sets() -> Vec<(&'static str, &'static str)> {
    Isa::available().map(|isa| (isa.name(), isa.title())).collect()
}

fn text_report() -> String {
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
    for Finding { name, found } in findings() {
        let text = found.unwrap_or_else(|why| format!("not available: {why}"));
        rows.push(("device", format!("{name}: {text}")));
    }
    output::table(&rows)
}

fn json_report() -> Value {
    let sets = instruction_sets();
    let sets = sets.iter().map(|(name, title)| json!({"name": name, "title": title}));
    let devices = findings().into_iter().map(|Finding { name, found }| match found {
        Ok(device) => json!({"name": name, "available": true, "device": device}),
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
