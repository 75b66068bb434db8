//! How shared memory is accessed: directly on hardware, observed on a simulated machine.

use core::sync::atomic::Ordering;

use crate::{Conditions, Deadline, Machine, Woken, spin};

/// What one access to a shared location does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// An atomic load.
    Load,
    /// An atomic store of this value.
    Store(u64),
    /// An atomic exchange.
    Swap(u64),
    /// An atomic bitwise or.
    FetchOr(u64),
    /// An atomic bitwise and.
    FetchAnd(u64),
    /// An atomic, wrapping addition.
    FetchAdd(u64),
    /// An atomic compare-and-exchange: the expected and the new value.
    CompareExchange(u64, u64),
    /// A non-atomic read of this many bytes.
    PlainRead(usize),
    /// A non-atomic write of this many bytes.
    PlainWrite(usize),
}

impl Access {
    /// Whether it can change the location.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Load | Self::PlainRead(_))
    }
}

/// How a machine accesses memory that CPUs share.
///
/// The explorer and the simulated machine implement it to suspend a CPU before each access; hardware does
/// just what it is told. A type parameter, and neither a Cargo feature (features unify across a workspace) nor
/// a `cfg` (a second build): one workspace holds the shipping code and its exploration.
///
/// # Safety
/// An implementation must either run `perform` exactly once and return what it returned, or have the effect
/// and the result that running it at some point of a legal execution would have had. [`wait`](Memory::wait)
/// may report a condition only if it held.
pub unsafe trait Memory: Sized + 'static {
    /// Performs one access to the 8-byte location (for plain data: to the object at that address).
    ///
    /// `perform` performs it and returns what it read: the old value for read-modify-writes, and zero for
    /// stores and plain data.
    #[track_caller]
    fn access(location: *const (), access: Access, order: Ordering, perform: impl FnOnce() -> u64) -> u64;

    /// Waits until one of the conditions holds or the deadline has passed. See [`wait`](crate::wait).
    #[track_caller]
    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken;
}

/// The memory of real machines: `core::sync::atomic`, inlined to nothing.
#[derive(Clone, Copy, Debug)]
pub enum Hardware {}

// SAFETY: `access` runs `perform` exactly once and returns its result; `spin` evaluates the conditions.
unsafe impl Memory for Hardware {
    #[inline(always)]
    fn access(_: *const (), _: Access, _: Ordering, perform: impl FnOnce() -> u64) -> u64 {
        perform()
    }

    #[inline(always)]
    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
        spin::<M>(conditions, deadline)
    }
}
