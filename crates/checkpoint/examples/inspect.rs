//! Prints what is in a model file: `cargo run -p samebits-checkpoint --example inspect -- MODEL`.

use samebits_checkpoint::Checkpoint;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a .gguf file or a model directory")?;
    let checkpoint = Checkpoint::open(path)?;
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
