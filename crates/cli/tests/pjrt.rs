//! The command on a device that compiles ahead: a plugin for CPUs that others publish.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use samebits_pjrt::testing;

fn samebits(programs: &Path, args: &[&str]) -> Output {
    let model =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/gguf/llama.Q8_0.gguf");
    let (command, rest) = args.split_first().unwrap();
    let serving = ["--max-num-batched-tokens", "16", "--max-num-seqs", "1", "--max-model-len", "64"];
    let mut samebits = Command::new(env!("CARGO_BIN_EXE_samebits"));
    samebits.env("SAMEBITS_CACHE", programs).arg(command).arg(model).args(rest).args(serving);
    samebits.output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn files(programs: &Path) -> usize {
    std::fs::read_dir(programs.join("programs")).map_or(0, Iterator::count)
}

#[test]
fn a_compiled_model_says_the_same() {
    let programs = tempfile::tempdir().unwrap();
    let device = format!("pjrt:{}", testing::cpu_plugin().display());
    let run = ["run", "--raw", "Alice was", "-n", "12", "-t", "0.8", "--seed", "7"];
    let expected = text(&samebits(programs.path(), &run));
    assert_eq!(files(programs.path()), 0);

    let compile = ["compile", "--device", &device];
    assert!(text(&samebits(programs.path(), &compile)).contains("compiled"));
    let compiled = files(programs.path());
    assert!(compiled > 3, "{compiled} programs");

    let found = text(&samebits(programs.path(), &[&run[..], &["--device", &device]].concat()));
    assert_eq!(found, expected);
    assert_eq!(files(programs.path()), compiled, "everything was compiled ahead");

    let two = ["--device", &device, "--tensor-parallel-size", "2"];
    assert_eq!(text(&samebits(programs.path(), &[&run[..], &two].concat())), expected);
}

#[test]
fn a_plugin_that_is_none_is_refused() {
    let programs = tempfile::tempdir().unwrap();
    let refusal = |args: &[&str]| {
        let output = samebits(programs.path(), args);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refusal(&["run", "--raw", "x", "--device", "pjrt:/no/plugin.so"]).contains("/no/plugin.so"));
    assert!(refusal(&["compile", "--device", "cpu"]).contains("compiles nothing ahead"));
    let two = refusal(&["run", "--raw", "x", "--tensor-parallel-size", "2"]);
    assert!(two.contains("2 of the device cpu"), "{two}");
}
