//! How shared memory is accessed: directly on hardware, observed on a simulated machine.

use core::sync::atomic::Ordering;

use crate::{Conditions, Deadline, Machine, Woken, spin, spin_at_most};

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
    /// An atomic compare-and-exchange: the expected and the new value, and the ordering of the load that it is when
    /// it fails.
    CompareExchange(u64, u64, Ordering),
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

/// How a machine accesses memory that CPUs share: what happens before and after each access.
///
/// The explorer and the simulated machine implement it to suspend a CPU before each access; on hardware there is
/// nothing to do. A type parameter, and neither a Cargo feature (features unify across a workspace) nor a `cfg` (a
/// second build): one workspace holds the shipping code and its exploration.
///
/// # Safety
/// [`before`](Memory::before) may answer for the access only with a result that it could have had in some legal
/// execution, and then sees to it that the access has the effect that goes with it. [`wait`](Memory::wait) may
/// report a condition only if it held, and then with acquire ordering: what was written before it became true is
/// visible.
pub unsafe trait Memory: Sized + 'static {
    /// The CPU is about to access the 8-byte location (for plain data: the object at that address). `None`: it
    /// shall do so now. Otherwise it does not, and this is what it would have read; only atomic accesses may be
    /// answered for.
    #[track_caller]
    fn before(location: *const (), access: Access, order: Ordering) -> Option<u64>;

    /// The CPU has accessed the location and found this value there: the old one for read-modify-writes, zero
    /// for stores and plain data. Nothing else has happened on this CPU since `before`.
    fn after(location: *const (), access: Access, found: u64);

    /// Waits until one of the conditions holds or the deadline has passed. See [`wait`](crate::wait).
    #[track_caller]
    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken;

    /// As [`wait`](Memory::wait), for at most this many looks. See [`wait_at_most`](crate::wait_at_most).
    ///
    /// A simulated machine lets pass the time that the looks would take, whatever the CPU's clock says meanwhile.
    #[track_caller]
    fn wait_at_most<M: Machine<Memory = Self>>(
        conditions: &impl Conditions,
        deadline: Deadline,
        looks: u64,
    ) -> Woken {
        spin_at_most::<M>(conditions, deadline, looks)
    }
}

/// The memory of real machines: `core::sync::atomic`, and nothing before or after.
#[derive(Clone, Copy, Debug)]
pub enum Hardware {}

// SAFETY: `before` answers for nothing; `spin` evaluates the conditions.
unsafe impl Memory for Hardware {
    #[inline(always)]
    fn before(_: *const (), _: Access, _: Ordering) -> Option<u64> {
        None
    }

    #[inline(always)]
    fn after(_: *const (), _: Access, _: u64) {}

    #[inline(always)]
    fn wait<M: Machine<Memory = Self>>(conditions: &impl Conditions, deadline: Deadline) -> Woken {
        spin::<M>(conditions, deadline)
    }
}
