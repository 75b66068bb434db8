//! What the machine counts of its interrupts, apart from what the protocol counts.

use std::ops::Add;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// One number that several contexts of a thread add to, its signal handlers among them.
#[derive(Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, count: u64) {
        // Relaxed: it orders nothing. One instruction, so that no handler comes in between.
        self.0.fetch_add(count, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The interrupts of one CPU, or the sums of several.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct InterruptCounts { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Add for InterruptCounts {
            type Output = Self;

            fn add(self, other: Self) -> Self {
                Self { $($name: self.$name + other.$name,)+ }
            }
        }

        #[derive(Default)]
        pub(crate) struct Tallies { $(pub(crate) $name: Tally,)+ }

        impl Tallies {
            pub(crate) fn snapshot(&self) -> InterruptCounts {
                InterruptCounts { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counts! {
    /// Rings that this CPU sent, the lost ones included.
    rings_sent,
    /// Of them: lost on purpose.
    rings_lost,
    /// Of them: merged with a ring that its target had not taken yet.
    rings_merged,
    /// Sends that the host's kernel refused, probes included. The sender was told.
    sends_failed,
    /// Ring interrupts that this CPU took, in whatever way.
    rings_taken,
    /// Of them: taken in a signal handler, between any two instructions.
    taken_by_signal,
    /// Of those: while the thread was inside [`watch`](crate::watch).
    taken_inside,
    /// Of those: in the pause of a wait.
    taken_in_pause,
    /// Ring signals that found interrupts disabled: the ring was taken when they were enabled.
    deferred,
    /// Of those: while the thread was inside [`watch`](crate::watch).
    deferred_inside,
    /// NMIs that this CPU sent.
    nmis_sent,
    /// NMIs that this CPU took.
    nmis_taken,
    /// Of those: while the thread was inside [`watch`](crate::watch).
    nmis_inside,
    /// How often this CPU halted.
    halts,
}
