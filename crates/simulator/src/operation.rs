//! The one layer under both drivers: what a CPU does before each operation.
//!
//! A CPU is about to perform an operation. First it is brought to the point at which the operation may happen:
//! in virtual time, when nothing earlier is left to happen; on a stepped machine, when the controller says so.
//! Interrupts that are due are taken there, on this CPU's own stack. Then the operation is performed by whoever
//! called [`begin`].

use core::sync::atomic::Ordering;

use corosensei::Yielder;
use smpcall_local_apic::{Mode, Register};
use smpcall_machine::{Access, Cpu, Deadline};

use crate::interrupt::{Interrupt, take};
use crate::processor::{Order, Source};
use crate::state::{Driver, Phase, Shared, State};

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
    /// Wait until all earlier stores of this CPU are visible to all.
    Fence,
    /// Something that is no CPU requests an interrupt from this one.
    Request {
        /// The CPU.
        cpu: Cpu,
        /// The vector.
        vector: u8,
    },
    /// The program has ended: only interrupts are still taken.
    Ended,
    /// Reset by INIT: only a start-up message ends this.
    WaitForStartUp,
    /// Begin the start-up program, at this page.
    StartUp {
        /// The page that the start-up message named.
        page: u8,
    },
}

impl Operation {
    /// Whether it can send a message.
    pub(crate) fn sends(&self) -> bool {
        matches!(self, Self::WriteIcr(_) | Self::WriteRegister(Register::ICR_LOW | Register::SELF_IPI, _))
    }
}

/// Lets another CPU, or the driver, go on.
///
/// # Panics
/// If this is no CPU's program: a machine at boot, or the conditions of a wait, which have no side effects.
pub(crate) fn suspend(state: Shared) {
    let yielder = state.with(|machine| {
        assert!(machine.phase == Phase::Running, "only a program or a handler can let time pass");
        machine.cpu().yielder
    });
    // SAFETY: in this phase the caller is the running CPU's coroutine, on whose stack the yielder lives for as long as
    // it runs; it has set the pointer before anything else.
    unsafe { (*yielder).suspend(()) }
}

/// Brings the running CPU to the point at which it performs `operation`.
#[inline]
pub(crate) fn begin(state: Shared, operation: Operation, cost: u64, source: Source) {
    let (timed, at_once) = state.with(|machine| {
        let first = machine.queue.first_time();
        let (timed, jitter) = (machine.driver == Driver::Timed, machine.cost.jitter);
        let processor = machine.cpu();
        processor.counters.operations += 1;
        processor.pending = Some((operation, source));
        let clear = processor.next_interrupt().is_none() && !processor.is_wedged();
        let at_once = timed && clear && processor.time <= first;
        if at_once {
            processor.perform(cost, jitter);
        }
        (timed, at_once)
    });
    if at_once {
        return;
    }
    if timed {
        settle(state);
        state.with(|machine| {
            let jitter = machine.cost.jitter;
            machine.cpu().perform(cost, jitter);
        });
    } else {
        come_to(state, operation, source);
    }
}

/// Stepped: brings the running CPU to an operation that is not an access.
fn come_to(state: Shared, operation: Operation, source: Source) {
    let local = state.with(|machine| {
        let options = machine.explored.options;
        let xapic = machine.routing.mode() == Mode::XApic;
        let processor = machine.cpu();
        processor.drains = options.buffers && drains(operation, xapic);
        let waits = processor.drains && !processor.store_buffer.is_empty();
        let local = options.local && machine.is_local(operation) && !waits;
        if local {
            // No choice comes before it, and so no interrupt: it is what the shadow is over.
            machine.cpu().shadow = false;
            machine.tell(operation, None, None, true, source);
        }
        local
    });
    if !local {
        offer(state, operation, source);
        state.with(|machine| machine.tell(operation, None, None, false, source));
    }
}

/// Whether the operation takes no choice away from its CPU, and is noticed by nobody else.
pub(crate) fn is_local(operation: Operation) -> bool {
    match operation {
        Operation::EnableInterrupts => true,
        // Others change what the request and service registers say, but not these.
        Operation::ReadRegister(register) => {
            register == Register::ICR_LOW || register == Register::ID || register == Register::VERSION
        }
        Operation::WriteRegister(register, _) => {
            register == Register::END_OF_INTERRUPT || register == Register::ICR_HIGH
        }
        _ => false,
    }
}

impl State {
    /// As [`is_local`], on this machine.
    pub(crate) fn is_local(&self, operation: Operation) -> bool {
        // Where a message may find no room, the end of an interrupt makes it, and the delivery status tells of it.
        let tells_of_room = matches!(
            operation,
            Operation::ReadRegister(Register::ICR_LOW)
                | Operation::WriteRegister(Register::END_OF_INTERRUPT, _)
        );
        is_local(operation) && !(self.interconnect.retries && tells_of_room)
    }
}

/// Whether the operation waits on x86 until the store buffer is empty. An x2APIC's registers do not: their driver fences.
fn drains(operation: Operation, xapic: bool) -> bool {
    match operation {
        Operation::Fence => true,
        Operation::WriteRegister(..) | Operation::WriteIcr(_) => xapic,
        _ => false,
    }
}

/// Stepped: offers the operation until the controller says "step".
pub(crate) fn offer(state: Shared, operation: Operation, source: Source) {
    offer_then(state, operation, source, |_| ());
}

/// Stepped: offers the operation until the controller says "step", and does it.
#[inline]
pub(crate) fn offer_then<R>(
    state: Shared,
    operation: Operation,
    source: Source,
    act: impl FnMut(&mut State) -> R,
) -> R {
    let yielder = state.with(|machine| {
        let processor = machine.cpu();
        processor.pending = Some((operation, source));
        processor.yielder
    });
    // SAFETY: the yielder is the running CPU's.
    unsafe { pending_then(state, yielder, act) }
}

/// Stepped: does what is [pending](crate::processor::Processor::pending) once the controller says "step".
///
/// # Safety
/// The yielder is that of the running CPU.
#[inline(always)]
pub(crate) unsafe fn pending_then<R>(
    state: Shared,
    yielder: *const Yielder<(), ()>,
    mut act: impl FnMut(&mut State) -> R,
) -> R {
    loop {
        // SAFETY: this is the running CPU's coroutine, on whose stack the yielder lives for as long as it runs; it has
        // set the pointer before anything else.
        unsafe { (*yielder).suspend(()) }
        let done = state.with(|machine| {
            let processor = machine.cpu();
            match processor.order.take() {
                Some(Order::Interrupt) => Err(Interrupt::Vector),
                Some(Order::Nmi) => Err(Interrupt::Nmi),
                Some(Order::Step | Order::Expire) | None => {
                    processor.shadow = false;
                    Ok(act(machine))
                }
            }
        });
        match done {
            Ok(result) => return result,
            // When its handler returns, the same is pending again.
            Err(interrupt) => take(state, interrupt),
        }
    }
}

/// What comes before a CPU's next operation.
enum Next {
    Interrupt(Interrupt),
    OtherCpu,
    Event,
    Nothing,
}

/// If an INIT has reset the running CPU: what it was doing never goes on. The caller's frames stay where they are.
pub(crate) fn give_up_if_abandoned(state: Shared) {
    if state.with(|machine| machine.cpu().anew.is_some()) {
        suspend(state);
        unreachable!("a CPU that was reset begins anew on another stack");
    }
}

/// Timed: lets everything earlier happen and takes the interrupts that are due.
pub(crate) fn settle(state: Shared) {
    loop {
        give_up_if_abandoned(state);
        hold(state);
        let next = state.with(|machine| {
            if let Some(interrupt) = machine.cpu().next_interrupt() {
                return Next::Interrupt(interrupt);
            }
            let (running, time) = (machine.running, machine.cpu().time);
            match machine.queue.first() {
                Some((first, slot)) if first < time => {
                    if machine.interconnect.is_inline_event(slot) {
                        machine.queue.pop();
                        machine.happen(slot, first);
                        Next::Event
                    } else {
                        machine.next = machine.queue.set_and_pop(running as u32, time);
                        Next::OtherCpu
                    }
                }
                _ => Next::Nothing,
            }
        });
        match next {
            Next::Interrupt(interrupt) => take(state, interrupt),
            Next::OtherCpu => suspend(state),
            Next::Event => {}
            Next::Nothing => return,
        }
    }
}

/// Timed: while a fault keeps this CPU from making a step, lets time pass; NMIs may still be taken.
pub(crate) fn hold(state: Shared) {
    loop {
        let next = state.with(|machine| {
            let running = machine.running as u32;
            let processor = machine.cpu();
            if !processor.is_wedged() {
                return Next::Nothing;
            }
            if processor.takes_nmis_at(processor.time) && processor.nmi_deliverable {
                return Next::Interrupt(Interrupt::Nmi);
            }
            match processor.held_until(processor.time) {
                u64::MAX => machine.queue.cancel(running),
                until => machine.queue.set(running, until),
            }
            Next::OtherCpu
        });
        match next {
            Next::Interrupt(interrupt) => take(state, interrupt),
            Next::OtherCpu | Next::Event => suspend(state),
            Next::Nothing => return,
        }
    }
}
