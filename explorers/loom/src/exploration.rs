//! Exploring a scenario: until loom has seen everything within the bounds, a violation is found, or time is up.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::machine::lose_rings;
use crate::memory::{
    Names, SeqCst, UnknownLocation, Weakening, begin_execution, begin_exploration, end_execution, trace,
};

/// How far loom goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// To the end.
    None,
    /// Schedules with at most so many pre-emptions.
    Preemptions(usize),
}

/// A small program for a few CPUs. It panics if something is wrong.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it explores, in one line.
    pub about: &'static str,
    /// How far it can be explored within seconds.
    pub bound: Bound,
    /// Makes the mailboxes what they were at first.
    pub(crate) reset: fn(),
    /// Names the words of its machine.
    pub(crate) names: Names,
    /// One execution, on loom's first thread.
    pub(crate) run: fn(),
}

/// What an exploration is limited to, and what is changed for it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How far it goes.
    pub bound: Bound,
    /// When it gives up.
    pub time: Duration,
    /// What becomes of sequentially consistent accesses.
    pub seq_cst: SeqCst,
    /// A deliberate fault, if any.
    pub weakening: Option<Weakening>,
    /// Whether executions are left in which a CPU looks again at what nobody has written since: their rest is explored
    /// elsewhere. Without, loom explores how CPUs that wait take turns, without end if there are two of them.
    pub prunes: bool,
}

impl Limits {
    /// A minute, with the orderings that ship as far as loom has them.
    pub const fn within(bound: Bound) -> Self {
        let time = Duration::from_secs(60);
        Self { bound, time, seq_cst: SeqCst::AsAcquireRelease, weakening: None, prunes: true }
    }
}

/// What came of an exploration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exploration {
    /// Executions, those included that were begun again.
    pub executions: u64,
    /// Whether everything within the bound was explored.
    pub complete: bool,
    /// What is wrong, if something is.
    pub violation: Option<String>,
    /// Which ends executions came to, those that were pruned included.
    pub outcomes: BTreeSet<&'static str>,
    /// The accesses of the execution that shows it, in loom's order.
    pub trace: Vec<String>,
}

/// Operations in one execution after which loom gives up: far more than any scenario has.
const MOST_BRANCHES: usize = 20_000;
/// How often loom looks at the clock, in executions.
const CLOCK_EVERY: usize = 256;

/// One exploration at a time: the counters of the mailboxes are real ones, in statics.
static EXPLORING: Mutex<()> = Mutex::new(());

/// Explores a scenario. One after the other, if several threads want to.
pub fn explore(scenario: &Scenario, limits: &Limits) -> Exploration {
    let _exploring = EXPLORING.lock().unwrap_or_else(PoisonError::into_inner);
    begin_exploration(limits);
    OUTCOMES.with_borrow_mut(BTreeSet::clear);
    let executions = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let result = loop {
        match explore_known(*scenario, limits, start, &executions) {
            Err(payload) if payload.is::<UnknownLocation>() => {}
            result => break result,
        }
    };
    end_execution();
    let violation = result.err().map(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic without a message").to_owned()
    });
    Exploration {
        executions: executions.load(Ordering::Relaxed),
        complete: violation.is_none() && start.elapsed() < limits.time,
        trace: if violation.is_some() { trace() } else { Vec::new() },
        outcomes: OUTCOMES.take(),
        violation,
    }
}

std::thread_local! {
    static OUTCOMES: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

/// Notes how something has ended in this execution.
pub(crate) fn note(outcome: &'static str) {
    OUTCOMES.with_borrow_mut(|outcomes| outcomes.insert(outcome));
}

/// Explores with the locations that are known so far.
fn explore_known(
    scenario: Scenario,
    limits: &Limits,
    start: Instant,
    executions: &Arc<AtomicU64>,
) -> std::thread::Result<()> {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = MOST_BRANCHES;
    builder.max_duration = Some(limits.time.saturating_sub(start.elapsed()));
    builder.checkpoint_interval = CLOCK_EVERY;
    builder.preemption_bound = match limits.bound {
        Bound::None => None,
        Bound::Preemptions(count) => Some(count),
    };
    let executions = Arc::clone(executions);
    catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            executions.fetch_add(1, Ordering::Relaxed);
            end_execution();
            (scenario.reset)();
            lose_rings(0);
            begin_execution(scenario.names);
            (scenario.run)();
            end_execution();
        });
    }))
}
