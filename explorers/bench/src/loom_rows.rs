//! The rows of loom: depth-first over schedules and C11 reorderings, with partial-order reduction.
//!
//! Loom takes sequentially consistent accesses for acquire-release ones, so it explores more than the others. It has
//! no wait, so there are three:
//!
//! * Spin and yield. Where two threads wait, loom explores without end how they take turns.
//! * The same, pruned: an execution in which a thread looks again at a word that nobody has written since is left
//!   ([`loom::skip_branch`]), because its rest is explored elsewhere.
//! * Park; who writes a word unparks those who watch it. A load that returns an old value after the unpark
//!   then parks for ever: a deadlock that is none.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::case::Case;
use crate::protocol::{Tool, run};
use crate::row::{Explored, Outcome, Report, caught};

/// Thread switches in one execution after which loom gives up. Its default, 1,000, is a false alarm for spinning threads.
const MOST_BRANCHES: usize = 10_000;
/// How often loom looks at the clock, in executions.
const CLOCK_EVERY: usize = 64;

fn explore<T: Tool>(case: Case, limit: Duration, preemptions: Option<usize>) -> Report {
    let executions = Arc::new(AtomicU64::new(0));
    let mut builder = loom::model::Builder::new();
    builder.max_branches = MOST_BRANCHES;
    builder.preemption_bound = preemptions;
    builder.max_duration = Some(limit);
    builder.checkpoint_interval = CLOCK_EVERY;
    let start = Instant::now();
    let result = caught({
        let executions = Arc::clone(&executions);
        move || {
            builder.check(move || {
                executions.fetch_add(1, Ordering::Relaxed);
                run::<T>(case);
            });
        }
    });
    let outcome = match result {
        Err(message) => Outcome::Found(message),
        Ok(()) if start.elapsed() >= limit => Outcome::Unfinished(limit.as_secs_f64()),
        Ok(()) => preemptions.map_or(Outcome::Ok, Outcome::OkWithin),
    };
    Report::new(Explored::Executions(executions.load(Ordering::Relaxed)), outcome)
}

pub(crate) fn spin(case: Case, limit: Duration) -> Report {
    explore::<Spin>(case, limit, None)
}

pub(crate) fn spin_bounded(case: Case, limit: Duration) -> Report {
    explore::<Spin>(case, limit, Some(2))
}

pub(crate) fn pruned(case: Case, limit: Duration) -> Report {
    explore::<Better<false>>(case, limit, None)
}

pub(crate) fn park(case: Case, limit: Duration) -> Report {
    explore::<Better<true>>(case, limit, None)
}

pub(crate) fn park_bounded(case: Case, limit: Duration) -> Report {
    explore::<Better<true>>(case, limit, Some(2))
}

/// Waits spin and yield.
struct Spin;

impl Tool for Spin {
    type Word = loom::sync::atomic::AtomicU64;
    type Thread = loom::thread::JoinHandle<()>;

    fn word(value: u64) -> Self::Word {
        Self::Word::new(value)
    }

    fn load(word: &Self::Word) -> u64 {
        word.load(SeqCst)
    }

    fn store(word: &Self::Word, value: u64) {
        word.store(value, SeqCst);
    }

    fn swap(word: &Self::Word, value: u64) -> u64 {
        word.swap(value, SeqCst)
    }

    fn compare_exchange(word: &Self::Word, current: u64, new: u64) -> u64 {
        match word.compare_exchange(current, new, SeqCst, SeqCst) {
            Ok(found) | Err(found) => found,
        }
    }

    fn watch(_: &Self::Word) {}

    fn wait(word: &Self::Word, zero: bool) {
        while (word.load(SeqCst) == 0) != zero {
            loom::thread::yield_now();
        }
    }

    fn spawn(body: impl FnOnce() + Send + 'static) -> Self::Thread {
        loom::thread::spawn(body)
    }

    fn join(thread: Self::Thread) {
        thread.join().expect("a panic ends the execution before");
    }
}

/// A word, how often it was written, and who watches it. Loom runs one thread at a time and switches at its own operations
/// only, so these need no order of their own; lock and atomic are for the type system.
struct Watched {
    word: loom::sync::atomic::AtomicU64,
    writes: AtomicU64,
    watchers: Mutex<Vec<loom::thread::Thread>>,
}

impl Watched {
    fn written(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        for watcher in self.watchers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            watcher.unpark();
        }
    }
}

/// Waits spin and yield, pruned; or they park.
struct Better<const PARKS: bool>;

impl<const PARKS: bool> Tool for Better<PARKS> {
    type Word = Watched;
    type Thread = loom::thread::JoinHandle<()>;

    fn word(value: u64) -> Watched {
        Watched { word: Spin::word(value), writes: AtomicU64::new(0), watchers: Mutex::default() }
    }

    fn load(word: &Watched) -> u64 {
        Spin::load(&word.word)
    }

    fn store(word: &Watched, value: u64) {
        Spin::store(&word.word, value);
        word.written();
    }

    fn swap(word: &Watched, value: u64) -> u64 {
        let found = Spin::swap(&word.word, value);
        word.written();
        found
    }

    fn compare_exchange(word: &Watched, current: u64, new: u64) -> u64 {
        let found = Spin::compare_exchange(&word.word, current, new);
        if found == current {
            word.written();
        }
        found
    }

    fn watch(word: &Watched) {
        if PARKS {
            let mut watchers = word.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            watchers.push(loom::thread::current());
        }
    }

    fn wait(word: &Watched, zero: bool) {
        while (Spin::load(&word.word) == 0) != zero {
            if PARKS {
                loom::thread::park();
                continue;
            }
            let writes = word.writes.load(Ordering::Relaxed);
            loom::thread::yield_now();
            if word.writes.load(Ordering::Relaxed) == writes {
                loom::skip_branch();
            }
        }
    }

    fn spawn(body: impl FnOnce() + Send + 'static) -> Self::Thread {
        loom::thread::spawn(body)
    }

    fn join(thread: Self::Thread) {
        Spin::join(thread);
    }
}
