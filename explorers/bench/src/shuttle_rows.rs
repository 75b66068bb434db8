//! The rows of shuttle: threads under sequential consistency, scheduled depth-first, at random, or by PCT.

use std::sync::Arc;
use std::sync::atomic::Ordering::{self, SeqCst};
use std::time::{Duration, Instant};

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::case::Case;
use crate::protocol::{Tool, run};
use crate::row::{Explored, Outcome, Report, caught};

/// Steps after which an execution counts as one that does not end: shuttle has no other verdict for threads that spin.
const MOST_STEPS: usize = 10_000;
/// The same for executions that are abandoned without a verdict.
const MOST_STEPS_ABANDONED: usize = 200;
/// Samples cannot finish; so long is enough to measure their rate.
const SAMPLING: Duration = Duration::from_secs(5);
/// The seed of the samples.
const SEED: u64 = 1;
/// The depth of the bugs that PCT looks for.
const DEPTH: usize = 3;

fn explore(case: Case, limit: Duration, samples: bool, scheduler: impl Scheduler + 'static) -> Report {
    let limit = if samples { limit.min(SAMPLING) } else { limit };
    let executions = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut config = Config::new();
    // Depth-first scheduling is unfair: it must abandon what does not end, and so finds no call that is lost.
    config.max_steps =
        if samples { MaxSteps::FailAfter(MOST_STEPS) } else { MaxSteps::ContinueAfter(MOST_STEPS_ABANDONED) };
    config.max_time = Some(limit);
    config.failure_persistence = FailurePersistence::None;
    let start = Instant::now();
    let result = caught({
        let executions = Arc::clone(&executions);
        move || {
            Runner::new(scheduler, config).run(move || {
                executions.fetch_add(1, Ordering::Relaxed);
                run::<Threads>(case);
            });
        }
    });
    let outcome = match result {
        Err(message) => Outcome::Found(message),
        Ok(()) if samples => Outcome::Sampled(limit.as_secs_f64()),
        Ok(()) if start.elapsed() >= limit => Outcome::Unfinished(limit.as_secs_f64()),
        Ok(()) => Outcome::Ok,
    };
    Report::new(Explored::Executions(executions.load(Ordering::Relaxed)), outcome)
}

pub(crate) fn depth_first(case: Case, limit: Duration) -> Report {
    explore(case, limit, false, DfsScheduler::new(None, false))
}

pub(crate) fn random(case: Case, limit: Duration) -> Report {
    explore(case, limit, true, RandomScheduler::new_from_seed(SEED, usize::MAX))
}

pub(crate) fn pct(case: Case, limit: Duration) -> Report {
    explore(case, limit, true, PctScheduler::new_from_seed(SEED, DEPTH, usize::MAX))
}

struct Threads;

impl Tool for Threads {
    type Word = shuttle::sync::atomic::AtomicU64;
    type Thread = shuttle::thread::JoinHandle<()>;

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
            shuttle::thread::yield_now();
        }
    }

    fn spawn(body: impl FnOnce() + Send + 'static) -> Self::Thread {
        shuttle::thread::spawn(body)
    }

    fn join(thread: Self::Thread) {
        thread.join().expect("a panic ends the execution before");
    }
}
