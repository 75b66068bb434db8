//! The one layer under both drivers: what a CPU does before, during and after each operation.
//!
//! A CPU is about to perform an operation. First it is brought to the point at which the operation may happen:
//! in virtual time, when nothing earlier is left to happen; on a stepped machine, when the controller says so.
//! Interrupts that are due are taken there, on this CPU's own stack. Then the operation is performed by whoever
//! called [`begin`].

use core::sync::atomic::Ordering;
use std::panic::Location;

use smpcall_local_apic::{InService, Register, Vector};
use smpcall_machine::{Access, Conditions, Cpu, Deadline, EventKind, Instant, Woken};

use crate::hash::absorb;
use crate::processor::{Activity, ErasedConditions, Interrupt, Order, Source, WaitReport};
use crate::state::{Driver, Phase, State};

/// What a CPU is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Access shared memory.
    Access {
        /// The address: what [`Names`](crate::Names) has the name of.
        location: usize,
        /// What is done.
        access: Access,
        /// With which ordering.
        order: Ordering,
    },
    /// Wait for conditions.
    Wait {
        /// Until when at the latest.
        deadline: Deadline,
    },
    /// Disable interrupts.
    DisableInterrupts,
    /// Enable interrupts.
    EnableInterrupts,
    /// Read a register of the local APIC.
    ReadRegister(Register),
    /// Write a register of the local APIC.
    WriteRegister(Register, u32),
    /// Write the 64-bit ICR (x2APIC).
    WriteIcr(u64),
    /// Enable interrupts and halt, in one (`sti; hlt`).
    Halt,
    /// Halted: only an interrupt ends this.
    Halted,
    /// Work for a time on nothing that is shared (virtual time only).
    Work {
        /// For how long, in nanoseconds.
        nanos: u64,
    },
    /// The program has ended: only interrupts are still taken.
    Ended,
}

/// What a handler is told about the interrupt that it handles.
#[derive(Debug)]
pub struct InterruptFrame {
    /// The vector; none for an NMI.
    pub vector: Option<u8>,
    /// Whether interrupts were enabled in what was interrupted. Always, unless by an NMI.
    pub interrupts_were_enabled: bool,
    /// The operation that was about to be executed.
    pub interrupted: Operation,
    /// Where it stands in the source.
    pub source: Source,
    in_service: Option<InService>,
}

impl InterruptFrame {
    /// Writes the end of interrupt, through the driver, if this frame's was not written yet. Does nothing for an
    /// NMI, which has none. A handler that never calls it blocks its vector, as on hardware.
    #[track_caller]
    pub fn end_of_interrupt(&mut self) {
        if let Some(in_service) = self.in_service.take() {
            crate::machine::local_apic().end_of_interrupt(in_service);
        }
    }
}

/// Lets another CPU, or the driver, go on.
pub(crate) fn suspend(state: *mut State) {
    // SAFETY: the caller is the running CPU's coroutine and holds no reference into the state. The yielder lives
    // on this coroutine's stack for as long as it runs.
    unsafe {
        let yielder = (*state).cpu().yielder;
        (*yielder).suspend(());
    }
}

/// Brings the running CPU to the point at which it performs `operation`.
#[inline]
pub(crate) fn begin(state: *mut State, operation: Operation, cost: u64, source: Source) {
    // SAFETY: one thread; no other reference into the state is alive while a CPU calls this, and none of ours is
    // when another one may run.
    let machine = unsafe { &mut *state };
    let jitter = machine.cost.jitter;
    let first = machine.queue.first_time();
    let timed = machine.driver == Driver::Timed;
    let processor = machine.cpu();
    processor.counters.operations += 1;
    if timed {
        processor.pending = Some((operation, source));
        let clear = processor.next_interrupt().is_none() && !processor.is_wedged();
        if !clear || processor.time > first {
            settle(state);
        }
        // SAFETY: as above, after others may have run.
        let processor = unsafe { (*state).cpu() };
        processor.pending = Some((operation, source));
        processor.shadow = false;
        let cost = processor.jittered(cost, jitter);
        processor.time += cost;
    } else {
        offer(state, operation, source);
    }
}

/// Stepped: offers the operation until the controller says "step".
fn offer(state: *mut State, operation: Operation, source: Source) {
    loop {
        // SAFETY: as in `begin`; the reference ends before the suspension.
        unsafe { (*state).cpu().pending = Some((operation, source)) };
        suspend(state);
        // SAFETY: as in `begin`.
        let processor = unsafe { (*state).cpu() };
        match processor.order.take() {
            Some(Order::Interrupt) => take(state, Interrupt::Vector),
            Some(Order::Nmi) => take(state, Interrupt::Nmi),
            Some(Order::Step | Order::Expire) | None => {
                processor.pending = None;
                processor.shadow = false;
                return;
            }
        }
    }
}

/// Timed: lets everything earlier happen and takes the interrupts that are due.
fn settle(state: *mut State) {
    loop {
        hold(state);
        // SAFETY: as in `begin`; the reference ends before a handler or another CPU runs.
        let machine = unsafe { &mut *state };
        if let Some(interrupt) = machine.cpu().next_interrupt() {
            take(state, interrupt);
            continue;
        }
        let running = machine.running;
        let time = machine.cpu().time;
        match machine.queue.first() {
            Some((first, slot)) if first < time => {
                if machine.interconnect.is_inline_event(slot) {
                    machine.queue.pop();
                    machine.happen(slot, first);
                } else {
                    machine.queue.set(running as u32, time);
                    suspend(state);
                }
            }
            _ => return,
        }
    }
}

/// Timed: while a fault keeps this CPU from making a step, lets time pass; NMIs may still be taken.
fn hold(state: *mut State) {
    loop {
        // SAFETY: as in `begin`; the reference ends before a handler or another CPU runs.
        let machine = unsafe { &mut *state };
        let running = machine.running;
        let processor = machine.cpu();
        if !processor.is_wedged() {
            return;
        }
        if processor.wedge.takes_nmis && processor.nmi_deliverable {
            take(state, Interrupt::Nmi);
            continue;
        }
        let until = processor.wedge.until;
        if until == u64::MAX {
            machine.queue.cancel(running as u32);
        } else {
            machine.queue.set(running as u32, until);
        }
        suspend(state);
    }
}

/// Undoes what taking an interrupt did, also when the handler panics.
struct Return {
    state: *mut State,
    interrupt: Interrupt,
    vector: u8,
    interrupts_were_enabled: bool,
    pending: Option<(Operation, Source)>,
    activity: Activity,
    history: u128,
}

impl Drop for Return {
    fn drop(&mut self) {
        // SAFETY: as in `begin`: the handler has returned.
        let machine = unsafe { &mut *self.state };
        let (cost, jitter) = (machine.cost.interrupt_exit, machine.cost.jitter);
        let (timed, forget) = (machine.driver == Driver::Timed, machine.handlers_forget);
        let running = machine.running;
        let processor = machine.cpu();
        processor.handler_depth -= 1;
        if timed {
            processor.time += processor.jittered(cost, jitter);
        } else if forget {
            processor.history = self.history;
        } else {
            processor.history = absorb(processor.history, 3);
        }
        processor.interrupts_enabled = self.interrupts_were_enabled;
        processor.shadow = false;
        processor.pending = self.pending;
        processor.activity = self.activity;
        if self.interrupt == Interrupt::Nmi {
            processor.nmi_depth -= 1;
            processor.apic.return_from_nmi();
            processor.refresh();
        }
        machine.record(running, EventKind::InterruptReturned, None, self.vector.into(), 0);
    }
}

/// The vector number of an NMI, in traces and counts.
pub(crate) const NMI_VECTOR: u8 = 2;

/// Takes an interrupt on the running CPU: runs its handler to its end.
///
/// # Panics
/// If the vector has no handler: a real kernel would call that a bug too.
pub(crate) fn take(state: *mut State, interrupt: Interrupt) {
    // SAFETY: as in `begin`; the reference ends before the handler runs.
    let machine = unsafe { &mut *state };
    let (cost, jitter) = (machine.cost.interrupt_entry, machine.cost.jitter);
    let timed = machine.driver == Driver::Timed;
    let running = machine.running;
    let processor = machine.cpu();
    let vector = match interrupt {
        Interrupt::Nmi => {
            let taken = processor.apic.take_nmi();
            debug_assert!(taken, "the APIC offered an NMI");
            processor.nmi_depth += 1;
            processor.counters.nmis_taken += 1;
            NMI_VECTOR
        }
        Interrupt::Vector => {
            let Some(vector) = processor.apic.take() else { return };
            processor.counters.taken[vector as usize] += 1;
            vector
        }
    };
    processor.refresh();
    let (operation, source) = processor.pending.unwrap_or((Operation::Ended, Location::caller()));
    let guard = Return {
        state,
        interrupt,
        vector,
        interrupts_were_enabled: processor.interrupts_enabled,
        pending: processor.pending,
        activity: processor.activity,
        history: processor.history,
    };
    processor.interrupts_enabled = false;
    processor.shadow = false;
    processor.handler_depth += 1;
    processor.activity = Activity::Running;
    if timed {
        processor.time += processor.jittered(cost, jitter);
    } else {
        processor.history = absorb(processor.history, 0x100 + u64::from(vector));
    }
    let kind = match interrupt {
        Interrupt::Nmi => EventKind::NmiTaken,
        Interrupt::Vector => EventKind::InterruptTaken,
    };
    machine.record(running, kind, None, vector.into(), 0);
    let frame = InterruptFrame {
        vector: (interrupt == Interrupt::Vector).then_some(vector),
        interrupts_were_enabled: guard.interrupts_were_enabled,
        interrupted: operation,
        source,
        // SAFETY: the CPU has just taken this vector from its APIC, and enters its handler once.
        in_service: Vector::new(vector)
            .filter(|_| interrupt == Interrupt::Vector)
            .map(|vector| unsafe { InService::entered(vector) }),
    };
    let handler = match interrupt {
        Interrupt::Nmi => machine.nmi_handler,
        Interrupt::Vector => machine.handlers[vector as usize],
    };
    let Some(handler) = handler else {
        drop(guard);
        panic!("an interrupt with vector {vector:#04x} came in, and there is no handler for it");
    };
    handler(frame);
    drop(guard);
}

/// Evaluates the conditions of a wait of `cpu`, and notes in that CPU which words they read.
///
/// # Safety
/// The reference that the conditions were made from is still valid.
pub(crate) unsafe fn evaluate(state: *mut State, cpu: usize, conditions: ErasedConditions) -> Option<usize> {
    let (running, phase) = {
        // SAFETY: as in `begin`; the reference ends before the conditions run.
        let machine = unsafe { &mut *state };
        machine.cpus[cpu].watched.clear();
        machine.register_read = false;
        (
            core::mem::replace(&mut machine.running, cpu),
            core::mem::replace(&mut machine.phase, Phase::Evaluating),
        )
    };
    // SAFETY: promised by the caller.
    let met = unsafe { conditions.first_met() };
    // SAFETY: as in `begin`.
    let machine = unsafe { &mut *state };
    machine.running = running;
    machine.phase = phase;
    met
}

/// The wait of simulated CPUs.
pub(crate) fn wait<C: Conditions>(
    state: *mut State,
    conditions: &C,
    deadline: Deadline,
    source: Source,
) -> Woken {
    let conditions = ErasedConditions::new(conditions);
    // SAFETY: as in `begin`.
    if unsafe { (*state).driver } == Driver::Stepped {
        return wait_stepped(state, conditions, deadline, source);
    }
    begin(state, Operation::Wait { deadline }, 0, source);
    let mut began = false;
    let woken = loop {
        // SAFETY: the conditions are borrowed by this very function.
        let met = unsafe { evaluate(state, (*state).running, conditions) };
        // SAFETY: as in `begin`; the reference ends before another CPU runs.
        let machine = unsafe { &mut *state };
        let running = machine.running;
        let (cost, jitter) = (machine.cost.load, machine.cost.jitter);
        let processor = machine.cpu();
        let now = Instant::from_nanos(processor.time);
        let words = processor.watched.len() as u64;
        processor.time += processor.jittered(words * cost, jitter);
        if let Some(index) = met {
            break Woken::Met(index);
        }
        if deadline.has_passed(now) {
            break Woken::Deadline;
        }
        if !began {
            began = true;
            processor.waits.push(WaitReport { source, since: now, deadline });
            machine.record(running, EventKind::WaitBegan, None, 0, 0);
        }
        if machine.cpu().next_interrupt().is_some() {
            settle(state);
            continue;
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
        suspend(state);
        // SAFETY: as in `begin`.
        let machine = unsafe { &mut *state };
        machine.unwatch();
        machine.cpu().activity = Activity::Running;
        settle(state);
    };
    // SAFETY: as in `begin`.
    let machine = unsafe { &mut *state };
    if began {
        let running = machine.running;
        machine.cpu().waits.pop();
        machine.record(running, EventKind::WaitEnded, None, 0, u64::from(woken == Woken::Deadline));
    }
    woken
}

fn wait_stepped(
    state: *mut State,
    conditions: ErasedConditions,
    deadline: Deadline,
    source: Source,
) -> Woken {
    // SAFETY: as in `begin`; no reference is alive when others run.
    let machine = unsafe { &mut *state };
    let processor = machine.cpu();
    processor.counters.operations += 1;
    let since = Instant::from_nanos(processor.time);
    processor.waits.push(WaitReport { source, since, deadline });
    loop {
        // SAFETY: as above.
        let processor = unsafe { (*state).cpu() };
        processor.pending = Some((Operation::Wait { deadline }, source));
        processor.conditions = Some(conditions);
        processor.activity = Activity::Waiting;
        suspend(state);
        // SAFETY: as above.
        let processor = unsafe { (*state).cpu() };
        processor.conditions = None;
        processor.activity = Activity::Running;
        let order = processor.order.take();
        match order {
            Some(Order::Interrupt) => take(state, Interrupt::Vector),
            Some(Order::Nmi) => take(state, Interrupt::Nmi),
            Some(Order::Step | Order::Expire) | None => {
                if order == Some(Order::Expire) {
                    let end = deadline.instant().map_or(0, Instant::as_nanos);
                    processor.time = processor.time.max(end);
                }
                // SAFETY: the conditions are borrowed by the caller.
                let met = unsafe { evaluate(state, (*state).running, conditions) };
                // SAFETY: as above.
                let processor = unsafe { (*state).cpu() };
                let woken = match met {
                    Some(index) => Woken::Met(index),
                    None if order == Some(Order::Expire) => Woken::Deadline,
                    None => continue,
                };
                processor.pending = None;
                processor.shadow = false;
                processor.waits.pop();
                processor.history = absorb(processor.history, met.map_or(u64::MAX, |index| index as u64));
                return woken;
            }
        }
    }
}

/// Enables interrupts and halts until one was taken.
pub(crate) fn halt(state: *mut State, source: Source) {
    let (cost, ended, timed) = {
        // SAFETY: as in `begin`; no reference is alive when others run. So each below.
        let machine = unsafe { &mut *state };
        (machine.cost.interrupt_flag, machine.cpu().is_idle(), machine.driver == Driver::Timed)
    };
    let halted = if ended { Operation::Ended } else { Operation::Halted };
    if !ended || timed {
        begin(state, Operation::Halt, cost, source);
    }
    // SAFETY: as above.
    let machine = unsafe { &mut *state };
    let running = machine.running;
    machine.cpu().interrupts_enabled = true;
    machine.cpu().pending = Some((halted, source));
    if !ended {
        machine.record(running, EventKind::Halted, None, 0, 0);
    }
    if timed {
        loop {
            hold(state);
            // SAFETY: as above.
            let processor = unsafe { (*state).cpu() };
            if let Some(interrupt) = processor.next_interrupt() {
                take(state, interrupt);
                break;
            }
            processor.activity = Activity::Halted;
            suspend(state);
            // SAFETY: as above.
            unsafe { (*state).cpu().activity = Activity::Running };
        }
    } else {
        // SAFETY: as above.
        let processor = unsafe { (*state).cpu() };
        processor.history = absorb(processor.history, 1);
        processor.activity = Activity::Halted;
        suspend(state);
        // SAFETY: as above.
        let processor = unsafe { (*state).cpu() };
        processor.activity = Activity::Running;
        match processor.order.take() {
            Some(Order::Nmi) => take(state, Interrupt::Nmi),
            _ => take(state, Interrupt::Vector),
        }
        // SAFETY: as above. The idle loop knows nothing, whatever its handlers saw.
        let processor = unsafe { (*state).cpu() };
        processor.history = absorb(if ended { 0 } else { processor.history }, 2);
    }
    if !ended {
        // SAFETY: as above.
        unsafe { (*state).record(running, EventKind::Resumed, None, 0, 0) };
    }
}

/// Works for `nanos` on nothing that is shared. Interrupts are taken meanwhile and make it longer. Takes no time
/// on a stepped machine, where an interrupt can come before every operation anyway.
pub(crate) fn work(state: *mut State, nanos: u64, source: Source) {
    // SAFETY: as in `begin`; no reference is alive when others run.
    if unsafe { (*state).driver } == Driver::Stepped {
        return;
    }
    begin(state, Operation::Work { nanos }, 0, source);
    // SAFETY: as above.
    let mut end = unsafe { (*state).cpu().time }.saturating_add(nanos);
    loop {
        // SAFETY: as above.
        let machine = unsafe { &mut *state };
        if machine.cpu().next_interrupt().is_none() {
            if end <= machine.queue.first_time() {
                let processor = machine.cpu();
                processor.time = processor.time.max(end);
                return;
            }
            let running = machine.running;
            machine.queue.set(running as u32, end);
            machine.cpu().activity = Activity::Working;
            suspend(state);
        }
        // SAFETY: as above.
        let processor = unsafe { (*state).cpu() };
        processor.activity = Activity::Running;
        let before = processor.time;
        if before >= end {
            return;
        }
        settle(state);
        // SAFETY: as above.
        end = end.saturating_add(unsafe { (*state).cpu().time } - before);
    }
}

/// The CPU that runs, as a number.
pub(crate) fn running(state: *mut State) -> Cpu {
    // SAFETY: as in `begin`.
    Cpu::new(unsafe { (*state).running } as u32)
}
