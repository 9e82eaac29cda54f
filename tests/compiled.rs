//! Whole models compiled ahead, through a PJRT plugin that others have built: the same tokens and the same bits of logits
//! as on the CPU, however a step is padded, whatever fails.
// The plugins that others publish are for this alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use common::{
    GGUF, NAMES, batch,
    compiled::{
        assert_same, check_chunks, check_shared_pages, compiled, cpu, crowded, engine, on, on_cpu, plan,
        serve, small,
    },
    pages, prompt, runner, step, tiny,
};
use samebits_checkpoint::Checkpoint;
use samebits_engine::{Event, Request, RequestError, RequestId, RunnerError};
use samebits_hlo::{Argument, Device, DeviceError, Options, Program};
use samebits_nn::{Config, WeightError, WeightSource};
use samebits_pjrt::{Buffer, Client, Executable, PjrtDevice, Plugin, Value, testing};
use samebits_runner::{CompiledRunner, ModelRunner};
use samebits_tensor::{Format, HostTensor, HostWeight};

fn device() -> PjrtDevice {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let open = || Plugin::open(testing::cpu_plugin()).expect("a plugin").client(&[]).expect("a client");
    PjrtDevice::new(CLIENT.get_or_init(open).clone(), 0).unwrap()
}

#[test]
fn chunks_of_every_architecture() {
    for name in NAMES {
        let checkpoint = tiny(name);
        let mut runner = compiled(device(), &checkpoint, &plan(&checkpoint));
        check_chunks(&mut runner, &checkpoint, name, &prompt(), &[1, 16, 16, 16, 16, 16, 16, 16, 13, 16, 8]);
    }
}

#[test]
fn chunks_of_every_block_format() {
    for name in GGUF {
        let checkpoint = tiny(name);
        let mut runner = compiled(device(), &checkpoint, &plan(&checkpoint));
        check_chunks(&mut runner, &checkpoint, name, &prompt(), &[16, 16, 16, 16, 16, 16, 16, 16, 9, 13]);
    }
}

/// 3 steps of 16 tokens and some of one: a real model in mixed block formats.
#[test]
fn smollm2() {
    let found = samebits_checkpoint::resolve("smollm2").expect("the model can be had from no source");
    let checkpoint = Checkpoint::open(found.path).unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| (i * i * 31 + 17) % 40_000).collect();
    let mut runner = compiled(device(), &checkpoint, &plan(&checkpoint));
    check_chunks(&mut runner, &checkpoint, "SmolLM2", &tokens, &[16, 16, 5, 1, 1, 1]);
}

#[test]
fn pages_of_a_common_beginning_are_shared() {
    for name in ["llama3", "gguf/wide.mixed256.gguf"] {
        let checkpoint = tiny(name);
        check_shared_pages(&mut compiled(device(), &checkpoint, &plan(&checkpoint)), &checkpoint, name);
    }
}

#[test]
fn layers_of_one_kind_share_a_program() {
    let checkpoint = tiny("gemma3");
    let counting = Faulty::new(usize::MAX, Fault::None);
    let compilations = counting.compilations.clone();
    let mut runner = compiled(counting, &checkpoint, &plan(&checkpoint));
    runner.compile(4, 100, 1).unwrap();
    // Embedding, head, and two kinds of the six layers: sliding and full.
    assert_eq!(compilations.load(Ordering::Relaxed), 4);
    runner.compile(3, 90, 1).unwrap();
    assert_eq!(compilations.load(Ordering::Relaxed), 4, "the bucket is compiled");
    let error = runner.compile(17, 1, 1).unwrap_err().to_string();
    assert!(error.contains("17 tokens"), "{error}");
}

#[test]
fn batches_chunks_and_preemption_through_the_engine() {
    for name in ["llama3", "gguf/wide.mixed256.gguf"] {
        let checkpoint = tiny(name);
        let plan = crowded(&checkpoint);
        let (expected, none, _) = serve(on_cpu(&checkpoint, &plan));
        let (found, errors, stats) = serve(on(device(), &checkpoint, &plan));
        assert_eq!((none.len(), errors.len()), (0, 0), "{name}");
        assert!(stats.preemptions > 0, "{name}");
        assert_eq!(expected, found, "{name}");
    }
}

/// A plugin's device that fails one of its runs, uploads, downloads or compilations.
struct Faulty {
    device: PjrtDevice,
    calls: AtomicUsize,
    /// The call that fails.
    at: usize,
    fault: Fault,
    compilations: Arc<AtomicUsize>,
    failed: Arc<Mutex<Option<DeviceError>>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Compile,
    Upload,
    /// Before it starts: what was given away is still there.
    Refuse,
    /// After it took what was given away.
    Run,
    Download,
    Lost,
}

impl Faulty {
    fn new(at: usize, fault: Fault) -> Self {
        let (calls, compilations, failed) = Default::default();
        Faulty { device: device(), calls, at, fault, compilations, failed }
    }

    /// The error of the call whose turn it is.
    fn fail(&self, kinds: &[Fault]) -> Result<(), DeviceError> {
        if !kinds.contains(&self.fault) || self.calls.fetch_add(1, Ordering::Relaxed) != self.at {
            return Ok(());
        }
        let (device, detail) = ("faulty".to_owned(), "injected".to_owned());
        let error = match self.fault {
            Fault::Lost => DeviceError::Lost { device, detail },
            Fault::Compile => DeviceError::Failed { op: "compile".into(), device, detail, retriable: false },
            fault => DeviceError::Failed { op: format!("{fault:?}"), device, detail, retriable: true },
        };
        *self.failed.lock().unwrap() = Some(error.clone());
        Err(error)
    }
}

impl Device for Faulty {
    type Buffer = Buffer;
    type Executable = Executable;

    fn name(&self) -> &str {
        "faulty"
    }

    fn ranks(&self) -> usize {
        self.device.ranks()
    }

    fn options(&self, module: String) -> Options {
        self.device.options(module)
    }

    fn compile(&self, program: &Program) -> Result<Executable, DeviceError> {
        self.compilations.fetch_add(1, Ordering::Relaxed);
        self.fail(&[Fault::Compile])?;
        self.device.compile(program)
    }

    fn upload(&self, rank: usize, value: &HostTensor) -> Result<Buffer, DeviceError> {
        // A step's inputs are small.
        if value.shape().elements() <= 64 {
            self.fail(&[Fault::Upload])?;
        }
        self.device.upload(rank, value)
    }

    fn run(
        &self,
        executable: &Executable,
        mut arguments: Vec<Vec<Argument<'_, Buffer>>>,
    ) -> Result<Vec<Vec<Buffer>>, DeviceError> {
        self.fail(&[Fault::Refuse, Fault::Lost])?;
        if let Err(error) = self.fail(&[Fault::Run]) {
            for argument in arguments.iter_mut().flatten() {
                if let Argument::Given(buffer) = argument {
                    buffer.take();
                }
            }
            return Err(error);
        }
        self.device.run(executable, arguments)
    }

    fn download(&self, buffer: &Buffer, out: &mut [u8]) -> Result<(), DeviceError> {
        self.fail(&[Fault::Download])?;
        self.device.download(buffer, out)
    }
}

#[test]
fn a_fault_changes_no_output() {
    let checkpoint = tiny("gguf/llama.Q4_0.gguf");
    let plan = crowded(&checkpoint);
    let (expected, ..) = serve(on_cpu(&checkpoint, &plan));
    for (fault, at) in [
        (Fault::Upload, 200),
        (Fault::Refuse, 0),
        (Fault::Refuse, 41),
        (Fault::Run, 1),
        (Fault::Run, 42),
        (Fault::Download, 0),
        (Fault::Download, 9),
    ] {
        let faulty = Faulty::new(at, fault);
        let failed = faulty.failed.clone();
        let (found, errors, stats) = serve(on(faulty, &checkpoint, &plan));
        assert!(failed.lock().unwrap().is_some(), "{fault:?} at {at}: nothing failed");
        assert_eq!(errors.len(), 0, "{fault:?} at {at}: {errors:?}");
        assert!(stats.retries > 0, "{fault:?} at {at}");
        assert_eq!(expected, found, "{fault:?} at {at}");
    }
}

/// What will not pass is one clear error of the requests in that step; the engine goes on.
#[test]
fn a_compiler_that_fails_harms_those_who_needed_it() {
    let checkpoint = tiny("gguf/llama.Q4_0.gguf");
    let plan = crowded(&checkpoint);
    let (expected, ..) = serve(on_cpu(&checkpoint, &plan));
    let (found, errors, _) = serve(on(Faulty::new(0, Fault::Compile), &checkpoint, &plan));
    assert!(!errors.is_empty() && errors.len() < 4, "{errors:?}");
    assert_eq!(errors[0].to_string(), "compile failed on faulty: injected");
    assert_eq!(found.len() + errors.len(), 4);
    found.iter().for_each(|(id, output)| assert_eq!(output, &expected[id]));
}

#[test]
fn a_lost_device_is_said_to_be_lost() {
    let checkpoint = tiny("gguf/llama.Q4_0.gguf");
    let runner = on(Faulty::new(7, Fault::Lost), &checkpoint, &crowded(&checkpoint));
    let mut engine = engine(runner);
    engine.add(Request::new(RequestId(1), prompt(), 20)).unwrap_err();
    engine.add(Request::new(RequestId(1), prompt()[..20].to_vec(), 20)).unwrap();
    let mut errors = Vec::new();
    while errors.is_empty() {
        errors.extend(engine.step().unwrap().into_iter().filter_map(|event| match event {
            Event::Failed { error, .. } => Some(error),
            _ => None,
        }));
    }
    assert!(matches!(&errors[..], [RequestError::Runner(RunnerError::DeviceLost { .. })]), "{errors:?}");
}

/// The first devices of a client that has four.
fn sharing(ranks: usize) -> PjrtDevice {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let open = || {
        let plugin = Plugin::open(testing::cpu_plugin()).expect("a plugin");
        plugin.client(&[("cpu_device_count", Value::Int64(4))]).expect("a client")
    };
    PjrtDevice::group(CLIENT.get_or_init(open).clone(), 0..ranks).unwrap()
}

/// Heads that are split, heads that are shared by two ranks or by four, an output layer of its own and one that is the
/// embedding, plain and in blocks, and experts.
#[test]
fn devices_that_share_layers_change_no_bit() {
    let models = [("mistral", 2), ("llama3", 4), ("gguf/wide.mixed256.gguf", 2), ("qwen3_moe", 2)];
    for (name, ranks) in models {
        let checkpoint = tiny(name);
        let plan = crowded(&checkpoint);
        let (expected, ..) = serve(on_cpu(&checkpoint, &plan));
        let (found, errors, stats) = serve(on(sharing(ranks), &checkpoint, &plan));
        assert!(errors.is_empty() && stats.preemptions > 0, "{name}: {errors:?}");
        assert_eq!(expected, found, "{name} on {ranks}");
    }
}

/// Weights with biases that the file lacks.
struct Biased<'a>(&'a dyn WeightSource);

impl WeightSource for Biased<'_> {
    fn get(&self, name: &str) -> Result<HostWeight, WeightError> {
        let Some(layer) = name.strip_suffix("_proj.bias") else { return self.0.get(name) };
        let rows = self.0.get(&format!("{layer}_proj.weight"))?.shape[0];
        let values = (0..rows).flat_map(|row| (row as f32 * 0.37).sin().to_le_bytes()).collect::<Vec<_>>();
        Ok(HostWeight { name: name.into(), format: Format::F32, shape: vec![rows], bytes: values.into() })
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn origin(&self) -> String {
        self.0.origin()
    }
}

#[test]
fn biases_are_split_as_their_rows_are() {
    let checkpoint = tiny("llama");
    let (weights, plan) = (Biased(&*checkpoint.weights), plan(&checkpoint));
    let config = Config { attention_bias: true, attention_output_bias: true, ..checkpoint.config.clone() };
    let mut alone = ModelRunner::load(cpu(), &config, &weights, &small(), &plan, &|_| {}).unwrap();
    let mut two = CompiledRunner::load(sharing(2), &config, &weights, &small(), &plan, &|_| {}).unwrap();
    let (tokens, table) = (prompt(), pages(&alone, 16, 3, 7));
    let batch = batch(&[(&table, 0, &tokens[..16])]);
    let (expected, found) = (step(&mut alone, &batch), step(&mut two, &batch));
    assert_same("biases on two devices", &expected[0], &found[0]);
    let mut plain = runner(cpu(), &checkpoint);
    assert_ne!(step(&mut plain, &batch), expected, "the biases count");
}

#[test]
fn what_cannot_be_shared_is_refused() {
    for (name, says) in [("qwen2", ["num_attention_heads", "3"]), ("olmoe", ["olmoe", "norms of the whole"])]
    {
        let checkpoint = tiny(name);
        let (config, plan) = (small(), plan(&checkpoint));
        let weights = &*checkpoint.weights;
        let loaded = CompiledRunner::load(sharing(2), &checkpoint.config, weights, &config, &plan, &|_| {});
        let error = loaded.err().expect(name).to_string();
        assert!(says.iter().all(|part| error.contains(part)), "{error}");
    }
}
