//! What CPUs do while they do nothing: wait for conditions, halt, work on something local.

use smpcall_machine::{Conditions, Deadline, EventKind, Instant, Woken};

use crate::explorer::footprint::Use;
use crate::hash::absorb;
use crate::interrupt::{Interrupt, take};
use crate::mutant::Fault;
use crate::operation::{Operation, begin, hold, offer, settle, suspend};
use crate::processor::{Activity, ErasedConditions, Order, Source, WaitReport};
use crate::state::{Driver, Phase, Shared, State};

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

/// The wait of simulated CPUs.
pub(crate) fn wait<C: Conditions>(
    state: Shared,
    conditions: &C,
    deadline: Deadline,
    source: Source,
) -> Woken {
    let (timed, cpu) = state.with(|machine| (machine.driver == Driver::Timed, machine.running));
    let erased = ErasedConditions::new(conditions);
    // SAFETY: the conditions are borrowed by this very function.
    let evaluate = || unsafe { evaluate(state, cpu, erased) };
    if timed {
        wait_timed(state, evaluate, deadline, source)
    } else {
        wait_stepped(state, evaluate, erased, deadline, source)
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
            let now = Instant::from_nanos(processor.time);
            let words = processor.watched.len() as u64;
            processor.time += processor.jittered(words * cost, jitter);
            let woken = match met {
                Some(index) => Some(Woken::Met(index)),
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
            let mut wake_at = deadline.instant().map_or(u64::MAX, Instant::as_nanos);
            if machine.register_read {
                let idle_at = machine.cpu().apic.icr_idle_at();
                if idle_at > now {
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
    conditions: ErasedConditions,
    deadline: Deadline,
    source: Source,
) -> Woken {
    let fault = state.with(|machine| {
        let processor = machine.cpu();
        processor.counters.operations += 1;
        processor.at_once = 0;
        let since = Instant::from_nanos(processor.time);
        processor.waits.push(WaitReport { source, since, deadline });
        machine.explored.mutant.as_ref().and_then(|mutant| mutant.at_place(source))
    });
    if fault == Some(Fault::NotWaited) {
        offer(state, Operation::Wait { deadline: Deadline::NEVER }, source);
        state.with(|machine| machine.cpu().waits.pop());
        return Woken::Met(0);
    }
    loop {
        state.with(|machine| {
            let running = machine.running;
            machine.explored.waiting |= 1 << running.min(63);
            let processor = machine.cpu();
            processor.pending = Some((Operation::Wait { deadline }, source));
            processor.conditions = Some(conditions);
            processor.activity = Activity::Waiting;
            processor.drains = false;
            processor.met = None;
        });
        suspend(state);
        let order = state.with(|machine| {
            let running = machine.running;
            if running < 63 {
                machine.explored.waiting &= !(1 << running);
            }
            let processor = machine.cpu();
            processor.conditions = None;
            processor.activity = Activity::Running;
            processor.order.take()
        });
        let expired = match order {
            Some(Order::Interrupt) => {
                take(state, Interrupt::Vector);
                continue;
            }
            Some(Order::Nmi) => {
                take(state, Interrupt::Nmi);
                continue;
            }
            Some(Order::Expire) => true,
            Some(Order::Step) | None => false,
        };
        if expired {
            let end = deadline.instant().map_or(0, Instant::as_nanos);
            state.with(|machine| machine.cpu().time = machine.cpu().time.max(end));
        }
        let woken = match evaluate() {
            Some(index) => Woken::Met(index),
            None if expired => Woken::Deadline,
            None => continue,
        };
        return state.with(|machine| {
            machine.end_wait(woken, deadline, source, fault != Some(Fault::Relaxed));
            woken
        });
    }
}

impl State {
    /// Stepped: the running CPU's wait ends. It has read what its conditions read, with acquire ordering unless a
    /// deliberate fault says otherwise.
    fn end_wait(&mut self, woken: Woken, deadline: Deadline, source: Source, acquires: bool) {
        let running = self.running;
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
        processor.waits.pop();
        let learned = if let Woken::Met(index) = woken { index as u64 } else { u64::MAX };
        processor.history = absorb(processor.history, learned);
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

fn sleep_timed(state: Shared) {
    loop {
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
        let before = time();
        if before >= end {
            return;
        }
        settle(state);
        end = end.saturating_add(time() - before);
    }
}
