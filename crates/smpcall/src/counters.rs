//! What each CPU counts: what an interrupt table shows, and what it does not.

use smpcall_machine::Counter;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one CPU. Written by that CPU only; readable by anyone at any time, a little late.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: Counter,)+ }

        impl Counters {
            pub(crate) const NEW: Self = Self { $($name: Counter::new(0),)+ };

            pub(crate) fn clear(&self) {
                $(self.$name.set(0);)+
            }

            /// Name and value of each, in a fixed order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get()),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Calls that this CPU queued for others: run, withdrawn or refused in the end. A call to many counts once for each
    /// target.
    calls_sent,
    /// Calls that this CPU ran for others.
    calls_run,
    /// Calls to the own CPU, run directly.
    calls_local,
    /// Calls that were given up unclaimed at their deadline: told, and never run.
    calls_withdrawn,
    /// Calls that were refused because the target is offline.
    calls_refused,
    /// Deadlines that passed while the target was running the closure.
    calls_overdue,
    /// Posts queued.
    posts_sent,
    /// Posts that were already queued.
    posts_merged,
    /// Posts run on this CPU.
    posts_run,
    /// Deferred work run on this CPU. It was counted as a post when it was queued.
    work_run,
    /// Posts and deferred work of other CPUs that were abandoned to this one.
    posts_abandoned,
    /// Posts and deferred work that CPUs had begun and not ended which this one declared dead: lost with them.
    posts_torn,
    /// Rendezvous of all CPUs that this CPU has controlled, and that took place.
    rendezvous,
    /// Rendezvous of all CPUs that were given up before anybody ran anything.
    rendezvous_given_up,
    /// Reschedule requests taken on this CPU.
    reschedules_taken,
    /// First rings into quiet mailboxes, one for each target.
    rings_sent,
    /// Rings repeated because they stood unanswered: how many were lost, or came too late.
    rings_repeated,
    /// Rings that the interrupt controller did not take.
    rings_failed,
    /// Ring interrupts taken.
    rings_taken,
    /// Serve passes that took marks.
    passes,
    /// Interrupts that ended by their budget.
    budgets_spent,
    /// Probes sent by NMI.
    probes_sent,
    /// Probes answered.
    probes_answered,
    /// Lockups that this CPU has found: its own soft ones, and hard ones of the CPU that it looks after.
    lockups_found,
    /// The longest wait for a call, in nanoseconds.
    longest_wait,
}
