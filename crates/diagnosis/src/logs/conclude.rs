//! From what a log has said to evidence: of the calls that were reported overdue, as it was when they were.

use super::reader::{Overdue, Reader, idle_frame};
use super::record::TargetState;
use super::snapshot::Snapshot;
use crate::evidence::{
    CallEvidence, CallState, CpuEvidence, Detector, Ended, MachineEvidence, Running, WaitEvidence,
};
use crate::frames;
use crate::verdict::Fact;

/// The vector of call interrupts on x86: 0xfb announces calls to one CPU, and on old kernels to many.
const RING_VECTOR: u8 = 0xfb;
/// Nothing that a kernel reports is shorter: it reports waits of 5 s, stalls of 10 s and more.
const PATIENCE_NANOS: u64 = 1_000_000_000;
/// Who has asked others by an NMI waits so long for their answers. `lib/nmi_backtrace.c`.
const NMI_PATIENCE_NANOS: u64 = 10_000_000_000;

const ORIGIN: &str = "log";

pub(super) fn conclude(reader: &Reader) -> MachineEvidence {
    let model = &reader.model;
    let known = !model.vendor.is_empty();
    let mut evidence = MachineEvidence {
        origin: ORIGIN.into(),
        ring_vector: reader.x86.then_some(RING_VECTOR),
        patience_nanos: PATIENCE_NANOS,
        cpus: reader.mentioned.iter().map(|&cpu| of_cpu(reader, cpu)).collect(),
        calls: latest(reader).map(of_call).collect(),
        stalls: reader.stalls.values().copied().collect(),
        kernel: reader.kernel.clone(),
        cpu_model: known.then(|| model.clone()),
        hypervisor: reader.hypervisor.clone(),
        panic: reader.panic.clone(),
        ..MachineEvidence::default()
    };
    for (&cpu, queue) in &reader.offline {
        let functions = if queue.is_empty() { &[None][..] } else { queue };
        let post = |function: &Option<String>| CallEvidence {
            function: function.clone(),
            marked: Some(true),
            ..CallEvidence::post(cpu)
        };
        evidence.calls.extend(functions.iter().map(post));
    }
    if reader.calls_forgotten > 0 {
        evidence
            .gaps
            .push(format!("{} earlier reports of overdue calls: too many to keep", reader.calls_forgotten));
    }
    // Reports whose target the kernel does not know.
    for call in reader.calls.iter().filter(|call| call.target.is_none()) {
        let wait = wait_of(&mut evidence, call.waiter);
        wait.nanos = wait.nanos.max(call.nanos);
    }
    evidence
}

fn wait_of(evidence: &mut MachineEvidence, cpu: u32) -> &mut WaitEvidence {
    let at = match evidence.cpus.binary_search_by_key(&cpu, |known| known.cpu) {
        Ok(at) => at,
        Err(at) => {
            evidence.cpus.insert(at, CpuEvidence::unknown(cpu));
            at
        }
    };
    evidence.cpus[at].wait.get_or_insert_default()
}

/// Of the reports about the same call the last one: who waits for whom. If some have not ended, those that have are history.
fn latest(reader: &Reader) -> impl Iterator<Item = &Overdue> {
    let open = reader.calls.iter().any(|call| !call.ended);
    reader.calls.iter().enumerate().filter_map(move |(index, call)| {
        let later = reader.calls.iter().skip(index + 1);
        let mut same = later.filter(|other| other.waiter == call.waiter && other.target == call.target);
        let is_last = same.next().is_none();
        (is_last && call.target.is_some() && !(open && call.ended)).then_some(call)
    })
}

fn of_call(call: &Overdue) -> CallEvidence {
    let running = matches!(call.state, Some(TargetState::Running));
    let lasted = || {
        let further = call.last_told?.checked_sub(call.first_told?)?;
        call.first_nanos?.checked_add(further)
    };
    CallEvidence {
        state: if running { CallState::Claimed } else { CallState::Queued },
        function: call.function.clone(),
        nanos: call.nanos,
        rung: ring_sent(call),
        rung_again: (call.rung_again > 0).then_some(call.rung_again),
        ring_taken: ring_taken(call),
        ended: call.ended.then(|| Ended { after_nanos: lasted(), rung_again: call.rung_again > 0 }),
        // Without a target it is filtered out before.
        ..CallEvidence::queued(call.waiter, call.target.unwrap_or(u32::MAX))
    }
}

/// The last event of this kind by this CPU, to this CPU.
fn last_event(call: &Overdue, kinds: &[&str], source: Option<u32>) -> Option<u64> {
    let fits = |(_, from, to, kind): &&(u64, Option<u32>, Option<u32>, String)| {
        kinds.contains(&kind.as_str()) && *to == call.target && (source.is_none() || *from == source)
    };
    call.events.iter().filter(fits).map(|(count, ..)| *count).max()
}

/// Whether an IPI was sent for the call or one before it: kernels with events say so.
fn ring_sent(call: &Overdue) -> Option<bool> {
    last_event(call, &["ipi"], Some(call.waiter)).map(|_| true)
}

/// Whether the target has taken a ring since the last one was sent to it.
fn ring_taken(call: &Overdue) -> Option<bool> {
    let sent = last_event(call, &["ipi", "ping"], Some(call.waiter))?;
    // That it idles says that it looks at its queue, not that a ring came.
    Some(last_event(call, &["gotipi", "handle"], None).is_some_and(|taken| taken > sent))
}

fn of_cpu(reader: &Reader, cpu: u32) -> CpuEvidence {
    let mut found = reader.snapshots.get(&cpu).map_or_else(|| CpuEvidence::unknown(cpu), of_snapshot);
    let asked_for_long = reader.asked.get(&cpu).is_some_and(|asked| {
        let since = asked.and_then(|asked| reader.now?.checked_sub(asked));
        since.is_some_and(|since| since >= NMI_PATIENCE_NANOS)
    });
    found.answered_probe =
        if asked_for_long { Some(false) } else { reader.answered.contains(&cpu).then_some(true) };
    if let Some(apic) = reader.apics.get(&cpu) {
        found.pending.clone_from(&apic.pending);
        found.in_service.clone_from(&apic.in_service);
    }
    if let Some(&(enabled, user_mode, halted)) = reader.halted.get(&cpu) {
        found.interrupts_enabled = Some(enabled);
        found.user_mode = Some(user_mode);
        found.idle = halted.then_some(true).or(found.idle);
    }
    if reader.no_ticks.contains(&cpu) {
        let value = "0 in the whole grace period";
        found.facts.push(Fact::new(format!("timer interrupts of CPU {cpu}"), value, "log: RCU stall"));
    }
    let calls = || reader.calls.iter().rev();
    if let Some(call) = calls().find(|call| call.target == Some(cpu) && !call.ended)
        && let Some(TargetState::RunningAnother(function)) = &call.state
    {
        found.running = Some(Running { function: function.clone(), ..Running::default() });
    }
    let soft = reader.stalls.get(&(cpu, Detector::SoftLockup)).and_then(|stall| stall.nanos);
    let mine = calls().find(|call| call.waiter == cpu);
    let function = frames::call_wait(&found.stack).map(str::to_owned);
    if function.is_some() || mine.is_some_and(|call| !call.ended) {
        found.wait = Some(WaitEvidence {
            targets: mine.and_then(|call| call.target).into_iter().collect(),
            function,
            nanos: mine.and_then(|call| call.nanos).or(soft),
            ..WaitEvidence::default()
        });
    }
    if reader.offline.contains_key(&cpu) {
        found.online = Some(false);
    }
    found
}

fn of_snapshot(snapshot: &Snapshot) -> CpuEvidence {
    let enabled = snapshot.effective_flags();
    let mut found = CpuEvidence {
        interrupts_enabled: enabled,
        user_mode: snapshot.user_mode.filter(|_| snapshot.stack.is_empty()),
        task: snapshot.task.clone(),
        stack: snapshot.stack.clone(),
        stack_ended: snapshot.stack_ended(),
        ..CpuEvidence::unknown(snapshot.cpu)
    };
    if let Some(function) = &snapshot.idle_at {
        found.stack = idle_frame(function);
        found.idle = Some(true);
        found.function = Some(function.clone());
    }
    found
}
