//! Suite `lost`: rings that are swallowed on their way to the interrupt controller, and how each kind of request is found all
//! the same.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{Deferred, Post};
use smpcall_machine::{Cpu, Deadline, Machine, Predicate, Woken, wait};

use super::calls::{counted, torture};
use super::{Run, tick_time};
use crate::machine::{BOOT_CPU, Calls, Lab};
use crate::{apic, clock, faults, tally};

/// No recovery should take so long.
const LIMIT: Duration = Duration::from_secs(60);
/// Of a million rings, if the command line says nothing: 1 %.
const ONE_PERCENT: u32 = 10_000;

/// Long enough for a CPU to halt.
const SETTLE: Duration = Duration::from_millis(100);

struct Seen;

static RUNS: AtomicU64 = AtomicU64::new(0);

impl Deferred<Lab> for Seen {
    type Handle = &'static Post<Lab, Self>;

    fn run(_: Self::Handle) {
        // Relaxed: a count.
        RUNS.fetch_add(1, Relaxed);
    }
}

static POST: Post<Lab, Seen> = Post::new(Seen);

pub(super) fn run(run: &mut Run) {
    if !run.has_cpus("lost", 2) {
        return;
    }
    let dropped = match run.options.dropped_per_million {
        0 => ONE_PERCENT,
        dropped => dropped,
    };
    let operations = run.operations(10_000);
    let before = (faults::swallowed(), counted("rings_repeated"));
    faults::set(dropped, None);
    torture(run, "lost", operations);
    faults::set(0, None);
    let (swallowed, repeated) = (faults::swallowed() - before.0, counted("rings_repeated") - before.1);
    // Under load most of these calls are found before anybody rings again: by a wait that polls, by a tick.
    run.check("some_were_lost", swallowed > 0, format_args!("{swallowed} swallowed, {repeated} repeated"));

    let target = Cpu::new(1);
    faults::set(0, Some((target, 20)));
    torture(run, "deaf", operations / 4);
    faults::set(0, None);
    call(run, target);
    post(run, target);
    reschedule(run, target);
    tickless(run, target);
}

/// A CPU ticks no more, and halts.
fn stop_ticks(target: Cpu) -> bool {
    let stopped = Calls::within(LIMIT).call(target, || {
        Calls::watch_ticks(false);
        apic::stop_ticks();
    });
    // Until it has left the pass and halts: before that it looks at its mailbox by itself.
    clock::delay(SETTLE);
    stopped.is_ok()
}

fn start_ticks(target: Cpu) -> bool {
    let started = Calls::within(LIMIT).call(target, || {
        apic::start_ticks();
        Calls::watch_ticks(true);
    });
    started.is_ok()
}

/// A call whose ring is lost is run, because its caller rings again.
fn call(run: &mut Run, target: Cpu) {
    // Its tick would find the call, too.
    let stopped = stop_ticks(target);
    let before = counted("rings_repeated");
    faults::set(0, Some((target, 1)));
    let result = Calls::within(LIMIT).call(target, Lab::current_cpu);
    faults::set(0, None);
    let started = start_ticks(target);
    let repeated = counted("rings_repeated") - before;
    run.check(
        "call_recovered",
        stopped && started && result == Ok(target) && repeated >= 1,
        format_args!("the call ended with {result:?}, its ring was repeated {repeated} times"),
    );
}

/// A post that nobody waits for is found by its target's tick.
fn post(run: &mut Run, target: Cpu) {
    if tick_time().is_none() {
        run.skip("post_recovered", format_args!("there are no ticks"));
        return;
    }
    let before = RUNS.load(Relaxed);
    faults::set(0, Some((target, 1)));
    let posted = Calls::post::<Seen>(target, &POST).is_ok();
    faults::set(0, None);
    let found = wait::<Lab>(&Predicate(|| RUNS.load(Relaxed) > before), Deadline::within::<Lab>(LIMIT));
    run.check(
        "post_recovered",
        posted && found != Woken::Deadline,
        format_args!("the post was found by a tick: {found:?}"),
    );
}

/// A reschedule request costs a tick, never the request.
fn reschedule(run: &mut Run, target: Cpu) {
    if tick_time().is_none() {
        run.skip("reschedule_recovered", format_args!("there are no ticks"));
        return;
    }
    let taken = &tally::of(target).reschedules;
    let before = taken.get();
    faults::set(0, Some((target, 1)));
    let asked = Calls::reschedule(target);
    faults::set(0, None);
    let found = wait::<Lab>(&Predicate(|| taken.get() > before), Deadline::within::<Lab>(LIMIT));
    run.check(
        "reschedule_recovered",
        asked.is_ok() && found != Woken::Deadline,
        format_args!("the request was found by a tick: {found:?}"),
    );
}

/// A CPU that does not tick: the backstop, on the boot CPU's tick, rings for it.
fn tickless(run: &mut Run, target: Cpu) {
    if tick_time().is_none() {
        run.skip("tickless_recovered", format_args!("there are no ticks"));
        return;
    }
    let stopped = stop_ticks(target);
    let repeated = &Lab::mailbox_of(BOOT_CPU).counters().rings_repeated;
    let before = (RUNS.load(Relaxed), repeated.get());
    faults::set(0, Some((target, 1)));
    let posted = Calls::post::<Seen>(target, &POST).is_ok();
    faults::set(0, None);
    let found = wait::<Lab>(&Predicate(|| RUNS.load(Relaxed) > before.0), Deadline::within::<Lab>(LIMIT));
    let by_backstop = repeated.get() - before.1;
    let started = start_ticks(target);
    run.check(
        "tickless_recovered",
        stopped && started && posted && found != Woken::Deadline && by_backstop == 1,
        format_args!("the post was found: {found:?}; the backstop rang {by_backstop} times"),
    );
}
