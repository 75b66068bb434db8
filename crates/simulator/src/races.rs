//! Data races, by what each CPU knows.
//!
//! A *record* is the last write of a piece of plain data, or the last read of it by one CPU. A CPU knows its own; what it
//! knows goes along with every release into the word, and from there to whoever acquires it. A write is a race unless
//! its CPU knows every record of the piece, a read unless it knows the write. That is happens-before as C11
//! defines it, without clocks: what matters for future verdicts, and nothing else, so that equal states are equal.
//! (Release sequences are C++20's: a read-modify-write continues one, any other store ends it. Interrupts order nothing:
//! that they do is the machine's promise, and not what the protocol may rest on.)

use crate::hash::{absorb, pair};
use crate::places::{CONTEXT_CPUS, context_cpu};
use crate::processor::Source;

/// A set of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known([u64; Known::WORDS]);

impl Known {
    const WORDS: usize = 4;
    /// How many records there can be.
    pub(crate) const RECORDS: u32 = 64 * Self::WORDS as u32;
    pub(crate) const NOTHING: Self = Self([0; Self::WORDS]);

    pub(crate) fn is_nothing(&self) -> bool {
        self.0 == [0; Self::WORDS]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    fn has(&self, record: u32) -> bool {
        self.0[record as usize / 64] & 1 << (record % 64) != 0
    }

    fn set(&mut self, record: u32) {
        self.0[record as usize / 64] |= 1 << (record % 64);
    }

    fn clear(&mut self, record: u32) {
        self.0[record as usize / 64] &= !(1 << (record % 64));
    }

    /// What it adds to the hash of a state, for its owner; nothing known adds nothing. The order in which records were
    /// given out is another one on each thread, and does not count.
    pub(crate) fn hash(&self, owner: u64, races: &Races) -> u128 {
        let mut hash = 0;
        for (index, &word) in self.0.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                let record = 64 * index + left.trailing_zeros() as usize;
                hash ^= pair(owner, races.keys[record]);
                left &= left - 1;
            }
        }
        hash
    }
}

/// Two accesses that nothing orders.
#[derive(Clone, Copy)]
pub(crate) struct Race {
    /// The other access, an earlier one: its CPU, whether it wrote, and where.
    pub(crate) cpu: usize,
    pub(crate) wrote: bool,
    pub(crate) source: Source,
}

/// The records of this execution.
#[derive(Default)]
pub(crate) struct Races {
    cpus: u32,
    /// How many records were given out: one for writes and one for each CPU's reads, for each piece.
    given: u32,
    /// Records that stand for an access in this execution.
    live: Known,
    sources: Vec<Option<Source>>,
    /// The name of each record: the same on every thread.
    keys: Vec<u64>,
}

impl Races {
    pub(crate) fn new(cpus: usize) -> Self {
        Self { cpus: cpus.min(CONTEXT_CPUS) as u32, ..Self::default() }
    }

    pub(crate) fn restart(&mut self) {
        self.live = Known::NOTHING;
    }

    /// Nothing was accessed yet, so nothing needs to be known.
    pub(crate) fn is_idle(&self) -> bool {
        self.live.is_nothing()
    }

    /// The records of a new piece of plain data, by its name: the number of the first. None if there is no room for more.
    pub(crate) fn give(&mut self, piece: u64) -> Option<u32> {
        let first = self.given;
        if first + self.cpus + 1 > Known::RECORDS {
            return None;
        }
        self.given += self.cpus + 1;
        self.sources.resize(self.given as usize, None);
        let key = |record| absorb(absorb(0, piece), record) as u64;
        self.keys.extend((0..=u64::from(self.cpus)).map(key));
        Some(first)
    }

    fn race(&self, first: u32, record: u32) -> Option<Race> {
        let source = self.sources[record as usize]?;
        let wrote = record == first;
        let cpu = if wrote { usize::MAX } else { (record - first - 1) as usize };
        Some(Race { cpu, wrote, source })
    }

    /// A CPU reads a piece: the record that everybody forgets and it knows, and the race if there is one.
    pub(crate) fn read(
        &mut self,
        first: u32,
        cpu: usize,
        knows: &Known,
        source: Source,
    ) -> (u32, Option<Race>) {
        let race = (self.live.has(first) && !knows.has(first)).then(|| self.race(first, first)).flatten();
        let record = first + 1 + context_cpu(cpu) as u32;
        self.live.set(record);
        self.sources[record as usize] = Some(source);
        (record, race)
    }

    /// A CPU writes a piece: the race if there is one. All records of the piece are to be [forgotten](Self::forget), and
    /// `first` is known to the CPU.
    pub(crate) fn write(&mut self, first: u32, cpu: usize, knows: &Known, source: Source) -> Option<Race> {
        let unknown = (first..=first + self.cpus).find(|&record| {
            let own = record == first + 1 + context_cpu(cpu) as u32;
            self.live.has(record) && !knows.has(record) && !own
        });
        let race = unknown.and_then(|record| self.race(first, record));
        for record in first..=first + self.cpus {
            self.live.clear(record);
        }
        self.live.set(first);
        self.sources[first as usize] = Some(source);
        race
    }

    /// Removes the records of a piece from what somebody knows, from `record` on; `all` of them or just this one.
    pub(crate) fn forget(&self, known: &mut Known, record: u32, all: bool) {
        let last = if all { record + self.cpus } else { record };
        for record in record..=last {
            known.clear(record);
        }
    }

    /// Adds a record to what a CPU knows.
    pub(crate) fn learn(known: &mut Known, record: u32) {
        known.set(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::Location;

    /// Two CPUs, one piece.
    struct Two {
        races: Races,
        knows: [Known; 2],
        first: u32,
    }

    impl Two {
        fn new() -> Self {
            let mut races = Races::new(2);
            let first = races.give(0).expect("room");
            Self { races, knows: [Known::NOTHING; 2], first }
        }

        fn write(&mut self, cpu: usize) -> bool {
            let race = self.races.write(self.first, cpu, &self.knows[cpu], Location::caller());
            for known in &mut self.knows {
                self.races.forget(known, self.first, true);
            }
            Races::learn(&mut self.knows[cpu], self.first);
            race.is_some()
        }

        fn read(&mut self, cpu: usize) -> bool {
            let (record, race) = self.races.read(self.first, cpu, &self.knows[cpu], Location::caller());
            for known in &mut self.knows {
                self.races.forget(known, record, false);
            }
            Races::learn(&mut self.knows[cpu], record);
            race.is_some()
        }

        /// What `from` knows reaches `to`: a release that is acquired.
        fn tell(&mut self, from: usize, to: usize) {
            let known = self.knows[from];
            self.knows[to].add(&known);
        }
    }

    #[test]
    fn accesses_that_a_release_orders_do_not_race() {
        let mut two = Two::new();
        assert!(!two.write(0));
        two.tell(0, 1);
        assert!(!two.read(1) && !two.write(1));
        two.tell(1, 0);
        assert!(!two.write(0) && !two.read(0));
    }

    #[test]
    fn a_read_of_what_was_written_unseen_races_and_so_does_a_write_over_an_unseen_read() {
        let mut two = Two::new();
        assert!(!two.write(0));
        assert!(two.read(1));
        let mut two = Two::new();
        assert!(!two.read(0));
        assert!(two.write(1));
        let mut two = Two::new();
        two.write(0);
        assert!(two.write(1));
    }

    #[test]
    fn reads_do_not_race_with_reads() {
        let mut two = Two::new();
        assert!(!two.read(0) && !two.read(1) && !two.read(0));
    }

    #[test]
    fn what_was_known_of_an_older_access_says_nothing_of_a_newer_one() {
        let mut two = Two::new();
        two.write(0);
        two.tell(0, 1);
        two.write(0);
        assert!(two.read(1), "the second write was not told");
        let mut two = Two::new();
        two.read(0);
        two.tell(0, 1);
        two.read(0);
        assert!(two.write(1), "the second read was not told");
    }

    #[test]
    fn a_machine_with_too_much_plain_data_is_told_so() {
        let mut races = Races::new(3);
        assert_eq!((0..100).filter(|&piece| races.give(piece).is_some()).count(), 64);
    }
}
