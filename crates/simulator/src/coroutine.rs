//! One CPU as a coroutine: its program, then an idle loop for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};

use corosensei::stack::{DefaultStack, Stack};
use corosensei::{Coroutine, Yielder};
use smpcall_machine::EventKind;

use crate::stack_pool;
use crate::state::{Driver, Shared, State, Stop};
use crate::waiting;

/// A CPU's coroutine.
pub(crate) struct CpuCoroutine {
    /// Always there, but for the moments of being replaced and dropped.
    coroutine: Option<Coroutine<(), (), (), DefaultStack>>,
    range: (usize, usize),
}

impl CpuCoroutine {
    /// A CPU that will run `program`, if there is one.
    ///
    /// # Safety
    /// The state, and what the program borrows, outlive this.
    pub(crate) unsafe fn new<F: FnOnce()>(state: Shared, cpu: usize, program: Option<F>) -> Self {
        // SAFETY: passed on to the caller.
        unsafe { Self::on_stack(stack_pool::take(), state, cpu, program) }
    }

    unsafe fn on_stack<F: FnOnce()>(
        stack: DefaultStack,
        state: Shared,
        cpu: usize,
        program: Option<F>,
    ) -> Self {
        let range = (stack.limit().get(), stack.base().get());
        let body = move |yielder: &Yielder<(), ()>, ()| {
            state.with(|machine| machine.cpus[cpu].yielder = core::ptr::from_ref(yielder));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                if let Some(program) = program {
                    program();
                    state.with(|machine| machine.program_ended(cpu));
                }
                let parks = state.with(|machine| {
                    let processor = &mut machine.cpus[cpu];
                    processor.ended = true;
                    processor.began_anew && !processor.interrupts_enabled
                });
                if parks {
                    waiting::park(state, std::panic::Location::caller());
                }
                loop {
                    waiting::halt(state, std::panic::Location::caller());
                }
            }));
            let Err(payload) = outcome;
            state.with(|machine| machine.stop = Some(Stop::Panicked { cpu, payload }));
        };
        // SAFETY: the caller promises that what `body` borrows outlives the coroutine; a coroutine that is forgotten
        // (see `Drop`) is never resumed, so nothing is used after.
        let coroutine = unsafe { Coroutine::with_stack_unchecked(stack, body) };
        Self { coroutine: Some(coroutine), range }
    }

    /// From the lowest to behind the highest address of its stack, on which it stays for life.
    pub(crate) fn stack_range(&self) -> (usize, usize) {
        self.range
    }

    /// Runs the CPU until it lets others run.
    pub(crate) fn resume(&mut self) {
        if let Some(coroutine) = self.coroutine.as_mut().filter(|coroutine| !coroutine.done()) {
            coroutine.resume(());
        }
    }

    /// Forgets what the CPU was doing, without unwinding, and gives it a program anew, on the same stack.
    ///
    /// # Safety
    /// As for [`new`](Self::new); and nothing that is used later refers to this CPU's stack, nor relies on the
    /// destructor of something that lives there.
    pub(crate) unsafe fn restart<F: FnOnce()>(&mut self, state: Shared, cpu: usize, program: Option<F>) {
        // SAFETY: passed on to the caller.
        let Some(stack) = (unsafe { self.take_stack() }) else { return };
        // SAFETY: passed on to the caller.
        *self = unsafe { Self::on_stack(stack, state, cpu, program) };
    }

    /// Ends the CPU's life. `idle`: it is suspended in its idle loop, outside of any handler.
    ///
    /// A machine that is switched off runs no destructors: they would perform operations, on other CPUs' stacks among
    /// others. So the stack of a CPU that is in the middle of something is not used again; it is kept as it is, for
    /// ever, and no reference to it ever dangles. [`forget`](Self::forget) is for those who know that none is left.
    pub(crate) fn switch_off(&mut self, idle: bool) {
        let Some(mut coroutine) = self.coroutine.take() else { return };
        if !coroutine.started() {
            coroutine.force_unwind();
        } else if idle {
            // SAFETY: in the idle loop there is nothing on the stack that has a destructor.
            unsafe { coroutine.force_reset() };
        } else if !coroutine.done() {
            core::mem::forget(coroutine);
            return;
        }
        stack_pool::give_back(coroutine.into_stack());
    }

    /// Ends the CPU's life whatever it is doing, without unwinding: its stack is used again.
    ///
    /// # Safety
    /// Nothing that is used later refers to this CPU's stack, nor relies on the destructor of something that lives
    /// there.
    pub(crate) unsafe fn forget(&mut self) {
        // SAFETY: passed on to the caller.
        if let Some(stack) = unsafe { self.take_stack() } {
            stack_pool::give_back(stack);
        }
    }

    /// Takes the stack away from what runs on it. A program that was not started is dropped.
    ///
    /// # Safety
    /// As for [`forget`](Self::forget).
    unsafe fn take_stack(&mut self) -> Option<DefaultStack> {
        let mut coroutine = self.coroutine.take()?;
        if coroutine.started() {
            // SAFETY: the caller promises that no destructor matters.
            unsafe { coroutine.force_reset() };
        } else {
            coroutine.force_unwind();
        }
        Some(coroutine.into_stack())
    }
}

impl Drop for CpuCoroutine {
    fn drop(&mut self) {
        self.switch_off(false);
    }
}

impl State {
    /// Nothing more is expected of a CPU's program. Told once for each, however it comes about.
    pub(crate) fn program_ended(&mut self, cpu: usize) {
        if !core::mem::take(&mut self.cpus[cpu].counted) {
            return;
        }
        self.record(cpu, EventKind::ProgramEnded, None, 0, 0);
        self.programs -= 1;
        if self.programs == 0 && self.driver == Driver::Timed {
            self.stop.get_or_insert(Stop::ProgramsEnded);
        }
    }
}
