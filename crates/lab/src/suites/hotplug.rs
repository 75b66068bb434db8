//! Suite `hotplug`: CPUs go and come under the torture; and a dead one is fenced and comes back.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use smpcall::{CallError, Life, TargetState};
use smpcall_local_apic::Interrupt;
use smpcall_machine::{Cpu, Deadline, InterruptsOff, Machine, Predicate};

use super::{Run, books, calls, torture};
use crate::clock::LabWord;
use crate::console::say;
use crate::cpu::per_cpu;
use crate::machine::{BOOT_CPU, Calls, Lab};
use crate::tasks::{self, Step};
use crate::{apic, hooks, random, tally};

/// For a CPU to go or to come, in the middle of the torture, on a machine with one thread for all.
const LIMIT: Duration = Duration::from_secs(60);

/// For a dead CPU to answer: it is waited for to the end.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// What the controller has found.
struct Found {
    downs: AtomicU64,
    ups: AtomicU64,
    failed: AtomicU64,
    not_refused: AtomicU64,
}

static FOUND: Found = Found {
    downs: AtomicU64::new(0),
    ups: AtomicU64::new(0),
    failed: AtomicU64::new(0),
    not_refused: AtomicU64::new(0),
};

/// One CPU goes and comes.
fn down_and_up(cpu: Cpu) {
    match Calls::cpu_down(cpu, LIMIT) {
        Ok(()) => drop(FOUND.downs.fetch_add(1, Relaxed)),
        Err(error) => {
            say!("{cpu} did not go: {error}");
            FOUND.failed.fetch_add(1, Relaxed);
            return;
        }
    }
    let refused = Calls::within(LIMIT).call(cpu, || ());
    if refused != Err(CallError::Offline) || Calls::is_online(cpu) || Calls::life(cpu) != Some(Life::Offline)
    {
        FOUND.not_refused.fetch_add(1, Relaxed);
    }
    match Calls::cpu_up(cpu, LIMIT) {
        Ok(()) => drop(FOUND.ups.fetch_add(1, Relaxed)),
        Err(error) => {
            say!("{cpu} did not come: {error}");
            FOUND.failed.fetch_add(1, Relaxed);
        }
    }
}

/// The boot CPU takes others down and up; all others are tortured.
fn task(me: Cpu) -> Step {
    if me == BOOT_CPU && torture::is_under_way(me) {
        let others = apic::count() as u64 - 1;
        down_and_up(Cpu::new(1 + random::below(others) as u32));
    }
    torture::task(me)
}

fn tallied() -> [u64; 4] {
    let of = apic::all().map(tally::of);
    of.fold([0; 4], |[prepared, came, was_to_go, went], tally| {
        [
            prepared + tally.prepared.get(),
            came + tally.came.get(),
            was_to_go + tally.was_to_go.get(),
            went + tally.went.get(),
        ]
    })
}

pub(super) fn run(run: &mut Run) {
    if !run.has_cpus("hotplug", 2) {
        return;
    }
    for count in [&FOUND.downs, &FOUND.ups, &FOUND.failed, &FOUND.not_refused] {
        count.store(0, Relaxed);
    }
    let before = tallied();
    let operations = run.operations(10_000);
    calls::workload(run, "hotplug", operations, task);
    let [downs, ups, failed, not_refused] =
        [&FOUND.downs, &FOUND.ups, &FOUND.failed, &FOUND.not_refused].map(|count| count.load(Relaxed));
    run.count("downs", downs);
    run.count("ups", ups);
    run.count("calls_refused", books::sum().refused);
    run.check(
        "all_went_and_came",
        downs > 0 && downs == ups && failed == 0,
        format_args!("{downs} went, {ups} came, {failed} failed"),
    );
    run.check(
        "offline_refuses",
        not_refused == 0,
        format_args!("{not_refused} CPUs that were offline and did not say so"),
    );
    let after = tallied();
    let called: [u64; 4] = core::array::from_fn(|index| after[index] - before[index]);
    run.check(
        "callbacks",
        called == [ups, ups, downs, downs],
        format_args!("prepare, online, offline and dead were called {called:?} times"),
    );
    fenced(run);
}

/// Set when a wedged CPU stands, and cleared to let it go.
pub(super) static WEDGED: LabWord = LabWord::new(0);

/// Stands with interrupts disabled until it is let go.
pub(super) fn wedge(_: Cpu) -> Step {
    let guard = InterruptsOff::<Lab>::new();
    // Release: the interrupts are off.
    WEDGED.store(1, core::sync::atomic::Ordering::Release);
    smpcall_machine::wait::<Lab>(&[WEDGED.equals(!0, 0)], Deadline::NEVER);
    drop(guard);
    Step::Done
}

/// Has a CPU stand with interrupts disabled, and waits until it does.
pub(super) fn wedge_cpu(cpu: Cpu) -> bool {
    tasks::give(cpu, wedge);
    smpcall_machine::wait::<Lab>(&[WEDGED.equals(!0, 1)], Deadline::within::<Lab>(LIMIT))
        != smpcall_machine::Woken::Deadline
}

/// In the NMI handler of the CPU that is to be wedged: it never comes out.
fn wedge_in_nmi() {
    if u64::from(Lab::current_cpu().number()) == WEDGED_IN_NMI.load(Relaxed) {
        smpcall_machine::wait::<Lab>(
            &[WEDGED_IN_NMI.differs(!0, u64::from(Lab::current_cpu().number()))],
            Deadline::NEVER,
        );
    }
}

/// The CPU that stands in its NMI handler; all ones: none does.
static WEDGED_IN_NMI: LabWord = LabWord::new(u64::MAX);

/// A CPU that is wedged is told of by its caller's deadline, fenced, and comes back.
fn fenced(run: &mut Run) {
    let cpu = Cpu::new(apic::count() as u32 - 1);
    WEDGED_IN_NMI.store(u64::from(cpu.number()), Relaxed);
    hooks::on_nmi(Some(wedge_in_nmi));
    let sent = apic::send(cpu, Interrupt::Nmi);
    let taken = &per_cpu(cpu).taken.nmis;
    let before = taken.get();
    let _ = smpcall_machine::wait::<Lab>(
        &Predicate(|| taken.get() > before),
        Deadline::within::<Lab>(Duration::from_millis(200)),
    );
    let result = Calls::within(Duration::from_millis(500)).call(cpu, || ());
    let told = matches!(result, Err(CallError::TimedOut(diagnosis)) if diagnosis.target == TargetState::NoSignOfLife);
    run.check("dead_is_told", sent.is_ok() && told, format_args!("the call ended with {result:?}"));
    let posted = super::errands::post_to(cpu);
    // SAFETY: it stands in an NMI handler, which has interrupted the idle loop, and holds nothing that anybody else needs.
    let fenced = unsafe { Calls::declare_dead(cpu, ANSWER_LIMIT) };
    hooks::on_nmi(None);
    // Relaxed: nobody looks at it any more.
    WEDGED_IN_NMI.store(u64::MAX, Relaxed);
    let sum = books::sum();
    run.check(
        "fenced",
        fenced.is_ok() && posted && sum.queued == sum.posts_run + sum.posts_abandoned,
        format_args!("{fenced:?}; a post that it had not run was handed over"),
    );
    let came = Calls::cpu_up(cpu, LIMIT);
    let result = Calls::within(LIMIT).call(cpu, Lab::current_cpu);
    run.check(
        "comes_back",
        came.is_ok() && result == Ok(cpu),
        format_args!("{came:?}, and a call ended with {result:?}"),
    );
}
