//! Linear layers through cuBLASLt, whose stand-in sums exactly and rounds once.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

use half::bf16;
use ptx_sim::Sim;
use samebits_cuda::{Cuda, FAST_FROM, FAST_FROM_OF_BLOCKS, Numerics, OpenError};
use samebits_tensor::{
    Activation, Backend, DType, FeedForward, Format, HostWeight, Input, StepInput, StepKey, Tensor, Weight,
    testing::random_blocks,
};

fn builder() -> samebits_cuda::Builder {
    let path = ptx_sim::library().expect("the stand-in");
    Cuda::builder().memory_bytes(256 << 20).numerics(Numerics::Fast).cublaslt(path)
}

fn fast() -> Cuda {
    builder().open().expect("a device")
}

fn exact() -> Cuda {
    Cuda::builder().memory_bytes(256 << 20).open().expect("a device")
}

/// Values between -1 and 1, from a generator of Lehmer's (1951).
fn values(count: usize) -> Vec<f32> {
    let mut state = 7u64;
    let next = |_| {
        state = state * 48_271 % 0x7fff_ffff;
        state as f32 / 0x4000_0000 as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Tokens of the largest step that is exact.
fn most_exact(format: Format) -> usize {
    if format.is_quantized() { FAST_FROM_OF_BLOCKS } else { FAST_FROM }
}

fn weight(format: Format, rows: usize, columns: usize) -> HostWeight {
    let bytes = random_blocks(format, rows, columns, 7).into();
    HostWeight { name: "weight".into(), format, shape: vec![rows, columns], bytes }
}

fn linear(cuda: &Cuda, x: &[f32], weight: &HostWeight) -> Vec<f32> {
    let (_, columns) = weight.matrix().unwrap();
    let x = Tensor::of(cuda, [x.len() / columns, columns], x).unwrap();
    x.linear(&Weight::pack(cuda, weight).unwrap()).unwrap().to_vec().unwrap()
}

/// An operand as it is multiplied: in bf16, or with 11 significant bits where weights are F32.
fn operand(format: Format, x: f32) -> f64 {
    f64::from(match format {
        Format::F32 => f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1)),
        _ => bf16::from_f32(x).to_f32(),
    })
}

#[test]
fn every_format_is_multiplied_as_bf16() {
    let _sim = Sim::alone().unwrap();
    let cuda = fast();
    for format in Format::ALL {
        let columns = if format.block_len() == 256 { 512 } else { 96 };
        let most = most_exact(format);
        for (tokens, rows) in [(most + 1, 1), (most + 6, 131)] {
            let weight = weight(format, rows, columns);
            let x = values(tokens * columns);
            let found = linear(&cuda, &x, &weight);
            let w: Vec<f64> = weight.to_f32().unwrap().into_iter().map(|w| operand(format, w)).collect();
            let x: Vec<f64> = x.into_iter().map(|x| operand(format, x)).collect();
            for (i, found) in found.into_iter().enumerate() {
                let (x, w) = (&x[i / rows * columns..][..columns], &w[i % rows * columns..][..columns]);
                let terms = x.iter().zip(w).map(|(x, w)| x * w);
                let (sum, magnitude) =
                    terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
                // Half a unit in the last place of the result, and f64's own roundings.
                let bound = sum.abs() * 2f64.powi(-24) + magnitude * 2f64.powi(-45);
                assert!((f64::from(found) - sum).abs() <= bound, "{format} [{i}]: {found:e} and {sum:e}");
            }
        }
    }
}

/// 64 rows, 64 rows, and what is left.
#[test]
fn weights_that_do_not_fit_the_scratch_memory_at_once() {
    let sim = Sim::alone().unwrap();
    let small = builder().scratch_bytes(64 * 96 * 2).open().unwrap();
    for format in [Format::Q8_0, Format::F16] {
        let (weight, x) = (weight(format, 131, 96), values((most_exact(format) + 1) * 96));
        let expected = linear(&fast(), &x, &weight);
        let before = sim.calls("cublasLtMatmul");
        assert_eq!(linear(&small, &x, &weight), expected, "{format}");
        assert_eq!(sim.calls("cublasLtMatmul") - before, 3);
    }
    let wide = weight(Format::Q8_0, 8, 128);
    let tokens = FAST_FROM_OF_BLOCKS + 1;
    let x = Tensor::of(&small, [tokens, 128], &values(tokens * 128)).unwrap();
    let error = x.linear(&Weight::pack(&small, &wide).unwrap()).err();
    assert!(error.is_none(), "8 rows of 128 fit: {error:?}");
}

#[test]
fn few_tokens_keep_the_bits() {
    let _sim = Sim::alone().unwrap();
    let (fast, exact) = (fast(), exact());
    for format in [Format::Q4_0, Format::Q6K, Format::BF16] {
        let weight = weight(format, 67, 256);
        let x = values(most_exact(format) * 256);
        assert_eq!(linear(&fast, &x, &weight), linear(&exact, &x, &weight), "{format}");
    }
    assert!(fast.capabilities().numerics.starts_with("fast-1+exact-"), "{}", fast.capabilities().numerics);
    assert!(fast.capabilities().numerics.ends_with("+cublaslt-120804+sm_90"));
    assert!(exact.capabilities().numerics.starts_with("exact-"));
}

/// The library plans while a step is issued.
#[test]
fn a_step_of_many_tokens_is_not_recorded() {
    let sim = Sim::alone().unwrap();
    let cuda = fast();
    let weight = Weight::pack(&cuda, &weight(Format::BF16, 32, 64)).unwrap();
    for (tokens, replays) in [(FAST_FROM, 3), (FAST_FROM + 1, 0)] {
        let before = sim.calls("cuGraphLaunch");
        let (dims, values) = ([tokens], vec![1; tokens]);
        let results = [(); 4].map(|()| {
            let key = Some(StepKey { owner: 1, max_context: 8 });
            let x = StepInput { dims: &dims, values: &values };
            let step = |[x]: &[Tensor<Cuda>; 1]| x.cast(DType::F32)?.repeat(1, 64)?.linear(&weight);
            cuda.step(key, [x], step).unwrap().to_vec::<f32>().unwrap()
        });
        assert!(results.iter().all(|result| *result == results[0]), "{tokens} tokens");
        assert_eq!(sim.calls("cuGraphLaunch") - before, replays, "{tokens} tokens");
    }
}

#[test]
fn a_feed_forward_layer_of_a_norm_is_close_to_the_exact_one() {
    let _sim = Sim::alone().unwrap();
    let layer = |cuda: &Cuda| -> Vec<f32> {
        let [gate, up, down] = [(160, 96), (160, 96), (96, 160)]
            .map(|(rows, columns)| Weight::pack(cuda, &weight(Format::Q8_0, rows, columns)).unwrap());
        let tokens = FAST_FROM_OF_BLOCKS + 3;
        let x = Tensor::of(cuda, [tokens, 96], &values(tokens * 96)).unwrap();
        let norm = Tensor::full(cuda, [96], 0.7).unwrap();
        let input = Input { x: &x, norm: Some((&norm, 1e-5)) };
        let layer = FeedForward { gate: &gate, up: &up, down: &down, activation: Activation::Silu };
        input.feed_forward(layer).unwrap().to_vec().unwrap()
    };
    let (found, expected) = (layer(&fast()), layer(&exact()));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = found.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
    let all: f64 = expected.iter().map(|&x| square(x)).sum();
    // The exact layer rounds activations to 8 bits and this one to 8 as well, but floating: 2^-8 each, twice in a row.
    let relative = (error / all).sqrt();
    assert!(relative > 0.0 && relative < 0.02, "{relative}");
}

#[test]
fn what_the_library_refuses_is_an_error_of_the_layer() {
    let sim = Sim::alone().unwrap();
    let cuda = fast();
    let (weight, x) = (weight(Format::F16, 8, 64), values((FAST_FROM + 1) * 64));
    let packed = Weight::pack(&cuda, &weight).unwrap();
    let x = Tensor::of(&cuda, [FAST_FROM + 1, 64], &x).unwrap();
    for (call, words) in
        [("cublasLtMatmulAlgoGetHeuristic", "not supported"), ("cublasLtMatmul", "failed to launch")]
    {
        let status = if call == "cublasLtMatmul" { 13 } else { 15 };
        sim.faults(&format!("{call}:1={status}"));
        let error = x.linear(&packed).err().expect("an error").to_string();
        assert!(error.contains("linear") && error.contains(call) && error.contains(words), "{error}");
        assert!(error.contains("[65, 8] from 64 columns"), "{error}");
    }
    assert!(x.linear(&packed).is_ok(), "the device goes on");
}

#[test]
fn a_library_that_is_not_there_or_another_one_is_named() {
    let _sim = Sim::alone().unwrap();
    let open =
        |path: &str| Cuda::builder().numerics(Numerics::Fast).cublaslt(path).open().err().expect("an error");
    let missing = open("/nowhere/libcublasLt.so");
    assert!(
        matches!(&missing, OpenError::NoBlas { looked_for } if looked_for.contains("/nowhere")),
        "{missing}"
    );
    let other = open("libm.so.6");
    assert!(matches!(other, OpenError::BrokenBlas { function: "cublasLtGetVersion", .. }), "{other}");
}
