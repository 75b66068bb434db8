//! Crashes in the middle of a campaign: at a random instant, on a random CPU, in a random context, often on two CPUs at
//! once, and with CPUs that do not answer. Each ends within its bound, and every CPU is named (law L7).
//!
//! An NMI whose handler crashes stands for the crash at any instant: it comes between any two operations, those of the
//! protocol with interrupts disabled included. The other contexts crash at places of the workload.

use core::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use rand_core::Rng as _;
use rand_pcg::Pcg32;
use smpcall::{CrashStop as _, Life};
use smpcall_local_apic::{Interrupt, Mode};
use smpcall_machine::{Cpu, Instant, Machine as _};

use super::ledger::Ledger;
use super::{Options, Workload, machine, plan};
use crate::faults::{Fault, Filter};
use crate::interrupt::InterruptFrame;
use crate::kernel::{Calls, Hooks};
use crate::machine::{SimCpuSet, SimMachine, send_interrupt};
use crate::state::expect_current;
use crate::stopping::{self, CrashOutcome, check_crash, crash};
use crate::{Activity, Config, ConfigError, CpuReport, World, program};

/// Where a CPU crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// In an NMI handler, which has interrupted anything.
    Nmi,
    /// In a task, between two calls.
    Task,
    /// In the handler of rings.
    Interrupt,
    /// In a served closure.
    Closure,
    /// In a post.
    Post,
    /// In deferred work.
    Work,
    /// In the closure of a rendezvous.
    Rendezvous,
    /// In the hotplug callback `prepare`.
    Prepare,
    /// In the hotplug callback `starting`.
    Starting,
    /// In the hotplug callback `online`.
    Online,
    /// In the hotplug callback `offline`.
    Offline,
    /// In the hotplug callback `dying`.
    Dying,
    /// In the hotplug callback `dead`.
    Dead,
}

impl Context {
    /// Its name, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nmi => "nmi",
            Self::Task => "task",
            Self::Interrupt => "interrupt",
            Self::Closure => "closure",
            Self::Post => "post",
            Self::Work => "work",
            Self::Rendezvous => "rendezvous",
            Self::Prepare => "prepare",
            Self::Starting => "starting",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Dying => "dying",
            Self::Dead => "dead",
        }
    }
}

/// What keeps a CPU from crashing when it is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// It stands in the run stage of a rendezvous with interrupts disabled, and one that has died there keeps all (see the
    /// caveats of [`rendezvous`](smpcall::Caller::rendezvous)).
    Rendezvous,
    /// It serves a closure that waits for a call of its own, which a CPU has claimed that has died since (law L4's exception).
    ClaimedCall,
    /// It was declared dead, and fenced.
    Fenced,
}

impl Kept {
    /// Its name, in small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rendezvous => "rendezvous",
            Self::ClaimedCall => "claimed-call",
            Self::Fenced => "fenced",
        }
    }

    /// Why this CPU has not crashed; none if nothing that is known has kept it. Only what has died may keep it so long.
    fn why(report: &CpuReport, somebody_died: bool) -> Option<Self> {
        if report.waits_for_start_up || report.counters.resets > 0 {
            return Some(Self::Fenced);
        }
        let waits = report.activity == Activity::Waiting && !report.interrupts_enabled && somebody_died;
        let file = report.waits.last().filter(|_| waits)?.source.file();
        if file.ends_with("rendezvous.rs") {
            Some(Self::Rendezvous)
        } else if ["pending.rs", "many.rs", "serve.rs"].iter().any(|name| file.ends_with(name)) {
            Some(Self::ClaimedCall)
        } else {
            None
        }
    }
}

/// What became of many crashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crashes {
    /// How many machines crashed.
    pub runs: u64,
    /// CPUs that have saved their registers, over all runs.
    pub saved: u64,
    /// CPUs that have not, each of them named by the winner.
    pub missing: u64,
    /// CPUs that were offline, or on their way there or from there.
    pub offline: u64,
    /// CPUs that crashed too, and lost.
    pub lost: u64,
    /// Further machines, in which the fault that stops a CPU for ever met the one that had just crashed and won. No law can hold
    /// there: nobody else may take the place of a winner of whom nobody knows whether it goes on.
    pub stopped: u64,
    /// Of the runs, those in which nobody had come to crash in time, so that somebody was sent an NMI from outside of the
    /// machine that crashed; and what had kept the CPU that was to crash.
    pub injected: BTreeMap<Kept, u64>,
    /// Winners that crashed again in their crash stop.
    pub again: u64,
    /// The longest time from a crash to where its winner went on.
    pub longest: Duration,
    /// Where the first crash of each run was.
    pub contexts: BTreeMap<Context, u64>,
    /// Runs in which the law was broken.
    pub broken: u64,
    /// The seed of the first of these, and what did not hold.
    pub first_broken: Option<(u64, String)>,
}

/// A crash that is to happen.
#[derive(Clone, Copy, Debug)]
struct Trigger {
    context: Context,
    /// The CPU; none for the first one that gets into this context.
    cpu: Option<Cpu>,
    at: Instant,
}

/// How a winner went on.
struct End {
    saved: SimCpuSet,
    missing: SimCpuSet,
    again: bool,
    at: Instant,
    lives: Vec<Life>,
}

thread_local! {
    /// Whether there are any: looked at wherever a CPU may crash.
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static TRIGGERS: RefCell<Vec<Trigger>> = const { RefCell::new(Vec::new()) };
    /// Who crashed where and when, in order.
    static CRASHED: RefCell<Vec<(Cpu, Context, Instant)>> = const { RefCell::new(Vec::new()) };
    static ENDS: RefCell<Vec<End>> = const { RefCell::new(Vec::new()) };
}

/// A CPU is in this context: it crashes if it is to. Otherwise nothing happens, in no time.
pub(super) fn point(context: Context) {
    if ARMED.get() && is_hit(context) {
        crash();
    }
}

/// True time on the running CPU, which a fault may keep from its clock. Not an operation.
fn true_time() -> Instant {
    Instant::from_nanos(expect_current().with(|machine| machine.cpu().time))
}

fn is_hit(context: Context) -> bool {
    let (me, now) = (SimMachine::current_cpu(), true_time());
    let hit = TRIGGERS.with_borrow_mut(|triggers| {
        let is_hit = |trigger: &Trigger| {
            trigger.context == context && trigger.cpu.is_none_or(|cpu| cpu == me) && now >= trigger.at
        };
        let hit = triggers.iter().position(is_hit)?;
        Some(triggers.swap_remove(hit))
    });
    if hit.is_some() {
        note_crash(context);
    }
    hit.is_some()
}

fn note_crash(context: Context) {
    CRASHED.with_borrow_mut(|crashed| crashed.push((SimMachine::current_cpu(), context, true_time())));
}

/// The handler of NMIs: as the kernel's, but it may crash.
fn handle_nmi(frame: InterruptFrame) {
    if Calls::handle_stop(&stopping::interrupted(&frame)) {
        return;
    }
    point(Context::Nmi);
    crate::kernel::handle_nmi(frame);
}

#[allow(clippy::needless_pass_by_value, reason = "a hook is given the crash")]
fn winner_goes_on(crash: smpcall::Crash<SimMachine>) {
    let at = true_time();
    let lives = (0..program::cpus() as u32).filter_map(|cpu| Calls::life(Cpu::new(cpu))).collect();
    let end = End { saved: crash.saved, missing: crash.missing, again: crash.crashed_again, at, lives };
    ENDS.with_borrow_mut(|ends| ends.push(end));
    program::stop();
}

/// A crash happens up to so long after the CPUs have begun to work.
const LONGEST_RUN: Duration = Duration::from_micros(200);
/// A context that nobody has got into by then is given up: the CPU that waits for it crashes itself.
const PATIENCE: Duration = Duration::from_micros(400);
/// So much later at the latest somebody has crashed who is kept by nothing but interrupts, calls with deadlines and faults that
/// end.
const GRACE: Duration = Duration::from_millis(500);
/// How long before a crash a CPU that is brought up is sent its first start-up message, at most.
const COMING: Duration = Duration::from_micros(20);
/// Runs a campaign so long, if nobody crashes before.
const LIMIT: Duration = Duration::from_secs(20);
/// What a winner may need beyond its limit, by the clock of the machine: the NMI handler or callback that it is in, interrupts
/// that it serves, one send.
const MARGIN: Duration = Duration::from_millis(120);
/// If the winner's clock stands still, or its interrupt controller: its bound is one of looks then, which take a time each.
const UNCLOCKED: u32 = 5;

/// One run that crashes: all that its seed decides.
struct Scene {
    config: Config,
    /// When the CPUs begin to work.
    begins: Duration,
    /// Who comes up just then, and when its controller begins with that.
    comes: Option<(Cpu, Duration)>,
    /// How long after that the first crash happens.
    after: Duration,
    triggers: Vec<Trigger>,
    /// Sends the NMIs that crash, and crashes itself in the end; no fault stops it.
    saboteur: Cpu,
    /// CPUs that a fault may keep from saving.
    unable: SimCpuSet,
    /// Whose clock or interrupt controller stands still.
    unclocked: SimCpuSet,
    /// Whose interrupt controller is stuck.
    mute: SimCpuSet,
    /// How long faults stop the whole machine.
    pauses: Duration,
}

/// A random number below `limit`.
fn below(random: &mut Pcg32, limit: u64) -> u64 {
    ((u128::from(random.next_u64()) * u128::from(limit)) >> 64) as u64
}

/// Where a CPU may crash that does such work, besides NMI handlers.
fn contexts(workload: Workload, somebody_comes: bool) -> Vec<Context> {
    let mut contexts = vec![Context::Task, Context::Closure];
    if workload.posts {
        contexts.push(Context::Post);
    }
    if workload.work {
        // The handler that it crashes in is the one that runs work.
        contexts.extend([Context::Interrupt, Context::Work]);
    }
    if workload.rendezvous {
        contexts.push(Context::Rendezvous);
    }
    if workload.hotplug {
        contexts.extend([Context::Prepare, Context::Offline, Context::Dying, Context::Dead]);
        if somebody_comes {
            contexts.extend([Context::Starting, Context::Online].repeat(4));
        }
    }
    contexts
}

impl Scene {
    fn new(options: &Options, seed: u64) -> Self {
        let random = &mut Pcg32::new(seed, 0x6372_6173);
        let cpus = options.cpus as u64;
        let any = |random: &mut Pcg32| Cpu::new(below(random, cpus) as u32);
        let mut config = Config::new(options.cpus, options.routing, seed);
        let saboteur = any(random);
        let but_saboteur = |random: &mut Pcg32| Some(any(random)).filter(|&cpu| cpu != saboteur);
        if options.workload.hotplug {
            for _ in 0..2 {
                let cpu = any(random);
                if cpu.index() != 0 && cpu != saboteur && cpus > 2 && !config.not_started.contains(&cpu) {
                    config.not_started.push(cpu);
                }
            }
        }
        let somebody_comes = options.workload.hotplug && below(random, 4) == 0;
        let delay = config.start_up_delays.after_init;
        // Then the INIT is sent at the beginning, and there is work when the start-up message is.
        let begins = if somebody_comes { delay } else { Duration::ZERO };
        let after = Duration::from_nanos(below(random, LONGEST_RUN.as_nanos() as u64));
        let at = Instant::default().plus(begins + after);

        let contexts = contexts(options.workload, somebody_comes);
        let mut triggers = Vec::new();
        let number = if below(random, 3) == 0 { 2 } else { 1 };
        let at_once = below(random, 2) == 0;
        for nth in 0..number {
            let context = if number == 2 && at_once || below(random, 2) == 0 {
                Context::Nmi
            } else {
                contexts[below(random, contexts.len() as u64) as usize]
            };
            let cpu = matches!(context, Context::Nmi | Context::Task).then(|| any(random));
            let at = at.plus(Duration::from_nanos(nth * below(random, if at_once { 300 } else { 5_000 })));
            triggers.push(Trigger { context, cpu, at });
        }

        let coming = Duration::from_nanos(below(random, COMING.as_nanos() as u64));
        let comes_at = (begins + after).saturating_sub(delay + coming);
        let comes = config.not_started.first().filter(|_| somebody_comes).map(|&cpu| (cpu, comes_at));
        let mut scene = Self {
            config,
            begins,
            comes,
            after,
            triggers,
            saboteur,
            unable: SimCpuSet::EMPTY,
            mute: SimCpuSet::EMPTY,
            unclocked: SimCpuSet::EMPTY,
            pauses: Duration::ZERO,
        };
        let time = |random: &mut Pcg32| {
            let nanos = below(random, after.as_nanos() as u64 + 1);
            Instant::default().plus(begins + Duration::from_nanos(nanos))
        };
        scene.config.faults.clone_from(&options.faults);
        // With every second machine, so that the others show that nothing but a lost message keeps a CPU that lives.
        if options.drop.get() > 0.0 && seed.is_multiple_of(2) {
            let probability = options.drop;
            scene.config.faults.push(Fault::Drop { probability, filter: Filter::default() });
        }
        let mut faulty = SimCpuSet::EMPTY;
        for kind in 0..5 {
            if below(random, 6) != 0 {
                continue;
            }
            let (Some(cpu), at) = (but_saboteur(random), time(random)) else { continue };
            if faulty.contains(cpu) {
                continue;
            }
            faulty.insert(cpu);
            scene.config.faults.push(match kind {
                0 => Fault::Wedge { cpu, at, duration: None, takes_nmis: false },
                1 => Fault::Wedge { cpu, at, duration: None, takes_nmis: true },
                2 => Fault::WedgeInNmi { cpu, at, duration: None },
                3 => Fault::ClockStops { cpu, at, duration: None },
                _ if options.routing.mode() == Mode::XApic => Fault::IcrBusy { cpu, at, duration: None },
                _ => Fault::Wedge { cpu, at, duration: Some(Duration::from_millis(300)), takes_nmis: false },
            });
        }
        for fault in &scene.config.faults {
            match *fault {
                Fault::Wedge { cpu, takes_nmis: false, .. } | Fault::WedgeInNmi { cpu, .. } => {
                    scene.unable.insert(cpu);
                }
                Fault::ClockStops { cpu, .. } => {
                    scene.unclocked.insert(cpu);
                }
                Fault::IcrBusy { cpu, .. } => {
                    scene.unclocked.insert(cpu);
                    scene.mute.insert(cpu);
                }
                Fault::Pause { duration, .. } => scene.pauses += duration,
                _ => {}
            }
        }
        scene
    }

    /// What the saboteur does.
    fn sabotage(&self) {
        program::advance(self.begins);
        let started = true_time();
        let mut due: Vec<Trigger> = self.triggers.clone();
        due.sort_by_key(|trigger| trigger.at);
        for trigger in due {
            let now = true_time();
            if trigger.at > now {
                program::advance(trigger.at.since(now));
            }
            if let Trigger { context: Context::Nmi, cpu: Some(cpu), .. } = trigger {
                // One that is not sent is like one that is lost.
                let _ = send_interrupt(cpu, Interrupt::Nmi);
            }
        }
        while true_time().since(started) < self.after + PATIENCE {
            program::advance(Duration::from_micros(20));
        }
        note_crash(Context::Task);
        crash();
    }

    /// Nobody has crashed: has somebody do it. Returns what has kept the one that was to, or what is known of it if that is
    /// nothing that may.
    fn inject(&self, world: &mut World<'_>) -> Result<Kept, Box<CpuReport>> {
        let report = world.inspect(self.saboteur);
        let kept = Kept::why(&report, !self.unable.is_empty()).ok_or(Box::new(report));
        let takes_it = |&cpu: &Cpu| {
            let report = world.inspect(cpu);
            !self.unable.contains(cpu) && !report.parked && !report.waits_for_start_up
        };
        let others = (0..world.cpus() as u32).map(Cpu::new);
        if let Some(cpu) = core::iter::once(self.saboteur).chain(others).find(takes_it) {
            let at = Instant::default();
            TRIGGERS.set(vec![Trigger { context: Context::Nmi, cpu: Some(cpu), at }]);
            world.inject_nmi(cpu);
        }
        kept
    }
}

/// Runs so many machines that crash, with the seeds from that of the options on; calls `progress` after each of them. The
/// number of calls of the options does not count, nor do calls that a crash has interrupted: they are in the dump.
///
/// # Errors
/// If there cannot be such a machine, or the faults contradict each other.
///
/// # Panics
/// If a program panics, which would be a defect.
pub fn run(options: &Options, runs: u64, mut progress: impl FnMut(&Crashes)) -> Result<Crashes, ConfigError> {
    let mut sum = Crashes::default();
    let mut seed = options.seed;
    while sum.runs < runs {
        match run_one(options, seed, &mut sum)? {
            Ok(()) => sum.runs += 1,
            Err(Flaw::Stopped) => sum.stopped += 1,
            Err(Flaw::Broken(what)) => {
                sum.runs += 1;
                sum.broken += 1;
                sum.first_broken.get_or_insert((seed, what));
            }
        }
        seed = seed.wrapping_add(1);
        progress(&sum);
    }
    Ok(sum)
}

/// Why a run does not count as one that went well.
enum Flaw {
    /// See [`Crashes::stopped`].
    Stopped,
    Broken(String),
}

fn run_one(options: &Options, seed: u64, sum: &mut Crashes) -> Result<Result<(), Flaw>, ConfigError> {
    let scene = Scene::new(options, seed);
    TRIGGERS.set(scene.triggers.clone());
    CRASHED.take();
    ENDS.take();
    // More than are made until the crash.
    let ledger = Ledger::new(20_000.max(200 * options.cpus));
    // As in a campaign: nobody waits for ever for a CPU that may be dead. A short run, in which everything should happen.
    let patient = !scene.config.faults.iter().any(|fault| super::dead_cpu(fault).is_some());
    // On large machines everybody would be at it at once.
    let haste = (1_600 / options.cpus as u64).clamp(2, 100);
    let plan = plan(&ledger, options, patient, haste);
    let hooks = Hooks { crashed: Some(winner_goes_on), ..Hooks::default() };
    let mut world = machine(&scene.config, options.workload, hooks, &plan)?;
    world.set_nmi_handler(handle_nmi);
    for cpu in (0..options.cpus as u32).map(Cpu::new) {
        if scene.config.not_started.contains(&cpu) {
            continue;
        }
        let (plan, scene) = (&plan, &scene);
        world.spawn(cpu, move || {
            if cpu == scene.saboteur {
                scene.sabotage();
            }
            match scene.comes {
                // Somebody brings a CPU up meanwhile.
                Some((coming, at)) if cpu.index() == 0 => {
                    program::advance(at);
                    plan.bring_up(coming);
                }
                _ => program::advance(scene.begins),
            }
            plan.run();
        });
    }
    ARMED.set(true);
    world.run_on(Instant::default().plus(scene.begins + scene.after + PATIENCE + scene.pauses + GRACE));
    let kept = if CRASHED.with_borrow(Vec::is_empty) { Some(scene.inject(&mut world)) } else { None };
    if ENDS.with_borrow(Vec::is_empty) {
        world.run_on(Instant::default().plus(LIMIT));
    }
    // Those that have lost, or were stopped, park.
    world.run_on(world.time().plus(Duration::from_millis(1)));
    ARMED.set(false);
    let (crashed, ends) = (CRASHED.take(), ENDS.take());
    if ends.is_empty() && winner_stopped(&scene, &world, &crashed) {
        return Ok(Err(Flaw::Stopped));
    }
    let examined = match &kept {
        Some(Err(report)) => Err(format!("nobody has crashed, and it is not known why: {report:?}")),
        _ => examine(&scene, &world, &crashed, &ends, sum),
    };
    if let Some(Ok(kept)) = kept {
        *sum.injected.entry(kept).or_default() += 1;
    }
    Ok(examined.map_err(|what| {
        let crashed: Vec<String> = (crashed.iter())
            .map(|(cpu, context, at)| format!("{cpu} in {} at {} ns", context.name(), at.as_nanos()))
            .collect();
        let faults: Vec<String> = scene.config.faults.iter().map(ToString::to_string).collect();
        Flaw::Broken(format!("{what} (crashed: {}; faults: {})", crashed.join(", "), faults.join(",")))
    }))
}

/// Whether the winner of a crash stop that does not end is one that a fault stops for ever: of those that have crashed some are
/// stopped so, and all others have lost, because they have parked.
fn winner_stopped(scene: &Scene, world: &World<'_>, crashed: &[(Cpu, Context, Instant)]) -> bool {
    let is_stopped = |cpu: Cpu| scene.unable.contains(cpu) && world.inspect(cpu).wedged;
    crashed.iter().any(|&(cpu, ..)| is_stopped(cpu))
        && crashed.iter().all(|&(cpu, ..)| is_stopped(cpu) || world.inspect(cpu).parked)
}

/// What should hold of a machine that has crashed.
fn examine(
    scene: &Scene,
    world: &World<'_>,
    crashed: &[(Cpu, Context, Instant)],
    ends: &[End],
    sum: &mut Crashes,
) -> Result<(), String> {
    let Some(&(_, context, first)) = crashed.first() else { return Err("nobody has crashed".into()) };
    *sum.contexts.entry(context).or_default() += 1;
    let Some(end) = ends.last() else {
        let is_reset = crashed.iter().any(|(cpu, ..)| world.inspect(*cpu).counters.resets > 0);
        let why = if is_reset { ": the CPU that crashed has been reset by INIT" } else { "" };
        return Err(format!("nobody went on after the crash{why}"));
    };
    let able = able(scene, world, crashed, end);
    let outcome: CrashOutcome = check_crash(world, &able)?.ok_or("the crash has left no notes")?;

    let winner = Cpu::new(outcome.summary.winner);
    let lasted = ends[0].at.since(first);
    sum.longest = sum.longest.max(lasted);
    let limit = SimMachine::STOP_LIMIT;
    let clocked = !scene.unclocked.contains(winner);
    let bound = scene.pauses + MARGIN + if clocked { limit } else { limit * UNCLOCKED };
    if lasted > bound {
        return Err(format!(
            "the winner, {winner}, went on after {lasted:?}, and should after at most {bound:?}"
        ));
    }
    if ends.len() > 1 && !ends[1..].iter().all(|end| end.again) {
        return Err("two CPUs went on".into());
    }
    for (number, life) in (0..).zip(&end.lives) {
        let cpu = Cpu::new(number);
        let is_saved = end.saved.contains(cpu);
        if is_saved && end.missing.contains(cpu) {
            return Err(format!("{cpu} is said to have saved, and to be missing"));
        }
        if is_saved {
            sum.saved += 1;
        } else if end.missing.contains(cpu) {
            sum.missing += 1;
        } else if matches!(life, Life::Online | Life::Asked | Life::Up) {
            return Err(format!("{cpu} was {life:?}, and is neither saved nor missing"));
        } else {
            sum.offline += 1;
        }
    }
    sum.lost +=
        outcome.saved.iter().filter(|(stopped, _)| stopped.role == smpcall::vmcore::Role::Loser).count()
            as u64;
    sum.again += u64::from(end.again);
    Ok(())
}

/// The CPUs that nothing kept from saving their registers: online, alive, and reached. A winner that has crashed again waits
/// for nobody.
fn able(scene: &Scene, world: &World<'_>, crashed: &[(Cpu, Context, Instant)], end: &End) -> SimCpuSet {
    let mut able = SimCpuSet::EMPTY;
    if end.again {
        return able;
    }
    let counters = world.counters();
    // A winner whose interrupt controller is stuck reaches only those who had an NMI before.
    let winner_is_mute = crashed.iter().any(|&(cpu, ..)| scene.mute.contains(cpu));
    for (number, life) in (0..).zip(&end.lives) {
        let cpu = Cpu::new(number);
        let report = world.inspect(cpu);
        let is_online = matches!(life, Life::Online | Life::Asked | Life::Up);
        let was_reached = !winner_is_mute && counters.ipis_lost < SimMachine::STOP_ROUNDS.into()
            || report.counters.nmis_taken > 0;
        // One that was being fenced is reset, and answers no NMI: it is named.
        let is_reset = report.waits_for_start_up;
        if is_online && was_reached && !is_reset && !scene.unable.contains(cpu) {
            able.insert(cpu);
        }
    }
    able
}
