//! Tasks: one at a time on each CPU, given by others, and the idle loop that runs them.
//!
//! A task is a function that is called again until it says that it is done. Between two calls the CPU may go offline and come
//! again; the task goes on then.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::time::Duration;

use smpcall_machine::{Cpu, CpuMask, Deadline, InterruptsOff, Machine, Woken, wait};

use crate::clock::LabWord;
use crate::cpu::MAX_CPUS;
use crate::machine::{BOOT_CPU, Calls, Lab, halt_until_interrupt};

/// Whether a task is to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is.
    Again,
    /// It has ended.
    Done,
}

/// What a CPU is given to do.
pub(crate) type Task = fn(Cpu) -> Step;

struct Place {
    state: LabWord,
    task: UnsafeCell<Option<Task>>,
}

// SAFETY: the task is written by who has found the place free, and read by its CPU while it is not.
unsafe impl Sync for Place {}

const FREE: u64 = 0;
const GIVEN: u64 = 1;

static PLACES: [Place; MAX_CPUS] =
    [const { Place { state: LabWord::new(FREE), task: UnsafeCell::new(None) } }; MAX_CPUS];

fn place(cpu: Cpu) -> &'static Place {
    &PLACES[cpu.index()]
}

/// Whether this CPU is the one that rings on behalf of those that do not tick. All tick: it finds posts a little earlier.
pub(crate) fn is_backstop() -> bool {
    Lab::current_cpu() == BOOT_CPU
}

/// Gives a CPU, which has none, a task. By the boot CPU.
pub(crate) fn give(cpu: Cpu, task: Task) {
    let place = place(cpu);
    // SAFETY: the boot CPU alone gives tasks, and this CPU has none: `is_done`.
    unsafe { *place.task.get() = Some(task) };
    // Release: the task.
    place.state.store(GIVEN, Release);
    // A CPU that is offline finds it when it comes.
    let _ = Calls::reschedule(cpu);
}

/// Whether a CPU has no task.
pub(crate) fn is_done(cpu: Cpu) -> bool {
    // Acquire: what the task has done.
    place(cpu).state.load(Acquire) == FREE
}

/// Waits until a CPU has done its task; false at the deadline. With interrupts enabled.
pub(crate) fn await_done(cpu: Cpu, deadline: Deadline) -> bool {
    wait::<Lab>(&[place(cpu).state.equals(!0, FREE)], deadline) != Woken::Deadline
}

/// Runs a task on each of these CPUs, this one among them if it is a member, and waits until all are done. Calls `meanwhile`
/// now and then. Returns the first CPU that is not done within `limit` without progress, as `meanwhile` counts it.
pub(crate) fn run_on(
    cpus: &CpuMask,
    task: Task,
    limit: Duration,
    mut meanwhile: impl FnMut() -> u64,
) -> Result<(), Cpu> {
    let me = Lab::current_cpu();
    for cpu in cpus.iter().filter(|&cpu| cpu != me) {
        give(cpu, task);
    }
    if cpus.contains(me) {
        while task(me) == Step::Again {
            Calls::progress();
            meanwhile();
        }
    }
    let mut deadline = Deadline::within::<Lab>(limit);
    let mut seen = meanwhile();
    for cpu in cpus.iter().filter(|&cpu| cpu != me) {
        while !await_done(cpu, Deadline::within::<Lab>(Duration::from_millis(100))) {
            Calls::progress();
            Calls::run_work();
            let now = meanwhile();
            if now != seen {
                seen = now;
                deadline = Deadline::within::<Lab>(limit);
            } else if deadline.has_passed(Lab::now()) {
                return Err(cpu);
            }
        }
    }
    Ok(())
}

/// What every CPU but the boot CPU does for ever.
pub(crate) fn idle() -> ! {
    let mut guard = InterruptsOff::<Lab>::new();
    let me = guard.cpu();
    let place = place(me);
    loop {
        if !Calls::may_halt(&mut guard) {
            Lab::restore_interrupts(true);
            Calls::run_work();
            let _ = Lab::disable_interrupts();
            continue;
        }
        Calls::die_if_asked(&mut guard);
        Calls::progress();
        // Relaxed: looked at again with acquire. Whoever gives a task rings afterwards.
        if place.state.load(Relaxed) == FREE {
            halt_until_interrupt(&mut guard);
        } else {
            Lab::restore_interrupts(true);
            run(me, place);
            let _ = Lab::disable_interrupts();
        }
    }
}

fn run(me: Cpu, place: &Place) {
    // Acquire: the task.
    if place.state.load(Acquire) != GIVEN {
        return;
    }
    // SAFETY: it is this CPU's while the place is not free.
    let task = unsafe { *place.task.get() };
    if task.is_none_or(|task| task(me) == Step::Done) {
        // Release: what the task has done.
        place.state.store(FREE, Release);
    }
}
