//! Runs mutants in as many processes as there are cores.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use ptx_sim::{Mutant, mutants};
use samebits_kernels::cuda::MODULES;
use serde_json::Value;

use crate::{
    pool,
    report::{Report, Tried},
    worker,
};

/// What a mutant that nothing notices may cost, as a share of the time that all cases take.
const SHARE_MAX: f64 = 1.0 / 20.0;

/// After so long a worker's answer is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mutants of a worker before the next takes over, since memory that a fault left behind stays.
const MUTANTS_MAX: usize = 500;

/// Which mutants are run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) kernel: Option<String>,
    pub(crate) module: Option<String>,
    pub(crate) operator: Option<String>,
    pub(crate) sample: Option<usize>,
    pub(crate) seed: u64,
    pub(crate) minutes: Option<f64>,
    pub(crate) workers: Option<usize>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) document: Option<PathBuf>,
}

impl Options {
    /// Those of `SAMEBITS_MUTATE`, such as `module=rows,sample=100`.
    pub(crate) fn from_environment() -> Self {
        let mut options = Options::default();
        let text = env::var("SAMEBITS_MUTATE").unwrap_or_default();
        for option in text.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').expect("name=value");
            let number = || value.parse().unwrap_or_else(|error| panic!("{option}: {error}"));
            match name {
                "kernel" => options.kernel = Some(value.into()),
                "module" => options.module = Some(value.into()),
                "operator" => options.operator = Some(value.into()),
                "sample" => options.sample = Some(number()),
                "seed" => options.seed = number() as u64,
                "minutes" => options.minutes = Some(value.parse().expect("minutes")),
                "workers" => options.workers = Some(number()),
                "json" => options.json = Some(value.into()),
                "document" => options.document = Some(value.into()),
                _ => panic!("{name} is no option of SAMEBITS_MUTATE"),
            }
        }
        options
    }
}

impl Options {
    /// How much is run, as arguments of the task.
    pub(crate) fn arguments(&self) -> String {
        let minutes = self.minutes.map_or(String::new(), |minutes| format!(" --minutes {minutes}"));
        format!("{minutes} --seed {}", self.seed)
    }
}

/// What cases execute: the lines of each kernel, and how long they take.
struct Coverage {
    cases: Vec<(f64, HashMap<String, HashSet<u32>>)>,
}

/// What the workers share.
struct Work<'a> {
    queue: Mutex<std::vec::IntoIter<Mutant>>,
    coverage: &'a Coverage,
    /// Of each kernel, the cases that noticed mutants, the last first: the next is likely to be noticed by the same.
    notices: Mutex<HashMap<String, Vec<usize>>>,
    tried: Mutex<Vec<Tried>>,
    end: Option<Instant>,
}

/// Runs the mutants that are chosen.
pub(crate) fn run(options: &Options) -> Report {
    let start = Instant::now();
    let count =
        options.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut workers: Vec<Worker> = (0..count).map(|_| Worker::start()).collect();
    let (chosen, all) = choose(options);
    let coverage = cover(&mut workers);
    let end = options.minutes.map(|minutes| start + Duration::from_secs_f64(minutes * 60.0));
    let (queue, notices) = (Mutex::new(chosen.into_iter()), Mutex::default());
    let work = Work { queue, coverage: &coverage, notices, tried: Mutex::default(), end };
    std::thread::scope(|scope| {
        for worker in workers {
            let work = &work;
            scope.spawn(move || work.serve(worker));
        }
    });
    let left = work.queue.into_inner().unwrap().len();
    let mut tried = work.tried.into_inner().unwrap();
    tried.sort_by(|a, b| a.mutant.mutation.cmp(&b.mutant.mutation));
    Report { tried, left, all, seconds: start.elapsed().as_secs_f64() }
}

/// The mutants that the options name, and how many there are of all.
fn choose(options: &Options) -> (Vec<Mutant>, usize) {
    let is_wanted = |name: &Option<String>, of: &str| name.as_deref().is_none_or(|name| name == of);
    // What measures a device computes nothing that is kept.
    let modules = MODULES.iter().filter(|module| module.name != "probe");
    let modules = modules.filter(|module| is_wanted(&options.module, module.name));
    let all = modules.flat_map(|module| mutants(module.ptx).expect("PTX")).filter(|mutant| {
        !is_refused(mutant)
            && is_wanted(&options.kernel, &mutant.mutation.kernel)
            && is_wanted(&options.operator, &mutant.mutation.operator)
    });
    let mut all: Vec<Mutant> = all.collect();
    let count = all.len();
    assert!(count > 0, "{options:?} are no mutants");
    // In an order that is the same for a seed, so that what fits into the time is a sample too.
    all.sort_by_key(|mutant| mix(&mutant.mutation.to_string(), options.seed));
    all.truncate(options.sample.unwrap_or(count));
    (all, count)
}

/// Whether PTX with this mutant is refused before anything runs: `cargo xtask ptx`, and a test of the tree, allow float arithmetic no
/// rounding but to nearest.
fn is_refused(mutant: &Mutant) -> bool {
    let is_between_integers = ["cvt.rni.", "cvt.rzi."].iter().any(|opcode| mutant.text.contains(opcode));
    mutant.mutation.operator == "rounding" && !is_between_integers
}

/// A hash, FNV-1a.
fn mix(text: &str, seed: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Runs every case once, on kernels as they are.
fn cover(workers: &mut [Worker]) -> Coverage {
    let cases = pool::cases();
    let (count, stride) = (cases.len(), workers.len());
    let answers: Mutex<BTreeMap<usize, Value>> = Mutex::default();
    std::thread::scope(|scope| {
        for (first, worker) in workers.iter_mut().enumerate() {
            let (answers, cases) = (&answers, &cases);
            scope.spawn(move || {
                for case in (first..count).step_by(stride) {
                    let answer = worker.ask(&format!("cover {case}"));
                    let answer =
                        answer.unwrap_or_else(|| panic!("{} fails without mutants", cases[case].name));
                    answers.lock().unwrap().insert(case, answer);
                }
            });
        }
    });
    let lines =
        |lines: &Value| lines.as_array().unwrap().iter().map(|line| line.as_u64().unwrap() as u32).collect();
    let covered = |answer: Value| {
        let kernels = answer["lines"].as_object().unwrap().iter();
        (
            answer["seconds"].as_f64().unwrap(),
            kernels.map(|(kernel, of)| (kernel.clone(), lines(of))).collect(),
        )
    };
    if env::var_os("SAMEBITS_MUTATE_LOUD").is_some() {
        let mut slow: Vec<(f64, &str)> = Vec::new();
        for (case, answer) in cases.iter().zip(answers.lock().unwrap().values()) {
            slow.push((answer["seconds"].as_f64().unwrap(), &case.name));
        }
        slow.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = slow.iter().map(|(seconds, _)| seconds).sum();
        eprintln!("{} cases, {total:.1} s; the slowest: {:#.2?}", cases.len(), &slow[..40]);
    }
    Coverage { cases: answers.into_inner().unwrap().into_values().map(covered).collect() }
}

impl Coverage {
    /// Cases that execute the line of a mutant, the cheapest first but for those that noticed others.
    fn cases(&self, mutant: &Mutant, first: &[usize]) -> Vec<usize> {
        let mutation = &mutant.mutation;
        let executes = |index: &usize| {
            self.cases[*index].1.get(&mutation.kernel).is_some_and(|lines| lines.contains(&mutation.line))
        };
        let mut rest: Vec<usize> = (0..self.cases.len()).filter(|index| !first.contains(index)).collect();
        rest.sort_by(|&a, &b| self.cases[a].0.total_cmp(&self.cases[b].0));
        let most = SHARE_MAX * self.cases.iter().map(|case| case.0).sum::<f64>();
        let mut seconds = 0.0;
        let cases = first.iter().copied().chain(rest).filter(executes);
        let is_affordable = |index: &usize| {
            let is_first = seconds == 0.0;
            seconds += self.cases[*index].0;
            is_first || seconds < most
        };
        cases.take_while(is_affordable).collect()
    }
}

impl Work<'_> {
    fn serve(&self, mut worker: Worker) {
        let mut ran = 0;
        while self.end.is_none_or(|end| Instant::now() < end) {
            let Some(mutant) = self.queue.lock().unwrap().next() else { break };
            ran += 1;
            if ran % MUTANTS_MAX == 0 {
                worker = Worker::start();
            }
            let tried = self.attempt(&mut worker, mutant);
            self.tried.lock().unwrap().push(tried);
        }
    }

    fn attempt(&self, worker: &mut Worker, mutant: Mutant) -> Tried {
        let kernel = &mutant.mutation.kernel;
        let first = self.notices.lock().unwrap().get(kernel).cloned().unwrap_or_default();
        let cases = self.coverage.cases(&mutant, &first);
        if cases.is_empty() {
            return Tried { mutant, killed: None, cases: 0 };
        }
        let names: Vec<String> = cases.iter().map(usize::to_string).collect();
        let Some(answer) = worker.ask(&format!("run {} {}", mutant.mutation, names.join(" "))) else {
            *worker = Worker::start();
            return Tried { mutant, killed: Some("timeout".into()), cases: cases.len() };
        };
        if let Some(case) = answer["case"].as_u64() {
            let mut notices = self.notices.lock().unwrap();
            let of_kernel = notices.entry(kernel.clone()).or_default();
            of_kernel.retain(|&other| other != case as usize);
            of_kernel.insert(0, case as usize);
            of_kernel.truncate(4);
        }
        Tried { mutant, killed: answer["killed"].as_str().map(str::to_owned), cases: cases.len() }
    }
}

/// A process that runs mutants.
struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: mpsc::Receiver<Value>,
}

impl Worker {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "worker", "--nocapture", "--test-threads=1"])
            .env(worker::MARK, "1")
            .env("PTX_SIM_THREADS", "1")
            .env("PTX_SIM_CHECKS", "all")
            .env("PTX_SIM_BYTES", (1u64 << 30).to_string())
            .env("PTX_SIM_LIMIT", (1u64 << 21).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if env::var_os("SAMEBITS_MUTATE_LOUD").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .spawn()
            .expect("a process for mutants");
        let (requests, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let answer =
                    line.strip_prefix(worker::ANSWER).map(|text| serde_json::from_str(text).unwrap());
                if answer.is_some_and(|answer| sender.send(answer).is_err()) {
                    return;
                }
            }
        });
        Worker { child, requests, answers }
    }

    /// The answer, or none from a process that ended or does not end.
    fn ask(&mut self, request: &str) -> Option<Value> {
        writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()).ok()?;
        self.answers.recv_timeout(PATIENCE).ok()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
