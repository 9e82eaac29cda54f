//! The kernels of the CUDA backend, compiled: PTX that a driver compiles further for the GPU that it finds.
//!
//! The sources are in `kernels/cuda`; `cargo xtask ptx` compiles them, and `cargo xtask ptx --check` says whether these
//! are what they give.

/// A module of kernels.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of its source, without the extension.
    pub name: &'static str,
    /// Its text.
    pub ptx: &'static str,
}

macro_rules! modules {
    ($($name:literal),*) => {
        /// Every module. No two have a kernel of the same name.
        pub const MODULES: &[Module] =
            &[$(Module { name: $name, ptx: include_str!(concat!("../cuda/ptx/", $name, ".ptx")) }),*];
    };
}
modules!(
    "attention",
    "dense",
    "elementwise",
    "embedding",
    "experts",
    "layout",
    "linear_256",
    "linear_32",
    "linear_bf16",
    "probe",
    "reduce",
    "rows",
    "top_k",
    "unpack"
);

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_module_of_the_folder_is_here() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/ptx");
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, MODULES.iter().map(|module| module.name).collect::<Vec<_>>());
    }
}
