//! Hostile files: every attack ends in an error that names what is wrong and what to do.

mod attacks;

use std::{fs, path::PathBuf};

use attacks::{
    Attack, GgufWriter, gguf_attacks, read_gguf, read_safetensors, read_tokenizer, safetensors_attacks,
    tokenizer_attacks,
};
use samebits_checkpoint::Checkpoint;

fn expect(attacks: Vec<Attack>, read: fn(&[u8]) -> Result<(), String>) {
    for Attack { name, bytes, says } in attacks {
        match read(&bytes) {
            Ok(()) => assert!(says.is_empty(), "{name}: was read"),
            Err(error) => {
                assert!(!says.is_empty(), "{name}: {error}");
                assert!(
                    says.iter().all(|part| error.contains(part)),
                    "{name}: {error:?} lacks one of {says:?}"
                );
            }
        }
    }
}

#[test]
fn every_attack_on_gguf_is_named() {
    expect(gguf_attacks(), read_gguf);
}

#[test]
fn every_attack_on_safetensors_is_named() {
    expect(safetensors_attacks(), read_safetensors);
}

#[test]
fn every_attack_on_tokenizers_is_named() {
    expect(tokenizer_attacks(), read_tokenizer);
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let whole = GgufWriter::llama().bytes();
    for end in 0..whole.len() {
        assert!(read_gguf(&whole[..end]).is_err(), "{end} of {} bytes were read", whole.len());
    }
}

/// The attacks are the first inputs of the fuzzers, so they are kept as files.
#[test]
fn seeds_are_the_attacks() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (target, attacks) in [
        ("gguf", gguf_attacks()),
        ("safetensors_header", safetensors_attacks()),
        ("tokenizer_metadata", tokenizer_attacks()),
    ] {
        let directory = root.join(target);
        if std::env::var_os("SAMEBITS_WRITE_SEEDS").is_some() {
            fs::create_dir_all(&directory).unwrap();
            attacks.iter().for_each(|a| fs::write(directory.join(&a.name), &a.bytes).unwrap());
        }
        for Attack { name, bytes, .. } in &attacks {
            let hint = "write them again with SAMEBITS_WRITE_SEEDS=1";
            assert!(
                fs::read(directory.join(name)).is_ok_and(|kept| kept == *bytes),
                "{target}/{name}: {hint}"
            );
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), attacks.len(), "stale seeds in {target}");
    }
}

#[test]
fn a_path_that_holds_no_model_says_what_would_do() {
    let directory = tempfile::tempdir().unwrap();
    let error = |path: PathBuf| Checkpoint::open(path).err().unwrap().to_string();
    assert!(error(directory.path().into()).contains("expected config.json"));
    assert!(error(directory.path().join("absent")).contains("absent"));
    fs::write(directory.path().join("a.gguf"), b"").unwrap();
    assert!(error(directory.path().into()).contains("a.gguf: the file is empty"));
    fs::write(directory.path().join("b.gguf"), b"").unwrap();
    assert!(error(directory.path().into()).contains("2 GGUF files here"));
    fs::write(directory.path().join("config.json"), b"{").unwrap();
    assert!(error(directory.path().into()).contains("config.json: not valid JSON"));
}
