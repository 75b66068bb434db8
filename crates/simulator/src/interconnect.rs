//! What lies between the CPUs: who has which identifier, what the faults do to the messages on their way, and everything
//! else that happens at a time of its own (ticks, wedges).

use core::time::Duration;

use rand_core::Rng;
use rand_pcg::Pcg32;
use rustc_hash::FxHashMap;
use smpcall_local_apic::{ApicId, Mode};
use smpcall_machine::{Cpu, EventKind, Instant};

use crate::TIMER_VECTOR;
use crate::apic::{Generation, IcrFault};
use crate::bus::Flight;
use crate::config::Config;
use crate::explorer::footprint::Use;
use crate::faults::{Fault, Filter, MessageKind, Probability};
use crate::places::irr_place;
use crate::processor::Wedge;
use crate::state::{Driver, State};

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

/// A fault that concerns ticks, and how many it has seen.
struct TickRule {
    /// Whose; everybody's if none.
    cpu: Option<usize>,
    trouble: Trouble,
    seen: u64,
}

/// A fault that happens at a time of its own.
#[derive(Clone, Copy)]
enum Happening {
    Wedge { cpu: usize, wedge: Wedge },
    Pause { until: u64 },
    IcrBusy { cpu: usize, fault: IcrFault },
    Spurious { cpu: usize },
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What becomes of one message.
#[derive(Default)]
pub(crate) struct Fate {
    pub(crate) lost: bool,
    pub(crate) delay: u64,
    pub(crate) twice: bool,
}

/// The slots of the queue of events, in this order: one per CPU, one tick per CPU, the end of the run, the interval
/// timer, one APIC timer per CPU, one per happening, one per message on its way.
pub(crate) struct Interconnect {
    cpus: usize,
    pub(crate) mode: Mode,
    by_apic_id: FxHashMap<u32, usize>,
    /// x2APIC: the CPUs of each cluster, ascending.
    pub(crate) clusters: FxHashMap<u32, Vec<usize>>,
    rules: Vec<Rule>,
    /// What happens at a time of its own, and when.
    happenings: Vec<(u64, Happening)>,
    /// Who is wedged in the first NMI handler that it enters from then on, and for how long. Each concerns one handler.
    nmi_wedges: Vec<(usize, u64, u64)>,
    tick_troubles: Vec<TickRule>,
    /// The CPUs whose tick is late, and when the next one should come.
    late_ticks: Vec<(usize, u64)>,
    pub(crate) ticks: Vec<bool>,
    pub(crate) generator: Pcg32,
    pub(crate) messages: u64,
    flights: Vec<Option<Flight>>,
    /// Timed: when the last INIT for each CPU arrives.
    pub(crate) init_lands: Vec<u64>,
    /// Stepped: what found no room at its target, in the order in which it was refused.
    pub(crate) waiting: Vec<Flight>,
    /// There may be no room for a message (P6 family).
    pub(crate) retries: bool,
    free: Vec<u32>,
    /// The targets of the command at hand; kept for its storage.
    pub(crate) targets: Vec<usize>,
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
            happenings: Vec::new(),
            nmi_wedges: Vec::new(),
            tick_troubles: Vec::new(),
            late_ticks: Vec::new(),
            ticks: vec![config.tick.is_some(); config.cpus],
            generator: Pcg32::new(config.seed, 2 * crate::MAX_CPUS as u64),
            messages: 0,
            flights: Vec::new(),
            init_lands: vec![0; config.cpus],
            waiting: Vec::new(),
            retries: config.apic_features.generation == Generation::P6,
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
                    let nanos = nanos(by);
                    rule(filter, Trouble::Delay { threshold: probability.threshold(), nanos });
                }
                Fault::Duplicate { probability, filter } => {
                    rule(filter, Trouble::Duplicate(Probability::threshold(probability)));
                }
                Fault::Wedge { cpu, at, duration, takes_nmis } => {
                    let until = duration.map_or(u64::MAX, |duration| at.plus(duration).as_nanos());
                    let wedge = Wedge { until, takes_nmis };
                    let happening = Happening::Wedge { cpu: cpu.index(), wedge };
                    interconnect.happenings.push((at.as_nanos(), happening));
                }
                Fault::WedgeInNmi { cpu, at, duration } => {
                    let nanos = duration.map_or(u64::MAX, nanos);
                    interconnect.nmi_wedges.push((cpu.index(), at.as_nanos(), nanos));
                }
                Fault::IcrBusy { cpu, at, duration } => {
                    let until = duration.map_or(Instant::from_nanos(u64::MAX), |duration| at.plus(duration));
                    let fault = IcrFault::StuckUntil(until);
                    interconnect
                        .happenings
                        .push((at.as_nanos(), Happening::IcrBusy { cpu: cpu.index(), fault }));
                }
                Fault::Pause { at, duration, .. } => {
                    let until = at.plus(duration).as_nanos();
                    interconnect.happenings.push((at.as_nanos(), Happening::Pause { until }));
                }
                Fault::Spurious { cpu, at } => {
                    interconnect.happenings.push((at.as_nanos(), Happening::Spurious { cpu: cpu.index() }));
                }
                Fault::LoseTick { nth, probability, cpu } => {
                    let trouble = match nth {
                        Some(nth) => Trouble::LoseNth(nth),
                        None => Trouble::Lose(probability.threshold()),
                    };
                    interconnect.tick_troubles.push(TickRule { cpu: cpu.map(Cpu::index), trouble, seen: 0 });
                }
                Fault::DelayTick { probability, by, cpu } => {
                    let trouble = Trouble::Delay { threshold: probability.threshold(), nanos: nanos(by) };
                    interconnect.tick_troubles.push(TickRule { cpu: cpu.map(Cpu::index), trouble, seen: 0 });
                }
                // A matter of the CPU's clock.
                Fault::ClockStops { .. } => {}
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

    /// The slot of the interval timer.
    pub(crate) fn pit_slot(&self) -> u32 {
        self.end_slot() + 1
    }

    /// The slot of the timer of a CPU's local APIC.
    fn timer_slot(&self, cpu: usize) -> u32 {
        self.pit_slot() + 1 + cpu as u32
    }

    fn happening_slot(&self, happening: usize) -> u32 {
        self.timer_slot(self.cpus) + happening as u32
    }

    /// How many slots there are before the first message's.
    pub(crate) fn first_message_slot(&self) -> u32 {
        self.happening_slot(self.happenings.len())
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
    pub(crate) fn fate(&mut self, kind: Option<MessageKind>, from: usize, to: usize) -> Fate {
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

    /// What the faults do to a tick.
    fn fate_of_tick(&mut self, cpu: usize) -> Fate {
        let mut fate = Fate::default();
        if self.late_ticks.iter().any(|late| late.0 == cpu) {
            // It was decided when it should have come.
            return fate;
        }
        for rule in &mut self.tick_troubles {
            if rule.cpu.is_some_and(|of| of != cpu) {
                continue;
            }
            rule.seen += 1;
            let mut happens = |threshold| u64::from(self.generator.next_u32()) < threshold;
            match rule.trouble {
                Trouble::LoseNth(nth) => fate.lost |= rule.seen == nth,
                Trouble::Lose(threshold) => fate.lost |= happens(threshold),
                Trouble::Delay { threshold, nanos } if happens(threshold) => {
                    fate.delay = fate.delay.saturating_add(nanos);
                }
                Trouble::Delay { .. } | Trouble::Duplicate(_) => {}
            }
        }
        if fate.lost {
            fate.delay = 0;
        }
        fate
    }

    pub(crate) fn stow(&mut self, flight: Flight) -> usize {
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
        for happening in 0..self.interconnect.happenings.len() {
            let at = self.interconnect.happenings[happening].0;
            self.queue.set(self.interconnect.happening_slot(happening), at);
        }
    }

    /// An event that is neither a CPU's nor the end of the run happens.
    pub(crate) fn happen(&mut self, slot: u32, time: u64) {
        let first_message = self.interconnect.first_message_slot();
        let first_timer = self.interconnect.timer_slot(0);
        let first_happening = self.interconnect.happening_slot(0);
        if slot < self.interconnect.end_slot() {
            self.tick(slot as usize - self.cpus.len(), time);
        } else if slot < first_timer {
            self.fire_pit(time);
        } else if slot < first_happening {
            let cpu = (slot - first_timer) as usize;
            self.cpus[cpu].apic.fire_timer(Instant::from_nanos(time));
            self.schedule_timer(cpu);
            self.notice_interrupt(cpu, time);
        } else if slot < first_message {
            let (_, happening) = self.interconnect.happenings[(slot - first_happening) as usize];
            self.befall(happening, slot, time);
        } else {
            let index = slot - first_message;
            if let Some(flight) = self.interconnect.flights[index as usize].take() {
                self.interconnect.free.push(index);
                self.land(flight, time);
            }
        }
    }

    /// A fault happens.
    fn befall(&mut self, happening: Happening, slot: u32, time: u64) {
        match happening {
            Happening::Wedge { cpu, wedge } => {
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
                self.put_off(cpu);
            }
            Happening::Pause { until } => {
                for cpu in 0..self.cpus.len() {
                    self.record_at(time, cpu, EventKind::Paused, None, 0, until);
                    // Pauses that overlap are one.
                    let paused_until = &mut self.cpus[cpu].paused_until;
                    *paused_until = until.max(*paused_until);
                    self.put_off(cpu);
                }
            }
            Happening::IcrBusy { cpu, fault } => {
                self.cpus[cpu].apic.extend_icr_fault(fault);
                self.cpus[cpu].refresh();
            }
            Happening::Spurious { cpu } => {
                self.cpus[cpu].spurious = !self.cpus[cpu].apic.is_waiting_for_start_up();
                self.notice_interrupt(cpu, time);
            }
        }
    }

    /// A CPU that a fault keeps from making a step gets its turn later.
    fn put_off(&mut self, cpu: usize) {
        if let Some(due) = self.queue.time_of(cpu as u32) {
            self.queue.cancel(cpu as u32);
            self.wake(cpu, due);
        }
    }

    /// The running CPU enters an NMI handler, in which a fault may keep it.
    pub(crate) fn wedge_in_nmi(&mut self) {
        let (running, time) = (self.running, self.cpu().time);
        let due = |&(cpu, at, _): &(usize, u64, u64)| cpu == running && at <= time;
        let Some(at) = self.interconnect.nmi_wedges.iter().position(due) else { return };
        let (_, _, nanos) = self.interconnect.nmi_wedges.remove(at);
        let until = time.saturating_add(nanos);
        self.cpu().wedged_in_nmi_until = until;
        self.record(running, EventKind::Wedged, None, 0, until);
    }

    /// Brings the timer of a CPU's local APIC in line with its registers. No time passes on a stepped machine.
    pub(crate) fn schedule_timer(&mut self, cpu: usize) {
        if self.driver == Driver::Stepped {
            return;
        }
        let slot = self.interconnect.timer_slot(cpu);
        match self.cpus[cpu].apic.timer_fires_at() {
            Some(at) => self.queue.set(slot, at.as_nanos().max(self.cpus[cpu].time)),
            None => self.queue.cancel(slot),
        }
    }

    fn tick(&mut self, cpu: usize, time: u64) {
        let Some(period) = self.tick else { return };
        let fate = self.interconnect.fate_of_tick(cpu);
        if fate.delay > 0 {
            // It comes late, and the ones after it when they should.
            self.queue.set(self.interconnect.tick_slot(cpu), time.saturating_add(fate.delay));
            self.interconnect.late_ticks.push((cpu, time + period));
            return;
        }
        let on_time = self.interconnect.late_ticks.iter().position(|late| late.0 == cpu);
        let next = match on_time.map(|at| self.interconnect.late_ticks.swap_remove(at).1) {
            Some(next) => next.max(time + 1),
            None => time + period,
        };
        self.queue.set(self.interconnect.tick_slot(cpu), next);
        if fate.lost {
            return;
        }
        // The local vector table's timer entry delivers it; the APIC treats it like a message.
        self.interrupt_locally(cpu, TIMER_VECTOR, time);
    }

    /// An interrupt is requested that no message brings.
    pub(crate) fn request(&mut self, cpu: usize, vector: u8) {
        let time = self.cpu().time;
        if self.driver == Driver::Stepped {
            self.explored.footprint.add(irr_place(cpu), Use::Raise);
        }
        self.interrupt_locally(cpu, vector, time);
    }

    /// A stepped machine begins anew.
    pub(crate) fn reset_interconnect(&mut self) {
        self.interconnect.generator = Pcg32::new(self.seed, 2 * crate::MAX_CPUS as u64);
        self.interconnect.messages = 0;
        self.interconnect.losing.clear();
        self.interconnect.waiting.clear();
        for rule in &mut self.interconnect.rules {
            rule.seen = 0;
        }
    }
}
