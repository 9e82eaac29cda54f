//! A step in steady state takes no memory from the system: its tensors, inputs and logits lie where those of the steps
//! before did.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use samebits_cpu::Cpu;
use samebits_engine::{Batch, BatchSeq, PageId, Runner, Wanted};
use samebits_nn::{Architecture, Config, ExpertsConfig, LayerType, RopeScaling, WeightError, WeightSource};
use samebits_runner::{MemoryPlan, ModelRunner, RunnerConfig};
use samebits_tensor::{Activation, Format, HostWeight, testing::random_blocks};

/// The system's allocator, counted over all threads.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Any weight, in one format; vectors are ones.
struct Random(Format);

impl WeightSource for Random {
    fn get(&self, name: &str) -> Result<HostWeight, WeightError> {
        unreachable!("{name} without a shape")
    }

    fn get_shaped(&self, name: &str, shape: &[usize]) -> Result<HostWeight, WeightError> {
        let (format, bytes) = match *shape {
            [rows, cols] => (self.0, random_blocks(self.0, rows, cols, 1)),
            [experts, rows, cols] => (self.0, random_blocks(self.0, experts * rows, cols, 1)),
            _ => (Format::F32, [1.0f32.to_ne_bytes()].concat().repeat(shape.iter().product())),
        };
        Ok(HostWeight { name: name.into(), format, shape: shape.into(), bytes: bytes.into() })
    }

    fn contains(&self, _: &str) -> bool {
        true
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn origin(&self) -> String {
        "random".into()
    }
}

fn config(architecture: Architecture) -> Config {
    let gemma = architecture.is_gemma();
    Config {
        architecture,
        hidden_size: 256,
        intermediate_size: 512,
        experts: architecture.has_experts().then_some(ExpertsConfig {
            num_experts: 8,
            num_experts_per_tok: 2,
            norm_topk_prob: true,
        }),
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        vocab_size: 320,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_local_base_freq: (architecture == Architecture::Gemma3).then_some(1e3),
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 512,
        sliding_window: Some(64),
        layer_types: vec![LayerType::Sliding, LayerType::Full],
        attn_logit_softcapping: (architecture == Architecture::Gemma2).then_some(50.0),
        final_logit_softcapping: (architecture == Architecture::Gemma2).then_some(30.0),
        query_pre_attn_scalar: None,
        tie_word_embeddings: true,
        attention_bias: architecture == Architecture::Qwen2,
        attention_output_bias: false,
        hidden_activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn runner(architecture: Architecture, format: Format, threads: usize) -> ModelRunner<Cpu> {
    let (config, weights) = (config(architecture), Random(format));
    let serving = RunnerConfig { max_context: 512, page_size: 16, ..RunnerConfig::default() };
    let plan = MemoryPlan::new(&config, &weights, &serving, None).expect("a plan");
    let cpu = Cpu::builder().threads(threads).build().expect("a CPU");
    ModelRunner::load(cpu, &config, &weights, &serving, &plan, &|_| ()).expect("a model")
}

/// Sequences that decode together.
const SEQUENCES: usize = 2;

/// Steps until everything has grown as far as it does before the context needs another tile of attention.
const WARM_UP: usize = 140;

/// A token of each sequence at `position`.
fn decode(position: usize) -> Batch {
    let pages = |sequence| (0..32).map(|i| PageId(sequence * 32 + i)).collect();
    Batch {
        tokens: (0..SEQUENCES).map(|sequence| ((position * 7 + sequence) % 300) as u32).collect(),
        positions: vec![position as u32; SEQUENCES],
        seqs: (0..SEQUENCES)
            .map(|i| BatchSeq { tokens: i..i + 1, pages: pages(i as u32), logits: Wanted::Row })
            .collect(),
    }
}

/// How often 40 steps allocate, once the steps before have warmed everything up.
fn allocations(mut runner: ModelRunner<Cpu>) -> usize {
    let mut step = |batch: &Batch| {
        runner.submit(batch).expect("a step");
        let logits = runner.wait().expect("logits");
        assert_eq!(logits.rows(), SEQUENCES);
        runner.reuse(logits);
    };
    (0..WARM_UP).for_each(|position| step(&decode(position)));
    let batches: Vec<_> = (WARM_UP..WARM_UP + 40).map(decode).collect();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "the allocator counts");
    batches.iter().for_each(step);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// One test, since every allocation of the process counts.
#[test]
fn a_decoding_step_allocates_nothing() {
    let models = Architecture::ALL.map(|architecture| (architecture, Format::Q4_0));
    let formats = [Architecture::Llama, Architecture::Qwen3Moe]
        .into_iter()
        .flat_map(|architecture| [Format::Q4K, Format::BF16].map(|format| (architecture, format)));
    for (architecture, format) in models.into_iter().chain(formats) {
        for threads in [1, 2] {
            let found = allocations(runner(architecture, format, threads));
            assert_eq!(found, 0, "{architecture} in {format}, {threads} threads");
        }
    }
}
