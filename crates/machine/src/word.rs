//! What CPUs share: words, pointers, and the plain data that words guard.
//!
//! Each is a transparent wrapper with a constant initial value, so that statics hold them and cost nothing.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::{Access, Memory, When};

/// Performs an access between the two hooks of the memory, and evaluates to what it read. Not a function that
/// takes a closure: whether a closure is inlined is the compiler's guess, and the seam must cost nothing.
macro_rules! observed {
    ($self:ident, $access:expr, $order:expr, $perform:expr) => {{
        let (location, access) = ($self.location(), $access);
        match M::before(location, access, $order) {
            None => {
                let found = $perform;
                M::after(location, access, found);
                found
            }
            Some(found) => found,
        }
    }};
}

/// As `observed`, for accesses that read a pointer.
macro_rules! observed_pointer {
    ($self:ident, $access:expr, $order:expr, $perform:expr) => {{
        let (location, access) = ($self.location(), $access);
        match M::before(location, access, $order) {
            None => {
                let found = $perform;
                M::after(location, access, found.addr() as u64);
                found
            }
            // A simulated machine answers with a pointer that whoever wrote it has exposed.
            Some(address) => core::ptr::with_exposed_provenance_mut(address as usize),
        }
    }};
}

/// A shared 64-bit word. Same layout as `AtomicU64`.
#[repr(transparent)]
pub struct Word<M> {
    value: AtomicU64,
    memory: PhantomData<fn() -> M>,
}

impl<M: Memory> Word<M> {
    /// A word with this initial value.
    pub const fn new(value: u64) -> Self {
        Self { value: AtomicU64::new(value), memory: PhantomData }
    }

    /// Where it is: what names it in traces of simulated machines.
    pub fn location(&self) -> *const () {
        core::ptr::from_ref(self).cast()
    }

    /// The value, through exclusive access: no other CPU can see it, so it is not a shared access.
    pub fn get_mut(&mut self) -> &mut u64 {
        self.value.get_mut()
    }

    /// Loads the value.
    #[inline(always)]
    #[track_caller]
    pub fn load(&self, order: Ordering) -> u64 {
        observed!(self, Access::Load, order, self.value.load(order))
    }

    /// Stores a value.
    #[inline(always)]
    #[track_caller]
    pub fn store(&self, value: u64, order: Ordering) {
        observed!(self, Access::Store(value), order, {
            self.value.store(value, order);
            0
        });
    }

    /// Stores a value and returns the one before.
    #[inline(always)]
    #[track_caller]
    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        observed!(self, Access::Swap(value), order, self.value.swap(value, order))
    }

    /// Sets the given bits and returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        observed!(self, Access::FetchOr(bits), order, self.value.fetch_or(bits, order))
    }

    /// Keeps only the given bits and returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        observed!(self, Access::FetchAnd(bits), order, self.value.fetch_and(bits, order))
    }

    /// Adds, wrapping, and returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        observed!(self, Access::FetchAdd(value), order, self.value.fetch_add(value, order))
    }

    /// Subtracts, wrapping, and returns the value before.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        let negated = value.wrapping_neg();
        observed!(self, Access::FetchAdd(negated), order, self.value.fetch_sub(value, order))
    }

    /// Stores `new` if the value is `current`; does not fail spuriously.
    ///
    /// # Errors
    /// The value found, if it was another one. `failure` orders that load.
    #[inline(always)]
    #[track_caller]
    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let (location, access) = (self.location(), Access::CompareExchange(current, new, failure));
        match M::before(location, access, success) {
            None => {
                let result = self.value.compare_exchange(current, new, success, failure);
                let (Ok(found) | Err(found)) = result;
                M::after(location, access, found);
                result
            }
            Some(found) if found == current => Ok(found),
            Some(found) => Err(found),
        }
    }

    /// The condition that the bits under `mask` have exactly the value `value`, for a [`wait`](crate::wait).
    /// It is read with acquire ordering.
    pub fn equals(&self, mask: u64, value: u64) -> When<'_, M> {
        When::new(self, mask, value, true)
    }

    /// The condition that the bits under `mask` have another value than `value`, for a [`wait`](crate::wait).
    /// It is read with acquire ordering.
    pub fn differs(&self, mask: u64, value: u64) -> When<'_, M> {
        When::new(self, mask, value, false)
    }
}

/// A shared pointer. Same layout as `AtomicPtr<T>`.
#[repr(transparent)]
pub struct Pointer<M, T> {
    value: AtomicPtr<T>,
    memory: PhantomData<fn() -> M>,
}

impl<M: Memory, T> Pointer<M, T> {
    /// A pointer with this initial value.
    pub const fn new(value: *mut T) -> Self {
        Self { value: AtomicPtr::new(value), memory: PhantomData }
    }

    /// Where it is: what names it in traces of simulated machines.
    pub fn location(&self) -> *const () {
        core::ptr::from_ref(self).cast()
    }

    /// The pointer, through exclusive access: no other CPU can see it, so it is not a shared access.
    pub fn get_mut(&mut self) -> &mut *mut T {
        self.value.get_mut()
    }

    /// Loads the pointer.
    #[inline(always)]
    #[track_caller]
    pub fn load(&self, order: Ordering) -> *mut T {
        observed_pointer!(self, Access::Load, order, self.value.load(order))
    }

    /// Stores a pointer.
    #[inline(always)]
    #[track_caller]
    pub fn store(&self, value: *mut T, order: Ordering) {
        let address = value.expose_provenance() as u64;
        observed!(self, Access::Store(address), order, {
            self.value.store(value, order);
            0
        });
    }

    /// Stores a pointer and returns the one before.
    #[inline(always)]
    #[track_caller]
    pub fn swap(&self, value: *mut T, order: Ordering) -> *mut T {
        observed_pointer!(
            self,
            Access::Swap(value.expose_provenance() as u64),
            order,
            self.value.swap(value, order)
        )
    }

    /// Stores `new` if the pointer is `current`; does not fail spuriously.
    ///
    /// # Errors
    /// The pointer found, if it was another one. `failure` orders that load.
    #[inline(always)]
    #[track_caller]
    pub fn compare_exchange(
        &self,
        current: *mut T,
        new: *mut T,
        success: Ordering,
        failure: Ordering,
    ) -> Result<*mut T, *mut T> {
        let (expected, new_address) = (current.addr() as u64, new.expose_provenance() as u64);
        let access = Access::CompareExchange(expected, new_address, failure);
        let location = self.location();
        match M::before(location, access, success) {
            None => {
                let result = self.value.compare_exchange(current, new, success, failure);
                let (Ok(found) | Err(found)) = result;
                M::after(location, access, found.addr() as u64);
                result
            }
            // A simulated machine answers with a pointer that whoever wrote it has exposed.
            Some(found) => {
                let found = core::ptr::with_exposed_provenance_mut(found as usize);
                if found == current { Ok(found) } else { Err(found) }
            }
        }
    }
}

/// Plain data that CPUs hand to each other under the protection of a [`Word`].
///
/// Nothing here is atomic. The accesses go through [`Memory`] so that an explorer sees data races. On
/// hardware it is an `UnsafeCell`.
#[repr(transparent)]
pub struct Plain<M, T> {
    value: UnsafeCell<T>,
    memory: PhantomData<fn() -> M>,
}

// SAFETY: access is through unsafe functions whose callers promise that accesses do not race; the data itself
// moves between CPUs, hence `Send`.
unsafe impl<M, T: Send> Sync for Plain<M, T> {}

impl<M: Memory, T: Copy> Plain<M, T> {
    /// Plain data with this initial value.
    pub const fn new(value: T) -> Self {
        Self { value: UnsafeCell::new(value), memory: PhantomData }
    }

    /// Where it is: what names it in traces of simulated machines.
    pub fn location(&self) -> *const () {
        core::ptr::from_ref(self).cast()
    }

    /// Reads the data.
    ///
    /// # Safety
    /// No other CPU (or interrupt handler) writes it at the same time.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn read(&self) -> T {
        let access = Access::PlainRead(size_of::<T>());
        M::before(self.location(), access, Ordering::Relaxed);
        // SAFETY: the caller promises that nobody writes; the cell holds a valid `T`.
        let value = unsafe { *self.value.get() };
        M::after(self.location(), access, 0);
        value
    }

    /// Reads the data where it is: a copy is spared.
    ///
    /// # Safety
    /// No other CPU (or interrupt handler) writes it while the reference is used.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn read_in_place(&self) -> &T {
        let access = Access::PlainRead(size_of::<T>());
        M::before(self.location(), access, Ordering::Relaxed);
        // SAFETY: the caller promises that nobody writes; the cell holds a valid `T`.
        let value = unsafe { &*self.value.get() };
        M::after(self.location(), access, 0);
        value
    }

    /// Writes the data.
    ///
    /// # Safety
    /// No other CPU (or interrupt handler) reads or writes it at the same time.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn write(&self, value: T) {
        let access = Access::PlainWrite(size_of::<T>());
        M::before(self.location(), access, Ordering::Relaxed);
        // SAFETY: the caller promises exclusive access for the duration of the write.
        unsafe { *self.value.get() = value };
        M::after(self.location(), access, 0);
    }
}
