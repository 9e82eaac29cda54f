//! The compiler as a process, and the cache of what it made: what is damaged is never loaded, and what fails says so.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::{fs, path::Path};

use common::*;
use samebits_hlo::{Chip, Device, Options, Target, lower, proto::HloModule};
use samebits_neuron::{CacheMode, Cached, Compiler, Neff, NeffCache, NeuronError, OfflineDevice};
use tempfile::TempDir;

fn module() -> HloModule {
    lower(&square(), &Options::neuron("square")).module
}

/// The stand-in, behind a script that notes each compilation in `log`.
fn logged(folder: &Path) -> Compiler {
    let real = env!("CARGO_BIN_EXE_neuronx-cc");
    let log = folder.join("log");
    let text = format!("[ \"$1\" = compile ] && echo \"$@\" >> '{}'\nexec '{real}' \"$@\"", log.display());
    Compiler::open(script(&folder.join("logged"), &text), TARGET).unwrap()
}

fn compilations(folder: &Path) -> usize {
    fs::read_to_string(folder.join("log")).map_or(0, |log| log.lines().count())
}

/// A program that has a version, and does `compile` when asked to compile.
fn compiler_that(folder: &Path, compile: &str) -> Compiler {
    let text = format!("if [ \"$1\" = --version ]; then echo 'version 1'; exit; fi\n{compile}");
    Compiler::open(script(&folder.join("neuronx-cc"), &text), TARGET).unwrap()
}

#[test]
fn a_neff_holds_the_module() {
    let bytes = compiler().compile(&module()).unwrap();
    let neff = Neff::parse(&bytes).unwrap();
    assert_eq!((neff.header.name().as_str(), neff.header.cores), ("square", 1));
    assert!(compiler().version().contains("stand-in"), "{}", compiler().version());
}

#[test]
fn a_relative_path_is_meant_from_here() {
    let here = std::env::current_dir().unwrap();
    let up: std::path::PathBuf = here.components().skip(1).map(|_| "..").collect();
    let real = Path::new(env!("CARGO_BIN_EXE_neuronx-cc"));
    let relative = up.join(real.strip_prefix("/").unwrap());
    assert!(Compiler::open(relative, TARGET).unwrap().compile(&module()).is_ok());
}

#[test]
fn what_is_whole_is_loaded_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let compiler = logged(folder.path());
    let cache = NeffCache::open(folder.path().join("neff"), CacheMode::Fill).unwrap();
    let (first, done) = cache.compile(&compiler, &module()).unwrap();
    assert!(matches!(done, Cached::Stored), "{done:?}");
    let (second, done) = cache.compile(&compiler, &module()).unwrap();
    assert!(matches!(done, Cached::Loaded), "{done:?}");
    assert_eq!((first == second, compilations(folder.path())), (true, 1));

    let entry = only_entry(&folder.path().join("neff"));
    let whole = fs::read(&entry).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for (times, bytes) in [&whole[..whole.len() / 2], &[], &damaged].into_iter().enumerate() {
        fs::write(&entry, bytes).unwrap();
        let (again, done) = cache.compile(&compiler, &module()).unwrap();
        assert!(matches!(done, Cached::Stored), "{done:?}");
        assert_eq!((again == first, compilations(folder.path())), (true, 2 + times));
        assert_eq!(fs::read(&entry).unwrap(), whole);
    }
}

fn only_entry(folder: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let entries: Vec<_> = files.filter(|path| path.extension() == Some("neff".as_ref())).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.into_iter().next().unwrap()
}

#[test]
fn a_cache_that_must_hold_it_compiles_nothing() {
    let folder = TempDir::new().unwrap();
    let (compiler, neff) = (logged(folder.path()), folder.path().join("neff"));
    let required = NeffCache::open(&neff, CacheMode::Require).unwrap();
    let missing = || {
        let error = required.compile(&compiler, &module()).unwrap_err();
        assert!(matches!(error, NeuronError::NotCompiled { .. }), "{error}");
        error.to_string()
    };
    for part in ["square", "trn2", "stand-in", "samebits compile"] {
        assert!(missing().contains(part), "{}", missing());
    }
    assert_eq!(compilations(folder.path()), 0);

    NeffCache::open(&neff, CacheMode::Fill).unwrap().compile(&compiler, &module()).unwrap();
    let (_, done) = required.compile(&compiler, &module()).unwrap();
    assert!(matches!(done, Cached::Loaded), "{done:?}");
    // A host without the compiler finds what its version made.
    let elsewhere = Compiler::elsewhere(required.compiler_version().unwrap(), TARGET);
    required.compile(&elsewhere, &module()).unwrap();

    let entry = only_entry(&neff);
    let whole = fs::read(&entry).unwrap();
    fs::write(&entry, &whole[..whole.len() - 1]).unwrap();
    assert!(missing().contains("damaged"), "{}", missing());
    assert_eq!(compilations(folder.path()), 1);
}

#[test]
fn what_decides_the_program_decides_its_place() {
    let folder = TempDir::new().unwrap();
    let cache = NeffCache::open(folder.path(), CacheMode::Fill).unwrap();
    let real = env!("CARGO_BIN_EXE_neuronx-cc");
    let on = |chip, cores| Compiler::open(real, Target { chip, cores_per_logical_core: cores }).unwrap();
    let renamed = lower(&square(), &Options::neuron("other")).module;
    let made = [
        (on(Chip::Trn2, 2), module()),
        (on(Chip::Trn2, 1), module()),
        (on(Chip::Trn1, 1), module()),
        (on(Chip::Trn2, 1).with_flags(["-O1"]), module()),
        (on(Chip::Trn2, 1), renamed),
    ];
    for (compiler, module) in &made {
        let (_, done) = cache.compile(compiler, module).unwrap();
        assert!(matches!(done, Cached::Stored), "{done:?}");
    }
    let found = cache.compile(&Compiler::elsewhere("another version", TARGET), &module());
    assert!(matches!(found, Err(NeuronError::NoCompiler { .. })), "{found:?}");
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("neff");
    let cache = NeffCache::open(&path, CacheMode::Fill).unwrap();
    fs::remove_dir(&path).unwrap();
    let (bytes, done) = cache.compile(&compiler(), &module()).unwrap();
    assert!(Neff::parse(&bytes).is_ok());
    let Cached::NotStored(why) = done else { panic!("{done:?}") };
    assert!(why.to_string().contains("neff"), "{why}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = NeffCache::open(&file, CacheMode::Fill).unwrap_err();
    assert!(matches!(error, NeuronError::Cache { .. }), "{error}");
}

#[test]
fn programs_are_compiled_for_hosts_with_cores() {
    let folder = TempDir::new().unwrap();
    let cache = NeffCache::open(folder.path(), CacheMode::Fill).unwrap();
    let offline = OfflineDevice::new(compiler(), cache, 1);
    let program = lower(&square(), &offline.options("square".into()));
    offline.compile(&program).unwrap();
    assert_eq!(offline.memory_bytes(), Some(24 << 30));
    let error = offline.run(&(), vec![vec![]]).unwrap_err().to_string();
    assert!(error.contains("only compiles"), "{error}");

    let required = NeffCache::open(folder.path(), CacheMode::Require).unwrap();
    let device = device(0).with_cache(required);
    device.compile(&program).unwrap();
    let other = lower(&square(), &device.options("other".into()));
    let error = device.compile(&other).expect_err("nothing is compiled").to_string();
    assert!(error.contains("samebits compile"), "{error}");
}

#[test]
fn a_compiler_that_fails_is_quoted() {
    let folder = TempDir::new().unwrap();
    let compiler = compiler_that(folder.path(), "echo note; echo 'ERROR: [XYZ] no' >&2; exit 70");
    let error = compiler.compile(&module()).unwrap_err();
    assert!(matches!(error, NeuronError::Compiler { .. }), "{error}");
    for part in ["neuronx-cc", "square", "70", "[XYZ] no"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let folder = TempDir::new().unwrap();
    let silent = compiler_that(folder.path(), "exit 1").compile(&module()).unwrap_err();
    assert!(silent.to_string().contains("it wrote nothing"), "{silent}");
}

#[test]
fn a_compiler_that_makes_no_neff_is_not_believed() {
    let folder = TempDir::new().unwrap();
    let error = compiler_that(folder.path(), "echo done").compile(&module()).unwrap_err();
    assert!(error.to_string().contains("there is no module.neff"), "{error}");
    assert!(error.to_string().contains("done"), "{error}");
    let folder = TempDir::new().unwrap();
    let other = compiler_that(folder.path(), "echo something > module.neff");
    let cache = NeffCache::open(folder.path().join("neff"), CacheMode::Fill).unwrap();
    let error = cache.compile(&other, &module()).unwrap_err();
    assert!(matches!(error, NeuronError::Neff { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path().join("neff")).unwrap().count(), 0, "nothing is kept");
}

#[test]
fn a_compiler_without_a_version_is_none() {
    let folder = TempDir::new().unwrap();
    let silent = Compiler::open(script(&folder.path().join("neuronx-cc"), "exit 0"), TARGET).unwrap_err();
    assert!(silent.to_string().contains("it wrote nothing"), "{silent}");
}

#[test]
fn a_compiler_that_has_gone_is_named() {
    let folder = TempDir::new().unwrap();
    let compiler = compiler_that(folder.path(), "exit 1");
    fs::remove_file(folder.path().join("neuronx-cc")).unwrap();
    let error = compiler.compile(&module()).unwrap_err();
    assert!(matches!(error, NeuronError::NoCompiler { .. }), "{error}");
}

#[test]
fn what_would_be_refused_starts_no_process() {
    let folder = TempDir::new().unwrap();
    let target = Target { chip: Chip::Trn1, cores_per_logical_core: 2 };
    let started = folder.path().join("started");
    let text = format!("if [ \"$1\" = --version ]; then echo 1; else touch '{}'; fi", started.display());
    let compiler = Compiler::open(script(&folder.path().join("cc"), &text), target).unwrap();
    let error = compiler.compile(&module()).unwrap_err();
    assert!(matches!(error, NeuronError::Lint { .. }), "{error}");
    for part in ["square", "NCC_EARG001", "ask for 1"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(!started.exists());
}

/// The stand-in has the command line of the real one, and refuses what that refuses.
#[test]
fn the_stand_in_refuses_too() {
    let folder = TempDir::new().unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_neuronx-cc"))
            .current_dir(folder.path())
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    fs::write(folder.path().join("m.pb"), prost::Message::encode_to_vec(&module())).unwrap();
    let compile = ["compile", "m.pb", "--framework", "XLA", "--output", "m.neff", "--target"];
    assert_eq!(run(&[&compile[..], &["trn1"]].concat()).0, 0);
    let (code, said) = run(&[&compile[..], &["trn1", "-lnc", "2"]].concat());
    assert!(code == 70 && said.contains("NCC_EARG001"), "{code}: {said}");
    for (wrong, what) in [
        (&["trn9"][..], "invalid choice: trn9"),
        (&["trn1", "--auto-cast", "all"], "invalid choice: all"),
        (&["trn1", "--fast"], "unrecognized arguments: --fast"),
    ] {
        let (code, said) = run(&[&compile[..], wrong].concat());
        assert!(code == 2 && said.contains(what), "{code}: {said}");
    }
}

#[test]
fn a_compilation_that_is_dropped_is_killed() {
    let folder = TempDir::new().unwrap();
    let compiler = compiler_that(folder.path(), "exec sleep 600");
    let compilation = compiler.start(&module()).unwrap();
    let process = format!("/proc/{}", compilation.id());
    assert!(Path::new(&process).exists());
    drop(compilation);
    assert!(!Path::new(&process).exists());
}
