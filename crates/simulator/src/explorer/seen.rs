//! The table of states: their hashes, and what was asleep whenever one was explored.
//!
//! An entry takes 20 bytes: 128 bits of hash, 32 bits of mask. With the table's own byte per place and its free places
//! that is 24 to 48 bytes per state, because a table doubles. It is split into 256 parts by the top bits of the hash:
//! only a part is ever held twice while it grows, and threads seldom meet at the lock of one part.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// 128 bits of hash, least significant word first, and the mask. Words of 32 bits, because the alignment of a `u128`
/// would make it 32 bytes.
type Row = [u32; 5];

const PARTS: usize = 256;

/// What a visit to a state finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// Nobody was here before.
    New,
    /// It was explored before.
    Again {
        /// Asleep on each visit before this one and awake now: these must be explored, by this visitor alone.
        awake: u32,
        /// Asleep on every visit, this one included.
        asleep: u32,
    },
}

/// The states that were seen. Shared by threads.
pub(super) struct Seen {
    parts: Box<[Part]>,
    bytes: AtomicU64,
}

/// A line of the cache of its own: a thread that takes one lock does not slow down the neighbours'.
#[repr(align(64))]
#[derive(Default)]
struct Part(Mutex<HashTable<Row>>);

impl Part {
    fn lock(&self) -> MutexGuard<'_, HashTable<Row>> {
        // A row is written in one piece, so that a panic elsewhere leaves nothing half done here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// No state was seen yet.
    pub(super) fn new() -> Self {
        Self { parts: (0..PARTS).map(|_| Part::default()).collect(), bytes: AtomicU64::new(0) }
    }

    /// Visits a state in which the choices in `asleep` are asleep, and notes that all others are explored from it: that
    /// is the visitor's promise. Bit n is the n-th choice that the state offers, so that the bits of two visits mean
    /// the same.
    pub(super) fn visit(&self, hash: u128, asleep: u32) -> Visit {
        let mut part = self.part(hash).lock();
        let before = part.allocation_size();
        let found = match part.entry(place(hash), |row| is(row, hash), |row| place(hash_of(row))) {
            Entry::Occupied(mut entry) => {
                let stored = &mut entry.get_mut()[4];
                let awake = *stored & !asleep;
                *stored &= asleep;
                Visit::Again { awake, asleep: *stored }
            }
            Entry::Vacant(entry) => {
                entry.insert(row(hash, asleep));
                Visit::New
            }
        };
        // Room for one more row is made even if none is added.
        let grown = part.allocation_size() - before;
        if grown > 0 {
            // Relaxed: a statistic, which orders nothing.
            self.bytes.fetch_add(grown as u64, Ordering::Relaxed);
        }
        found
    }

    /// Whether all choices of this state are explored, or will be: a visit has nothing to do there.
    pub(super) fn is_explored(&self, hash: u128) -> bool {
        let part = self.part(hash).lock();
        part.find(place(hash), |row| is(row, hash)).is_some_and(|row| row[4] == 0)
    }

    /// How many states it holds.
    #[cfg(test)]
    pub(super) fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.lock().len() as u64).sum()
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&self) -> u64 {
        // Relaxed: a statistic, which orders nothing.
        self.bytes.load(Ordering::Relaxed) + size_of::<[Part; PARTS]>() as u64
    }

    fn part(&self, hash: u128) -> &Part {
        &self.parts[(hash >> 120) as usize]
    }
}

/// What orders the rows within a part: bits that have no part in choosing it.
fn place(hash: u128) -> u64 {
    hash as u64
}

fn is(row: &Row, hash: u128) -> bool {
    hash_of(row) == hash
}

fn hash_of(row: &Row) -> u128 {
    row[..4].iter().rev().fold(0, |hash, &word| hash << 32 | u128::from(word))
}

fn row(hash: u128, asleep: u32) -> Row {
    [hash as u32, (hash >> 32) as u32, (hash >> 64) as u32, (hash >> 96) as u32, asleep]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::pair;

    #[test]
    fn a_revisit_explores_what_was_always_asleep_and_is_not_now() {
        let seen = Seen::new();
        assert_eq!(seen.visit(7, 0b1110), Visit::New);
        assert!(!seen.is_explored(7));
        assert_eq!(seen.visit(7, 0b1111), Visit::Again { awake: 0, asleep: 0b1110 });
        assert_eq!(seen.visit(7, 0b0101), Visit::Again { awake: 0b1010, asleep: 0b0100 });
        assert_eq!(seen.visit(7, 0b1010), Visit::Again { awake: 0b0100, asleep: 0 });
        assert!(seen.is_explored(7));
        assert!(!seen.is_explored(8));
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn hashes_that_differ_in_one_bit_are_different_states() {
        let seen = Seen::new();
        assert_eq!(seen.visit(0, 0), Visit::New);
        for bit in 0..128 {
            assert_eq!(seen.visit(1 << bit, bit), Visit::New, "bit {bit}");
        }
        for bit in 0..128 {
            assert_eq!(seen.visit(1 << bit, !0), Visit::Again { awake: 0, asleep: bit });
        }
    }

    #[test]
    fn a_state_takes_at_most_48_bytes() {
        let seen = Seen::new();
        for number in 0..2_000_000 {
            seen.visit(pair(number, 1), 0);
            seen.visit(pair(number / 2, 1), 0);
            if number > 100_000 {
                assert!(seen.bytes() <= 50 * (number + 1), "{} bytes for {number}", seen.bytes());
            }
        }
        assert_eq!(seen.len(), 2_000_000);
        let allocated: usize = seen.parts.iter().map(|part| part.lock().allocation_size()).sum();
        assert_eq!(seen.bytes(), allocated as u64 + size_of::<[Part; PARTS]>() as u64);
    }

    /// Each choice of each state is given to exactly one of the visitors, whoever comes when.
    #[test]
    fn threads_share_out_the_choices_of_a_state() {
        const STATES: u64 = 20_000;
        const ALL: u32 = 0xffff;
        let seen = Seen::new();
        let given: Vec<AtomicU64> = (0..STATES * 16).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (seen, given) = (&seen, &given);
                scope.spawn(move || {
                    for round in 0..4 {
                        for state in 0..STATES {
                            let asleep = pair(state, thread * 4 + round) as u32 & ALL;
                            let explored = match seen.visit(pair(state, 0), asleep) {
                                Visit::New => ALL & !asleep,
                                Visit::Again { awake, .. } => awake,
                            };
                            for choice in (0..16).filter(|choice| explored >> choice & 1 != 0) {
                                // Relaxed: counted, and read after the threads have ended.
                                given[(state * 16 + choice) as usize].fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(seen.len(), STATES);
        for state in 0..STATES {
            let Visit::Again { asleep, .. } = seen.visit(pair(state, 0), ALL) else {
                panic!("{state} is lost")
            };
            for choice in 0..16 {
                let times = given[(state * 16 + choice) as usize].load(Ordering::Relaxed);
                assert_eq!(times, u64::from(asleep >> choice & 1 == 0), "state {state}, choice {choice}");
            }
        }
    }
}
