//! Evidence to test with: machines on which everything is known and works, and one that keeps counts only.

use crate::evidence::{CallEvidence, CallState, CountedCall, CpuEvidence, MachineEvidence, Running};

/// The vector of rings.
pub(crate) const RING: u8 = 0xfb;

/// A CPU of which everything is known, and on which nothing is wrong.
pub(crate) fn working(cpu: u32) -> CpuEvidence {
    CpuEvidence {
        cpu,
        online: Some(true),
        interrupts_enabled: Some(true),
        pending: Some(vec![]),
        in_service: Some(vec![]),
        polls: Some(false),
        rings_sent_to: Some(4),
        rings_merged: Some(0),
        rings_taken: Some(4),
        answered_probe: Some(true),
        ..CpuEvidence::default()
    }
}

/// A machine of working CPUs.
pub(crate) fn machine(cpus: u32) -> MachineEvidence {
    MachineEvidence {
        origin: "simulator".into(),
        ring_vector: Some(RING),
        patience_nanos: 1_000_000,
        cpus: (0..cpus).map(working).collect(),
        ..MachineEvidence::default()
    }
}

/// A call that was announced and not taken, 10 s ago.
pub(crate) fn waiting_call(caller: u32, target: u32) -> CallEvidence {
    CallEvidence {
        marked: Some(true),
        rung: Some(true),
        nanos: Some(10_000_000_000),
        function: Some("invalidate_bh_lru".into()),
        ..CallEvidence::queued(caller, target)
    }
}

/// A call that its target took and did not finish, 10 s ago.
pub(crate) fn running_call(caller: u32, target: u32) -> CallEvidence {
    CallEvidence { state: CallState::Claimed, ..waiting_call(caller, target) }
}

/// CPU 1 waits for CPU 0, whose last ring is missing, and on which `change` is not as on a working one.
pub(crate) fn waits_for_cpu_0(change: impl FnOnce(&mut CpuEvidence)) -> MachineEvidence {
    let mut evidence = machine(2);
    evidence.cpus[0].rings_sent_to = Some(5);
    change(&mut evidence.cpus[0]);
    evidence.calls.push(waiting_call(1, 0));
    evidence
}

/// CPU 0 has been in a call of CPU 1 for 10 s.
pub(crate) fn runs_call_of_cpu_1() -> MachineEvidence {
    let mut evidence = machine(2);
    evidence.cpus[0].running =
        Some(Running { function: Some("slow_console".into()), caller: Some(1), nanos: Some(10_000_000_000) });
    evidence.calls.push(running_call(1, 0));
    evidence
}

/// The machine of report 000: CPU 5 called all others, one has not taken the call, and only counts are kept.
pub(crate) fn counted_call(cpus: u32, missing: u32) -> MachineEvidence {
    let mut evidence = machine(cpus);
    evidence.cpus[missing as usize].rings_sent_to = Some(5);
    let others = (0..cpus).filter(|&cpu| cpu != 5);
    evidence.counted_calls.push(CountedCall {
        caller: 5,
        targets: others.collect(),
        started: cpus as usize - 2,
        finished: cpus as usize - 2,
        function: Some("invalidate_bh_lru".into()),
        nanos: Some(10_000_000_000),
    });
    evidence
}
