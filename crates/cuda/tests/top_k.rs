//! The greatest of rows that take one launch, two, and three.

mod common;

use samebits_cpu::Host;
use samebits_tensor::{Backend, Tensor};

/// Values of which many are equal, from a generator of Lehmer's (1951).
fn values(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let next = |_| {
        state = state * 48_271 % 0x7fff_ffff;
        (state % 20_011) as f32 - 10_000.0
    };
    (0..count).map(next).collect()
}

fn greatest<B: Backend>(backend: &B, [rows, columns]: [usize; 2], k: usize) -> Vec<i32> {
    let x = Tensor::of(backend, [rows, columns], &values(rows * columns)).unwrap();
    x.top_k(k).unwrap().to_vec().unwrap()
}

#[test]
fn rows_of_any_length() {
    let (cuda, host) = (common::cuda(), Host);
    for (shape, k) in
        [([3, 4096], 64), ([2, 128_256], 64), ([33, 5000], 1), ([1, 270_000], 64), ([0, 9000], 3)]
    {
        assert_eq!(greatest(&cuda, shape, k), greatest(&host, shape, k), "{k} of {shape:?}");
    }
}

#[test]
fn more_than_can_be_told_is_refused() {
    let cuda = common::cuda();
    let x = Tensor::full(&cuda, [2, 100], 0.0).unwrap();
    for k in [0, 65, 101] {
        let error = x.top_k(k).err().expect("refused").to_string();
        assert!(error.contains(&format!("top_k: {k} of 100 columns, where 1 to 64 can be told")), "{error}");
    }
    let bytes = Tensor::full(&cuda, [2, 100], 0i8).unwrap();
    assert!(bytes.top_k(1).err().expect("refused").to_string().contains("top_k"));
}
