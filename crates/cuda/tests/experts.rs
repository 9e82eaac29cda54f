//! Mixtures of experts, on both sides of where pairs of a token and an expert are put in order.

mod common;

use samebits_conformance::{Case, Op, Rng, compare};
use samebits_cpu::Host;
use samebits_cuda::Cuda;
use samebits_tensor::{Activation, DType, Format, HostTensor, HostWeight, Shape, testing::random_blocks};

/// Weights of floats in whole reads, which the suite's are not.
#[test]
fn weights_of_floats() {
    let cuda = common::cuda();
    for format in [Format::F16, Format::BF16, Format::F32] {
        for tokens in [1, 3, 70] {
            check(&cuda, &mixture([format; 3], tokens, 2, 5, [40, 72, 33]));
        }
    }
    check(&cuda, &mixture([Format::F16, Format::BF16, Format::Q8_0], 21, 3, 4, [40, 64, 65]));
    check(&cuda, &mixture([Format::Q4K, Format::F32, Format::F16], 21, 3, 4, [256, 40, 67]));
}

/// Groups of 64 pairs: as many as are full, one more, and none of some experts.
#[test]
fn groups_of_pairs() {
    let cuda = common::cuda();
    for tokens in [8, 9, 63, 64, 65, 129] {
        check(&cuda, &mixture([Format::Q4_0, Format::Q4_1, Format::Q8_0], tokens, 2, 8, [160, 96, 65]));
    }
    check(&cuda, &mixture([Format::Q4K, Format::Q4K, Format::Q6K], 200, 1, 2, [512, 256, 70]));
    check(&cuda, &mixture([Format::Q2K, Format::Q3K, Format::Q5K], 40, 8, 128, [256, 256, 32]));
}

#[test]
fn groups_in_every_format() {
    let cuda = common::cuda();
    for &format in Format::ALL.iter().filter(|format| format.is_quantized()) {
        check(&cuda, &mixture([format; 3], 13, 2, 4, [512, 256, 18]));
    }
}

/// An expert that there is not is an error of the next download.
#[test]
fn an_expert_that_is_not_there_is_an_error() {
    let cuda = common::cuda();
    for (tokens, wrong) in [(1, -1), (1, 4), (40, 4), (40, i32::MAX)] {
        let mut case = mixture([Format::Q8_0; 3], tokens, 2, 4, [32, 32, 8]);
        let mut ids: Vec<i32> = vec![1; tokens * 2];
        ids[tokens] = wrong;
        case.inputs[1] = integers([tokens, 2], &ids);
        let error = case.run(&cuda).unwrap_err().to_string();
        assert!(error.contains("experts") && error.contains(&wrong.to_string()), "{error}");
    }
}

fn check(cuda: &Cuda, case: &Case) {
    let (found, expected) = (case.run(cuda).unwrap(), case.run(&Host).unwrap());
    let difference = compare(&expected, &found, false);
    assert!(difference.is_none(), "{}: {}", case.name, difference.unwrap());
}

/// `top_k` of `count` experts for each token, whose layers are `[inner, k]` and `[n, inner]`.
fn mixture(
    formats: [Format; 3],
    tokens: usize,
    top_k: usize,
    count: usize,
    [k, inner, n]: [usize; 3],
) -> Case {
    let name = format!("experts/{formats:?}/t={tokens},k={k},inner={inner},n={n}/{top_k} of {count}");
    let mut rng = Rng::named(&name);
    // The first experts are given to more tokens than the others, and the last to none.
    let ids: Vec<i32> = (0..tokens)
        .flat_map(|token| {
            let mut order = rng.order(count.max(2) - 1);
            order.rotate_left(token % 2);
            (0..top_k).map(move |choice| order[choice % order.len()] as i32).collect::<Vec<_>>()
        })
        .collect();
    let x = floats([tokens, k], &rng.bells(tokens * k));
    let weights = floats([tokens, top_k], &rng.bells(tokens * top_k));
    let weight = |format: Format, rows: usize, cols: usize| HostWeight {
        name: name.clone(),
        format,
        shape: vec![count * rows, cols],
        bytes: random_blocks(format, count * rows, cols, rows as u64).into(),
    };
    let layers =
        vec![weight(formats[0], inner, k), weight(formats[1], inner, k), weight(formats[2], n, inner)];
    let inputs = vec![x, integers([tokens, top_k], &ids), weights];
    Case { name, op: Op::Experts(count, Activation::Silu, None), inputs, weights: layers }
}

fn floats<const N: usize>(shape: [usize; N], values: &[f32]) -> HostTensor {
    HostTensor::new(Shape::from(shape), DType::F32, bytemuck::cast_slice(values).to_vec().into()).unwrap()
}

fn integers<const N: usize>(shape: [usize; N], values: &[i32]) -> HostTensor {
    HostTensor::new(Shape::from(shape), DType::I32, bytemuck::cast_slice(values).to_vec().into()).unwrap()
}
