//! The engine inside an async service: many tasks share one model, whose events reach each through its own channel.
//! `cargo run --release -p samebits --example 02_async_service`.

use samebits::{Event, FinishReason, Message, Model, Params, Prompt};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Loading blocks, so it does not belong on an async thread.
    let model = tokio::task::spawn_blocking(|| Model::open("smollm2")).await??;
    let questions = ["What is rain?", "What is snow?", "What is fog?"];
    let tasks = questions.map(|question| tokio::spawn(answer(model.clone(), question)));
    for (question, task) in questions.iter().zip(tasks) {
        let (text, reason) = task.await??;
        println!("{question}\n{text} ({})\n", reason.as_str());
    }
    Ok(())
}

/// One request, as a handler would serve it. Dropping the future drops the receiver, which cancels the request.
async fn answer(model: Model, question: &str) -> Result<(String, FinishReason), samebits::Error> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let prompt: Prompt = vec![Message::new("user", question)].into();
    let params = Params { max_tokens: 40, ..Params::default() };
    model.submit(prompt, &params, Box::new(move |event| sender.send(event).is_ok()))?;
    let mut text = String::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Token { text: piece, .. } => text.push_str(&piece),
            Event::Finished { reason, .. } => return Ok((text, reason)),
            Event::Failed { error, .. } => return Err(error.into()),
        }
    }
    Err(samebits::ServiceError::Stopped.into())
}
