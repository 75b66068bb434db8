//! Campaigns: random workloads under random faults on a simulated machine, every call reconciled; and
//! [crashes] in the middle of them.

use core::time::Duration;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use smpcall::Diagnosis;
use smpcall_local_apic::Routing;
use smpcall_machine::{Cpu, Instant, Machine as _};

use crate::faults::{Fault, Filter, Probability};
use crate::interrupt::InterruptFrame;
use crate::kernel::{Calls, Hooks};
use crate::machine::{RING_VECTOR, SimMachine};
use crate::{Config, ConfigError, RunEnd, Trace, World};

mod churn;
pub mod crashes;
mod errands;
mod ledger;
mod workload;

pub use churn::{Hotplug, Rendezvous};
pub use errands::Errands;
pub use workload::{ParseWorkloadError, Workload};

use churn::Churn;
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
    /// What the CPUs do beside calls.
    pub workload: Workload,
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
    /// Under way on CPUs that died or were fenced as callers: nobody is left to be told.
    pub orphaned: u64,
    /// Everything that does not add up: run twice, run and told otherwise, wrong CPU or data, posts lost, callbacks out of
    /// order, a CPU that serves in a rendezvous.
    pub unreconciled: u64,
    /// What became of the posts.
    pub posts: Errands,
    /// What became of the deferred work.
    pub work: Errands,
    /// How often CPUs came and went.
    pub hotplug: Hotplug,
    /// What became of the rendezvous.
    pub rendezvous: Rendezvous,
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
        self.posts.add(&other.posts);
        self.work.add(&other.work);
        self.hotplug.add(&other.hotplug);
        self.rendezvous.add(&other.rendezvous);
        self.ipis.sent += other.ipis.sent;
        self.ipis.taken += other.ipis.taken;
        self.ipis.lost += other.ipis.lost;
        self.ipis.resent += other.ipis.resent;
        self.virtual_time += other.virtual_time;
    }

    /// All that was asked for: calls, posts, work, CPUs to come or go, rendezvous.
    pub const fn operations(&self) -> u64 {
        let Hotplug { ups, downs, fenced, refused, unfinished } = self.hotplug;
        let Rendezvous { run, backed_out, refused: not_begun } = self.rendezvous;
        let whole_machine = ups + downs + fenced + refused + unfinished + run + backed_out + not_begun;
        self.calls + self.orphaned + self.posts.asked() + self.work.asked() + whole_machine
    }
}

/// The routing that a machine of this size would have: logical flat up to 8 CPUs, else x2APIC clusters.
pub fn default_routing(cpus: usize) -> Routing {
    if cpus <= 8 { Routing::Flat } else { Routing::X2ApicCluster }
}

thread_local! {
    /// Who waits for whom although the deadline has passed, because the target has claimed the call.
    static OVERDUE: RefCell<BTreeMap<Cpu, Cpu>> = const { RefCell::new(BTreeMap::new()) };
    /// The CPUs that were fenced, once for each time.
    static FENCED: RefCell<Vec<Cpu>> = const { RefCell::new(Vec::new()) };
}

fn note_overdue(target: Option<Cpu>, _: &Diagnosis) {
    if let Some(target) = target {
        OVERDUE.with_borrow_mut(|overdue| overdue.insert(SimMachine::current_cpu(), target));
    }
}

/// A call of this CPU has ended: it does not wait for that target any more. If an outer one does, it says so again.
fn forget_overdue() {
    forget_overdue_of(SimMachine::current_cpu());
}

fn forget_overdue_of(cpu: Cpu) {
    OVERDUE.with_borrow_mut(|overdue| overdue.remove(&cpu));
}

fn note_fenced(cpu: Cpu) {
    FENCED.with_borrow_mut(|fenced| fenced.push(cpu));
}

/// The CPU that this fault stops for ever, or may.
fn dead_cpu(fault: &Fault) -> Option<Cpu> {
    match *fault {
        // Whose deadlines never pass may wait for ever.
        Fault::WedgeInNmi { cpu, duration: None, .. } | Fault::ClockStops { cpu, duration: None, .. } => {
            Some(cpu)
        }
        _ => fault.dead_cpu(),
    }
}

/// The handler of rings, with deferred work at its end.
fn handle_ring(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    Calls::handle_ring();
    crashes::point(crashes::Context::Interrupt);
    Calls::exit_interrupt();
}

/// The end of a tick.
fn end_of_tick(_: &InterruptFrame) {
    Calls::exit_interrupt();
}

/// How long the machine runs between two looks at whether it is done.
const SLICE: Duration = Duration::from_millis(20);
/// How many slices without a new call mean that nothing will happen any more.
const PATIENCE: u32 = 500;
/// For so many more, if nobody does anything any more, posts are waited for.
const SLICES_FOR_POSTS: u32 = 10;
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
    let dead: Vec<Cpu> = faults.iter().filter_map(dead_cpu).collect();
    let mut config = Config::new(options.cpus, options.routing, options.seed);
    config.faults = faults;
    config.trace = trace;

    let ledger = Ledger::new(usize::try_from(options.calls).unwrap_or(usize::MAX));
    let plan = plan(&ledger, options, dead.is_empty(), 1);
    let hooks = Hooks { overdue: Some(note_overdue), ..Hooks::default() };
    let mut world = machine(&config, options.workload, hooks, &plan)?;
    for cpu in 0..options.cpus as u32 {
        world.spawn(Cpu::new(cpu), || plan.run());
    }

    let mut until = Instant::default();
    let (mut last_begun, mut idle) = (0, 0);
    loop {
        until = until.plus(SLICE);
        // A CPU that went offline is not waited for, nor is what it does when it comes again.
        let end = if options.workload.changes_cpus() { world.run_on(until) } else { world.run(until) };
        if end != RunEnd::TimeLimit || all_done(&world, &dead) {
            break;
        }
        idle = if ledger.has_begun() == last_begun { idle + 1 } else { 0 };
        last_begun = ledger.has_begun();
        if idle > PATIENCE {
            break;
        }
    }
    // The ticks find the posts that nobody waits for; on a CPU that is stopped for a time, afterwards.
    for _ in 0..SLICES_FOR_POSTS {
        world.run_on(world.time().plus(SLICE));
        if errands::have_ended() {
            break;
        }
    }
    let report = report(&plan, &world, &dead);
    Ok((report, world.trace()))
}

/// With `haste`, what comes beside calls comes so many times as often.
fn plan<'a>(ledger: &'a Ledger, options: &Options, patient: bool, haste: u64) -> Plan<'a> {
    Plan {
        ledger,
        cpus: options.cpus as u64,
        workload: options.workload,
        patient,
        longest_closure: LONGEST_CLOSURE,
        churn: Churn::new(haste),
    }
}

/// A machine for a workload, and empty books. Its CPUs have no programs yet, except for what those do that are started.
fn machine<'p>(
    config: &Config,
    workload: Workload,
    mut hooks: Hooks,
    plan: &'p Plan<'p>,
) -> Result<World<'p>, ConfigError> {
    OVERDUE.with_borrow_mut(BTreeMap::clear);
    FENCED.with_borrow_mut(Vec::clear);
    errands::begin_books(config.cpus);
    churn::begin_callbacks(config.cpus, &config.not_started);
    hooks.callbacks = &churn::CALLBACKS;
    if workload.work {
        hooks.tick = Some(end_of_tick);
    }
    let mut world = World::with_kernel(config, hooks)?;
    if workload.work {
        world.set_handler(RING_VECTOR, handle_ring);
    }
    world.on_start_up(|_, _| plan.start());
    // SAFETY: when the machine is dropped, its mailboxes are emptied; the posts that live for ever are on the heap, and so
    // is what is owned. Nothing on a CPU's stack is used or dropped by anybody else.
    unsafe { world.forget_programs() };
    Ok(world)
}

/// The CPUs that are dead, and those that wait for a claimed call that a dead one will not finish.
fn stuck(dead: &[Cpu]) -> Vec<Cpu> {
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
                break stuck;
            }
        }
    })
}

/// Whether every CPU has ended its program, is offline, dead, or waits for a claimed call that a dead one will not finish.
fn all_done(world: &World<'_>, dead: &[Cpu]) -> bool {
    let stuck = stuck(dead);
    (0..world.cpus() as u32)
        .map(Cpu::new)
        .all(|cpu| stuck.contains(&cpu) || !churn::is_busy(cpu) || world.inspect(cpu).waits_for_start_up)
}

fn report(plan: &Plan<'_>, world: &World<'_>, dead: &[Cpu]) -> Report {
    let ledger = plan.ledger;
    let fenced = FENCED.take();
    let stuck = stuck(dead);
    // A controller that died while it fenced a CPU has left that one reset, and its calls as they were. What a dead boot CPU
    // has not taken over from parked ones is lost.
    let boot_cpu_died = dead.contains(&Cpu::new(0));
    let is_dead =
        |cpu: Cpu| dead.contains(&cpu) || churn::is_busy(cpu) && world.inspect(cpu).waits_for_start_up;
    let died = |cpu: Cpu| is_dead(cpu) || fenced.contains(&cpu) || boot_cpu_died && world.inspect(cpu).parked;
    let balance = ledger.balance(is_dead, |cpu| stuck.contains(&cpu));
    let deaths = (dead.len() + fenced.len()) as u64;
    let (posts, work, errands_wrong) = errands::balance_books(died, deaths);
    let counters = world.counters();
    let resent = world.mailbox_counters(|counters| counters.rings_repeated.get());
    let wrong = ledger.wrong.load(Relaxed) + churn::wrong_callbacks() + world.boot_cpu_inits();
    Report {
        calls: balance.completed + balance.told,
        completed: balance.completed,
        told: balance.told,
        overdue: balance.overdue,
        orphaned: balance.orphaned,
        unreconciled: balance.broken + wrong + errands_wrong,
        posts,
        work,
        hotplug: plan.churn.hotplug(),
        rendezvous: plan.churn.rendezvous(),
        ipis: Ipis {
            sent: counters.ipis_sent,
            taken: counters.taken[RING_VECTOR as usize],
            lost: counters.ipis_lost,
            resent,
        },
        virtual_time: world.time().since(Instant::default()),
    }
}
