//! Machine code of each kernel: registers, memory, and the instructions that have to be in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use anyhow::{Context, anyhow};

use super::{ARCHITECTURES, tools::Tools};

/// What the assembler says of a kernel on one architecture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Assembled {
    pub(super) registers: u64,
    pub(super) shared_bytes: u64,
    pub(super) stack_bytes: u64,
    /// Stored and loaded.
    pub(super) spilled_bytes: u64,
}

/// What a PTX instruction has to become, by the start of each.
const EXPECTED: [(&str, &str); 5] = [
    ("mma.sync.aligned.m16n8k32.row.col.s32", "IMMA"),
    ("mma.sync.aligned.m16n8k16.row.col.f32", "HMMA"),
    ("cp.async.c", "LDGSTS"),
    ("ldmatrix.", "LDSM"),
    ("ld.global.nc.v4.u32", "LDG.E.128"),
];

/// Assembles every module for every architecture, two at a time: kernel, architecture, and what is said of it. Kernels whose code
/// lacks an instruction are problems.
pub(super) fn assemble(
    tools: &Tools,
    modules: &[(String, String)],
    problems: &mut Vec<String>,
) -> anyhow::Result<Vec<(String, String, Assembled)>> {
    let jobs = modules.iter().flat_map(|module| ARCHITECTURES.iter().map(move |arch| (module, *arch)));
    let queue = Mutex::new(jobs.collect::<Vec<_>>());
    let found = Mutex::new((Vec::new(), Vec::new()));
    let work = || -> anyhow::Result<()> {
        loop {
            let job = queue.lock().map_err(|_| anyhow!("a thread failed"))?.pop();
            let Some(((name, ptx), arch)) = job else { return Ok(()) };
            let (cubin, log) = cubin(tools, name, ptx, arch)?;
            let code = code(tools, &cubin)?;
            let mut found = found.lock().map_err(|_| anyhow!("a thread failed"))?;
            for (kernel, assembled) in read_log(&log) {
                found.1.extend(
                    missing(&kernel, ptx, &code, assembled).map(|it| format!("{arch}: {kernel}: {it}")),
                );
                found.0.push((kernel, arch.to_owned(), assembled));
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work().and(other.join().map_err(|_| anyhow!("a thread failed"))?)
    })?;
    let (found, mut missing) = found.into_inner().map_err(|_| anyhow!("a thread failed"))?;
    missing.sort();
    problems.append(&mut missing);
    Ok(found)
}

/// Machine code of a module, and what the assembler said.
pub(super) fn cubin(tools: &Tools, name: &str, ptx: &str, arch: &str) -> anyhow::Result<(PathBuf, String)> {
    let path = tools.result("cubin", &[name, ptx, arch]);
    let log = path.with_extension("log");
    if !log.exists() {
        let source = path.with_extension("ptx");
        fs::write(&source, ptx).with_context(|| source.display().to_string())?;
        let arch = format!("-arch={arch}");
        let arguments = ["-v", &arch, text(&source)?, "-o", text(&path)?];
        let said = tools.output("ptxas", &arguments).with_context(|| name.to_owned())?;
        fs::remove_file(&source)?;
        fs::write(&log, said)?;
    }
    Ok((path, fs::read_to_string(&log)?))
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| path.display().to_string())
}

/// The opcodes of each kernel.
fn code(tools: &Tools, cubin: &Path) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let path = cubin.with_extension("opcodes");
    if !path.exists() {
        let listing = tools.output("nvdisasm", &["-c", text(cubin)?])?;
        let lines = opcodes(&listing).into_iter().map(|(kernel, opcodes)| {
            format!("{kernel} {}\n", opcodes.into_iter().collect::<Vec<_>>().join(" "))
        });
        fs::write(&path, lines.collect::<String>())?;
    }
    let text = fs::read_to_string(&path)?;
    let kernel = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        Some((words.next()?, words.collect()))
    };
    Ok(text.lines().filter_map(kernel).collect())
}

/// Opcodes in a listing: instructions are `/*0010*/  @P0 LDG.E.128 R4, ...;` behind `.text.kernel:`.
fn opcodes(listing: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut kernels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut kernel = String::new();
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            kernel = name.to_owned();
        }
        let Some(instruction) = line.trim_start().strip_prefix("/*").and_then(|rest| rest.split_once("*/"))
        else {
            continue;
        };
        let mut words = instruction.1.split_whitespace().map(|word| word.trim_matches(['{', ';']));
        if let Some(opcode) = words.find(|word| !word.is_empty() && !word.starts_with('@')) {
            kernels.entry(kernel.clone()).or_default().insert(opcode.to_owned());
        }
    }
    kernels
}

/// Instructions that the PTX of a kernel asks for and its code has not, and memory of threads where nothing is spilled.
fn missing<'a>(
    kernel: &str,
    ptx: &'a str,
    code: &'a BTreeMap<String, BTreeSet<String>>,
    assembled: Assembled,
) -> impl Iterator<Item = String> {
    let body = body(ptx, kernel);
    let opcodes = code.get(kernel).cloned().unwrap_or_default();
    let has = |start: &str| opcodes.iter().any(|opcode| opcode.starts_with(start));
    let absent = EXPECTED.iter().filter(|(from, to)| body.contains(from) && !has(to));
    let mut found: Vec<String> = absent.map(|(from, to)| format!("{from}… did not become {to}")).collect();
    if (has("LDL") || has("STL")) && assembled.spilled_bytes == 0 {
        found.push("uses memory of threads (LDL, STL)".into());
    }
    if opcodes.is_empty() {
        found.push("has no code".into());
    }
    found.into_iter()
}

/// The text of a kernel in a module.
pub(super) fn body<'a>(ptx: &'a str, kernel: &str) -> &'a str {
    let start = ptx.find(&format!(".visible .entry {kernel}(")).unwrap_or(ptx.len());
    let rest = &ptx[start..];
    &rest[..rest.find("\n}\n").unwrap_or(rest.len())]
}

/// What `ptxas -v` says of each kernel, on lines behind the one that names it.
fn read_log(log: &str) -> Vec<(String, Assembled)> {
    let mut kernels: Vec<(String, Assembled)> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernels.push((rest.split('\'').next().unwrap_or_default().to_owned(), Assembled::default()));
        }
        let Some((_, kernel)) = kernels.last_mut() else { continue };
        let number = |what: &str| {
            let words = line.split(what).next().filter(|before| before.len() < line.len())?;
            words.split_whitespace().next_back()?.parse::<u64>().ok()
        };
        kernel.stack_bytes = number("bytes stack frame").unwrap_or(kernel.stack_bytes);
        kernel.shared_bytes = number("bytes smem").unwrap_or(kernel.shared_bytes);
        kernel.registers = number("registers").unwrap_or(kernel.registers);
        if let (Some(stores), Some(loads)) = (number("bytes spill stores"), number("bytes spill loads")) {
            kernel.spilled_bytes = stores + loads;
        }
    }
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : Compiling entry function 'a' for 'sm_90'\nptxas info    : Function properties for a\n    \
                       8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\nptxas info    : Used 32 registers, used 1 \
                       barriers, 8 bytes cumulative stack size, 2304 bytes smem\nptxas info    : Compiling entry function 'b' for \
                       'sm_90'\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 20 registers\n";

    const LISTING: &str = ".text.a:\n        /*0000*/                   LDC R1, c[0x0][0x28] ;\n        /*0010*/              @!P0 \
                           LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;\n.L_x_1:\n.text.b:\n        /*0000*/     {  IMMA.16832.S8.S8 R4, R2, R3, RZ ;\n";

    #[test]
    fn what_the_assembler_says_is_read() {
        let a = Assembled { registers: 32, shared_bytes: 2304, stack_bytes: 8, spilled_bytes: 16 };
        let b = Assembled { registers: 20, ..Assembled::default() };
        assert_eq!(read_log(LOG), [("a".to_owned(), a), ("b".to_owned(), b)]);
    }

    #[test]
    fn what_is_missing_in_the_code_is_found() {
        let code = opcodes(LISTING);
        let set =
            |opcodes: &[&str]| opcodes.iter().map(|opcode| (*opcode).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(code["a"], set(&["LDC", "LDG.E.128.CONSTANT"]));
        assert_eq!(code["b"], set(&["IMMA.16832.S8.S8"]));
        let ptx = ".visible .entry a(\n)\n{\nld.global.nc.v4.u32 {%r1}, [%rd1];\ncp.async.cg.shared.global [%r1], [%rd2], 16;\n}\n\
                   .visible .entry b(\n)\n{\nmma.sync.aligned.m16n8k32.row.col.s32.s8 {%r1}\n}\n";
        let missing = |kernel| missing(kernel, ptx, &code, Assembled::default()).collect::<Vec<_>>();
        assert_eq!(missing("a"), ["cp.async.c… did not become LDGSTS"]);
        assert_eq!(missing("b"), Vec::<String>::new());
        assert_eq!(missing("c"), ["has no code"]);
    }
}
