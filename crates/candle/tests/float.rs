//! The float numerics against f64, within the error bounds of f32 work.

use samebits_candle::{Candle, Device};
use samebits_tensor::{
    Activation, AttentionBatch, AttentionParams, Backend, Error, Format, HostWeight, KvCache, KvShape,
    RopeTable, Tensor as AnyTensor, Weight, testing::random_blocks,
};

type Tensor = AnyTensor<Candle>;

/// Half the distance from 1 to the next f32: the relative error of one rounding.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

fn float() -> Candle {
    Candle::float(Device::Cpu)
}

/// Values in [-1, 1), from the top bits of a multiplicative congruential sequence.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn tensor<const N: usize>(backend: &Candle, shape: [usize; N], values: &[f32]) -> Tensor {
    Tensor::of(backend, shape, values).unwrap()
}

fn ints<const N: usize>(backend: &Candle, shape: [usize; N], values: &[i32]) -> Tensor {
    Tensor::of(backend, shape, values).unwrap()
}

fn read(x: &Tensor) -> Vec<f32> {
    x.to_vec().unwrap()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

#[track_caller]
fn expect_close(values: &[f32], expected: &[f64], tolerance: impl Fn(usize) -> f64) {
    assert_eq!(values.len(), expected.len());
    for (i, (&value, &expected)) in values.iter().zip(expected).enumerate() {
        let (error, tolerance) = ((f64::from(value) - expected).abs(), tolerance(i));
        assert!(error <= tolerance, "element {i}: {value} for {expected}, {error:e} above {tolerance:e}");
    }
}

fn weight(format: Format, rows: usize, cols: usize) -> HostWeight {
    let bytes = random_blocks(format, rows, cols, 7).into();
    HostWeight { name: format!("{format}"), format, shape: vec![rows, cols], bytes }
}

#[test]
fn linear_of_every_format_has_the_error_of_an_f32_dot() {
    let (m, n, k) = (3, 5, 512);
    let backend = float();
    let x = values(m * k, 1);
    for format in backend.capabilities().formats.clone() {
        let host = weight(format, n, k);
        let w = host.to_f32().unwrap();
        let packed = Weight::pack(&backend, &host).unwrap();
        let y = tensor(&backend, [m, k], &x).linear(&packed).unwrap();
        let terms = |i: usize| {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).collect::<Vec<_>>()
        };
        let expected: Vec<f64> = (0..m * n).map(|i| terms(i).iter().sum()).collect();
        // Each of k products and sums rounds once, whatever their order (Higham, "Accuracy and Stability", 3.1).
        let bound = |i: usize| k as f64 * ROUNDING * terms(i).iter().map(|term| term.abs()).sum::<f64>();
        expect_close(&read(&y), &expected, bound);

        let rows = ints(&backend, [2], &[4, 0]).embedding(&packed).unwrap();
        assert_eq!(read(&rows), [&w[4 * k..], &w[..k]].concat(), "{format}: an embedding is no rounding");
    }
}

#[test]
fn norms_are_within_the_error_of_their_sum() {
    let (m, n, eps) = (2, 576, 1e-5f32);
    let backend = float();
    let (x, w, b) = (values(m * n, 2), values(n, 3), values(n, 4));
    let [tensor_w, tensor_b] = [&w, &b].map(|values| tensor(&backend, [n], values));
    let input = tensor(&backend, [m, n], &x);
    let normed = |x: &[f64]| {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let r = 1.0 / (mean_square + f64::from(eps)).sqrt();
        x.iter().zip(&w).map(|(x, &w)| x * r * f64::from(w)).collect::<Vec<_>>()
    };
    let wide = wide(&x);
    let rms: Vec<f64> = wide.chunks(n).flat_map(normed).collect();
    let bound = |_| 2.0 * n as f64 * ROUNDING;
    expect_close(&read(&input.rms_norm(&tensor_w, eps).unwrap()), &rms, bound);

    let centred = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / n as f64;
        normed(&x.iter().map(|x| x - mean).collect::<Vec<_>>())
    };
    let layer = wide.chunks(n).flat_map(centred).zip(b.iter().cycle()).map(|(y, &b)| y + f64::from(b));
    let layer: Vec<f64> = layer.collect();
    expect_close(&read(&input.layer_norm(&tensor_w, &tensor_b, eps).unwrap()), &layer, bound);
}

#[test]
fn functions_are_within_a_few_roundings() {
    let backend = float();
    let x: Vec<f32> = values(400, 5).iter().map(|x| x * 12.0).collect();
    let input = tensor(&backend, [4, 100], &x);
    let wide = wide(&x);
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        0.5 * x * (1.0 + inner.tanh())
    };
    // Sums like 1 + tanh lose what lies below their own rounding, so that the error is absolute.
    let near = |scale: f64| move |_: usize| 16.0 * ROUNDING * scale;
    let map = |f: &dyn Fn(f64) -> f64| wide.iter().map(|&x| f(x)).collect::<Vec<_>>();
    expect_close(&read(&input.activate(Activation::Silu).unwrap()), &map(&silu), near(12.0));
    expect_close(&read(&input.activate(Activation::GeluTanh).unwrap()), &map(&gelu), near(12.0));
    let capped = map(&|x| 5.0 * (x / 5.0).tanh());
    expect_close(&read(&input.soft_cap(5.0).unwrap()), &capped, near(5.0));
    let up = input.permute(&[1, 0]).unwrap().reshape([4, 100]).unwrap();
    let glu: Vec<f64> = map(&silu).iter().zip(read(&up)).map(|(y, up)| y * f64::from(up)).collect();
    expect_close(&read(&input.glu(&up, Activation::Silu).unwrap()), &glu, near(144.0));
    let softmax: Vec<f64> = wide.chunks(100).flat_map(softmax).collect();
    // The argument of exp is rounded at a magnitude of up to 24.
    expect_close(&read(&input.softmax().unwrap()), &softmax, near(24.0));
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

#[test]
fn rope_rotates_pairs_and_leaves_the_rest() {
    let backend = float();
    let (t, heads, positions) = (3, 2, [4, 0, 7]);
    for (head_dim, half) in [(8, 4), (10, 3), (4, 0)] {
        let x = values(t * heads * head_dim, 6);
        let angles = wide(&values(8 * half, 7));
        let [cos, sin] =
            [f64::cos, f64::sin].map(|f| angles.iter().map(|&a| f(a) as f32).collect::<Vec<_>>());
        let table =
            RopeTable { cos: tensor(&backend, [8, half], &cos), sin: tensor(&backend, [8, half], &sin) };
        let mut expected = wide(&x);
        for (row, head) in expected.chunks_mut(head_dim).enumerate() {
            let position = positions[row / heads] as usize;
            for i in 0..half {
                let (c, s) = (f64::from(cos[position * half + i]), f64::from(sin[position * half + i]));
                (head[i], head[i + half]) =
                    (head[i] * c - head[i + half] * s, head[i + half] * c + head[i] * s);
            }
        }
        let rotated = tensor(&backend, [t, heads, head_dim], &x)
            .rope(&ints(&backend, [t], &positions), &table)
            .unwrap();
        expect_close(&read(&rotated), &expected, |_| 4.0 * ROUNDING);
        if half > 0 {
            let outside =
                tensor(&backend, [1, 1, head_dim], &x[..head_dim]).rope(&ints(&backend, [1], &[8]), &table);
            assert!(matches!(outside, Err(Error::Index { op: "rope", index: 8, len: 8 })));
        }
    }
}

/// Two sequences of interleaved tokens, of 150 and 3 keys, in pages that are out of order.
struct Scene {
    shape: KvShape,
    heads: usize,
    /// Sequence and position of each token, in the order in which they are stored.
    tokens: Vec<(usize, usize)>,
    tables: [[usize; 10]; 2],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Scene {
    fn new() -> Self {
        let shape = KvShape { pages: 16, page_size: 16, kv_heads: 2, head_dim: 40 };
        let heads = 6;
        let mut tokens: Vec<_> = (0..150).map(|position| (0, position)).collect();
        tokens.splice(100..100, [(1, 0), (1, 1)]);
        tokens.push((1, 2));
        let tables = [[15, 2, 9, 1, 12, 3, 4, 11, 6, 0], [8, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
        let width = tokens.len() * shape.head_dim;
        let q = values(heads * width, 8).iter().map(|x| x * 3.0).collect();
        let [k, v] = [9, 10].map(|seed| values(shape.kv_heads * width, seed));
        Scene { shape, heads, tokens, tables, q, k, v }
    }

    fn batch(&self, backend: &Candle) -> AttentionBatch<Candle> {
        let column = |f: fn(&(usize, usize)) -> usize| {
            let values: Vec<i32> = self.tokens.iter().map(|token| f(token) as i32).collect();
            ints(backend, [values.len()], &values)
        };
        let tables: Vec<i32> = self.tables.as_flattened().iter().map(|&page| page as i32).collect();
        AttentionBatch {
            positions: column(|token| token.1),
            sequences: column(|token| token.0),
            block_tables: ints(backend, [2, 10], &tables),
            max_context: 160,
        }
    }

    fn attend(&self, backend: &Candle, params: &AttentionParams) -> Vec<f32> {
        let KvShape { page_size, kv_heads, head_dim, .. } = self.shape;
        let t = self.tokens.len();
        let slot = |&(sequence, position): &(usize, usize)| {
            (self.tables[sequence][position / page_size] * page_size + position % page_size) as i32
        };
        let slots: Vec<i32> = self.tokens.iter().map(slot).collect();
        let mut cache = KvCache::new(backend, self.shape).unwrap();
        let [k, v] = [&self.k, &self.v].map(|values| tensor(backend, [t, kv_heads, head_dim], values));
        cache.store(&k, &v, &ints(backend, [t], &slots)).unwrap();
        let q = tensor(backend, [t, self.heads, head_dim], &self.q);
        read(&q.attention(&cache, &self.batch(backend), params).unwrap())
    }

    fn reference(&self, params: &AttentionParams) -> Vec<f64> {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let rows = |values: &[f32]| wide(values).chunks(head_dim).map(<[f64]>::to_vec).collect::<Vec<_>>();
        let (q, k, v) = (rows(&self.q), rows(&self.k), rows(&self.v));
        let of_query = |(row, q): (usize, &Vec<f64>)| {
            let (sequence, position) = self.tokens[row / self.heads];
            let kv_head = row % self.heads / (self.heads / kv_heads);
            let visible = |&(other, key): &(usize, usize)| {
                other == sequence
                    && key <= position
                    && params.window.is_none_or(|window| position - key < window)
            };
            let seen = (0..self.tokens.len()).filter(|&i| visible(&self.tokens[i]));
            let seen: Vec<usize> = seen.map(|i| i * kv_heads + kv_head).collect();
            let score = |&i: &usize| {
                let score = q.iter().zip(&k[i]).map(|(q, k)| q * k).sum::<f64>() * f64::from(params.scale);
                params.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            };
            let weights = softmax(&seen.iter().map(score).collect::<Vec<_>>());
            let channel = |c: usize| seen.iter().zip(&weights).map(|(&i, w)| w * v[i][c]).sum::<f64>();
            (0..head_dim).map(channel).collect::<Vec<_>>()
        };
        q.iter().enumerate().flat_map(of_query).collect()
    }
}

const PARAMS: [AttentionParams; 3] = [
    AttentionParams { scale: 0.158, window: None, soft_cap: None },
    AttentionParams { scale: 0.158, window: Some(20), soft_cap: None },
    AttentionParams { scale: 1.0, window: None, soft_cap: Some(3.0) },
];

#[test]
fn attention_is_within_the_error_of_its_dots() {
    let scene = Scene::new();
    for params in &PARAMS {
        // Scores of a magnitude of up to 25, with the error of a dot of 40, as a relative error of the weights.
        let bound = |_| 2.0 * 40.0 * 25.0 * ROUNDING;
        expect_close(&scene.attend(&float(), params), &scene.reference(params), bound);
    }
}

/// The quantised cache is near the float one, and is not it: an oracle that shared its rounding would show nothing.
#[test]
fn exact_attention_is_near_the_oracle_and_apart_from_it() {
    let scene = Scene::new();
    for params in &PARAMS {
        let (exact, oracle) = (scene.attend(&Candle::exact(Device::Cpu), params), scene.reference(params));
        let errors = exact.iter().zip(&oracle).map(|(&x, y)| (f64::from(x) - y).abs());
        let worst = errors.fold(0.0, f64::max);
        assert!((1e-4..0.15).contains(&worst), "{params:?}: {worst}");
    }
}

#[test]
fn indices_outside_of_the_cache_are_errors() {
    let (scene, backend) = (Scene::new(), float());
    let KvShape { kv_heads, head_dim, .. } = scene.shape;
    let mut cache = KvCache::new(&backend, scene.shape).unwrap();
    let k = tensor(&backend, [1, kv_heads, head_dim], &scene.k[..kv_heads * head_dim]);
    for slot in [-1, 256] {
        let stored = cache.store(&k, &k, &ints(&backend, [1], &[slot]));
        assert!(matches!(stored, Err(Error::Index { op: "store_kv", len: 256, .. })), "slot {slot}");
    }
    let q = tensor(&backend, [1, 6, head_dim], &scene.q[..6 * head_dim]);
    let attend = |position, sequence, page| {
        let batch = AttentionBatch {
            positions: ints(&backend, [1], &[position]),
            sequences: ints(&backend, [1], &[sequence]),
            block_tables: ints(&backend, [1, 1], &[page]),
            max_context: 16,
        };
        q.attention(&cache, &batch, &PARAMS[0])
    };
    assert!(attend(15, 0, 15).is_ok());
    assert!(matches!(attend(16, 0, 0), Err(Error::Index { index: 16, len: 16, .. })));
    assert!(matches!(attend(0, 1, 0), Err(Error::Index { index: 1, len: 1, .. })));
    assert!(matches!(attend(0, 0, 16), Err(Error::Index { index: 16, len: 16, .. })));
}

#[test]
fn rows_of_a_float_cache_move_but_are_not_downloaded_as_integers() {
    let backend = float();
    let shape = KvShape { pages: 1, page_size: 4, kv_heads: 1, head_dim: 2 };
    let mut cache = KvCache::new(&backend, shape).unwrap();
    assert_eq!(cache.k.to_vec::<i8>().unwrap(), [0; 8]);
    let k = tensor(&backend, [1, 1, 2], &[0.25, -3.5]);
    cache.store(&k, &k, &ints(&backend, [1], &[2])).unwrap();
    assert!(matches!(cache.k.to_vec::<i8>(), Err(Error::Backend { op: "download", .. })));
    let row = cache.k.gather(&ints(&backend, [1], &[2])).unwrap();
    cache.v.scatter(&ints(&backend, [1], &[0]), &row).unwrap();
    let batch = AttentionBatch {
        positions: ints(&backend, [1], &[0]),
        sequences: ints(&backend, [1], &[0]),
        block_tables: ints(&backend, [1, 1], &[0]),
        max_context: 4,
    };
    let out = tensor(&backend, [1, 1, 2], &[1.0, 1.0]).attention(&cache, &batch, &PARAMS[0]).unwrap();
    assert_eq!(read(&out), [0.25, -3.5]);
}

#[test]
fn empty_batches_are_empty() {
    let (scene, backend) = (Scene::new(), float());
    let cache = KvCache::new(&backend, scene.shape).unwrap();
    let none = ints(&backend, [0], &[]);
    let batch = AttentionBatch {
        positions: none.clone(),
        sequences: none.clone(),
        block_tables: ints(&backend, [1, 1], &[0]),
        max_context: 16,
    };
    let q = tensor(&backend, [0, 6, 40], &[]);
    assert_eq!(q.attention(&cache, &batch, &PARAMS[0]).unwrap().dims(), [0, 6, 40]);
    assert_eq!(tensor(&backend, [0, 8], &[]).softmax().unwrap().dims(), [0, 8]);
    let packed = Weight::pack(&backend, &weight(Format::F32, 3, 8)).unwrap();
    assert_eq!(tensor(&backend, [0, 8], &[]).linear(&packed).unwrap().dims(), [0, 3]);
}
