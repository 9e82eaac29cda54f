use std::{collections::hash_map::RandomState, hash::BuildHasher, num::NonZeroUsize, path::PathBuf};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use samebits::{
    Builder, Chip, CpuOptions, CudaOptions, Device, DeviceOptions, Isa, Model, NeuronOptions, Numerics,
    Params, RunnerConfig, SamplingParams, Stop, engine::EngineConfig, tensor::Format,
};

/// Runs language models with the same bits on every chip.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  samebits run smollm2 \"Why is the sky blue?\"
  samebits run ./model.Q4_K_M.gguf --raw \"Once upon a time\" --temperature 0.8 --seed 7
  samebits chat smollm2 --system \"Answer in one sentence.\"
  samebits plan smollm2 --max-model-len 8192
  samebits bench smollm2 --against llama.cpp
  samebits compile smollm2 --device pjrt:/opt/plugin.so
  samebits compile smollm2 --device neuron --neuron-target trn2
  samebits run smollm2 \"Why is the sky blue?\" --device cuda
  samebits doctor
  samebits doctor --device neuron --selftest --json

MODEL is a GGUF file, a directory with config.json and safetensors, a hub id such as
org/name or org/name:Q4_K_M, or the alias smollm2.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Continue one prompt, and print tokens per second.
    Run(RunArgs),
    /// Talk with a model.
    Chat(ChatArgs),
    /// Say what serving a model would take, in bytes, before anything is allocated.
    Plan(PlanArgs),
    /// Measure a model or the kernels against what the machine can do.
    Bench(BenchArgs),
    /// Compile a model for a device that compiles ahead, so that no request waits for it.
    Compile(CompileArgs),
    /// Say which devices there are, and why others are not.
    Doctor(DoctorArgs),
}

#[derive(clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) fallback: FallbackArgs,
    /// What to continue; read from standard input if it is - or left out.
    pub(crate) prompt: Option<String>,
    /// Take the prompt as plain text, without the model's chat template.
    #[arg(long)]
    pub(crate) raw: bool,
    /// System message of the chat template.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Print one JSON object at the end instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) fallback: FallbackArgs,
    /// System message.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

#[derive(clap::Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The steps that are compiled for are those that `run` and `chat` take with the same options of serving.
#[derive(clap::Args)]
pub(crate) struct CompileArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(clap::Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub(crate) struct BenchArgs {
    /// GGUF file, directory, hub id or alias.
    #[arg(required_unless_present = "kernels")]
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Lengths of prompts to prefill, 0 for none; 128,512 if left out, as far as the model goes.
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) prompt_tokens: Option<Vec<usize>>,
    /// Numbers of sequences to decode together, 0 for none.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,4,16,32")]
    pub(crate) batch: Vec<usize>,
    /// Tokens that each sequence has before those decoded; 0,1024,4096 if left out, as far as the model goes.
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub(crate) context: Option<Vec<usize>>,
    /// Decode every batch at every context, not only at the first, and every context with the first batch.
    #[arg(long)]
    pub(crate) grid: bool,
    /// Tokens that each sequence decodes in a round.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(crate) decode_tokens: usize,
    /// Rounds; in each, every test runs once.
    #[arg(long, short, value_name = "N", default_value_t = 10)]
    pub(crate) repetitions: usize,
    /// Most tokens in one step.
    #[arg(long, default_value_t = 512, help_heading = "Serving")]
    pub(crate) max_num_batched_tokens: usize,
    /// Tokens of a page of the cache; a power of two up to 128.
    #[arg(long, default_value_t = 32, help_heading = "Serving")]
    pub(crate) block_size: usize,
    /// Measure llama.cpp in turn, on the same GGUF file and as many threads; its programs are searched in PATH, or where
    /// this says.
    #[arg(long, value_name = "llama.cpp[=PATH]", value_parser = parse_against)]
    pub(crate) against: Option<Against>,
    /// Draw tokens a second by batch, and milliseconds a token by context.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object; docs/benchmarks.md has its fields.
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure the linear kernels of the CPU instead of a model: every format on every instruction set.
    #[arg(long, conflicts_with_all = ["model", "device", "prompt_tokens", "batch", "context", "grid", "decode_tokens",
        "max_num_batched_tokens", "block_size", "against", "plot"])]
    pub(crate) kernels: bool,
    /// Formats of --kernels; all if left out.
    #[arg(long, value_name = "FORMAT,...", value_delimiter = ',', conflicts_with = "model")]
    pub(crate) format: Vec<Format>,
}

const BENCH_EXAMPLES: &str = "\
Examples:
  samebits bench smollm2
  samebits bench ./model.Q4_0.gguf --prompt-tokens 512 --batch 1,8 --context 0,2048 --threads 4
  samebits bench ./model.Q4_0.gguf --against llama.cpp=/opt/llama.cpp/build/bin
  samebits bench smollm2 --grid --plot cost.svg --json > cost.json
  samebits bench --kernels --format Q4_0,Q4_K --isa avx2 --threads 1

Each round runs every test once, and the machine's own limits between them: how fast it reads memory, and how many int8 and
f32 operations it does. Figures are medians of the rounds. Ctrl-C ends after the test that runs, with what there is by then.";

/// A program to measure in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Against {
    /// Where llama.cpp's programs are; searched in PATH if not given.
    pub(crate) path: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Test a device: whether it has the bits of the reference. Fails if it has not.
    #[arg(long, requires = "device")]
    pub(crate) selftest: bool,
    /// The device to test: cuda, cuda:NUMBER, neuron, neuron:CORE, pjrt or pjrt:PATH.
    #[arg(long, requires = "selftest")]
    pub(crate) device: Option<String>,
    /// Cases of each operation to test; 2 if left out.
    #[arg(long, value_name = "N", requires = "selftest")]
    pub(crate) cases: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) neuron: NeuronArgs,
}

#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// GGUF file, directory, hub id or alias.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Longest context of a request, in tokens; the model's own at most.
    #[arg(long, default_value_t = 4096, help_heading = "Serving")]
    pub(crate) max_model_len: usize,
    /// Bytes for the key-value cache; room for two of the longest requests if left out.
    #[arg(long, help_heading = "Serving")]
    pub(crate) kv_cache_memory_bytes: Option<u64>,
    /// Most sequences computed at once.
    #[arg(long, default_value_t = 64, help_heading = "Serving")]
    pub(crate) max_num_seqs: usize,
    /// Most tokens in one step.
    #[arg(long, default_value_t = 512, help_heading = "Serving")]
    pub(crate) max_num_batched_tokens: usize,
    /// Tokens of a page of the cache; a power of two up to 128.
    #[arg(long, default_value_t = 32, help_heading = "Serving")]
    pub(crate) block_size: usize,
    /// Compute every prompt from its start, also where an earlier one began alike.
    #[arg(long, help_heading = "Serving")]
    pub(crate) no_prefix_caching: bool,
    /// Keep the packed weights in a file of this directory, as large as the model's, for the next start to map.
    #[arg(long, value_name = "DIR", help_heading = "Serving")]
    pub(crate) packed_cache: Option<PathBuf>,
    /// Jinja file to use instead of the model's chat template.
    #[arg(long, value_name = "FILE", help_heading = "Serving")]
    pub(crate) chat_template: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where to run: cpu, candle, candle-float, reference, cuda:NUMBER for an NVIDIA GPU among those that CUDA_VISIBLE_DEVICES
    /// leaves, pjrt:PATH for the first device of a PJRT plugin, or neuron:CORE.
    #[arg(long, default_value = "cpu", help_heading = "Device")]
    pub(crate) device: String,
    /// Devices that share each layer, each with its part of the weights and of the cache: for pjrt and neuron. The bits stay
    /// the same.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Device")]
    pub(crate) tensor_parallel_size: usize,
    /// Threads of the CPU; one a core if left out.
    #[arg(long, help_heading = "Device")]
    pub(crate) threads: Option<usize>,
    /// Keep each thread of the CPU on a core of its own, where the machine computes nothing else.
    #[arg(long, help_heading = "Device")]
    pub(crate) pin: bool,
    /// Instruction set of the CPU, as `samebits doctor` lists them; the best one if left out.
    #[arg(long, help_heading = "Device")]
    pub(crate) isa: Option<String>,
    /// How cuda computes linear layers: exact, with the bits of every other device, or fast, through cuBLASLt in bf16 where a step has
    /// more than 64 tokens. Fast promises no bits; docs/cuda.md has more.
    #[arg(long, value_enum, default_value_t, help_heading = "Device")]
    pub(crate) numerics: NumericsArg,
    #[command(flatten)]
    pub(crate) neuron: NeuronArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NumericsArg {
    /// The contract's bits.
    #[default]
    Exact,
    /// No bits promised, of cuda alone.
    Fast,
}

#[derive(clap::Args)]
pub(crate) struct FallbackArgs {
    /// Where to run if the device cannot be opened or has too little memory, with a warning; may be given several times. Without it
    /// that is an error.
    #[arg(long, value_name = "DEVICE", help_heading = "Device")]
    pub(crate) fallback: Vec<String>,
}

/// For the device `neuron`; docs/neuron.md has more.
#[derive(clap::Args)]
#[command(next_help_heading = "Neuron")]
pub(crate) struct NeuronArgs {
    /// The runtime; SAMEBITS_LIBNRT if left out, or where AWS installs it.
    #[arg(long, value_name = "libnrt.so.1")]
    pub(crate) neuron_runtime: Option<PathBuf>,
    /// The compiler; SAMEBITS_NEURONX_CC if left out, or the one in PATH.
    #[arg(long, value_name = "neuronx-cc")]
    pub(crate) neuron_compiler: Option<PathBuf>,
    /// The chip to compile for: inf2, trn1, trn2 or trn3; this host's if left out.
    #[arg(long, value_name = "CHIP", value_parser = parse_chip)]
    pub(crate) neuron_target: Option<Chip>,
    /// Physical cores of a logical one; as NEURON_LOGICAL_NC_CONFIG has it if left out, or 2 where the chip can.
    #[arg(long, value_name = "N")]
    pub(crate) neuron_lnc: Option<u32>,
    /// Compile nothing: a program that `samebits compile` has not made is an error.
    #[arg(long)]
    pub(crate) require_compiled: bool,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Most tokens of output.
    #[arg(long, short = 'n', default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token each time.
    #[arg(long, short = 't', default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Choose among this many of the likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Choose among the likeliest tokens whose probabilities reach this sum.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Choose among tokens at least this many times as likely as the likeliest.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) min_p: f32,
    /// Weaken tokens that were there before, if above 1.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,
    /// Subtract this from a token's logit for each time it was given.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Subtract this from the logit of a token that was given.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
    /// Add VALUE to the logit of token ID; may be given several times.
    #[arg(long, value_name = "ID=VALUE", value_parser = parse_bias, allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws: the same seed gives the same tokens. Made up and printed if left out.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// End the answer where this text would begin; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on past the end-of-sequence token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl ModelArgs {
    pub(crate) fn builder(&self) -> anyhow::Result<Builder> {
        let (device, options) = self.device.choice()?;
        let builder =
            Model::builder(&self.model).device(device).options(options).runner(self.runner_config());
        let builder = builder
            .engine(EngineConfig { prefix_caching: !self.no_prefix_caching, ..EngineConfig::default() });
        let builder = match &self.packed_cache {
            Some(directory) => builder.packed_cache(directory),
            None => builder,
        };
        let Some(path) = &self.chat_template else { return Ok(builder) };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("--chat-template {}", path.display()))?;
        Ok(builder.chat_template(text))
    }

    fn runner_config(&self) -> RunnerConfig {
        RunnerConfig {
            max_context: self.max_model_len,
            kv_cache_memory_bytes: self.kv_cache_memory_bytes,
            page_size: self.block_size,
            max_tokens_per_step: self.max_num_batched_tokens,
            max_seqs_per_step: self.max_num_seqs,
        }
    }
}

impl DeviceArgs {
    pub(crate) fn choice(&self) -> anyhow::Result<(Device, DeviceOptions)> {
        let device = self.device.parse::<Device>()?.with_ranks(self.tensor_parallel_size)?;
        let isa = self.isa.as_deref().map(Isa::named).transpose()?;
        if self.threads == Some(0) {
            bail!("--threads is 0; give at least 1");
        }
        let cpu = CpuOptions { threads: self.threads, isa, pin: self.pin };
        let neuron = self.neuron.options(&device)?;
        let numerics = match self.numerics {
            NumericsArg::Exact => Numerics::Exact,
            NumericsArg::Fast => Numerics::Fast,
        };
        let cuda = CudaOptions { numerics, ..CudaOptions::default() };
        Ok((device, DeviceOptions { cpu, cuda, neuron }))
    }
}

impl FallbackArgs {
    /// Devices to be tried in turn.
    pub(crate) fn after(&self, builder: Builder) -> anyhow::Result<Builder> {
        self.fallback.iter().try_fold(builder, |builder, name| Ok(builder.fallback(name.parse()?)))
    }
}

impl NeuronArgs {
    /// The options, which no other device takes.
    pub(crate) fn options(&self, device: &Device) -> anyhow::Result<NeuronOptions> {
        let options = NeuronOptions {
            runtime: self.neuron_runtime.clone(),
            compiler: self.neuron_compiler.clone(),
            chip: self.neuron_target,
            cores_per_logical_core: self.neuron_lnc,
            require_compiled: self.require_compiled,
        };
        if !matches!(device, Device::Neuron { .. }) && options != NeuronOptions::default() {
            bail!("options of Neuron were given, and the device is {device}; give --device neuron");
        }
        Ok(options)
    }
}

impl SamplingArgs {
    pub(crate) fn params(&self) -> Params {
        let sampling = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(any_seed),
            logprobs: None,
        };
        let stop = Stop { strings: self.stop.clone(), ignore_eos: self.ignore_eos, ..Stop::default() };
        Params { max_tokens: self.max_tokens, sampling, stop, ..Params::default() }
    }
}

/// A seed from the operating system's entropy, short enough to be typed.
fn any_seed() -> u64 {
    RandomState::new().hash_one(()) >> 32
}

fn parse_chip(name: &str) -> Result<Chip, String> {
    let chip = Chip::ALL.into_iter().find(|chip| chip.name() == name);
    chip.ok_or_else(|| format!("{name:?} is not one of {}", Chip::ALL.map(Chip::name).join(", ")))
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, value)| Some((id.parse().ok()?, value.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not ID=VALUE, such as 42=-5"))
}

fn parse_against(text: &str) -> Result<Against, String> {
    match text.split_once('=').map_or((text, None), |(program, path)| (program, Some(path))) {
        ("llama.cpp", Some("")) => Err("no path after llama.cpp=".into()),
        ("llama.cpp", path) => Ok(Against { path: path.map(PathBuf::from) }),
        (program, _) => Err(format!("{program:?} is not known; only llama.cpp is")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_bias_is_an_id_and_a_value() {
        assert_eq!(parse_bias("42=-5.5"), Ok((42, -5.5)));
        assert!(parse_bias("42").is_err() && parse_bias("x=1").is_err());
    }

    #[test]
    fn options_of_neuron_are_for_neuron() {
        let options = |line: &str| {
            let Args { command: Command::Compile(args) } = Args::try_parse_from(line.split(' '))? else {
                bail!("another command")
            };
            Ok(args.model.device.choice()?.1.neuron)
        };
        let found =
            options("samebits compile m --device neuron:3 --neuron-target trn2 --neuron-lnc 1").unwrap();
        assert_eq!((found.chip, found.cores_per_logical_core), (Some(Chip::Trn2), Some(1)));
        for (wrong, what) in [
            ("--require-compiled", "device is cpu"),
            ("--device neuron --neuron-target h100", "inf2, trn1, trn2, trn3"),
            ("--device neuron:x", "neuron:CORE"),
        ] {
            let error = options(&format!("samebits compile m {wrong}")).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_peer_may_have_a_path() {
        assert_eq!(parse_against("llama.cpp"), Ok(Against { path: None }));
        assert_eq!(parse_against("llama.cpp=/opt/x=y"), Ok(Against { path: Some("/opt/x=y".into()) }));
        assert!(parse_against("llama.cpp=").is_err() && parse_against("vllm").is_err());
    }

    #[test]
    fn options_of_models_are_not_those_of_kernels() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ')).map(|_| ());
        assert!(parse("samebits bench --kernels --format q4_0,Q4_K --threads 1 --isa avx2 -r 3").is_ok());
        assert!(parse("samebits bench m --batch 1,2 --context 0 --against llama.cpp").is_ok());
        for wrong in [
            "",
            " m --kernels",
            " --kernels --batch 2",
            " m --format Q4_0",
            " --kernels --format Q9",
            " m --batch x",
        ] {
            assert!(parse(&format!("samebits bench{wrong}")).is_err(), "{wrong}");
        }
    }
}
