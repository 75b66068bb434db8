//! Statistics: written by one CPU, read by anyone, never part of a protocol.

use core::sync::atomic::{AtomicU64, Ordering};

/// A per-CPU statistic. Only its own CPU writes it; everybody may read it at any time.
///
/// It orders nothing and no protocol may depend on it, which is why it does not go through
/// [`Memory`](crate::Memory): explorers do not schedule at it. An increment is a load and a store, no locked
/// instruction; one from an NMI handler that hits between the two is lost, so counters of NMI handlers are their own.
#[derive(Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter that starts at `value`.
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// The value. Relaxed: possibly a little old.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces the value. Called by the owning CPU only.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to the value. Called by the owning CPU only, not concurrently with itself.
    #[inline(always)]
    pub fn add(&self, value: u64) {
        self.set(self.get().wrapping_add(value));
    }

    /// Raises the value to `value` if it is lower. Called by the owning CPU only.
    #[inline(always)]
    pub fn raise(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }
}

impl core::fmt::Debug for Counter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get())
    }
}
