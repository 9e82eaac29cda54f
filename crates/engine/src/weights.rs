//! Probabilities as integers, so that no sum of them depends on its order.

/// The weight of the most likely token.
pub(crate) const UNIT: u64 = 1 << 40;

/// Weights that are added up in one go when a whole row is drawn from.
const SPAN: usize = 1024;

/// Turns logits into weights: `round(2^40 * exp((logit - greatest) / temperature))`.
///
/// The weight of a token is its probability relative to the most likely one, in units of 2^-40; a token 28.4 or more
/// below the greatest has none. Sums are exact while a row has at most 2^24 tokens. All arithmetic is f64 `+`, `-`, `*`,
/// comparison and bit moves, each rounded once, so the bits are the same everywhere and the loops vectorise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weigher {
    greatest: f64,
    inverse_temperature: f64,
}

impl Weigher {
    /// `temperature` is above 0; no logit to come is above `greatest`.
    pub(crate) fn new(greatest: f32, temperature: f32) -> Self {
        Self { greatest: f64::from(greatest), inverse_temperature: 1.0 / f64::from(temperature) }
    }

    /// `(logit - greatest) * (1 / temperature)`: at most 0, ascending with the logit.
    #[inline]
    pub(crate) fn exponent(self, logit: f32) -> f64 {
        (f64::from(logit) - self.greatest) * self.inverse_temperature
    }

    /// The weight of one token.
    #[inline]
    pub(crate) fn weight(self, logit: f32) -> u64 {
        scaled_exp(self.exponent(logit))
    }

    /// The weight of several tokens together.
    #[inline]
    pub(crate) fn mass(self, logits: &[f32]) -> u64 {
        logits.iter().map(|&logit| self.weight(logit)).sum()
    }

    /// The first token at which the running sum of a row's weights exceeds `bits / 2^64` of the whole.
    ///
    /// `spans` is memory to work in.
    pub(crate) fn draw(self, logits: &[f32], bits: u64, spans: &mut Vec<u64>) -> usize {
        spans.clear();
        spans.extend(logits.chunks(SPAN).map(|span| self.mass(span)));
        let (span, target) = pick(spans.iter().copied(), fraction(bits, spans.iter().sum()));
        let first = span * SPAN;
        first + pick(logits[first..].iter().map(|&logit| self.weight(logit)), target).0
    }
}

/// `bits / 2^64` of `total`, rounded down; below `total` unless that is 0.
pub(crate) fn fraction(bits: u64, total: u64) -> u64 {
    ((u128::from(bits) * u128::from(total)) >> 64) as u64
}

/// The index at which the running sum of `weights` exceeds `target`, and what of the target is left there. `target` is
/// below the sum of all.
pub(crate) fn pick(weights: impl Iterator<Item = u64>, target: u64) -> (usize, u64) {
    let mut left = target;
    let mut last = 0;
    for (index, weight) in weights.enumerate() {
        if left < weight {
            return (index, left);
        }
        left -= weight;
        last = index;
    }
    (last, left)
}

/// `round(2^40 * exp(x))` for `x <= 0`, ties to even.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `exp(r)` by its Taylor polynomial of degree 10, off by less than 2^-42 of
/// its value. Adding 1.5 * 2^52 or 2^52 to a small f64 rounds it to an integer that stands in its low bits.
#[inline]
fn scaled_exp(x: f64) -> u64 {
    const ROUND: f64 = 6_755_399_441_055_744.0;
    const TO_INTEGER: f64 = 4_503_599_627_370_496.0;
    // The high part has 33 significant bits, so its product with n is exact.
    const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    const COEFFICIENTS: [f64; 10] = [
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    // At -40 the weight is 0 already.
    let x = if x > -40.0 { x } else { -40.0 };
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let exp_r = COEFFICIENTS.iter().fold(1.0 / 3_628_800.0, |sum, coefficient| sum * r + coefficient);
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023 + 40) << 52);
    (exp_r * power + TO_INTEGER).to_bits() & ((1 << 52) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_the_rounded_exponential() {
        for step in 0..400_000 {
            let x = -f64::from(step) * 1e-4;
            let exact = libm::exp(x) * UNIT as f64;
            assert!((scaled_exp(x) as f64 - exact).abs() <= 0.75, "{x}: {} and {exact}", scaled_exp(x));
        }
        assert_eq!(scaled_exp(0.0), UNIT);
        assert_eq!([scaled_exp(-28.5), scaled_exp(-1e300), scaled_exp(f64::NEG_INFINITY)], [0; 3]);
    }

    #[test]
    fn each_target_picks_the_weight_it_falls_into() {
        let picked: Vec<_> = (0..6).map(|target| pick([2, 0, 3, 1].into_iter(), target)).collect();
        assert_eq!(picked, [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]);
        assert_eq!([fraction(0, 6), fraction(u64::MAX, 6), fraction(1 << 63, 6)], [0, 5, 3]);
    }

    /// The bits of sampler version 1.
    #[test]
    fn weights_have_these_bits() {
        let weigher = Weigher::new(1.5, 0.7);
        let weights = [1.5f32, 1.25, 0.0, -3.75, -17.0].map(|logit| weigher.weight(logit));
        assert_eq!(weights, [1 << 40, 769_298_085_800, 128_993_782_574, 608_122_618, 4]);
    }

    #[test]
    fn the_smallest_temperature_keeps_the_greatest_only() {
        let weigher = Weigher::new(1.0, f32::from_bits(1));
        assert_eq!([weigher.weight(1.0), weigher.weight(1.0 - f32::EPSILON)], [UNIT, 0]);
    }

    proptest! {
        #[test]
        fn a_draw_from_a_row_is_the_running_sum_of_the_whole_row(
            logits in prop::collection::vec(-30.0f32..0.0, 1..3000), bits: u64,
        ) {
            let weigher = Weigher::new(0.0, 1.0);
            prop_assume!(weigher.mass(&logits) > 0);
            let weights = logits.iter().map(|&logit| weigher.weight(logit));
            let expected = pick(weights, fraction(bits, weigher.mass(&logits))).0;
            prop_assert_eq!(weigher.draw(&logits, bits, &mut Vec::new()), expected);
        }
    }
}
