use std::{
    io::{self, IsTerminal, Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use samebits::{FinishReason, Message, Model, Params, Prompt, Usage};
use serde_json::json;

use crate::{args::RunArgs, output};

/// An answer and how long it took.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) reason: FinishReason,
    pub(crate) usage: Usage,
    pub(crate) first: Duration,
    pub(crate) rest: Duration,
}

pub(crate) fn run(args: &RunArgs) -> anyhow::Result<()> {
    let text = prompt_text(args)?;
    let start = Instant::now();
    let model = output::open(args.fallback.after(args.model.builder()?)?)?;
    let loaded = start.elapsed();
    let prompt = prompt(args, &model, text);
    let params = args.sampling.params();
    let show = |piece: &str| if args.json { Ok(()) } else { print_now(piece) };
    let answer = answer(&model, prompt, &params, show)?;
    if args.json {
        println!("{}", json_report(&model, &params, &answer, loaded));
    } else {
        println!();
        eprintln!("\n{}", summary(&model, &params, &answer, loaded));
    }
    Ok(())
}

/// Streams one answer, each piece of which goes to `show`.
pub(crate) fn answer(
    model: &Model,
    prompt: Prompt,
    params: &Params,
    show: impl Fn(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let mut stream = model.stream(prompt, params)?;
    let (mut text, mut first) = (String::new(), None);
    for piece in stream.by_ref() {
        let piece = piece?;
        first.get_or_insert_with(|| start.elapsed());
        show(&piece)?;
        text.push_str(&piece);
    }
    let (reason, usage) = stream.end().context("the engine stopped before the answer ended")?;
    let first = first.unwrap_or_else(|| start.elapsed());
    let rest = start.elapsed() - first;
    Ok(Answer { text, tokens: stream.tokens().to_vec(), reason, usage, first, rest })
}

pub(crate) fn print_now(piece: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(piece.as_bytes())?;
    out.flush()
}

/// Tokens of the prompt, without those that were found in the cache, and of the answer, each a second.
pub(crate) fn speeds(answer: &Answer) -> (f64, f64) {
    let decoded = answer.usage.completion_tokens.saturating_sub(1) as f64;
    let rate = |tokens: f64, time: Duration| if tokens > 0.0 { tokens / time.as_secs_f64() } else { 0.0 };
    let computed = answer.usage.prompt_tokens.saturating_sub(answer.usage.cached_tokens);
    (rate(computed as f64, answer.first), rate(decoded, answer.rest))
}

fn prompt_text(args: &RunArgs) -> anyhow::Result<String> {
    match args.prompt.as_deref() {
        Some(text) if text != "-" => Ok(text.into()),
        None if io::stdin().is_terminal() => bail!("no prompt; give one after the model, or pipe it in"),
        _ => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("standard input")?;
            Ok(text)
        }
    }
}

fn prompt(args: &RunArgs, model: &Model, text: String) -> Prompt {
    if args.raw || !model.has_chat_template() {
        return Prompt::Text(text);
    }
    let system = args.system.as_ref().map(|system| Message::new("system", system));
    Prompt::Chat(system.into_iter().chain([Message::new("user", text)]).collect())
}

fn summary(model: &Model, params: &Params, answer: &Answer, loaded: Duration) -> String {
    let (prefill, decode) = speeds(answer);
    let seed = match params.sampling.temperature {
        0.0 => String::new(),
        _ => format!(", seed {}", params.sampling.seed),
    };
    format!(
        "{}: loaded in {:.2} s; prompt {} tokens in {:.2} s ({prefill:.0} tok/s); \
         answer {} tokens at {decode:.1} tok/s ({}{seed})",
        model.device(),
        loaded.as_secs_f64(),
        answer.usage.prompt_tokens,
        answer.first.as_secs_f64(),
        answer.usage.completion_tokens,
        answer.reason.as_str(),
    )
}

fn json_report(model: &Model, params: &Params, answer: &Answer, loaded: Duration) -> serde_json::Value {
    let (prefill, decode) = speeds(answer);
    json!({
        "text": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.reason.as_str(),
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "cached_tokens": answer.usage.cached_tokens,
        },
        "device": model.device().name(),
        "numerics_version": samebits::NUMERICS_VERSION,
        "seed": params.sampling.seed,
        "load_seconds": loaded.as_secs_f64(),
        "first_token_seconds": answer.first.as_secs_f64(),
        "prompt_tokens_per_second": prefill,
        "completion_tokens_per_second": decode,
    })
}
