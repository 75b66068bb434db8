//! Which schedules an execution shows to be missing.
//!
//! An execution stands for its class: all executions with the same events and the same happens-before relation. A *race* is a
//! pair of events whose order could be the other way round, in another class. The search must then try, at the node
//! before the first of the two, something that leads there: one of the *initials* of `v`, where `v` is what comes after the
//! first event and does not depend on it, and then the second event. (Abdulla, Aronis, Jonsson, Sagonas: Source sets: a
//! foundation for optimal dynamic partial order reduction, Journal of the ACM 64, 2017.)
//!
//! Beyond the paper, CPUs are blocked and interrupted. What a CPU was not offered has no footprint that was recorded; so
//! the system tells what it depends on ([withheld](crate::explorer::system::System::withheld)). Three kinds of races:
//!
//! - two events that conflict. All such pairs count, not only those with nothing between: between them the second one may have
//!   been impossible;
//! - an event, and what it kept a later-moving (or blocked) CPU from being offered: a budget that it used up, a condition that it
//!   made false;
//! - an event of a CPU, and a later one that would have offered the CPU more, had it come before: an interrupt.
//!
//! An alternative that sleeps while its CPU makes another choice counts as withheld: it will not be explored there, but
//! what would wake it must have its turn. An expired wait withholds the passing of time, to which everybody's decisions
//! lead. And what a decision takes away from another CPU at once is scheduled before it at once.
//!
//! Each of these is needed: without it the soundness oracle (`tests/oracle.rs`) finds lost classes, but for the last
//! one, which stands beside the second kind of race.

use super::Reduction;
use super::path::{Clock, CpuBits, Event, Path, Touched, bit};
use crate::explorer::choice::{Action, Choice};
use crate::explorer::footprint::{Footprint, Place, Use};

/// What was observed of a CPU before it moved, to find races.
pub(super) struct Observed {
    /// What it was not offered depends on this.
    pub(super) withheld: Footprint,
    /// Its choice was offered because of the last change of this.
    pub(super) owed_to: Option<Place>,
    /// No node above this one is to be added to.
    pub(super) floor: usize,
}

/// What comes second in a race.
#[derive(Clone, Copy)]
struct Second<'a> {
    cpu: u16,
    /// The choice, if it is known.
    choice: Option<Choice>,
    /// What happens before it, or before anything that its CPU could have been offered instead.
    clock: &'a Clock,
    /// Whether it is offered to its CPU wherever the CPU stands there.
    certain: bool,
}

/// The first event of each CPU in a sequence.
#[derive(Default)]
struct Firsts {
    /// The CPUs that have one.
    cpus: CpuBits,
    indices: Clock,
}

impl Firsts {
    fn add(&mut self, cpu: u16, index: u16) {
        self.cpus |= bit(cpu);
        self.indices[cpu as usize] = index;
    }

    /// Whether one of them happens before what has this clock.
    fn any_before(&self, clock: &Clock) -> bool {
        let mut cpus = self.cpus;
        while cpus != 0 {
            let cpu = cpus.trailing_zeros() as usize;
            if clock[cpu] >= self.indices[cpu] {
                return true;
            }
            cpus &= cpus - 1;
        }
        false
    }
}

impl Path {
    /// Adds an event after the last node, and schedules what it shows to be missing at nodes from `floor` on.
    pub(super) fn execute(
        &mut self,
        choice: Choice,
        footprint: Footprint,
        observed: Option<Observed>,
        with_class: bool,
    ) {
        let touched = Touched::new(footprint);
        let own = self.clock_of(choice.cpu);
        let mut clock = own;
        let index = own[choice.cpu as usize] + 1;
        let mut withheld = Touched::new(Footprint::NOTHING);
        let mut related = core::mem::take(&mut self.related);
        if let Some(mut observed) = observed {
            // An alternative that sleeps is withheld too: what wakes it must have its turn before.
            for sleeper in self.inherited_of(choice.cpu) {
                observed.withheld.add_all(&sleeper.touched.footprint);
            }
            withheld = Touched::new(observed.withheld);
            let enabler = observed.owed_to.and_then(|place| self.only_enabler(place, &touched));
            let of_choice = touched.looks_for();
            self.find_related(of_choice | withheld.looks_for(), of_choice, &own, &mut related);
            self.add_conflicting(&mut clock, &touched, &related);
            clock[choice.cpu as usize] = index;
            let second = (choice, &touched, &withheld);
            self.find_races(second, &clock, (enabler, observed.floor), &related);
            if matches!(choice.action, Action::Expire | Action::Tick | Action::Wedge) {
                // That nobody can move offers more: time passes. Everybody's decisions lead there.
                withheld = Touched::new(Footprint::EVERYTHING);
            }
        } else {
            self.find_related(touched.looks_for(), 0, &own, &mut related);
            self.add_conflicting(&mut clock, &touched, &related);
            clock[choice.cpu as usize] = index;
        }
        self.related = related;
        self.add_event(Event { choice, index, touched, withheld, clock, previous: 0, class: 0 }, with_class);
    }

    /// `related`: events that do not happen before what this CPU did before, and so are none of its own.
    fn find_races(
        &mut self,
        (choice, touched, withheld): (Choice, &Touched, &Touched),
        clock: &Clock,
        (enabler, floor): (Option<usize>, usize),
        related: &[u32],
    ) {
        let mut wide = *clock;
        if !withheld.is_nothing() {
            self.add_conflicting(&mut wide, withheld, related);
        }
        let cpu = choice.cpu;
        for position in related.iter().map(|&position| position as usize).take_while(|&at| at >= floor) {
            let earlier = &self.events[position];
            // Time passes when nobody can move: not before a move that could be made there. (What budgets pay for, and what
            // time does elsewhere, is no such move.)
            let moved = !matches!(
                earlier.choice.action,
                Action::TimePasses | Action::Expire | Action::Tick | Action::Wedge
            );
            let conflict = enabler != Some(position)
                && touched.conflicts(&earlier.touched)
                && !(choice.action == Action::TimePasses && moved);
            if conflict {
                self.reverse(position, Second { cpu, choice: Some(choice), clock: &wide, certain: false });
            }
            if withheld.conflicts(&self.events[position].touched) {
                self.reverse(position, Second { cpu, choice: None, clock: &wide, certain: false });
            }
            let earlier = &self.events[position];
            if !earlier.is_before(clock) && earlier.withheld.conflicts(touched) {
                self.reverse(position, Second { cpu, choice: Some(choice), clock, certain: true });
            }
        }
    }

    /// The event without which a choice with this footprint would be impossible at the last node, if it owes it to the
    /// last change of `place`: in no other order of the events can it come before that one.
    fn only_enabler(&self, place: Place, touched: &Touched) -> Option<usize> {
        let position = self.events.iter().rposition(|event| event.touched.conflicts(touched))?;
        let mut uses = self.events[position].touched.footprint.uses().iter();
        let conflict = |&&(other, how): &&(Place, Use)| {
            let mut one = Footprint::NOTHING;
            one.add(other, how);
            one.conflicts(&touched.footprint)
        };
        let only = !self.events[position].touched.footprint.is_everything()
            && uses.clone().any(|&(other, how)| other == place && how != Use::Read)
            && uses.all(|used| !conflict(&used) || used.0 == place);
        only.then_some(position)
    }

    /// The same for a CPU that makes no step any more, where the execution ends.
    pub(super) fn find_races_of_blocked(&mut self, cpu: u16, withheld: Footprint, floor: usize) {
        let withheld = Touched::new(withheld);
        if withheld.is_nothing() {
            return;
        }
        let mut related = core::mem::take(&mut self.related);
        let mut wide = self.clock_of(cpu);
        self.find_related(withheld.looks_for(), 0, &wide, &mut related);
        self.add_conflicting(&mut wide, &withheld, &related);
        for position in related.iter().map(|&position| position as usize).take_while(|&at| at >= floor) {
            if withheld.conflicts(&self.events[position].touched) {
                self.reverse(position, Second { cpu, choice: None, clock: &wide, certain: false });
            }
        }
        self.related = related;
    }

    /// Sees to it that an execution is explored in which the event at `position` does not come before `second`.
    fn reverse(&mut self, position: usize, second: Second<'_>) {
        let event = &self.events[position];
        let scheduled = self.scheduled(position);
        let own = bit(second.cpu);
        let mut firsts = Firsts::default();
        let mut initials: CpuBits = 0;
        for later in &self.events[position + 1..] {
            let cpu = later.choice.cpu;
            if firsts.cpus & bit(cpu) != 0 || event.is_before(&later.clock) {
                continue;
            }
            if !firsts.any_before(&later.clock) {
                // It will be explored here, or was elsewhere.
                if scheduled & bit(cpu) != 0 || self.is_asleep(position, later.choice) {
                    return;
                }
                initials |= bit(cpu);
            }
            firsts.add(cpu, later.index);
        }
        if firsts.cpus & own == 0 && !firsts.any_before(second.clock) {
            let offers = self.offers(position);
            match second.choice {
                Some(choice) if offers.contains(&choice) => {
                    if self.is_asleep(position, choice) {
                        return;
                    }
                    initials |= own;
                }
                // Where it stands there it is not offered that, and nothing in `v` changes it.
                Some(_) if !second.certain => return,
                Some(_) => {}
                None => {
                    let mut new =
                        offers.iter().filter(|offer| offer.cpu == second.cpu && !self.offers_now(**offer));
                    if new.all(|&offer| self.is_asleep(position, offer)) {
                        return;
                    }
                    initials |= own;
                }
            }
        }
        if initials == 0 || initials & scheduled != 0 {
            return;
        }
        let chosen = if initials & own != 0 { own } else { 1 << initials.trailing_zeros() };
        self.schedule(position, chosen);
    }

    /// Whether this is offered at the last node.
    fn offers_now(&self, choice: Choice) -> bool {
        self.offers(self.events.len()).contains(&choice)
    }

    /// What the last event has taken away from other CPUs is scheduled where it was offered.
    pub(super) fn schedule_what_vanished(&mut self) {
        let node = self.events.len();
        let Some(parent) = node.checked_sub(1) else { return };
        let vanished = self.vanished(parent);
        self.schedule(parent, vanished);
    }

    /// Schedules the first CPU at the last node, or all of them.
    pub(super) fn schedule_first(&mut self, reduction: Reduction) {
        let node = self.events.len();
        if reduction != Reduction::Reduced {
            self.schedule(node, self.offered_cpus(node));
        } else if let Some(cpu) = self.first_awake(node) {
            self.schedule(node, bit(cpu));
        }
    }
}
