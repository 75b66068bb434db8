//! Hashes of states, 128 bits wide, from two independent 64-bit mixes.
//!
//! They stand for a state within one process: locations enter as addresses. They never appear in a trace.

/// Two odd constants (fractional digits of the golden ratio and of the square root of 2) start the lanes.
const LANES: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c909];

const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

const fn lane(state: u64, value: u64, constant: u64) -> u64 {
    fold(state ^ constant, value ^ constant.rotate_left(32)) ^ state.rotate_left(23).wrapping_add(value)
}

/// The hash of a sequence that hashed to `state`, continued by `value`.
pub(crate) const fn absorb(state: u128, value: u64) -> u128 {
    let low = lane(state as u64, value, LANES[0]);
    let high = lane((state >> 64) as u64, value, LANES[1]);
    (high as u128) << 64 | low as u128
}

/// The hash of a pair, for sums of pairs in any order (combined by exclusive or).
pub(crate) const fn pair(name: u64, value: u64) -> u128 {
    absorb(key(name), value)
}

/// The first half of a [pair]: who hashes many pairs of one name keeps it, and [absorbs](absorb) their values into it.
pub(crate) const fn key(name: u64) -> u128 {
    absorb(0x5bf0_3635_e28c_bb3f, name)
}

/// Feeds a state into a 128-bit hash through the standard [`Hash`](core::hash::Hash) interface.
#[derive(Default)]
pub(crate) struct StateHasher(pub(crate) u128);

impl core::hash::Hasher for StateHasher {
    fn finish(&self) -> u64 {
        self.0 as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = absorb(self.0, u64::from_le_bytes(word));
        }
        self.0 = absorb(self.0, bytes.len() as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = absorb(self.0, value);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_value_both_count_in_both_lanes() {
        let hashes =
            [absorb(absorb(0, 1), 2), absorb(absorb(0, 2), 1), absorb(absorb(0, 1), 3), absorb(0, 0)];
        for (i, a) in hashes.iter().enumerate() {
            for b in &hashes[i + 1..] {
                assert_ne!(*a as u64, *b as u64);
                assert_ne!(a >> 64, b >> 64);
            }
        }
    }

    #[test]
    fn a_million_small_pairs_do_not_collide_in_either_lane() {
        for shift in [0, 64] {
            let mut seen: Vec<u64> =
                (0..1_000_000).map(|i: u64| (pair(i % 1000 * 8, i / 1000) >> shift) as u64).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 1_000_000);
        }
    }
}
