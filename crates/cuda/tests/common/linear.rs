//! Linear layers against the host's plain primitives.

use samebits_cpu::Host;
use samebits_cuda::Cuda;
use samebits_tensor::{Backend, Format, HostWeight, Tensor, Weight, testing::random_blocks};

/// Rows, columns: fewer and more than a warp's columns, spans that end with less than a whole one, one row past a tile.
pub(crate) const SHAPES: [(usize, usize); 4] = [(1, 32), (17, 1056), (65, 2592), (3, 34048)];
pub(crate) const SHAPES_OF_256: [(usize, usize); 3] = [(1, 256), (17, 1280), (65, 2816)];

fn product<B: Backend>(backend: &B, host: &HostWeight, x: &[f32]) -> Vec<u32> {
    let weight = Weight::pack(backend, host).unwrap();
    let x = Tensor::of(backend, [x.len() / host.shape[1], host.shape[1]], x).unwrap();
    let bytes = x.linear(&weight).unwrap().download().unwrap();
    bytes.bytes().as_chunks::<4>().0.iter().map(|bits| u32::from_le_bytes(*bits)).collect()
}

pub(crate) fn check(cuda: &Cuda, formats: &[Format], shapes: &[(usize, usize)], tokens: &[usize]) {
    for (&format, &(rows, cols)) in formats.iter().flat_map(|it| shapes.iter().map(move |shape| (it, shape)))
    {
        let bytes = random_blocks(format, rows, cols, 7).into();
        let host = HostWeight { name: "weight".into(), format, shape: vec![rows, cols], bytes };
        for &tokens in tokens.iter().filter(|&tokens| tokens * cols < 1 << 18) {
            let x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
            let (found, expected) = (product(cuda, &host, &x), product(&Host, &host, &x));
            assert!(found == expected, "{format} [{rows}, {cols}], {tokens} tokens");
        }
    }
}
