//! `samebits bench`: a model's steps, or the kernels, against what the machine can do at the same time.

mod kernels;
mod llama_cpp;
mod machine;
mod plot;
mod report;
mod selection;
mod stats;
mod steps;

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use samebits::{Builder, Device, DeviceOptions, Error, Loaded, Model, Plan, RunnerConfig, runner::PlanError};

use crate::{args::BenchArgs, output};
use llama_cpp::LlamaCpp;
use machine::Machine;
use report::{Results, Round};
use steps::{Prepared, Test};

/// The most memory that is read to measure how fast that goes; no cache is as large.
const BUFFER_BYTES_MAX: u64 = 1 << 30;

/// The least, for models that are smaller than a second-level cache.
const BUFFER_BYTES_MIN: u64 = 1 << 16;

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    if args.repetitions == 0 {
        bail!("--repetitions is 0; give at least 1");
    }
    let interrupt = Interrupt::watch()?;
    match &args.model {
        Some(model) => bench_model(model, args, &interrupt),
        None => kernels::bench(args, &interrupt),
    }
}

fn bench_model(model: &str, args: &BenchArgs, interrupt: &Interrupt) -> anyhow::Result<()> {
    let (device, options) = args.device.choice()?;
    let files = plan(model, device.clone(), options.clone(), args)?;
    let tests = selection::tests(args, files.checkpoint.config.max_position_embeddings)?;
    let machine = Machine::new(&options.cpu, files.memory.weights.clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX))?;
    let peer = args.against.as_ref();
    let peer = peer.map(|against| {
        LlamaCpp::find(against, &files.checkpoint, machine.threads(), args.max_num_batched_tokens, &tests)
    });
    let peer = peer.transpose()?;
    let serving = serving(args, &tests, &files);
    let builder = Model::builder(model).device(device.clone()).options(options).runner(serving);
    let mut loaded = load(builder)?;
    let prepared: Result<Vec<_>, _> = tests.iter().map(|&test| Prepared::new(test, &loaded)).collect();
    let prepared = prepared?;
    let rounds = rounds(args, &machine, &mut loaded, &prepared, peer.as_ref(), interrupt)?;
    let results = Results {
        model: model.into(),
        files: loaded.plan.checkpoint.files,
        device,
        isa: machine.isa(),
        threads: machine.threads(),
        tests: prepared,
        rounds,
        rounds_asked: args.repetitions,
        peer: peer.map(|peer| peer.title()),
    };
    if let Some(path) = &args.plot {
        plot::write(&results, path)?;
    }
    match args.json {
        true => println!("{:#}", results.json()),
        false => print!("{}", results.text()),
    }
    Ok(())
}

/// The model's files and sizes, for as little memory as may be.
fn plan(model: &str, device: Device, options: DeviceOptions, args: &BenchArgs) -> anyhow::Result<Plan> {
    let smallest = RunnerConfig {
        max_context: 2,
        page_size: args.block_size,
        max_tokens_per_step: args.max_num_batched_tokens,
        max_seqs_per_step: 1,
        kv_cache_memory_bytes: None,
    };
    Ok(Model::builder(model).device(device).options(options).runner(smallest).plan()?)
}

/// Room for the largest of the tests, and no more.
fn serving(args: &BenchArgs, tests: &[Test], files: &Plan) -> RunnerConfig {
    let most = |of: &dyn Fn(&Test) -> usize| tests.iter().map(of).max().unwrap_or(1);
    let pages = 1 + most(&|test| test.pages(args.block_size));
    RunnerConfig {
        max_context: most(&Test::context).max(2),
        page_size: args.block_size,
        max_tokens_per_step: args.max_num_batched_tokens,
        max_seqs_per_step: most(&Test::batch).max(args.max_num_batched_tokens / args.block_size),
        kv_cache_memory_bytes: Some((pages * args.block_size) as u64 * files.memory.kv_per_token),
    }
}

fn load(builder: Builder) -> anyhow::Result<Loaded> {
    output::with_bar(builder).load().map_err(|error| match error {
        Error::Plan(PlanError::OutOfMemory { needed, available }) => anyhow!(
            "the tests need {} and {} are there; lower --batch or --context",
            output::bytes(needed),
            output::bytes(available)
        ),
        error => error.into(),
    })
}

/// Runs every test once to warm up, then rounds of the machine's limits, every test, and the peer. A round that is
/// interrupted does not count.
fn rounds(
    args: &BenchArgs,
    machine: &Machine,
    loaded: &mut Loaded,
    tests: &[Prepared],
    peer: Option<&LlamaCpp>,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Round>> {
    let runner = &mut *loaded.runner;
    let pages = tests.iter().map(|prepared| prepared.test.pages(args.block_size)).max().unwrap_or(0);
    let filling = bar("filling the cache", pages);
    steps::fill(runner, pages, interrupt, &|done| filling.set_position(done as u64))?;
    filling.finish_and_clear();
    let bar = bar("rounds", (1 + args.repetitions) * tests.len());
    let mut rounds: Vec<Round> = Vec::new();
    for round in 0..=args.repetitions {
        let ceilings = machine.ceilings();
        let mut seconds = Vec::new();
        for prepared in tests {
            if interrupt.is_set() {
                break;
            }
            seconds.push(prepared.run(runner)?.as_secs_f64());
            bar.inc(1);
        }
        let is_warm_up = round == 0;
        let speeds = match peer {
            Some(peer) if !is_warm_up && !interrupt.is_set() => peer.round(interrupt)?,
            _ => None,
        };
        if interrupt.is_set() {
            break;
        }
        if !is_warm_up {
            rounds.push(Round { ceilings, seconds, peer: speeds });
        }
    }
    bar.finish_and_clear();
    if rounds.is_empty() {
        bail!("interrupted before the first round was complete; nothing was measured");
    }
    Ok(rounds)
}

/// A bar on standard error; nothing if that is not a terminal.
fn bar(name: &'static str, total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total as u64).with_style(style).with_message(name)
}

/// Whether Ctrl-C was pressed. The second time ends the program at once.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn watch() -> anyhow::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let flag = interrupt.0.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::Relaxed) {
                process::exit(130);
            }
        })?;
        Ok(interrupt)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
