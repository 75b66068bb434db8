//! Suite `calls`: the torture on all CPUs, every operation reconciled.

use core::time::Duration;

use smpcall::Kernel;
use smpcall_machine::{Deadline, Machine, Predicate, wait};

use super::{Run, books, errands, torture};
use crate::apic;
use crate::machine::{Calls, Lab};
use crate::tasks;
use crate::{clock, faults};

/// Without an operation for so long, somebody hangs.
const PATIENCE: Duration = Duration::from_secs(90);
/// Ticks find posts whose ring was lost.
const LEFTOVERS: Duration = Duration::from_secs(20);

/// A machine-wide sum of what `smpcall` counts.
pub(super) fn counted(name: &str) -> u64 {
    let mailboxes = apic::all().filter_map(|cpu| Lab::mailboxes().get(cpu));
    mailboxes
        .flat_map(|mailbox| mailbox.counters().iter())
        .filter(|(counter, _)| *counter == name)
        .map(|(_, count)| count)
        .sum()
}

pub(super) fn run(run: &mut Run) {
    let operations = run.operations(20_000);
    let dropped = run.options.dropped_per_million;
    faults::set(dropped, None);
    torture(run, "calls", operations);
    faults::set(0, None);
}

/// The torture with the faults that are set: everything reconciles.
pub(super) fn torture(run: &mut Run, name: &str, operations: u64) {
    workload(run, name, operations, torture::task);
}

/// The same with a task of the suite's own, which does what else it does between slices of the torture.
pub(super) fn workload(run: &mut Run, name: &str, operations: u64, task: tasks::Task) {
    torture::begin(operations);
    let before =
        ["rings_sent", "rings_repeated", "rings_taken", "budgets_spent"].map(|name| (name, counted(name)));
    let (swallowed, repeated_before) = (faults::swallowed(), counted("rings_repeated"));
    let started = Lab::now();
    let mut told = started;
    let end = tasks::run_on(&books::everybody(), task, PATIENCE, || {
        let done = books::sum().operations;
        let now = Lab::now();
        if now.since(told) > Duration::from_secs(1) {
            told = now;
            run.progress(name, done, torture::total());
        }
        done
    });
    if let Err(cpu) = end {
        run.hang("all_ended", cpu);
    }
    await_posts();
    let took = Lab::now().since(started);
    let sum = books::sum();
    sum.print();
    run.count("operations", sum.operations);
    run.count("closures_run", sum.ran);
    run.count("posts_run", sum.posts_run);
    run.count("milliseconds", took.as_millis() as u64);
    run.count("rings_swallowed", faults::swallowed() - swallowed);
    for (name, before) in before {
        run.count(name, counted(name) - before);
    }
    run.check(
        "all_ended",
        sum.operations == torture::total(),
        format_args!("{} of {} operations", sum.operations, torture::total()),
    );
    run.check(
        "reconciled",
        sum.balances(),
        format_args!(
            "{} calls completed and {} closures ran; {} posts queued and {} ran; {} violations",
            sum.completed,
            sum.ran,
            sum.queued,
            sum.posts_run + sum.posts_abandoned,
            sum.violations()
        ),
    );
    let unreconciled = errands::unreconciled();
    run.check(
        "posts_reconciled",
        unreconciled == 0,
        format_args!("{unreconciled} posts that were not run as they should"),
    );
    run.check("nobody_timed_out", sum.timed_out == 0, format_args!("{} calls", sum.timed_out));
    // Whoever counts instructions has no host that keeps a CPU from answering: then rings are repeated only if they were lost.
    if clock::counts_instructions() && faults::swallowed() == swallowed {
        let repeated = counted("rings_repeated") - repeated_before;
        run.check("no_answered_ring_repeated", repeated == 0, format_args!("{repeated} rings"));
    }
}

/// Waits until all posts have run.
pub(super) fn await_posts() {
    let all_run = Predicate(|| {
        let sum = books::sum();
        sum.queued == sum.posts_run + sum.posts_abandoned
    });
    let _ = wait::<Lab>(&all_run, Deadline::within::<Lab>(LEFTOVERS));
    Calls::run_work();
}
