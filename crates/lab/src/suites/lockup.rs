//! Suite `lockup`: CPUs that stand still, with interrupts disabled and enabled, are found by their buddies and by themselves.

use core::time::Duration;

use smpcall::{Lockups, TargetState};
use smpcall_machine::{Counter, Cpu, Deadline, Machine, Predicate, Woken, wait};

use super::hotplug::{WEDGED, wedge_cpu};
use super::{Run, tick_time};
use crate::clock::LabWord;
use crate::console::say;
use crate::machine::{Calls, Lab};
use crate::tasks::{self, Step};
use crate::{apic, tally};

use core::sync::atomic::Ordering::Relaxed;

/// A lockup is found after its limit, or after as many ticks, which come late on a machine that is short of CPUs.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits for a count to grow, and goes on meanwhile as a task does that knows that it takes long.
fn grows(count: impl Fn() -> u64, from: u64) -> bool {
    let deadline = Deadline::within::<Lab>(LIMIT);
    while !deadline.has_passed(Lab::now()) {
        Calls::progress();
        let slice = Deadline::within::<Lab>(Lab::TICK);
        if wait::<Lab>(&Predicate(|| count() > from), slice) != Woken::Deadline {
            return true;
        }
    }
    false
}

pub(super) fn run(run: &mut Run) {
    if !run.has_cpus("lockup", 2) {
        return;
    }
    if tick_time().is_none() {
        run.skip("lockup", format_args!("there are no ticks"));
        return;
    }
    let culprit = Cpu::new(apic::count() as u32 / 2);
    hard(run, culprit);
    soft(run, culprit);
    back_trace(run, culprit);
}

/// A CPU spins with interrupts disabled: its buddy finds it and has it say where it is.
fn hard(run: &mut Run, culprit: Cpu) {
    let tally = tally::of(culprit);
    let before = [&tally.hard_lockups, &tally.hard_lockups_traced, &tally.back_traces, &tally.lockups_ended]
        .map(Counter::get);
    let started = Lab::now();
    let wedged = wedge_cpu(culprit);
    let found = grows(|| tally.hard_lockups.get(), before[0]);
    let took = Lab::now().since(started);
    WEDGED.store(0, Relaxed);
    let ended = grows(|| tally.lockups_ended.get(), before[3]);
    let done = tasks::await_done(culprit, Deadline::within::<Lab>(LIMIT));
    run.count("hard_lockup_milliseconds", took.as_millis() as u64);
    run.check(
        "hard_found",
        wedged && found,
        format_args!("{culprit} with interrupts disabled, after {took:?}"),
    );
    run.check(
        "hard_traced",
        tally.hard_lockups_traced.get() == before[1] + 1 && tally.back_traces.get() == before[2] + 1,
        format_args!("{} back traces by NMI", tally.back_traces.get() - before[2]),
    );
    run.check("hard_ended", ended && done, format_args!("it goes on when it is let go"));
}

/// Set when the task stands, and cleared to let it go.
static STANDS: LabWord = LabWord::new(0);

fn stand(_: Cpu) -> Step {
    STANDS.store(1, Relaxed);
    wait::<Lab>(&[STANDS.equals(!0, 0)], Deadline::NEVER);
    Step::Done
}

/// A task that makes no progress, with interrupts enabled: its own tick finds it.
fn soft(run: &mut Run, culprit: Cpu) {
    let tally = tally::of(culprit);
    let (before, ended_before) = (tally.soft_lockups.get(), tally.lockups_ended.get());
    let hard_before = tally.hard_lockups.get();
    let started = Lab::now();
    tasks::give(culprit, stand);
    let found = grows(|| tally.soft_lockups.get(), before);
    let took = Lab::now().since(started);
    STANDS.store(0, Relaxed);
    let ended = grows(|| tally.lockups_ended.get(), ended_before);
    let done = tasks::await_done(culprit, Deadline::within::<Lab>(LIMIT));
    run.count("soft_lockup_milliseconds", took.as_millis() as u64);
    let hard = tally.hard_lockups.get() - hard_before;
    run.check(
        "soft_found",
        found && hard == 0,
        format_args!("{culprit} with interrupts enabled, after {took:?}"),
    );
    run.check("soft_ended", ended && done, format_args!("it goes on when it is let go"));
}

/// A back trace on request, and what a call says of the same CPU.
fn back_trace(run: &mut Run, culprit: Cpu) {
    let wedged = wedge_cpu(culprit);
    let traced = Calls::back_trace_of(culprit, LIMIT);
    let told = Calls::within(Duration::from_millis(500)).call(culprit, || ());
    WEDGED.store(0, Relaxed);
    let done = tasks::await_done(culprit, Deadline::within::<Lab>(LIMIT));
    if let Err(error) = told {
        say!("{culprit}: {error}");
    }
    let told = matches!(told, Err(smpcall::CallError::TimedOut(diagnosis))
        if matches!(diagnosis.target, TargetState::InterruptsDisabled { .. }));
    run.check("back_trace", wedged && traced.is_ok() && done, format_args!("asked for: {traced:?}"));
    run.check(
        "diagnosed",
        told,
        format_args!("a call to it ends with its deadline and says that interrupts are disabled"),
    );
}
