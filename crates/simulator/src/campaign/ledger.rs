//! The books of a campaign: what became of every call, entered by the caller and by the closure independently.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// One call to one target. What is entered about it must add up at the end.
#[derive(Default)]
struct Entry {
    /// How often the closure ran.
    runs: AtomicU8,
    /// What its caller was told, as an [`Outcome`].
    outcome: AtomicU8,
}

/// What the caller of one call was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Outcome {
    /// Nothing yet.
    Open = 0,
    /// It has run.
    Completed = 1,
    /// It has not run and never will.
    NotRun = 2,
    /// The target has claimed it; it may run any time, or never if the target is dead.
    LeftClaimed = 3,
}

/// The books. Shared by all CPUs of a machine (which are on one thread: nothing here orders anything).
pub(super) struct Ledger {
    entries: Vec<Entry>,
    next: AtomicUsize,
    /// Closures that ran on the wrong CPU or saw wrong data, and results that were wrong.
    pub(super) wrong: AtomicU64,
    pub(super) posts: PostBooks,
}

/// What became of the posts.
#[derive(Default)]
pub(super) struct PostBooks {
    pub(super) queued: AtomicU64,
    pub(super) merged: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl Ledger {
    pub(super) fn new(calls: usize) -> Self {
        let entries = (0..calls).map(|_| Entry::default()).collect();
        Self { entries, next: AtomicUsize::new(0), wrong: AtomicU64::new(0), posts: PostBooks::default() }
    }

    /// Numbers for `wanted` calls, fewer if the books are nearly full; none if they are.
    pub(super) fn begin(&self, wanted: usize) -> Option<core::ops::Range<usize>> {
        let first = self.next.load(Relaxed);
        let last = (first + wanted).min(self.entries.len());
        self.next.store(last, Relaxed);
        (last > first).then_some(first..last)
    }

    /// The closure of this call runs.
    pub(super) fn run(&self, call: usize) {
        let runs = &self.entries[call].runs;
        runs.store(runs.load(Relaxed).saturating_add(1), Relaxed);
    }

    /// The caller of this call was told its outcome.
    pub(super) fn tell(&self, call: usize, outcome: Outcome) {
        self.entries[call].outcome.store(outcome as u8, Relaxed);
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }

    pub(super) fn has_begun(&self) -> usize {
        self.next.load(Relaxed)
    }

    /// Balances the books.
    pub(super) fn balance(&self) -> Balance {
        let mut balance = Balance::default();
        for entry in &self.entries[..self.has_begun()] {
            let (runs, outcome) = (entry.runs.load(Relaxed), entry.outcome.load(Relaxed));
            match outcome {
                o if o == Outcome::Completed as u8 && runs == 1 => balance.completed += 1,
                o if o == Outcome::NotRun as u8 && runs == 0 => balance.told += 1,
                o if o == Outcome::LeftClaimed as u8 && runs <= 1 => {
                    balance.told += 1;
                    balance.left_claimed += u64::from(runs == 0);
                }
                o if o == Outcome::Open as u8 && runs <= 1 => balance.open += 1,
                _ => balance.broken += 1,
            }
        }
        balance
    }
}

/// The balance of a campaign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    pub(super) completed: u64,
    pub(super) told: u64,
    /// Of those told: left behind claimed by a target that has not run them.
    pub(super) left_claimed: u64,
    /// Their callers have not been told anything.
    pub(super) open: u64,
    /// Run and told otherwise, or run twice.
    pub(super) broken: u64,
}
