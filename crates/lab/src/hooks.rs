//! What suites want to have done in interrupt handlers, NMI handlers among them.

use core::sync::atomic::{
    AtomicPtr,
    Ordering::{Acquire, Release},
};

use crate::interrupts::Frame;

/// A hook: a function, or none.
struct Hook(AtomicPtr<()>);

impl Hook {
    const NONE: Self = Self(AtomicPtr::new(core::ptr::null_mut()));

    fn set(&self, hook: Option<fn()>) {
        let pointer = hook.map_or(core::ptr::null_mut(), |hook| hook as *mut ());
        // Release: what the hook needs is set up.
        self.0.store(pointer, Release);
    }

    #[inline]
    fn call(&self) -> bool {
        let hook = self.0.load(Acquire);
        if hook.is_null() {
            return false;
        }
        // SAFETY: not null, so it was made from such a function.
        unsafe { core::mem::transmute::<*mut (), fn()>(hook)() };
        true
    }
}

static DEVICE: Hook = Hook::NONE;
static NMI: Hook = Hook::NONE;

/// Has something done by the handler of the device that suites play.
pub(crate) fn on_device(hook: Option<fn()>) {
    DEVICE.set(hook);
}

/// Has something done in NMI handlers, which are explained by that.
pub(crate) fn on_nmi(hook: Option<fn()>) {
    NMI.set(hook);
}

/// What a suite does about vectors that have no handler, exceptions among them: it says whether that one was its own, and
/// ends it then.
type Entered = fn(&mut Frame) -> bool;

static ENTRY: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Has vectors without a handler looked at.
pub(crate) fn on_entry(hook: Option<Entered>) {
    let pointer = hook.map_or(core::ptr::null_mut(), |hook| hook as *mut ());
    // Release: what the hook needs is set up.
    ENTRY.store(pointer, Release);
}

/// From the way in. Returns whether a suite has dealt with it.
pub(crate) fn entered(frame: &mut Frame) -> bool {
    let hook = ENTRY.load(Acquire);
    // SAFETY: if not null, it was made from such a function.
    !hook.is_null() && unsafe { core::mem::transmute::<*mut (), Entered>(hook)(frame) }
}

/// From the device's handler.
pub(crate) fn device() {
    DEVICE.call();
}

/// From the NMI handler. Returns whether there was something to do.
pub(crate) fn nmi() -> bool {
    NMI.call()
}
