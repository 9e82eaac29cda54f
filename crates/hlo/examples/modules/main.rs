//! Writes modules for another engine to run, each with its arguments and the results that the CPU backend has for them:
//! cases of the conformance suite, and the parts of small models.
//!
//! ```sh
//! cargo run --release -p samebits-hlo --example modules -- /tmp/modules
//! ```
//!
//! `manifest.json` lists the modules. `NUMBER.hlo.pb` is a binary `HloModuleProto`; `NUMBER.safetensors` holds `parameter.N` and
//! `output.N`, in the order of the module's parameters and results. A scalar has no dimensions, and `BOOL` is `pred`.

mod parts;
mod text;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use safetensors::{Dtype, tensor::TensorView};
use samebits_conformance::{Check, Group};
use samebits_cpu::Cpu;
use samebits_graph::{Graph, Op};
use samebits_hlo::{Options, Program, Source, lower};
use samebits_tensor::{Backend, DType, HostTensor, contract::NUMERICS_VERSION};
use serde_json::{Value, json};

use parts::Part;
use text::{Suite, Text};

#[derive(Parser)]
struct Args {
    /// Where to: a directory that is empty, or not there yet.
    directory: PathBuf,
    /// Takes every so many-th case of each operation, the first among them.
    #[arg(long, default_value_t = 1)]
    stride: usize,
    /// Leaves out modules that compute more elements than this, products among them.
    #[arg(long, default_value_t = 300_000)]
    work_max: usize,
    /// Takes every part of the small models, whatever they compute.
    #[arg(long)]
    models: bool,
    /// Lowers as for neuronx-cc: dots of bf16, named tensors.
    #[arg(long)]
    neuron: bool,
    /// Lowers without guards, to see what an engine does of its own.
    #[arg(long)]
    unguarded: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut export = Export::new(args)?;
    Group::ALL.iter().try_for_each(|&group| export.group(group))?;
    if export.args.models {
        let mut write = |part: &Part<'_>| export.write("model", part, &part.record()?);
        parts::NAMES.into_iter().try_for_each(|name| parts::each(name, &mut write))?;
    }
    export.finish()
}

struct Export {
    args: Args,
    cpu: Cpu,
    modules: Vec<Value>,
    /// Cases by group.
    left_out: BTreeMap<String, usize>,
}

impl Export {
    fn new(args: Args) -> Result<Self> {
        let directory = &args.directory;
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let is_empty = fs::read_dir(directory)?.next().is_none();
        ensure!(is_empty, "{}: is not empty; name another directory", directory.display());
        Ok(Export { args, cpu: Cpu::new()?, modules: Vec::new(), left_out: BTreeMap::new() })
    }

    fn options(&self, module: String) -> Options {
        let options = if self.args.neuron { Options::neuron(module) } else { Options::new(module) };
        Options { guard: !self.args.unguarded, ..options }
    }

    /// Writes the modules of a group that are small enough; each operation must have one.
    fn group(&mut self, group: Group) -> Result<()> {
        let (before, checks) = (self.modules.len(), group.checks());
        let cases = checks.iter().step_by(self.args.stride.max(1)).flat_map(Check::cases);
        for text in cases.map(Suite) {
            let graph = text.record().with_context(|| text.name())?;
            if work(&graph) <= self.args.work_max {
                self.write(group.name(), &text, &graph)?;
            } else {
                *self.left_out.entry(group.name().into()).or_default() += 1;
            }
        }
        let is_operation = checks.iter().any(|check| matches!(check, Check::Reference(_)));
        let is_absent = is_operation && self.modules.len() == before;
        ensure!(!is_absent, "{}: no case is within --work-max", group.name());
        Ok(())
    }

    /// Writes a text's module, arguments and results.
    fn write(&mut self, group: &str, text: &impl Text, graph: &Graph) -> Result<()> {
        let program = lower(graph, &self.options(text.name()));
        let expected = text.run(&self.cpu).with_context(|| text.name())?;

        let file = format!("{:04}", self.modules.len());
        let path = |suffix: &str| self.args.directory.join(format!("{file}.{suffix}"));
        fs::write(path("hlo.pb"), program.bytes())?;
        write_tensors(&path("safetensors"), &arguments(&program, graph, &text.inputs())?, &expected)?;
        self.modules.push(json!({
            "file": file,
            "name": text.name(),
            "group": group,
            "work": work(graph),
            "zero_sign_is_open": text.zero_sign_is_open(),
        }));
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let (count, left_out) = (self.modules.len(), self.left_out.values().sum::<usize>());
        let Args { directory, work_max, neuron, unguarded, .. } = self.args;
        let manifest = json!({
            "numerics_version": NUMERICS_VERSION,
            "expected_from": self.cpu.capabilities().device,
            "lowered_for": if neuron { "neuronx-cc" } else { "plugins" },
            "guarded": !unguarded,
            "work_max": work_max,
            "left_out": self.left_out,
            "modules": self.modules,
        });
        fs::write(directory.join("manifest.json"), serde_json::to_string_pretty(&manifest)?)?;
        println!("{count} modules in {}, {left_out} left out for their work", directory.display());
        Ok(())
    }
}

/// Elements that a graph computes, and products that it sums.
fn work(graph: &Graph) -> usize {
    let of = |node: &samebits_graph::Node| match node.op {
        Op::MatmulExact => node.shape.elements() * graph.node(node.operands[0]).shape.dims()[2],
        Op::Input(_) | Op::Constant(_) => 0,
        _ => node.shape.elements(),
    };
    graph.nodes().iter().map(of).sum()
}

/// The value of each parameter.
fn arguments(program: &Program, graph: &Graph, inputs: &[HostTensor]) -> Result<Vec<HostTensor>> {
    let value = |source| match source {
        Source::Input(index) => Ok(inputs[index].clone()),
        Source::Constant(index) => {
            graph.constants()[index].value.clone().context("a constant without a value")
        }
        Source::Zero => Ok(HostTensor::of([], &[0i32])?),
    };
    program.parameters.iter().map(|parameter| value(parameter.source)).collect()
}

fn write_tensors(path: &Path, parameters: &[HostTensor], outputs: &[HostTensor]) -> Result<()> {
    let named = |kind: &'static str| move |(i, x)| Ok((format!("{kind}.{i}"), view(x)?));
    let parameters = parameters.iter().enumerate().map(named("parameter"));
    let tensors = parameters.chain(outputs.iter().enumerate().map(named("output")));
    let tensors: Vec<(String, TensorView<'_>)> = tensors.collect::<Result<_>>()?;
    safetensors::serialize_to_file(tensors, None, path).with_context(|| path.display().to_string())
}

fn view(x: &HostTensor) -> Result<TensorView<'_>> {
    let dtype = match x.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I8 => Dtype::I8,
        DType::U8 => Dtype::U8,
        DType::I32 => Dtype::I32,
        DType::Bool => Dtype::BOOL,
    };
    Ok(TensorView::new(dtype, x.shape().dims().to_vec(), x.bytes())?)
}
