//! How long to wait for the ICR: the solutions of report 002, and what was there before, beside ours.
//!
//! Only xAPIC has a delivery-status bit; on x2APIC all policies are the same and wait for nothing.
//!
//! | policy | name | an idle controller costs | one that stays busy |
//! | --- | --- | --- | --- |
//! | [`Ours`](IcrPolicy::Ours) | `ours` | one register read | an error after 20 us; for NMIs after 100 ms |
//! | [`Unbounded`](IcrPolicy::Unbounded) | `then` | one register read | the sender waits for ever |
//! | [`BoundedEverywhere`](IcrPolicy::BoundedEverywhere) | `a` | 100 us and one read | an error after 100 ms |
//! | [`SeparateSenders`](IcrPolicy::SeparateSenders) | `b-1` | as `a` for the crash path, as `then` for others | likewise |
//! | [`BoundedForNmi`](IcrPolicy::BoundedForNmi) | `b-2` | as `a` for NMIs, as `then` for others | likewise |

use core::fmt;
use core::str::FromStr;
use core::time::Duration;

use smpcall_machine::{Cpu, CpuMask, Deadline, InterruptsOff, Machine, Predicate, SendError, wait};

use crate::idle::{Patience, delay, is_idle};
use crate::send::Pace;
use crate::{Access, Icr, Interrupt, LocalApic, Mode, Sent, Topology};

/// How long a send waits for the controller to become idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IcrPolicy {
    /// Ours: one read if the controller is idle; a tight bound, a retry, an error; patience for NMI, INIT and start-up.
    #[default]
    Ours,
    /// What was there: wait until the controller is idle, if that is for ever.
    Unbounded,
    /// Solution A: a bounded wait everywhere, which begins with a delay of 100 us whether the controller is idle or not.
    BoundedEverywhere,
    /// Solution B-1: as before, and separate senders with the bounded wait for the crash path.
    SeparateSenders,
    /// Solution B-2: the bounded wait if what is sent is an NMI, else as before.
    BoundedForNmi,
}

impl IcrPolicy {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Ours, Self::Unbounded, Self::BoundedEverywhere, Self::SeparateSenders, Self::BoundedForNmi];

    /// Its name on command lines and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Unbounded => "then",
            Self::BoundedEverywhere => "a",
            Self::SeparateSenders => "b-1",
            Self::BoundedForNmi => "b-2",
        }
    }

    /// Whether every wait of a send of this kind ends.
    pub const fn is_bounded(self, sender: Sender, interrupt: Interrupt) -> bool {
        match self {
            Self::Ours | Self::BoundedEverywhere => true,
            Self::Unbounded => false,
            Self::SeparateSenders => matches!(sender, Sender::CrashPath),
            Self::BoundedForNmi => matches!(interrupt, Interrupt::Nmi),
        }
    }
}

impl fmt::Display for IcrPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No policy has that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownIcrPolicy;

impl fmt::Display for UnknownIcrPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such policy; there are ours, then, a, b-1 and b-2")
    }
}

impl core::error::Error for UnknownIcrPolicy {}

impl FromStr for IcrPolicy {
    type Err = UnknownIcrPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownIcrPolicy> {
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or(UnknownIcrPolicy)
    }
}

/// Who sends: it matters to [`IcrPolicy::SeparateSenders`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// Anybody.
    Ordinary,
    /// The CPU that stops the others in a crash.
    CrashPath,
}

/// A driver that waits by another policy than ours. See [`LocalApic::under`].
#[derive(Debug)]
pub struct UnderPolicy<'a, M, A> {
    apic: &'a LocalApic<M, A>,
    policy: IcrPolicy,
    sender: Sender,
}

impl<M: Machine, A: Access> LocalApic<M, A> {
    /// The same driver with another policy, for comparison: what ships does not wait like that, and pays nothing for this
    /// being here.
    ///
    /// The old policies wait with interrupts disabled, as their senders did, and do nothing against the tearing of two-word
    /// commands by NMI handlers.
    pub const fn under(&self, policy: IcrPolicy, sender: Sender) -> UnderPolicy<'_, M, A> {
        UnderPolicy { apic: self, policy, sender }
    }
}

impl<M: Machine, A: Access> UnderPolicy<'_, M, A> {
    /// As [`LocalApic::send_one`].
    ///
    /// # Errors
    /// As there; never [`SendError::ControllerBusy`] if the policy [does not bound](IcrPolicy::is_bounded) this wait.
    pub fn send_one(
        &self,
        topology: &impl Topology,
        target: Cpu,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        match self.old(interrupt) {
            None => self.apic.send_one(topology, target, interrupt),
            Some(mut old) => self.apic.send_one_at(&mut old, topology, target, interrupt),
        }
    }

    /// As [`LocalApic::send_many`].
    ///
    /// # Errors
    /// As there; and as for [`send_one`](Self::send_one).
    pub fn send_many(
        &self,
        topology: &impl Topology,
        targets: &CpuMask,
        interrupt: Interrupt,
    ) -> Result<Sent, SendError> {
        match self.old(interrupt) {
            None => self.apic.send_many(topology, targets, interrupt),
            Some(mut old) => self.apic.send_many_at(&mut old, topology, targets, interrupt),
        }
    }

    fn old(&self, interrupt: Interrupt) -> Option<OldWait> {
        match self.policy {
            IcrPolicy::Ours => None,
            old if old.is_bounded(self.sender, interrupt) => Some(OldWait::Bounded),
            _ => Some(OldWait::ForEver),
        }
    }
}

/// The two waits that the old policies are made of.
enum OldWait {
    ForEver,
    Bounded,
}

/// The delay before each read of a bounded wait, and how often it is repeated. Source: report 002, solution B.
const DELAY: Duration = Duration::from_micros(100);
const REPEATED: u32 = 1000;

impl OldWait {
    /// Waits; says whether the controller has become idle.
    fn wait<M: Machine>(&self, access: &impl Access) -> bool {
        match self {
            Self::ForEver => {
                wait::<M>(&Predicate(|| is_idle(access)), Deadline::NEVER);
                true
            }
            Self::Bounded => (0..=REPEATED).any(|_| {
                delay::<M>(DELAY);
                is_idle(access)
            }),
        }
    }
}

impl Pace for OldWait {
    /// A controller that stays busy is not written to. (The report leaves open what is done then; the specification that it
    /// quotes has "abort" first.)
    fn submit<M: Machine, A: Access>(&mut self, apic: &LocalApic<M, A>, icr: Icr) -> Result<Sent, SendError> {
        let mode = apic.access.mode();
        if mode == Mode::X2Apic {
            return apic.submit(icr, &mut Patience::of(icr.delivery_mode));
        }
        let command = icr.encode(mode)?;
        let interrupts_off = InterruptsOff::<M>::new();
        if !self.wait::<M>(&apic.access) {
            return Err(SendError::ControllerBusy);
        }
        apic.write_words(command, &interrupts_off);
        Ok(Sent { commands: 1, rewritten: 0 })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::testing::{OneCpu, Recorder, Tables, driver, now};
    use crate::{Register, Vector};
    use std::string::ToString;

    const RING: Interrupt = Interrupt::Fixed(Vector::new(0xfb).unwrap());

    #[test]
    fn a_policy_is_known_by_its_name() {
        for policy in IcrPolicy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
            let error = "b".parse::<IcrPolicy>().unwrap_err().to_string();
            assert!(error.contains(policy.name()), "{error}");
        }
    }

    /// Reads of the register and nanoseconds that a send takes on an idle controller.
    fn cost_when_idle(policy: IcrPolicy, sender: Sender, interrupt: Interrupt) -> (usize, u64) {
        let recorder = Recorder::new(Mode::XApic);
        let start = now();
        let driver = driver(&recorder);
        let sent = driver.under(policy, sender).send_one(&Tables::of(&[0, 1]), Cpu::new(1), interrupt);
        assert_eq!(sent, Ok(Sent { commands: 1, rewritten: 0 }));
        assert!(recorder.reads.borrow().iter().all(|&register| register == Register::ICR_LOW));
        assert!(!OneCpu::interrupts_enabled());
        (recorder.reads.borrow().len(), now() - start)
    }

    #[test]
    fn an_idle_controller_costs_what_the_table_says() {
        use Sender::{CrashPath, Ordinary};
        let (free, delayed) = ((1, 0), (1, 100_000));
        for (policy, fixed, nmi, crash) in [
            (IcrPolicy::Ours, free, free, free),
            (IcrPolicy::Unbounded, free, free, free),
            (IcrPolicy::BoundedEverywhere, delayed, delayed, delayed),
            (IcrPolicy::SeparateSenders, free, free, delayed),
            (IcrPolicy::BoundedForNmi, free, delayed, delayed),
        ] {
            assert_eq!(cost_when_idle(policy, Ordinary, RING), fixed, "{policy}");
            assert_eq!(cost_when_idle(policy, Ordinary, Interrupt::Nmi), nmi, "{policy}");
            assert_eq!(cost_when_idle(policy, CrashPath, Interrupt::Nmi), crash, "{policy}");
        }
    }

    #[test]
    fn a_bounded_policy_gives_up_after_a_thousand_times_100_microseconds() {
        for policy in IcrPolicy::ALL.into_iter().filter(|policy| *policy != IcrPolicy::Unbounded) {
            let recorder = Recorder::new(Mode::XApic);
            recorder.set(Register::ICR_LOW, Icr::SEND_PENDING | 0x4002);
            let start = now();
            let driver = driver(&recorder);
            let crash_path = driver.under(policy, Sender::CrashPath);
            let sent = crash_path.send_one(&Tables::of(&[0, 1]), Cpu::new(1), Interrupt::Nmi);
            assert_eq!(sent, Err(SendError::ControllerBusy), "{policy}");
            assert!((100_000_000..=100_200_000).contains(&(now() - start)), "{policy}");
            assert!(recorder.written().is_empty());
        }
    }
}
