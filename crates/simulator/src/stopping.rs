//! What the simulated kernel does when a CPU crashes or locks up.

mod law;

use core::time::Duration;
use std::panic::Location;

use smpcall::vmcore::Registers;
use smpcall::{Answer, Crash, CrashNotes, CrashStop, Lockup, LockupKind, Lockups};
use smpcall_machine::{Cpu, InterruptsOff};

use crate::interrupt::InterruptFrame;
use crate::kernel::{Calls, kernel};
use crate::machine::SimMachine;
use crate::processor::Source;
use crate::program;
use crate::state::expect_current;

pub use law::{CrashOutcome, check_crash};

/// What a kernel does about lockups.
#[derive(Clone, Copy, Default)]
pub struct LockupHooks {
    /// One was found: see [`Lockups::locked_up`]. Without a hook nothing comes of it.
    pub found: Option<fn(&Lockup) -> Answer>,
    /// One has ended: see [`Lockups::lockup_ended`].
    pub ended: Option<fn(Cpu, LockupKind, Duration)>,
    /// Somebody wants to know where this CPU is: see [`Lockups::back_trace`].
    pub back_trace: Option<fn(Cpu, &Registers)>,
}

// SAFETY: 1. The notes are leased with the mailboxes, as many, and nothing else writes them. 2. A parked CPU is halted with
// interrupts disabled.
unsafe impl CrashStop for SimMachine {
    fn crash_notes() -> &'static [CrashNotes<Self>] {
        kernel().crash_notes()
    }

    #[track_caller]
    fn park() -> ! {
        program::park()
    }
}

impl Lockups for SimMachine {
    /// That of [`Config::new`](crate::Config::new).
    const TICK: Duration = Duration::from_millis(4);

    fn locked_up(lockup: &Lockup) -> Answer {
        let hook = kernel().hooks().lockups.and_then(|hooks| hooks.found);
        hook.map_or(Answer::GoOn, |hook| hook(lockup))
    }

    fn lockup_ended(culprit: Cpu, kind: LockupKind, lasted: Duration) {
        if let Some(hook) = kernel().hooks().lockups.and_then(|hooks| hooks.ended) {
            hook(culprit, kind, lasted);
        }
    }

    fn back_trace(asker: Cpu, registers: &Registers) {
        if let Some(hook) = kernel().hooks().lockups.and_then(|hooks| hooks.back_trace) {
            hook(asker, registers);
        }
    }
}

/// What stands for the registers of the running CPU at a place that is not the handler's which asks, but what it has
/// interrupted: see [`program::registers`]. Outside of handlers it is the place that is told.
pub fn registers(source: Source, interrupts_enabled: bool) -> Registers {
    expect_current().with(|machine| {
        let depth = machine.cpu().handler_depth.saturating_sub(1);
        machine.registers(source, depth, interrupts_enabled)
    })
}

/// What an interrupt has interrupted.
pub(crate) fn interrupted(frame: &InterruptFrame) -> Registers {
    registers(frame.source, frame.interrupts_were_enabled)
}

/// The running CPU crashes here: what a kernel's panic handler calls. The winner of the crash goes on in
/// [`Hooks::crashed`](crate::kernel::Hooks::crashed), and every CPU that comes here parks in the end.
#[track_caller]
pub fn crash() -> ! {
    let source = Location::caller();
    let crash = {
        let off = InterruptsOff::<SimMachine>::new();
        let registers = program::registers_at(source, off.were_enabled());
        let crash = Calls::crash_stop(&registers);
        // A crashed CPU enables interrupts no more.
        core::mem::forget(off);
        crash
    };
    go_on_after(crash)
}

fn go_on_after(crash: Crash<SimMachine>) -> ! {
    // Nothing is held on the stack while the hook runs: it does not return, mostly.
    let hook = kernel().hooks().crashed;
    if let Some(hook) = hook {
        hook(crash);
    }
    program::park()
}

/// The tick looks for lockups, if the kernel wants to know of them.
pub(crate) fn look_for_lockups(frame: &InterruptFrame) {
    if kernel().hooks().lockups.is_some() && Calls::check_lockups(&interrupted(frame)) == Answer::CrashStop {
        crash();
    }
}
