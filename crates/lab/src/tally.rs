//! What each CPU counts for the suites: how often the hooks of `machine.rs` were called.

use smpcall::{Lockup, LockupKind, Refused};
use smpcall_machine::{Counter, Cpu, Machine};

use crate::cpu::MAX_CPUS;
use crate::machine::Lab;

macro_rules! tally {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counts of one CPU.
        pub(crate) struct Tally { $($(#[doc = $doc])+ pub(crate) $name: Counter,)+ }
        impl Tally {
            const NEW: Self = Self { $($name: Counter::new(0),)+ };
        }
    };
}

tally! {
    /// Reschedule requests taken.
    reschedules,
    /// It was prepared to come: written by the controller, as the next three.
    prepared,
    /// It came.
    came,
    /// It was to go.
    was_to_go,
    /// It went.
    went,
    /// Lockups of it that were told.
    soft_lockups,
    /// Lockups of it that were told, by its buddy.
    hard_lockups,
    /// Hard lockups of which the back trace was there.
    hard_lockups_traced,
    /// Lockups of it that ended.
    lockups_ended,
    /// Back traces that it has printed.
    back_traces,
}

impl Tally {
    /// Counts a lockup of this CPU.
    pub(crate) fn note_lockup(&self, lockup: &Lockup) {
        match lockup.kind {
            LockupKind::Soft => self.soft_lockups.add(1),
            LockupKind::Hard => {
                self.hard_lockups.add(1);
                self.hard_lockups_traced.add(u64::from(lockup.back_trace_taken));
            }
        }
    }
}

static TALLIES: [Tally; MAX_CPUS] = [const { Tally::NEW }; MAX_CPUS];

/// The counts of a CPU.
pub(crate) fn of(cpu: Cpu) -> &'static Tally {
    &TALLIES[cpu.index()]
}

/// Counts in a callback of hotplug, which agrees to whatever it is asked.
#[expect(clippy::unnecessary_wraps, reason = "it is what callbacks return")]
pub(crate) fn count(counter: &Counter) -> Result<(), Refused> {
    counter.add(1);
    Ok(())
}

/// Those of the running CPU.
pub(crate) fn here() -> &'static Tally {
    of(Lab::current_cpu())
}
