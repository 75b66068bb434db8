//! Incident 4 as now: the same machine, devices, tasks and losses, with `local-apic` and `smpcall` as they ship.
//!
//! A handler can end what the local APIC has put in service, once: its frame holds the token. An `ExtINT` has none; it has
//! one of the 8259s. A task is woken with `reschedule`, which sends to one CPU in one operation; and every sixteenth time the
//! waker calls as well, so that calls are put to the same test.

use core::time::Duration;
use std::cell::Cell;

use smpcall_diagnosis::diagnose;
use smpcall_local_apic::Pic;
use smpcall_machine::{Cpu, Machine};
use smpcall_simulator::campaign::Ipis;
use smpcall_simulator::kernel::{Calls, Hooks};
use smpcall_simulator::{InterruptFrame, RING_VECTOR, SimMachine, SimPorts, World, local_apic, program};

use super::board::{self, DISK_VECTOR};
use super::then::{millis, stray_ends};
use super::{DEVICES_TO, ends::Ends, tasks, view};
use crate::evidence;
use crate::incident::{self, ReplayError, Setup, When};
use crate::laws::{Law, Laws};
use crate::replay::Replay;

/// How long a caller is ready to wait: much longer than a call takes with all its rings lost but one. (Ours.)
const LIMIT: Duration = Duration::from_millis(20);
/// A closure that has begun by the deadline is waited for, and on its CPU a handler may come first. (Ours.)
const LIMIT_LATENESS: Duration = Duration::from_millis(1);
/// One in so many wake-ups is followed by a call. (Ours.)
const CALL_EVERY: u64 = 16;

/// What became of the calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CallCounts {
    made: u64,
    completed: u64,
    run: u64,
    longest: Duration,
}

/// irq 0, whichever way it comes. The frame has a token if the APIC has it in service, the 8259s if they have.
fn timer(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    let pic = Pic::new(SimPorts);
    // SAFETY: 1. The vector is given to line 0 of the 8259s alone, and to a pin that is masked if they are not; in that case
    // they have nothing in service and give no token. 2. Once per entry.
    if let Some(in_service) = unsafe { pic.entered(0) } {
        pic.end_of_interrupt(in_service);
    }
    board::serve_timer();
}

fn disk(mut frame: InterruptFrame) {
    board::serve_disk();
    frame.end_of_interrupt();
}

fn edge(mut frame: InterruptFrame) {
    frame.end_of_interrupt();
    board::serve_slow(frame.vector.unwrap_or_default());
}

thread_local! {
    // Of the machine that this thread simulates.
    static CALLS: Cell<CallCounts> = const {
        Cell::new(CallCounts { made: 0, completed: 0, run: 0, longest: Duration::ZERO })
    };
}

fn enter(change: impl FnOnce(&mut CallCounts)) {
    let mut counts = CALLS.get();
    change(&mut counts);
    CALLS.set(counts);
}

/// Calls another CPU, and enters it in the books.
fn call(target: Cpu) {
    let _frame = program::frame("call");
    enter(|counts| counts.made += 1);
    let began = SimMachine::now();
    let result = Calls::within(LIMIT).call(target, || enter(|counts| counts.run += 1));
    let took = SimMachine::now().since(began);
    enter(|counts| {
        counts.completed += u64::from(result.is_ok());
        counts.longest = counts.longest.max(took);
    });
}

/// Replays it.
pub(crate) fn now(setup: &Setup) -> Result<Replay, ReplayError> {
    if let Some(reason) = super::not_applicable(setup) {
        return Ok(Replay::not_applicable(setup, reason));
    }
    let hooks = Hooks { reschedule: Some(tasks::schedule), ..Hooks::default() };
    let mut world = World::with_kernel(&super::config(setup, RING_VECTOR), hooks)?;
    board::reset();
    tasks::reset();
    CALLS.take();
    world.set_handler(board::TIMER_VECTOR, timer);
    world.set_handler(DISK_VECTOR, disk);
    for (_, vector, _) in board::EDGES {
        world.set_handler(vector, edge);
    }
    let ext_int = setup.fault != incident::Fault::None;
    for cpu in (0..setup.cpus as u32).map(Cpu::new) {
        world.spawn(cpu, move || {
            if cpu == DEVICES_TO {
                if ext_int {
                    local_apic().connect_pic().expect("every local APIC has LINT0");
                }
                board::wire(ext_int);
            }
            super::work_and_wake(setup.cpus, |target, done| {
                tasks::wake(target, || Calls::reschedule(target).expect("all CPUs are online"));
                if done % CALL_EVERY == 0 {
                    call(target);
                }
            });
        });
    }
    super::run(&mut world);
    told(setup, &world, CALLS.get())
}

fn told(setup: &Setup, world: &World<'_>, calls: CallCounts) -> Result<Replay, ReplayError> {
    let trace = world.trace();
    let counters = world.counters();
    let reports = super::reports(world);
    let ends = super::ends(setup, &trace.events);
    let lost = super::lost_vectors(&reports, RING_VECTOR);
    let tasks = tasks::books();
    let ipis = Ipis {
        sent: counters.ipis_sent,
        taken: counters.taken[RING_VECTOR as usize],
        lost: counters.ipis_lost,
        resent: world.mailbox_counters(|counters| counters.rings_repeated.get()),
    };
    let mut evidence = evidence::of_machine(&reports, &trace.events, None);
    evidence.stray_ends = stray_ends(&ends);
    Ok(Replay {
        incident: setup.incident,
        when: When::Now,
        cpus: setup.cpus,
        routing: setup.routing,
        seed: setup.seed,
        fault: setup.fault,
        outcome: super::outcome(super::is_reported_state(&ends, lost)),
        reason: None,
        laws: judge(calls, tasks, ipis),
        ipis,
        diagnosis: diagnose(&evidence),
        view: view::now(setup, &reports, &ends, tasks, &trace.events)?,
        summary: summary(&ends, lost, tasks, calls, ipis),
        trace,
    })
}

fn judge(calls: CallCounts, tasks: tasks::Books, ipis: Ipis) -> Laws {
    let once_or_told = calls.run == calls.completed;
    let in_time = calls.longest <= LIMIT + LIMIT_LATENESS;
    let laws = Laws::NOT_APPLICABLE.with([(Law::L1, once_or_told), (Law::L3, in_time)]);
    if ipis.lost == 0 {
        return laws;
    }
    let none_lost = calls.completed == calls.made && tasks.lost_no_task() && ipis.resent <= ipis.lost;
    laws.with([(Law::L2, none_lost)])
}

fn summary(ends: &Ends, lost: u64, tasks: tasks::Books, calls: CallCounts, ipis: Ipis) -> String {
    let strays = ends.of_nothing + ends.cut_short.len() as u64;
    let ended = if strays == 0 {
        "Every end of interrupt was that of the handler that wrote it".to_owned()
    } else {
        format!("{strays} ends of interrupt belonged to nothing")
    };
    format!(
        "{ended}; vectors lost: {lost}. {} tasks were woken, each with one operation for one CPU; {} of {} interrupts were \
         lost, and the tick found {} tasks late, the longest stall being {} (a tick is {}). {} of {} calls were run, once \
         each; {} rings were sent again for them.",
        tasks.woken,
        ipis.lost,
        ipis.sent,
        tasks.found_late,
        millis(tasks.longest_stall),
        millis(super::TICK),
        calls.run,
        calls.made,
        ipis.resent,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::laws::Judgement;

    const CALLS: CallCounts = CallCounts { made: 2, completed: 2, run: 2, longest: Duration::from_micros(3) };
    const IPIS: Ipis = Ipis { sent: 9, taken: 8, lost: 1, resent: 1 };

    fn judged(calls: CallCounts, ipis: Ipis) -> [Judgement; 3] {
        let tasks = tasks::Books { woken: 5, run: 5, ..tasks::Books::default() };
        let laws = judge(calls, tasks, ipis);
        [Law::L1, Law::L2, Law::L3].map(|law| laws.get(law))
    }

    #[test]
    fn each_broken_law_is_seen() {
        use Judgement::{Broken, Held, NotApplicable};
        assert_eq!(judged(CALLS, IPIS), [Held; 3]);
        assert_eq!(judged(CALLS, Ipis { lost: 0, ..IPIS }), [Held, NotApplicable, Held]);
        assert_eq!(judged(CallCounts { run: 3, ..CALLS }, IPIS), [Broken, Held, Held]);
        assert_eq!(judged(CallCounts { run: 1, completed: 1, ..CALLS }, IPIS), [Held, Broken, Held]);
        assert_eq!(judged(CALLS, Ipis { resent: 2, ..IPIS }), [Held, Broken, Held]);
        assert_eq!(judged(CallCounts { longest: 2 * LIMIT, ..CALLS }, IPIS), [Held, Held, Broken]);
    }
}
