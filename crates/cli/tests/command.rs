//! The command as a person and a program use it, on tiny models.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

fn tiny(name: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    root.join(name).to_str().unwrap().into()
}

fn samebits(args: &[&str]) -> Output {
    // A driver that is on this machine shows no device then.
    Command::new(env!("CARGO_BIN_EXE_samebits")).env("CUDA_VISIBLE_DEVICES", "").args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(&samebits(args))).unwrap()
}

fn refusal(args: &[&str]) -> String {
    let output = samebits(args);
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn run_prints_the_same_text_as_its_json() {
    let (model, rest) = (tiny("llama"), ["--raw", "Alice was", "-n", "12", "-t", "0.8", "--seed", "7"]);
    let args: Vec<&str> = ["run", &model].into_iter().chain(rest).collect();
    let text = stdout(&samebits(&args));
    let report = json(&[&args[..], &["--json"]].concat());
    assert_eq!(text.strip_suffix('\n'), report["text"].as_str());
    assert_eq!(report["seed"], 7);
    assert_eq!(report["tokens"].as_array().unwrap().len() as u64, report["usage"]["completion_tokens"]);
    let other = json(&[&args[..], &["--json", "--device", "reference"]].concat());
    assert_eq!(other["tokens"], report["tokens"]);
}

#[test]
fn another_device_serves_where_it_is_told_to() {
    let (model, rest) = (tiny("llama"), ["--raw", "Alice was", "-n", "5"]);
    let args: Vec<&str> = ["run", &model].into_iter().chain(rest).collect();
    let expected = stdout(&samebits(&args));
    let told =
        samebits(&[&args[..], &["--device", "cuda", "--fallback", "neuron", "--fallback", "cpu"]].concat());
    assert_eq!(stdout(&told), expected);
    let warning = String::from_utf8_lossy(&told.stderr);
    assert!(warning.contains("cuda:0 cannot serve") && warning.contains("falling back to cpu"), "{warning}");
    let untold = refusal(&[&args[..], &["--device", "cuda"]].concat());
    assert!(untold.contains("CUDA"), "{untold}");
    // What is wrong with the model or the request is no reason to try another device.
    let wrong = refusal(&["run", "no-such-model", "x", "--device", "reference", "--fallback", "cpu"]);
    assert!(wrong.contains("no-such-model") && !wrong.contains("falling back"), "{wrong}");
    let fast = refusal(&[&args[..], &["--numerics", "fast"]].concat());
    assert!(fast.contains("the device cpu computes exactly"), "{fast}");
}

#[test]
fn plan_adds_up() {
    let plan = json(&["plan", &tiny("gguf/llama.Q4_0.gguf"), "--json", "--max-model-len", "64"]);
    let parts =
        ["weights_bytes", "tables_bytes", "kv_cache_bytes", "activation_bytes", "recorded_step_bytes"];
    let sum: u64 = parts.iter().map(|part| plan[part].as_u64().unwrap()).sum();
    assert_eq!(plan["total_bytes"], sum);
    assert_eq!(plan["kv_cache_bytes"], plan["kv_bytes_per_token"].as_u64().unwrap() * 128);
    assert!(stdout(&samebits(&["plan", &tiny("llama")])).contains("longest context"));
}

#[test]
fn doctor_names_devices_present_and_absent() {
    let report = json(&["doctor", "--json"]);
    let devices = report["devices"].as_array().unwrap();
    let find = |name: &str| devices.iter().find(|device| device["name"] == name).unwrap();
    assert_eq!(find("cpu")["available"], true);
    assert_eq!(find("cuda")["available"], false);
    assert!(find("cuda")["reason"].is_string());
    assert!(stdout(&samebits(&["doctor"])).contains("instruction set"));
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let model = tiny("llama");
    assert!(refusal(&["run", "no-such-model", "x"]).contains("no-such-model"));
    assert!(refusal(&["run", &model, "x", "--device", "gpu"]).contains("cpu, candle"));
    assert!(refusal(&["run", &model, "x", "--device", "cuda:x"]).contains("cuda:NUMBER"));
    assert!(refusal(&["run", &model, "x", "--device", "cuda"]).contains("no CUDA"));
    assert!(refusal(&["run", &model, "x", "--isa", "mmx"]).contains("mmx"));
    assert!(refusal(&["run", &model, "x", "--temperature", "-1"]).contains("temperature"));
    assert!(refusal(&["run", &model, "x", "--logit-bias", "5"]).contains("ID=VALUE"));
    assert!(refusal(&["run", &model, "x", "--block-size", "7"]).contains("page_size is 7"));
    assert!(refusal(&["run", &model, "--raw", &"x ".repeat(6000)]).contains("shorten the prompt"));
}
