//! The driver of one local APIC: enabling, identifying, ending interrupts. Sending is in `send.rs`.

use core::fmt;
use core::marker::PhantomData;

use smpcall_machine::{Cpu, Machine};

use crate::{Access, ApicId, InService, Mode, Register, Routing, RoutingError, Spurious, Vector};

/// The local APIC of the CPU that this code runs on, whichever that is: one value serves all CPUs.
///
/// Every function concerns the running CPU's APIC, so callers are pinned: interrupts or preemption disabled.
#[derive(Debug)]
pub struct LocalApic<M, A> {
    pub(crate) access: A,
    pub(crate) routing: Routing,
    machine: PhantomData<fn() -> M>,
}

/// Why an APIC was not enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnableError {
    /// The routing does not fit.
    Routing(RoutingError),
    /// This APIC's identifier is not the one that the kernel's tables have for the CPU.
    OtherIdentifier {
        /// The CPU.
        cpu: Cpu,
        /// What its APIC says.
        found: ApicId,
        /// What the kernel expected.
        expected: ApicId,
    },
}

impl fmt::Display for EnableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Routing(error) => error.fmt(f),
            Self::OtherIdentifier { cpu, found, expected } => {
                write!(f, "{cpu} has {found} where the tables of the kernel say {expected}")
            }
        }
    }
}

impl core::error::Error for EnableError {}

impl From<RoutingError> for EnableError {
    fn from(error: RoutingError) -> Self {
        Self::Routing(error)
    }
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// A driver that reaches registers through `access` and CPUs through `routing`. Touches nothing;
    /// [`enable`](Self::enable) says whether the two fit, and before it [`Routing::check_tables`] whether the kernel's tables do.
    pub const fn new(access: A, routing: Routing) -> Self {
        Self { access, routing, machine: PhantomData }
    }

    /// How it addresses CPUs.
    pub const fn routing(&self) -> Routing {
        self.routing
    }

    /// How it reaches registers.
    pub const fn access(&self) -> &A {
        &self.access
    }

    /// This CPU's identifier, as the APIC says. SDM, "Local APIC ID Register".
    pub fn id(&self) -> ApicId {
        let value = self.access.read(Register::ID);
        ApicId(match self.access.mode() {
            Mode::XApic => value >> 24,
            Mode::X2Apic => value,
        })
    }

    /// Prepares this CPU's APIC for sending and taking interrupts, and enables it by software. `spurious` is the vector
    /// whose handler is entered when an interrupt disappears while it is being taken; that handler writes no
    /// end of interrupt. Called by each CPU `cpu`, whose APIC is expected to be `expected`, with interrupts disabled.
    ///
    /// Errors that firmware left in the error status are cleared. What is pending or in service stays so.
    ///
    /// # Errors
    /// If the routing does not fit the mode, the identifier or (logical xAPIC routings) the CPU's number, or if this is
    /// another APIC. Nothing has been written then.
    pub fn enable(&self, cpu: Cpu, expected: ApicId, spurious: Vector) -> Result<(), EnableError> {
        self.routing.check(self.access.mode(), [expected])?;
        let found = self.id();
        if found != expected {
            return Err(EnableError::OtherIdentifier { cpu, found, expected });
        }
        self.routing.check_number(cpu)?;
        if let Some(model) = self.routing.model()
            && let Some(logical) = model.logical_id(cpu, found)
        {
            // Before the APIC is enabled: SDM, "Logical Destination Mode".
            self.access.write(Register::DESTINATION_FORMAT, model.format());
            self.access.write(Register::LOGICAL_DESTINATION, u32::from(logical) << 24);
        }
        self.access.write(Register::TASK_PRIORITY, 0);
        self.access.write(Register::SPURIOUS_VECTOR, Spurious::enabled(spurious).encode());
        // The first write makes what happened readable and the second clears it: SDM, "Error Handling".
        self.access.write(Register::ERROR_STATUS, 0);
        self.access.write(Register::ERROR_STATUS, 0);
        Ok(())
    }

    /// Ends the interrupt that `in_service` stands for: the vector can be taken again, and those below it.
    /// SDM, "Signaling Interrupt Servicing Completion".
    #[inline]
    pub fn end_of_interrupt(&self, in_service: InService) {
        in_service.spend();
        self.access.write(Register::END_OF_INTERRUPT, 0);
    }
}
