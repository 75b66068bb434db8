//! Sending interrupts to running CPUs: to one, and to a set with as few commands as the routing allows.

use core::num::NonZeroU64;

use smpcall_machine::{Cpu, CpuMask, CpuSetStorage, InterruptsOff, Machine, SendError};

use crate::idle::{Ladder, Patience, is_idle, wait_or_retry};
use crate::topology::is_all_but;
use crate::{
    Access, Addressing, ApicId, DeliveryMode, DestinationTooWide, Icr, LocalApic, LogicalModel, Mode,
    Register, Routing, SetCost, Shorthand, Topology, Vector,
};

/// What is sent to running CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interrupt {
    /// An ordinary interrupt.
    Fixed(Vector),
    /// A non-maskable interrupt.
    Nmi,
    /// A system-management interrupt: firmware's, unseen by the kernel.
    Smi,
}

impl Interrupt {
    pub(crate) const fn delivery_mode(self) -> DeliveryMode {
        match self {
            Self::Fixed(_) => DeliveryMode::Fixed,
            Self::Nmi => DeliveryMode::Nmi,
            Self::Smi => DeliveryMode::Smi,
        }
    }

    /// The vector field. An NMI's is ignored by the APIC, an SMI's must be zero.
    pub(crate) const fn vector(self) -> u8 {
        match self {
            Self::Fixed(vector) => vector.number(),
            Self::Nmi | Self::Smi => 0,
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

/// A command that was worked out beforehand: [`LocalApic::prepare_one`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Prepared(NonZeroU64);

impl From<DestinationTooWide> for SendError {
    fn from(_: DestinationTooWide) -> Self {
        Self::Unreachable
    }
}

/// How commands are handed to the controller: what there is to do if it is busy.
pub(crate) trait Pace {
    /// Hands over one command.
    fn submit<M: Machine, A: Access>(&mut self, apic: &LocalApic<M, A>, icr: Icr) -> Result<Sent, SendError>;
}

impl Pace for Patience {
    #[inline(always)]
    fn submit<M: Machine, A: Access>(&mut self, apic: &LocalApic<M, A>, icr: Icr) -> Result<Sent, SendError> {
        apic.submit(icr, self)
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
        self.send_one_at(&mut Patience::of(interrupt.delivery_mode()), topology, target, interrupt)
    }

    /// Works out what [`send_one`](Self::send_one) would write, for [`send_prepared`](Self::send_prepared): who sends to the
    /// same CPUs all the time keeps one for each. It is good for every driver of the same mode, as long as the tables and
    /// the routing stay as they are.
    ///
    /// # Errors
    /// [`SendError::Unreachable`], as for [`send_one`](Self::send_one).
    pub fn prepare_one(
        &self,
        topology: &impl Topology,
        target: Cpu,
        interrupt: Interrupt,
    ) -> Result<Prepared, SendError> {
        let command = self.command_to_one(topology, target, interrupt)?.encode(self.access.mode())?;
        // Never zero: all these commands assert.
        NonZeroU64::new(command).map(Prepared).ok_or(SendError::Unreachable)
    }

    /// Sends what was prepared, as [`send_one`](Self::send_one) would have.
    ///
    /// # Errors
    /// [`SendError::ControllerBusy`] if the bound has passed. Nothing has been sent then.
    #[inline(always)]
    pub fn send_prepared(&self, prepared: Prepared) -> Result<(), SendError> {
        if self.submit_at_once(prepared.0.get()) {
            Ok(())
        } else {
            self.send_prepared_later(prepared.0.get())
        }
    }

    #[cold]
    fn send_prepared_later(&self, command: u64) -> Result<(), SendError> {
        let mode =
            Icr::decode(command, self.access.mode()).map_or(DeliveryMode::Fixed, |icr| icr.delivery_mode);
        self.submit_later(command, &mut Patience::of(mode)).map(drop)
    }

    #[inline(always)]
    pub(crate) fn send_one_at(
        &self,
        pace: &mut impl Pace,
        topology: &impl Topology,
        target: Cpu,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        pace.submit(self, self.command_to_one(topology, target, interrupt)?)
    }

    /// The command that sends to one CPU.
    #[inline(always)]
    pub(crate) fn command_to_one(
        &self,
        topology: &impl Topology,
        target: Cpu,
        interrupt: Interrupt,
    ) -> Result<Icr, SendError> {
        let id = self.addressable(topology.apic_id(target))?;
        let (mode, vector) = (interrupt.delivery_mode(), interrupt.vector());
        Ok(match self.routing.addressing() {
            // One arm, so that there are three: compilers then compare instead of jumping through a table.
            Addressing::Flat | Addressing::Cluster => {
                let model = self.routing.model().ok_or(SendError::Unreachable)?;
                Icr::logical(mode, vector, logical(model, target, id)?)
            }
            Addressing::Physical => Icr::physical(mode, vector, id.0),
            Addressing::X2ApicCluster => Icr::logical(mode, vector, id.x2apic_logical()),
        })
    }

    /// Sends one interrupt to one CPU as if it were one of many: by the code for sets, with a set of one. That is how kernels
    /// sent before there was a single send (report 003); for what it costs beside [`send_one`](Self::send_one).
    /// Otherwise as [`send_many`](Self::send_many).
    ///
    /// # Errors
    /// As for [`send_one`](Self::send_one).
    pub fn send_one_as_set(
        &self,
        topology: &impl Topology,
        target: Cpu,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        let mut targets = M::CpuSet::EMPTY;
        if target.index() >= M::CpuSet::CAPACITY {
            return Err(SendError::Unreachable);
        }
        targets.insert(target);
        self.send_many(topology, &targets, interrupt)
    }

    /// Sends one interrupt to each CPU of a set, with as few commands as the routing allows: one if the set is
    /// everybody but this CPU and [shorthands](Topology::shorthand_reach) may be used; otherwise what the routing
    /// [says](crate::Routing::set_cost). None for the empty set.
    ///
    /// The caller is pinned to its CPU, which decides who "everybody but this CPU" is. Otherwise as
    /// [`send_one`](Self::send_one); the patience for NMIs is one for the whole set, not one for each command.
    ///
    /// # Errors
    /// As for [`send_one`](Self::send_one), if the interrupt was not sent to at least one of them: the first error that
    /// came up. The others were sent to.
    pub fn send_many(
        &self,
        topology: &impl Topology,
        targets: &CpuMask,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        self.send_many_at(&mut Patience::of(interrupt.delivery_mode()), topology, targets, interrupt)
    }

    pub(crate) fn send_many_at(
        &self,
        pace: &mut impl Pace,
        topology: &impl Topology,
        targets: &CpuMask,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        let (mode, vector) = (interrupt.delivery_mode(), interrupt.vector());
        if targets.is_empty() {
            return Ok(Sent::default());
        }
        if topology.shorthand_reach().is_some_and(|reach| is_all_but(M::current_cpu(), targets, reach)) {
            return pace.submit(self, Icr::shorthand(mode, vector, Shorthand::AllButSelf));
        }
        let mut total = Total::default();
        match (self.routing.set_cost(), self.routing.addressing()) {
            (SetCost::PerCpu, _) | (_, Addressing::Physical) => {
                for target in targets {
                    total.add(self.send_one_at(pace, topology, target, interrupt));
                }
            }
            (_, Addressing::Flat) => {
                self.send_merged(pace, topology, targets, interrupt, LogicalModel::Flat, &mut total);
            }
            (_, Addressing::Cluster) => {
                self.send_merged(pace, topology, targets, interrupt, LogicalModel::Cluster, &mut total);
            }
            (_, Addressing::X2ApicCluster) => {
                self.send_x2apic_clusters(pace, topology, targets, interrupt, &mut total);
            }
        }
        total.result()
    }

    /// One command for all neighbours by number that the model lets share one.
    fn send_merged(
        &self,
        pace: &mut impl Pace,
        topology: &impl Topology,
        targets: &CpuMask,
        interrupt: Interrupt,
        model: LogicalModel,
        total: &mut Total,
    ) {
        let command = |destination| Icr::logical(interrupt.delivery_mode(), interrupt.vector(), destination);
        let mut destination = 0;
        for target in targets {
            let id = self.addressable(topology.apic_id(target));
            match id.and_then(|id| logical(model, target, id)) {
                Ok(bits) if destination == 0 || model.shares_command(destination, bits) => {
                    destination |= bits;
                }
                Ok(bits) => {
                    total.add(pace.submit(self, command(core::mem::replace(&mut destination, bits))));
                }
                Err(error) => total.add(Err(error)),
            }
        }
        // All bits of the flat model read as "all", and that would reach also a CPU that was never started.
        if destination == Mode::XApic.broadcast() && topology.shorthand_reach().is_none() {
            let last = 1 << (Routing::MAX_FLAT_CPUS - 1);
            total.add(pace.submit(self, command(destination & !last)));
            destination = last;
        }
        if destination != 0 {
            total.add(pace.submit(self, command(destination)));
        }
    }

    /// One command for each cluster, whatever the order of identifiers.
    fn send_x2apic_clusters(
        &self,
        pace: &mut impl Pace,
        topology: &impl Topology,
        targets: &CpuMask,
        interrupt: Interrupt,
        total: &mut Total,
    ) {
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
                let icr = Icr::logical(interrupt.delivery_mode(), interrupt.vector(), destination);
                total.add(pace.submit(self, icr));
            }
        }
    }

    /// The identifier, if there is one and it means this APIC and not "all" or another one's alias.
    #[inline]
    pub(crate) fn addressable(&self, id: Option<ApicId>) -> Result<ApicId, SendError> {
        id.filter(|&id| id <= self.routing.max_id()).ok_or(SendError::Unreachable)
    }

    /// Hands one command to the controller.
    #[inline]
    pub(crate) fn submit(&self, icr: Icr, patience: &mut Patience) -> Result<Sent, SendError> {
        let command = icr.encode(self.access.mode())?;
        if self.submit_at_once(command) {
            Ok(Sent { commands: 1, rewritten: 0 })
        } else {
            self.submit_later(command, patience)
        }
    }

    /// Hands it over if that needs neither a wait nor anything else to be thought of.
    #[inline(always)]
    fn submit_at_once(&self, command: u64) -> bool {
        match self.access.mode() {
            Mode::X2Apic => {
                // One write that nothing can tear and no status to wait for: interrupts stay as they are (report 003).
                self.access.write_icr(command);
                true
            }
            Mode::XApic => {
                if M::in_nmi() {
                    return false;
                }
                // From the check to the second word nothing else of this CPU may use the ICR: a handler that sent
                // between the two words would send ours to its target. An NMI handler still can, and makes it good.
                let interrupts_off = InterruptsOff::<M>::new();
                let idle = is_idle(&self.access);
                if idle {
                    self.write_words(command, &interrupts_off);
                }
                idle
            }
        }
    }

    /// The same in xAPIC mode, for what could not be done at once.
    #[cold]
    fn submit_later(&self, command: u64, patience: &mut Patience) -> Result<Sent, SendError> {
        if M::in_nmi() {
            self.submit_in_nmi(command, patience)
        } else {
            self.submit_when_idle(command, patience)
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
    pub(crate) fn write_words(&self, command: u64, _: &InterruptsOff<M>) {
        self.access.write(Register::ICR_HIGH, (command >> 32) as u32);
        self.access.write(Register::ICR_LOW, command as u32);
    }
}

/// The logical identifier of a CPU of an xAPIC.
#[inline]
fn logical(model: LogicalModel, cpu: Cpu, id: ApicId) -> Result<u32, SendError> {
    model.logical_id(cpu, id).map(u32::from).ok_or(SendError::Unreachable)
}

/// What a send to many has come to so far.
#[derive(Default)]
struct Total {
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
