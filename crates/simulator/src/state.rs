//! The state of a simulated machine, and how code that runs on it finds it.
//!
//! Everything runs on one thread: the driver, or one CPU's coroutine, never two at once. They share the state
//! through a [`Shared`] and borrow it only between two points at which another one could run: a switch of
//! coroutines, a call of a handler, a program, or the conditions of a wait. That is checked at run time.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use rustc_hash::FxHashMap;
use smpcall_local_apic::{ApicId, Routing, StartUpDelays};
use smpcall_machine::{Cpu, Event, EventKind, Instant};

use crate::config::Config;
use crate::cost::CostModel;
use crate::devices::Devices;
use crate::explored::Explored;
use crate::image::ImageState;
use crate::interconnect::Interconnect;
use crate::interrupt::InterruptFrame;
use crate::machine::SimCpuSet;
use crate::memory::SharedMemory;
use crate::processor::{Activity, Counters, CpuReport, Processor, Source};
use crate::queue::EventQueue;
use crate::trace::Trace;

/// A handler of interrupts: called on the CPU that takes one, with interrupts disabled.
pub type Handler = fn(InterruptFrame);

/// Who decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Virtual time.
    Timed,
    /// A controller, operation by operation.
    Stepped,
}

/// How operations are to be understood at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No CPU's program runs: what is accessed is just accessed. (Boot, and between runs.)
    Direct,
    /// Conditions of a wait are being evaluated: accesses are recorded as read.
    Evaluating,
    /// A CPU runs.
    Running,
}

/// Why a timed run ended by itself.
#[derive(Debug)]
pub(crate) enum Stop {
    ProgramsEnded,
    Asked,
    Panicked { cpu: usize, payload: Box<dyn Any + Send> },
}

/// The whole machine.
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct State {
    pub(crate) driver: Driver,
    pub(crate) phase: Phase,
    /// The CPU that runs (or whose conditions are evaluated).
    pub(crate) running: usize,
    pub(crate) cpus: Vec<Processor>,
    /// How many of them wait to be started, or have yet to begin [anew](Processor::anew).
    pub(crate) beginning: usize,
    pub(crate) queue: EventQueue,
    /// Timed: the next event, if the CPU that has just suspended itself has taken it from the queue.
    pub(crate) next: Option<(u64, u32)>,
    pub(crate) cost: CostModel,
    pub(crate) sti_shadow: bool,
    pub(crate) believe_hints: bool,
    pub(crate) tick: Option<u64>,
    pub(crate) interconnect: Interconnect,
    pub(crate) memory: SharedMemory,
    /// Stepped: what explorers want to know.
    pub(crate) explored: Explored,
    /// What CPUs run: handlers, mailboxes, hooks. The first is what the machine was built with.
    pub(crate) images: Vec<ImageState>,
    pub(crate) devices: Devices,
    /// The places in the source that stand for instructions, in the order in which somebody asked.
    pub(crate) instructions: Vec<Source>,
    /// How often the boot CPU was sent INIT.
    pub(crate) boot_cpu_inits: u64,
    pub(crate) recording: bool,
    pub(crate) events: Vec<Event>,
    pub(crate) frame_names: Vec<&'static str>,
    frame_numbers: FxHashMap<&'static str, u32>,
    pub(crate) routing: Routing,
    pub(crate) start_up_delays: StartUpDelays,
    pub(crate) apic_ids: Vec<ApicId>,
    /// All CPUs, if shorthands may be used.
    pub(crate) shorthand_reach: Option<Rc<SimCpuSet>>,
    /// Evaluation read a register of the APIC.
    pub(crate) register_read: bool,
    /// Programs that have not ended.
    pub(crate) programs: usize,
    pub(crate) stop: Option<Stop>,
    pub(crate) seed: u64,
}

impl State {
    pub(crate) fn new(
        config: &Config,
        driver: Driver,
        interconnect: Interconnect,
        cpus: Vec<Processor>,
    ) -> Self {
        Self {
            driver,
            phase: Phase::Direct,
            running: 0,
            queue: EventQueue::new(interconnect.first_message_slot() as usize),
            next: None,
            beginning: cpus.iter().filter(|cpu| cpu.anew.is_some()).count(),
            cpus,
            cost: config.cost,
            sti_shadow: config.sti_shadow,
            believe_hints: config.believe_hints,
            tick: config.tick.map(|period| period.as_nanos() as u64),
            interconnect,
            memory: SharedMemory::default(),
            explored: Explored::new(config.cpus),
            images: vec![ImageState::default()],
            devices: Devices::default(),
            instructions: Vec::new(),
            boot_cpu_inits: 0,
            recording: config.trace,
            events: Vec::new(),
            frame_names: Vec::new(),
            frame_numbers: FxHashMap::default(),
            routing: config.routing,
            start_up_delays: config.start_up_delays,
            apic_ids: (0..config.cpus).map(|cpu| config.apic_id(cpu)).collect(),
            shorthand_reach: config
                .shorthands
                .then(|| Rc::new((0..config.cpus as u32).map(Cpu::new).collect())),
            register_read: false,
            programs: 0,
            stop: None,
            seed: config.seed,
        }
    }

    /// Stepped: whether something breaks a law, ends the exploration, or has panicked.
    #[inline]
    pub(crate) fn is_in_trouble(&self) -> bool {
        self.explored.violation.is_some() || self.explored.contradicted || self.stop.is_some()
    }

    /// The CPU that runs.
    #[inline]
    pub(crate) fn cpu(&mut self) -> &mut Processor {
        &mut self.cpus[self.running]
    }

    /// Records an event at this CPU's time.
    #[inline]
    pub(crate) fn record(
        &mut self,
        cpu: usize,
        kind: EventKind,
        other: Option<usize>,
        detail: u32,
        argument: u64,
    ) {
        if self.recording {
            self.record_at(self.cpus[cpu].time, cpu, kind, other, detail, argument);
        }
    }

    /// Records an event.
    pub(crate) fn record_at(
        &mut self,
        time: u64,
        cpu: usize,
        kind: EventKind,
        other: Option<usize>,
        detail: u32,
        argument: u64,
    ) {
        if self.recording {
            self.events.push(Event {
                time: Instant::from_nanos(time),
                kind,
                cpu: Cpu::new(cpu as u32),
                other: other.map(|other| Cpu::new(other as u32)),
                detail,
                argument,
            });
        }
    }

    /// The number of a frame's name.
    pub(crate) fn frame_number(&mut self, name: &'static str) -> u32 {
        *self.frame_numbers.entry(name).or_insert_with(|| {
            self.frame_names.push(name);
            self.frame_names.len() as u32 - 1
        })
    }

    /// Makes a suspended CPU run at `time`, or earlier if it would anyway; later if a fault keeps it from it.
    pub(crate) fn wake(&mut self, cpu: usize, time: u64) {
        let processor = &self.cpus[cpu];
        let mut time = time.max(processor.time);
        let takes_nmi = |time| processor.nmi_deliverable && processor.takes_nmis_at(time);
        while processor.is_wedged_at(time) && !takes_nmi(time) {
            time = processor.held_until(time);
            if time == u64::MAX {
                return;
            }
        }
        if self.queue.time_of(cpu as u32).is_none_or(|set| time < set) {
            self.queue.set(cpu as u32, time);
        }
    }

    /// After its APIC accepted something at `time`: makes the CPU take it, if it can and is not running anyway.
    pub(crate) fn notice_interrupt(&mut self, cpu: usize, time: u64) {
        let wake_cost = self.cost.wake;
        let processor = &mut self.cpus[cpu];
        processor.refresh();
        let Some(_) = processor.next_interrupt() else { return };
        if processor.is_wedged_at(time) && processor.nmi_deliverable {
            // It spins with interrupts disabled, and is interrupted in that.
            return self.wake(cpu, time);
        }
        match processor.activity {
            Activity::Running => {}
            Activity::Halted => self.wake(cpu, time + wake_cost),
            Activity::Waiting | Activity::Working => self.wake(cpu, time),
        }
    }

    /// What all CPUs counted.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for cpu in &self.cpus {
            sum.add(&cpu.counters);
        }
        sum
    }

    /// What was recorded.
    pub(crate) fn trace(&self) -> Trace {
        Trace {
            cpus: self.cpus.len() as u32,
            events: self.events.clone(),
            frame_names: self.frame_names.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    /// What an outsider sees of a CPU.
    pub(crate) fn report(&self, cpu: usize) -> CpuReport {
        let processor = &self.cpus[cpu];
        let wedged = processor.is_wedged();
        CpuReport {
            cpu: Cpu::new(cpu as u32),
            time: Instant::from_nanos(processor.time),
            interrupts_enabled: processor.interrupts_enabled && !wedged,
            in_nmi: processor.nmi_depth > 0,
            wedged,
            activity: processor.activity,
            ended: processor.ended,
            frames: processor.frames.iter().map(|&frame| self.frame_names[frame as usize]).collect(),
            waits: processor.waits.clone(),
            requested: processor.apic.irr().iter().collect(),
            in_service: processor.apic.isr().iter().collect(),
            send_pending: processor.apic.icr_idle_at().as_nanos() > processor.time,
            waits_for_start_up: processor.apic.is_waiting_for_start_up(),
            parked: processor.parked,
            counters: processor.counters.clone(),
        }
    }
}

/// A machine's state, shared by its driver and the coroutines of its CPUs, all on one thread.
///
/// A pointer that is copied freely. The state lives as long as its [`Owner`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shared(NonNull<RefCell<State>>);

impl Shared {
    /// Uses the state for as long as `use_it` runs, in which no other code that uses it may get to run: no switch of
    /// coroutines, no handler, no conditions.
    ///
    /// # Panics
    /// If that happens.
    #[inline(always)]
    pub(crate) fn with<R>(self, use_it: impl FnOnce(&mut State) -> R) -> R {
        // SAFETY: made from a box by `Owner`, whose maker promised to let it go last. Not shared with other threads,
        // because a pointer is not `Send`.
        let state = unsafe { self.0.as_ref() };
        use_it(&mut state.borrow_mut())
    }
}

/// What frees the state.
pub(crate) struct Owner(Shared);

impl Owner {
    /// A state to be shared.
    ///
    /// # Safety
    /// Nothing that got a [`Shared`] from this uses it after this is dropped: coroutines, above all.
    pub(crate) unsafe fn new(state: State) -> Self {
        Self(Shared(NonNull::from(Box::leak(Box::new(RefCell::new(state))))))
    }

    /// What is given to its users.
    pub(crate) fn shared(&self) -> Shared {
        self.0
    }

    /// As [`Shared::with`].
    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&mut State) -> R) -> R {
        self.0.with(use_it)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: made from a box by `new`, whose caller promised that nobody uses it any more.
        drop(unsafe { Box::from_raw(self.0.0.as_ptr()) });
    }
}

thread_local! {
    static CURRENT: Cell<Option<Shared>> = const { Cell::new(None) };
}

/// The machine that this thread currently simulates.
#[inline(always)]
pub(crate) fn current() -> Option<Shared> {
    CURRENT.get()
}

/// The machine that this thread currently simulates.
///
/// # Panics
/// If there is none: the code runs outside of a simulated CPU.
#[inline]
pub(crate) fn expect_current() -> Shared {
    current().expect("this code runs on a simulated CPU")
}

/// Makes a machine the current one until this is dropped; then the one before is again.
pub(crate) struct Entered {
    before: Option<Shared>,
}

impl Entered {
    pub(crate) fn new(state: Shared) -> Self {
        Self { before: CURRENT.replace(Some(state)) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}
