//! What is known about a machine, whatever it was read from: a simulator, a dump, a hung VM, a log.
//!
//! `None` means unknown everywhere, never "no". Times are durations in nanoseconds up to the moment of the evidence.

/// Everything that is known about a machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineEvidence {
    /// Where it comes from, for the facts of verdicts: "simulator", "crash dump".
    pub origin: String,
    /// The vector of the IPI that announces calls.
    pub ring_vector: Option<u8>,
    /// Waits shorter than this are normal and no finding. Zero: whoever waits is a finding.
    pub patience_nanos: u64,
    /// The CPUs, in ascending order of their numbers.
    pub cpus: Vec<CpuEvidence>,
    /// Calls and posts whose target is known.
    pub calls: Vec<CallEvidence>,
    /// Calls of which only counts are known.
    pub counted_calls: Vec<CountedCall>,
    /// Ends of interrupt that cleared the in-service bit of another handler than the one that wrote them.
    pub stray_ends: Vec<StrayEnd>,
    /// Interrupt controllers that did not become ready to send.
    pub busy_controllers: Vec<BusyController>,
    /// What the local APICs of crashed CPUs held, and what became of it.
    pub pending_at_crash: Vec<PendingAtCrash>,
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

/// What is known about one CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuEvidence {
    /// Its number.
    pub cpu: u32,
    /// Whether the kernel counts it as online.
    pub online: Option<bool>,
    /// Whether maskable interrupts are enabled.
    pub interrupts_enabled: Option<bool>,
    /// The pending vectors: the interrupt request register of its local APIC.
    pub pending: Option<Vec<u8>>,
    /// The vectors in service: the in-service register of its local APIC.
    pub in_service: Option<Vec<u8>>,
    /// Whether it looks at its mailbox by itself and is not rung: a polling idle loop, a wait that serves.
    pub polls: Option<bool>,
    /// What it waits for, if it waits.
    pub wait: Option<WaitEvidence>,
    /// The call or handler that it is in.
    pub running: Option<Running>,
    /// The innermost function it was seen in.
    pub function: Option<String>,
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
    /// How long ago it was reset and started for the last time, in nanoseconds: what was pending before is forgotten.
    pub since_start_nanos: Option<u64>,
}

/// A wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitEvidence {
    /// For which CPUs; empty if unknown.
    pub targets: Vec<u32>,
    /// In which function.
    pub function: Option<String>,
    /// For how long, in nanoseconds.
    pub nanos: Option<u64>,
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

/// How far a call has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallState {
    /// Handed over; the target has not taken it.
    Queued,
    /// The target has taken it and has not finished it.
    Claimed,
    /// It was run.
    Finished,
}

/// What is known about a call or post to one CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallEvidence {
    /// Who made it; `None` if unknown.
    pub caller: Option<u32>,
    /// Who is to run it.
    pub target: u32,
    /// How far it has got.
    pub state: CallState,
    /// Whether its caller waits for it: true for calls, false for posts.
    pub waited: bool,
    /// What is to be run.
    pub function: Option<String>,
    /// Whether the target's mailbox shows it.
    pub marked: Option<bool>,
    /// Whether an IPI was sent for it, or for an earlier one that lies before it.
    pub rung: Option<bool>,
    /// How long ago it was made, in nanoseconds.
    pub nanos: Option<u64>,
    /// How its target and state are known, if they are inferred.
    pub inferred: Option<String>,
}

/// A call to several CPUs that kept counts only, as Linux did up to 2.6.26: which target is missing is not recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedCall {
    /// Who made it.
    pub caller: u32,
    /// Who is to run it.
    pub targets: Vec<u32>,
    /// How many have taken it.
    pub started: usize,
    /// How many have finished it.
    pub finished: usize,
    /// What is to be run.
    pub function: Option<String>,
    /// How long ago it was made, in nanoseconds.
    pub nanos: Option<u64>,
}

impl CpuEvidence {
    /// A CPU of which nothing is known but its number.
    pub fn unknown(cpu: u32) -> Self {
        Self { cpu, ..Self::default() }
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

impl CallEvidence {
    /// A call that `caller` waits for and `target` has not taken; the rest is unknown.
    pub fn queued(caller: u32, target: u32) -> Self {
        Self {
            caller: Some(caller),
            target,
            state: CallState::Queued,
            waited: true,
            function: None,
            marked: None,
            rung: None,
            nanos: None,
            inferred: None,
        }
    }
}

impl MachineEvidence {
    /// What is known about a CPU.
    pub fn cpu(&self, cpu: u32) -> Option<&CpuEvidence> {
        self.cpus.iter().find(|found| found.cpu == cpu)
    }

    /// The known calls, and of the counted ones those whose missing targets can be told.
    ///
    /// If as many targets of a counted call took fewer rings than were sent to them as have not taken the call, then
    /// they are the missing ones: each taker took at least one ring for it.
    pub fn resolved_calls(&self) -> Vec<CallEvidence> {
        let mut calls = self.calls.clone();
        for counted in &self.counted_calls {
            let short = self.short_of_rings(counted);
            let missing = counted.targets.len().saturating_sub(counted.started);
            if missing == 0 || short.len() != missing {
                continue;
            }
            let inferred = format!(
                "{} of {} targets have taken it; of all targets only this one's count of rings is short",
                counted.started,
                counted.targets.len()
            );
            calls.extend(short.into_iter().map(|target| CallEvidence {
                function: counted.function.clone(),
                nanos: counted.nanos,
                rung: Some(true),
                inferred: Some(inferred.clone()),
                ..CallEvidence::queued(counted.caller, target)
            }));
        }
        calls
    }

    /// The targets that took fewer rings than were sent to them.
    fn short_of_rings(&self, counted: &CountedCall) -> Vec<u32> {
        let is_short = |&target: &u32| {
            let cpu = self.cpu(target);
            cpu.is_some_and(|cpu| match cpu.rings_merged {
                Some(merged) => cpu.rings_not_taken().is_some_and(|not_taken| not_taken > merged),
                None => cpu.rings_not_taken().is_some_and(|not_taken| not_taken > 0),
            })
        };
        counted.targets.iter().copied().filter(is_short).collect()
    }

    /// Whether a wait of this length is a finding. One of unknown length is.
    pub fn is_overdue(&self, nanos: Option<u64>) -> bool {
        nanos.is_none_or(|nanos| nanos >= self.patience_nanos)
    }
}

#[cfg(test)]
mod tests {
    use crate::samples::{counted_call, working};

    #[test]
    fn the_missing_target_of_a_counted_call_is_the_one_whose_rings_are_short() {
        let calls = counted_call(16, 11).resolved_calls();
        assert_eq!(calls.iter().map(|call| (call.caller, call.target)).collect::<Vec<_>>(), [(Some(5), 11)]);
        assert!(calls[0].inferred.is_some());
    }

    #[test]
    fn two_short_counts_and_one_missing_target_name_nobody() {
        let mut evidence = counted_call(16, 11);
        evidence.cpus[3].rings_sent_to = Some(9);
        assert_eq!(evidence.resolved_calls(), []);
    }

    #[test]
    fn rings_that_merged_are_not_short() {
        let mut evidence = counted_call(16, 11);
        evidence.cpus[3].rings_sent_to = Some(9);
        evidence.cpus[3].rings_merged = evidence.cpus[3].rings_taken.map(|taken| 9 - taken);
        assert_eq!(evidence.resolved_calls().len(), 1);
    }

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
