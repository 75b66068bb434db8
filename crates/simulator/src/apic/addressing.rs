//! Whom a command is for.

use smpcall_local_apic::{DestinationMode, Mode, Shorthand};

use super::{ApicModel, Command, Generation};

impl ApicModel {
    /// Whether the command is meant for this APIC. Whether it accepts the message is another question.
    ///
    /// SDM, "Determining IPI Destination" and "Logical Destination Mode in x2APIC Mode".
    pub fn is_addressed_by(&self, command: &Command, sender_is_self: bool) -> bool {
        let destination = command.icr.destination;
        if !self.globally_enabled {
            return false;
        }
        match command.icr.shorthand {
            Shorthand::SelfOnly => sender_is_self,
            Shorthand::All => true,
            Shorthand::AllButSelf => !sender_is_self,
            Shorthand::None if destination == command.mode.broadcast() => true,
            Shorthand::None => match command.icr.destination_mode {
                DestinationMode::Physical => self.has_physical_destination(destination),
                DestinationMode::Logical => self.has_logical_destination(destination),
            },
        }
    }

    const fn has_physical_destination(&self, destination: u32) -> bool {
        match self.mode {
            Mode::X2Apic => destination == self.id.0,
            Mode::XApic => destination & 0xff == self.id.0,
        }
    }

    fn has_logical_destination(&self, destination: u32) -> bool {
        match self.mode {
            Mode::X2Apic => {
                let own = self.id.x2apic_logical();
                own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
            Mode::XApic => {
                let own = u32::from(self.logical_destination);
                let destination = destination & 0xff;
                match self.destination_format {
                    // The flat model: one bit for each of eight APICs.
                    0b1111 => own & destination != 0,
                    // The cluster model: clusters 0 to 14, four bits within one.
                    0b0000 => {
                        let cluster = destination >> 4;
                        cluster != 0xf && cluster == own >> 4 && own & destination & 0xf != 0
                    }
                    // Other values of the format register are undefined: nobody is addressed.
                    _ => false,
                }
            }
        }
    }

    /// Its place in the arbitration for a lowest-priority message with this vector that it and others are addressed by:
    /// the lowest one gets it. Those that would not accept it come last. Then by priority, and by identifier
    /// among equals.
    ///
    /// In the P6 family the focus processor - where the vector is pending or in service, if it looks for that - comes
    /// first, and the priority is the arbitration priority. SDM, "Lowest Priority Delivery Mode".
    pub fn arbitration_order(&self, vector: u8) -> impl Ord + use<> {
        let refuses = !self.is_enabled() || self.waiting_for_start_up;
        let (focus, priority) = match self.features.generation {
            Generation::Pentium4 => (false, self.processor_priority()),
            Generation::P6 => {
                let holds = self.irr.contains(vector) || self.isr.contains(vector);
                (holds && self.checks_focus(), self.arbitration_priority())
            }
        };
        (refuses, !focus, priority, self.id)
    }
}
