//! Sending without naming each target: to oneself, by shorthand, to whoever is least busy.

use smpcall_machine::{CpuMask, Machine, SendError};

use crate::idle::Patience;
use crate::{
    Access, Addressing, DeliveryMode, Icr, Interrupt, LocalApic, Mode, Register, Sent, Shorthand, Topology,
    Vector,
};

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// Sends an ordinary interrupt to this CPU. On x2APIC by the register that there is for it; in xAPIC mode by shorthand,
    /// and then as [`send_one`](Self::send_one). SDM, "SELF IPI Register".
    ///
    /// # Errors
    /// [`SendError::ControllerBusy`], in xAPIC mode only.
    pub fn send_self(&self, vector: Vector) -> Result<Sent, SendError> {
        match self.access.mode() {
            Mode::X2Apic => {
                self.access.write(Register::SELF_IPI, vector.number().into());
                Ok(Sent { commands: 1, rewritten: 0 })
            }
            Mode::XApic => {
                let icr = Icr::shorthand(DeliveryMode::Fixed, vector.number(), Shorthand::SelfOnly);
                self.submit(icr, &mut Patience::of(DeliveryMode::Fixed))
            }
        }
    }

    /// Sends one interrupt by shorthand: one command, which reaches each APIC that the hardware has, whether the kernel
    /// knows it or not. Context and bound as for [`send_one`](Self::send_one).
    ///
    /// # Errors
    /// [`SendError::Unsupported`], and nothing is sent: for "all" and "all but self" as long as
    /// [`shorthand_reach`](Topology::shorthand_reach) has none (a present CPU was never started); for what the manual calls
    /// an invalid combination, which is all but ordinary interrupts to oneself or to all; for no shorthand.
    /// [`SendError::ControllerBusy`] as for [`send_one`](Self::send_one).
    /// SDM, "Interrupt Command Register (ICR)", valid combinations.
    pub fn send_by_shorthand(
        &self,
        topology: &impl Topology,
        shorthand: Shorthand,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        let fixed = matches!(interrupt, Interrupt::Fixed(_));
        let all_were_started = || topology.shorthand_reach().is_some();
        let allowed = match shorthand {
            Shorthand::None => false,
            Shorthand::SelfOnly => fixed,
            Shorthand::All => fixed && all_were_started(),
            Shorthand::AllButSelf => all_were_started(),
        };
        if !allowed {
            return Err(SendError::Unsupported);
        }
        let mode = interrupt.delivery_mode();
        self.submit(Icr::shorthand(mode, interrupt.vector(), shorthand), &mut Patience::of(mode))
    }

    /// Sends an ordinary interrupt to the one of these CPUs with the lowest priority; which one, the hardware decides.
    /// Model-specific: newer ones take the priority for equal and any one of them. SDM, "Lowest Priority Delivery Mode".
    ///
    /// # Errors
    /// [`SendError::Unsupported`] on x2APIC, where the mode is reserved, and if one command cannot name them all: physical
    /// routings take one CPU, clusters those of one cluster. Otherwise as for [`send_one`](Self::send_one).
    pub fn send_to_any(
        &self,
        topology: &impl Topology,
        targets: &CpuMask,
        vector: Vector,
    ) -> Result<Sent, SendError> {
        if self.routing.mode() == Mode::X2Apic {
            return Err(SendError::Unsupported);
        }
        let mut command: Option<Icr> = None;
        for target in targets {
            let next = self.command_to_one(topology, target, Interrupt::Fixed(vector))?;
            let shared = match (&command, self.routing.addressing()) {
                (None, _) | (_, Addressing::Flat) => true,
                (Some(icr), Addressing::Cluster) => icr.destination >> 4 == next.destination >> 4,
                (Some(_), Addressing::Physical | Addressing::X2ApicCluster) => false,
            };
            if !shared {
                return Err(SendError::Unsupported);
            }
            let destination = next.destination | command.map_or(0, |icr| icr.destination);
            command = Some(Icr { delivery_mode: DeliveryMode::LowestPriority, destination, ..next });
        }
        match command {
            Some(icr) => self.submit(icr, &mut Patience::of(icr.delivery_mode)),
            None => Ok(Sent::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Routing;
    use crate::testing::{OneCpu, Recorder, Tables, driver};
    use smpcall_machine::{Cpu, CpuSet};

    const VECTOR: Vector = Vector::new(0x41).unwrap();

    fn all(cpus: u32) -> CpuSet<4> {
        (0..cpus).map(Cpu::new).collect()
    }

    #[test]
    fn an_x2apic_has_a_register_for_oneself() {
        let recorder = Recorder::new(Mode::X2Apic);
        assert_eq!(driver(&recorder).send_self(VECTOR), Ok(Sent { commands: 1, rewritten: 0 }));
        assert_eq!(recorder.written(), [(Register::SELF_IPI, 0x41)]);
        let recorder = Recorder::new(Mode::XApic);
        driver(&recorder).send_self(VECTOR).unwrap();
        assert_eq!(recorder.written().last(), Some(&(Register::ICR_LOW, 0x4_4041)));
    }

    #[test]
    fn shorthands_need_all_cpus_to_have_been_started_and_a_valid_combination() {
        let recorder = Recorder::new(Mode::X2Apic);
        let mut tables = Tables::of(&[0, 1]);
        let fixed = Interrupt::Fixed(VECTOR);
        let send = |tables: &Tables, shorthand, interrupt| {
            driver(&recorder).send_by_shorthand(tables, shorthand, interrupt).map(|sent| sent.commands)
        };
        let refused = Err(SendError::Unsupported);
        assert_eq!(send(&tables, Shorthand::All, fixed), refused);
        assert_eq!(send(&tables, Shorthand::AllButSelf, Interrupt::Nmi), refused);
        assert_eq!(send(&tables, Shorthand::SelfOnly, fixed), Ok(1));
        tables.reach = Some(all(2));
        for (shorthand, interrupt, expected) in [
            (Shorthand::None, fixed, refused),
            (Shorthand::SelfOnly, Interrupt::Nmi, refused),
            (Shorthand::All, Interrupt::Nmi, refused),
            (Shorthand::All, Interrupt::Smi, refused),
            (Shorthand::All, fixed, Ok(1)),
            (Shorthand::AllButSelf, fixed, Ok(1)),
            (Shorthand::AllButSelf, Interrupt::Nmi, Ok(1)),
            (Shorthand::AllButSelf, Interrupt::Smi, Ok(1)),
        ] {
            assert_eq!(send(&tables, shorthand, interrupt), expected, "{shorthand:?} {interrupt:?}");
        }
        let bits = [0x4_4041, 0x8_4041, 0xc_4041, 0xc_4400, 0xc_4200];
        assert!(recorder.written().iter().map(|write| write.1).eq(bits));
    }

    #[test]
    fn lowest_priority_names_all_candidates_in_one_command_or_is_refused() {
        let tables = Tables::of(&[0, 1, 2, 3, 4, 5]);
        let send = |routing: Routing, cpus: &[u32]| {
            let recorder = Recorder::new(routing.mode());
            let driver: LocalApic<OneCpu, _> = LocalApic::new(&recorder, routing);
            let targets: CpuSet<4> = cpus.iter().copied().map(Cpu::new).collect();
            driver.send_to_any(&tables, &targets, VECTOR).map(|_| recorder.written())
        };
        let words = |high, low| Ok([(Register::ICR_HIGH, high), (Register::ICR_LOW, low)].to_vec());
        assert_eq!(send(Routing::Flat, &[1, 5]), words(0x2200_0000, 0x4941));
        assert_eq!(send(Routing::Summit, &[4, 5]), words(0x1300_0000, 0x4941));
        assert_eq!(send(Routing::Summit, &[3, 4]), Err(SendError::Unsupported));
        assert_eq!(send(Routing::Physical, &[3]), words(0x0300_0000, 0x4141));
        assert_eq!(send(Routing::Physical, &[3, 4]), Err(SendError::Unsupported));
        assert_eq!(send(Routing::X2ApicCluster, &[3]), Err(SendError::Unsupported));
        assert_eq!(send(Routing::Flat, &[1, 6]), Err(SendError::Unreachable));
        assert_eq!(send(Routing::Flat, &[]), Ok([].to_vec()));
    }
}
