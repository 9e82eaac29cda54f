//! Steps that are recorded and done again have the bits of steps that are run.

use std::cell::Cell;

use ptx_sim::Sim;
use samebits_cuda::Cuda;
use samebits_tensor::{
    Activation, Backend, BinaryOp, DType, Experts, Format, HostWeight, Input, Result, Routing, StepInput,
    StepKey, Tensor, Weight, decompose, testing::random_blocks,
};

const OUT_OF_MEMORY: u32 = 2;
const CAPTURE_INVALIDATED: u32 = 901;

fn open() -> Cuda {
    Cuda::builder().memory_bytes(16 << 20).open().unwrap()
}

fn key(max_context: usize) -> Option<StepKey> {
    Some(StepKey { owner: 7, max_context })
}

/// Something of several kernels, with tensors that come and go.
fn text(x: &Tensor<Cuda>, y: &Tensor<Cuda>) -> Result<Tensor<Cuda>> {
    let sum = x.binary(BinaryOp::Add, y)?.cast(DType::F32)?.repeat(0, 130)?;
    let (rows, columns) = (sum.dims()[0], sum.dims()[1]);
    let exp = decompose::exp(&sum.scalar(BinaryOp::Mul, 0.01)?)?;
    let kept = decompose::softmax(&exp)?.add(&sum)?;
    decompose::sum_last(&kept)?.reshape([1, rows])?.broadcast([columns, rows])
}

/// A step of these inputs, and whether the text was called.
fn step(cuda: &Cuda, key: Option<StepKey>, x: &[i32], y: &[i32]) -> (Vec<f32>, bool) {
    let called = Cell::new(false);
    let dims = [x.len()];
    let inputs = [x, y].map(|values| StepInput { dims: &dims, values });
    let result = cuda.step(key, inputs, |[x, y]| {
        called.set(true);
        text(x, y)
    });
    (result.unwrap().to_vec().unwrap(), called.get())
}

fn inputs(len: usize, seed: i32) -> (Vec<i32>, Vec<i32>) {
    let of = |a: i32| (0..len as i32).map(|i| (i * 37 + seed * a) % 101).collect();
    (of(11), of(29))
}

#[test]
fn the_third_step_of_a_kind_is_not_called_and_has_the_same_bits() {
    let sim = Sim::alone().unwrap();
    let cuda = open();
    sim.faults("");
    for seed in 0..5 {
        for len in [3, 70] {
            let (x, y) = inputs(len, seed);
            let (found, called) = step(&cuda, key(1), &x, &y);
            assert_eq!(found, step(&cuda, None, &x, &y).0, "step {seed} of {len}");
            assert_eq!(called, seed < 2, "step {seed} of {len}");
        }
    }
    assert_eq!((sim.calls("cuStreamBeginCapture_v2"), sim.calls("cuGraphLaunch")), (2, 8));
    let (x, y) = inputs(3, 9);
    assert!(step(&cuda, key(2), &x, &y).1, "another bound is another step");
    cuda.forget_steps(7);
    assert!(step(&cuda, key(1), &x, &y).1, "forgotten");
}

#[test]
fn results_of_recorded_steps_are_their_own() {
    let _sim = Sim::alone().unwrap();
    let cuda = open();
    let (x, y) = inputs(40, 1);
    let dims = [40];
    let mut results = Vec::new();
    for seed in 0..6 {
        let x: Vec<i32> = x.iter().map(|x| x + seed).collect();
        let inputs = [&x, &y].map(|values| StepInput { dims: &dims, values });
        results.push((x.clone(), cuda.step(key(1), inputs, |[x, y]| text(x, y)).unwrap()));
    }
    for (x, result) in results {
        assert_eq!(result.to_vec::<f32>().unwrap(), step(&cuda, None, &x, &y).0);
    }
}

#[test]
fn a_step_that_cannot_be_recorded_is_run() {
    let sim = Sim::alone().unwrap();
    let plans = [
        format!("cuStreamBeginCapture_v2:1+={CAPTURE_INVALIDATED}"),
        format!("cuStreamEndCapture:1+={CAPTURE_INVALIDATED}"),
        format!("cuGraphInstantiateWithFlags:1+={OUT_OF_MEMORY}"),
    ];
    for plan in plans {
        let cuda = open();
        let (x, y) = inputs(70, 3);
        let expected = step(&cuda, None, &x, &y).0;
        sim.faults(&plan);
        for _ in 0..8 {
            assert_eq!(step(&cuda, key(1), &x, &y).0, expected, "{plan}");
        }
        sim.reset();
        assert_eq!(step(&cuda, key(1), &x, &y).0, expected, "after {plan}");
    }
}

#[test]
fn a_step_that_wants_to_wait_is_run() {
    let _sim = Sim::alone().unwrap();
    let cuda = open();
    let dims = [1];
    for seed in 0..6 {
        let inputs = [StepInput { dims: &dims, values: &[seed] }];
        // Neither a download nor an upload can be recorded.
        let result = cuda.step(key(1), inputs, |[x]| {
            let value = x.to_vec::<i32>()?;
            x.add(&Tensor::of(&cuda, [1], &value)?)
        });
        assert_eq!(result.unwrap().to_vec::<i32>().unwrap(), [2 * seed]);
    }
}

#[test]
fn an_error_or_a_panic_of_a_step_leaves_the_device_as_it_was() {
    let _sim = Sim::alone().unwrap();
    let cuda = open();
    let (x, y) = inputs(5, 3);
    let expected = step(&cuda, None, &x, &y).0;
    step(&cuda, key(1), &x, &y);
    let dims = [5];
    let inputs = [&x, &y].map(|values| StepInput { dims: &dims, values });
    assert!(cuda.step(key(1), inputs, |[x, _]| x.reshape([9])).is_err());
    let panic = std::panic::AssertUnwindSafe(|| cuda.step(key(1), inputs, |_| panic!("in a step")));
    assert!(std::panic::catch_unwind(panic).is_err());
    for _ in 0..4 {
        assert_eq!(step(&cuda, key(1), &x, &y).0, expected);
    }
}

#[test]
fn threads_that_record_and_threads_that_run_do_not_meet() {
    let _sim = Sim::alone().unwrap();
    let cuda = open();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cuda = &cuda;
            scope.spawn(move || {
                for seed in 0..6 {
                    let (x, y) = inputs(10 + thread, seed);
                    let found = step(cuda, key(thread % 2), &x, &y).0;
                    assert_eq!(found, step(cuda, None, &x, &y).0, "thread {thread}, step {seed}");
                }
            });
        }
    });
}

#[test]
fn no_more_steps_are_kept_than_there_is_room_for() {
    let sim = Sim::alone().unwrap();
    let cuda = open();
    sim.faults("");
    let dims = [1];
    for max_context in 0..70 {
        for value in 0..2 {
            let inputs = [StepInput { dims: &dims, values: &[value] }];
            let result = cuda.step(key(max_context), inputs, |[x]| x.add(x)).unwrap();
            assert_eq!(result.to_vec::<i32>().unwrap(), [2 * value]);
        }
    }
    assert_eq!((sim.calls("cuGraphInstantiateWithFlags"), sim.calls("cuGraphExecDestroy")), (70, 6));
}

/// Pairs of a token and an expert that have blocks of their own, and those that are put in order on the device.
#[test]
fn a_choice_of_experts_is_recorded_and_made_anew() {
    let sim = Sim::alone().unwrap();
    let cuda = open();
    let weight = |rows: usize, format: Format| {
        let bytes = random_blocks(format, 8 * rows, 32, 7).into();
        let host = HostWeight { name: "weight".into(), format, shape: vec![8 * rows, 32], bytes };
        Weight::pack(&cuda, &host).unwrap()
    };
    let (gate, up, down) = (weight(32, Format::Q4_0), weight(32, Format::Q8_0), weight(9, Format::Q4_1));
    for tokens in [3, 40] {
        let run = |key: Option<StepKey>, values: &[i32]| {
            let inputs = [StepInput { dims: &[tokens, 32], values }];
            let result = cuda.step(key, inputs, |[x]| {
                let x = x.cast(DType::F32)?;
                let routes = x.narrow(1, 0..8)?.route(Routing { top_k: 2, normalize: true })?;
                let (gate, up, down) = (&gate, &up, &down);
                Input::from(&x)
                    .experts(Experts { gate, up, down, count: 8, activation: Activation::Silu }, &routes)
            });
            result.unwrap().to_vec::<f32>().unwrap()
        };
        sim.faults("");
        for seed in 0..4 {
            let values: Vec<i32> = (0..tokens as i32 * 32).map(|i| (i * 37 + seed * 11) % 19 - 9).collect();
            assert_eq!(run(key(1), &values), run(None, &values), "step {seed} of {tokens}");
        }
        assert_eq!((sim.calls("cuGraphInstantiateWithFlags"), sim.calls("cuGraphLaunch")), (1, 3));
    }
}
