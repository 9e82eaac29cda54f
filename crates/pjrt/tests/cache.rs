//! The cache of executables, with real plugins and damaged files.
// The plugins that others publish are for this alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::*;
use samebits_pjrt::{Cached, Client, CompileOptions, ExecutableCache, Format, PjrtError, Plugin, Value};

/// Compiles the addition by the cache, checks that it adds, and tells what the cache did.
fn add(cache: &ExecutableCache, client: &Client, text: &str) -> Cached {
    let compiled = cache.compile(client, text.as_bytes(), Format::Mlir, &CompileOptions::default());
    let (program, cached) = compiled.unwrap();
    let (a, b) = (f32s(client, &[1.0; 4]), f32s(client, &[0.5; 4]));
    let sum = run(&program, vec![(&a).into(), (&b).into()])[0].to_vec().unwrap();
    assert_eq!(sum, 1.5_f32.to_le_bytes().repeat(4));
    cached
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_program_is_compiled_once() {
    with_each(1, |_, client| {
        let directory = tempfile::TempDir::new().unwrap();
        let cache = ExecutableCache::open(directory.path().join("made/on/demand")).unwrap();
        assert!(matches!(add(&cache, client, ADD), Cached::Stored));
        assert!(matches!(add(&cache, client, ADD), Cached::Loaded));
        let again = client.plugin().client(&[("cpu_device_count", Value::Int64(1))]).unwrap();
        assert!(matches!(add(&cache, &again, ADD), Cached::Loaded));
        assert!(matches!(add(&cache, client, &ADD.replace("@add", "@plus")), Cached::Stored));
        let flags = vec![("xla_allow_excess_precision".into(), Value::Bool(false))];
        let options = CompileOptions { flags, ..Default::default() };
        let (_, cached) = cache.compile(client, ADD.as_bytes(), Format::Mlir, &options).unwrap();
        assert!(matches!(cached, Cached::Stored));
    });
}

#[test]
fn versions_do_not_meet() {
    let directory = tempfile::TempDir::new().unwrap();
    let cache = ExecutableCache::open(directory.path()).unwrap();
    with_each(1, |_, client| assert!(matches!(add(&cache, client, ADD), Cached::Stored)));
    assert_eq!(files(directory.path()).len(), 3);
    with_each(1, |_, client| assert!(matches!(add(&cache, client, ADD), Cached::Loaded)));
}

#[test]
fn damaged_files_are_compiled_anew() {
    with_each(1, |_, client| {
        let directory = tempfile::TempDir::new().unwrap();
        let cache = ExecutableCache::open(directory.path()).unwrap();
        add(&cache, client, ADD);
        let path = files(directory.path()).remove(0);
        let whole = fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            bytes
        };
        let longer = [&whole[..], &[0]].concat();
        let last = whole.len() - 1;
        let damaged = [
            whole[..whole.len() / 2].to_vec(),
            whole[..20].to_vec(),
            Vec::new(),
            longer,
            flipped(0),
            flipped(9),
            flipped(20),
            flipped(48),
            flipped(whole.len() / 2),
            flipped(last),
        ];
        for bytes in damaged {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(add(&cache, client, ADD), Cached::Stored));
            assert!(matches!(add(&cache, client, ADD), Cached::Loaded));
        }
        assert_eq!(files(directory.path()), [path], "temporary files are left");
    });
}

/// Whole, but of another program.
#[test]
fn a_file_under_another_name_is_not_loaded() {
    let client = Plugin::open(samebits_pjrt::testing::cpu_plugin()).unwrap().client(&[]).unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    let cache = ExecutableCache::open(directory.path()).unwrap();
    add(&cache, &client, ADD);
    let addition = files(directory.path()).remove(0);
    let compile =
        |text: &str| cache.compile(&client, text.as_bytes(), Format::Mlir, &CompileOptions::default());
    compile(STEP).unwrap();
    let other = files(directory.path()).into_iter().find(|path| *path != addition).unwrap();
    fs::copy(&other, &addition).unwrap();
    assert!(matches!(add(&cache, &client, ADD), Cached::Stored));
}

#[test]
fn what_is_no_directory_is_an_error_with_its_path() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = ExecutableCache::open(file.path()).unwrap_err();
    assert!(matches!(&error, PjrtError::Cache { path, .. } if path == file.path()), "{error:?}");
    let below = ExecutableCache::open(file.path().join("cache")).unwrap_err();
    assert!(below.to_string().contains("cache"), "{below}");
}

/// Nobody may write there, not even the superuser.
#[test]
fn a_directory_that_may_only_be_read_works_without_writing() {
    let client = Plugin::open(samebits_pjrt::testing::cpu_plugin()).unwrap().client(&[]).unwrap();
    let cache = ExecutableCache::open("/proc/self").unwrap();
    for _ in 0..2 {
        let cached = add(&cache, &client, ADD);
        assert!(matches!(&cached, Cached::NotStored(PjrtError::Cache { .. })), "{cached:?}");
    }
}
