//! Opens a model by its alias and streams an answer: `cargo run --release -p samebits --example 01_generate`.

use samebits::{Message, Model, Params};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open("smollm2")?;
    let question = vec![Message::new("user", "Why does the moon have phases? Answer in two sentences.")];
    for piece in model.stream(question, &Params::default())? {
        print!("{}", piece?);
    }
    println!();
    Ok(())
}
