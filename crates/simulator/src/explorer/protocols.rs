//! The laws of the shipping code, as named explorations, and what they are to be told from.
//!
//! * `calls`, `many`, `posts`, `closing`, `hotplug`, `recovery`: machines of two or three CPUs with mailboxes and the
//!   handlers that ship. What the programs were told, and what ran, is entered in books from both sides and has to
//!   balance at every end. `crashing`: crash stops. `handing_over`: what a crash leaves to the capture kernel. `work`: deferred work. `rendezvous`: all CPUs stop. `larger`: three CPUs with two or more calls each.
//! * `apic`: the driver of the local APIC that ships, beside the mistakes that it does not make.
//! * `stray_eoi`: ends of interrupt that belong to nothing, and an IPI to one CPU by way of a mask.
//! * `then`: algorithms of the past that lost calls, beside what would have held.
//! * `sketches`: mailboxes as one first sketches them, each with one mistake, and the same without it.
//!
//! What is [broken](Protocol::broken) must be found violated; its twin, of the same name with `-mended` after it or as
//! its `about` says, must hold.

use core::time::Duration;

use smpcall::{InterruptsOff, Post};
use smpcall_machine::{Deadline, wait};

use super::scenario::{Bounds, Protocol, Scenario};
use super::small;
use crate::kernel::{Calls, Hooks};
use crate::{SimMachine, program};

mod apic;
mod books;
mod calls;
mod closing;
mod crashing;
mod dead_posts;
mod handing_over;
mod hotplug;
mod larger;
mod many;
mod posts;
mod recovery;
mod rendezvous;
mod sketches;
mod stray_eoi;
mod then;
mod work;

use books::{Books, Errand, FOR_EVER};

/// All of them, and the [small protocol](small) on two senders.
pub fn all() -> Vec<Protocol> {
    let mut all = calls::all();
    all.extend(many::all());
    all.extend(posts::all());
    all.extend(closing::all());
    all.extend(recovery::all());
    all.extend(hotplug::all());
    all.extend(dead_posts::all());
    all.extend(crashing::all());
    all.extend(handing_over::all());
    all.extend(work::all());
    all.extend(rendezvous::all());
    all.extend(larger::all());
    all.extend(apic::all());
    all.extend(stray_eoi::all());
    all.extend(then::all());
    all.extend(sketches::all());
    all.extend([small::ok(2), small::irq(2), small::bug(), small::fix()]);
    all
}

/// The protocol with this name; `okN` and `irqN` with other numbers too.
pub fn by_name(name: &str) -> Option<Protocol> {
    let senders = |prefix| name.strip_prefix(prefix)?.parse().ok().filter(|n| (1..=small::MOST).contains(n));
    if let Some(senders) = senders("ok") {
        return Some(small::ok(senders));
    }
    if let Some(senders) = senders("irq") {
        return Some(small::irq(senders));
    }
    all().into_iter().find(|protocol| protocol.name == name)
}

/// A protocol on mailboxes, one loss and one early deadline unless somebody says otherwise.
fn protocol(
    name: &str,
    about: &str,
    cpus: usize,
    programs: impl Fn(&mut Actors) + Send + Sync + 'static,
) -> Protocol {
    let mut protocol = Protocol::new(name, about, cpus, move || {
        let mut scenario = Scenario::new();
        let books = Books::new(&mut scenario);
        let errand = Errand::new(&mut scenario, books);
        let mut actors = Actors { scenario, books, errand };
        programs(&mut actors);
        actors.scenario
    });
    protocol.prompt = true;
    protocol.kernel = Some(Hooks::default());
    protocol.bounds = Bounds { drops: 1, expiries: 1, ..Bounds::default() };
    protocol
}

/// The scenario that is being written: each of these is the next CPU's program.
struct Actors {
    scenario: Scenario,
    books: &'static Books,
    errand: &'static Post<SimMachine, Errand>,
}

impl Actors {
    /// Runs this, and knows nothing afterwards.
    fn does(&mut self, program: impl Fn(&'static Books) + 'static) {
        let books = self.books;
        self.scenario.cpu(move || {
            program(books);
            program::forget_but(0);
        });
    }

    /// Nothing to do: only interrupts.
    fn idles(&mut self) {
        self.scenario.cpu(|| {});
    }

    fn calls(&mut self, entry: usize, target: u32, limit: Option<Duration>) {
        self.does(move |books| books.call(entry, target, limit, false));
    }

    fn calls_with_interrupts_off(&mut self, entry: usize, target: u32, limit: Option<Duration>) {
        self.does(move |books| books.call(entry, target, limit, true));
    }

    /// Calls, and says so.
    fn calls_and_says(&mut self, entry: usize, target: u32) {
        self.does(move |books| {
            books.call(entry, target, FOR_EVER, false);
            books.said[entry].store(1, core::sync::atomic::Ordering::Release);
        });
    }

    fn calls_many(&mut self, entry: usize, targets: &'static [u32], limit: Option<Duration>) {
        self.does(move |books| {
            books.call_many(entry, targets, limit.map_or_else(Calls::for_ever, Calls::within));
        });
    }

    fn calls_many_with_interrupts_off(&mut self, entry: usize, targets: &'static [u32]) {
        self.does(move |books| {
            let mut guard = InterruptsOff::new();
            books.call_many(entry, targets, Calls::for_ever().with_interrupts_off(&mut guard));
        });
    }

    /// Posts, and says so.
    fn posts(&mut self, poster: usize, target: u32) {
        let errand = self.errand;
        self.does(move |books| {
            books.post(poster, target, errand);
            books.said[poster].store(1, core::sync::atomic::Ordering::Release);
        });
    }

    /// Goes offline.
    fn closes(&mut self) {
        self.does(|_| {
            let mut guard = InterruptsOff::new();
            Calls::close(&mut guard);
        });
    }

    /// Goes offline and online again, with a tick: it finds posts whose ring was lost.
    fn closes_and_opens(&mut self) {
        self.does(|books| {
            let mut guard = InterruptsOff::new();
            Calls::close(&mut guard);
            Calls::open();
            drop(guard);
            wait::<SimMachine>(&[books.said[0].equals(!0, 1)], Deadline::NEVER);
            Calls::tick();
        });
    }
}
