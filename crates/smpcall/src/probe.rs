//! Is a CPU alive, where, and are its interrupts disabled? Asked by NMI, answered from the NMI handler.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use crate::door::OPEN;
use crate::ladder::Probed;
use crate::mailbox::Own;
use crate::serve::Here;
use crate::{Cpu, Kernel, Mailbox, Mailboxes, TargetState};
use smpcall_machine::{EventKind, Ipi};

/// How long a probe that is not answered keeps others from sending one.
const PATIENCE: Duration = Duration::from_millis(10);

impl<K: Kernel> Mailboxes<K> {
    /// Sends a probe, unless another CPU has just done so: its answer serves both. None if the machine has no NMI, the
    /// target has not declared that it takes them, or is seen to be busy in a closure.
    pub(crate) fn probe(&self, me: Cpu, target: Cpu, theirs: &Mailbox<K>) -> Option<Probed> {
        // Relaxed: flags that say nothing about other data.
        if !K::HAS_NMI || theirs.takes_nmi.load(Relaxed) == 0 || theirs.own.0.running.get() != 0 {
            return None;
        }
        let answers_before = theirs.own.0.probe_answers.get();
        let now = K::now().as_nanos().max(1);
        let asked = theirs.probe_wanted.load(Relaxed);
        let recently = asked != 0 && now.wrapping_sub(asked) < PATIENCE.as_nanos() as u64;
        // Release: the count above was read before an answer to this can be given. If another CPU is faster, the probe is
        // its to send.
        if recently || theirs.probe_wanted.compare_exchange(asked, now, Release, Relaxed).is_err() {
            return Some(Probed { target, answers_before });
        }
        self.trace(me, EventKind::ProbeSent, Some(target), 0, 0);
        if let Some(mine) = self.get(me) {
            mine.counters().probes_sent.add(1);
        }
        let sent = K::send(target, Ipi::Probe);
        self.note_ring(me, Some(target), sent);
        sent.ok().map(|()| Probed { target, answers_before })
    }

    /// A CPU that runs a closure of `source` at this moment.
    pub(crate) fn runner_of(&self, source: Cpu) -> Option<Cpu> {
        let running = u64::from(source.number()) + 1;
        self.cpus().find(|&cpu| self.get(cpu).is_some_and(|theirs| theirs.own.0.running.get() == running))
    }

    /// What is known of a CPU, with a probe or without.
    pub(crate) fn state_of(&self, target: Cpu, probed: Option<Probed>) -> TargetState {
        let Some(theirs) = self.get(target) else { return TargetState::Offline };
        // Relaxed and counters throughout: this is a report, and decides nothing.
        if theirs.door.0.load(Relaxed) & OPEN == 0 {
            return TargetState::Offline;
        }
        let own = &theirs.own.0;
        match own.running.get() {
            0 => {}
            Own::POST_RUNS => return TargetState::Busy { caller: None },
            caller => return TargetState::Busy { caller: Some(Cpu::new(caller as u32 - 1)) },
        }
        let Some(probed) = probed.filter(|probed| probed.target == target) else {
            return TargetState::NotProbed;
        };
        if own.probe_answers.get() == probed.answers_before {
            return TargetState::NoSignOfLife;
        }
        match own.last_answer() {
            Some((at, false)) => TargetState::InterruptsDisabled { at },
            Some((at, true)) => TargetState::NotTaken { at },
            None => TargetState::NoSignOfLife,
        }
    }
}

impl Own {
    /// The last answer to a probe, however old: the instruction pointer, and whether interrupts were enabled there.
    pub(crate) fn last_answer(&self) -> Option<(u64, bool)> {
        if self.probe_answers.get() == 0 {
            return None;
        }
        let word = self.probe_answer.get();
        // Bit 63 of a canonical address repeats bit 62.
        let at = (word << 1).cast_signed() >> 1;
        Some((at.cast_unsigned(), word & Self::INTERRUPTS_ENABLED != 0))
    }
}

impl<K: Kernel> Here<K> {
    /// The NMI handler's part. Returns whether a probe was the reason.
    pub(crate) fn answer_probe(&self, instruction_pointer: u64, interrupts_enabled: bool) -> bool {
        // Acquire: pairs with the release in `probe`, so that the prober's count is from before the answer.
        if self.mine.probe_wanted.swap(0, Acquire) == 0 {
            return false;
        }
        let own = &self.mine.own.0;
        let flag = if interrupts_enabled { Own::INTERRUPTS_ENABLED } else { 0 };
        own.probe_answer.set(instruction_pointer & !Own::INTERRUPTS_ENABLED | flag);
        own.probe_answers.add(1);
        own.counters.probes_answered.add(1);
        self.boxes().trace(self.me, EventKind::ProbeAnswered, None, 0, instruction_pointer);
        true
    }
}
