//! What lies between the CPUs: who is addressed by a command, what the faults do to the messages on their way,
//! and everything else that happens at a time of its own (ticks, wedges).

use rand_core::Rng;
use rand_pcg::Pcg32;
use rustc_hash::FxHashMap;
use smpcall_local_apic::{ApicId, DeliveryMode, DestinationMode, Mode, Shorthand};
use smpcall_machine::EventKind;

use crate::TIMER_VECTOR;
use crate::apic::{Acceptance, Command, Effect, Message};
use crate::config::Config;
use crate::cost::jittered;
use crate::explorer::footprint::Use;
use crate::faults::{Fault, Filter, MessageKind, Probability};
use crate::places::{irr_place, nmi_place};
use crate::processor::Wedge;
use crate::state::{Driver, State};

/// A message on its way.
#[derive(Clone, Copy)]
struct Flight {
    number: u64,
    from: usize,
    to: usize,
    message: Message,
}

/// What a fault does to a message.
#[derive(Clone, Copy)]
enum Trouble {
    LoseNth(u64),
    Lose(u64),
    Delay { threshold: u64, nanos: u64 },
    Duplicate(u64),
}

/// A fault that concerns messages, and how many it has seen.
struct Rule {
    filter: Filter,
    trouble: Trouble,
    seen: u64,
}

/// What becomes of one message.
#[derive(Default)]
struct Fate {
    lost: bool,
    delay: u64,
    twice: bool,
}

/// The slots of the queue of events, in this order: one per CPU, one tick per CPU, the end of the run, one per
/// wedge, one per message on its way.
pub(crate) struct Interconnect {
    cpus: usize,
    mode: Mode,
    by_apic_id: FxHashMap<u32, usize>,
    /// x2APIC: the CPUs of each cluster, ascending.
    clusters: FxHashMap<u32, Vec<usize>>,
    rules: Vec<Rule>,
    wedges: Vec<(usize, u64, Wedge)>,
    pub(crate) ticks: Vec<bool>,
    generator: Pcg32,
    messages: u64,
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    /// The targets of the command at hand; kept for its storage.
    targets: Vec<usize>,
    /// Stepped: the targets that the controller takes the message away from.
    pub(crate) losing: Vec<usize>,
}

impl Interconnect {
    pub(crate) fn new(config: &Config) -> Self {
        let mut interconnect = Self {
            cpus: config.cpus,
            mode: config.routing.mode(),
            by_apic_id: FxHashMap::default(),
            clusters: FxHashMap::default(),
            rules: Vec::new(),
            wedges: Vec::new(),
            ticks: vec![config.tick.is_some(); config.cpus],
            generator: Pcg32::new(config.seed, 2 * crate::MAX_CPUS as u64),
            messages: 0,
            flights: Vec::new(),
            free: Vec::new(),
            targets: Vec::new(),
            losing: Vec::new(),
        };
        for cpu in 0..config.cpus {
            let id = config.apic_id(cpu);
            interconnect.by_apic_id.insert(id.0, cpu);
            interconnect.clusters.entry(id.cluster()).or_default().push(cpu);
        }
        let mut rule = |filter, trouble| interconnect.rules.push(Rule { filter, trouble, seen: 0 });
        for fault in &config.faults {
            match *fault {
                Fault::DropNth { nth, filter } => rule(filter, Trouble::LoseNth(nth)),
                Fault::Drop { probability, filter } => rule(filter, Trouble::Lose(probability.threshold())),
                Fault::Delay { probability, by, filter } => {
                    let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
                    rule(filter, Trouble::Delay { threshold: probability.threshold(), nanos });
                }
                Fault::Duplicate { probability, filter } => {
                    rule(filter, Trouble::Duplicate(Probability::threshold(probability)));
                }
                Fault::Wedge { cpu, at, duration, takes_nmis } => {
                    let until = duration.map_or(u64::MAX, |duration| at.plus(duration).as_nanos());
                    interconnect.wedges.push((cpu.index(), at.as_nanos(), Wedge { until, takes_nmis }));
                }
                Fault::NoTick { cpu } => interconnect.ticks[cpu.index()] = false,
            }
        }
        interconnect
    }

    /// The slot of a CPU's tick.
    pub(crate) fn tick_slot(&self, cpu: usize) -> u32 {
        (self.cpus + cpu) as u32
    }

    /// The slot of the end of the run.
    pub(crate) fn end_slot(&self) -> u32 {
        2 * self.cpus as u32
    }

    fn wedge_slot(&self, wedge: usize) -> u32 {
        self.end_slot() + 1 + wedge as u32
    }

    /// How many slots there are before the first message's.
    pub(crate) fn first_message_slot(&self) -> u32 {
        self.wedge_slot(self.wedges.len())
    }

    /// Whether the event needs nothing but the state to happen: neither a CPU nor the driver.
    #[inline]
    pub(crate) fn is_inline_event(&self, slot: u32) -> bool {
        slot as usize >= self.cpus && slot != self.end_slot()
    }

    /// The CPU of an APIC.
    pub(crate) fn cpu_of(&self, id: ApicId) -> Option<usize> {
        self.by_apic_id.get(&id.0).copied()
    }

    /// What the faults do to a message.
    fn fate(&mut self, kind: Option<MessageKind>, from: usize, to: usize) -> Fate {
        let mut fate = Fate::default();
        let [from, to] = [from, to].map(|cpu| smpcall_machine::Cpu::new(cpu as u32));
        for rule in &mut self.rules {
            if !rule.filter.matches(kind, from, to) {
                continue;
            }
            rule.seen += 1;
            let mut happens = |threshold| u64::from(self.generator.next_u32()) < threshold;
            match rule.trouble {
                Trouble::LoseNth(nth) => fate.lost |= rule.seen == nth,
                Trouble::Lose(threshold) => fate.lost |= happens(threshold),
                Trouble::Delay { threshold, nanos } => {
                    if happens(threshold) {
                        fate.delay = fate.delay.saturating_add(nanos);
                    }
                }
                Trouble::Duplicate(threshold) => fate.twice |= happens(threshold),
            }
        }
        fate
    }

    fn stow(&mut self, flight: Flight) -> usize {
        if let Some(index) = self.free.pop() {
            self.flights[index as usize] = Some(flight);
            index as usize
        } else {
            self.flights.push(Some(flight));
            self.flights.len() - 1
        }
    }
}

/// How soon a wedge that cannot begin, because its CPU is in a handler, is tried again (nanoseconds).
const WEDGE_RETRY: u64 = 500;

impl State {
    /// Sets up what happens by itself: ticks, evenly staggered, and wedges.
    pub(crate) fn schedule_events(&mut self) {
        let cpus = self.cpus.len() as u64;
        if let Some(period) = self.tick {
            for cpu in 0..self.cpus.len() {
                if self.interconnect.ticks[cpu] {
                    let first = period + period * cpu as u64 / cpus;
                    self.queue.set(self.interconnect.tick_slot(cpu), first);
                }
            }
        }
        for wedge in 0..self.interconnect.wedges.len() {
            let at = self.interconnect.wedges[wedge].1;
            self.queue.set(self.interconnect.wedge_slot(wedge), at);
        }
    }

    /// An event that is neither a CPU's nor the end of the run happens.
    pub(crate) fn happen(&mut self, slot: u32, time: u64) {
        let end = self.interconnect.end_slot();
        let first_message = self.interconnect.first_message_slot();
        if slot < end {
            self.tick(slot as usize - self.cpus.len(), time);
        } else if slot < first_message {
            let (cpu, _, wedge) = self.interconnect.wedges[(slot - end) as usize - 1];
            let processor = &self.cpus[cpu];
            if wedge.takes_nmis && (processor.handler_depth > 0 || !processor.interrupts_enabled) {
                // It is the task that disables interrupts and does not come back: it must run to do so.
                if time < wedge.until {
                    self.queue.set(slot, time + WEDGE_RETRY);
                }
                return;
            }
            self.record_at(time, cpu, EventKind::Wedged, None, 0, wedge.until);
            self.cpus[cpu].wedge = wedge;
            if let Some(due) = self.queue.time_of(cpu as u32) {
                self.queue.cancel(cpu as u32);
                self.wake(cpu, due);
            }
        } else {
            let index = slot - first_message;
            if let Some(flight) = self.interconnect.flights[index as usize].take() {
                self.interconnect.free.push(index);
                self.arrive(flight, time);
            }
        }
    }

    fn tick(&mut self, cpu: usize, time: u64) {
        let Some(period) = self.tick else { return };
        self.queue.set(self.interconnect.tick_slot(cpu), time + period);
        // The local vector table's timer entry delivers it; the APIC treats it like a message.
        self.cpus[cpu].apic.accept(Message::fixed(TIMER_VECTOR));
        self.notice_interrupt(cpu, time);
    }

    /// An interrupt is requested that no message brings.
    pub(crate) fn request(&mut self, cpu: usize, vector: u8) {
        let time = self.cpu().time;
        if self.driver == Driver::Stepped {
            self.explored.footprint.add(irr_place(cpu), Use::Raise);
        }
        self.cpus[cpu].apic.accept(Message::fixed(vector));
        self.cpus[cpu].hashed = None;
        self.notice_interrupt(cpu, time);
    }

    fn arrive(&mut self, flight: Flight, time: u64) {
        let Flight { number, from, to, message } = flight;
        let processor = &mut self.cpus[to];
        let kind = match processor.apic.accept(message) {
            Acceptance::Accepted => {
                processor.counters.ipis_accepted += 1;
                EventKind::IpiAccepted
            }
            Acceptance::Merged => {
                processor.counters.ipis_merged += 1;
                EventKind::IpiMerged
            }
            Acceptance::Rejected(_) => {
                processor.counters.ipis_rejected += 1;
                EventKind::IpiRejected
            }
        };
        self.record_at(time, to, kind, Some(from), message.vector.into(), number);
        self.notice_interrupt(to, time);
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
            let winner = targets.iter().copied().min_by_key(|&cpu| self.cpus[cpu].apic.arbitration_order());
            targets.retain(|&cpu| Some(cpu) == winner);
        }
    }

    /// What the running CPU's write to its APIC caused.
    pub(crate) fn carry_out(&mut self, effect: Effect) {
        let sender = self.running;
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => {
                self.record(sender, EventKind::EndOfInterrupt, None, vector.unwrap_or(0).into(), 0);
            }
            Effect::Dispatch(command) => self.dispatch(sender, &command),
        }
        self.cpu().refresh();
    }

    fn dispatch(&mut self, sender: usize, command: &Command) {
        let message = command.message();
        assert!(
            !matches!(message.delivery_mode, DeliveryMode::Init | DeliveryMode::StartUp),
            "every simulated CPU is started from the beginning: INIT and start-up messages are not simulated"
        );
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
        }
        let flight = Flight { number, from, to, message };
        for _ in 0..=u32::from(fate.twice) {
            match self.driver {
                Driver::Stepped => self.arrive(flight, self.cpus[from].time),
                Driver::Timed => {
                    let jitter = 16 * self.cost.jitter;
                    let latency = jittered(&mut self.interconnect.generator, self.cost.ipi_latency, jitter);
                    let delay = latency.saturating_add(core::mem::take(&mut fate.delay));
                    let arrival = self.cpus[from].time.saturating_add(delay);
                    let index = self.interconnect.stow(flight) as u32;
                    let slot = self.interconnect.first_message_slot() + index;
                    while self.queue.slots() <= slot {
                        self.queue.add_slot();
                    }
                    self.queue.set(slot, arrival);
                }
            }
        }
    }

    /// A stepped machine begins anew.
    pub(crate) fn reset_interconnect(&mut self) {
        self.interconnect.generator = Pcg32::new(self.seed, 2 * crate::MAX_CPUS as u64);
        self.interconnect.messages = 0;
        self.interconnect.losing.clear();
        for rule in &mut self.interconnect.rules {
            rule.seen = 0;
        }
    }
}
