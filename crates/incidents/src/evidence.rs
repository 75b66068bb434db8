//! What a simulated machine shows, as the evidence that a diagnosis starts from.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use smpcall_diagnosis::{CpuEvidence, MachineEvidence, WaitEvidence};
use smpcall_machine::{Cpu, Event, EventKind, Instant};
use smpcall_simulator::{CpuReport, RING_VECTOR};

/// Waits shorter than this are no finding: a thousand times what a call between live CPUs takes on this machine, and
/// a tenth of what the soft-lockup check allows. (Ours.)
const PATIENCE: Duration = Duration::from_secs(1);

/// The frames by which handlers begin. What lies below the first one is the interrupted task.
const HANDLER_FRAMES: [&str; 2] = ["apic_timer_interrupt", "call_function_interrupt"];

/// The frames of the interrupted task and those of its handlers, both outermost first.
pub(crate) fn split_frames<'a>(frames: &'a [&'static str]) -> (&'a [&'static str], &'a [&'static str]) {
    let task = frames.iter().position(|frame| HANDLER_FRAMES.contains(frame)).unwrap_or(frames.len());
    frames.split_at(task)
}

/// A CPU that waits for others.
pub(crate) struct Waiter {
    pub(crate) cpu: Cpu,
    pub(crate) targets: Vec<u32>,
    pub(crate) waited: Duration,
}

/// The machine as `reports` show it, after `events` and no others.
pub(crate) fn of_machine(
    reports: &[CpuReport],
    events: &[Event],
    waiter: Option<&Waiter>,
) -> MachineEvidence {
    let mut rings_sent_to = vec![0; reports.len()];
    for target in events.iter().filter_map(rung) {
        if let Some(sent) = rings_sent_to.get_mut(target.index()) {
            *sent += 1;
        }
    }
    // The last one counts.
    let started = events.iter().filter(|event| event.kind == EventKind::StartedUp);
    let started_at: BTreeMap<Cpu, Instant> = started.map(|event| (event.cpu, event.time)).collect();
    let cpus = reports.iter().zip(rings_sent_to).map(|(report, sent)| {
        let wait = waiter.filter(|waiter| waiter.cpu == report.cpu);
        of_cpu(report, sent, started_at.get(&report.cpu).copied(), wait)
    });
    MachineEvidence {
        origin: "simulator".into(),
        ring_vector: Some(RING_VECTOR),
        patience_nanos: PATIENCE.as_nanos() as u64,
        cpus: cpus.collect(),
        ..MachineEvidence::default()
    }
}

/// The target of a ring that was sent, if that is what happened. A fault may have lost it later.
pub(crate) fn rung(event: &Event) -> Option<Cpu> {
    let ring = event.kind == EventKind::IpiSent && event.detail == u32::from(RING_VECTOR);
    event.other.filter(|_| ring)
}

/// How many rings were sent to a target that the same CPU had rung for the same call before. `begins_call` says with
/// which events of the sender a new call begins.
pub(crate) fn rings_repeated(events: &[Event], begins_call: impl Fn(&Event) -> bool) -> u64 {
    let mut rung_for_this_call: BTreeMap<Cpu, BTreeSet<Cpu>> = BTreeMap::new();
    let mut repeated = 0;
    for event in events {
        if begins_call(event) {
            rung_for_this_call.remove(&event.cpu);
        }
        if let Some(target) = rung(event) {
            let first = rung_for_this_call.entry(event.cpu).or_default().insert(target);
            repeated += u64::from(!first);
        }
    }
    repeated
}

/// Whether the task of this CPU has interrupts enabled. A CPU inside a handler has them disabled for a moment; what
/// counts is what the handler interrupted, which had them enabled, or it could not have been.
pub(crate) fn task_has_interrupts_enabled(report: &CpuReport) -> bool {
    let in_handler = !report.in_service.is_empty() || !split_frames(&report.frames).1.is_empty();
    report.interrupts_enabled || in_handler && !report.wedged
}

fn of_cpu(
    report: &CpuReport,
    rings_sent_to: u64,
    started_at: Option<Instant>,
    waiter: Option<&Waiter>,
) -> CpuEvidence {
    let function = split_frames(&report.frames).0.last().map(|&frame| frame.to_owned());
    CpuEvidence {
        cpu: report.cpu.number(),
        online: Some(true),
        interrupts_enabled: Some(task_has_interrupts_enabled(report)),
        pending: Some(report.requested.clone()),
        in_service: Some(report.in_service.clone()),
        polls: Some(false),
        wait: waiter.map(|waiter| WaitEvidence {
            targets: waiter.targets.clone(),
            function: function.clone(),
            nanos: Some(waiter.waited.as_nanos() as u64),
            ..WaitEvidence::default()
        }),
        function,
        rings_sent_to: Some(rings_sent_to),
        rings_merged: Some(report.counters.ipis_merged),
        rings_taken: Some(report.counters.taken[RING_VECTOR as usize]),
        since_start_nanos: started_at.map(|started| report.time.since(started).as_nanos() as u64),
        ..CpuEvidence::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smpcall_local_apic::Routing;
    use smpcall_simulator::{Config, World};

    #[test]
    fn frames_are_split_where_the_handler_begins() {
        let frames = ["del_gendisk", "wait", "apic_timer_interrupt", "try_dump"];
        assert_eq!(split_frames(&frames), (&frames[..2], &frames[2..]));
        assert_eq!(split_frames(&frames[..2]), (&frames[..2], &[][..]));
    }

    fn event(kind: EventKind, cpu: u32, other: u32, vector: u8) -> Event {
        let (cpu, other) = (Cpu::new(cpu), Some(Cpu::new(other)));
        Event { time: Instant::default(), kind, cpu, other, detail: vector.into(), argument: 0 }
    }

    #[test]
    fn a_ring_is_a_repeated_one_if_its_target_was_rung_for_the_same_call_before() {
        let begin = |cpu| event(EventKind::FrameEntered, cpu, 0, 0);
        let ring = |from, to| event(EventKind::IpiSent, from, to, RING_VECTOR);
        let repeated =
            |events: &[Event]| rings_repeated(events, |event| event.kind == EventKind::FrameEntered);
        let once = [begin(0), ring(0, 1), ring(0, 2), begin(0), ring(0, 1), ring(3, 1)];
        assert_eq!(repeated(&once), 0);
        let again = [begin(0), ring(0, 1), begin(3), ring(0, 1), ring(0, 2), ring(0, 1)];
        assert_eq!(repeated(&again), 2);
        assert_eq!(repeated(&[ring(0, 1), event(EventKind::IpiSent, 0, 1, 0x40)]), 0);
    }

    #[test]
    fn a_cpu_was_started_when_it_was_started_last() {
        let world = World::new(&Config::new(2, Routing::Flat, 1)).expect("a machine");
        let mut reports = [0, 1].map(|cpu| world.inspect(Cpu::new(cpu)));
        reports[1].time = Instant::from_nanos(100);
        let started =
            |time| Event { time: Instant::from_nanos(time), ..event(EventKind::StartedUp, 1, 0, 8) };
        let evidence = of_machine(&reports, &[started(10), started(40)], None);
        assert_eq!(evidence.cpus[0].since_start_nanos, None);
        assert_eq!(evidence.cpus[1].since_start_nanos, Some(60));
    }

    #[test]
    fn only_rings_count_as_sent_and_only_to_their_target() {
        let world = World::new(&Config::new(2, Routing::Flat, 1)).expect("a machine");
        let reports = [0, 1].map(|cpu| world.inspect(Cpu::new(cpu)));
        let sent = |vector| event(EventKind::IpiSent, 0, 1, vector);
        let evidence = of_machine(&reports, &[sent(RING_VECTOR), sent(RING_VECTOR), sent(0x40)], None);
        assert_eq!(evidence.cpus[0].rings_sent_to, Some(0));
        assert_eq!(evidence.cpus[1].rings_sent_to, Some(2));
        assert_eq!(evidence.cpus[1].rings_missing(Some(RING_VECTOR)), Some(2));
    }
}
