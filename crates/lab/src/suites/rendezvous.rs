//! Suite `rendezvous`: all CPUs stop for each other, in the middle of the torture, and nobody serves meanwhile.
//!
//! One that cannot take place by its deadline is given up and told: closures of the torture call and wait, and one that waits
//! for a CPU that has stopped already keeps the others from stopping. It is counted, and nothing of it may have run.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use core::time::Duration;

use smpcall::{CallError, Caller, ExclusiveError, RendezvousError};
use smpcall_machine::{Counter, Cpu, InterruptsOff, Machine};

use super::{Run, books, calls, torture};
use crate::cpu::{MAX_CPUS, this};
use crate::machine::{Calls, Lab};
use crate::tasks::Step;
use crate::{apic, random};

/// For calls that are refused at once.
const LIMIT: Duration = Duration::from_secs(60);

/// For a rendezvous to gather all CPUs, which an emulator runs one after the other.
fn gathering() -> Duration {
    Duration::from_millis(200) + Duration::from_millis(10) * apic::count() as u32
}
/// How often a CPU calls for one: after so many slices of operations, on the average.
const APART: u64 = 8;

/// How many CPUs are in the closure of a rendezvous.
static INSIDE: AtomicU64 = AtomicU64::new(0);

struct Page {
    rendezvous: Counter,
    given_up: Counter,
    failed: Counter,
    ran: Counter,
    expected: Counter,
    interrupted: Counter,
    calls_accepted: Counter,
}

static PAGES: [Page; MAX_CPUS] = [const {
    Page {
        rendezvous: Counter::new(0),
        given_up: Counter::new(0),
        failed: Counter::new(0),
        ran: Counter::new(0),
        expected: Counter::new(0),
        interrupted: Counter::new(0),
        calls_accepted: Counter::new(0),
    }
}; MAX_CPUS];

fn total(counter: impl Fn(&Page) -> &Counter) -> u64 {
    PAGES.iter().map(|page| counter(page).get()).sum()
}

/// Whether a rendezvous runs at this moment: nobody is to run a closure of a call then.
pub(super) fn is_running() -> bool {
    // Sequentially consistent, as the changes: who is inside is seen by whoever runs at the same time.
    INSIDE.load(SeqCst) != 0
}

fn handlers_entered() -> u64 {
    let taken = &this().taken;
    taken.rings.get() + taken.ticks.get() + taken.device.get()
}

/// What each CPU runs while all stand still.
fn stand_still(_: Cpu) {
    let page = &PAGES[Lab::current_cpu().index()];
    INSIDE.fetch_add(1, SeqCst);
    let before = handlers_entered();
    page.ran.add(1);
    // To anybody else: nobody would serve it.
    let mut guard = InterruptsOff::<Lab>::new();
    let other = Cpu::new((guard.cpu().number() + 1) % apic::count() as u32);
    let caller: Caller<'_, Lab> = Calls::within(LIMIT).with_interrupts_off(&mut guard);
    let answer = caller.call(other, || ());
    page.calls_accepted.add(u64::from(answer != Err(CallError::InRendezvous)));
    page.interrupted.add(u64::from(Lab::interrupts_enabled() || handlers_entered() != before));
    INSIDE.fetch_sub(1, SeqCst);
}

fn task(me: Cpu) -> Step {
    if random::below(APART) == 0 && torture::is_under_way(me) {
        let members = if random::below(4) == 0 { torture::any_cpus() } else { books::everybody() };
        let result = Calls::within(gathering()).rendezvous(&members, stand_still);
        let pinned = InterruptsOff::<Lab>::new();
        let page = &PAGES[me.index()];
        match result {
            Ok(()) => {
                page.rendezvous.add(1);
                page.expected.add(members.len() as u64);
            }
            // Given up, or another one lasted until this one's deadline.
            Err(RendezvousError::Late { .. } | RendezvousError::Excluded(ExclusiveError::HeldBy(_))) => {
                page.given_up.add(1);
            }
            Err(error) => {
                page.failed.add(1);
                crate::console::say!("{me}: {error}");
            }
        }
        drop(pinned);
    }
    torture::task(me)
}

pub(super) fn run(run: &mut Run) {
    for page in &PAGES {
        let Page { rendezvous, given_up, failed, ran, expected, interrupted, calls_accepted } = page;
        for counter in [rendezvous, given_up, failed, ran, expected, interrupted, calls_accepted] {
            counter.set(0);
        }
    }
    let operations = run.operations(10_000);
    calls::workload(run, "rendezvous", operations, task);
    let (ran, expected) = (total(|page| &page.ran), total(|page| &page.expected));
    let (done, failed) = (total(|page| &page.rendezvous), total(|page| &page.failed));
    run.count("rendezvous", done);
    run.count("rendezvous_given_up", total(|page| &page.given_up));
    run.check("all_took_place", done > 0 && failed == 0, format_args!("{done} took place, {failed} failed"));
    run.check("each_ran_once", ran == expected, format_args!("{ran} closures ran, {expected} should have"));
    let (interrupted, accepted) = (total(|page| &page.interrupted), total(|page| &page.calls_accepted));
    run.check(
        "nobody_served",
        interrupted == 0 && accepted == 0,
        format_args!("{interrupted} closures were interrupted, {accepted} of their calls were not refused"),
    );
}
