//! Calls to one CPU.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::Release;

use crate::mark::Marked;
use crate::pending::Pending;
use crate::slot::{Luggage, Payload, QUEUED, state_for};
use crate::{CallError, Caller, Cpu, CpuMask, Kernel};
use smpcall_machine::EventKind;

/// How many words the closure of [`Caller::call_static`] may capture.
pub const INLINE_WORDS: usize = 3;

/// A closure on its way there and its result on its way back. On the caller's stack, pinned by the wait.
struct Frame<F, R> {
    closure: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<R>>,
}

impl<F: FnOnce() -> R, R> Frame<F, R> {
    fn new(closure: F) -> Self {
        Self { closure: UnsafeCell::new(Some(closure)), result: UnsafeCell::new(None) }
    }

    fn payload(&self) -> Payload {
        let mut luggage = Luggage::uninit();
        // SAFETY: luggage has room for a pointer at its start and is aligned for one.
        unsafe { luggage.as_mut_ptr().cast::<*const Self>().write(self) };
        Payload { run: Some(Self::run), luggage }
    }

    /// After a call that failed: drops what is whole.
    #[cold]
    fn abandon(self, error: CallError) {
        if error == CallError::TargetDied {
            // The dead CPU may have stopped in the middle of taking the closure out or of writing the result.
            core::mem::forget(self);
        }
    }

    /// # Safety
    /// The luggage was made by `payload` of a frame that is alive, and nobody else runs it.
    unsafe fn run(luggage: &Luggage, _: Cpu) {
        // SAFETY: the caller promises that the luggage holds the address of a live frame of this type and
        // that this is the only access to it until the call is completed.
        unsafe {
            let frame = &*luggage.as_ptr().cast::<*const Self>().read();
            let closure = (*frame.closure.get()).take();
            debug_assert!(closure.is_some(), "a call is run once (law L1)");
            *frame.result.get() = closure.map(|closure| closure());
        }
    }
}

/// # Safety
/// The luggage holds an `F`, which nobody else reads.
unsafe fn run_inline<F: FnOnce()>(luggage: &Luggage, _: Cpu) {
    // SAFETY: promised by the caller; `call_static` has checked size and alignment.
    unsafe { luggage.as_ptr().cast::<F>().read()() }
}

impl<K: Kernel> Caller<'_, K> {
    /// Runs `closure` on `target`, exactly once, and returns its result. The closure may borrow.
    ///
    /// On the own CPU it runs at once, with interrupts disabled. The wait ends when the closure has run, or
    /// at the deadline if the target has not claimed the call by then. If it has, the wait goes on until
    /// the closure has run (law L4): a call that borrows lasts its deadline plus its closure at most.
    ///
    /// # Errors
    /// [`CallError`]. The closure has not run and will not run, except for [`CallError::Panicked`] and
    /// [`CallError::TargetDied`].
    #[inline]
    pub fn call<R: Send, F: FnOnce() -> R + Send>(self, target: Cpu, closure: F) -> Result<R, CallError> {
        let frame = Frame::new(closure);
        match self.call_frame(target, &frame) {
            Ok(()) => frame.result.into_inner().ok_or(CallError::Panicked),
            Err(error) => {
                frame.abandon(error);
                Err(error)
            }
        }
    }

    /// Runs `closure` on one CPU of `candidates`: this one if it is among them, else the first that is online.
    /// Returns which, with the result.
    ///
    /// # Errors
    /// As for [`call`](Caller::call). [`CallError::Offline`] if none of those that exist is online,
    /// [`CallError::NoSuchCpu`] if none exists.
    pub fn call_any<R: Send, F: FnOnce() -> R + Send>(
        self,
        candidates: &CpuMask,
        closure: F,
    ) -> Result<(Cpu, R), CallError> {
        let (pinned, here) = self.pin()?;
        drop(pinned);
        let frame = Frame::new(closure);
        let mut refused = CallError::NoSuchCpu;
        let own = candidates.contains(here.me).then_some(here.me);
        for target in own.into_iter().chain(candidates) {
            match self.call_frame(target, &frame) {
                // Only these say that the next one is worth trying, and that the frame still has its closure.
                Err(CallError::NoSuchCpu) => {}
                Err(CallError::Offline) => refused = CallError::Offline,
                Err(error) => {
                    frame.abandon(error);
                    return Err(error);
                }
                Ok(()) => {
                    let result = frame.result.into_inner().ok_or(CallError::Panicked)?;
                    return Ok((target, result));
                }
            }
        }
        Err(refused)
    }

    /// Runs a closure that borrows nothing on `target`, exactly once. If the target has claimed it by the
    /// deadline but not finished, the caller may leave, and is told so.
    ///
    /// The closure captures at most [`INLINE_WORDS`] words (checked at compile time) and has no result. What it captures
    /// is leaked if a closure that is served meanwhile panics.
    ///
    /// # Errors
    /// As for [`call`](Caller::call), and [`CallError::Unfinished`]: then it has run, is running, or will.
    pub fn call_static<F: FnOnce() + Send + 'static>(self, target: Cpu, closure: F) -> Result<(), CallError> {
        const {
            assert!(
                size_of::<F>() <= size_of::<Luggage>(),
                "the closure captures more than INLINE_WORDS words"
            );
            assert!(align_of::<F>() <= align_of::<Luggage>(), "the closure captures an over-aligned value");
        }
        let mut luggage: Luggage = MaybeUninit::uninit();
        // SAFETY: size and alignment were checked above.
        unsafe { luggage.as_mut_ptr().cast::<F>().write(closure) };
        let payload = Payload { run: Some(run_inline::<F>), luggage };
        let result = self.send(target, payload, true);
        if matches!(
            result,
            Ok(()) | Err(CallError::Unfinished(_) | CallError::Panicked | CallError::TargetDied)
        ) {
            return result;
        }
        // SAFETY: not run and never will be, so the luggage still holds the closure; it is dropped here.
        unsafe { luggage.as_mut_ptr().cast::<F>().drop_in_place() };
        result
    }

    #[inline]
    fn call_frame<R, F: FnOnce() -> R>(&self, target: Cpu, frame: &Frame<F, R>) -> Result<(), CallError> {
        self.send(target, frame.payload(), false)
    }

    /// Sends a payload to a target and waits until it has run or never will; `may_leave` if its luggage is
    /// `'static`.
    #[inline]
    fn send(&self, target: Cpu, payload: Payload, may_leave: bool) -> Result<(), CallError> {
        let (mut pinned, mut here) = self.pin()?;
        let (level, theirs) = loop {
            if target == here.me {
                here.mine.counters().calls_local.add(1);
                if let Some(run) = payload.run {
                    // SAFETY: the luggage is of a live frame (or the closure itself), which nobody else knows of.
                    unsafe { run(&payload.luggage, here.me) };
                }
                return Ok(());
            }
            self.check_deadline()?;
            let Some(theirs) = here.boxes().get(target) else { return Err(CallError::NoSuchCpu) };
            if let Some(level) = here.mine.free_level() {
                break (level, theirs);
            }
            (pinned, here) = self.wait_for_level(pinned, here)?;
        };

        // SAFETY: the level is free, and this CPU's to take while interrupts are off.
        unsafe { here.mine.slots[level].payload.write(payload) };
        // SAFETY: interrupts are off, and NMI handlers do not call.
        let queued = state_for(QUEUED, target) | unsafe { here.mine.next_call() };
        // Release: payload and closure are visible to the target that claims this.
        here.mine.states.0[level].store(queued, Release);
        let now = K::now();
        // From here on, unwinding withdraws the call or waits for it.
        let pending = Pending { here, level, target, queued, rung_at: now, settled: false };
        here.mine.counters().calls_sent.add(1);
        here.trace_at(now, EventKind::CallQueued, Some(target), level, 0);
        match here.boxes().mark(target, theirs, here.me) {
            Marked::Quiet => here.ring_at(now, target),
            Marked::Noticed => {}
            Marked::Closed => return pending.refused(self, may_leave),
        }
        if self.interrupts_off {
            let result = pending.wait(self, may_leave);
            drop(pinned);
            result
        } else {
            drop(pinned);
            pending.wait(self, may_leave)
        }
    }
}
