//! A stand-in for AWS's neuronx-cc with its command line: refuses what that would refuse, and writes the module itself behind
//! a NEFF's header, for the stand-in of libnrt. Nothing is compiled.

use std::{fs, process::ExitCode};

use prost::Message;
use samebits_hlo::{Chip, Interface, Target, lint, proto::HloModule};
use samebits_neuron::{Header, Neff};

const VERSION: &str = "NeuronX Compiler version 0.0.0 (a stand-in for tests; its programs run on CPUs only)";

/// How neuronx-cc ends when it refuses a module.
const REFUSED: u8 = 70;
/// How it ends when it does not understand its command line.
const USAGE: u8 = 2;

/// Does what the command line says, and tells on the standard streams.
pub fn main(arguments: &[String]) -> ExitCode {
    if arguments == ["--version"] {
        println!("{VERSION}");
        return ExitCode::SUCCESS;
    }
    let compiled = Job::parse(arguments).map_err(|what| (USAGE, format!("neuronx-cc: error: {what}")));
    match compiled.and_then(|job| job.compile().map_err(|what| (REFUSED, what))) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, what)) => {
            eprintln!("{what}");
            ExitCode::from(code)
        }
    }
}

struct Job {
    input: String,
    output: String,
    target: Target,
}

impl Job {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let [command, rest @ ..] = arguments else { return Err("no command".into()) };
        if command != "compile" {
            return Err(format!("no command {command}"));
        }
        let (mut input, mut output, mut chip, mut cores) = (None, None, None, 1);
        let mut rest = rest.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().cloned().ok_or_else(|| format!("{argument} without a value"));
            match argument.as_str() {
                "--framework" => expect(argument, &value()?, &["XLA"])?,
                "--model-type" => expect(argument, &value()?, &["generic", "transformer", "unet-inference"])?,
                // Any other would cast, which changes bits.
                "--auto-cast" => expect(argument, &value()?, &["none"])?,
                "--target" => chip = Some(parse_chip(&value()?)?),
                "--output" => output = Some(value()?),
                "-lnc" => cores = value()?.parse().map_err(|_| "-lnc: no number")?,
                "-O1" | "-O2" | "-O3" => {}
                flag if flag.starts_with('-') => return Err(format!("unrecognized arguments: {flag}")),
                file => input = Some(file.to_owned()),
            }
        }
        let target = Target { chip: chip.ok_or("no --target")?, cores_per_logical_core: cores };
        Ok(Job { input: input.ok_or("no module")?, output: output.ok_or("no --output")?, target })
    }

    fn compile(&self) -> Result<(), String> {
        let in_file = |what: &str, why: &dyn std::fmt::Display| format!("ERROR: {what}: {why}");
        let bytes = fs::read(&self.input).map_err(|why| in_file(&self.input, &why))?;
        let module = HloModule::decode(&bytes[..]).map_err(|why| in_file(&self.input, &why))?;
        let refusals = lint(&module, self.target);
        if !refusals.is_empty() {
            let lines = refusals
                .iter()
                .map(|it| format!("ERROR: [{}] {} at {}", it.rule.code(), it.rule, it.instruction));
            return Err(lines.collect::<Vec<_>>().join("\n"));
        }
        Interface::of(&module).map_err(|why| in_file(&self.input, &why))?;
        let header =
            Header { logical_core_size: self.target.cores_per_logical_core, ..Header::new(&module.name) };
        let neff = Neff { header, archive: &bytes }.to_vec();
        fs::write(&self.output, neff).map_err(|why| in_file(&self.output, &why))
    }
}

fn expect(flag: &str, value: &str, known: &[&str]) -> Result<(), String> {
    known.contains(&value).then_some(()).ok_or_else(|| format!("argument {flag}: invalid choice: {value}"))
}

fn parse_chip(name: &str) -> Result<Chip, String> {
    let chip = Chip::ALL.into_iter().find(|chip| chip.name() == name);
    chip.ok_or_else(|| format!("argument --target: invalid choice: {name}"))
}
