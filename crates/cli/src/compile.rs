use std::time::Instant;

use crate::{args::CompileArgs, output};

pub(crate) fn compile(args: &CompileArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let bar = output::compiling_bar();
    args.model.builder()?.compile(&|done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    println!("compiled in {:.1} s; later starts find the programs", start.elapsed().as_secs_f64());
    Ok(())
}
