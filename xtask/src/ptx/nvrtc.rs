//! NVIDIA's run-time compiler, which PyPI has: installed outside of the tree, by hash, and loaded by its path.
//!
//! Its functions and their rules are those of the NVRTC documentation of CUDA 13.
#![allow(unsafe_code)]

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int},
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context, ensure};
use libloading::{Library, Symbol};

use crate::pinned;

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
    let elsewhere = format!("install libnvrtc of CUDA 13 yourself and name it in {PATH_VARIABLE}");
    Ok(pinned::packages(requirements, "nvrtc", LIBRARY, &elsewhere)?.join(LIBRARY))
}
