//! Packed weights on disk: the same bits as packing anew, whatever has become of the file; and memory while packing.

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use common::{batch, fixtures, pages, prompt, step};
use samebits::{CpuOptions, Device, Model, RunnerConfig};
use tempfile::TempDir;

const MODELS: [&str; 6] = [
    "gguf/llama.mixed32.gguf",
    "gguf/wide.mixed256.gguf",
    "qwen3",
    "gguf/qwen2.F32.gguf",
    "qwen3_moe",
    "gguf/wide_moe.mixed256.gguf",
];

fn model(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// The logits after a prompt, as bits.
fn logits(model: &Path, cache: Option<&Path>) -> Vec<u32> {
    let config = RunnerConfig { max_context: 256, ..RunnerConfig::default() };
    let cpu = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    let builder = Model::builder(model.to_str().unwrap()).runner(config).cpu(cpu);
    let builder = match cache {
        Some(directory) => builder.packed_cache(directory),
        None => builder,
    };
    let mut runner = builder.load().unwrap().runner;
    let table = pages(&*runner, prompt().len(), 0, 1);
    let logits = step(&mut *runner, &batch(&[(&table, 0, &prompt())])).remove(0);
    logits.into_iter().map(f32::to_bits).collect()
}

/// The only file of a directory.
fn only_file(directory: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn a_second_start_takes_the_file_and_gives_the_same_bits() {
    for name in MODELS {
        let (model, cache) = (model(name), TempDir::new().unwrap());
        let expected = logits(&model, None);
        assert_eq!(logits(&model, Some(cache.path())), expected, "{name}, first start");
        let file = only_file(cache.path());
        // A start that packed would rename another file over it.
        let link = cache.path().join("link");
        fs::hard_link(&file, &link).unwrap();
        assert_eq!(logits(&model, Some(cache.path())), expected, "{name}, second start");
        assert!(same_file(&file, &link), "{name} was packed again");
    }
}

#[cfg(unix)]
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(a).unwrap().ino() == fs::metadata(b).unwrap().ino()
}

#[cfg(not(unix))]
fn same_file(a: &Path, b: &Path) -> bool {
    fs::metadata(a).unwrap().modified().unwrap() == fs::metadata(b).unwrap().modified().unwrap()
}

#[test]
fn a_damaged_file_is_written_again() {
    let (model, cache) = (model(MODELS[1]), TempDir::new().unwrap());
    let expected = logits(&model, Some(cache.path()));
    let file = only_file(cache.path());
    let good = fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    // In the header: magic, version, count, fingerprint, lengths, checksum; in the index; in the first and last weight.
    let places = [0, 8, 12, 16, 47, 48, 56, 64, 72, 80, 150, 4096, good.len() - 1];
    let cut = [0, 7, 71, 100, 4096, good.len() / 2, good.len() - 1].map(|len| good[..len].to_vec());
    let longer = [good.as_slice(), &[0]].concat();
    let other = vec![0xff; good.len()];
    for bytes in places.map(flipped).into_iter().chain(cut).chain([longer, other]) {
        fs::write(&file, &bytes).unwrap();
        assert_eq!(logits(&model, Some(cache.path())), expected);
        assert!(fs::read(only_file(cache.path())).unwrap() == good, "a damaged file was kept");
    }
}

#[test]
fn every_byte_of_the_header_and_index_may_be_anything() {
    let (model, cache) = (model(MODELS[0]), TempDir::new().unwrap());
    logits(&model, Some(cache.path()));
    let good = fs::read(only_file(cache.path())).unwrap();
    let fingerprint: [u8; 32] = good[16..48].try_into().unwrap();
    let open = |bytes: Vec<u8>| samebits_cpu::PackedFile::open(bytes.into(), &fingerprint);
    assert!(open(good.clone()).is_ok());
    let index_len = u64::from_le_bytes(good[56..64].try_into().unwrap()) as usize;
    for at in 0..72 + index_len {
        for value in [good[at] ^ 1, good[at] ^ 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert!(bytes == good || open(bytes).is_err(), "byte {at} as {value}");
        }
    }
}

#[test]
fn starts_at_the_same_time_write_one_whole_file() {
    let (model, cache) = (model(MODELS[1]), TempDir::new().unwrap());
    let expected = logits(&model, None);
    for _ in 0..3 {
        thread::scope(|scope| {
            let starts = [(); 4].map(|()| scope.spawn(|| logits(&model, Some(cache.path()))));
            starts.into_iter().for_each(|start| assert_eq!(start.join().unwrap(), expected));
        });
        fs::remove_file(only_file(cache.path())).unwrap();
    }
}

#[test]
fn another_file_of_the_same_shape_is_packed_for_itself() {
    let (cache, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (first, second) = (model(MODELS[0]), other.path().join("model.gguf"));
    let mut bytes = fs::read(&first).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 3;
    fs::write(&second, bytes).unwrap();
    for model in [&first, &second, &first] {
        assert_eq!(logits(model, Some(cache.path())), logits(model, None));
    }
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 2);
}

#[test]
fn a_directory_that_cannot_be_written_is_done_without() {
    let (model, place) = (model(MODELS[0]), TempDir::new().unwrap());
    let expected = logits(&model, None);
    let file = place.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    assert_eq!(logits(&model, Some(&file)), expected);
    assert_eq!(logits(&model, Some(&file.join("below"))), expected);
    let locked = place.path().join("locked");
    fs::create_dir(&locked).unwrap();
    let mut permissions = fs::metadata(&locked).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked, permissions).unwrap();
    assert_eq!(logits(&model, Some(&locked)), expected);
}

#[test]
fn a_device_that_packs_nothing_refuses_a_cache() {
    let model = model(MODELS[0]);
    let builder = Model::builder(model.to_str().unwrap()).device(Device::Reference).packed_cache("anywhere");
    let message = builder.load().err().unwrap().to_string();
    assert!(message.contains("packed_cache") && message.contains("reference"), "{message}");
}

/// What a process takes that loads no model: code, and the tokenizer and metadata of this one.
const OTHER_BYTES: u64 = 48 << 20;

/// Loads the model in a process of its own, which holds the packed weights and only parts of the file at any time.
#[test]
#[cfg(target_os = "linux")]
fn a_model_is_never_in_memory_twice() {
    let me = env::current_exe().unwrap();
    let child = Command::new(me).args(["--exact", "load_and_report", "--nocapture"]).env(CHILD, "1").output();
    let output = String::from_utf8(child.unwrap().stdout).unwrap();
    let value = |name: &str| -> u64 {
        let line = output.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {output}")).trim().parse().unwrap()
    };
    let (weights, peak) = (value("weights:"), value("peak:"));
    // Packed once, twice would be another 90 MB.
    let bound = weights + weights / 8 + value("tables:") + OTHER_BYTES;
    assert!(weights > 90 << 20 && peak < bound, "peak {peak}, bound {bound}, weights {weights}");
}

const CHILD: &str = "SAMEBITS_TEST_LOAD";

/// The process of the test above; by itself it tests nothing.
#[test]
#[cfg(target_os = "linux")]
fn load_and_report() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let loaded = Model::builder("smollm2").load().unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kibibytes: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    println!("\nweights:{}\ntables:{}", loaded.plan.memory.weights, loaded.plan.memory.tables);
    println!("peak:{}", kibibytes << 10);
}
