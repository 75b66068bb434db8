//! Sending interrupts: to one CPU, to a set with as few commands as the routing allows, and to CPUs that are not
//! running yet.

use smpcall_machine::{Cpu, CpuMask, InterruptsOff, Machine, SendError};

use crate::driver::flat_bit;
use crate::idle::{Ladder, Patience, is_idle, wait_or_retry};
use crate::routing::is_all_but;
use crate::{
    Access, ApicId, DeliveryMode, DestinationTooWide, Icr, LocalApic, Mode, Register, Routing, Shorthand,
    Topology, Vector,
};

/// What is sent to running CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interrupt {
    /// An ordinary interrupt.
    Fixed(Vector),
    /// A non-maskable interrupt.
    Nmi,
}

impl Interrupt {
    const fn delivery_mode(self) -> DeliveryMode {
        match self {
            Self::Fixed(_) => DeliveryMode::Fixed,
            Self::Nmi => DeliveryMode::Nmi,
        }
    }

    /// The vector field. An NMI's is ignored by the APIC.
    const fn vector(self) -> u8 {
        match self {
            Self::Fixed(vector) => vector.number(),
            Self::Nmi => 0,
        }
    }
}

/// What a send cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many commands of its own were written to the ICR.
    pub commands: u32,
    /// How many times a command that did not go out was written again (xAPIC only).
    pub rewritten: u32,
}

impl Sent {
    const fn and(self, other: Self) -> Self {
        Self { commands: self.commands + other.commands, rewritten: self.rewritten + other.rewritten }
    }
}

impl From<DestinationTooWide> for SendError {
    fn from(_: DestinationTooWide) -> Self {
        Self::Unreachable
    }
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// Sends one interrupt to one CPU, which may be this one: one command on every routing.
    ///
    /// The caller's earlier stores are visible to the target before it takes the interrupt. In xAPIC mode a busy
    /// controller is waited for: for ordinary interrupts twice [`DISPATCH_BOUND`](crate::DISPATCH_BOUND) at the most,
    /// for NMIs [`PATIENT_BOUND`](crate::PATIENT_BOUND) more.
    ///
    /// Any context. In xAPIC mode the command is two register writes, which maskable interrupts are kept out of. What
    /// cannot be kept out ([`in_nmi`](Machine::in_nmi)) may have interrupted such a command at any point, and leaves
    /// the ICR to it as it found it: it waits also after its own command, twice
    /// [`DISPATCH_BOUND`](crate::DISPATCH_BOUND) at the most, and puts the destination back.
    ///
    /// # Errors
    /// [`SendError::Unreachable`] if the target has no APIC or the routing cannot address it,
    /// [`SendError::ControllerBusy`] if the bound has passed. Nothing has been sent then.
    #[inline]
    pub fn send_one(
        &self,
        topology: &impl Topology,
        target: Cpu,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        let id = self.addressable(topology.apic_id(target))?;
        let (mode, vector) = (interrupt.delivery_mode(), interrupt.vector());
        let icr = match self.routing {
            Routing::Flat => {
                let bit = flat_bit(target).ok_or(SendError::Unreachable)?;
                Icr::logical(mode, vector, u32::from(bit))
            }
            Routing::Physical | Routing::X2ApicPhysical => Icr::physical(mode, vector, id.0),
            Routing::X2ApicCluster => Icr::logical(mode, vector, id.x2apic_logical()),
        };
        self.submit(icr, &mut Patience::of(mode))
    }

    /// Sends one interrupt to each CPU of a set, with as few commands as the routing allows: one if the set is
    /// everybody but this CPU and [shorthands](Topology::shorthand_reach) may be used; one on flat routing; one per
    /// cluster touched on x2APIC cluster routing; one per CPU on the physical ones. None for the empty set.
    ///
    /// The caller is pinned to its CPU, which decides who "everybody but this CPU" is. Otherwise as
    /// [`send_one`](Self::send_one); the patience for NMIs is one for the whole set, not one for each command.
    ///
    /// # Errors
    /// As for [`send_one`](Self::send_one), if the interrupt was not sent to at least one of them: the error of the
    /// lowest one. The others were sent to.
    pub fn send_many(
        &self,
        topology: &impl Topology,
        targets: &CpuMask,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        let (mode, vector) = (interrupt.delivery_mode(), interrupt.vector());
        let mut total = Total { patience: Patience::of(mode), sent: Sent::default(), error: None };
        if targets.is_empty() {
            return total.result();
        }
        if topology.shorthand_reach().is_some_and(|reach| is_all_but(M::current_cpu(), targets, reach)) {
            return self.submit(Icr::shorthand(mode, vector, Shorthand::AllButSelf), &mut total.patience);
        }
        match self.routing {
            Routing::Flat => {
                let mut bits = 0;
                for target in targets {
                    match topology.apic_id(target).and(flat_bit(target)) {
                        Some(bit) => bits |= bit,
                        None => total.add(Err(SendError::Unreachable)),
                    }
                }
                if bits != 0 {
                    let icr = Icr::logical(mode, vector, u32::from(bits));
                    let sent = self.submit(icr, &mut total.patience);
                    total.add(sent);
                }
            }
            Routing::Physical | Routing::X2ApicPhysical => {
                for target in targets {
                    let sent = self
                        .addressable(topology.apic_id(target))
                        .and_then(|id| self.submit(Icr::physical(mode, vector, id.0), &mut total.patience));
                    total.add(sent);
                }
            }
            Routing::X2ApicCluster => {
                let mut previous = None;
                for target in targets {
                    let id = match self.addressable(topology.apic_id(target)) {
                        Ok(id) => id,
                        Err(error) => {
                            total.add(Err(error));
                            continue;
                        }
                    };
                    // Neighbours in number mostly share a cluster, which its first member has served.
                    if previous.replace(id.cluster()) == Some(id.cluster()) {
                        continue;
                    }
                    let members = ClusterMembers::of(topology, targets, id);
                    debug_assert!(members.first <= target, "apic_id and cpu are not inverse at {target}");
                    if members.first == target {
                        let destination = id.cluster() << 16 | members.bits;
                        let icr = Icr::logical(mode, vector, destination);
                        let sent = self.submit(icr, &mut total.patience);
                        total.add(sent);
                    }
                }
            }
        }
        total.result()
    }

    /// Sends INIT to an APIC, by identifier on every routing: a CPU that is not running has no logical one.
    /// Context, bound and errors as for [`send_one`](Self::send_one).
    ///
    /// # Errors
    /// See there.
    pub fn send_init(&self, target: ApicId) -> Result<Sent, SendError> {
        self.send_to_stopped(target, DeliveryMode::Init, 0)
    }

    /// Sends a start-up message to an APIC: its CPU, waiting for one since an INIT, begins to execute at physical
    /// address `page` times 4096. By identifier, as [`send_init`](Self::send_init).
    ///
    /// # Errors
    /// See there.
    pub fn send_start_up(&self, target: ApicId, page: u8) -> Result<Sent, SendError> {
        self.send_to_stopped(target, DeliveryMode::StartUp, page)
    }

    fn send_to_stopped(&self, target: ApicId, mode: DeliveryMode, vector: u8) -> Result<Sent, SendError> {
        let id = self.addressable(Some(target))?;
        self.submit(Icr::physical(mode, vector, id.0), &mut Patience::of(mode))
    }

    /// The identifier, if there is one and it means this APIC and not "all" or another one's alias.
    #[inline]
    fn addressable(&self, id: Option<ApicId>) -> Result<ApicId, SendError> {
        id.filter(|&id| id <= self.routing.max_id()).ok_or(SendError::Unreachable)
    }

    /// Hands one command to the controller.
    #[inline]
    fn submit(&self, icr: Icr, patience: &mut Patience) -> Result<Sent, SendError> {
        let mode = self.access.mode();
        let command = icr.encode(mode)?;
        match mode {
            Mode::X2Apic => {
                // One write that nothing can tear and no status to wait for: interrupts stay as they are (report 003).
                self.access.write_icr(command);
                Ok(Sent { commands: 1, rewritten: 0 })
            }
            Mode::XApic => {
                if M::in_nmi() {
                    return self.submit_in_nmi(command, patience);
                }
                // From the check to the second word nothing else of this CPU may use the ICR: a handler that sent
                // between the two words would send ours to its target. An NMI handler still can, and makes it good.
                let interrupts_off = InterruptsOff::<M>::new();
                if is_idle(&self.access) {
                    self.write_words(command, &interrupts_off);
                    return Ok(Sent { commands: 1, rewritten: 0 });
                }
                drop(interrupts_off);
                self.submit_when_idle(command, patience)
            }
        }
    }

    #[cold]
    fn submit_when_idle(&self, command: u64, patience: &mut Patience) -> Result<Sent, SendError> {
        patience.wait::<M>(&self.access);
        let interrupts_off = InterruptsOff::<M>::new();
        match wait_or_retry::<M>(&self.access) {
            Ladder::Idle { rewritten } => {
                self.write_words(command, &interrupts_off);
                Ok(Sent { commands: 1, rewritten })
            }
            Ladder::Busy => Err(SendError::ControllerBusy),
        }
    }

    /// As [`submit`](Self::submit) in xAPIC mode, in what may have interrupted another command of this CPU anywhere
    /// between its check and its second word. That command relies on two things, and finds both when it goes on: the
    /// destination it has written, and an idle controller.
    ///
    /// A controller that was busy to begin with was so for the interrupted command too: it has not written its
    /// destination yet, and the one that the retry uses is still that of the command that is stuck.
    #[cold]
    fn submit_in_nmi(&self, command: u64, patience: &mut Patience) -> Result<Sent, SendError> {
        let interrupted = self.access.read(Register::ICR_HIGH) & !((Icr::reserved(Mode::XApic) >> 32) as u32);
        let sent = self.submit_when_idle(command, patience)?;
        // Retried here if it is stuck, because its destination is gone afterwards. If it stays stuck, the interrupted
        // command may be lost like any that is written to such a controller; later ones find it busy and say so.
        let rewritten = match wait_or_retry::<M>(&self.access) {
            Ladder::Idle { rewritten } => rewritten,
            Ladder::Busy => 0,
        };
        self.access.write(Register::ICR_HIGH, interrupted);
        Ok(sent.and(Sent { commands: 0, rewritten }))
    }

    /// The two words of the ICR, the one that sends last. SDM, "Interrupt Command Register (ICR)".
    #[inline]
    fn write_words(&self, command: u64, _: &InterruptsOff<M>) {
        self.access.write(Register::ICR_HIGH, (command >> 32) as u32);
        self.access.write(Register::ICR_LOW, command as u32);
    }
}

/// What a send to many has come to so far.
struct Total {
    patience: Patience,
    sent: Sent,
    error: Option<SendError>,
}

impl Total {
    fn add(&mut self, result: Result<Sent, SendError>) {
        match result {
            Ok(sent) => self.sent = self.sent.and(sent),
            Err(error) => self.error = self.error.or(Some(error)),
        }
    }

    fn result(self) -> Result<Sent, SendError> {
        self.error.map_or(Ok(self.sent), Err)
    }
}

/// Who of the targets is in one x2APIC cluster.
struct ClusterMembers {
    /// Their bits of the logical identifier.
    bits: u32,
    /// The lowest-numbered one: it stands for the cluster, so that each cluster is served once whatever the order
    /// of identifiers, without memory of which were.
    first: Cpu,
}

impl ClusterMembers {
    fn of(topology: &impl Topology, targets: &CpuMask, id: ApicId) -> Self {
        let mut members = Self { bits: 0, first: Cpu::new(u32::MAX) };
        for index in 0..16 {
            let member = topology.cpu(ApicId(id.cluster() << 4 | index));
            if let Some(cpu) = member.filter(|&cpu| targets.contains(cpu)) {
                members.bits |= 1 << index;
                members.first = members.first.min(cpu);
            }
        }
        members
    }
}
