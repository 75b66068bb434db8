//! What all threads of an exploration share: who does which unit, when to stop, how far it is.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Tally;
use crate::explorer::report::{Incomplete, Limits, Observer, Progress};

/// The observer is called about this often.
const INTERVAL: Duration = Duration::from_millis(100);

const GOING_ON: u8 = 0;
const AT_LIMIT: u8 = 1;
const STOPPED: u8 = 2;

// Orderings: everything here is `Relaxed`. The atomics are counters and flags that carry no other data: results are
// handed over under the mutex, and when the scope of the threads ends.
pub(super) struct Watch<'a> {
    observer: &'a dyn Observer,
    limits: Limits,
    began: Instant,
    units: usize,
    next: AtomicUsize,
    /// The lowest unit with a violation that ends the exploration.
    violated: AtomicUsize,
    ended_by: AtomicU8,
    executions: AtomicU64,
    classes: AtomicU64,
    /// When the observer is to be called next: milliseconds since the beginning.
    due: AtomicU64,
    jobs: Vec<Job>,
    tallies: Mutex<BTreeMap<usize, Tally>>,
}

#[derive(Default)]
struct Job {
    /// The part of its unit that is done, as the bits of an `f64`.
    done: AtomicU64,
    /// Bytes: now, and at most.
    memory: AtomicU64,
    peak: AtomicU64,
}

impl<'a> Watch<'a> {
    pub(super) fn new(observer: &'a dyn Observer, limits: Limits, units: usize, jobs: usize) -> Self {
        Self {
            observer,
            limits,
            began: Instant::now(),
            units,
            next: AtomicUsize::new(0),
            violated: AtomicUsize::new(usize::MAX),
            ended_by: AtomicU8::new(GOING_ON),
            executions: AtomicU64::new(0),
            classes: AtomicU64::new(0),
            due: AtomicU64::new(INTERVAL.as_millis() as u64),
            jobs: (0..jobs).map(|_| Job::default()).collect(),
            tallies: Mutex::default(),
        }
    }

    /// The next unit to be explored, if there is any.
    pub(super) fn take(&self) -> Option<usize> {
        let unit = self.next.fetch_add(1, Ordering::Relaxed);
        (unit < self.units && !self.is_over(unit)).then_some(unit)
    }

    /// Whether this unit need not be explored (further).
    pub(super) fn is_over(&self, unit: usize) -> bool {
        self.ended_by.load(Ordering::Relaxed) != GOING_ON || unit > self.violated.load(Ordering::Relaxed)
    }

    pub(super) fn hand_in(&self, unit: usize, tally: Tally, violation_ends: bool) {
        if violation_ends && tally.found.is_some() {
            self.violated.fetch_min(unit, Ordering::Relaxed);
        }
        self.tallies.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(unit, tally);
    }

    fn end(&self, by: u8) {
        // The first reason counts.
        let _ = self.ended_by.compare_exchange(GOING_ON, by, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// One execution more has ended; `complete` if it was not cut short.
    pub(super) fn count(&self, complete: bool) {
        let executions = self.executions.fetch_add(1, Ordering::Relaxed) + 1;
        if self.limits.executions.is_some_and(|limit| executions >= limit) {
            self.end(AT_LIMIT);
        }
        if complete {
            let classes = self.classes.fetch_add(1, Ordering::Relaxed) + 1;
            if self.limits.states.is_some_and(|limit| classes >= limit) {
                self.end(AT_LIMIT);
            }
        }
    }

    /// Looks at the clock, and at what depends on it. To be called every millisecond or so.
    pub(super) fn poll(&self, job: usize, memory: usize, done: impl FnOnce() -> f64) {
        let job = &self.jobs[job];
        job.memory.store(memory as u64, Ordering::Relaxed);
        job.peak.fetch_max(memory as u64, Ordering::Relaxed);
        let elapsed = self.began.elapsed();
        if self.limits.time.is_some_and(|limit| elapsed >= limit)
            || self.limits.memory.is_some_and(|limit| self.memory_now() >= limit)
        {
            self.end(AT_LIMIT);
        }
        let now = elapsed.as_millis() as u64;
        let due = self.due.load(Ordering::Relaxed);
        let next = now + INTERVAL.as_millis() as u64;
        if now < due || self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        job.done.store(done().to_bits(), Ordering::Relaxed);
        self.observer.progress(&self.progress(elapsed));
        if self.observer.stop() {
            self.end(STOPPED);
        }
    }

    fn memory_now(&self) -> u64 {
        self.jobs.iter().map(|job| job.memory.load(Ordering::Relaxed)).sum()
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        let parts = self.jobs.iter().map(|job| f64::from_bits(job.done.load(Ordering::Relaxed)));
        let taken = self.next.load(Ordering::Relaxed).min(self.units);
        let begun = taken.saturating_sub(self.jobs.len());
        let done = (f64::from(begun as u32) + parts.sum::<f64>()) / f64::from(self.units.max(1) as u32);
        Progress {
            executions: self.executions.load(Ordering::Relaxed),
            classes: self.classes.load(Ordering::Relaxed),
            states: 0,
            memory: self.memory_now(),
            elapsed,
            done: Some(done.clamp(0.0, 1.0)),
        }
    }

    pub(super) fn ended_by(&self) -> Option<Incomplete> {
        match self.ended_by.load(Ordering::Relaxed) {
            AT_LIMIT => Some(Incomplete::Limit),
            STOPPED => Some(Incomplete::Stopped),
            _ => None,
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// What the threads had at most, added up.
    pub(super) fn memory(&self) -> u64 {
        self.jobs.iter().map(|job| job.peak.load(Ordering::Relaxed)).sum()
    }

    /// What became of each unit; none for those that nobody took.
    pub(super) fn into_tallies(self) -> impl Iterator<Item = Option<Tally>> {
        let mut tallies = self.tallies.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        (0..self.units).map(move |unit| tallies.remove(&unit))
    }
}
