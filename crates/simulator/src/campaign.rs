//! Campaigns: random workloads under random faults on a simulated machine, every call reconciled.

use core::time::Duration;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use smpcall::Diagnosis;
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Instant, Machine as _};

use crate::faults::{Fault, Filter, Probability};
use crate::kernel::Hooks;
use crate::machine::{RING_VECTOR, SimMachine};
use crate::{Config, ConfigError, RunEnd, Trace, World};

mod ledger;
mod workload;

use ledger::Ledger;
use workload::Plan;

/// What a campaign does.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many CPUs.
    pub cpus: usize,
    /// How they are addressed.
    pub routing: Routing,
    /// How many calls: a call to many counts once for each target.
    pub calls: u64,
    /// The probability with which each interrupt message is lost.
    pub drop: Probability,
    /// What else goes wrong.
    pub faults: Vec<Fault>,
    /// From which all randomness comes.
    pub seed: u64,
}

/// What became of a campaign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Calls made by CPUs that live: `completed + told`, if nothing is wrong.
    pub calls: u64,
    /// Run exactly once, and their caller knows.
    pub completed: u64,
    /// Not run, and their caller knows why; also those that their caller left or watches claimed by a dead CPU.
    pub told: u64,
    /// Of those told: claimed by a CPU that died running them; their callers get reports (law L4).
    pub overdue: u64,
    /// Under way on CPUs that died as callers: nobody is left to be told.
    pub orphaned: u64,
    /// Everything that does not add up: run twice, run and told otherwise, wrong CPU or data, posts lost.
    pub unreconciled: u64,
    /// Posts queued.
    pub posts: u64,
    /// Posts merged with one that was queued.
    pub posts_merged: u64,
    /// Posts run.
    pub posts_run: u64,
    /// Interrupt messages.
    pub ipis: Ipis,
    /// The length of the run in virtual time.
    pub virtual_time: Duration,
}

/// Interrupt messages of a campaign or replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipis {
    /// Sent, one for each target, repeated ones included.
    pub sent: u64,
    /// Ring interrupts taken.
    pub taken: u64,
    /// Lost by a fault.
    pub lost: u64,
    /// Rings repeated because they stood unanswered.
    pub resent: u64,
}

impl Report {
    /// Adds the figures of another campaign.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.completed += other.completed;
        self.told += other.told;
        self.overdue += other.overdue;
        self.orphaned += other.orphaned;
        self.unreconciled += other.unreconciled;
        self.posts += other.posts;
        self.posts_merged += other.posts_merged;
        self.posts_run += other.posts_run;
        self.ipis.sent += other.ipis.sent;
        self.ipis.taken += other.ipis.taken;
        self.ipis.lost += other.ipis.lost;
        self.ipis.resent += other.ipis.resent;
        self.virtual_time += other.virtual_time;
    }
}

/// The routing that a machine of this size would have: logical flat up to 8 CPUs, else x2APIC clusters.
pub fn default_routing(cpus: usize) -> Routing {
    if cpus <= 8 { Routing::Flat } else { Routing::X2ApicCluster }
}

thread_local! {
    /// Who waits for whom although the deadline has passed, because the target has claimed the call.
    static OVERDUE: RefCell<BTreeMap<Cpu, Cpu>> = const { RefCell::new(BTreeMap::new()) };
}

fn note_overdue(target: Option<Cpu>, _: &Diagnosis) {
    if let Some(target) = target {
        OVERDUE.with_borrow_mut(|overdue| overdue.insert(SimMachine::current_cpu(), target));
    }
}

/// A call of this CPU has ended: it does not wait for that target any more. If an outer one does, it says so again.
fn forget_overdue() {
    OVERDUE.with_borrow_mut(|overdue| overdue.remove(&SimMachine::current_cpu()));
}

/// How long the machine runs between two looks at whether it is done.
const SLICE: Duration = Duration::from_millis(20);
/// How many slices without a new call mean that nothing will happen any more.
const PATIENCE: u32 = 500;
/// Closures are shorter than the first back-off, even a few of them in a row.
const LONGEST_CLOSURE: Duration = Duration::from_nanos(700);

/// Runs a campaign.
///
/// # Errors
/// If there cannot be such a machine, or the faults contradict each other.
///
/// # Panics
/// If a program panics, which would be a defect.
pub fn run(options: &Options) -> Result<Report, ConfigError> {
    run_machine(options, false).map(|(report, _)| report)
}

/// As [`run`], and returns what happened: one event of 32 bytes for every step of every call.
///
/// # Errors
/// As for [`run`].
pub fn run_traced(options: &Options) -> Result<(Report, Trace), ConfigError> {
    run_machine(options, true)
}

fn run_machine(options: &Options, trace: bool) -> Result<(Report, Trace), ConfigError> {
    let mut faults = options.faults.clone();
    if options.drop.get() > 0.0 {
        faults.push(Fault::Drop { probability: options.drop, filter: Filter::default() });
    }
    let dead: Vec<Cpu> = faults.iter().filter_map(Fault::dead_cpu).collect();
    let mut config = Config::new(options.cpus, options.routing, options.seed);
    config.faults = faults;
    config.trace = trace;

    workload::take_posts_run();
    workload::renew_shared_posts();
    OVERDUE.with_borrow_mut(BTreeMap::clear);
    let ledger = Ledger::new(usize::try_from(options.calls).unwrap_or(usize::MAX));
    let plan = Plan {
        ledger: &ledger,
        cpus: options.cpus as u64,
        patient: dead.is_empty(),
        longest_closure: LONGEST_CLOSURE,
    };
    let hooks = Hooks { overdue: Some(note_overdue), ..Hooks::default() };
    let mut world = World::with_kernel(&config, hooks)?;
    for cpu in 0..options.cpus as u32 {
        world.spawn(Cpu::new(cpu), || plan.run());
    }

    let mut until = Instant::default();
    let (mut last_begun, mut idle) = (0, 0);
    loop {
        until = until.plus(SLICE);
        if world.run(until) != RunEnd::TimeLimit || all_done(&world, &dead) {
            break;
        }
        idle = if ledger.has_begun() == last_begun { idle + 1 } else { 0 };
        last_begun = ledger.has_begun();
        if idle > PATIENCE {
            break;
        }
    }
    // The ticks find the posts that nobody waits for.
    world.run_on(world.time().plus(SLICE));
    Ok((report(&ledger, &world, &dead), world.trace()))
}

/// Whether every CPU has ended its program, is dead, or waits for a claimed call that a dead one will not finish.
fn all_done(world: &World<'_>, dead: &[Cpu]) -> bool {
    let mut stuck: Vec<Cpu> = dead.to_vec();
    OVERDUE.with_borrow(|overdue| {
        loop {
            let before = stuck.len();
            for (&waiter, target) in overdue {
                if stuck.contains(target) && !stuck.contains(&waiter) {
                    stuck.push(waiter);
                }
            }
            if stuck.len() == before {
                break;
            }
        }
    });
    (0..world.cpus() as u32).map(Cpu::new).all(|cpu| stuck.contains(&cpu) || world.inspect(cpu).ended)
}

fn report(ledger: &Ledger, world: &World<'_>, dead: &[Cpu]) -> Report {
    let balance = ledger.balance();
    let counters = world.counters();
    let posts_run = workload::take_posts_run();
    let books = &ledger.posts;
    let queued = books.queued.load(Relaxed);
    // Only a dead CPU may keep posts.
    let posts_wrong =
        if dead.is_empty() { queued.abs_diff(posts_run) } else { posts_run.saturating_sub(queued) };
    // Open calls are those of dead callers, and those claimed by the dead.
    let overdue = OVERDUE.with_borrow(|overdue| {
        let live = |cpu: &&Cpu| !dead.contains(cpu) && !world.inspect(**cpu).ended;
        overdue.keys().filter(live).count() as u64
    });
    let excusable = if dead.is_empty() { 0 } else { balance.open };
    let overdue = overdue.min(excusable);
    let resent = world.mailbox_counters(|counters| counters.rings_repeated.get());
    Report {
        calls: balance.completed + balance.told + overdue,
        completed: balance.completed,
        told: balance.told + overdue,
        overdue: overdue + balance.left_claimed,
        orphaned: excusable - overdue,
        unreconciled: balance.broken + (balance.open - excusable) + ledger.wrong.load(Relaxed) + posts_wrong,
        posts: queued,
        posts_merged: books.merged.load(Relaxed),
        posts_run,
        ipis: Ipis {
            sent: counters.ipis_sent,
            taken: counters.taken[RING_VECTOR as usize],
            lost: counters.ipis_lost,
            resent,
        },
        virtual_time: world.time().since(Instant::default()),
    }
}
