//! What the gates of a capture kernel do before it has handlers: count, and end what is to be ended (law L8).

use smpcall_machine::{Counter, Machine};

use crate::{Access, LocalApic, Register};

/// One counter for each vector, and the one thing that an inert gate does. The gates themselves are the kernel's.
///
/// One CPU's: the counters are written by one CPU only.
#[derive(Debug)]
pub struct InertGates {
    taken: [Counter; 256],
    not_in_service: Counter,
}

impl Default for InertGates {
    fn default() -> Self {
        Self::new()
    }
}

impl InertGates {
    /// All zero: for statics.
    pub const fn new() -> Self {
        Self { taken: [const { Counter::new(0) }; 256], not_in_service: Counter::new(0) }
    }

    /// What the gate of `vector` does: counts, and writes the end of interrupt if that vector is in service at this
    /// CPU's APIC; so an `ExtINT`, a spurious interrupt and a software interrupt get none (report 003). Returns whether it
    /// was written.
    ///
    /// For gates that stay closed to interrupts. An `ExtINT` whose vector is in service for another reason would end that:
    /// not after [`drain`](LocalApic::drain) has ended what was in service, since a gate's own interrupt is ended before
    /// the next one is taken.
    pub fn taken<M: Machine, A: Access>(&self, apic: &LocalApic<M, A>, vector: u8) -> bool {
        self.taken[usize::from(vector)].add(1);
        let in_service = apic.is_in_service(vector);
        if in_service {
            apic.access.write(Register::END_OF_INTERRUPT, 0);
        } else {
            self.not_in_service.add(1);
        }
        in_service
    }

    /// How often the gate of `vector` was entered.
    pub fn count(&self, vector: u8) -> u64 {
        self.taken[usize::from(vector)].get()
    }

    /// How often any gate was entered.
    pub fn total(&self) -> u64 {
        self.taken.iter().map(Counter::get).sum()
    }

    /// How often a gate was entered for what was not in service: by an `ExtINT`, or spuriously.
    pub fn not_in_service(&self) -> u64 {
        self.not_in_service.get()
    }

    /// The gates that were entered, ascending, and how often.
    pub fn entered(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        (0..=255).map(|vector| (vector, self.count(vector))).filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::testing::{Recorder, driver};

    #[test]
    fn only_what_is_in_service_is_ended_and_all_is_counted() {
        let recorder = Recorder::new(Mode::X2Apic);
        recorder.set(Register::in_service(7), 1 << 27);
        let (driver, gates) = (driver(&recorder), InertGates::new());
        assert!(gates.taken(&driver, 0xfb));
        assert!(!gates.taken(&driver, 0xfa));
        assert!(!gates.taken(&driver, 0xff));
        assert!(!gates.taken(&driver, 0xff));
        assert_eq!(recorder.written(), [(Register::END_OF_INTERRUPT, 0)]);
        assert!(gates.entered().eq([(0xfa, 1), (0xfb, 1), (0xff, 2)]));
        assert_eq!((gates.total(), gates.not_in_service()), (4, 3));
    }
}
