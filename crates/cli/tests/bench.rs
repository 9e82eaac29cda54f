//! `samebits bench` on tiny models: what it reports, not how fast they are.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn tiny(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    root.join(name).to_str().unwrap().into()
}

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_samebits")).arg("bench").args(args).output().unwrap()
}

fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(bench(&[args, &["--json"]].concat()))).unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = bench(args);
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

const SHORT: [&str; 10] =
    ["--prompt-tokens", "8,40", "--batch", "1,3", "--context", "0,20", "--decode-tokens", "4", "-r", "3"];

#[test]
fn every_test_is_measured_in_every_round() {
    let model = tiny("gguf/llama.Q4_0.gguf");
    let options = ["--threads", "2", "--max-num-batched-tokens", "32"];
    let report = json(&[&[model.as_str()], &SHORT[..], &options[..]].concat());
    assert_eq!((&report["rounds"], &report["threads"]), (&3.into(), &2.into()));
    for ceiling in ["read_bytes_per_second", "int8_ops_per_second", "f32_ops_per_second"] {
        assert!(report["ceilings"][ceiling]["median"].as_f64().unwrap() > 1e6, "{ceiling}");
    }
    let tests = report["tests"].as_array().unwrap();
    let id = |test: &Value| {
        ["test", "batch", "context", "tokens", "steps"].map(|key| test[key].to_string()).join(" ")
    };
    let expected =
        ["prefill 1 0 8 1", "prefill 1 0 40 2", "decode 1 0 4 4", "decode 3 0 12 4", "decode 1 20 4 4"];
    assert_eq!(
        tests.iter().map(id).collect::<Vec<_>>(),
        expected.map(|id| format!("\"{}", id.replacen(' ', "\" ", 1)))
    );
    for test in tests {
        let number = |key: &str| test[key]["median"].as_f64().unwrap();
        assert_eq!(test["tokens_per_second"]["samples"].as_array().unwrap().len(), 3);
        let steps = test["steps"].as_f64().unwrap();
        let tokens = number("tokens_per_second") * number("seconds_per_step") * steps;
        assert!((tokens / test["tokens"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{test}");
        assert!(number("share_of_ceiling") > 0.0 && test["against"].is_null());
        assert!(["memory", "compute"].contains(&test["bound"].as_str().unwrap()));
    }
}

#[test]
fn work_is_that_of_the_model() {
    let model = tiny("gguf/llama.Q4_0.gguf");
    let report = json(&[&[model.as_str()], &SHORT[..]].concat());
    let work = |i: usize, key: &str| report["tests"][i][key].as_u64().unwrap();
    // A token more in a batch costs the rows that it reads of the embedding, and its own multiplications.
    assert!(work(3, "weight_bytes") - work(2, "weight_bytes") < work(2, "weight_bytes") / 10);
    assert_eq!(work(3, "int8_ops"), 3 * work(2, "int8_ops"));
    assert_eq!(work(3, "cache_bytes"), 3 * work(2, "cache_bytes"));
    // Four steps see 1 to 4 keys, or 21 to 24.
    assert_eq!(work(4, "cache_bytes") * 10, work(2, "cache_bytes") * 90);
}

#[test]
fn people_get_a_table_and_a_plot() {
    let plot = tempfile::tempdir().unwrap();
    let plot = plot.path().join("cost.svg");
    let model = tiny("gguf/qwen2.F32.gguf");
    let options = ["--grid", "--isa", "scalar", "--plot", plot.to_str().unwrap()];
    let text = stdout(bench(&[&[model.as_str()], &SHORT[..], &options[..]].concat()));
    for words in ["tok/s", "of ceiling", "prefill 40", "decode 3 at 20", "portable"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.contains("context 20") && svg.contains("batch 3"));
}

#[test]
fn kernels_are_measured_without_a_model() {
    let report = json(&["--kernels", "--format", "q4_0,F16", "--isa", "scalar", "--threads", "1", "-r", "1"]);
    let formats = report["sets"][0]["formats"].as_array().unwrap();
    assert_eq!(formats.iter().map(|format| &format["format"]).collect::<Vec<_>>(), ["Q4_0", "F16"]);
    for format in formats {
        for product in ["matvec", "matmul"] {
            assert!(format[product]["share_of_ceiling"].as_f64().unwrap() > 0.0, "{format}");
        }
    }
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let (gguf, directory) = (tiny("gguf/llama.Q4_0.gguf"), tiny("llama"));
    assert!(refusal(&[]).contains("MODEL"));
    assert!(refusal(&[&directory, "--against", "llama.cpp"]).contains("GGUF"));
    assert!(refusal(&[&gguf, "--against", "llama.cpp=/nowhere"]).contains("no llama-bench at /nowhere"));
    assert!(refusal(&[&gguf, "--context", "1000000"]).contains("--context"));
    assert!(refusal(&[&gguf, "--repetitions", "0"]).contains("at least 1"));
    assert!(
        refusal(&[&gguf, "--prompt-tokens", "8", "--batch", "0", "-r", "1", "--plot", "x.svg"])
            .contains("--batch")
    );
    assert!(refusal(&["--kernels", "--device", "candle"]).contains("--device"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_it_with_what_there_is() {
    let model = tiny("gguf/llama.Q4_0.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_samebits"));
    command.arg("bench").arg(model).args(&SHORT[..8]).args(["-r", "1000000", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["rounds"].as_u64().unwrap() < report["rounds_asked"].as_u64().unwrap());
    } else {
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("interrupted"), "{error}");
    }
}
