//! CPUs that come, go, die and stop for each other while all others go on: what a campaign's CPUs do beside calls.

use core::time::Duration;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use smpcall::{CallError, Callback, Cpu, HotplugError, Life, Refused, RendezvousError};
use smpcall_machine::{InterruptsOff, Machine};

use super::crashes::{self, Context};
use super::errands;
use super::ledger::Ledger;
use super::workload::Plan;
use crate::SimMachine;
use crate::kernel::Calls;
use crate::machine::SimCpuSet;
use crate::program::{self, random};

/// A CPU leaves its stack behind when it is started again, and Linux maps only so many: no more CPUs are taken down than
/// this.
const MOST_DEPARTURES: u64 = 10_000;

/// The longest pause between two operations, on a machine of 16 CPUs (nanoseconds).
const PAUSE: u64 = 4_000;
/// How many operations there are between two long pauses of a larger one, on average.
const BURST: u64 = 8;
/// A CPU that pauses for long looks so often whether it was asked to go (nanoseconds).
const IDLE_LOOP: u64 = 100_000;

/// How often the CPUs of a campaign came and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hotplug {
    /// CPUs brought up.
    pub ups: u64,
    /// CPUs taken down.
    pub downs: u64,
    /// CPUs declared dead, and fenced.
    pub fenced: u64,
    /// Not done, and all as it was before: by the state of the CPU, a callback, a deadline, or because somebody else was at it.
    pub refused: u64,
    /// Left unfinished at the deadline; the next one on this CPU goes on from there.
    pub unfinished: u64,
}

impl Hotplug {
    /// Adds the figures of others.
    pub fn add(&mut self, other: &Self) {
        self.ups += other.ups;
        self.downs += other.downs;
        self.fenced += other.fenced;
        self.refused += other.refused;
        self.unfinished += other.unfinished;
    }
}

/// What became of the rendezvous of a campaign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rendezvous {
    /// The closure ran once on each CPU that was to run it, and nobody served meanwhile.
    pub run: u64,
    /// Given up at the deadline: it ran nowhere.
    pub backed_out: u64,
    /// Not begun: a CPU was offline, or hotplug or another one was under way.
    pub refused: u64,
}

impl Rendezvous {
    /// Adds the figures of others.
    pub fn add(&mut self, other: &Self) {
        self.run += other.run;
        self.backed_out += other.backed_out;
        self.refused += other.refused;
    }
}

/// The books of all that.
#[derive(Default)]
pub(super) struct Churn {
    ups: AtomicU64,
    downs: AtomicU64,
    fenced: AtomicU64,
    refused: AtomicU64,
    unfinished: AtomicU64,
    run: AtomicU64,
    backed_out: AtomicU64,
    not_begun: AtomicU64,
    /// The CPU that is at it, + 1, or 0: most others leave it alone then.
    at_it: AtomicU32,
    /// What `stir` does comes this many times as often: in short runs.
    haste: u64,
}

impl Churn {
    pub(super) fn new(haste: u64) -> Self {
        Self { haste, ..Self::default() }
    }

    pub(super) fn hotplug(&self) -> Hotplug {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Hotplug {
            ups: read(&self.ups),
            downs: read(&self.downs),
            fenced: read(&self.fenced),
            refused: read(&self.refused),
            unfinished: read(&self.unfinished),
        }
    }

    pub(super) fn rendezvous(&self) -> Rendezvous {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Rendezvous {
            run: read(&self.run),
            backed_out: read(&self.backed_out),
            refused: read(&self.not_begun),
        }
    }
}

/// What the callbacks have done for a CPU.
#[derive(Clone, Copy)]
struct Done {
    prepared: bool,
    started: bool,
    online: bool,
}

thread_local! {
    static DONE: RefCell<Vec<Done>> = const { RefCell::new(Vec::new()) };
    /// Which CPUs are in the middle of their program.
    static BUSY: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) };
    /// Callbacks that came out of order.
    static WRONG: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

/// A new machine, whose CPUs are all online but these.
pub(super) fn begin_callbacks(cpus: usize, offline: &[Cpu]) {
    let done = |cpu| {
        let is_online = !offline.contains(&Cpu::new(cpu));
        Done { prepared: is_online, started: is_online, online: is_online }
    };
    DONE.set((0..cpus as u32).map(done).collect());
    BUSY.set(vec![false; cpus]);
    WRONG.set(0);
}

/// How many callbacks were called out of order, or twice.
pub(super) fn wrong_callbacks() -> u64 {
    WRONG.get()
}

/// One of those that are offline, as far as the callbacks say: not an operation.
fn random_away() -> Option<Cpu> {
    let away: Vec<u32> = DONE
        .with_borrow(|all| (0..).zip(all).filter(|(_, done)| !done.prepared).map(|(cpu, _)| cpu).collect());
    let nth = random(away.len() as u64) as usize;
    away.get(nth).map(|&cpu| Cpu::new(cpu))
}

/// A CPU begins its program, or will not go on with it.
pub(super) fn set_busy(cpu: Cpu, busy: bool) {
    BUSY.with_borrow_mut(|all| all[cpu.index()] = busy);
}

/// Whether a CPU is in the middle of its program.
pub(super) fn is_busy(cpu: Cpu) -> bool {
    BUSY.with_borrow(|all| all[cpu.index()])
}

/// Whether a part refuses this time; if not, what it does is noted, after what was there before was checked.
fn part(
    cpu: Cpu,
    context: Context,
    done: fn(&mut Done) -> &mut bool,
    becomes: bool,
    may_refuse: bool,
) -> Result<(), Refused> {
    crashes::point(context);
    if may_refuse && random(16) == 0 {
        return Err(Refused(1));
    }
    DONE.with_borrow_mut(|all| {
        if core::mem::replace(done(&mut all[cpu.index()]), becomes) == becomes {
            WRONG.set(WRONG.get() + 1);
        }
    });
    Ok(())
}

/// What is prepared is taken back once; what was started is stopped once, or the CPU was fenced.
pub(super) static CALLBACKS: [Callback; 1] = [Callback {
    name: "campaign",
    prepare: Some(|cpu| part(cpu, Context::Prepare, |done| &mut done.prepared, true, true)),
    starting: Some(|cpu| part(cpu, Context::Starting, |done| &mut done.started, true, true)),
    online: Some(|cpu| part(cpu, Context::Online, |done| &mut done.online, true, false)),
    offline: Some(|cpu| part(cpu, Context::Offline, |done| &mut done.online, false, true)),
    dying: Some(|cpu| {
        set_busy(cpu, false);
        // It cannot refuse.
        let _ = part(cpu, Context::Dying, |done| &mut done.started, false, false);
    }),
    dead: Some(|cpu| {
        let _ = part(cpu, Context::Dead, |done| &mut done.prepared, false, false);
        DONE.with_borrow_mut(|all| (all[cpu.index()].started, all[cpu.index()].online) = (false, false));
    }),
}];

impl Plan<'_> {
    /// Between two calls: what is not in the workload takes no time and draws no number.
    pub(super) fn stir(&self) {
        if self.workload.work {
            if one_in(8) {
                errands::defer(self.random_cpu(), self);
            }
            Calls::run_work();
        }
        if self.workload.changes_cpus() {
            Self::idle();
        }
        if self.workload.hotplug && one_in(600 / self.churn.haste) {
            self.change_cpus();
        }
        // Not in haste: it keeps everybody else from coming and going for 10 ms.
        if self.workload.fencing && one_in(4_000 * self.cpus.div_ceil(256)) {
            self.alone(|| self.fence(self.random_cpu()));
        }
        // All take part, so on large machines it is a larger part of the work.
        if self.workload.rendezvous && one_in(300 * self.cpus.div_ceil(256) / self.churn.haste) {
            self.alone(|| self.meet());
        }
    }

    /// Between two operations. If CPUs come and go, or stop for each other, there are long pauses on large machines, and bursts
    /// between them: the whole machine calls about as often as one of 16 CPUs, or else it would have made all its calls before
    /// the first CPU has come.
    pub(super) fn pause(&self) {
        let stirs = (self.workload.changes_cpus() || self.workload.rendezvous) && self.churn.haste == 1;
        let scale = self.cpus / 16;
        if stirs && scale > 1 && one_in(BURST) {
            let longest = BURST * PAUSE * scale;
            let mut left = random(longest);
            while left > IDLE_LOOP {
                program::advance(Duration::from_nanos(IDLE_LOOP));
                left -= IDLE_LOOP;
                Self::idle();
            }
        }
        program::advance(Duration::from_nanos(random(PAUSE)));
    }

    /// Where an idle loop would be: who was asked to go offline goes.
    fn idle() {
        let mut guard = InterruptsOff::new();
        if Calls::may_halt(&mut guard) {
            Calls::die_if_asked(&mut guard);
        }
    }

    /// Mostly only if nobody else is at it: to wait for each other is only a part of what there is to try.
    fn alone(&self, what: impl FnOnce()) {
        let at_it = &self.churn.at_it;
        if at_it.load(Relaxed) == 0 {
            at_it.store(SimMachine::current_cpu().number() + 1, Relaxed);
            what();
            at_it.store(0, Relaxed);
        } else if one_in(8) {
            what();
        }
    }

    fn change_cpus(&self) {
        // Every second time one that can come: on a large machine chance alone would hardly ever find it.
        let away = if one_in(2) { random_away() } else { None };
        let cpu = away.unwrap_or_else(|| self.random_cpu());
        if self.churn.downs.load(Relaxed) + self.churn.fenced.load(Relaxed) >= MOST_DEPARTURES {
            return;
        }
        self.alone(|| {
            if Calls::is_online(cpu) {
                let down = Calls::cpu_down(cpu, Duration::from_micros(random(3_000)));
                self.note(&self.churn.downs, down);
            } else {
                // Between INIT and the start-up message there is a delay, and before both there may be a fence, which lasts
                // 10 ms: mostly time enough, and sometimes just not.
                let limit = if one_in(8) {
                    program::start_up_delays().after_init + Duration::from_nanos(random(20_000))
                } else {
                    program::start_up_delays().after_init * 2 + Duration::from_millis(15)
                };
                self.note(&self.churn.ups, Calls::cpu_up(cpu, limit));
            }
        });
    }

    /// Declares a CPU dead, whether it lives or not.
    fn fence(&self, cpu: Cpu) {
        if self.churn.downs.load(Relaxed) + self.churn.fenced.load(Relaxed) >= MOST_DEPARTURES {
            return;
        }
        // SAFETY: 1. What closures touch - the books, a number of their caller's - copes with being left at any point.
        // 2. Tasks never migrate.
        let declare = |limit| unsafe { Calls::declare_dead(cpu, limit) };
        let mut declared = declare(Duration::from_nanos(random(1_000)));
        for _ in 0..10 {
            if declared != Err(HotplugError::Unfinished(Life::Fenced)) {
                break;
            }
            // Others have yet to finish calls that it had made.
            declared = declare(Duration::from_millis(5));
        }
        if declared == Ok(()) {
            if self.churn.at_it.load(Relaxed) == cpu.number() + 1 {
                self.churn.at_it.store(0, Relaxed);
            }
            self.ledger.orphan_calls_of(cpu);
            set_busy(cpu, false);
            errands::forget_work_of(cpu);
            super::forget_overdue_of(cpu);
            super::note_fenced(cpu);
        }
        self.note(&self.churn.fenced, declared);
    }

    fn note(&self, done: &AtomicU64, result: Result<(), HotplugError>) {
        match result {
            Ok(()) => Ledger::count(done),
            Err(HotplugError::Unfinished(_)) => Ledger::count(&self.churn.unfinished),
            Err(_) => Ledger::count(&self.churn.refused),
        }
    }

    /// A rendezvous of all, in which some run something.
    fn meet(&self) {
        let mut runners = SimCpuSet::EMPTY;
        match random(4) {
            0 => {
                runners.insert(SimMachine::current_cpu());
            }
            1 => {
                for _ in 0..=random(4) {
                    runners.insert(self.random_cpu());
                }
            }
            _ => runners.extend((0..self.cpus as u32).map(Cpu::new).filter(|&cpu| Calls::is_online(cpu))),
        }
        let (expected, wrong) = (runners.len(), AtomicU32::new(0));
        let ran: Vec<AtomicU8> = (0..self.cpus).map(|_| AtomicU8::new(0)).collect();
        let closure = |cpu: Cpu| {
            errands::stop_for(expected);
            ran[cpu.index()].fetch_add(1, Relaxed);
            let mut guard = InterruptsOff::new();
            if SimMachine::current_cpu() != cpu || guard.were_enabled() {
                wrong.fetch_add(1, Relaxed);
            }
            crashes::point(Context::Rendezvous);
            if random(8) == 0 {
                let target = self.random_cpu();
                let caller = Calls::within(Duration::from_micros(10)).with_interrupts_off(&mut guard);
                if target != cpu && caller.call(target, || ()) != Err(CallError::InRendezvous) {
                    wrong.fetch_add(1, Relaxed);
                }
                if self.workload.posts {
                    errands::post_owned(target);
                }
            }
            self.work();
            errands::has_run();
        };
        // They come one after the other's look: the more, the longer.
        let limit = Duration::from_micros(random(2_000 * self.cpus.div_ceil(256)));
        let result = if random(4) == 0 {
            let mut guard = InterruptsOff::new();
            Calls::within(limit).with_interrupts_off(&mut guard).rendezvous(&runners, closure)
        } else {
            Calls::within(limit).rendezvous(&runners, closure)
        };
        let has_run = result.is_ok();
        let as_told = (0..).zip(&ran).all(|(number, runs)| {
            let expected = has_run && runners.contains(Cpu::new(number));
            runs.load(Relaxed) == u8::from(expected)
        });
        self.ledger.must(as_told && wrong.load(Relaxed) == 0);
        Ledger::count(match result {
            Ok(()) => &self.churn.run,
            Err(RendezvousError::Late { .. }) => &self.churn.backed_out,
            Err(RendezvousError::Panicked(_)) => &self.ledger.wrong,
            Err(_) => &self.churn.not_begun,
        });
    }

    /// Brings up one CPU, whatever becomes of it.
    pub(super) fn bring_up(&self, cpu: Cpu) {
        self.note(&self.churn.ups, Calls::cpu_up(cpu, Duration::from_millis(15)));
    }

    /// The last act of the boot CPU, which never goes: takes over what CPUs have left that went after their controller's
    /// deadline, when nobody else does.
    pub(super) fn tidy(&self) {
        let others = || (1..self.cpus as u32).map(Cpu::new);
        let mut patience = 300;
        while patience > 0 && others().any(is_busy) {
            program::advance(Duration::from_micros(100));
            patience -= 1;
        }
        for cpu in others() {
            if let Some(Life::Dying | Life::Parked) = Calls::life(cpu) {
                self.note(&self.churn.downs, Calls::cpu_down(cpu, Duration::from_millis(5)));
            }
        }
    }

    /// What a CPU does that was started.
    pub(super) fn start(&self) {
        if program::enable_local_apic().is_err() {
            self.ledger.must(false);
            return;
        }
        let mut guard = InterruptsOff::new();
        Calls::start_here(&mut guard);
        drop(guard);
        SimMachine::restore_interrupts(true);
        self.run();
    }
}

/// True once in so many times, by chance.
fn one_in(times: u64) -> bool {
    random(times.max(1)) == 0
}
