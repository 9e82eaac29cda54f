//! A counter-based random number generator: a draw is a pure function of (seed, position).
//!
//! Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;

/// The Philox4x32 bijection with ten rounds.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut x = counter;
    let mut k = key;
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL_0), k[1].wrapping_add(WEYL_1)];
        }
        let product_0 = u64::from(MULTIPLIER_0) * u64::from(x[0]);
        let product_1 = u64::from(MULTIPLIER_1) * u64::from(x[2]);
        x = [
            (product_1 >> 32) as u32 ^ x[1] ^ k[0],
            product_1 as u32,
            (product_0 >> 32) as u32 ^ x[3] ^ k[1],
            product_0 as u32,
        ];
    }
    x
}

/// The uniform draw in [0, 1) for the token at absolute `position` under `seed`, a multiple of 2^-53.
///
/// Key: the seed's low and high words. Counter: the position's low and high words, then two zeros. The 53 bits are the
/// upper bits of the first output word followed by the second.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let [a, b, _, _] =
        philox4x32_10([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that Random123 publishes in `tests/kat_vectors` for `philox4x32 10`.
    #[test]
    fn known_answers_of_random123() {
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn uniform_draws_fill_the_unit_interval_evenly() {
        let mut buckets = [0u32; 10];
        for position in 0..100_000 {
            let u = uniform(42, position);
            assert!((0.0..1.0).contains(&u));
            buckets[(u * 10.0) as usize] += 1;
        }
        // Each count is binomial(100000, 0.1) with deviation 95; six deviations is one failure in 10^8.
        assert!(buckets.iter().all(|&count| count.abs_diff(10_000) < 570), "{buckets:?}");
    }

    #[test]
    fn seed_and_position_both_matter_in_all_their_bits() {
        let base = uniform(1, 1);
        for bit in 0..64 {
            assert_ne!(uniform(1 ^ (1 << bit), 1), base);
            assert_ne!(uniform(1, 1 ^ (1 << bit)), base);
        }
    }
}
