use samebits::{Plan, available_memory};
use serde_json::json;

use crate::{args::PlanArgs, output};

pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let plan = args.model.builder()?.plan()?;
    match args.json {
        true => println!("{:#}", json_plan(&plan)?),
        false => print!("{}", text_plan(&plan)?),
    }
    Ok(())
}

fn text_plan(plan: &Plan) -> anyhow::Result<String> {
    let (config, memory) = (&plan.checkpoint.config, &plan.memory);
    let formats = plan.checkpoint.formats()?;
    let parameters: u64 = formats.iter().map(|share| share.parameters).sum();
    let shares = formats.iter().map(|share| format!("{} {}", share.format, output::bytes(share.bytes)));
    let mut rows = vec![
        ("model", format!("{}, {:.1}M parameters", config.architecture, parameters as f64 / 1e6)),
        ("formats", shares.collect::<Vec<_>>().join(", ")),
        ("weights", output::bytes(memory.weights)),
        ("rotary tables", output::bytes(memory.tables)),
        (
            "key-value cache",
            format!(
                "{} ({} pages of {} tokens, {} a token)",
                output::bytes(memory.kv_cache),
                memory.pages,
                memory.page_size,
                output::bytes(memory.kv_per_token)
            ),
        ),
        ("activations", output::bytes(memory.activations)),
        ("recorded steps", output::bytes(memory.recorded_steps)),
        ("total", output::bytes(memory.total())),
        ("longest context", format!("{} tokens", memory.max_context)),
    ];
    if let Some(available) = available_memory() {
        rows.push(("memory available", output::bytes(available)));
    }
    Ok(output::table(&rows))
}

fn json_plan(plan: &Plan) -> anyhow::Result<serde_json::Value> {
    let (config, memory) = (&plan.checkpoint.config, &plan.memory);
    let formats = plan.checkpoint.formats()?;
    let formats: Vec<_> = formats
        .iter()
        .map(|share| {
            json!({
                "format": share.format.name(),
                "tensors": share.tensors,
                "parameters": share.parameters,
                "bytes": share.bytes,
            })
        })
        .collect();
    Ok(json!({
        "architecture": config.architecture.name(),
        "files": plan.checkpoint.files,
        "formats": formats,
        "weights_bytes": memory.weights,
        "tables_bytes": memory.tables,
        "kv_cache_bytes": memory.kv_cache,
        "kv_bytes_per_token": memory.kv_per_token,
        "pages": memory.pages,
        "page_size": memory.page_size,
        "activation_bytes": memory.activations,
        "recorded_step_bytes": memory.recorded_steps,
        "total_bytes": memory.total(),
        "max_context": memory.max_context,
        "available_bytes": available_memory(),
    }))
}
