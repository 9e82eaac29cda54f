//! The `samebits` command: run, chat, plan, bench, compile and doctor.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod compile;
mod doctor;
mod output;
mod plan;
mod run;

use std::{io::IsTerminal, process::ExitCode};

use args::{Args, Command};
use clap::Parser;
use tracing_subscriber::EnvFilter;

/// What is logged unless `RUST_LOG` says otherwise.
const LEVELS: &str = "error,samebits=warn";

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVELS)))
        .without_time()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Chat(args) => chat::chat(&args).map(|()| ExitCode::SUCCESS),
        Command::Plan(args) => plan::plan(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::bench(&args).map(|()| ExitCode::SUCCESS),
        Command::Compile(args) => compile::compile(&args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => doctor::doctor(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
