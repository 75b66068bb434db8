//! When an exploration shows how far it is, and when it ends before its time: limits, the observer, a violation.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::choice::Choice;
use super::report::{Found, Incomplete, Limits, Observer, Progress};
use super::system::{BEGIN_AGAIN, Violation};

/// So often the observer is called. It is asked whether to stop as often.
const PERIOD: Duration = Duration::from_millis(100);

/// What the threads of one exploration share to know when to end.
pub(super) struct Watch<'a> {
    observer: &'a dyn Observer,
    limits: Limits,
    keep_going: bool,
    start: Instant,
    /// When the observer is called next, in nanoseconds since the start.
    next_call: AtomicU64,
    stopped: AtomicBool,
    outcome: Mutex<Outcome>,
}

#[derive(Default)]
struct Outcome {
    reason: Option<Incomplete>,
    found: Option<Found>,
}

impl<'a> Watch<'a> {
    /// Begins to watch. `keep_going`: a violation does not end the exploration.
    pub(super) fn new(limits: Limits, keep_going: bool, observer: &'a dyn Observer) -> Self {
        Self {
            observer,
            limits,
            keep_going,
            start: Instant::now(),
            next_call: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            outcome: Mutex::default(),
        }
    }

    /// Whether the exploration is to end now.
    pub(super) fn is_stopped(&self) -> bool {
        // Relaxed: only a wish; what the threads have found goes through locks and joins.
        self.stopped.load(Ordering::Relaxed)
    }

    /// Ends the exploration. The first reason is the one that is reported.
    pub(super) fn stop(&self, reason: Incomplete) {
        self.outcome().reason.get_or_insert(reason);
        // Relaxed: as in `is_stopped`.
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Looks at the clock, calls the observer if it is time to, and enforces the limits. Cheap enough for every few
    /// microseconds, not for every step. The caller fills in all but the time.
    pub(super) fn look(&self, progress: impl FnOnce() -> Progress) {
        let elapsed = self.start.elapsed();
        if self.limits.time.is_some_and(|limit| elapsed >= limit) {
            self.stop(Incomplete::Limit);
        }
        let now = elapsed.as_nanos() as u64;
        // Relaxed: whoever moves the time of the next call makes this one; nothing else depends on it.
        let due = self.next_call.load(Ordering::Relaxed);
        if now < due {
            return;
        }
        let next = now + PERIOD.as_nanos() as u64;
        if self.next_call.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        self.observer.progress(&Progress { elapsed, ..progress() });
        if self.observer.stop() {
            self.stop(Incomplete::Stopped);
        }
    }

    /// Enforces the limits that are counted.
    pub(super) fn limit(&self, executions: u64, states: u64, memory: u64) {
        let reached = |limit: Option<u64>, value| limit.is_some_and(|limit| value >= limit);
        let Limits { executions: most_executions, states: most_states, memory: most_memory, .. } =
            self.limits;
        if reached(most_executions, executions)
            || reached(most_states, states)
            || reached(most_memory, memory)
        {
            self.stop(Incomplete::Limit);
        }
    }

    /// A violation was found. Of several, the shortest schedule is kept, and of these the first in order.
    pub(super) fn found(&self, violation: Violation, schedule: Vec<Choice>) {
        // What was explored under a false assumption cannot be gone on with.
        let again = violation.law == BEGIN_AGAIN;
        let mut outcome = self.outcome();
        let rank = |schedule: &[Choice]| (schedule.len(), schedule.to_vec());
        if outcome.found.as_ref().is_none_or(|known| rank(&schedule) < rank(&known.schedule)) {
            outcome.found = Some(Found { violation, schedule });
        }
        drop(outcome);
        if !self.keep_going || again {
            self.stop(Incomplete::Violation);
        }
    }

    /// Why it ended before its time, if it did, what was found, and how long it took.
    pub(super) fn into_outcome(self) -> (Option<Incomplete>, Option<Found>, Duration) {
        let elapsed = self.start.elapsed();
        let outcome = self.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
        (outcome.reason, outcome.found, elapsed)
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        // Each write to it is complete in itself.
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the exploration if its thread panics, so that the others do not go on or wait for it.
pub(super) struct StopOnPanic<'a, 'b>(pub(super) &'a Watch<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(Incomplete::Stopped);
        }
    }
}
