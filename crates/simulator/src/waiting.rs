//! What CPUs do while they do nothing: wait for conditions, halt, work on something local.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use smpcall_machine::{Access, Awaited, Conditions, Deadline, EventKind, Instant, Woken};

use crate::explorer::footprint::Use;
use crate::hash::absorb;
use crate::interrupt::{Interrupt, take};
use crate::mutant::Fault;
use crate::operation::{Operation, begin, give_up_if_abandoned, hold, offer, settle, suspend};
use crate::processor::{Activity, ErasedConditions, Order, Processor, Source, WaitReport};
use crate::state::{Driver, Phase, Shared, State};

/// What is known of the conditions of a wait without evaluating them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Nothing: a word that they read has changed, or they read a register.
    Unknown,
    /// None of them holds.
    Blocked,
    /// The first that holds.
    Met(usize),
}

impl Looked {
    /// What is known of a wait for one word that has this value.
    fn at_word(awaited: &Awaited, value: u64) -> Self {
        if awaited.holds(value) { Self::Met(0) } else { Self::Blocked }
    }
}

/// Evaluates the conditions of a wait of `cpu`, and notes in that CPU which words they read.
///
/// # Safety
/// The reference that the conditions were made from is still valid.
pub(crate) unsafe fn evaluate(state: Shared, cpu: usize, conditions: ErasedConditions) -> Option<usize> {
    let (running, phase) = state.with(|machine| {
        machine.cpus[cpu].watched.clear();
        machine.register_read = false;
        let running = core::mem::replace(&mut machine.running, cpu);
        (running, core::mem::replace(&mut machine.phase, Phase::Evaluating))
    });
    // SAFETY: promised by the caller.
    let met = unsafe { conditions.first_met() };
    state.with(|machine| {
        machine.running = running;
        machine.phase = phase;
    });
    met
}

/// What a look of a counted wait takes, in nanoseconds: the pause, the clock, the words.
const LOOK: u64 = 50;

/// The wait of simulated CPUs.
pub(crate) fn wait<C: Conditions>(
    state: Shared,
    conditions: &C,
    deadline: Deadline,
    source: Source,
) -> Woken {
    wait_until(state, conditions, deadline, u64::MAX, source)
}

/// The counted wait of simulated CPUs: it lasts as long as so many looks would.
pub(crate) fn wait_at_most<C: Conditions>(
    state: Shared,
    conditions: &C,
    deadline: Deadline,
    looks: u64,
    source: Source,
) -> Woken {
    let last_look = state.with(|machine| machine.cpu().time).saturating_add(looks.saturating_mul(LOOK));
    wait_until(state, conditions, deadline, last_look, source)
}

/// Waits until the deadline by the CPU's clock, and no longer than until this moment of virtual time.
fn wait_until<C: Conditions>(
    state: Shared,
    conditions: &C,
    deadline: Deadline,
    last_look: u64,
    source: Source,
) -> Woken {
    let (timed, cpu) = state.with(|machine| (machine.driver == Driver::Timed, machine.running));
    let erased = ErasedConditions::new(conditions);
    // SAFETY: the conditions are borrowed by this very function.
    let evaluate = || unsafe { evaluate(state, cpu, erased) };
    if timed {
        wait_timed(state, evaluate, deadline, last_look, source)
    } else {
        // Which of the bounds it is that ends the wait early makes no difference there.
        let deadline = deadline.min(Deadline::at(Instant::from_nanos(last_look)));
        wait_stepped(state, evaluate, (erased, conditions.only()), deadline, source)
    }
}

/// What a wait does after an evaluation.
enum AfterLook {
    End(Woken),
    /// An interrupt is due.
    Settle,
    Sleep,
}

fn wait_timed(
    state: Shared,
    evaluate: impl Fn() -> Option<usize>,
    deadline: Deadline,
    last_look: u64,
    source: Source,
) -> Woken {
    begin(state, Operation::Wait { deadline }, 0, source);
    let mut began = false;
    loop {
        let met = evaluate();
        let after = state.with(|machine| {
            let running = machine.running;
            let (cost, jitter) = (machine.cost.load, machine.cost.jitter);
            let processor = machine.cpu();
            let moment = processor.time;
            let now = Instant::from_nanos(processor.clock.reading(moment));
            let words = processor.watched.len() as u64;
            processor.time += processor.jittered(words * cost, jitter);
            let woken = match met {
                Some(index) => Some(Woken::Met(index)),
                None if moment >= last_look => Some(Woken::Deadline),
                None => deadline.has_passed(now).then_some(Woken::Deadline),
            };
            if let Some(woken) = woken {
                if began {
                    processor.waits.pop();
                    let expired = u64::from(woken == Woken::Deadline);
                    machine.record(running, EventKind::WaitEnded, None, 0, expired);
                }
                return AfterLook::End(woken);
            }
            if !began {
                began = true;
                processor.waits.push(WaitReport { source, since: now, deadline });
                machine.record(running, EventKind::WaitBegan, None, 0, 0);
            }
            if machine.cpu().next_interrupt().is_some() {
                return AfterLook::Settle;
            }
            let ends = |end: Instant| machine.cpus[running].clock.moment(end.as_nanos());
            let mut wake_at = deadline.instant().map_or(u64::MAX, ends).min(last_look);
            if machine.register_read {
                let idle_at = machine.cpu().apic.icr_idle_at();
                if idle_at.as_nanos() > moment {
                    wake_at = wake_at.min(idle_at.as_nanos());
                }
            }
            machine.watch();
            machine.cpu().activity = Activity::Waiting;
            if wake_at != u64::MAX {
                // Evaluating took time; a deadline that passed meanwhile is seen at once.
                let wake_at = wake_at.max(machine.cpu().time);
                machine.queue.set(running as u32, wake_at);
            }
            AfterLook::Sleep
        });
        match after {
            AfterLook::End(woken) => return woken,
            AfterLook::Settle => {}
            AfterLook::Sleep => {
                suspend(state);
                state.with(|machine| {
                    machine.unwatch();
                    machine.cpu().activity = Activity::Running;
                });
            }
        }
        settle(state);
    }
}

fn wait_stepped(
    state: Shared,
    evaluate: impl Fn() -> Option<usize>,
    (conditions, only): (ErasedConditions, Option<Awaited>),
    deadline: Deadline,
    source: Source,
) -> Woken {
    let begin = |machine: &mut State| {
        let running = machine.running;
        machine.explored.waiting |= 1 << running.min(63);
        let processor = machine.cpu();
        processor.pending = Some((Operation::Wait { deadline }, source));
        processor.conditions = Some(conditions);
        processor.activity = Activity::Waiting;
        processor.drains = false;
        processor.looked = Looked::Unknown;
        // A look is more than the one instruction that the shadow is over.
        processor.shadow = false;
        if let Some(awaited) = only {
            machine.watch_word(awaited);
        }
    };
    let fault = state.with(|machine| {
        let processor = machine.cpu();
        processor.counters.operations += 1;
        processor.at_once = 0;
        let since = Instant::from_nanos(processor.time);
        processor.waits.push(WaitReport { source, since, deadline });
        let fault = machine.explored.mutant.as_ref().and_then(|mutant| mutant.at_place(source));
        if fault != Some(Fault::NotWaited) {
            begin(machine);
        }
        fault
    });
    if fault == Some(Fault::NotWaited) {
        offer(state, Operation::Wait { deadline: Deadline::NEVER }, source);
        state.with(|machine| {
            let processor = machine.cpu();
            processor.waits.pop();
            // As the end of a wait: a loop of waits that are not waited for must not look as if it stood still.
            processor.history = absorb(processor.history, 0);
        });
        return Woken::Met(0);
    }
    let relaxed = fault == Some(Fault::Relaxed);
    loop {
        suspend(state);
        let (order, looked) = state.with(|machine| {
            let running = machine.running;
            if running < 63 {
                machine.explored.waiting &= !(1 << running);
            }
            machine.register_read = false;
            let processor = machine.cpu();
            processor.conditions = None;
            processor.awaited = None;
            processor.activity = Activity::Running;
            let (order, looked) = (processor.order.take(), processor.looked);
            if let (Some(Order::Step), Looked::Met(index)) = (order, looked) {
                // By far the most.
                machine.end_wait(Woken::Met(index), deadline, source, !relaxed);
            }
            (order, looked)
        });
        let expired = match (order, looked) {
            (Some(Order::Interrupt), _) => {
                take(state, Interrupt::Vector);
                state.with(begin);
                continue;
            }
            (Some(Order::Nmi), _) => {
                take(state, Interrupt::Nmi);
                state.with(begin);
                continue;
            }
            (Some(Order::Step), Looked::Met(index)) => return Woken::Met(index),
            (Some(Order::Expire), _) => true,
            (Some(Order::Step) | None, _) => false,
        };
        if expired {
            let end = deadline.instant().map_or(0, Instant::as_nanos);
            state.with(|machine| machine.cpu().time = machine.cpu().time.max(end));
        }
        // They were looked at to know whether the wait can end. Who replays did not look.
        let met = match looked {
            Looked::Unknown => evaluate(),
            Looked::Blocked => None,
            Looked::Met(index) => Some(index),
        };
        let woken = match met {
            Some(index) => Woken::Met(index),
            None if expired => Woken::Deadline,
            None => {
                state.with(begin);
                continue;
            }
        };
        return state.with(|machine| {
            machine.end_wait(woken, deadline, source, !relaxed);
            woken
        });
    }
}

impl State {
    /// Stepped: the conditions of a CPU's wait were evaluated. What they say holds until a word that they read changes; if
    /// they read a register, nobody knows for how long.
    pub(crate) fn has_looked(&mut self, cpu: usize, met: Option<usize>) {
        let known = !self.register_read;
        let processor = &mut self.cpus[cpu];
        processor.looked = match met {
            _ if !known => Looked::Unknown,
            Some(index) => Looked::Met(index),
            None => Looked::Blocked,
        };
        if !known {
            processor.set_stale();
        }
    }

    /// Stepped: the running CPU begins to wait for one word. What becomes of the wait follows from the values of the word
    /// from now on; with store buffers not, because each CPU sees its own.
    fn watch_word(&mut self, awaited: Awaited) {
        if self.explored.options.buffers {
            return;
        }
        let address = awaited.location.addr();
        self.touch(address, Access::Load);
        // Relaxed: there is one thread.
        // SAFETY: the word that the running CPU's conditions borrow.
        let value = unsafe { &*awaited.location.cast::<AtomicU64>() }.load(Relaxed);
        let processor = self.cpu();
        processor.awaited = Some(awaited);
        processor.watched.clear();
        processor.watched.push(address);
        processor.looked = Looked::at_word(&awaited, value);
    }

    /// Stepped: a word in memory gets another value: who waits for it looks again, or has to.
    #[inline]
    pub(crate) fn word_changes(&mut self, address: usize, value: u64) {
        let waiting = self.explored.waiting;
        if waiting != 0 {
            self.word_changes_for(waiting, address, value);
        }
    }

    /// As [`word_changes`](Self::word_changes), for the CPUs of these bits.
    fn word_changes_for(&mut self, mut waiting: u64, address: usize, value: u64) {
        while waiting != 0 {
            let first = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            if first < 63 {
                self.cpus[first].word_changes(address, value);
            } else {
                // The last bit stands for all that have none of their own.
                self.cpus[first..].iter_mut().for_each(|processor| processor.word_changes(address, value));
            }
        }
    }

    /// Stepped: the running CPU's wait ends. It has read what its conditions read, with acquire ordering unless a
    /// deliberate fault says otherwise.
    fn end_wait(&mut self, woken: Woken, deadline: Deadline, source: Source, acquires: bool) {
        let running = self.running;
        let hash = self.explored.options.hash;
        for at in 0..self.cpus[running].watched.len() {
            let address = self.cpus[running].watched[at];
            let slot = self.explored.places.slot(address);
            let place = self.explored.places.all[slot as usize].place;
            self.explored.footprint.add(place, Use::Read);
            if self.explored.options.races && acquires {
                self.acquire(running, slot);
            }
        }
        if self.register_read {
            self.touch_irr(running, Use::Read);
        }
        self.tell(Operation::Wait { deadline }, None, None, false, source);
        let processor = self.cpu();
        processor.operation_done();
        processor.looked = Looked::Unknown;
        processor.waits.pop();
        if hash {
            let learned = if let Woken::Met(index) = woken { index as u64 } else { u64::MAX };
            processor.history = absorb(processor.history, learned);
        }
    }
}

impl Processor {
    /// As [`State::word_changes`], for this CPU, if it waits.
    #[inline]
    fn word_changes(&mut self, address: usize, value: u64) {
        let looked = match &self.awaited {
            Some(awaited) if awaited.location.addr() == address => Looked::at_word(awaited, value),
            None if self.watched.contains(&address) => Looked::Unknown,
            _ => return,
        };
        if self.looked != looked {
            self.looked = looked;
            self.set_stale();
        }
    }
}

/// Enables interrupts and halts until one was taken.
pub(crate) fn halt(state: Shared, source: Source) {
    let (cost, idle, timed) = state.with(|machine| {
        (machine.cost.interrupt_flag, machine.cpu().is_idle(), machine.driver == Driver::Timed)
    });
    if !idle || timed {
        begin(state, Operation::Halt, cost, source);
    }
    state.with(|machine| {
        let running = machine.running;
        machine.cpu().interrupts_enabled = true;
        machine.cpu().pending = Some((if idle { Operation::Ended } else { Operation::Halted }, source));
        if !idle {
            machine.record(running, EventKind::Halted, None, 0, 0);
        }
    });
    if timed {
        sleep_timed(state);
    } else {
        sleep_stepped(state, idle);
    }
    if !idle {
        state.with(|machine| machine.record(machine.running, EventKind::Resumed, None, 0, 0));
    }
}

/// Disables interrupts and halts for ever: only NMIs are still taken, and only INIT ends it. The run waits no longer for
/// this CPU's program.
pub(crate) fn park(state: Shared, source: Source) -> ! {
    let (cost, idle, timed, enabled) = state.with(|machine| {
        let (cost, timed) = (machine.cost.interrupt_flag, machine.driver == Driver::Timed);
        let processor = machine.cpu();
        (cost, processor.is_idle(), timed, processor.interrupts_enabled)
    });
    if enabled {
        begin(state, Operation::DisableInterrupts, cost, source);
    }
    state.with(|machine| {
        let running = machine.running;
        machine.cpu().interrupts_enabled = false;
        machine.cpu().parked = true;
        machine.program_ended(running);
        machine.record(running, EventKind::Halted, None, 0, 0);
    });
    loop {
        let pending = if idle { Operation::Ended } else { Operation::Halted };
        state.with(|machine| machine.cpu().pending = Some((pending, source)));
        if timed {
            sleep_timed(state);
        } else {
            sleep_stepped(state, idle);
        }
    }
}

fn sleep_timed(state: Shared) {
    loop {
        give_up_if_abandoned(state);
        hold(state);
        let due = state.with(|machine| {
            let processor = machine.cpu();
            let due = processor.next_interrupt();
            if due.is_none() {
                processor.activity = Activity::Halted;
            }
            due
        });
        if let Some(interrupt) = due {
            take(state, interrupt);
            return;
        }
        suspend(state);
        state.with(|machine| machine.cpu().activity = Activity::Running);
    }
}

fn sleep_stepped(state: Shared, idle: bool) {
    state.with(|machine| {
        let processor = machine.cpu();
        processor.history = absorb(processor.history, 1);
        processor.activity = Activity::Halted;
        // A program may have ended in it.
        processor.shadow = false;
    });
    suspend(state);
    let order = state.with(|machine| {
        machine.cpu().activity = Activity::Running;
        machine.cpu().order.take()
    });
    take(state, if order == Some(Order::Nmi) { Interrupt::Nmi } else { Interrupt::Vector });
    state.with(|machine| {
        let processor = machine.cpu();
        // The idle loop knows nothing, whatever its handlers saw.
        processor.history = absorb(if idle { 0 } else { processor.history }, 2);
    });
}

/// Works for `nanos` on nothing that is shared. Interrupts are taken meanwhile and make it longer. Takes no time
/// on a stepped machine, where an interrupt can come before every operation anyway.
pub(crate) fn work(state: Shared, nanos: u64, source: Source) {
    if state.with(|machine| machine.driver == Driver::Stepped) {
        return;
    }
    begin(state, Operation::Work { nanos }, 0, source);
    let time = || state.with(|machine| machine.cpu().time);
    let mut end = time().saturating_add(nanos);
    loop {
        let (done, sleeping) = state.with(|machine| {
            if machine.cpu().next_interrupt().is_some() {
                return (false, false);
            }
            if end <= machine.queue.first_time() {
                let processor = machine.cpu();
                processor.time = processor.time.max(end);
                return (true, false);
            }
            let running = machine.running;
            machine.queue.set(running as u32, end);
            machine.cpu().activity = Activity::Working;
            (false, true)
        });
        if done {
            return;
        }
        if sleeping {
            suspend(state);
            state.with(|machine| machine.cpu().activity = Activity::Running);
        }
        // A CPU that is wedged is woken by an NMI, and goes on with nothing else.
        let (before, wedged) = state.with(|machine| (machine.cpu().time, machine.cpu().is_wedged()));
        if before >= end && !wedged {
            return;
        }
        settle(state);
        end = end.saturating_add(time() - before);
    }
}
