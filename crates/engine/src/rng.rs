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

/// The 64 random bits for the token at absolute `position` under `seed`.
///
/// Key: the seed's low and high words. Counter: the position's low and high words, then two zeros. The first word of
/// the output is the high half, the second the low half.
pub fn random_bits(seed: u64, position: u64) -> u64 {
    let counter = [position as u32, (position >> 32) as u32, 0, 0];
    let [high, low, _, _] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
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
    fn draws_are_spread_evenly() {
        let mut buckets = [0u32; 16];
        for position in 0..100_000 {
            buckets[(random_bits(42, position) >> 60) as usize] += 1;
        }
        // Each count is binomial(100000, 1/16) with deviation 77; six deviations is one failure in 10^8.
        assert!(buckets.iter().all(|&count| count.abs_diff(6_250) < 460), "{buckets:?}");
    }

    #[test]
    fn seed_and_position_both_matter_in_all_their_bits() {
        let base = random_bits(1, 1);
        for bit in 0..64 {
            assert_ne!(random_bits(1 ^ (1 << bit), 1), base);
            assert_ne!(random_bits(1, 1 ^ (1 << bit)), base);
        }
    }
}
