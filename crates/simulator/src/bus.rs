//! Messages between the local APICs: who is addressed by a command, and what becomes of a message when it arrives.
//!
//! A message that finds no room at its target (P6 family only) stays on the bus, which offers it again until it is accepted;
//! its sender's delivery status says "pending" from the command until then. In virtual time that is once in a [while](BUS_RETRY). A stepped
//! machine, which has no time, offers it when its target's APIC was written or reset, because nothing else makes room: those
//! that wait for one target in the order in which they were refused.

use core::hash::{Hash, Hasher};

use smpcall_local_apic::{ApicId, DeliveryMode, DestinationMode, Mode, Shorthand};
use smpcall_machine::{EventKind, Instant};

use crate::apic::{Acceptance, Command, Effect, Message};
use crate::config::BOOT_CPU;
use crate::cost::jittered;
use crate::devices::Request;
use crate::explorer::footprint::{Footprint, Use};
use crate::faults::MessageKind;
use crate::places::{irr_place, nmi_place};
use crate::processor::Anew;
use crate::state::{Driver, State};

/// A message on its way.
#[derive(Clone, Copy)]
pub(crate) struct Flight {
    sender: Sender,
    to: usize,
    message: Message,
}

/// Where a message comes from.
#[derive(Clone, Copy)]
enum Sender {
    /// The ICR of a CPU.
    Cpu {
        cpu: usize,
        /// Its image: what a start-up message's page holds.
        image: usize,
        /// Which of all messages it is.
        number: u64,
    },
    /// A pin of the I/O APIC.
    IoApic(Request),
    /// The target's own timer, or whatever else is wired to it alone.
    Local,
}

/// After how long the bus offers a message again (nanoseconds). (Ours: the manual does not say.)
const BUS_RETRY: u64 = 1_000;

impl Flight {
    /// Feeds what the future depends on into `state`: not its number.
    pub(crate) fn hash_state(&self, state: &mut impl Hasher) {
        let sender = match self.sender {
            Sender::Cpu { cpu, image, .. } => (0, cpu, image),
            Sender::IoApic(request) => (1, request.pin, 0),
            Sender::Local => (2, 0, 0),
        };
        (sender, self.to, self.message).hash(state);
    }
}

impl State {
    /// Something that is wired to this CPU alone interrupts it. It is accepted at once, if there is room.
    pub(crate) fn interrupt_locally(&mut self, to: usize, vector: u8, time: u64) {
        self.land(Flight { sender: Sender::Local, to, message: Message::fixed(vector) }, time);
    }

    /// See [`World::inject_nmi`](crate::World::inject_nmi).
    pub(crate) fn inject_nmi(&mut self, to: usize) {
        let time = self.cpus.iter().map(|cpu| cpu.time).max().unwrap_or(0);
        let message = Message::edge(DeliveryMode::Nmi, 0);
        self.land(Flight { sender: Sender::Local, to, message }, time);
    }

    /// What the I/O APIC sends for a pin arrives at one of those that it is for. False if it is lost there.
    pub(crate) fn arrive_from_io_apic(
        &mut self,
        request: Request,
        to: usize,
        message: Message,
        time: u64,
    ) -> bool {
        self.arrive(Flight { sender: Sender::IoApic(request), to, message }, time)
    }

    /// What was on its way arrives.
    pub(crate) fn land(&mut self, flight: Flight, time: u64) {
        let arrived = self.arrive(flight, time);
        if let (Sender::IoApic(request), false) = (flight.sender, arrived) {
            self.request_was_refused(request);
        }
    }

    /// A message is offered to its target. False if it is lost there.
    fn arrive(&mut self, flight: Flight, time: u64) -> bool {
        let Flight { sender, to, message } = flight;
        let (from, image, number) = match sender {
            Sender::Cpu { cpu, image, number } => (Some(cpu), image, number),
            // No device sends a start-up message: whose page it would be is never asked.
            Sender::IoApic(_) | Sender::Local => (None, 0, 0),
        };
        if message.delivery_mode == DeliveryMode::Init && to == BOOT_CPU {
            self.refuse_init(from, number, time);
            return true;
        }
        let processor = &mut self.cpus[to];
        processor.hashed = None;
        let acceptance = processor.apic.accept(message);
        match acceptance {
            Acceptance::Reset => {
                self.reset_cpu(from, to, number, time);
                return true;
            }
            Acceptance::Started { page } => {
                self.start_up(from, to, number, Anew::StartUp { image, page }, time);
                return true;
            }
            Acceptance::Retry => {
                self.offer_again(flight, time);
                return true;
            }
            Acceptance::Accepted | Acceptance::Merged | Acceptance::Rejected(_) => {}
        }
        if from.is_some() {
            let counters = &mut processor.counters;
            let (count, kind) = match acceptance {
                Acceptance::Accepted => (&mut counters.ipis_accepted, EventKind::IpiAccepted),
                Acceptance::Merged => (&mut counters.ipis_merged, EventKind::IpiMerged),
                _ => (&mut counters.ipis_rejected, EventKind::IpiRejected),
            };
            *count += 1;
            self.record_at(time, to, kind, from, message.vector.into(), number);
        }
        self.notice_interrupt(to, time);
        !matches!(acceptance, Acceptance::Rejected(_))
    }

    /// The target had no room.
    fn offer_again(&mut self, flight: Flight, time: u64) {
        let again = match self.driver {
            Driver::Timed => time.saturating_add(BUS_RETRY),
            // Until it is accepted.
            Driver::Stepped => u64::MAX,
        };
        let counters = &mut self.cpus[flight.to].counters;
        match flight.sender {
            Sender::Cpu { cpu, .. } => {
                counters.ipis_retried += 1;
                self.cpus[cpu].apic.offered_again_at(Instant::from_nanos(again));
                self.cpus[cpu].refresh();
            }
            Sender::IoApic(_) => counters.devices_retried += 1,
            Sender::Local => {}
        }
        match self.driver {
            Driver::Timed => self.fly_until(flight, again),
            Driver::Stepped => self.interconnect.waiting.push(flight),
        }
    }

    /// Stepped: a CPU's APIC was written or reset, and may have room now for what waits on the bus.
    pub(crate) fn offer_waiting(&mut self, to: usize, time: u64) {
        if self.interconnect.waiting.is_empty() {
            return;
        }
        // Whose delivery status changes, and who is interrupted, is rare enough to be told apart from nothing.
        self.explored.footprint = Footprint::EVERYTHING;
        let waiting = core::mem::take(&mut self.interconnect.waiting);
        let (again, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|flight| flight.to == to);
        self.interconnect.waiting = others;
        for flight in &again {
            if let Sender::Cpu { cpu, .. } = flight.sender {
                // Those that still wait for somebody else, and those that are refused again, say it anew.
                self.cpus[cpu].apic.offered_no_more(Instant::from_nanos(time));
                self.cpus[cpu].refresh();
            }
        }
        for flight in &self.interconnect.waiting {
            if let Sender::Cpu { cpu, .. } = flight.sender {
                self.cpus[cpu].apic.offered_again_at(Instant::from_nanos(u64::MAX));
            }
        }
        for flight in again {
            self.land(flight, time);
        }
    }

    fn fly_until(&mut self, flight: Flight, arrival: u64) {
        let index = self.interconnect.stow(flight) as u32;
        let slot = self.interconnect.first_message_slot() + index;
        while self.queue.slots() <= slot {
            self.queue.add_slot();
        }
        self.queue.set(slot, arrival);
    }

    /// The CPUs that a message of `sender`'s command goes to, ascending, into `targets`. Searches no more APICs than can
    /// be meant.
    pub(crate) fn targets(&self, sender: usize, command: &Command, targets: &mut Vec<usize>) {
        targets.clear();
        let icr = &command.icr;
        let meant = |cpu: &usize| self.cpus[*cpu].apic.is_addressed_by(command, *cpu == sender);
        match (icr.shorthand, icr.destination_mode) {
            (Shorthand::SelfOnly, _) => targets.push(sender),
            (Shorthand::None, mode) if icr.destination != command.mode.broadcast() => match mode {
                DestinationMode::Physical => {
                    targets.extend(self.interconnect.cpu_of(ApicId(icr.destination)).filter(meant));
                }
                DestinationMode::Logical if self.interconnect.mode == Mode::X2Apic => {
                    let cluster = self.interconnect.clusters.get(&(icr.destination >> 16));
                    targets.extend(cluster.into_iter().flatten().copied().filter(meant));
                }
                DestinationMode::Logical => targets.extend((0..self.cpus.len()).filter(meant)),
            },
            _ => targets.extend((0..self.cpus.len()).filter(meant)),
        }
        if icr.delivery_mode == DeliveryMode::LowestPriority {
            let winner =
                targets.iter().copied().min_by_key(|&cpu| self.cpus[cpu].apic.arbitration_order(icr.vector));
            targets.retain(|&cpu| Some(cpu) == winner);
        }
    }

    /// What the running CPU's write to its APIC caused.
    pub(crate) fn carry_out(&mut self, effect: Effect) {
        let sender = self.running;
        match effect {
            Effect::None => self.schedule_timer(sender),
            Effect::EndOfInterrupt(vector) => {
                self.record(sender, EventKind::EndOfInterrupt, None, vector.unwrap_or(0).into(), 0);
            }
            Effect::BroadcastEndOfInterrupt(vector) => {
                self.record(sender, EventKind::EndOfInterrupt, None, vector.into(), 0);
                self.end_of_level(vector);
            }
            Effect::Dispatch(command) => self.dispatch(sender, &command),
        }
        self.cpu().refresh();
        if self.driver == Driver::Stepped {
            let time = self.cpus[sender].time;
            self.offer_waiting(sender, time);
        }
    }

    fn dispatch(&mut self, sender: usize, command: &Command) {
        let message = command.message();
        let mut targets = core::mem::take(&mut self.interconnect.targets);
        self.targets(sender, command, &mut targets);
        self.cpus[sender].counters.icr_writes += 1;
        let only = if let [target] = targets[..] { Some(target) } else { None };
        let icr = command.icr.encode(command.mode).unwrap_or(0);
        self.record(sender, EventKind::IcrWritten, only, message.vector.into(), icr);
        for &to in &targets {
            self.launch(sender, to, message);
        }
        self.interconnect.losing.clear();
        self.interconnect.targets = targets;
    }

    fn launch(&mut self, from: usize, to: usize, message: Message) {
        let number = self.interconnect.messages;
        self.interconnect.messages += 1;
        self.cpus[from].counters.ipis_sent += 1;
        self.record(from, EventKind::IpiSent, Some(to), message.vector.into(), number);
        let kind = match message.delivery_mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => Some(MessageKind::Vector(message.vector)),
            DeliveryMode::Nmi => Some(MessageKind::Nmi),
            _ => None,
        };
        let mut fate = self.interconnect.fate(kind, from, to);
        fate.lost |= self.interconnect.losing.contains(&to);
        if fate.lost {
            self.cpus[from].counters.ipis_lost += 1;
            self.record(from, EventKind::IpiLost, Some(to), message.vector.into(), number);
            return;
        }
        if self.driver == Driver::Stepped {
            let nmi = message.delivery_mode == DeliveryMode::Nmi;
            let place = if nmi { nmi_place(to) } else { irr_place(to) };
            self.explored.footprint.add(place, Use::Raise);
            if message.delivery_mode == DeliveryMode::Init || self.interconnect.retries {
                // An INIT takes away whatever the target would have done next. Where there may be no room, the order of
                // messages matters, and so do others' delivery status.
                self.explored.footprint = Footprint::EVERYTHING;
            }
        }
        let sender = Sender::Cpu { cpu: from, image: self.cpus[from].image, number };
        let flight = Flight { sender, to, message };
        for _ in 0..=u32::from(fate.twice) {
            match self.driver {
                Driver::Stepped => self.land(flight, self.cpus[from].time),
                Driver::Timed => {
                    let jitter = 16 * self.cost.jitter;
                    let latency = jittered(&mut self.interconnect.generator, self.cost.ipi_latency, jitter);
                    let delay = latency.saturating_add(core::mem::take(&mut fate.delay));
                    let mut arrival = self.cpus[from].time.saturating_add(delay);
                    match message.delivery_mode {
                        DeliveryMode::Init => {
                            let lands = &mut self.interconnect.init_lands[to];
                            *lands = arrival.max(*lands);
                        }
                        // It does not overtake the INIT before it: what starts CPUs without a delay relies on that.
                        DeliveryMode::StartUp => {
                            arrival = arrival.max(self.interconnect.init_lands[to] + 1);
                        }
                        _ => {}
                    }
                    if self.interconnect.retries {
                        // Whether there is room is not known before.
                        self.cpus[from].apic.offered_again_at(Instant::from_nanos(arrival));
                    }
                    self.fly_until(flight, arrival);
                }
            }
        }
    }
}
