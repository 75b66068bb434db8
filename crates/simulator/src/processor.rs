//! One simulated CPU: its clock, its interrupt state, what it is doing, and what outsiders can see of it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::Location;
use std::rc::Rc;

use corosensei::Yielder;
use rand_pcg::Pcg32;
use smpcall_machine::{Awaited, Conditions, Cpu, Deadline, Instant};

use crate::apic::ApicModel;
use crate::clock::Clock;
use crate::cost::jittered;
use crate::explored::Buffered;
use crate::interrupt::Interrupt;
use crate::operation::Operation;
use crate::races::Known;
use crate::waiting::Looked;

/// A source location in the code of the program.
pub type Source = &'static Location<'static>;

/// What a CPU counted, as `/proc/interrupts` and more would show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Operations performed.
    pub operations: u64,
    /// Commands written to the ICR.
    pub icr_writes: u64,
    /// Messages that left for a target, by this CPU's commands: one per target, lost ones included.
    pub ipis_sent: u64,
    /// Of those, the ones that a fault lost.
    pub ipis_lost: u64,
    /// Messages from CPUs that this CPU's APIC accepted; the merged ones are not among them.
    pub ipis_accepted: u64,
    /// Messages that merged with one that was pending here.
    pub ipis_merged: u64,
    /// Messages that this CPU's APIC did not accept.
    pub ipis_rejected: u64,
    /// Times that a message from a CPU found no room here and was offered again (P6 family only).
    pub ipis_retried: u64,
    /// The same for what the I/O APIC sent for a device.
    pub devices_retried: u64,
    /// Interrupts taken, by vector.
    pub taken: Box<[u64; 256]>,
    /// NMIs taken.
    pub nmis_taken: u64,
    /// How often INIT has reset it.
    pub resets: u64,
    /// How often a start-up message has started it.
    pub start_ups: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            operations: 0,
            icr_writes: 0,
            ipis_sent: 0,
            ipis_lost: 0,
            ipis_accepted: 0,
            ipis_merged: 0,
            ipis_rejected: 0,
            ipis_retried: 0,
            devices_retried: 0,
            taken: Box::new([0; 256]),
            nmis_taken: 0,
            resets: 0,
            start_ups: 0,
        }
    }
}

impl Counters {
    /// Sets all to zero, without allocating; those of the vectors only if there were `interrupts`.
    pub(crate) fn clear(&mut self, interrupts: bool) {
        if interrupts {
            self.taken.fill(0);
        }
        self.operations = 0;
        self.icr_writes = 0;
        self.ipis_sent = 0;
        self.ipis_lost = 0;
        self.ipis_accepted = 0;
        self.ipis_merged = 0;
        self.ipis_rejected = 0;
        self.ipis_retried = 0;
        self.devices_retried = 0;
        self.nmis_taken = 0;
        self.resets = 0;
        self.start_ups = 0;
    }

    /// Adds another CPU's to these.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.icr_writes += other.icr_writes;
        self.ipis_sent += other.ipis_sent;
        self.ipis_lost += other.ipis_lost;
        self.ipis_accepted += other.ipis_accepted;
        self.ipis_merged += other.ipis_merged;
        self.ipis_rejected += other.ipis_rejected;
        self.ipis_retried += other.ipis_retried;
        self.devices_retried += other.devices_retried;
        self.nmis_taken += other.nmis_taken;
        self.resets += other.resets;
        self.start_ups += other.start_ups;
        for (sum, count) in self.taken.iter_mut().zip(other.taken.iter()) {
            *sum += count;
        }
    }
}

/// What a CPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It executes operations, or is about to.
    Running,
    /// It waits for a condition.
    Waiting,
    /// It works on something local, which interrupts can interrupt.
    Working,
    /// It is halted until an interrupt.
    Halted,
}

/// A wait in progress, of a program or of a handler that interrupted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitReport {
    /// Where in the source.
    pub source: Source,
    /// Since when.
    pub since: Instant,
    /// Until when at the latest.
    pub deadline: Deadline,
}

/// What an outsider can see of a CPU: a debugger, a crash dump, the reporter of a hang.
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuReport {
    /// Which CPU.
    pub cpu: Cpu,
    /// Its clock.
    pub time: Instant,
    /// Whether maskable interrupts are enabled. False while a fault keeps it wedged.
    pub interrupts_enabled: bool,
    /// Whether it is in an NMI handler.
    pub in_nmi: bool,
    /// Whether a fault keeps it from making a step.
    pub wedged: bool,
    /// What it is doing.
    pub activity: Activity,
    /// Whether its program has ended, or it never had one.
    pub ended: bool,
    /// The names of its frames, outermost first.
    pub frames: Vec<&'static str>,
    /// Its waits in progress, outermost first.
    pub waits: Vec<WaitReport>,
    /// The vectors that its APIC has accepted and it has not taken (IRR), ascending.
    pub requested: Vec<u8>,
    /// The vectors in service (ISR), ascending.
    pub in_service: Vec<u8>,
    /// Whether its APIC's delivery status says that a command was not dispatched yet (xAPIC).
    pub send_pending: bool,
    /// Whether it was reset by INIT, or never started, and waits for a start-up message.
    pub waits_for_start_up: bool,
    /// Whether it has [parked](crate::program::park): it says so itself. False while it handles an NMI.
    pub parked: bool,
    /// What it counted.
    pub counters: Counters,
}

/// Conditions of a wait that is suspended, their type and lifetime erased.
///
/// They live on the stack of the CPU that waits, which does not move while it is suspended.
#[derive(Clone, Copy)]
pub(crate) struct ErasedConditions {
    conditions: *const (),
    first_met: unsafe fn(*const ()) -> Option<usize>,
    describe: unsafe fn(*const (), &mut dyn FnMut(Awaited)),
}

impl ErasedConditions {
    pub(crate) fn new<C: Conditions>(conditions: &C) -> Self {
        unsafe fn first_met<C: Conditions>(conditions: *const ()) -> Option<usize> {
            // SAFETY: `new` made this pointer from a `&C`, and the caller of this function promises that the
            // reference is still valid.
            unsafe { (*conditions.cast::<C>()).first_met() }
        }
        unsafe fn describe<C: Conditions>(conditions: *const (), see: &mut dyn FnMut(Awaited)) {
            // SAFETY: as for `first_met`.
            unsafe { (*conditions.cast::<C>()).describe(see) }
        }
        Self {
            conditions: core::ptr::from_ref(conditions).cast(),
            first_met: first_met::<C>,
            describe: describe::<C>,
        }
    }

    /// Tells what they are about.
    ///
    /// # Safety
    /// The reference that this was made from is still valid.
    pub(crate) unsafe fn describe(self, see: &mut dyn FnMut(Awaited)) {
        // SAFETY: as for `first_met`.
        unsafe { (self.describe)(self.conditions, see) }
    }

    /// Evaluates them.
    ///
    /// # Safety
    /// The reference that this was made from is still valid.
    pub(crate) unsafe fn first_met(self) -> Option<usize> {
        // SAFETY: the function belongs to the pointer by construction; the caller promises the rest.
        unsafe { (self.first_met)(self.conditions) }
    }
}

/// What the controller of a stepped machine tells a CPU to do with its pending operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Execute it.
    Step,
    /// Take the highest deliverable interrupt first.
    Interrupt,
    /// Take an NMI first.
    Nmi,
    /// End the wait by its deadline.
    Expire,
}

/// What a CPU does next, on a stack of its own, instead of what it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anew {
    /// Reset by INIT: nothing, until a start-up message comes.
    WaitForStartUp,
    /// The start-up program of an image.
    StartUp { image: usize, page: u8 },
    /// The entry of an image that a program has booted.
    Boot { image: usize },
}

/// A fault keeps the CPU from making a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wedge {
    /// Until this time; zero if it is not wedged.
    pub(crate) until: u64,
    /// It spins with interrupts disabled: NMIs are taken, and their handlers run. Else it makes no step at all.
    pub(crate) takes_nmis: bool,
}

/// Whether the controller of a stepped machine has to look again at what some CPU can do. Shared by all CPUs of a machine.
pub(crate) type AnyStale = Rc<Cell<bool>>;

/// The state of one CPU.
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub(crate) struct Processor {
    /// Its clock, in nanoseconds.
    pub(crate) time: u64,
    pub(crate) interrupts_enabled: bool,
    /// Interrupts were enabled by the operation before this one.
    pub(crate) shadow: bool,
    /// Its APIC offers a vector; kept up to date by `refresh`.
    pub(crate) vector_deliverable: bool,
    /// Its APIC offers an NMI; kept up to date by `refresh`.
    pub(crate) nmi_deliverable: bool,
    /// Stepped: the APIC is another one than when it was hashed last.
    pub(crate) apic_changed: bool,
    pub(crate) nmi_depth: u32,
    pub(crate) handler_depth: u32,
    pub(crate) apic: ApicModel,
    /// How this CPU's coroutine suspends itself; null before it was first resumed.
    pub(crate) yielder: *const Yielder<(), ()>,
    pub(crate) activity: Activity,
    /// The operation about to be executed (stepped) or being executed, and where it stands in the source.
    pub(crate) pending: Option<(Operation, Source)>,
    /// The conditions of the wait it is suspended in.
    pub(crate) conditions: Option<ErasedConditions>,
    /// Stepped: all that those conditions ask for, if it is one word, and no store buffer hides it.
    pub(crate) awaited: Option<Awaited>,
    /// The words that those conditions read last.
    pub(crate) watched: Vec<usize>,
    pub(crate) waits: Vec<WaitReport>,
    pub(crate) order: Option<Order>,
    /// Stepped: what the conditions of the wait said when they were looked at last.
    pub(crate) looked: Looked,
    /// Stepped: which accesses to plain data it knows of.
    pub(crate) known: Known,
    /// Stepped: stores that have not reached memory, oldest first.
    pub(crate) store_buffer: VecDeque<Buffered>,
    /// Stepped: the pending operation waits until the store buffer is empty.
    pub(crate) drains: bool,
    /// It has taken interrupts since it was reset.
    pub(crate) took_interrupts: bool,
    /// Stepped: what it can do next may be something else than when its controller looked last.
    stale: bool,
    /// Stepped: one for all CPUs: at least one of them is stale.
    any_stale: AnyStale,
    /// Stepped: a step is all that it could do when its controller looked last.
    pub(crate) offered_step_only: bool,
    /// Stepped: operations done at once in a row.
    pub(crate) at_once: u32,
    /// Stepped: the hash of all this, if nothing has changed since it was made.
    pub(crate) hashed: Option<u128>,
    /// Stepped: what the last access to shared memory found there.
    pub(crate) found: u64,
    /// Stepped: a hash of everything this CPU has learned so far.
    pub(crate) history: u128,
    pub(crate) costs: Pcg32,
    pub(crate) random: Pcg32,
    pub(crate) wedge: Wedge,
    /// It makes no step in its NMI handler until then; zero if it is not wedged there.
    pub(crate) wedged_in_nmi_until: u64,
    /// The whole machine makes no step until then.
    pub(crate) paused_until: u64,
    /// What it shows of its time.
    pub(crate) clock: Clock,
    /// An interrupt is signalled that will have disappeared when its vector is asked for.
    pub(crate) spurious: bool,
    /// Frames, as indices into the table of names.
    pub(crate) frames: Vec<u32>,
    pub(crate) ended: bool,
    /// Which image's handlers and mailboxes it uses; 0 is what the machine was built with.
    pub(crate) image: usize,
    /// What was in progress is abandoned: what it does instead once it gets its turn.
    pub(crate) anew: Option<Anew>,
    /// Nothing on the abandoned stack has a destructor: it was in its idle loop.
    left_idle: bool,
    /// It runs what an image began it with.
    pub(crate) began_anew: bool,
    /// Its program is one of those that the run waits for.
    pub(crate) counted: bool,
    /// It has said that it will never do anything again: halted, with interrupts disabled.
    pub(crate) parked: bool,
    pub(crate) counters: Counters,
}

impl Processor {
    pub(crate) fn new(cpu: usize, seed: u64, apic: ApicModel, any_stale: AnyStale) -> Self {
        let mut processor = Self {
            time: 0,
            interrupts_enabled: true,
            shadow: false,
            vector_deliverable: false,
            nmi_deliverable: false,
            apic_changed: true,
            nmi_depth: 0,
            handler_depth: 0,
            apic,
            yielder: core::ptr::null(),
            activity: Activity::Running,
            pending: None,
            conditions: None,
            awaited: None,
            watched: Vec::new(),
            waits: Vec::new(),
            order: None,
            looked: Looked::Unknown,
            known: Known::NOTHING,
            store_buffer: VecDeque::new(),
            drains: false,
            took_interrupts: false,
            stale: true,
            any_stale,
            offered_step_only: false,
            at_once: 0,
            hashed: None,
            found: 0,
            history: 0,
            costs: Pcg32::new(0, 0),
            random: Pcg32::new(0, 0),
            wedge: Wedge::default(),
            wedged_in_nmi_until: 0,
            paused_until: 0,
            clock: Clock::default(),
            spurious: false,
            frames: Vec::new(),
            ended: false,
            image: 0,
            anew: None,
            left_idle: false,
            began_anew: false,
            counted: false,
            parked: false,
            counters: Counters::default(),
        };
        processor.seed(cpu, seed);
        if processor.apic.is_waiting_for_start_up() {
            processor.abandon(Anew::WaitForStartUp);
        }
        processor
    }

    fn seed(&mut self, cpu: usize, seed: u64) {
        // A generator's stream is its increment: two streams per CPU, one for hardware and one for programs.
        self.costs = Pcg32::new(seed, 2 * cpu as u64);
        self.random = Pcg32::new(seed, 2 * cpu as u64 + 1);
    }

    /// As after boot, with the APIC's state of then. The counters start again.
    pub(crate) fn reset(&mut self, cpu: usize, seed: u64, apic: &ApicModel) {
        self.seed(cpu, seed);
        self.apic.clone_from(apic);
        self.time = 0;
        self.interrupts_enabled = true;
        self.shadow = false;
        self.vector_deliverable = false;
        self.nmi_deliverable = false;
        self.apic_changed = true;
        self.nmi_depth = 0;
        self.handler_depth = 0;
        self.yielder = core::ptr::null();
        self.activity = Activity::Running;
        self.pending = None;
        self.conditions = None;
        self.awaited = None;
        self.watched.clear();
        self.waits.clear();
        self.order = None;
        self.looked = Looked::Unknown;
        self.known = Known::NOTHING;
        self.store_buffer.clear();
        self.drains = false;
        self.set_stale();
        self.at_once = 0;
        self.hashed = None;
        self.found = 0;
        self.history = 0;
        self.wedge = Wedge::default();
        self.wedged_in_nmi_until = 0;
        self.spurious = false;
        self.frames.clear();
        self.ended = false;
        self.image = 0;
        self.anew = None;
        self.left_idle = false;
        self.began_anew = false;
        self.counted = false;
        self.parked = false;
        self.counters.clear(self.took_interrupts);
        self.took_interrupts = false;
        if self.apic.is_waiting_for_start_up() {
            self.abandon(Anew::WaitForStartUp);
        }
    }

    /// What is in progress never goes on: not the program, not its handlers. Interrupts are disabled; the APIC is left
    /// alone, and so are stores that have not reached memory.
    #[track_caller]
    pub(crate) fn abandon(&mut self, anew: Anew) {
        if self.anew.is_none() {
            self.left_idle = self.is_idle();
        }
        self.anew = Some(anew);
        self.interrupts_enabled = false;
        self.shadow = false;
        self.nmi_depth = 0;
        self.handler_depth = 0;
        self.activity = Activity::Halted;
        self.pending = Some((Operation::WaitForStartUp, Location::caller()));
        self.conditions = None;
        self.awaited = None;
        self.watched.clear();
        self.waits.clear();
        self.order = None;
        self.looked = Looked::Unknown;
        self.drains = false;
        self.set_stale();
        self.at_once = 0;
        self.hashed = None;
        self.found = 0;
        // What it has learned is forgotten with the stack.
        self.history = 0;
        self.frames.clear();
        self.ended = true;
        self.parked = false;
        self.spurious = false;
        self.refresh();
    }

    /// Begins what is to be done instead of what was abandoned, on a fresh stack.
    pub(crate) fn begin_anew(&mut self, image: usize) {
        self.anew = None;
        self.image = image;
        self.began_anew = true;
        self.ended = false;
        self.pending = None;
        self.activity = Activity::Running;
        self.set_stale();
    }

    /// Whether nothing on its stack has a destructor, and nobody refers to it: it is suspended in its idle loop.
    pub(crate) fn leaves_a_bare_stack(&self) -> bool {
        if self.anew.is_some() { self.left_idle } else { self.is_idle() }
    }

    /// Whether nothing is expected of it any more: it idles, is parked, or waits to be started.
    pub(crate) fn is_done(&self) -> bool {
        match self.anew {
            None => self.is_idle() || self.parked,
            Some(anew) => anew == Anew::WaitForStartUp,
        }
    }

    /// Brings what is cached of the APIC up to date. To be called after every change of it.
    pub(crate) fn refresh(&mut self) {
        self.vector_deliverable =
            self.apic.deliverable().is_some() || self.spurious || self.apic.ext_int_deliverable();
        self.nmi_deliverable = self.apic.nmi_deliverable();
        self.apic_changed = true;
        self.set_stale();
    }

    /// Timed: the pending operation is performed now and takes its time.
    #[inline]
    pub(crate) fn perform(&mut self, cost: u64, jitter: u32) {
        self.shadow = false;
        self.time += self.jittered(cost, jitter);
    }

    /// Stepped: its controller has to look again at what it can do.
    #[inline]
    pub(crate) fn set_stale(&mut self) {
        self.stale = true;
        self.any_stale.set(true);
    }

    /// Stepped: whether its, or another CPU's, controller has to look again.
    pub(crate) fn any_stale(&self) -> AnyStale {
        self.any_stale.clone()
    }

    /// Stepped: whether the controller has to look again at any CPU.
    #[inline]
    pub(crate) fn is_any_stale(&self) -> bool {
        self.any_stale.get()
    }

    /// Stepped: whether its controller has to look again. It does so now.
    #[inline]
    pub(crate) fn take_stale(&mut self) -> bool {
        core::mem::take(&mut self.stale)
    }

    /// Stepped: the pending operation is performed.
    pub(crate) fn operation_done(&mut self) {
        self.pending = None;
        self.shadow = false;
    }

    /// Whether it is suspended in its idle loop, outside of any handler.
    pub(crate) fn is_idle(&self) -> bool {
        self.ended && self.handler_depth == 0
    }

    /// The interrupt that is taken before the next operation, if any: an NMI first.
    #[inline]
    pub(crate) fn next_interrupt(&self) -> Option<Interrupt> {
        if self.nmi_deliverable && !self.shadow {
            Some(Interrupt::Nmi)
        } else if self.vector_deliverable && self.interrupts_enabled && !self.shadow {
            Some(Interrupt::Vector)
        } else {
            None
        }
    }

    /// Whether a fault keeps it from making a step at this time, if it is not over by then.
    #[inline]
    pub(crate) fn is_wedged_at(&self, time: u64) -> bool {
        time < self.paused_until
            || time < self.wedged_in_nmi_until
            || time < self.wedge.until && (self.nmi_depth == 0 || !self.wedge.takes_nmis)
    }

    /// Whether what keeps it from making a step at this time lets NMIs in.
    pub(crate) fn takes_nmis_at(&self, time: u64) -> bool {
        time >= self.paused_until && time >= self.wedged_in_nmi_until && self.wedge.takes_nmis
    }

    /// The end of one of the faults that [do so](Self::is_wedged_at) at this time, which others may outlast; the end of time
    /// if for ever.
    pub(crate) fn held_until(&self, time: u64) -> u64 {
        let causes = [self.paused_until, self.wedged_in_nmi_until];
        causes.into_iter().find(|&until| time < until).unwrap_or(self.wedge.until)
    }

    /// Whether a fault keeps it from making a step now.
    #[inline]
    pub(crate) fn is_wedged(&self) -> bool {
        self.is_wedged_at(self.time)
    }

    /// A cost of this many nanoseconds with this much jitter added.
    #[inline]
    pub(crate) fn jittered(&mut self, cost: u64, jitter: u32) -> u64 {
        jittered(&mut self.costs, cost, jitter)
    }
}
