//! The execution at hand: decisions, the happens-before relation between them, and what is left to be tried beside each.
//!
//! Everything lies in flat arenas that are cut back to the node where the search goes on: no allocation in the steady
//! state.

use super::MAX_CPUS;
use super::index::Index;
use crate::explorer::choice::{Action, Choice};
use crate::explorer::footprint::{Footprint, Place};
use crate::hash::absorb;

/// For each CPU: how many of its events happen before this point.
pub(super) type Clock = [u16; MAX_CPUS];

/// A set of CPUs: bit n stands for CPU n.
pub(super) type CpuBits = u16;

pub(super) const fn bit(cpu: u16) -> CpuBits {
    1 << cpu
}

pub(super) fn join(clock: &mut Clock, other: &Clock) {
    for (mine, theirs) in clock.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}

/// A set of places, as bits, that rules most conflicts out at once: one for each place, mixed; and two more.
///
/// What is looked for in the digests of others is another set than one's own digest: so that one `and` answers, also for
/// what touches everything and what touches nothing.
pub(super) type Digest = u64;

/// In all digests: what touches everything looks for this.
pub(super) const ANYTHING: Digest = 1 << 63;
/// In the digests of what touches everything: all look for this.
const EVERYTHING: Digest = 1 << 62;
const PLACES: u32 = 62;

/// A footprint with its digest.
#[derive(Clone, Copy)]
pub(super) struct Touched {
    pub(super) footprint: Footprint,
    pub(super) digest: Digest,
}

impl Touched {
    pub(super) fn new(footprint: Footprint) -> Self {
        // Words are 8 bytes apart, so that the low bits of their numbers tell little: the golden ratio's fraction mixes them.
        let mixed = |place: Place| (u64::from(place.0.wrapping_mul(0x9e37_79b9)) * u64::from(PLACES)) >> 32;
        let places = footprint.uses().iter().fold(ANYTHING, |bits, &(place, _)| bits | 1 << mixed(place));
        Self { footprint, digest: if footprint.is_everything() { !0 } else { places } }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.digest == ANYTHING
    }

    /// What is in the digest of all that this conflicts with: one of these bits.
    #[inline]
    pub(super) fn looks_for(&self) -> Digest {
        if self.digest == !0 { !0 } else { self.digest ^ (ANYTHING | EVERYTHING) }
    }

    #[inline]
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        self.looks_for() & other.digest != 0 && self.footprint.conflicts(&other.footprint)
    }
}

/// What tells most events that have happened before something from the others, without a look at them.
#[derive(Clone, Copy)]
struct Stamp {
    cpu: u16,
    /// As in [`Event`].
    index: u16,
}

/// A decision that was executed.
pub(super) struct Event {
    pub(super) choice: Choice,
    /// The how manyth of its CPU, from 1.
    pub(super) index: u16,
    pub(super) touched: Touched,
    /// What decided that its CPU was not offered more than it was.
    pub(super) withheld: Touched,
    /// What happens before it, itself included.
    pub(super) clock: Clock,
    /// The position of the event before on its CPU, plus 1; 0 for none.
    pub(super) previous: u32,
    /// The hash of all events up to this one, in whatever order: equal for equivalent executions.
    pub(super) class: u128,
}

impl Event {
    /// Whether it happens before everything that has this clock.
    #[inline]
    pub(super) fn is_before(&self, clock: &Clock) -> bool {
        clock[self.choice.cpu as usize] >= self.index
    }
}

/// A choice that need not be tried: what begins with it was explored elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Sleeper {
    pub(super) choice: Choice,
    pub(super) touched: Touched,
}

impl Sleeper {
    /// Whether it stays asleep when this choice is made.
    pub(super) fn sleeps_through(&self, choice: Choice, touched: &Touched) -> bool {
        self.choice.cpu != choice.cpu && !self.touched.conflicts(touched)
    }
}

/// What can be chosen before the event with the same position.
#[derive(Clone, Copy)]
struct Node {
    /// Where its offers begin in the arena; they end where those of the next node begin.
    offers: u32,
    /// The same for what sleeps. Choices that were explored here are added while the node is the last one.
    sleepers: u32,
    /// How many of these slept when the search came here.
    inherited: u32,
    /// The CPUs to be scheduled here.
    scheduled: CpuBits,
    /// The CPUs whose step sleeps here: most of what is asked about sleepers.
    sleeping_steps: CpuBits,
    /// The CPUs that are offered something.
    offered: CpuBits,
    /// All that is offered is a step each: then these sets tell everything.
    only_steps: bool,
}

impl Node {
    /// If all that is offered are steps: the CPUs whose step is awake.
    #[inline]
    fn awake_steps(&self) -> Option<CpuBits> {
        self.only_steps.then_some(self.offered & !self.sleeping_steps)
    }

    /// Something sleeps here.
    fn note_sleeper(&mut self, choice: Choice) {
        if choice.action == Action::Step {
            self.sleeping_steps |= bit(choice.cpu);
        }
    }
}

/// The execution at hand. Node n lies before event n; there is one node more than events whenever
/// anything is chosen or given up.
#[derive(Default)]
pub(super) struct Path {
    pub(super) events: Vec<Event>,
    /// One for each event.
    stamps: Vec<Stamp>,
    index: Index,
    /// Room to work in.
    pub(super) related: Vec<u32>,
    nodes: Vec<Node>,
    offers: Vec<Choice>,
    sleepers: Vec<Sleeper>,
    /// The position of the last event of each CPU, plus 1.
    last: [u32; MAX_CPUS],
}

impl Path {
    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.stamps.clear();
        self.index.clear();
        self.nodes.clear();
        self.offers.clear();
        self.sleepers.clear();
        self.last = [0; MAX_CPUS];
    }

    pub(super) fn bytes(&self) -> usize {
        self.events.capacity() * size_of::<Event>()
            + self.stamps.capacity() * size_of::<Stamp>()
            + self.index.bytes()
            + self.nodes.capacity() * size_of::<Node>()
            + self.offers.capacity() * size_of::<Choice>()
            + self.sleepers.capacity() * size_of::<Sleeper>()
    }

    /// The last event of a CPU.
    pub(super) fn last_of(&self, cpu: u16) -> Option<&Event> {
        (self.last[cpu as usize] as usize).checked_sub(1).map(|position| &self.events[position])
    }

    /// The positions of the events, the last one first, that can have touched something of `touched`, or whose CPU was not
    /// offered something that depends on something of `withheld`, and that do not happen before what has this clock: all
    /// others need not be looked at.
    pub(super) fn find_related(
        &self,
        touched: Digest,
        withheld: Digest,
        clock: &Clock,
        positions: &mut Vec<u32>,
    ) {
        positions.clear();
        self.index.each(touched, withheld, |position| {
            let Stamp { cpu, index } = self.stamps[position];
            if clock[cpu as usize] < index {
                positions.push(position as u32);
            }
        });
    }

    /// Adds to a clock those `among` these events, the last one first, that conflict with something. An event that is in the
    /// clock is there with all that happens before it, so few have to be looked at closely.
    pub(super) fn add_conflicting(&self, clock: &mut Clock, touched: &Touched, among: &[u32]) {
        for &position in among {
            let earlier = &self.events[position as usize];
            if !earlier.is_before(clock) && touched.conflicts(&earlier.touched) {
                join(clock, &earlier.clock);
            }
        }
    }

    /// What happens before the next event of a CPU, as far as its own events tell.
    pub(super) fn clock_of(&self, cpu: u16) -> Clock {
        self.last_of(cpu).map_or([0; MAX_CPUS], |event| event.clock)
    }

    pub(super) fn offers(&self, node: usize) -> &[Choice] {
        let end = self.nodes.get(node + 1).map_or(self.offers.len(), |next| next.offers as usize);
        &self.offers[self.nodes[node].offers as usize..end]
    }

    pub(super) fn sleepers(&self, node: usize) -> &[Sleeper] {
        let end = self.nodes.get(node + 1).map_or(self.sleepers.len(), |next| next.sleepers as usize);
        &self.sleepers[self.nodes[node].sleepers as usize..end]
    }

    /// What sleeps at the last node and is not offered there: the system breaks its contract.
    pub(super) fn lost_sleeper(&self) -> Option<&Sleeper> {
        let node = self.nodes.len().checked_sub(1)?;
        // Ticks and wedges end with the programs, whoever's is the last.
        let promised = |sleeper: &&Sleeper| !matches!(sleeper.choice.action, Action::Tick | Action::Wedge);
        self.sleepers(node)
            .iter()
            .filter(promised)
            .find(|sleeper| !self.offers(node).contains(&sleeper.choice))
    }

    pub(super) fn is_asleep(&self, node: usize, choice: Choice) -> bool {
        if choice.action == Action::Step {
            return self.nodes[node].sleeping_steps & bit(choice.cpu) != 0;
        }
        self.sleepers(node).iter().any(|sleeper| sleeper.choice == choice)
    }

    pub(super) fn scheduled(&self, node: usize) -> CpuBits {
        self.nodes[node].scheduled
    }

    pub(super) fn schedule(&mut self, node: usize, cpus: CpuBits) {
        self.nodes[node].scheduled |= cpus;
    }

    /// The CPUs that are offered something.
    pub(super) fn offered_cpus(&self, node: usize) -> CpuBits {
        self.nodes[node].offered
    }

    /// The first CPU, by its number, that is offered something here that is not asleep.
    pub(super) fn first_awake(&self, node: usize) -> Option<u16> {
        if let Some(awake) = self.nodes[node].awake_steps() {
            return (awake != 0).then_some(awake.trailing_zeros() as u16);
        }
        let awake = self.offers(node).iter().filter(|&&offer| !self.is_asleep(node, offer));
        awake.map(|offer| offer.cpu).min()
    }

    /// The CPUs that the event after this node, on another CPU, has taken something from that was not asleep.
    pub(super) fn vanished(&self, node: usize) -> CpuBits {
        let (parent, child) = (&self.nodes[node], &self.nodes[node + 1]);
        let mover = self.events[node].choice.cpu;
        if child.only_steps
            && let Some(awake) = parent.awake_steps()
        {
            return awake & !child.offered & !bit(mover);
        }
        let now = self.offers(node + 1);
        let lost =
            |&&offer: &&Choice| offer.cpu != mover && !now.contains(&offer) && !self.is_asleep(node, offer);
        self.offers(node).iter().filter(lost).fold(0, |cpus, offer| cpus | bit(offer.cpu))
    }

    /// Adds the node after the last event, with what is offered there. What slept before the last event sleeps on, if
    /// anything does, as far as that event lets it.
    pub(super) fn add_node(&mut self, offers: &[Choice], sleep_on: bool) {
        let first = self.sleepers.len();
        let mut node = Node {
            offers: self.offers.len() as u32,
            sleepers: first as u32,
            inherited: 0,
            scheduled: 0,
            sleeping_steps: 0,
            offered: offers.iter().fold(0, |cpus, offer| cpus | bit(offer.cpu)),
            only_steps: offers.iter().all(|offer| offer.action == Action::Step),
        };
        if sleep_on && let (Some(event), Some(parent)) = (self.events.last(), self.nodes.last()) {
            for index in parent.sleepers as usize..first {
                if self.sleepers[index].sleeps_through(event.choice, &event.touched) {
                    node.note_sleeper(self.sleepers[index].choice);
                    self.sleepers.extend_from_within(index..=index);
                }
            }
        }
        node.inherited = (self.sleepers.len() - first) as u32;
        self.nodes.push(node);
        self.offers.extend_from_slice(offers);
    }

    /// Lets these sleep at the last node, which is the root of a unit.
    pub(super) fn inherit(&mut self, sleepers: &[Sleeper]) {
        self.sleepers.extend_from_slice(sleepers);
        if let Some(node) = self.nodes.last_mut() {
            node.inherited += sleepers.len() as u32;
            for sleeper in sleepers {
                node.note_sleeper(sleeper.choice);
            }
        }
    }

    /// What of this CPU slept at the last node when the search came here.
    pub(super) fn inherited_of(&self, cpu: u16) -> impl Iterator<Item = &Sleeper> {
        let (first, count) =
            self.nodes.last().map_or((0, 0), |node| (node.sleepers as usize, node.inherited as usize));
        self.sleepers[first..first + count].iter().filter(move |sleeper| sleeper.choice.cpu == cpu)
    }

    /// Adds an event of which all is known but its class.
    pub(super) fn add_event(&mut self, mut event: Event, with_class: bool) {
        if with_class {
            event.class = self.events.last().map_or(0, |last| last.class).wrapping_add(label(&event));
        }
        let last = &mut self.last[event.choice.cpu as usize];
        event.previous = *last;
        *last = self.events.len() as u32 + 1;
        self.stamps.push(Stamp { cpu: event.choice.cpu, index: event.index });
        self.index.push(event.touched.digest, event.withheld.digest);
        self.events.push(event);
    }

    /// The first choice at the last node that is scheduled and not asleep.
    pub(super) fn next_choice(&self) -> Option<Choice> {
        let node = self.nodes.len().checked_sub(1)?;
        let scheduled = self.nodes[node].scheduled;
        if let Some(awake) = self.nodes[node].awake_steps() {
            let next = awake & scheduled;
            return (next != 0).then(|| Choice::step(next.trailing_zeros() as u16));
        }
        let mut offers = self.offers(node).iter().copied();
        offers.find(|&offer| scheduled & bit(offer.cpu) != 0 && !self.is_asleep(node, offer))
    }

    /// Leaves the last node, and lets the event that led to it sleep at the one before. Not beyond the node `floor`:
    /// then the answer is no.
    pub(super) fn retreat(&mut self, floor: usize) -> bool {
        if let Some(node) = self.nodes.pop() {
            self.offers.truncate(node.offers as usize);
            self.sleepers.truncate(node.sleepers as usize);
        }
        if self.events.len() <= floor {
            return false;
        }
        let Some(event) = self.events.pop() else { return false };
        self.stamps.pop();
        self.index.pop(event.touched.digest, event.withheld.digest);
        self.last[event.choice.cpu as usize] = event.previous;
        self.sleepers.push(Sleeper { choice: event.choice, touched: event.touched });
        if let Some(node) = self.nodes.last_mut() {
            node.note_sleeper(event.choice);
        }
        true
    }

    /// How much of the tree lies behind, as far as the branches that are known now tell: from 0 to 1, from the node `floor` on.
    pub(super) fn done(&self, floor: usize) -> f64 {
        let mut done = 0.0;
        let mut width = 1.0;
        for node in floor..self.events.len().min(self.nodes.len()) {
            let scheduled = self.nodes[node].scheduled;
            let known = self.offers(node).iter().filter(|offer| scheduled & bit(offer.cpu) != 0);
            let (mut all, mut explored) = (0_u32, 0_u32);
            for &offer in known {
                all += 1;
                explored += u32::from(self.is_asleep(node, offer));
            }
            width /= f64::from(all.max(1));
            done += width * f64::from(explored);
        }
        done.min(1.0)
    }
}

/// The hash of an event with what happens before it.
fn label(event: &Event) -> u128 {
    let action = match event.choice.action {
        Action::Step => 0_u64,
        Action::Interrupt => 1,
        Action::Nmi => 2,
        Action::Expire => 3,
        Action::TimePasses => 4,
        Action::Flush => 5,
        Action::Tick => 6,
        Action::Wedge => 7,
        Action::Lose(targets) => 1 << 16 | u64::from(targets),
    };
    let mut hash = absorb(u128::from(action), u64::from(event.choice.cpu));
    for part in event.clock.chunks_exact(4) {
        let packed = part.iter().fold(0, |packed, &count| packed << 16 | u64::from(count));
        hash = absorb(hash, packed);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explorer::footprint::Use;

    #[test]
    fn the_digest_rules_out_no_conflict() {
        let one = |place, how| {
            let mut footprint = Footprint::NOTHING;
            footprint.add(Place(place), how);
            footprint
        };
        let mut footprints = vec![Footprint::NOTHING, Footprint::EVERYTHING];
        for place in [0, 1, 63, 64, 65] {
            footprints.extend([Use::Read, Use::Write, Use::Raise].map(|how| one(place, how)));
        }
        for a in &footprints {
            for b in &footprints {
                assert_eq!(Touched::new(*a).conflicts(&Touched::new(*b)), a.conflicts(b), "{a:?} {b:?}");
            }
        }
    }
}
