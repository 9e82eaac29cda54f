use std::{
    ffi::OsStr,
    fs,
    fs::File,
    io,
    path::{self, Path, PathBuf},
    process::{Child, Command, Stdio},
};

use prost::Message;
use samebits_hlo::{Chip, Target, lint, proto::HloModule};
use tempfile::TempDir;

use crate::{Neff, NeuronError};

/// neuronx-cc, AWS's compiler: a program that runs on any Linux host, and takes minutes.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// Nothing if it is not installed here.
    program: Option<PathBuf>,
    version: String,
    target: Target,
    flags: Vec<String>,
}

/// A module that is being compiled, in a process that is killed if this is dropped.
#[derive(Debug)]
pub struct Compilation {
    child: Child,
    directory: TempDir,
    program: PathBuf,
    module: String,
}

impl Compiler {
    /// The compiler of this path, or of this name in `PATH`.
    ///
    /// # Errors
    /// If it cannot be started, or does not tell its version.
    pub fn open(program: impl Into<PathBuf>, target: Target) -> Result<Self, NeuronError> {
        let mut program: PathBuf = program.into();
        if program.components().count() > 1 {
            // It is run in another directory.
            program = path::absolute(&program).unwrap_or(program);
        }
        let version = version(&program)?;
        Ok(Compiler { program: Some(program), version, target, flags: Vec::new() })
    }

    /// A compiler of this version that is not installed, for a host that only runs what was compiled elsewhere.
    pub fn elsewhere(version: impl Into<String>, target: Target) -> Self {
        Compiler { program: None, version: version.into(), target, flags: Vec::new() }
    }

    /// The compiler with more flags, such as `-O1`.
    pub fn with_flags(self, flags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Compiler { flags: flags.into_iter().map(Into::into).collect(), ..self }
    }

    /// Its version, in its words.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What it compiles for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Every flag that decides what is made. Nothing is cast where the module does not say so: each cast would change bits.
    pub fn flags(&self) -> Vec<String> {
        let Target { chip, cores_per_logical_core } = self.target;
        let fixed = ["--framework", "XLA", "--target", chip.name(), "--model-type", "transformer"];
        let fixed = fixed.into_iter().chain(["--auto-cast", "none"]).map(String::from);
        // Older chips have no logical cores, and their compiler no such flag.
        let cores = ["-lnc".to_owned(), cores_per_logical_core.to_string()];
        let cores = cores.into_iter().filter(|_| chip >= Chip::Trn2);
        fixed.chain(cores).chain(self.flags.iter().cloned()).collect()
    }

    /// Compiles a module to a NEFF.
    ///
    /// # Errors
    /// [`NeuronError::Lint`] if it would be refused, and then nothing is started; otherwise what the compiler says.
    pub fn compile(&self, module: &HloModule) -> Result<Vec<u8>, NeuronError> {
        self.start(module)?.wait()
    }

    /// Starts to compile a module.
    ///
    /// # Errors
    /// [`NeuronError::Lint`] if it would be refused; if the compiler cannot be started.
    pub fn start(&self, module: &HloModule) -> Result<Compilation, NeuronError> {
        let refusals = lint(module, self.target);
        if !refusals.is_empty() {
            return Err(NeuronError::Lint { module: module.name.clone(), refusals });
        }
        let program = self.program.clone().ok_or_else(|| {
            let why = io::Error::new(io::ErrorKind::NotFound, "this host has none");
            NeuronError::NoCompiler { program: "neuronx-cc".into(), why }
        })?;
        let directory = TempDir::with_prefix("samebits-neff-").map_err(in_file(&std::env::temp_dir()))?;
        let input = directory.path().join(MODULE);
        fs::write(&input, module.encode_to_vec()).map_err(in_file(&input))?;
        let child = self.command(&program, directory.path())?.spawn();
        let child = child.map_err(|why| NeuronError::NoCompiler { program: program.clone(), why })?;
        let process = child.id();
        tracing::info!(
            module = module.name,
            compiler = self.version,
            process,
            "compiling; this may take minutes"
        );
        Ok(Compilation { child, directory, program, module: module.name.clone() })
    }

    /// The compiler writes logs and more where it is run, so it is run in the directory.
    fn command(&self, program: &Path, directory: &Path) -> Result<Command, NeuronError> {
        let log = |name| {
            let path = directory.join(name);
            File::create(&path).map_err(in_file(&path))
        };
        let mut command = Command::new(program);
        command.current_dir(directory).stdin(Stdio::null()).stdout(log(STDOUT)?).stderr(log(STDERR)?);
        command.args(["compile", MODULE, "--output", NEFF]).args(self.flags());
        Ok(command)
    }
}

const MODULE: &str = "module.hlo.pb";
const NEFF: &str = "module.neff";
const STDOUT: &str = "stdout.txt";
const STDERR: &str = "stderr.txt";

impl Compilation {
    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the compiler. Returns a whole NEFF.
    ///
    /// # Errors
    /// What the compiler says; [`NeuronError::Neff`] if it made something else.
    pub fn wait(mut self) -> Result<Vec<u8>, NeuronError> {
        let status = self.child.wait().map_err(in_file(&self.program))?;
        if !status.success() {
            return Err(self.failed(status.to_string()));
        }
        let path = self.directory.path().join(NEFF);
        let bytes = match fs::read(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                return Err(self.failed(format!("{status}, but there is no {NEFF}")));
            }
            read => read.map_err(in_file(&path))?,
        };
        let checked = Neff::parse(&bytes).map(drop);
        checked.map_err(|why| NeuronError::Neff { module: self.module.clone(), why })?;
        Ok(bytes)
    }

    fn failed(&self, status: String) -> NeuronError {
        let read = |name| fs::read(self.directory.path().join(name)).unwrap_or_default();
        let said =
            [read(STDERR), read(STDOUT)].iter().map(|bytes| last_lines(bytes)).find(|it| !it.is_empty());
        NeuronError::Compiler {
            program: self.program.clone(),
            what: format!("compiling {}", self.module),
            status,
            output: said.unwrap_or_else(|| "it wrote nothing".into()),
        }
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        // After `wait` there is no process any more, and neither does anything.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `neuronx-cc --version` writes first.
fn version(program: &Path) -> Result<String, NeuronError> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(|why| NeuronError::NoCompiler { program: program.into(), why })?;
    let failed = |output: String| NeuronError::Compiler {
        program: program.into(),
        what: "--version".into(),
        status: "no version".into(),
        output,
    };
    if !output.status.success() {
        return Err(failed(last_lines(&output.stderr)));
    }
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    let first = words.lines().map(str::trim).find(|line| !line.is_empty());
    first.map(str::to_owned).ok_or_else(|| failed("it wrote nothing".into()))
}

/// The last lines of what a program wrote, on one line.
fn last_lines(bytes: &[u8]) -> String {
    const LINES: usize = 8;
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

fn in_file(path: &(impl AsRef<OsStr> + ?Sized)) -> impl FnOnce(std::io::Error) -> NeuronError {
    let path = PathBuf::from(path.as_ref());
    move |why| NeuronError::File { path, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(chip: Chip) -> Target {
        Target { chip, cores_per_logical_core: 1 }
    }

    #[test]
    fn nothing_is_cast_and_old_chips_have_no_logical_cores() {
        let flags = |chip| Compiler::elsewhere("2.21", target(chip)).with_flags(["-O1"]).flags().join(" ");
        let common = "--model-type transformer --auto-cast none";
        assert_eq!(flags(Chip::Trn1), format!("--framework XLA --target trn1 {common} -O1"));
        assert_eq!(flags(Chip::Trn2), format!("--framework XLA --target trn2 {common} -lnc 1 -O1"));
    }

    #[test]
    fn a_compiler_that_is_not_there_is_named() {
        let error = Compiler::open("/nowhere/neuronx-cc", target(Chip::Trn2)).unwrap_err();
        assert!(matches!(error, NeuronError::NoCompiler { .. }), "{error}");
        assert!(error.to_string().contains("/nowhere/neuronx-cc"), "{error}");
    }

    #[test]
    fn a_compiler_that_fails_to_tell_its_version_is_none() {
        let failing = Compiler::open("false", target(Chip::Trn2)).unwrap_err();
        assert!(matches!(failing, NeuronError::Compiler { .. }), "{failing}");
    }

    #[test]
    fn the_last_lines_are_told() {
        let lines: String = (0..20).map(|i| format!("line {i}\n\n")).collect();
        assert!(last_lines(lines.as_bytes()).starts_with("line 12 | line 13"));
        assert_eq!(last_lines(b""), "");
    }
}
