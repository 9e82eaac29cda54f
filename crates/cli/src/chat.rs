use std::io::{self, BufRead};

use anyhow::bail;
use samebits::{Message, Prompt, Stats};

use crate::{
    args::ChatArgs,
    output,
    run::{answer, print_now, speeds},
};

const HELP: &str =
    "/reset starts over, /stats shows the engine's counts, /exit ends; anything else is said to the model.";

pub(crate) fn chat(args: &ChatArgs) -> anyhow::Result<()> {
    let model = output::open(args.fallback.after(args.model.builder()?)?)?;
    if !model.has_chat_template() {
        bail!(
            "{} has no chat template; give one with --chat-template, or use `samebits run --raw`",
            args.model.model
        );
    }
    let params = args.sampling.params();
    let opening: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut messages = opening.clone();
    eprintln!("{HELP}");
    print_now("> ")?;
    for line in io::stdin().lock().lines() {
        match line?.trim() {
            "" => {}
            "/exit" | "/quit" => return Ok(()),
            "/help" => eprintln!("{HELP}"),
            "/reset" => messages.clone_from(&opening),
            "/stats" => eprint!("{}", stats(&model.stats()?)),
            command if command.starts_with('/') => eprintln!("there is no {command}; {HELP}"),
            text => {
                messages.push(Message::new("user", text));
                match answer(&model, Prompt::Chat(messages.clone()), &params, print_now) {
                    Ok(answer) => {
                        eprintln!("\n[{:.1} tok/s]", speeds(&answer).1);
                        messages.push(Message::new("assistant", answer.text));
                    }
                    // A refused turn, one past the context say, leaves the conversation as it was.
                    Err(error) => {
                        messages.pop();
                        eprintln!("error: {error:#}");
                    }
                }
            }
        }
        print_now("> ")?;
    }
    Ok(())
}

fn stats(stats: &Stats) -> String {
    output::table(&[
        ("running, waiting", format!("{}, {}", stats.running, stats.waiting)),
        ("pages free", format!("{} of {}", stats.pages_free, stats.pages_total)),
        ("pages cached", stats.pages_cached.to_string()),
        ("prompt tokens cached", format!("{} of {}", stats.prefix_hit_tokens, stats.prefix_queried_tokens)),
        ("steps", stats.steps.to_string()),
        ("tokens computed", stats.tokens_computed.to_string()),
        ("tokens generated", stats.tokens_generated.to_string()),
        ("preemptions, retries", format!("{}, {}", stats.preemptions, stats.retries)),
    ])
}
