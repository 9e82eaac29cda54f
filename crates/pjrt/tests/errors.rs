//! What is refused, by whom, and what it says.
// The plugins that others publish are for this alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::*;
use samebits_pjrt::{Code, CompileOptions, ElementType, Format, PjrtError, Plugin, Value, testing};

#[test]
fn a_bad_module_is_refused_by_the_compiler() {
    with_each(1, |_, client| {
        let compile = |program: &[u8], format| client.compile(program, format, &CompileOptions::default());
        for (program, format) in [
            (&b"module @broken {"[..], Format::Mlir),
            (ADD.replace("stablehlo.add", "stablehlo.ad").as_bytes(), Format::Mlir),
            (b"not a module", Format::Hlo),
            (b"", Format::Hlo),
        ] {
            let error = compile(program, format).unwrap_err();
            let compiling = matches!(error, PjrtError::Call { function: "PJRT_Client_Compile", .. });
            assert!(compiling, "{error}");
        }
    });
}

#[test]
fn arguments_are_checked_before_the_plugin_sees_them() {
    with_each(1, |_, client| {
        let program = compile(client, ADD);
        let a = f32s(client, &[1.0; 4]);
        let refused = |arguments| match program.execute(arguments).unwrap_err() {
            PjrtError::Arguments { why } => why,
            error => panic!("{error}"),
        };
        assert!(refused(vec![vec![(&a).into()]]).contains("1 arguments for device 0, expected 2"));
        let three = vec![(&a).into(), (&a).into(), (&a).into()];
        assert!(refused(vec![three]).contains("3 arguments for device 0, expected 2"));
        assert!(refused(vec![]).contains("arguments for 0 devices, the program runs on 1"));
        let integers = i32s(client, 0, &[1; 4], &[4]);
        let why = refused(vec![vec![(&a).into(), (&integers).into()]]);
        assert_eq!(why, "argument 1 of device 0 is s32[4], expected f32[4]");
        let matrix = client.upload(0, &[0; 16], ElementType::F32, &[2, 2]).unwrap();
        let why = refused(vec![vec![(&matrix).into(), (&a).into()]]);
        assert_eq!(why, "argument 0 of device 0 is f32[2, 2], expected f32[4]");
        let other = client.plugin().client(&[]).unwrap();
        let foreign = f32s(&other, &[1.0; 4]);
        assert!(refused(vec![vec![(&a).into(), (&foreign).into()]]).contains("another client"));
        // None of which has harmed the buffer.
        assert_eq!(
            run(&program, vec![(&a).into(), (&a).into()])[0].to_vec().unwrap(),
            2_f32.to_le_bytes().repeat(4)
        );
    });
}

#[test]
fn uploads_and_downloads_must_fit() {
    with_each(1, |_, client| {
        let upload =
            |bytes: &[u8], device, dims: &[usize]| client.upload(device, bytes, ElementType::F32, dims);
        let short = upload(&[0; 15], 0, &[4]).unwrap_err();
        assert!(matches!(short, PjrtError::Bytes { expected: 16, found: 15, .. }), "{short}");
        assert!(matches!(upload(&[0; 16], 3, &[4]), Err(PjrtError::Device { index: 3, .. })));
        assert!(matches!(upload(&[], 0, &[usize::MAX, 8]), Err(PjrtError::TooLarge { .. })));
        let owned = client.upload_owned(0, vec![0_u8; 17], ElementType::F32, &[4]).unwrap_err();
        assert!(matches!(owned, PjrtError::Bytes { expected: 16, found: 17, .. }), "{owned}");
        let buffer = upload(&[0; 16], 0, &[4]).unwrap();
        let wrong = buffer.download(&mut [0; 12]).unwrap_err();
        assert!(matches!(wrong, PjrtError::Bytes { expected: 16, found: 12, .. }), "{wrong}");
    });
}

#[test]
fn unknown_flags_and_options_are_refused() {
    with_each(1, |_, client| {
        let compile = |name: &str, value| {
            let flags = vec![(name.to_string(), value)];
            client.compile(ADD.as_bytes(), Format::Mlir, &CompileOptions { flags, ..Default::default() })
        };
        compile("xla_allow_excess_precision", Value::Bool(false)).unwrap();
        let error = compile("xla_no_such_flag", Value::Bool(false)).unwrap_err();
        assert!(error.to_string().contains("xla_no_such_flag"), "{error}");
        let many = CompileOptions { replicas: 9, ..Default::default() };
        let error = client.compile(ADD.as_bytes(), Format::Mlir, &many).unwrap_err();
        assert!(matches!(error, PjrtError::Options { .. }), "{error}");
    });
}

#[test]
fn a_missing_file_and_one_that_is_no_library() {
    let missing = Plugin::open("/no/such/plugin.so").unwrap_err();
    assert!(matches!(missing, PjrtError::Open { .. }), "{missing:?}");
    assert!(missing.to_string().starts_with("/no/such/plugin.so: "), "{missing}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "text").unwrap();
    let text = Plugin::open(file.path()).unwrap_err();
    assert!(matches!(&text, PjrtError::Open { why, .. } if !why.is_empty()), "{text:?}");
}

#[test]
fn a_plugin_is_loaded_once() {
    let path = testing::cpu_plugin();
    let first = Plugin::open(&path).unwrap();
    let link = tempfile::TempDir::new().unwrap();
    let link = link.path().join("link.so");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(Plugin::open(&link).unwrap().path(), first.path());
}

/// Builds a library of a few lines of Rust.
fn build(text: &str) -> tempfile::TempDir {
    let directory = tempfile::TempDir::new().unwrap();
    let source = directory.path().join("plugin.rs");
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let mut command = std::process::Command::new(compiler);
    command.args(["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort", "-o"]);
    command.arg(directory.path().join("plugin.so")).arg(&source);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory
}

fn open_built(text: &str) -> PjrtError {
    let directory = build(text);
    Plugin::open(directory.path().join("plugin.so")).unwrap_err()
}

#[test]
fn libraries_that_are_no_plugins() {
    let none = open_built("#[unsafe(no_mangle)] pub extern \"C\" fn other() {}");
    assert!(matches!(none, PjrtError::NotAPlugin { why: "no `GetPjrtApi`", .. }), "{none:?}");
    let null =
        open_built("#[unsafe(no_mangle)] pub extern \"C\" fn GetPjrtApi() -> *const u8 { std::ptr::null() }");
    assert!(matches!(null, PjrtError::NotAPlugin { .. }), "{null:?}");
    assert!(null.to_string().contains("returned null"), "{null}");
}

#[test]
fn other_versions_and_missing_functions_are_named() {
    let table = |size: usize, major: i32, minor: i32| {
        format!(
            "#[repr(C)] struct Head(usize, usize, usize, usize, i32, i32, [usize; 200]);
            static TABLE: Head = Head({size}, 0, 24, 0, {major}, {minor}, [0; 200]);
            #[unsafe(no_mangle)] extern \"C\" fn GetPjrtApi() -> *const u8 {{ (&raw const TABLE).cast() }}"
        )
    };
    let old = open_built(&table(1000, 0, 40));
    assert!(matches!(old, PjrtError::Version { major: 0, minor: 40, .. }), "{old:?}");
    let new = open_built(&table(1000, 1, 0));
    assert!(matches!(new, PjrtError::Version { major: 1, .. }), "{new:?}");
    let hollow = open_built(&table(1000, 0, 100));
    assert!(matches!(hollow, PjrtError::Missing { function: "PJRT_Plugin_Initialize" }), "{hollow:?}");
    let short = open_built(&table(40, 0, 100));
    assert!(matches!(short, PjrtError::Missing { function: "PJRT_Plugin_Initialize" }), "{short:?}");
}

/// A plugin's error is read, told and freed.
#[test]
fn a_plugin_that_fails_to_start_says_why() {
    let failed = open_built(
        r#"
        use std::sync::atomic::{AtomicUsize, Ordering};
        static FREED: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn free(arguments: *mut [usize; 3]) {
            assert_eq!(unsafe { *arguments }[..], [24, 0, 7]);
            FREED.fetch_add(1, Ordering::SeqCst);
        }
        extern "C" fn message(arguments: *mut [usize; 5]) {
            let text = "the device\n   is full";
            unsafe {
                (*arguments)[3] = text.as_ptr() as usize;
                (*arguments)[4] = text.len();
            }
        }
        extern "C" fn code(arguments: *mut [usize; 4]) -> usize {
            unsafe { (*arguments)[3] = 8 };
            0
        }
        extern "C" fn initialize(_: *mut [usize; 2]) -> usize {
            assert_eq!(FREED.load(Ordering::SeqCst), 0);
            7
        }
        #[repr(C)]
        struct Table(
            [usize; 4], i32, i32,
            extern "C" fn(*mut [usize; 3]), extern "C" fn(*mut [usize; 5]),
            extern "C" fn(*mut [usize; 4]) -> usize, extern "C" fn(*mut [usize; 2]) -> usize,
        );
        static TABLE: Table = Table([72, 0, 24, 0], 0, 81, free, message, code, initialize);
        #[unsafe(no_mangle)] extern "C" fn GetPjrtApi() -> *const u8 { (&raw const TABLE).cast() }
        "#,
    );
    let PjrtError::Call { function: "PJRT_Plugin_Initialize", code: Code::ResourceExhausted, message } =
        &failed
    else {
        panic!("{failed:?}");
    };
    assert_eq!(message, "the device is full");
    assert!(
        failed.to_string().ends_with("free buffers, or use a smaller program or more devices"),
        "{failed}"
    );
}
