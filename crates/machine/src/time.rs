//! The machine's monotonic clock, in nanoseconds, and the deadlines that every wait has.

use core::time::Duration;

use crate::Machine;

/// A point on the machine's monotonic clock: nanoseconds since an arbitrary start. Lasts 584 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Instant(u64);

impl Instant {
    /// This many nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this one; zero if `earlier` is the later one (clocks of two CPUs may differ).
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant moved by `duration`, at most to the end of the clock.
    #[must_use]
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

/// When a wait ends at the latest. "For ever" must be asked for by name: [`Deadline::NEVER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Deadline(Instant);

impl Deadline {
    /// No deadline: the wait lasts until one of its conditions holds.
    pub const NEVER: Self = Self(Instant(u64::MAX));

    /// At this instant.
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// `duration` from now.
    pub fn within<M: Machine>(duration: Duration) -> Self {
        Self(M::now().plus(duration))
    }

    /// Whether this is [`Deadline::NEVER`].
    pub const fn is_never(self) -> bool {
        self.0.0 == u64::MAX
    }

    /// The instant, unless it is [`Deadline::NEVER`].
    pub const fn instant(self) -> Option<Instant> {
        if self.is_never() { None } else { Some(self.0) }
    }

    /// Whether it has come at `now`.
    pub const fn has_passed(self, now: Instant) -> bool {
        !self.is_never() && now.0 >= self.0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_does_not_pass_even_at_the_end_of_the_clock() {
        assert!(!Deadline::NEVER.has_passed(Instant(u64::MAX)));
        assert!(Deadline::at(Instant(5)).has_passed(Instant(5)));
        assert!(!Deadline::at(Instant(5)).has_passed(Instant(4)));
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Instant(5).since(Instant(9)), Duration::ZERO);
        assert_eq!(Instant(u64::MAX - 1).plus(Duration::MAX), Instant(u64::MAX));
    }
}
