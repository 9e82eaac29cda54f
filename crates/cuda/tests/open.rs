//! Drivers and devices that will not do. Each is opened by a process of its own, since a driver is loaded once.
#![cfg(target_os = "linux")]

use std::{env, fs, path::Path, process::Command};

use samebits_cuda::{Cuda, OpenError};

/// Set for the process that opens; whether it has the stand-in for the driver.
const CHILD: &str = "SAMEBITS_TEST_OPEN";

/// In the process that opens, says what comes of it; nothing where the tests run.
#[test]
fn child() {
    let Ok(stand_in) = env::var(CHILD) else { return };
    if stand_in == "yes" {
        ptx_sim::install().expect("the stand-in for the driver");
    }
    match Cuda::open(0) {
        Ok(_) => println!("<opened>"),
        Err(error) => println!("<{error}>"),
    }
}

/// What comes of opening a device in such an environment.
fn open(stand_in: &str, environment: &[(&str, &str)]) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, stand_in)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said =
        text.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(said, _)| said.to_owned());
    said.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_stand_in_opens() {
    assert_eq!(open("yes", &[]), "opened");
    assert_eq!(open("yes", &[("PTX_SIM_CAPABILITY", "80"), ("PTX_SIM_DRIVER", "12000")]), "opened");
}

#[test]
fn no_device() {
    let error = open("yes", &[("PTX_SIM_DEVICES", "0"), ("CUDA_VISIBLE_DEVICES", "7")]);
    assert_eq!(error, "no CUDA device 0: the driver shows 0, and CUDA_VISIBLE_DEVICES is \"7\"");
}

#[test]
fn an_old_driver() {
    let error = open("yes", &[("PTX_SIM_DRIVER", "11080")]);
    assert!(error.contains("for CUDA 11.8") && error.contains("12.0 or later: update the driver"), "{error}");
}

#[test]
fn an_old_device() {
    let error = open("yes", &[("PTX_SIM_CAPABILITY", "75")]);
    assert!(error.contains("compute capability 7.5; the kernels need 8.0"), "{error}");
}

#[test]
fn another_library_in_the_place_of_the_driver() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .find_map(|line| line.find('/').map(|at| &line[at..]).filter(|it| it.contains("libc.so")));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("not-the-driver");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(libc.expect("the C library"), folder.join("libcuda.so")).unwrap();
    let error = open("no", &[("LD_LIBRARY_PATH", folder.to_str().unwrap())]);
    assert_eq!(error, "the CUDA driver libcuda.so has no function cuInit; install NVIDIA's driver anew");
}

#[test]
fn no_driver() {
    let error = open("no", &[]);
    // Where there is a driver, it is not this test's business what it says.
    if error.starts_with("no CUDA driver") {
        let expected = OpenError::NoDriver { looked_for: "libcuda.so, libcuda.so.1".into() };
        assert_eq!(error, expected.to_string());
    } else {
        assert!(Path::new("/dev/nvidiactl").exists(), "{error}");
    }
}
