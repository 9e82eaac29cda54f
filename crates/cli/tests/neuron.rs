//! The command on a NeuronCore that is stood in for: compiled on a host without one, run where nothing may be compiled,
//! and tested by its owner.
//!
//! The command starts a compiler by its path, and this test is that program, under another name: its own harness tells the two
//! apart.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

fn main() -> ExitCode {
    let mut arguments = env::args();
    let name = arguments.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some("neuronx-cc".as_ref()) {
        return nrt_sim::compiler::main(&arguments.collect::<Vec<_>>());
    }
    // The stand-in for the runtime needs a plugin that others publish for these hosts alone.
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        TESTS.iter().for_each(|(name, test)| {
            println!("test {name}");
            test(&Host::new());
        });
    }
    ExitCode::SUCCESS
}

type Test = fn(&Host);

const TESTS: [(&str, Test); 4] = [
    ("a model compiled elsewhere says the same", a_model_compiled_elsewhere_says_the_same),
    ("what is missing is named", what_is_missing_is_named),
    ("an owner's test passes", an_owners_test_passes),
    ("an owner's test fails", an_owners_test_fails),
];

/// A host with a compiler, a runtime, and programs of its own.
struct Host {
    folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let compiler = folder.path().join("neuronx-cc");
        fs::hard_link(env::current_exe().unwrap(), &compiler)
            .or_else(|_| fs::copy(env::current_exe().unwrap(), &compiler).map(drop))
            .unwrap();
        Host { folder }
    }

    fn samebits(&self, args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut samebits = Command::new(env!("CARGO_BIN_EXE_samebits"));
        samebits.env("SAMEBITS_CACHE", self.folder.path()).env("TF_CPP_MIN_LOG_LEVEL", "3");
        samebits.env("NRT_SIM_PLUGIN", samebits_pjrt::testing::cpu_plugin());
        samebits.env("SAMEBITS_NEURONX_CC", self.folder.path().join("neuronx-cc"));
        samebits.envs(environment.iter().copied()).args(args).output().unwrap()
    }

    /// `samebits COMMAND MODEL ...` with limits that few programs suffice for.
    fn model(&self, args: &[&str], environment: &[(&str, &str)]) -> Output {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
        let model = models.join("gguf/llama.Q8_0.gguf");
        let serving = ["--max-num-batched-tokens", "4", "--max-num-seqs", "1", "--max-model-len", "64"];
        let (command, rest) = args.split_first().unwrap();
        let args = [&[command, model.to_str().unwrap()], rest, &serving].concat();
        self.samebits(&args, environment)
    }
}

/// The stand-in for the runtime, which cargo puts beside this test or one folder above.
fn runtime() -> String {
    let test = env::current_exe().unwrap();
    let mut places = test.ancestors().skip(1).take(2).map(|folder| folder.join("libnrt_sim.so"));
    let found: PathBuf = places.find(|path| path.is_file()).expect("libnrt_sim.so is built with this test");
    found.to_str().unwrap().to_owned()
}

fn text(output: &Output) -> String {
    let said = || [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{:#?}", said());
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).unwrap()
}

const RUN: [&str; 8] = ["run", "--raw", "Alice was", "-n", "12", "-t", "0.8", "--seed=7"];
const ON_TRN2: [&str; 4] = ["--device", "neuron", "--neuron-target", "trn2"];

fn a_model_compiled_elsewhere_says_the_same(host: &Host) {
    let expected = text(&host.model(&RUN, &[]));
    // No runtime is needed to compile.
    let compile = [&["compile"][..], &ON_TRN2].concat();
    let absent = ("SAMEBITS_LIBNRT", "/no/libnrt.so.1");
    assert!(text(&host.model(&compile, &[absent])).contains("compiled"));
    let programs = fs::read_dir(host.folder.path().join("programs")).unwrap().count();
    assert!(programs > 3, "{programs} programs");
    // And no compiler to run.
    let runtime = runtime();
    let run = [&RUN[..], &ON_TRN2, &["--require-compiled"]].concat();
    let environment = [("SAMEBITS_LIBNRT", runtime.as_str()), ("SAMEBITS_NEURONX_CC", "/no/neuronx-cc")];
    assert_eq!(text(&host.model(&run, &environment)), expected);
    // Cores that share layers have programs of their own.
    let shared = [&RUN[..], &ON_TRN2, &["--tensor-parallel-size", "2"]].concat();
    assert_eq!(text(&host.model(&shared, &environment[..1])), expected);
}

fn what_is_missing_is_named(host: &Host) {
    let runtime = runtime();
    let environment = [("SAMEBITS_LIBNRT", runtime.as_str())];
    let uncompiled =
        refusal(&host.model(&[&RUN[..], &ON_TRN2, &["--require-compiled"]].concat(), &environment));
    assert!(uncompiled.contains("samebits compile"), "{uncompiled}");
    let unknown = refusal(&host.model(&[&RUN[..], &["--device", "neuron"]].concat(), &environment));
    assert!(unknown.contains("trn1, trn2 or trn3"), "{unknown}");
    let lonely = refusal(&host.model(&[&RUN[..], &ON_TRN2, &["--neuron-lnc", "1"]].concat(), &environment));
    assert!(lonely.contains("NEURON_LOGICAL_NC_CONFIG stands at 2"), "{lonely}");
    let runtime = refusal(
        &host.model(&[&RUN[..], &ON_TRN2, &["--neuron-runtime", "/no/libnrt.so.1"]].concat(), &environment),
    );
    assert!(runtime.contains("/no/libnrt.so.1"), "{runtime}");
    let found = text(&host.samebits(&["doctor", "--neuron-target", "trn2"], &environment));
    assert!(found.contains("neuron: 32 cores through") && found.contains("a stand-in for tests"), "{found}");
    let absent = text(&host.samebits(&["doctor"], &[("SAMEBITS_LIBNRT", "/no/libnrt.so.1")]));
    assert!(absent.contains("neuron: not available: /no/libnrt.so.1"), "{absent}");
}

const SELFTEST: [&str; 8] =
    ["doctor", "--device", "neuron:1", "--selftest", "--cases=1", "--json", "--neuron-target", "trn2"];

fn an_owners_test_passes(host: &Host) {
    let output = host.samebits(&SELFTEST, &[("SAMEBITS_LIBNRT", &runtime())]);
    let report: serde_json::Value = serde_json::from_str(&text(&output)).unwrap();
    assert_eq!((&report["passed"], &report["device"]), (&true.into(), &"neuron:1".into()), "{report:#}");
    assert!(report["description"].as_str().unwrap().contains("runtime 2.31.0"), "{report:#}");
    assert!(report["conformance"]["cases"].as_u64().unwrap() > 30, "{report:#}");
    assert!(report["model"]["tokens_per_second"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["programs"].as_array().unwrap().iter().all(|it| it["seconds"].as_f64().unwrap() > 0.0));
}

/// A runtime that computes nothing right any more after some executions.
fn an_owners_test_fails(host: &Host) {
    let faults = [("SAMEBITS_LIBNRT", &*runtime()), ("NRT_SIM_FAULTS", "nrt_execute:20=1004")];
    let output = host.samebits(&SELFTEST, &faults);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let failures = report["conformance"]["failures"].as_array().unwrap();
    assert_eq!((&report["passed"], failures.len()), (&false.into(), 1), "{report:#}");
    assert!(failures[0]["detail"].as_str().unwrap().contains("NRT_EXEC_COMPLETED_WITH_ERR"), "{report:#}");
}
