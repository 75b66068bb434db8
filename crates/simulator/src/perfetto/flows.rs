//! Which events belong together: IPIs from sending to handler, calls from queueing to their end.

use std::collections::{BTreeMap, BTreeSet};

use smpcall_machine::{Event, EventKind};

/// The flows of a trace; each has two events at least.
pub(super) struct Flows {
    /// By the event's place in the trace: the numbers of its flows, ascending.
    of_event: BTreeMap<usize, Vec<u64>>,
    /// The calls: where each was queued, and where it ended for its caller.
    pub(super) calls: Vec<(usize, Option<usize>)>,
}

impl Flows {
    /// Follows `events`, which are in the order in which they happened. `nmis` are the messages that are NMIs: number,
    /// sender, target.
    pub(super) fn new(events: &[&Event], nmis: &BTreeSet<(u64, u32, u32)>) -> Self {
        let mut follower = Follower {
            nmis,
            flows: Vec::new(),
            messages: BTreeMap::new(),
            accepted: BTreeMap::new(),
            open: BTreeMap::new(),
            calls: Vec::new(),
        };
        for (place, event) in events.iter().enumerate() {
            follower.ipi(place, event);
            follower.call(place, event);
        }
        let mut of_event: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        // What was lost, or did not arrive before the trace ended, leads nowhere: no arrow.
        let flows = follower.flows.iter().filter(|places| places.len() > 1);
        for (number, places) in (1..).zip(flows) {
            for &place in places {
                of_event.entry(place).or_default().push(number);
            }
        }
        Self { of_event, calls: follower.calls }
    }

    /// The flows that the event at this place of the trace belongs to.
    pub(super) fn of(&self, place: usize) -> Vec<u64> {
        self.of_event.get(&place).cloned().unwrap_or_default()
    }
}

/// A call that its caller waits for.
struct Call {
    /// An index into [`Follower::calls`].
    index: usize,
    many: bool,
    /// One for each target that claimed it.
    flows: Vec<usize>,
}

struct Follower<'a> {
    nmis: &'a BTreeSet<(u64, u32, u32)>,
    /// The places of the events of each flow.
    flows: Vec<Vec<usize>>,
    /// The flow of each message: number, sender, target.
    messages: BTreeMap<(u64, u32, u32), usize>,
    /// What each CPU has accepted and not taken, by vector, or as NMIs.
    accepted: BTreeMap<(u32, Option<u32>), Vec<usize>>,
    /// The last call of each caller and level.
    open: BTreeMap<(u32, u32), Call>,
    calls: Vec<(usize, Option<usize>)>,
}

impl Follower<'_> {
    fn begin(&mut self, places: Vec<usize>) -> usize {
        self.flows.push(places);
        self.flows.len() - 1
    }

    fn pass(&mut self, flow: usize, place: usize) {
        // A duplicated message ends twice in one handler.
        if self.flows[flow].last() != Some(&place) {
            self.flows[flow].push(place);
        }
    }

    fn ipi(&mut self, place: usize, event: &Event) {
        let cpu = event.cpu.number();
        let taken = match (event.kind, event.other) {
            (EventKind::IpiSent, Some(target)) => {
                let flow = self.begin(vec![place]);
                self.messages.insert((event.argument, cpu, target.number()), flow);
                return;
            }
            (EventKind::IpiAccepted | EventKind::IpiMerged, Some(sender)) => {
                let key = (event.argument, sender.number(), cpu);
                if let Some(&flow) = self.messages.get(&key) {
                    self.pass(flow, place);
                    // The vector of an NMI means nothing.
                    let vector = (!self.nmis.contains(&key)).then_some(event.detail);
                    self.accepted.entry((cpu, vector)).or_default().push(flow);
                }
                return;
            }
            (EventKind::InterruptTaken, _) => self.accepted.remove(&(cpu, Some(event.detail))),
            (EventKind::NmiTaken, _) => self.accepted.remove(&(cpu, None)),
            _ => None,
        };
        for flow in taken.unwrap_or_default() {
            self.pass(flow, place);
        }
    }

    fn call(&mut self, place: usize, event: &Event) {
        use EventKind as K;
        let key = (event.cpu.number(), event.detail);
        match event.kind {
            K::CallQueued | K::ManyQueued => {
                let many = event.kind == K::ManyQueued;
                self.open.insert(key, Call { index: self.calls.len(), many, flows: Vec::new() });
                self.calls.push((place, None));
            }
            K::CallClaimed => {
                let caller = event.other.map(|caller| (caller.number(), event.detail));
                let Some(call) = caller.and_then(|key| self.open.get_mut(&key)) else { return };
                call.flows.push(self.flows.len());
                let queued = self.calls[call.index].0;
                self.begin(vec![queued, place]);
            }
            K::CallWithdrawn | K::CallRefused => {
                let Some(call) = self.open.get(&key) else { return };
                let (index, many) = (call.index, call.many);
                self.begin(vec![self.calls[index].0, place]);
                // A call to many still waits for its other targets.
                if !many {
                    self.end(key, place);
                }
            }
            K::CallCompleted | K::CallLeft => self.end(key, place),
            _ => {}
        }
    }

    fn end(&mut self, key: (u32, u32), place: usize) {
        if let Some(call) = self.open.remove(&key) {
            self.calls[call.index].1 = Some(place);
            for flow in call.flows {
                self.pass(flow, place);
            }
        }
    }
}
