//! Work for several threads: untried branches that a busy thread gives to one that has nothing to do.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::choice::Choice;
use super::super::footprint::Footprint;
use super::super::watch::Watch;

/// A choice that is asleep, and what it touched when it was performed.
#[derive(Clone, Copy)]
pub(super) struct Asleep {
    pub(super) choice: Choice,
    pub(super) touched: Footprint,
}

/// A state, and what is to be explored from it.
pub(super) struct Unit {
    /// The decisions that lead there.
    pub(super) prefix: Vec<Choice>,
    /// What is to be tried, the first one last. None: the start, which nobody has visited yet.
    pub(super) untried: Vec<Choice>,
    /// What is asleep there.
    pub(super) asleep: Vec<Asleep>,
    /// The part of the whole work that it seems to be, from 0 to 1.
    pub(super) weight: f64,
}

/// The units that nobody works on, and who waits for one.
pub(super) struct Work {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// How many threads wait, for a look without the lock.
    waiting: AtomicUsize,
    /// For each thread the part of the work that is left of its unit: the bits of an `f64`.
    left: Box<[AtomicU64]>,
    /// For tests: one thread gives away what it can, and takes it back in an order that this number chooses. So it
    /// behaves as many threads might.
    #[cfg(test)]
    scatter: Option<u64>,
}

struct Queue {
    units: Vec<Unit>,
    busy: usize,
    waiting: usize,
}

/// A thread that waits looks so often whether the exploration has been stopped.
const PATIENCE: Duration = Duration::from_millis(50);

impl Work {
    /// One unit: everything.
    pub(super) fn new(threads: usize) -> Self {
        let root = Unit { prefix: Vec::new(), untried: Vec::new(), asleep: Vec::new(), weight: 1.0 };
        Self {
            queue: Mutex::new(Queue { units: vec![root], busy: 0, waiting: 0 }),
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            left: (0..threads.max(1)).map(|_| AtomicU64::new(0)).collect(),
            #[cfg(test)]
            scatter: None,
        }
    }

    /// For one thread that is to behave as many might.
    #[cfg(test)]
    pub(super) fn scattered(number: u64) -> Self {
        let work = Self { scatter: Some(number), ..Self::new(1) };
        // As if somebody were always waiting.
        work.waiting.store(1, Ordering::Relaxed);
        work
    }

    /// A unit for this thread, which waits until there is one. None: there will be no more.
    pub(super) fn take(&self, thread: usize, watch: &Watch<'_>) -> Option<Unit> {
        let mut queue = self.lock();
        loop {
            if watch.is_stopped() {
                return None;
            }
            #[cfg(test)]
            if let (Some(number), count @ 1..) = (self.scatter, queue.units.len()) {
                let chosen = crate::hash::pair(number, count as u64) as usize % count;
                queue.units.swap(chosen, count - 1);
            }
            if let Some(unit) = queue.units.pop() {
                queue.busy += 1;
                self.set_left(thread, unit.weight);
                return Some(unit);
            }
            if queue.busy == 0 {
                self.changed.notify_all();
                return None;
            }
            self.set_waiting(&mut queue, 1);
            queue = self.changed.wait_timeout(queue, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
            self.set_waiting(&mut queue, -1);
        }
    }

    /// The thread has done its unit.
    pub(super) fn finish(&self, thread: usize) {
        self.lock().busy -= 1;
        self.set_left(thread, 0.0);
    }

    /// Whether somebody may be waiting for a unit.
    pub(super) fn is_wanted(&self) -> bool {
        // Relaxed: a hint. Who acts on it takes the lock.
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether there are fewer units than threads that wait.
    pub(super) fn is_short(&self) -> bool {
        #[cfg(test)]
        if self.scatter.is_some() {
            return true;
        }
        let queue = self.lock();
        queue.units.len() < queue.waiting
    }

    /// Here is a unit.
    pub(super) fn give(&self, unit: Unit) {
        self.lock().units.push(unit);
        self.changed.notify_one();
    }

    /// This is left of the thread's unit.
    pub(super) fn set_left(&self, thread: usize, left: f64) {
        // Relaxed: an estimate for people.
        self.left[thread].store(left.to_bits(), Ordering::Relaxed);
    }

    /// The part of the work that is done, from 0 to 1.
    pub(super) fn done(&self) -> f64 {
        let queued: f64 = self.lock().units.iter().map(|unit| unit.weight).sum();
        // Relaxed: as in `set_left`.
        let taken: f64 = self.left.iter().map(|left| f64::from_bits(left.load(Ordering::Relaxed))).sum();
        (1.0 - queued - taken).clamp(0.0, 1.0)
    }

    fn set_waiting(&self, queue: &mut Queue, change: isize) {
        queue.waiting = queue.waiting.wrapping_add_signed(change);
        // Relaxed: as in `is_wanted`.
        self.waiting.store(queue.waiting, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every write to it is complete in itself.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
