//! The contract's exponential over every f32, and the functions built on it over a dense sample.

use std::ops::RangeInclusive;

use rayon::prelude::*;
use samebits_tensor::exp::{EXP_MAX, EXP_MIN, GELU_CUBIC, exp, gelu_tanh, sigmoid, silu, tanh};

/// Below this magnitude the true exponential is closer to 1 than to any other f32.
const NEAR_ZERO: f32 = 1.0 / (1 << 25) as f32;

/// The largest error found, and where.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    error: f64,
    x: f32,
}

impl Worst {
    /// Counts a NaN as the largest error.
    fn max(self, other: Self) -> Self {
        if other.error <= self.error { self } else { other }
    }
}

/// Error of `found` in units of the spacing of f32 at `expected`, which is in the normal range.
fn ulps(found: f32, expected: f64) -> f64 {
    let ulp = f64::from_bits((((expected.to_bits() >> 52) & 0x7ff) - 23) << 52);
    (f64::from(found) - expected).abs() / ulp
}

/// The largest `error` among every `stride`-th of the given bit patterns.
fn worst(patterns: RangeInclusive<u32>, stride: usize, error: impl Fn(f32) -> f64 + Sync) -> Worst {
    const PIECE: u64 = 1 << 20;
    let (start, end) = (u64::from(*patterns.start()), u64::from(*patterns.end()));
    let of_piece = |piece: u64| {
        let first = start + piece * PIECE;
        (first..(first + PIECE).min(end + 1)).step_by(stride).fold(Worst::default(), |worst, bits| {
            let x = f32::from_bits(bits as u32);
            worst.max(Worst { error: error(x), x })
        })
    };
    (0..(end - start) / PIECE + 1).into_par_iter().map(of_piece).reduce(Worst::default, Worst::max)
}

/// The same over both signs, for magnitudes from `NEAR_ZERO` to the given bounds.
fn worst_signed(negative: f32, positive: f32, stride: usize, error: impl Fn(f32) -> f64 + Sync) -> Worst {
    let below = worst((-NEAR_ZERO).to_bits()..=negative.to_bits(), stride, &error);
    below.max(worst(NEAR_ZERO.to_bits()..=positive.to_bits(), stride, &error))
}

/// Together with the next test, every one of the 2^32 patterns.
#[test]
fn exp_is_within_two_ulp_over_all_f32() {
    let worst = worst_signed(EXP_MIN, EXP_MAX, 1, |x| ulps(exp(x), libm::exp(f64::from(x))));
    println!("exp: {:.4} ulp at {:e} ({:#010x})", worst.error, worst.x, worst.x.to_bits());
    assert!(worst.error <= 1.17, "{worst:?}");
}

#[test]
fn exp_is_decided_by_a_compare_elsewhere() {
    let differs = |expected: f32| move |x| f64::from(u8::from(exp(x).to_bits() != expected.to_bits()));
    let infinity = f32::INFINITY.to_bits();
    let patterns = [
        (0..=NEAR_ZERO.to_bits() - 1, 1.0),
        (EXP_MAX.to_bits() + 1..=infinity, f32::INFINITY),
        (1 << 31..=(-NEAR_ZERO).to_bits() - 1, 1.0),
        (EXP_MIN.to_bits() + 1..=1 << 31 | infinity, 0.0),
    ];
    for (patterns, expected) in patterns {
        let found = worst(patterns, 1, differs(expected));
        assert_eq!(found.error, 0.0, "exp({:e}) is {:e}, not {expected}", found.x, exp(found.x));
    }
    for nans in [infinity + 1..=(1 << 31) - 1, (1 << 31 | infinity) + 1..=u32::MAX] {
        assert_eq!(worst(nans, 1, |x| f64::from(u8::from(!exp(x).is_nan()))).error, 0.0);
    }
}

#[test]
fn bounds_of_exp_are_the_nearest_floats() {
    assert!(libm::exp(f64::from(EXP_MAX)) < f64::from(f32::MAX));
    assert!(libm::exp(f64::from(EXP_MAX.next_up())) > f64::from(f32::MAX));
    assert_eq!(EXP_MIN, (-64.0 * std::f64::consts::LN_2) as f32);
}

/// A step to the next f32 may lower the result, but by one unit in the last place at most.
#[test]
fn exp_is_monotone_within_one_ulp() {
    let fall = |x: f32| f64::from(exp(x).to_bits() as i32 - exp(x.next_up()).to_bits() as i32);
    let worst = worst_signed(EXP_MIN, EXP_MAX.next_down(), 1, fall);
    assert!(worst.error <= 1.0, "{worst:?}");
}

fn sigmoid64(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn gelu64(x: f64) -> f64 {
    let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    x * sigmoid64(scale * (x + f64::from(GELU_CUBIC) * x * x * x))
}

#[test]
fn functions_of_exp_are_within_their_bounds() {
    let stride = 251;
    let cases = [
        ("sigmoid, ulp", 2.5, worst_signed(EXP_MIN, 1e30, stride, |x| ulps(sigmoid(x), sigmoid64(x.into())))),
        (
            "silu, ulp",
            2.5,
            worst_signed(EXP_MIN, 1e30, stride, |x| ulps(silu(x), f64::from(x) * sigmoid64(x.into()))),
        ),
        (
            "tanh, absolute",
            1.0e-7,
            worst_signed(-1e30, 1e30, stride, |x| (f64::from(tanh(x)) - libm::tanh(x.into())).abs()),
        ),
        (
            "gelu of positive, ulp",
            3.0,
            worst_signed(-NEAR_ZERO, 1e10, stride, |x| ulps(gelu_tanh(x), gelu64(x.into()))),
        ),
        (
            "gelu of negative, absolute",
            6.0e-8,
            worst_signed(-1e10, NEAR_ZERO, stride, |x| (f64::from(gelu_tanh(x)) - gelu64(x.into())).abs()),
        ),
    ];
    for (name, bound, worst) in cases {
        println!("{name}: {:.4e} at {:e}", worst.error, worst.x);
        assert!(worst.error <= bound, "{name}: {worst:?}");
    }
}

#[test]
fn edges_of_the_functions_of_exp() {
    assert_eq!(sigmoid(EXP_MIN.next_down()).to_bits(), 0);
    assert!(sigmoid(EXP_MIN) > 0.0);
    assert_eq!(sigmoid(f32::INFINITY), 1.0);
    assert_eq!(silu(-1e30), 0.0);
    assert_eq!(gelu_tanh(-1e30), 0.0);
    assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
    assert_eq!(tanh(0.3), -tanh(-0.3));
    for function in [exp, sigmoid, silu, tanh, gelu_tanh] {
        assert!(function(f32::NAN).is_nan());
    }
}
