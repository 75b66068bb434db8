//! The hand-over from a crashed kernel to the one that captures it: recording on one side, draining on the other (law L8).
//!
//! The crashing CPU, with interrupts disabled: [`record`](LocalApic::record), then
//! [`mask_all_local_vectors`](LocalApic::mask_all_local_vectors), [`IoApic::mask_all`](crate::IoApic::mask_all),
//! [`Pic::mask_all`](crate::Pic::mask_all). What is pending stays pending: only taking an interrupt clears its request
//! (report 004), and a kernel that crashed must not run its handlers.
//!
//! The capture kernel's entry, on its own stack, with an IDT of inert gates, interrupts still disabled:
//! [`drain`](LocalApic::drain). Only then does it install real handlers.

use core::time::Duration;

use smpcall_machine::{Deadline, InterruptsOff, Machine, Predicate, wait};

use crate::{
    Access, ApicId, Errors, InertGates, LocalApic, LocalSource, Mode, Priority, Register, Spurious, Vector,
    Vectors, Version,
};

/// All that a local APIC says of itself at a crash, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicRecord {
    /// Its identifier.
    pub id: ApicId,
    /// Its mode.
    pub mode: Mode,
    /// What kind it is.
    pub version: Version,
    /// Accepted and not taken (IRR).
    pub requests: Vectors,
    /// Taken and not ended (ISR).
    pub in_service: Vectors,
    /// Of these, level-triggered (TMR).
    pub level_triggered: Vectors,
    /// The task priority.
    pub task_priority: Priority,
    /// The processor priority.
    pub processor_priority: Priority,
    /// The spurious vector and the software enable.
    pub spurious: Spurious,
    /// Errors since they were last asked for.
    pub errors: Errors,
    /// The last command, with its delivery status. See [`Access::read_icr`] for what may be missing.
    pub icr: u64,
    /// The local vector table in the order of [`LocalSource::ALL`]: the bits as they were read; none where there is no entry.
    pub local_vectors: [Option<u32>; LocalSource::ALL.len()],
}

impl ApicRecord {
    /// Whether a kernel that starts on this CPU finds nothing old in its APIC.
    pub fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.in_service.is_empty()
    }
}

/// What [`LocalApic::drain`] found, and what it left. What was taken meanwhile is in the gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// In service when it began, and ended.
    pub ended: Vectors,
    /// Of these, level-triggered: their ends were broadcast to the I/O APICs. An entry there that is not masked, and whose
    /// device still asks for attention, sends its interrupt once more after that.
    pub broadcast: Vectors,
    /// Still pending: not taken within the window.
    pub requests: Vectors,
    /// Still in service: a gate did not return, or ended nothing.
    pub in_service: Vectors,
}

impl Drained {
    /// Whether nothing old is left.
    pub fn is_quiet(&self) -> bool {
        self.requests.is_empty() && self.in_service.is_empty()
    }
}

/// The most ends of interrupt that can make a difference: there are 256 vectors.
const MOST_IN_SERVICE: usize = 256;

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// Records this CPU's APIC. Changes nothing but the error status, which is forgotten and armed with that. With
    /// interrupts disabled, or in an NMI handler.
    pub fn record(&self) -> ApicRecord {
        let version = self.version();
        ApicRecord {
            id: self.id(),
            mode: self.access.mode(),
            version,
            requests: self.requests(),
            in_service: self.in_service(),
            level_triggered: self.level_triggered(),
            task_priority: self.task_priority(),
            processor_priority: self.processor_priority(),
            spurious: self.spurious(),
            icr: self.access.read_icr(),
            local_vectors: LocalSource::ALL
                .map(|source| source.exists(version).then(|| self.access.read(source.register()))),
            errors: if version.is_integrated() { self.take_errors() } else { Errors::NONE },
        }
    }

    /// Rids this CPU's APIC of what an earlier kernel left in it: ends what is in service, opens interrupts until nothing is
    /// pending, but for `window` at the most, closes them, and says what remains. The task priority is zero afterwards, and
    /// the APIC enabled by software with the vector `spurious`: otherwise it would keep what it has.
    ///
    /// The sources - local vectors, I/O APICs, 8259s, other CPUs - are silenced before, or what they send during the window
    /// is taken too, and what they send afterwards is not found here. Interrupts are disabled by `interrupts_off`, and again when
    /// this returns; it is borrowed exclusively because they are not in between.
    ///
    /// # Safety
    /// 1. Each vector that this CPU's IDT can be entered by has an inert gate: one that calls
    ///    [`gates.taken`](InertGates::taken) with its vector and returns.
    /// 2. The handlers that were entered for what is in service never go on: their kernel has ended.
    pub unsafe fn drain(
        &self,
        gates: &InertGates,
        interrupts_off: &mut InterruptsOff<M>,
        spurious: Vector,
        window: Duration,
    ) -> Drained {
        // The gates are used by the interrupts; the borrows show that both are there for as long as this takes.
        let _ = (gates, interrupts_off);
        let (ended, broadcast) = self.end_all_in_service();
        self.set_task_priority(Priority::LOWEST);
        self.set_spurious(Spurious::enabled(spurious));
        M::restore_interrupts(true);
        wait::<M>(&Predicate(|| self.requests().is_empty()), Deadline::within::<M>(window));
        let _ = M::disable_interrupts();
        Drained { ended, broadcast, requests: self.requests(), in_service: self.in_service() }
    }

    /// Ends what is in service, the highest first, as the APIC does it. Bounded, whatever the registers say.
    fn end_all_in_service(&self) -> (Vectors, Vectors) {
        let (mut ended, mut broadcast) = (Vectors::EMPTY, Vectors::EMPTY);
        for _ in 0..MOST_IN_SERVICE {
            let Some(vector) = self.in_service().highest() else { break };
            ended.insert(vector);
            if self.level_triggered().contains(vector) {
                broadcast.insert(vector);
            }
            self.access.write(Register::END_OF_INTERRUPT, 0);
        }
        (ended, broadcast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{OneCpu, Recorder, driver, now};

    const SPURIOUS: Vector = Vector::new(0xff).unwrap();

    #[test]
    fn a_record_has_what_the_registers_say() {
        let recorder = Recorder::new(Mode::XApic);
        recorder.set(Register::VERSION, 0x0003_0014);
        recorder.set(Register::ID, 0x0700_0000);
        recorder.set(Register::interrupt_request(7), 1 << 27);
        recorder.set(Register::in_service(1), 1 << 17);
        recorder.set(Register::ICR_HIGH, 0x0500_0000);
        recorder.set(Register::ICR_LOW, 0x50fb);
        recorder.set(Register::LVT_TIMER, 0x2_00ef);
        let record = driver(&recorder).record();
        assert_eq!((record.id, record.mode), (ApicId(7), Mode::XApic));
        assert!(record.requests.contains(0xfb) && record.in_service.contains(0x31) && !record.is_quiet());
        assert_eq!(record.icr, 0x0500_0000_0000_50fb);
        assert_eq!(record.local_vectors[..3], [Some(0), Some(0x2_00ef), Some(0)]);
        assert_eq!(record.local_vectors[4..], [None; 3]);
        assert_eq!(recorder.written(), [(Register::ERROR_STATUS, 0)], "nothing else is written");
    }

    #[test]
    fn a_register_that_never_clears_bounds_neither_ends_nor_the_window() {
        let recorder = Recorder::new(Mode::X2Apic);
        recorder.set(Register::in_service(1), 1 << 17);
        recorder.set(Register::interrupt_request(2), 1);
        let (gates, before) = (InertGates::new(), now());
        let mut interrupts_off = InterruptsOff::<OneCpu>::new();
        let window = Duration::from_millis(1);
        // SAFETY: this machine takes no interrupts, and nothing is in service in truth.
        let drained = unsafe { driver(&recorder).drain(&gates, &mut interrupts_off, SPURIOUS, window) };
        assert_eq!(now() - before, 1_000_000);
        assert!(drained.ended.contains(0x31) && drained.in_service.contains(0x31));
        assert!(drained.requests.contains(0x40) && !drained.is_quiet());
        assert!(!OneCpu::interrupts_enabled());
        let ends = recorder.written().into_iter().filter(|write| write.0 == Register::END_OF_INTERRUPT);
        assert_eq!(ends.count(), 256);
    }
}
