//! What can be told from evidence that its reader has not said: what back traces show, whose call is missing, who has the lock.
//!
//! What is inferred says so, and how; verdicts that rest on it are less sure.

use super::{CallEvidence, CountedCall, CpuEvidence, Detector, LockEvidence, MachineEvidence, WaitEvidence};
use crate::frames::{self, Role};

impl MachineEvidence {
    /// The same, with what back traces tell and their reader has not said. See [`frames`](mod@crate::frames).
    #[must_use]
    pub fn completed(&self) -> Self {
        let mut completed = self.clone();
        completed.cpus.iter_mut().for_each(frames::complete);
        let locks = completed.cpus.iter().filter_map(|cpu| completed.lock_behind(cpu)).collect::<Vec<_>>();
        completed.locks.extend(locks);
        completed
    }

    /// The lock on which a CPU spins with interrupts disabled, if its reader has named none. Whoever holds such a lock usually has
    /// them disabled too: if there is exactly one such CPU, it is taken for the holder.
    fn lock_behind(&self, cpu: &CpuEvidence) -> Option<LockEvidence> {
        let taker = |cpu: &CpuEvidence| {
            let reason = frames::reason(&cpu.stack)?;
            (reason.role == Some(Role::SpinLock)).then(|| reason.function.to_owned())
        };
        let named = self.locks.iter().any(|lock| lock.waiters.contains(&cpu.cpu));
        let taker_here = taker(cpu).filter(|_| !named && cpu.interrupts_enabled == Some(false))?;
        let may_hold = |other: &&CpuEvidence| {
            let seen = other.cpu != cpu.cpu && other.cannot_take_a_call() && !other.stack.is_empty();
            seen && other.wait.is_none() && taker(other).is_none()
        };
        let mut holders = self.cpus.iter().filter(may_hold);
        let holder = holders.next().filter(|_| holders.next().is_none()).map(|holder| holder.cpu);
        let how = "of the CPUs that were seen only this one has interrupts disabled and waits for nobody";
        Some(LockEvidence {
            name: format!("taken in {taker_here}"),
            waiters: vec![cpu.cpu],
            holder,
            inferred: holder.map(|_| how.into()),
            ..LockEvidence::default()
        })
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
        for (cpu, wait) in self.cpus.iter().filter_map(|cpu| Some((cpu, cpu.wait.as_ref()?))) {
            calls.extend(self.calls_behind(cpu.cpu, wait));
        }
        calls
    }

    /// The calls for which a CPU may wait of which no more is known than that it waits: those to the CPUs that could not take
    /// one. They are inferred, each of them.
    fn calls_behind(&self, cpu: u32, wait: &WaitEvidence) -> Vec<CallEvidence> {
        let known = !wait.targets.is_empty()
            || self.calls.iter().any(|call| call.caller == Some(cpu) && call.waited)
            || self.counted_calls.iter().any(|counted| counted.caller == cpu);
        if known || !self.is_wait_overdue(wait) {
            return vec![];
        }
        let others = || self.cpus.iter().filter(|other| other.cpu != cpu && other.online != Some(false));
        let unable: Vec<&CpuEvidence> = others().filter(|other| other.cannot_take_a_call()).collect();
        let rcu = || self.stalls.iter().filter(|stall| stall.detector == Detector::RcuStall);
        let is_seen = |other: &&CpuEvidence| {
            // RCU names who holds it up; who is not named has been through a quiescent state.
            let exonerated = rcu().next().is_some() && rcu().all(|stall| stall.cpu != other.cpu);
            other.interrupts_enabled.is_some()
                || other.idle.is_some()
                || other.answered_probe == Some(false)
                || exonerated
        };
        let seen = others().filter(is_seen).count();
        // One that was not seen comes into question as well; and there may be CPUs of which nothing was said at all.
        let all_known = self.cpus.iter().zip(0..).all(|(known, number)| known.cpu == number);
        let unseen = others().count() - seen + usize::from(!all_known);
        let candidates = unable.len() + unseen;
        let inferred = match unable.as_slice() {
            [_] => format!(
                "nothing says for whom CPU {cpu} waits; of {seen} other CPUs of which enough is known only this one could not \
                 take a call"
            ),
            many => format!(
                "nothing says for whom CPU {cpu} waits; {} CPUs could not take a call when they were seen",
                many.len()
            ),
        };
        // Interrupts are disabled for moments everywhere: that they are for long takes more than one look.
        let for_long = |target: &CpuEvidence| {
            let reason = frames::reason(&target.stack).and_then(|reason| reason.role);
            target.answered_probe == Some(false)
                || target.running.is_some()
                || reason.is_some()
                || self.stalls.iter().any(|stall| stall.cpu == target.cpu)
        };
        let call = |target: &CpuEvidence| CallEvidence {
            nanos: wait.nanos,
            nanos_at_most: wait.nanos_at_most,
            inferred: Some(inferred.clone()),
            candidates: candidates + usize::from(!for_long(target)),
            ..CallEvidence::queued(cpu, target.cpu)
        };
        unable.into_iter().map(call).collect()
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
}

#[cfg(test)]
mod tests {
    use crate::diagnose;
    use crate::evidence::{Detector, Frame, MachineEvidence, StallEvidence, WaitEvidence};
    use crate::samples::{counted_call, machine};
    use crate::verdict::{Confidence, VerdictKind};

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

    /// CPU 0 waits for somebody, CPU 1 runs with interrupts disabled, of the others nothing is known.
    fn one_is_unable() -> MachineEvidence {
        let mut evidence = machine(4);
        evidence.cpus[0].wait = Some(WaitEvidence::default());
        evidence.cpus[1].interrupts_enabled = Some(false);
        for cpu in &mut evidence.cpus[2..] {
            cpu.interrupts_enabled = None;
        }
        evidence
    }

    #[test]
    fn who_was_not_seen_comes_into_question_unless_rcu_says_that_it_makes_progress() {
        // Two were not seen, and that CPU 1 has interrupts disabled may be for a moment.
        assert_eq!(one_is_unable().resolved_calls()[0].candidates, 4);
        let mut evidence = one_is_unable();
        evidence.stalls.push(StallEvidence { cpu: 1, detector: Detector::RcuStall, nanos: None });
        assert_eq!(evidence.resolved_calls()[0].candidates, 1);
        // A log that never mentions CPU 2 may be of a machine that has one.
        evidence.cpus.remove(2);
        assert_eq!(evidence.resolved_calls()[0].candidates, 2);
    }

    #[test]
    fn the_only_other_cpu_with_interrupts_off_is_taken_for_the_holder_and_two_are_not() {
        let mut evidence = machine(3);
        let spins = ["native_queued_spin_lock_slowpath", "_raw_spin_lock_irqsave", "force_qs_rnp"];
        let runs = |names: &[&str]| names.iter().map(|&name| Frame::of(name)).collect::<Vec<_>>();
        for (cpu, names) in [(0, &spins[..]), (1, &["io_serial_in"])] {
            evidence.cpus[cpu].interrupts_enabled = Some(false);
            evidence.cpus[cpu].stack = runs(names);
        }
        evidence.stalls.push(StallEvidence { cpu: 0, detector: Detector::HardLockup, nanos: None });
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.kind, verdict.cpu), (VerdictKind::InterruptsOff, Some(0)));
        assert_eq!((verdict.culprit, verdict.confidence), (Some(1), Confidence::Likely));
        evidence.cpus[2].interrupts_enabled = Some(false);
        evidence.cpus[2].stack = runs(&["spin_here"]);
        let verdict = diagnose(&evidence).verdicts.remove(0);
        assert_eq!((verdict.cpu, verdict.culprit), (Some(0), Some(0)));
        assert!(verdict.missing.iter().any(|missing| missing.contains("who holds the lock")), "{verdict:#?}");
    }
}
