//! What is known about a machine, whatever it was read from: a simulator, a dump, a hung VM, a log.
//!
//! `None` means unknown everywhere, never "no". Times are durations in nanoseconds up to the moment of the evidence.

mod call;
mod cpu;
mod infer;
mod stack;

use core::fmt;

use serde::Serialize;

pub use call::{CallEvidence, CallKind, CallState, CountedCall, Descriptor, Ended, Home};
pub use cpu::{CpuEvidence, Running, Task, WaitEvidence};
pub use stack::{Frame, Interrupted, StackKind};

use crate::errata::CpuModel;

/// Everything that is known about a machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineEvidence {
    /// Where it comes from, for the facts of verdicts: "simulator", "crash dump".
    pub origin: String,
    /// The vector of the IPI that announces calls.
    pub ring_vector: Option<u8>,
    /// Waits shorter than this are normal and no finding. Zero: whoever waits is a finding.
    pub patience_nanos: u64,
    /// The CPUs, in ascending order of their numbers. Of a dump: all present ones, online or not.
    pub cpus: Vec<CpuEvidence>,
    /// Calls and posts whose target is known.
    pub calls: Vec<CallEvidence>,
    /// Calls of which only counts are known.
    pub counted_calls: Vec<CountedCall>,
    /// Locks that somebody waits for.
    pub locks: Vec<LockEvidence>,
    /// CPUs that the kernel itself has reported as stuck.
    pub stalls: Vec<StallEvidence>,
    /// Ends of interrupt that cleared the in-service bit of another handler than the one that wrote them.
    pub stray_ends: Vec<StrayEnd>,
    /// Interrupt controllers that did not become ready to send.
    pub busy_controllers: Vec<BusyController>,
    /// What the local APICs of crashed CPUs held, and what became of it.
    pub pending_at_crash: Vec<PendingAtCrash>,
    /// The kernel's release: `6.1.0-18-cloud-amd64`.
    pub kernel: Option<String>,
    /// The processor.
    pub cpu_model: Option<CpuModel>,
    /// The hypervisor below, by its name: `KVM`. `Some("none")` is not used: on hardware this is unknown.
    pub hypervisor: Option<String>,
    /// The CPU whose panic ended it, and why, as the kernel said it.
    pub panic: Option<Panic>,
    /// Whether the queues of all CPUs of [`cpus`](Self::cpus) were read: then what is not in
    /// [`calls`](Self::calls) does not exist.
    pub queues_complete: bool,
    /// What had changed when it was read again, in words: the source was live.
    pub moving: Vec<String>,
    /// What could not be read, or not be trusted, in words that say what it would take.
    pub gaps: Vec<String>,
}

/// A kernel gave up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Panic {
    /// On which CPU.
    pub cpu: Option<u32>,
    /// What it said.
    pub reason: Option<String>,
}

/// A CPU of which the kernel has said that it is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallEvidence {
    /// Which CPU.
    pub cpu: u32,
    /// Who has said so.
    pub detector: Detector,
    /// For how long it has been stuck, in nanoseconds.
    pub nanos: Option<u64>,
}

/// What finds a stuck CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detector {
    /// Its timer interrupt: it takes interrupts, and has not scheduled.
    SoftLockup,
    /// An NMI, or another CPU: it takes no timer interrupts.
    HardLockup,
    /// RCU: it has not passed through a quiescent state.
    RcuStall,
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SoftLockup => "soft lockup",
            Self::HardLockup => "hard lockup",
            Self::RcuStall => "RCU stall",
        })
    }
}

/// A lock that somebody waits for, spinning or asleep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockEvidence {
    /// Its name: a symbol, or what takes it.
    pub name: String,
    /// Its address.
    pub address: Option<u64>,
    /// The CPUs that wait for it.
    pub waiters: Vec<u32>,
    /// The CPU that has it.
    pub holder: Option<u32>,
    /// How the holder is known, if it is inferred.
    pub inferred: Option<String>,
}

/// What the local APIC of a CPU held when its kernel crashed, and what became of that in the capture kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingAtCrash {
    /// Whose.
    pub cpu: u32,
    /// The vectors that it had accepted and not taken: the interrupt request register.
    pub requested: Vec<u8>,
    /// The vectors that it had taken and not ended: the in-service register.
    pub in_service: Vec<u8>,
    /// Whether the capture kernel has got rid of all of them before it had handlers.
    pub drained: Option<bool>,
    /// The first of them that came to a handler of the capture kernel.
    pub taken: Option<u8>,
    /// Where that handler came to its end.
    pub function: Option<String>,
}

/// The interrupt controller of a CPU whose last command was not dispatched: its delivery status says "pending".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BusyController {
    /// Whose.
    pub cpu: u32,
    /// For how long it has been seen like that, in nanoseconds.
    pub nanos: Option<u64>,
    /// Whether that CPU still waits for it.
    pub still_waits: bool,
    /// The function that waits or waited.
    pub function: Option<String>,
    /// The CPUs that are in an NMI handler and make no step there.
    pub in_nmi_handlers: Vec<u32>,
}

/// Ends of interrupt, written by one handler, that cleared the in-service bit of another one, which was running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StrayEnd {
    /// On which CPU.
    pub cpu: u32,
    /// The vector whose handler wrote them.
    pub by: u8,
    /// The vector that was in service.
    pub vector: u8,
    /// How often.
    pub times: u64,
    /// How many interrupts were then taken that the cleared bit would have held back.
    pub let_in: u64,
    /// The function that wrote them.
    pub function: Option<String>,
}

impl MachineEvidence {
    /// What is known about a CPU.
    pub fn cpu(&self, cpu: u32) -> Option<&CpuEvidence> {
        self.cpus.iter().find(|found| found.cpu == cpu)
    }

    /// Whether a wait of this length is a finding. One of unknown length is.
    pub fn is_overdue(&self, nanos: Option<u64>) -> bool {
        nanos.is_none_or(|nanos| nanos >= self.patience_nanos)
    }

    /// Whether a call has waited for longer than is normal. One of unknown age has, unless it cannot be that old.
    pub fn is_call_overdue(&self, call: &CallEvidence) -> bool {
        let renewed = call.waited && call.caller.is_some_and(|caller| self.is_wait_renewed(caller));
        !renewed
            && !call.perhaps_fresh
            && self.is_overdue(call.nanos.or(call.nanos_at_most.filter(|&most| most < self.patience_nanos)))
    }

    /// Whether a CPU has waited for longer than is normal.
    pub fn is_wait_overdue(&self, wait: &WaitEvidence) -> bool {
        let most = wait.nanos_at_most.filter(|&most| most < self.patience_nanos);
        wait.renewed != Some(true) && !wait.perhaps_fresh && self.is_overdue(wait.nanos.or(most))
    }

    /// Whether a CPU was seen to wait for another call a moment later: it makes progress.
    pub fn is_wait_renewed(&self, cpu: u32) -> bool {
        let wait = self.cpu(cpu).and_then(|cpu| cpu.wait.as_ref());
        wait.is_some_and(|wait| wait.renewed == Some(true))
    }
}
