//! The state of cross-CPU calls in the memory of a Linux kernel: queues, descriptors, who waits for whom, and what each CPU does.
//!
//! Nothing but the kernel's own memory is needed: symbols, types and unwinding tables are in it. Whatever cannot be read is
//! unknown and named in [`gaps`](MachineEvidence::gaps).

mod again;
mod calls;
mod clock;
mod descriptor;
mod home;
mod locks;
mod machine;
mod processor;
mod progress;
mod reader;

use smpcall_crashdump::Dump;
use smpcall_crashdump::kernel::Kernel;

use calls::Calls;
use clock::Clock;
use descriptor::Layout;
use machine::Machine;
use processor::Processor;
use reader::Reader;

use crate::evidence::{CpuEvidence, MachineEvidence, PendingAtCrash};

/// Who waits for a call for longer than a second is stuck, or its target is. Linux itself complains after five
/// (`CSD_LOCK_TIMEOUT`), or twenty (soft lockup).
const PATIENCE: u64 = 1_000_000_000;
/// `CALL_FUNCTION_SINGLE_VECTOR` of x86-64 since Linux 2.6.33; the vector of calls to many is one higher, and both are in
/// the same queue.
const SINGLE: u8 = 0xfb;

/// What the memory of a Linux kernel says of its calls.
pub fn evidence(dump: &Dump, kernel: &Kernel<'_>) -> MachineEvidence {
    let reader = Reader::new(kernel);
    let machine = Machine::read(reader);
    let mut processors = processor::read(reader, &machine);
    let numbers: Vec<u32> = processors.iter().map(|processor| processor.evidence.cpu).collect();
    let is_able =
        |cpu: u32| processors.iter().any(|processor| processor.evidence.cpu == cpu && processor.is_able());
    let clock = Clock::read(reader, &numbers, is_able);
    for processor in &mut processors {
        processor.evidence.since_tick_nanos = clock.since_tick(processor.evidence.cpu);
    }
    let mut gaps: Vec<String> = dump.remarks().iter().chain(kernel.remarks()).cloned().collect();
    let layout = match &kernel.types {
        Some(types) => Layout::new(types, machine.notes_calls),
        None => Layout::built_in(&kernel.release, machine.notes_calls),
    };
    let found = if let Some(layout) = layout {
        calls::read(reader, &layout, &clock, &mut processors)
    } else {
        gaps.push(
            "the call queues: how a call's descriptor is laid out is not known; --vmlinux would say".into(),
        );
        Calls::default()
    };
    gaps.extend(found.gaps);
    let locks = locks::read(reader, &mut processors);
    let pending_at_crash = if machine.panic.is_some() { held(&processors) } else { vec![] };
    MachineEvidence {
        pending_at_crash,
        origin: reader.origin().into(),
        ring_vector: Some(SINGLE),
        patience_nanos: PATIENCE,
        cpus: without_useless(processors),
        calls: found.list,
        locks,
        kernel: Some(kernel.release.to_string()),
        cpu_model: machine.model,
        hypervisor: machine.hypervisor,
        panic: machine.panic,
        queues_complete: found.complete,
        moving: found.moving,
        gaps,
        ..MachineEvidence::default()
    }
}

/// What the local APICs of a machine that has panicked hold: known only while it lives.
fn held(processors: &[Processor]) -> Vec<PendingAtCrash> {
    let held = |processor: &Processor| {
        let cpu = &processor.evidence;
        Some(PendingAtCrash {
            cpu: cpu.cpu,
            requested: cpu.pending.clone()?,
            in_service: cpu.in_service.clone()?,
            ..PendingAtCrash::default()
        })
    };
    processors.iter().filter_map(held).collect()
}

/// A machine that is paused as a whole says of every CPU that it was taken away: that says nothing of any.
fn without_useless(processors: Vec<Processor>) -> Vec<CpuEvidence> {
    let mut cpus: Vec<_> = processors.into_iter().map(|processor| processor.evidence).collect();
    if cpus.iter().all(|cpu| cpu.preempted == Some(true)) {
        for cpu in &mut cpus {
            cpu.preempted = None;
        }
    }
    cpus
}
