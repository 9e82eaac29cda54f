//! What a device does beside the operations: memory, copies, and indices that are wrong.

mod common;

use samebits_cuda::Cuda;
use samebits_tensor::{
    Activation, BinaryOp, DType, Error, Input, KvCache, KvShape, RopeTable, Tensor, UnaryOp,
    decompose::{self, quantize_blocks},
};

use common::cuda;

#[test]
fn long_copies_keep_every_byte() {
    let cuda = cuda();
    for len in [0, 1, 4 << 20, (4 << 20) + 1, (9 << 20) + 3] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * i / 7 % 251) as u8).collect();
        let x = Tensor::of(&cuda, [len], &bytes).unwrap();
        let mut back = vec![0u8; len];
        x.read(&mut back).unwrap();
        assert!(back == bytes, "{len} bytes");
    }
}

#[test]
fn uploads_do_not_wait_for_each_other_and_keep_their_bytes() {
    let cuda = cuda();
    let tensors: Vec<_> = (0..300i32).map(|i| Tensor::of(&cuda, [9000], &[i; 9000]).unwrap()).collect();
    for (i, x) in tensors.iter().enumerate() {
        assert_eq!(x.to_vec::<i32>().unwrap(), [i as i32; 9000], "tensor {i}");
    }
}

#[test]
fn memory_comes_back_and_too_much_of_it_is_an_error() {
    const MEMORY: usize = 4 << 20;
    let cuda = Cuda::builder().memory_bytes(MEMORY as u64).open().unwrap();
    let half = MEMORY / 2;
    for _ in 0..20 {
        Tensor::full(&cuda, [half], 1i8).unwrap();
    }
    let _kept = Tensor::full(&cuda, [half], 1i8).unwrap();
    let error = Tensor::full(&cuda, [half + 1], 1i8).err().expect("no memory").to_string();
    assert!(
        error.contains("cuda: full: out of memory") && error.contains(&(half + 1).to_string()),
        "{error}"
    );
    assert!(error.contains("lower max_context"), "{error}");
    Tensor::full(&cuda, [half - 256], 1i8).unwrap();
}

#[test]
fn a_wrong_index_is_an_error_of_the_next_download_alone() {
    let cuda = cuda();
    let mut x = Tensor::of(&cuda, [3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let rows = Tensor::of(&cuda, [2, 2], &[7.0f32; 4]).unwrap();
    for wrong in [3, -1, i32::MAX, i32::MIN] {
        let indices = Tensor::of(&cuda, [2], &[1, wrong]).unwrap();
        let expect = |x: &Tensor<Cuda>, name| match x.to_vec::<f32>() {
            Err(Error::Index { op, index, len: 3 }) => assert_eq!((op, index), (name, i64::from(wrong))),
            other => panic!("{name}: {other:?}"),
        };
        expect(&x.gather(&indices).unwrap(), "gather");
        x.scatter(&indices, &rows).unwrap();
        expect(&x, "scatter");
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.0, 2.0, 7.0, 7.0, 5.0, 6.0]);
        let table = RopeTable { cos: x.clone(), sin: x.clone() };
        let heads = Tensor::full(&cuda, [2, 1, 4], 1.0).unwrap();
        expect(&heads.rope(&indices, &table).unwrap(), "rope");
    }
}

#[test]
fn a_wrong_slot_leaves_the_cache_as_it_is() {
    let cuda = cuda();
    let shape = KvShape { pages: 2, page_size: 16, kv_heads: 1, head_dim: 40 };
    let mut cache = KvCache::new(&cuda, shape).unwrap();
    let k = Tensor::full(&cuda, [1, 1, 40], 1.0).unwrap();
    for slot in [32, -1] {
        cache.store(&k, &k, &Tensor::of(&cuda, [1], &[slot]).unwrap()).unwrap();
        let found = cache.k.to_vec::<i8>();
        assert!(matches!(found, Err(Error::Index { op: "store_kv", len: 32, .. })), "slot {slot}");
        assert!(cache.k.to_vec::<i8>().unwrap().iter().all(|&x| x == 0));
    }
}

#[test]
fn tensors_that_share_elements_do_not_share_changes() {
    let cuda = cuda();
    let x = Tensor::of(&cuda, [2, 2], &[1i32, 2, 3, 4]).unwrap();
    let mut changed = x.reshape([4, 1]).unwrap();
    let row = Tensor::of(&cuda, [1, 1], &[9]).unwrap();
    changed.scatter(&Tensor::of(&cuda, [1], &[2]).unwrap(), &row).unwrap();
    assert_eq!(changed.to_vec::<i32>().unwrap(), [1, 2, 9, 4]);
    assert_eq!(x.to_vec::<i32>().unwrap(), [1, 2, 3, 4]);
}

#[test]
fn of_an_index_that_repeats_one_row_stays_whole() {
    let cuda = cuda();
    let mut x = Tensor::full(&cuda, [2, 300], 0i32).unwrap();
    let rows: Vec<i32> = (0..5 * 300).map(|i| i / 300 + 1).collect();
    let rows = Tensor::of(&cuda, [5, 300], &rows).unwrap();
    x.scatter(&Tensor::of(&cuda, [5], &[1, 1, 0, 1, 0]).unwrap(), &rows).unwrap();
    let found = x.to_vec::<i32>().unwrap();
    assert_eq!((&found[..300], &found[300..]), (&[5; 300][..], &[4; 300][..]));
}

/// Values of many magnitudes, and blocks of zeros, of what is tiny, with a NaN and with an infinity.
fn values(rows: usize, columns: usize, len: usize) -> Vec<f32> {
    let value = |i| ((i * 7919 % 1009) as f32 - 500.0) * 1.7f32.powi((i / len) as i32 % 31 - 15);
    let mut values: Vec<f32> = (0..rows * columns).map(value).collect();
    values[..len].fill(0.0);
    values[columns] = f32::NAN;
    values[2 * columns + 5] = f32::INFINITY;
    values[3 * columns..3 * columns + len].fill(1e-13);
    values
}

/// The bits of quantised rows and of their scales.
fn bits((q, scales): (Tensor<Cuda>, Tensor<Cuda>)) -> (Vec<i8>, Vec<u32>) {
    let number = |x: f32| if x.is_nan() { u32::MAX } else { x.to_bits() };
    (q.to_vec().unwrap(), scales.to_vec::<f32>().unwrap().into_iter().map(number).collect())
}

#[test]
fn rows_are_quantised_as_the_contract_has_it() {
    let cuda = cuda();
    // The longest row does not fit into shared memory.
    for (len, rows, columns) in [(32, 5, 96), (256, 5, 768), (256, 4, 8448)] {
        let x = Tensor::of(&cuda, [rows, columns], &values(rows, columns, len)).unwrap();
        let up = x.unary(UnaryOp::Abs).unwrap().scalar(BinaryOp::Mul, 0.3).unwrap();
        let weight: Vec<f32> = (0..columns).map(|i| 1.0 + (i % 7) as f32 / 8.0).collect();
        let weight = Tensor::of(&cuda, [columns], &weight).unwrap();
        let expected = |x: &Tensor<Cuda>| {
            let blocks = x.reshape([rows, columns / len, len]).unwrap();
            bits(quantize_blocks(&blocks).unwrap())
        };
        let what = format!("[{rows}, {columns}] in blocks of {len}");
        assert_eq!(bits(cuda.quantize((&x).into(), len).unwrap()), expected(&x), "{what}");
        let normed = decompose::rms_norm(&x, &weight, 1e-5).unwrap();
        let input = Input { x: &x, norm: Some((&weight, 1e-5)) };
        assert_eq!(bits(cuda.quantize(input, len).unwrap()), expected(&normed), "norm of {what}");
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let glu = decompose::glu(&x, &up, activation).unwrap();
            let found = cuda.quantize_glu(&x, &up, activation, len).unwrap();
            assert_eq!(bits(found), expected(&glu), "{activation:?} of {what}");
        }
    }
    let odd = Tensor::full(&cuda, [1, 64], 1.0).unwrap();
    assert!(cuda.quantize((&odd).into(), 64).is_err() && cuda.quantize((&odd).into(), 256).is_err());
}

#[test]
fn threads_share_a_device() {
    let cuda = cuda();
    std::thread::scope(|scope| {
        for seed in 0..4i32 {
            let cuda = &cuda;
            scope.spawn(move || {
                for round in 0..25 {
                    let x = Tensor::full(cuda, [100, 10], seed).unwrap();
                    let sum = x.scalar(BinaryOp::Add, round).unwrap().cast(DType::F32).unwrap();
                    let total = decompose::sum_last(&sum).unwrap().to_vec::<f32>().unwrap();
                    assert_eq!(total, [10.0 * (seed + round) as f32; 100]);
                }
            });
        }
    });
}
