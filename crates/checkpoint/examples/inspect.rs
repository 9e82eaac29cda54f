//! Prints what is in a model file: `cargo run -p samebits-checkpoint --example inspect -- MODEL`.

use samebits_checkpoint::{Checkpoint, resolve};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).ok_or("give a path, an alias such as smollm2, or a hub id")?;
    let found = resolve(&model)?;
    println!("{}: {}", found.name, found.path.display());
    let checkpoint = Checkpoint::open(found.path)?;
    println!("{:#?}", checkpoint.config);
    println!("{:#?}", checkpoint.generation);
    for share in checkpoint.formats()? {
        println!(
            "{:>8} {:4} tensors {:>12} values {:>12} bytes",
            share.format, share.tensors, share.parameters, share.bytes
        );
    }
    for name in checkpoint.weights.names() {
        let weight = checkpoint.weights.get(&name)?;
        samebits_nn::check_finite(&weight)?;
    }
    println!("{} tensors, all finite", checkpoint.weights.names().len());
    Ok(())
}
