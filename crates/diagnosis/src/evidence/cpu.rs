//! What is known of one CPU.

use serde::Serialize;

use super::stack::Frame;
use crate::verdict::Fact;

/// What is known about one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuEvidence {
    /// Its number.
    pub cpu: u32,
    /// Whether the kernel counts it as online. In a Linux dump taken after a panic the mask holds only the CPU that
    /// crashed and says nothing of the others: leave it unknown there.
    pub online: Option<bool>,
    /// Whether it is on its way down: it still runs, and has left the online mask or is about to.
    pub dying: Option<bool>,
    /// Whether maskable interrupts are enabled.
    pub interrupts_enabled: Option<bool>,
    /// The pending vectors: the interrupt request register of its local APIC.
    pub pending: Option<Vec<u8>>,
    /// The vectors in service: the in-service register of its local APIC.
    pub in_service: Option<Vec<u8>>,
    /// Whether it looks at its mailbox by itself and is not rung: a polling idle loop, a wait that serves.
    pub polls: Option<bool>,
    /// Whether it runs its idle task.
    pub idle: Option<bool>,
    /// Whether it runs a user program.
    pub user_mode: Option<bool>,
    /// What it waits for, if it waits for a call.
    pub wait: Option<WaitEvidence>,
    /// The call or handler that it is in.
    pub running: Option<Running>,
    /// The innermost function it was seen in.
    pub function: Option<String>,
    /// Its back trace, innermost frame first; empty if unknown.
    pub stack: Vec<Frame>,
    /// Why the back trace ends before the outermost frame.
    pub stack_ended: Option<String>,
    /// The task that it runs.
    pub task: Option<Task>,
    /// Whether its registers are known; `Some(false)`: those of others are and its own are missing.
    pub registers_saved: Option<bool>,
    /// How many rings were sent to it, by all CPUs together.
    pub rings_sent_to: Option<u64>,
    /// How many of these merged with one that was still pending.
    pub rings_merged: Option<u64>,
    /// How many rings it took.
    pub rings_taken: Option<u64>,
    /// Whether it answered an NMI, or saved its registers when asked to.
    pub answered_probe: Option<bool>,
    /// How long ago it was last seen to make progress, in nanoseconds.
    pub since_progress_nanos: Option<u64>,
    /// How long ago it last took a timer interrupt, in nanoseconds. A CPU that takes ticks has interrupts enabled from
    /// time to time.
    pub since_tick_nanos: Option<u64>,
    /// How long ago it was reset and started for the last time, in nanoseconds: what was pending before is forgotten.
    pub since_start_nanos: Option<u64>,
    /// Whether the hypervisor says that it has taken the CPU away. In a paused machine it says so of all of them.
    pub preempted: Option<bool>,
    /// How long the hypervisor has let it wait since it was started, in nanoseconds.
    pub stolen_nanos: Option<u64>,
    /// The softirqs that wait to be run: a bit for each.
    pub softirqs_pending: Option<u32>,
    /// Its scheduler's clock, in nanoseconds since the machine was started. A clock that stands still beside others is a
    /// sign that the CPU takes no ticks.
    pub clock_nanos: Option<u64>,
    /// Whatever else was read of it and is worth showing, with its address.
    pub facts: Vec<Fact>,
}

/// A task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its number.
    pub pid: Option<u32>,
}

impl Task {
    /// Whether it is known to be no idle task.
    pub fn is_not_idle(&self) -> bool {
        self.pid.is_some_and(|pid| pid != 0) && !self.name.starts_with("swapper")
    }
}

/// A wait for calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitEvidence {
    /// For which CPUs; empty if unknown.
    pub targets: Vec<u32>,
    /// In which function.
    pub function: Option<String>,
    /// For how long, in nanoseconds.
    pub nanos: Option<u64>,
    /// It cannot have lasted longer than this, in nanoseconds.
    pub nanos_at_most: Option<u64>,
    /// It may have begun just now: see [`CallEvidence::perhaps_fresh`](super::CallEvidence::perhaps_fresh).
    pub perhaps_fresh: bool,
    /// Whether it was a wait for another call when it was looked at again: then it makes progress.
    pub renewed: Option<bool>,
}

/// A call or an interrupt handler that a CPU is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// The function.
    pub function: Option<String>,
    /// Whose call it is; `None` if unknown, or if it is no call.
    pub caller: Option<u32>,
    /// For how long, in nanoseconds.
    pub nanos: Option<u64>,
}

impl CpuEvidence {
    /// A CPU of which nothing is known but its number.
    pub fn unknown(cpu: u32) -> Self {
        Self { cpu, ..Self::default() }
    }

    /// Whether it is known that it could take no call when it was seen: it did not answer at all, or ran with interrupts
    /// disabled. An idle CPU may sleep with interrupts disabled and still be woken by one.
    pub fn cannot_take_a_call(&self) -> bool {
        let masked =
            self.interrupts_enabled == Some(false) && self.idle != Some(true) && self.polls != Some(true);
        masked || self.answered_probe == Some(false)
    }

    /// Whether `vector` is pending.
    pub fn is_pending(&self, vector: Option<u8>) -> Option<bool> {
        Some(self.pending.as_ref()?.contains(&vector?))
    }

    /// Whether `vector` is in service.
    pub fn is_in_service(&self, vector: Option<u8>) -> Option<bool> {
        Some(self.in_service.as_ref()?.contains(&vector?))
    }

    /// How many rings to it neither arrived nor are pending.
    pub fn rings_missing(&self, vector: Option<u8>) -> Option<u64> {
        let pending = u64::from(self.is_pending(vector)?);
        let arrived = self.rings_taken?.saturating_add(self.rings_merged?).saturating_add(pending);
        Some(self.rings_sent_to?.saturating_sub(arrived))
    }

    /// How many fewer rings it took than were sent to it. Merged and pending ones are among them.
    pub fn rings_not_taken(&self) -> Option<u64> {
        Some(self.rings_sent_to?.saturating_sub(self.rings_taken?))
    }
}

#[cfg(test)]
mod tests {
    use crate::samples::working;

    #[test]
    fn missing_rings_are_unknown_unless_all_counts_are_known() {
        let mut cpu = working(0);
        (cpu.rings_sent_to, cpu.rings_taken, cpu.rings_merged) = (Some(5), Some(3), Some(1));
        assert_eq!(cpu.rings_missing(Some(0xfb)), Some(1));
        cpu.pending = Some(vec![0xfb]);
        assert_eq!(cpu.rings_missing(Some(0xfb)), Some(0));
        cpu.rings_merged = None;
        assert_eq!(cpu.rings_missing(Some(0xfb)), None);
    }
}
