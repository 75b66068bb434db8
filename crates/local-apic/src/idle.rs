//! Waiting for the controller to take another command: always bounded, and free when it is idle.
//!
//! Only xAPIC has a delivery-status bit. The wait is the project's one wait; there is no loop here.

use core::time::Duration;

use smpcall_machine::{Deadline, Machine, Predicate, When, Woken, wait, wait_at_most};

use crate::{Access, DeliveryMode, Icr, Mode, Register};

/// How long a dispatch takes at the most under normal conditions: 20 microseconds.
/// Source: MP specification, B-3.
pub const DISPATCH_BOUND: Duration = Duration::from_micros(20);

/// How long a send waits, in addition and in total, before an NMI, INIT or start-up message: 1000 times 100 microseconds.
/// Source: report 002, solution B.
pub const PATIENT_BOUND: Duration = Duration::from_millis(100);

/// Whether the last command has been dispatched: one register read.
#[inline]
pub(crate) fn is_idle(access: &impl Access) -> bool {
    access.read(Register::ICR_LOW) & Icr::SEND_PENDING == 0
}

/// What a look takes at least, in nanoseconds: so many looks last no shorter than the bound. Source: [`wait_at_most`].
const LEAST_LOOK: u64 = 10;

/// Waits until the last command has been dispatched; says whether it has. The looks are counted as well: who sends may be a
/// CPU that crashes because its clock stands still.
fn wait_within<M: Machine>(access: &impl Access, bound: Duration) -> bool {
    let (deadline, looks) = (Deadline::within::<M>(bound), bound.as_nanos() as u64 / LEAST_LOOK);
    wait_at_most::<M>(&Predicate(|| is_idle(access)), deadline, looks) != Woken::Deadline
}

/// Waits for a time and for nothing else, with interrupts as they are. No time, no wait.
pub(crate) fn delay<M: Machine>(duration: Duration) {
    if !duration.is_zero() {
        let nothing: [When<'_, M::Memory>; 0] = [];
        wait::<M>(&nothing, Deadline::within::<M>(duration));
    }
}

/// How much longer a send may wait with interrupts as they are. One for all commands of a send: their number
/// must not multiply it.
#[derive(Debug)]
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    /// None for ordinary interrupts: whoever sends those repeats them.
    pub(crate) const fn of(delivery_mode: DeliveryMode) -> Self {
        let left = match delivery_mode {
            DeliveryMode::Nmi | DeliveryMode::Init | DeliveryMode::StartUp => PATIENT_BOUND,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::Smi => Duration::ZERO,
        };
        Self { left }
    }

    /// Waits for an idle controller as long as patience lasts. A handler may make it busy again at once, so that
    /// this is no more than a hint: the ladder decides.
    pub(crate) fn wait<M: Machine>(&mut self, access: &impl Access) {
        if !self.left.is_zero() {
            let start = M::now();
            let idle = wait_within::<M>(access, self.left);
            self.left = if idle { self.left.saturating_sub(M::now().since(start)) } else { Duration::ZERO };
        }
    }
}

/// What became of a command that stood in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ladder {
    /// The controller is idle; so many commands were written again on the way.
    Idle {
        /// 0 or 1.
        rewritten: u32,
    },
    /// It stayed busy.
    Busy,
}

/// The tight bound, and once more after a retry of the command that is stuck.
///
/// The retry writes the low word again, as the MP specification (B-3) has it: the command that did not go out gets
/// another chance instead of being overwritten. Only messages that merge with themselves at the target, should they
/// have been sent after all, are retried: a second INIT or start-up message could hit a CPU that runs by now.
/// To be called with interrupts disabled, so that the word is not changed by a handler. An NMI handler that changes it
/// leaves the controller idle and the upper word as it was.
pub(crate) fn wait_or_retry<M: Machine>(access: &impl Access) -> Ladder {
    if wait_within::<M>(access, DISPATCH_BOUND) {
        return Ladder::Idle { rewritten: 0 };
    }
    let stuck = access.read(Register::ICR_LOW);
    if stuck & Icr::SEND_PENDING == 0 {
        // It has become idle at last. An NMI handler may have seen to that, and then the low word is its command, which
        // the upper one is not the destination of.
        return Ladder::Idle { rewritten: 0 };
    }
    if merges_with_itself(stuck) {
        access.write(Register::ICR_LOW, stuck & !Icr::SEND_PENDING & !(Icr::reserved(Mode::XApic) as u32));
        if wait_within::<M>(access, DISPATCH_BOUND) {
            return Ladder::Idle { rewritten: 1 };
        }
    }
    Ladder::Busy
}

fn merges_with_itself(low_word: u32) -> bool {
    Icr::decode(u64::from(low_word), Mode::XApic).is_ok_and(|icr| match icr.delivery_mode {
        DeliveryMode::Fixed => icr.vector >= 16,
        DeliveryMode::Nmi => true,
        DeliveryMode::LowestPriority | DeliveryMode::Smi | DeliveryMode::Init | DeliveryMode::StartUp => {
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_merges_with_itself_is_sent_again() {
        for (mode, again) in DeliveryMode::ALL.into_iter().zip([true, false, false, true, false, false]) {
            assert_eq!(merges_with_itself(0x4000 | (mode as u32) << 8 | 0xfb), again, "{mode:?}");
        }
        // A command that an APIC must refuse, and a reserved delivery mode.
        assert!(!merges_with_itself(0x400f));
        assert!(!merges_with_itself(0x43fb));
    }
}
