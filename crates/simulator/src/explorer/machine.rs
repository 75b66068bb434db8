//! The simulated machine as a system that engines explore: every decision there is, and what it touches.

use smpcall_machine::Cpu;

use super::choice::{Action, Choice};
use super::footprint::{Footprint, Place, Use};
use super::scenario::{Aftermath, Bounds, MemoryModel, Protocol};
pub(crate) use super::system::BEGIN_AGAIN;
use super::system::{Bits, Draw, System, Violation};
use crate::explored::{Learned, Options, place};
use crate::hash::absorb;
use crate::mutant::Mutant;
use crate::places::{budget_place, irr_place, nmi_place};
use crate::processor::{Anew, Order};
use crate::stepped::{Offer, Offers, Stepper};
use crate::waiting::Looked;
use crate::walk::Stride;
use crate::{Config, ConfigError};

/// Time may pass this often in one execution before the machine is said to hang.
const PATIENCE: u32 = 40;
/// An execution of more decisions than this has no end (law L3): protocols are a few hundred long. A decision is at most a
/// thousand operations.
pub(super) const LONGEST: u32 = 20_000;

/// How a machine is explored.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent choices")]
pub struct Setup {
    /// What may go wrong.
    pub bounds: Bounds,
    /// How stores reach memory.
    pub memory: MemoryModel,
    /// Whether data races are looked for.
    pub races: bool,
    /// Whether states are told apart. Needed by engines that store states; the random engines never do it when a protocol is
    /// [explored](super::explore).
    pub hashes: bool,
    /// Whether what nobody else can notice is done at once.
    pub reduce: bool,
    /// Whether [hints](crate::Config::believe_hints) are believed.
    pub believe_hints: bool,
    /// A deliberate fault.
    pub mutant: Option<Mutant>,
}

impl Setup {
    /// Everything is looked for, within these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            memory: MemoryModel::Sc,
            races: true,
            hashes: true,
            reduce: true,
            believe_hints: true,
            mutant: None,
        }
    }
}

/// A protocol on a stepped machine.
#[allow(clippy::struct_excessive_bools, reason = "independent facts")]
pub struct ExploredMachine {
    pub(super) stepper: Stepper<'static>,
    pub(super) aftermath: Aftermath,
    cpus: u16,
    prompt: bool,
    bounds: Bounds,
    left: Bounds,
    /// What each CPU can do, as it was when it was looked at last.
    offers: Offers,
    /// Everybody has to be looked at again.
    all_stale: bool,
    /// How often only time has passed.
    idle: u32,
    /// Decisions of this execution.
    decided: u32,
    /// One bit for each CPU that makes no step any more.
    wedged: u64,
    /// Nothing was decided in this execution.
    begins: bool,
    started: bool,
}

impl ExploredMachine {
    /// The machine of a protocol.
    ///
    /// # Errors
    /// If there cannot be such a machine.
    pub fn new(protocol: &Protocol, setup: &Setup) -> Result<Self, ConfigError> {
        Self::with_learned(protocol, setup, Learned::default())
    }

    /// As [`new`](Self::new), sharing with others who touches what.
    pub(crate) fn with_learned(
        protocol: &Protocol,
        setup: &Setup,
        learned: Learned,
    ) -> Result<Self, ConfigError> {
        let mut config = Config::new(protocol.cpus, protocol.routing, 0);
        config.believe_hints = setup.believe_hints;
        let (stepper, aftermath) = protocol.scenario().into_machine(&config, protocol.kernel)?;
        stepper.with(|machine| {
            machine.explored.options = Options {
                hash: setup.hashes,
                races: setup.races,
                buffers: setup.memory == MemoryModel::Tso,
                local: setup.reduce && learned.tells_cpus_apart(),
            };
            machine.explored.believe(learned);
            machine.explored.mutant.clone_from(&setup.mutant);
        });
        Ok(Self {
            stepper,
            aftermath,
            cpus: protocol.cpus as u16,
            prompt: protocol.prompt,
            bounds: setup.bounds,
            left: setup.bounds,
            offers: Offers::new(protocol.cpus),
            all_stale: true,
            idle: 0,
            decided: 0,
            wedged: 0,
            begins: true,
            started: false,
        })
    }

    pub(super) fn each_cpu(&self) -> impl Iterator<Item = Cpu> + use<> {
        (0..u32::from(self.cpus)).map(Cpu::new)
    }

    pub(super) fn is_wedged(&self, cpu: u16) -> bool {
        self.wedged & 1 << (cpu % 64) != 0
    }

    /// Whether what the CPU is about to do can lose a message.
    fn sends(&self, cpu: u16) -> bool {
        self.offers.of(cpu as usize).has(Offer::SENDS)
    }

    /// Looks again at what the CPUs can do, where that may have changed.
    #[inline(always)]
    fn look(&mut self) {
        self.stepper.survey(&mut self.offers, core::mem::take(&mut self.all_stale));
    }

    /// What one CPU can do by itself.
    fn choices_of(&mut self, cpu: u16, choices: &mut Vec<Choice>) {
        let offer = self.offers.of(cpu as usize);
        if self.is_wedged(cpu) {
            if offer.has(Offer::FLUSH) {
                // Its stores reach memory all the same.
                choices.push(Choice::new(cpu, Action::Flush));
            }
            return;
        }
        for (what, action) in [
            (Offer::NMI, Action::Nmi),
            (Offer::INTERRUPT, Action::Interrupt),
            (Offer::FLUSH, Action::Flush),
            (Offer::STEP, Action::Step),
        ] {
            if offer.has(what) {
                choices.push(Choice::new(cpu, action));
            }
        }
        if offer.has(Offer::STEP) && offer.has(Offer::SENDS) && self.left.drops > 0 {
            self.losses(cpu, choices);
        }
    }

    /// The losses that the CPU's step can suffer.
    fn losses(&mut self, cpu: u16, choices: &mut Vec<Choice>) {
        let targets = self.stepper.targets(Cpu::new(cpu.into())).len().min(16);
        for losing in 1..1_u32 << targets {
            if losing.count_ones() <= self.left.drops {
                choices.push(Choice::new(cpu, Action::Lose(losing as u16)));
            }
        }
    }

    /// What time, ticks and wedges can do; the others' choices are there already. Nothing of this vanishes because
    /// somebody else moves, unless [footprints](Self::spend) say so.
    fn choices_of_time(&mut self, choices: &mut Vec<Choice>) {
        let stuck = choices.is_empty();
        let Bounds { expiries, ticks, wedges, .. } = self.left;
        let unfinished = self.each_cpu().any(|cpu| !self.is_done(cpu));
        let earliest = self.each_cpu().filter_map(|cpu| self.deadline(cpu)).min();
        for cpu in self.each_cpu() {
            let number = cpu.number() as u16;
            if self.is_wedged(number) {
                continue;
            }
            let offer = self.offers.of(cpu.index());
            if let Some(deadline) = self.deadline(cpu) {
                if stuck && Some(deadline) == earliest {
                    choices.push(Choice::new(number, Action::TimePasses));
                }
                if expiries > 0 && !offer.has(Offer::STEP) {
                    choices.push(Choice::new(number, Action::Expire));
                }
            }
            if unfinished && ticks > 0 {
                choices.push(Choice::new(number, Action::Tick));
            }
            if wedges > 0 && offer.has(Offer::NMI | Offer::INTERRUPT | Offer::STEP) {
                // Instead of its next move: where it has none, it makes no difference.
                choices.push(Choice::new(number, Action::Wedge));
            }
        }
    }

    fn deadline(&self, cpu: Cpu) -> Option<smpcall_machine::Instant> {
        if !self.offers.of(cpu.index()).has(Offer::DEADLINE) || self.is_wedged(cpu.number() as u16) {
            return None;
        }
        self.stepper.deadline(cpu)
    }

    /// Whether nothing is expected of the CPU any more.
    pub(super) fn is_done(&self, cpu: Cpu) -> bool {
        self.is_wedged(cpu.number() as u16) || self.offers.of(cpu.index()).has(Offer::ENDED)
    }

    /// The same, after a decision of the CPU's.
    fn is_done_now(&self, cpu: u16) -> bool {
        self.is_wedged(cpu) || self.stepper.with(|machine| machine.cpus[cpu as usize].is_done())
    }

    /// Who has not ended, and where it stands.
    fn waiters(&self) -> String {
        let waiting = self.each_cpu().filter(|&cpu| !self.is_done(cpu)).map(|cpu| {
            let pending = self.stepper.pending(cpu);
            let interrupts = self.stepper.with(|machine| machine.cpus[cpu.index()].interrupts_enabled);
            let interrupts = if interrupts { "on" } else { "off" };
            format!("{cpu} waits at {}, interrupts {interrupts}", place(pending.source))
        });
        waiting.collect::<Vec<_>>().join("; ")
    }

    fn act(&mut self, choice: Choice) {
        let index = choice.cpu as usize;
        let cpu = Cpu::new(choice.cpu.into());
        match choice.action {
            Action::Step => self.stepper.go_on(index, Some(Order::Step)),
            Action::Lose(losing) => {
                let targets = self.stepper.targets(cpu);
                let lost = (0..16).filter(|bit| losing & 1 << bit != 0);
                let lost = lost.filter_map(|bit| targets.get(bit).map(|cpu| cpu.index())).collect();
                self.stepper.with(|machine| machine.interconnect.losing = lost);
                self.stepper.go_on(index, Some(Order::Step));
                self.stepper.with(|machine| machine.interconnect.losing.clear());
            }
            Action::Interrupt => self.stepper.go_on(index, Some(Order::Interrupt)),
            Action::Nmi => self.stepper.go_on(index, Some(Order::Nmi)),
            Action::Expire | Action::TimePasses => self.stepper.go_on(index, Some(Order::Expire)),
            Action::Flush => self.stepper.with(|machine| {
                machine.explored.footprint.clear();
                machine.cpus[index].hashed = None;
                machine.cpus[index].set_stale();
                machine.flush(index);
            }),
            Action::Tick => self.stepper.with(|machine| {
                machine.explored.footprint.clear();
                machine.running = index;
                machine.request(index, crate::TIMER_VECTOR);
            }),
            Action::Wedge => {
                // What its wait looks at, if it waits.
                self.look();
                self.stepper.with(|machine| machine.explored.footprint.clear());
                self.wedged |= 1 << (choice.cpu % 64);
            }
        }
    }

    /// What lets a CPU move: a wait's words, its interrupt requests.
    fn touch_what_moves(&mut self, cpu: u16, footprint: &mut Footprint) {
        let index = cpu as usize;
        self.stepper.with(|machine| {
            let places = &mut machine.explored.places;
            let processor = &machine.cpus[index];
            if processor.conditions.is_some() {
                for &address in &processor.watched {
                    let slot = places.slot(address);
                    footprint.add(places.all[slot as usize].place, Use::Read);
                }
            }
            footprint.add(irr_place(index), Use::Read);
            footprint.add(nmi_place(index), Use::Read);
        });
    }

    /// See [`Explored::begin_walk`](crate::explored::Explored::begin_walk).
    ///
    /// # Safety
    /// As there.
    unsafe fn begin_walk(&mut self, draw: &mut Draw<'_>, known: bool) {
        self.stepper.with(|machine| {
            // SAFETY: passed on to the caller.
            unsafe { machine.explored.begin_walk(draw, known, self.decided, LONGEST) }
        });
    }

    fn end_walk(&mut self) {
        self.decided = self.stepper.with(|machine| machine.explored.end_walk()).unwrap_or(self.decided);
    }

    /// Makes the steps of a walk.
    fn stride(&mut self) -> Result<(), Violation> {
        loop {
            self.look();
            let Some(steps) = self.offers.only_steps().filter(|&steps| steps != 0) else { return Ok(()) };
            match self.stepper.with(|machine| machine.explored.stride(steps)) {
                Stride::Step(cpu) => {
                    if self.stepper.switch_to(cpu as usize, Some(Order::Step)) {
                        return Err(self.trouble());
                    }
                }
                Stride::Enough => return Ok(()),
                Stride::TooMany(cpu) => return Err(has_no_end(cpu)),
            }
        }
    }

    fn hang(&self) -> Violation {
        Violation::new("hang", format!("nobody can move. {}", self.waiters()))
    }

    /// Whether what has happened since somebody asked last breaks a law, or ends the exploration.
    fn is_in_trouble(&self) -> bool {
        self.stepper.with(|machine| machine.is_in_trouble())
    }

    /// Why the execution cannot go on.
    #[cold]
    fn trouble(&mut self) -> Violation {
        if let Some((cpu, payload)) = self.stepper.take_panic() {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            return Violation::new("panic", format!("CPU {cpu} panics: {text}"));
        }
        let (violation, contradicted) = self.stepper.with(|machine| {
            let explored = &mut machine.explored;
            (explored.violation.take(), core::mem::take(&mut explored.contradicted))
        });
        match violation {
            Some(violation) if !contradicted => violation,
            _ => Violation::new(BEGIN_AGAIN, "a word that was taken for private is not"),
        }
    }

    /// What the choice takes from the budgets.
    fn spend(&mut self, choice: Choice) {
        match choice.action {
            Action::Step | Action::Interrupt | Action::Nmi | Action::Flush => {}
            Action::Lose(losing) => self.left.drops -= losing.count_ones(),
            Action::Expire => self.left.expiries -= 1,
            Action::Tick => self.left.ticks -= 1,
            Action::Wedge => self.left.wedges -= 1,
            Action::TimePasses => self.idle += 1,
        }
    }

    /// What others can notice of what the choice took from the budgets, or could have.
    fn touch_budgets(&mut self, choice: Choice, footprint: &mut Footprint) {
        let (drops, expiries, ticks, wedges, unfinished) = (0, 1, 2, 3, 4);
        match choice.action {
            Action::Lose(_) => footprint.add(budget_place(drops), Use::Write),
            Action::Expire => footprint.add(budget_place(expiries), Use::Write),
            Action::Tick => {
                footprint.add(budget_place(ticks), Use::Write);
                footprint.add(budget_place(unfinished), Use::Read);
            }
            Action::Wedge => {
                footprint.add(budget_place(wedges), Use::Write);
                self.touch_what_moves(choice.cpu, footprint);
            }
            Action::TimePasses => *footprint = Footprint::EVERYTHING,
            Action::Step | Action::Interrupt | Action::Nmi | Action::Flush => {}
        }
        if self.bounds.ticks > 0 && self.is_done_now(choice.cpu) {
            // This may be the last end, after which no tick comes.
            footprint.add(budget_place(unfinished), Use::Raise);
        }
        // Who comes to a wait that could expire, or has sent what could be lost, has looked at what is left.
        if self.bounds.expiries > 0 {
            self.look();
            if self.deadline(Cpu::new(choice.cpu.into())).is_some() {
                footprint.add(budget_place(expiries), Use::Read);
            }
        }
    }
}

#[cold]
fn has_no_end(cpu: u16) -> Violation {
    let what = format!("no end after {LONGEST} decisions: CPU {cpu} goes round in circles, or another");
    Violation::new("L3", what)
}

impl System for ExploredMachine {
    fn cpus(&self) -> u16 {
        self.cpus
    }

    fn restart(&mut self) {
        self.left = self.bounds;
        self.all_stale = true;
        self.idle = 0;
        self.wedged = 0;
        self.begins = true;
        self.decided = 0;
        if self.started {
            // SAFETY: the programs own nothing across their operations that relies on being dropped, says `Scenario`, and
            // the mailboxes, which could refer to their stacks, are put back.
            unsafe { self.stepper.begin_again() };
        } else {
            self.started = true;
            self.stepper.begin();
        }
    }

    fn choices(&mut self, choices: &mut Vec<Choice>) -> Result<(), Violation> {
        choices.clear();
        if core::mem::take(&mut self.begins) && self.is_in_trouble() {
            // Before anybody's first operation.
            return Err(self.trouble());
        }
        self.look();
        if self.wedged == 0
            && let Some(steps) = self.offers.only_steps()
        {
            choices.extend(Bits(steps).map(Choice::step));
        } else {
            (0..self.cpus).for_each(|cpu| self.choices_of(cpu, choices));
        }
        let anybody = !choices.is_empty();
        if !anybody && self.idle == 0 && self.each_cpu().all(|cpu| self.is_done(cpu)) {
            // By far the most ends: time makes no difference any more.
            return Ok(());
        }
        let Bounds { expiries, ticks, wedges, .. } = self.left;
        if !anybody || expiries | ticks | wedges != 0 {
            self.choices_of_time(choices);
        }
        if anybody {
            return Ok(());
        }
        let untouched = self.left == self.bounds;
        let time_passes = choices.iter().any(|choice| choice.action == Action::TimePasses);
        if self.prompt && untouched && time_passes {
            let what =
                format!("nothing was lost, and yet nobody can move until time passes. {}", self.waiters());
            return Err(Violation::new("L2", what));
        }
        if self.idle > PATIENCE {
            return Err(Violation::new("hang", format!("only time passes. {}", self.waiters())));
        }
        Ok(())
    }

    fn perform(&mut self, choice: Choice) -> Result<Footprint, Violation> {
        // Who replays does not ask for the choices first.
        let losable = self.bounds.drops > 0 && choice.action == Action::Step && {
            self.look();
            self.sends(choice.cpu)
        };
        self.perform_only(choice)?;
        let mut footprint = Footprint::NOTHING;
        self.stepper.with(|machine| footprint.copy_from(&machine.explored.footprint));
        if losable {
            footprint.add(budget_place(0), Use::Read);
        }
        self.touch_budgets(choice, &mut footprint);
        Ok(footprint)
    }

    fn walk(&mut self, draw: &mut Draw<'_>) -> Result<(), Violation> {
        let Bounds { expiries, ticks, wedges, .. } = self.left;
        if self.begins || self.wedged != 0 || expiries | ticks | wedges != 0 {
            return Ok(());
        }
        // SAFETY: it ends below, and `draw` is borrowed until then.
        unsafe { self.begin_walk(draw, false) };
        let walked = self.stride();
        self.end_walk();
        walked
    }

    fn replay(&mut self, choices: &mut dyn Iterator<Item = Choice>) -> Result<(), Violation> {
        let mut replayed = Ok(());
        loop {
            let mut other = None;
            let mut draw = |_: Bits| match choices.next() {
                Some(Choice { cpu, action: Action::Step }) => Some(cpu),
                choice => {
                    other = choice;
                    None
                }
            };
            // SAFETY: it ends below, and nobody else uses `draw`, nor what it has borrowed, until then.
            unsafe { self.begin_walk(&mut draw, true) };
            while let Stride::Step(cpu) = self.stepper.with(|machine| machine.explored.stride(u64::MAX)) {
                if self.stepper.switch_to(cpu as usize, Some(Order::Step)) {
                    replayed = replayed.and(Err(self.trouble()));
                }
            }
            self.end_walk();
            let Some(choice) = other else { return replayed };
            replayed = replayed.and(self.perform_only(choice));
        }
    }

    #[inline(always)]
    fn perform_only(&mut self, choice: Choice) -> Result<(), Violation> {
        self.decided += 1;
        if self.decided > LONGEST {
            return Err(has_no_end(choice.cpu));
        }
        if choice.action == Action::Step {
            // By far the most, and they take nothing from the budgets.
            if self.stepper.switch_to(choice.cpu as usize, Some(Order::Step)) {
                return Err(self.trouble());
            }
            return Ok(());
        }
        self.act(choice);
        if self.is_in_trouble() {
            return Err(self.trouble());
        }
        self.spend(choice);
        Ok(())
    }

    fn withheld(&mut self, cpu: u16) -> Footprint {
        let mut withheld = Footprint::NOTHING;
        if self.is_wedged(cpu) {
            return withheld;
        }
        // Who has replayed to here has not looked.
        self.look();
        let index = cpu as usize;
        let enabled = self.offers.of(index).has(Offer::STEP);
        let waits = self.deadline(Cpu::new(cpu.into())).is_some();
        let sends = self.sends(cpu);
        self.stepper.with(|machine| {
            let places = &mut machine.explored.places;
            let processor = &machine.cpus[index];
            if !enabled && processor.conditions.is_some() {
                for &address in &processor.watched {
                    let slot = places.slot(address);
                    withheld.add(places.all[slot as usize].place, Use::Read);
                }
                if processor.looked == Looked::Unknown {
                    withheld.add(irr_place(index), Use::Read);
                }
            }
            let reset = processor.anew == Some(Anew::WaitForStartUp);
            if reset || processor.interrupts_enabled && !processor.vector_deliverable {
                withheld.add(irr_place(index), Use::Read);
            }
            if processor.nmi_depth == 0 && !processor.nmi_deliverable {
                withheld.add(nmi_place(index), Use::Read);
            }
        });
        let (left, bounds) = (self.left, self.bounds);
        if bounds == Bounds::default() {
            return withheld;
        }
        // Something that is used up could have been used here.
        for (budget, missing) in [
            (0, sends && left.drops < bounds.drops),
            (1, waits && left.expiries < bounds.expiries),
            (2, left.ticks < bounds.ticks),
            (3, left.wedges < bounds.wedges),
        ] {
            if missing {
                withheld.add(budget_place(budget), Use::Write);
            }
        }
        // A tick comes to somebody only while somebody is not done.
        if left.ticks > 0 && self.each_cpu().all(|cpu| self.is_done(cpu)) {
            withheld.add(budget_place(4), Use::Read);
        }
        withheld
    }

    fn owed_to(&mut self, choice: Choice) -> Option<Place> {
        if !self.stepper.with(|machine| machine.cpus[choice.cpu as usize].conditions.is_some()) {
            return None;
        }
        self.look();
        // Where the deadline could come instead, the CPU has something to do without that change too.
        let expires = self.bounds.expiries > 0 && self.offers.of(choice.cpu as usize).has(Offer::DEADLINE);
        if choice.action == Action::Step && !expires {
            self.stepper.wait_is_owed_to(Cpu::new(choice.cpu.into()))
        } else {
            None
        }
    }

    fn digest(&mut self) -> u64 {
        self.stepper.with(|machine| machine.cpus.iter().fold(0, |sum, cpu| sum ^ cpu.history as u64))
    }

    fn state_hash(&mut self) -> u128 {
        let Bounds { drops, expiries, ticks, wedges } = self.left;
        let left =
            u64::from(drops) | u64::from(expiries) << 16 | u64::from(ticks) << 32 | u64::from(wedges) << 48;
        let hash = absorb(absorb(self.stepper.state_hash(), left), self.wedged);
        // The machine hangs when this goes too far.
        absorb(hash, self.idle.into())
    }

    fn end(&mut self) -> Result<u64, Violation> {
        if !self.each_cpu().all(|cpu| self.is_done(cpu)) {
            return Err(self.hang());
        }
        self.aftermath.check()?;
        Ok(self.stepper.with(|machine| machine.explored.ending()))
    }
}

#[cfg(test)]
mod tests;
