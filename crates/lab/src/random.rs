//! Random numbers: a sequence for each CPU, from one seed (xorshift64*).

use smpcall_machine::{Counter, InterruptsOff};

use crate::cpu::MAX_CPUS;
use crate::machine::Lab;

static STATES: [Counter; MAX_CPUS] = [const { Counter::new(0) }; MAX_CPUS];

/// Begins all sequences anew.
pub(crate) fn seed(seed: u64) {
    for (number, state) in STATES.iter().enumerate() {
        // The finaliser of SplitMix64, so that seeds next to each other share nothing.
        let mut mixed = seed.wrapping_add((number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        state.set((mixed ^ mixed >> 31) | 1);
    }
}

/// The next number of this CPU's sequence.
pub(crate) fn next() -> u64 {
    let pinned = InterruptsOff::<Lab>::new();
    let state = &STATES[pinned.cpu().index()];
    let mut next = state.get() | 1;
    next ^= next >> 12;
    next ^= next << 25;
    next ^= next >> 27;
    state.set(next);
    next.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// A number below `limit`, which is not zero; as evenly as suites need it.
pub(crate) fn below(limit: u64) -> u64 {
    ((u128::from(next()) * u128::from(limit)) >> 64) as u64
}
