//! Writes the module of a softmax of squares to the file that is named, and its text to the output.

use samebits_graph::Trace;
use samebits_hlo::{Options, lower};
use samebits_tensor::DType;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name the file to write")?;
    let trace = Trace::new();
    let x = trace.input("x", [2, 3], DType::F32)?;
    let y = x.mul(&x)?.softmax()?;
    let program = lower(&trace.graph(&[&x], &[("y", &y)])?, &Options::new("softmax"));
    println!("{}", program.module);
    std::fs::write(path, program.bytes())?;
    Ok(())
}
