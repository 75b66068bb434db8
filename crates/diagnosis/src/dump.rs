//! Evidence from the notes of a dump: of our own crash stops. And back traces and local APICs in the words of evidence.

use std::collections::BTreeMap;

use smpcall_crashdump::stacks::Stack;
use smpcall_crashdump::unwind::{self, BackTrace, End};
use smpcall_crashdump::{Dump, Kind};
use smpcall_vmcore::{Absence, PendingInterrupts, Record};

use crate::evidence::{
    CpuEvidence, Frame, Interrupted, MachineEvidence, Panic, PendingAtCrash, Running, StackKind,
};

/// Whether a crash stop of ours wrote the dump.
pub fn is_own(dump: &Dump) -> bool {
    dump.kind() == Kind::Smpcall
}

/// What our own notes say: who stopped, who did not and why not, and what was pending.
pub fn of_own_notes(dump: &Dump) -> MachineEvidence {
    let mut cpus: BTreeMap<u32, CpuEvidence> = BTreeMap::new();
    let mut evidence = MachineEvidence { origin: "crash dump".into(), ..MachineEvidence::default() };
    let mut crashed_at = None;
    for record in dump.records() {
        match record {
            Record::Stopped(stopped) => {
                let cpu = cpus.entry(stopped.cpu).or_insert_with(|| CpuEvidence::unknown(stopped.cpu));
                (cpu.online, cpu.answered_probe, cpu.registers_saved) = (Some(true), Some(true), Some(true));
            }
            Record::Missing(missing) => {
                let cpu = cpus.entry(missing.cpu).or_insert_with(|| CpuEvidence::unknown(missing.cpu));
                of_absence(cpu, missing.why);
            }
            Record::Summary(summary) => {
                crashed_at = Some(summary.time);
                evidence.panic = Some(Panic { cpu: Some(summary.winner), reason: None });
            }
            Record::Pending(pending) => {
                let cpu = cpus.entry(pending.cpu).or_insert_with(|| CpuEvidence::unknown(pending.cpu));
                (cpu.pending, cpu.in_service) = registers_of(&pending);
                let held = PendingAtCrash {
                    cpu: pending.cpu,
                    requested: vectors(&pending.requested),
                    in_service: vectors(&pending.in_service),
                    ..PendingAtCrash::default()
                };
                evidence.pending_at_crash.push(held);
            }
        }
    }
    for stopped in dump.records().filter_map(|record| match record {
        Record::Stopped(stopped) => Some(stopped),
        _ => None,
    }) {
        let late = crashed_at.and_then(|crashed_at| stopped.time.checked_sub(crashed_at));
        if let (Some(cpu), Some(late)) = (cpus.get_mut(&stopped.cpu), late) {
            let what = format!("CPU {} saved itself", stopped.cpu);
            let value = format!("{} after the crash began", crate::rules::case::duration(late));
            cpu.facts.push(crate::Fact::new(what, value, "crash dump: notes"));
        }
    }
    evidence.cpus = cpus.into_values().collect();
    evidence.gaps.extend(dump.remarks().iter().cloned());
    evidence
}

fn of_absence(cpu: &mut CpuEvidence, why: Absence) {
    cpu.registers_saved = Some(false);
    let (online, answered) = match why {
        Absence::Offline => (Some(false), None),
        Absence::TakesNoNmi => (None, None),
        _ => (Some(true), Some(false)),
    };
    (cpu.online, cpu.answered_probe) = (online, answered);
    match why {
        Absence::Busy { caller } => cpu.running = Some(Running { caller, ..Running::default() }),
        Absence::InterruptsDisabled { at } => {
            cpu.interrupts_enabled = Some(false);
            cpu.function = Some(format!("{at:#x}"));
        }
        Absence::InterruptsEnabled { at } => {
            cpu.interrupts_enabled = Some(true);
            cpu.function = Some(format!("{at:#x}"));
        }
        Absence::Offline | Absence::TakesNoNmi | Absence::NoSignOfLife => {}
    }
    let what = format!("why CPU {} saved nothing", cpu.cpu);
    cpu.facts.push(crate::Fact::new(what, why.to_string(), "crash dump: notes"));
}

/// A back trace in the words of evidence.
pub(crate) fn stack(trace: &BackTrace) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::with_capacity(trace.frames.len());
    for frame in &trace.frames {
        if let (Some(saved), Some(last)) = (&frame.saved, frames.last_mut()) {
            last.interrupted = Some(Interrupted {
                interrupts_enabled: Some(saved.registers.interrupts_enabled()),
                user_mode: Some(false),
            });
        }
        frames.push(of_frame(frame));
    }
    if let (End::UserMode(registers), Some(last)) = (&trace.end, frames.last_mut()) {
        let enabled = Some(registers.interrupts_enabled());
        last.interrupted = Some(Interrupted { interrupts_enabled: enabled, user_mode: Some(true) });
    }
    frames
}

fn of_frame(frame: &unwind::Frame) -> Frame {
    let stack = match frame.stack {
        Stack::Task | Stack::Entry => StackKind::Task,
        Stack::Irq => StackKind::Interrupt,
        Stack::Nmi => StackKind::Nmi,
        _ => StackKind::Exception,
    };
    let place = frame.location.as_ref();
    Frame {
        function: place.map_or_else(|| format!("{:#x}", frame.address), |place| place.name.clone()),
        offset: place.map(|place| place.offset),
        module: place.and_then(|place| place.module.clone()),
        address: Some(frame.address),
        stack,
        guess: !frame.certain,
        interrupted: None,
    }
}

/// Pending and in service.
pub(crate) fn registers_of(pending: &PendingInterrupts) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    (Some(vectors(&pending.requested)), Some(vectors(&pending.in_service)))
}

/// The vectors whose bits are set, ascending.
fn vectors(register: &[u32; 8]) -> Vec<u8> {
    (0..=u8::MAX).filter(|&vector| register[usize::from(vector / 32)] >> (vector % 32) & 1 != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_the_bits_of_eight_words() {
        let mut register = [0; 8];
        register[7] = 1 << (0xfb - 0xe0);
        register[0] = 1 << 31;
        assert_eq!(vectors(&register), [31, 0xfb]);
        assert_eq!(vectors(&[0; 8]), [0_u8; 0]);
    }

    #[test]
    fn why_a_cpu_saved_nothing_becomes_what_is_known_of_it() {
        let absent = |why| {
            let mut cpu = CpuEvidence::unknown(1);
            of_absence(&mut cpu, why);
            (cpu.online, cpu.answered_probe, cpu.interrupts_enabled, cpu.running)
        };
        assert_eq!(absent(Absence::Offline), (Some(false), None, None, None));
        let busy = Some(Running { caller: Some(3), ..Running::default() });
        assert_eq!(absent(Absence::Busy { caller: Some(3) }), (Some(true), Some(false), None, busy));
        assert_eq!(absent(Absence::InterruptsDisabled { at: 0x1000 }).2, Some(false));
        assert_eq!(absent(Absence::TakesNoNmi), (None, None, None, None));
    }
}
