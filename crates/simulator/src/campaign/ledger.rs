//! The books of a campaign: what became of every call, entered by the caller and by the closure independently.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed};

use smpcall_machine::Cpu;

/// One call to one target. What is entered about it must add up at the end.
#[derive(Default)]
struct Entry {
    /// How often the closure ran.
    runs: AtomicU8,
    /// What its caller was told, as an [`Outcome`].
    outcome: AtomicU8,
    /// The CPU that makes it.
    caller: AtomicU16,
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
    /// The target had claimed it and was declared dead: it may have run, in part or not at all.
    TargetDied = 4,
    /// Its caller was fenced in the middle of it: nobody is left to be told.
    Orphaned = 5,
    /// It has run if the target was online: a call to all who are, while CPUs come and go.
    IfOnline = 6,
}

/// The books. Shared by all CPUs of a machine (which are on one thread: nothing here orders anything).
pub(super) struct Ledger {
    entries: Vec<Entry>,
    next: AtomicUsize,
    /// What should not be: a closure on the wrong CPU or with wrong data, a wrong result, a CPU that serves in a rendezvous.
    pub(super) wrong: AtomicU64,
}

impl Ledger {
    pub(super) fn new(calls: usize) -> Self {
        let entries = (0..calls).map(|_| Entry::default()).collect();
        Self { entries, next: AtomicUsize::new(0), wrong: AtomicU64::new(0) }
    }

    /// Numbers for `wanted` calls, fewer if the books are nearly full; none if they are.
    pub(super) fn begin(&self, caller: Cpu, wanted: usize) -> Option<core::ops::Range<usize>> {
        let first = self.next.load(Relaxed);
        let last = (first + wanted).min(self.entries.len());
        self.next.store(last, Relaxed);
        for call in first..last {
            self.hand_over(call, caller);
        }
        (last > first).then_some(first..last)
    }

    /// From now on it is this CPU that makes the call.
    pub(super) fn hand_over(&self, call: usize, caller: Cpu) {
        self.entries[call].caller.store(caller.number() as u16, Relaxed);
    }

    fn caller(&self, call: usize) -> Cpu {
        Cpu::new(self.entries[call].caller.load(Relaxed).into())
    }

    /// Whether `caller` makes the call.
    pub(super) fn is_made_by(&self, call: usize, caller: Cpu) -> bool {
        self.caller(call) == caller
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

    /// This CPU was fenced: nobody will be told what became of the calls that it was making.
    pub(super) fn orphan_calls_of(&self, caller: Cpu) {
        for call in 0..self.has_begun() {
            if self.caller(call) == caller && self.entries[call].outcome.load(Relaxed) == Outcome::Open as u8
            {
                self.tell(call, Outcome::Orphaned);
            }
        }
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }

    /// Counts something that should not be.
    pub(super) fn must(&self, holds: bool) {
        if !holds {
            Self::count(&self.wrong);
        }
    }

    pub(super) fn has_begun(&self) -> usize {
        self.next.load(Relaxed)
    }

    /// Balances the books. Callers that `died` are told nothing, and those that are `stuck` watch a call that a dead CPU has
    /// claimed.
    pub(super) fn balance(&self, died: impl Fn(Cpu) -> bool, stuck: impl Fn(Cpu) -> bool) -> Balance {
        let mut balance = Balance::default();
        for (call, entry) in self.entries[..self.has_begun()].iter().enumerate() {
            let (runs, outcome) = (entry.runs.load(Relaxed), entry.outcome.load(Relaxed));
            match outcome {
                o if o == Outcome::Completed as u8 && runs == 1 => balance.completed += 1,
                o if o == Outcome::NotRun as u8 && runs == 0 => balance.told += 1,
                o if o == Outcome::LeftClaimed as u8 && runs <= 1 => {
                    balance.told += 1;
                    balance.overdue += u64::from(runs == 0);
                }
                o if o == Outcome::IfOnline as u8 && runs <= 1 => {
                    balance.completed += u64::from(runs);
                    balance.told += u64::from(runs == 0);
                }
                o if o == Outcome::TargetDied as u8 && runs <= 1 => balance.told += 1,
                o if o == Outcome::Orphaned as u8 && runs <= 1 => balance.orphaned += 1,
                o if o == Outcome::Open as u8 && runs <= 1 => {
                    let caller = self.caller(call);
                    if died(caller) {
                        balance.orphaned += 1;
                    } else if stuck(caller) {
                        balance.told += 1;
                        balance.overdue += 1;
                    } else {
                        balance.broken += 1;
                    }
                }
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
    /// Of those told: left behind, or watched, claimed by a target that has not finished them.
    pub(super) overdue: u64,
    /// Their callers died.
    pub(super) orphaned: u64,
    /// Run and told otherwise, or run twice; or their callers were never told anything.
    pub(super) broken: u64,
}
