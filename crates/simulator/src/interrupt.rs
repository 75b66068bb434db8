//! Taking an interrupt: from the decision of the APIC to the return of the handler.

use std::panic::Location;

use smpcall_local_apic::{InService, Register, Vector};
use smpcall_machine::{EventKind, Instant};

use crate::explorer::footprint::Use;
use crate::hash::absorb;
use crate::machine::SPURIOUS_VECTOR;
use crate::operation::Operation;
use crate::places::{irr_place, nmi_place};
use crate::processor::{Activity, Source};
use crate::state::{Driver, Handler, Shared, State};

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

/// An interrupt that a CPU takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The highest vector that its APIC offers.
    Vector,
    Nmi,
}

/// The vector number of an NMI, in traces.
const NMI_VECTOR: u8 = 2;

/// Undoes what taking an interrupt did, also when the handler panics.
struct Return {
    state: Shared,
    interrupt: Interrupt,
    vector: u8,
    interrupts_were_enabled: bool,
    pending: Option<(Operation, Source)>,
    drains: bool,
    activity: Activity,
    parked: bool,
    history: u128,
}

impl Drop for Return {
    fn drop(&mut self) {
        self.state.with(|machine| {
            let (cost, jitter) = (machine.cost.interrupt_exit, machine.cost.jitter);
            let (timed, forget) = (machine.driver == Driver::Timed, machine.believe_hints);
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
            processor.drains = self.drains;
            processor.activity = self.activity;
            processor.parked = self.parked;
            if self.interrupt == Interrupt::Nmi {
                processor.nmi_depth -= 1;
            }
            // An IRET unblocks NMIs whatever it returns from: SDM, "Handling Multiple NMIs".
            if processor.apic.nmi_in_progress() {
                processor.apic.return_from_nmi();
                processor.refresh();
            }
            machine.record(running, EventKind::InterruptReturned, None, self.vector.into(), 0);
        });
    }
}

/// Takes an interrupt on the running CPU: runs its handler to its end.
///
/// # Panics
/// If the vector has no handler: a real kernel would call that a bug too.
pub(crate) fn take(state: Shared, interrupt: Interrupt) {
    let Some((guard, frame, handler)) = enter(state, interrupt) else { return };
    let Some(handler) = handler else {
        let vector = guard.vector;
        drop(guard);
        panic!("an interrupt with vector {vector:#04x} came in, and there is no handler for it");
    };
    handler(frame);
    drop(guard);
}

impl State {
    /// The running CPU asks for the vector of the interrupt that was signalled, and whether its APIC has put it in service.
    /// `None` if none was signalled.
    fn acknowledge(&mut self) -> Option<(u8, bool)> {
        let processor = self.cpu();
        if core::mem::take(&mut processor.spurious) {
            let now = Instant::from_nanos(processor.time);
            let register = processor.apic.read(Register::SPURIOUS_VECTOR, now);
            return Some((register.map_or(SPURIOUS_VECTOR, |value| value as u8), false));
        }
        // The processor priority does not matter to the external controller (report 003).
        if processor.apic.take_ext_int() {
            return Some((self.acknowledge_pic(), false));
        }
        processor.apic.take().map(|vector| (vector, true))
    }
}

/// All that happens before the handler's first instruction. `None` if nothing is deliverable.
fn enter(state: Shared, interrupt: Interrupt) -> Option<(Return, InterruptFrame, Option<Handler>)> {
    state.with(|machine| {
        let (cost, jitter) = (machine.cost.interrupt_entry, machine.cost.jitter);
        let timed = machine.driver == Driver::Timed;
        let running = machine.running;
        let processor = machine.cpu();
        let mut in_service = false;
        let vector = match interrupt {
            Interrupt::Nmi if !processor.apic.take_nmi() => return None,
            Interrupt::Nmi => {
                processor.nmi_depth += 1;
                processor.counters.nmis_taken += 1;
                NMI_VECTOR
            }
            Interrupt::Vector => {
                let (vector, from_apic) = machine.acknowledge()?;
                in_service = from_apic;
                let processor = machine.cpu();
                processor.counters.taken[vector as usize] += 1;
                processor.took_interrupts = true;
                vector
            }
        };
        machine.cpu().refresh();
        let place = if interrupt == Interrupt::Nmi { nmi_place(running) } else { irr_place(running) };
        machine.explored.footprint.add(place, Use::Write);
        machine.explored.meet_interrupt(running, interrupt == Interrupt::Nmi);
        let processor = machine.cpu();
        // A wedge is a task that spins with interrupts disabled: that is what an NMI finds there.
        let wedged = processor.time < processor.wedge.until;
        let (interrupted, source) = processor.pending.unwrap_or((Operation::Ended, Location::caller()));
        let guard = Return {
            state,
            interrupt,
            vector,
            interrupts_were_enabled: processor.interrupts_enabled,
            pending: processor.pending,
            drains: processor.drains,
            activity: processor.activity,
            parked: processor.parked,
            history: processor.history,
        };
        processor.parked = false;
        if timed && interrupt == Interrupt::Nmi {
            machine.wedge_in_nmi();
        }
        let processor = machine.cpu();
        processor.interrupts_enabled = false;
        processor.shadow = false;
        processor.handler_depth += 1;
        processor.activity = Activity::Running;
        if timed {
            processor.time += processor.jittered(cost, jitter);
        } else {
            processor.history = absorb(processor.history, 0x100 + u64::from(vector));
        }
        let (kind, handler) = match interrupt {
            Interrupt::Nmi => (EventKind::NmiTaken, machine.image().nmi_handler),
            Interrupt::Vector => (EventKind::InterruptTaken, machine.image().handlers[vector as usize]),
        };
        machine.record(running, kind, None, vector.into(), 0);
        let frame = InterruptFrame {
            vector: (interrupt == Interrupt::Vector).then_some(vector),
            interrupts_were_enabled: guard.interrupts_were_enabled && !wedged,
            interrupted,
            source,
            in_service: Vector::new(vector)
                .filter(|_| in_service)
                // SAFETY: the CPU has just taken this vector from its APIC, which has put it in service, and enters its
                // handler once.
                .map(|vector| unsafe { InService::entered(vector) }),
        };
        Some((guard, frame, handler))
    })
}
