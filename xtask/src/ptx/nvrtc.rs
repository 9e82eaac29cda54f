//! NVIDIA's run-time compiler, which PyPI has: installed outside of the tree, by hash, and loaded by its path.
//!
//! Its functions and their rules are those of the NVRTC documentation of CUDA 13.
#![allow(unsafe_code)]

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int},
    fs,
    path::{Path, PathBuf},
    process::Command,
    ptr,
};

use anyhow::{Context, anyhow, bail, ensure};
use libloading::{Library, Symbol};

/// The library in the package's folder.
const LIBRARY: &str = "nvidia/cu13/lib/libnvrtc.so.13";

/// Names the library, where the package is not to be installed.
const PATH_VARIABLE: &str = "SAMEBITS_NVRTC";

/// A program being compiled.
type Program = *mut std::ffi::c_void;

pub(super) struct Compiler {
    library: Library,
}

impl Compiler {
    /// Loads the compiler that `nvrtc.txt` in `folder` pins, and installs it first if need be.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = match env::var_os(PATH_VARIABLE) {
            Some(path) => path.into(),
            None => installed(&folder.join("nvrtc.txt"))?,
        };
        // SAFETY: the library's initialisers are NVIDIA's; they need nothing from this process.
        let library = unsafe { Library::new(&path) };
        let library = library.with_context(|| format!("{} does not load", path.display()))?;
        Ok(Compiler { library })
    }

    /// The PTX of a source, whose headers are given by name and text.
    pub(super) fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(String, String)],
        options: &[&str],
    ) -> anyhow::Result<String> {
        let program = self.create(name, source, headers)?;
        let ptx = self.compile_program(program, options).with_context(|| name.to_owned());
        let mut program = program;
        // SAFETY: `program` is of nvrtcCreateProgram and is not used again.
        let destroyed = unsafe {
            let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> =
                self.library.get(b"nvrtcDestroyProgram\0")?;
            destroy(&mut program)
        };
        ensure!(destroyed == 0, "nvrtcDestroyProgram: {destroyed}");
        ptx
    }

    fn create(&self, name: &str, source: &str, headers: &[(String, String)]) -> anyhow::Result<Program> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let (name, source) = (CString::new(name)?, CString::new(source)?);
        let texts = headers.iter().map(|(_, text)| CString::new(text.as_str()));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|(name, _)| CString::new(name.as_str()));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        let (text_pointers, name_pointers) = (pointers(&texts), pointers(&names));
        let mut program = ptr::null_mut();
        // SAFETY: the strings and both arrays of `headers.len()` pointers live through the call, which copies them.
        let status = unsafe {
            let create: Symbol<Create> = self.library.get(b"nvrtcCreateProgram\0")?;
            create(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        ensure!(status == 0, "nvrtcCreateProgram: {status}");
        Ok(program)
    }

    fn compile_program(&self, program: Program, options: &[&str]) -> anyhow::Result<String> {
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        let options = options.iter().map(|option| CString::new(*option)).collect::<Result<Vec<_>, _>>()?;
        let pointers = pointers(&options);
        // SAFETY: `program` is of nvrtcCreateProgram; the options live through the call.
        let status = unsafe {
            let compile: Symbol<Compile> = self.library.get(b"nvrtcCompileProgram\0")?;
            compile(program, pointers.len() as c_int, pointers.as_ptr())
        };
        let log = self.text(program, "nvrtcGetProgramLogSize\0", "nvrtcGetProgramLog\0")?;
        ensure!(status == 0, "error {status} of the compiler:\n{log}");
        ensure!(log.trim().is_empty(), "warnings of the compiler:\n{log}");
        self.text(program, "nvrtcGetPTXSize\0", "nvrtcGetPTX\0")
    }

    /// What a pair of functions gives: how long a text is, and the text.
    fn text(&self, program: Program, size: &str, get: &str) -> anyhow::Result<String> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let mut len = 0;
        // SAFETY: `program` is of nvrtcCreateProgram, and `len` takes the size with the last zero.
        let status = unsafe { self.library.get::<Size>(size.as_bytes())?(program, &mut len) };
        ensure!(status == 0, "{size}: {status}");
        let mut bytes = vec![0u8; len.max(1)];
        // SAFETY: `bytes` is as long as the function before said.
        let status = unsafe { self.library.get::<Get>(get.as_bytes())?(program, bytes.as_mut_ptr().cast()) };
        ensure!(status == 0, "{get}: {status}");
        Ok(CStr::from_bytes_until_nul(&bytes)?.to_str()?.to_owned())
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

/// The library of the package that the requirements pin.
fn installed(requirements: &Path) -> anyhow::Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "the compiler is pinned for Linux on x86-64; name another libnvrtc of CUDA 13 in {PATH_VARIABLE}"
        );
    }
    let text = fs::read_to_string(requirements).with_context(|| requirements.display().to_string())?;
    let version = text.split("==").nth(1).and_then(|rest| rest.split_whitespace().next());
    let version = version.context("nvrtc.txt pins no version")?;
    let folder = cache()?.join(format!("nvrtc-{version}"));
    let library = folder.join(LIBRARY);
    if !library.exists() {
        install(requirements, &folder)?;
    }
    ensure!(library.exists(), "{} is not in the package; delete {}", LIBRARY, folder.display());
    Ok(library)
}

/// Installs into a folder beside, so that what is at `folder` is whole.
fn install(requirements: &Path, folder: &Path) -> anyhow::Result<()> {
    eprintln!("installing the pinned nvidia-cuda-nvrtc into {}", folder.display());
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--require-hashes", "--only-binary=:all:", "--requirement"])
        .arg(requirements)
        .arg("--target")
        .arg(&partial)
        .status()
        .with_context(|| {
            format!("python3 is needed to install the compiler, or {PATH_VARIABLE}=PATH to name one")
        })?;
    ensure!(
        status.success(),
        "pip could not install what {} pins; install it elsewhere and name its libnvrtc.so.13 in {PATH_VARIABLE}",
        requirements.display()
    );
    fs::rename(&partial, folder).with_context(|| folder.display().to_string())
}

fn cache() -> anyhow::Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    Ok(cache.ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set"))?.join("samebits"))
}
