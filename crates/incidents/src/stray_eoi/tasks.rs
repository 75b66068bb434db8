//! Tasks that are woken on other CPUs, and how long each waited until it ran.
//!
//! A CPU has room for one woken task: who finds one there leaves it at that, as a kernel does not ask a CPU twice to
//! reschedule.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::time::Duration;
use std::cell::Cell;

use smpcall_machine::{Cpu, InterruptsOff, Machine, Word};
use smpcall_simulator::{MAX_CPUS, SimMachine, SimMemory};

/// The woken tasks of a machine, and the books about them.
struct Tasks {
    /// Since when a task waits on each CPU, in nanoseconds; 0 if none does.
    woken_at: [Word<SimMemory>; MAX_CPUS],
    books: Cell<Books>,
}

/// How many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    /// Woken.
    pub(super) woken: u64,
    /// Of those, the ones that have run.
    pub(super) run: u64,
    /// The longest time between the two.
    pub(super) longest_stall: Duration,
    /// How many waited for more than a tenth of a tick: their interrupt was lost. (The limit is ours.)
    pub(super) found_late: u64,
}

thread_local! {
    // Of the machine that this thread simulates.
    static TASKS: Tasks = const {
        let books = Books { woken: 0, run: 0, longest_stall: Duration::ZERO, found_late: 0 };
        Tasks { woken_at: [const { Word::new(0) }; MAX_CPUS], books: Cell::new(books) }
    };
}

/// Nobody is woken. Outside of the machine.
pub(super) fn reset() {
    TASKS.with(|tasks| {
        // The ordering does not matter: no CPU runs.
        tasks.woken_at.iter().for_each(|woken| woken.store(0, Release));
        tasks.books.take();
    });
}

pub(super) fn books() -> Books {
    TASKS.with(|tasks| tasks.books.get())
}

/// Wakes a task there, and asks that CPU to reschedule by `send`, unless it was asked already. With interrupts disabled, as
/// kernels do it (`try_to_wake_up`): else the waker itself could be kept from it for any time.
pub(super) fn wake(cpu: Cpu, send: impl FnOnce()) {
    let interrupts_off = InterruptsOff::<SimMachine>::new();
    let now = SimMachine::now().as_nanos();
    TASKS.with(|tasks| {
        // AcqRel: as the lock of a run queue.
        if tasks.woken_at[cpu.index()].compare_exchange(0, now, AcqRel, Acquire).is_ok() {
            let books = tasks.books.get();
            tasks.books.set(Books { woken: books.woken + 1, ..books });
            send();
        }
    });
    drop(interrupts_off);
}

/// The scheduler of this CPU: runs the task that was woken here, if one was.
pub(super) fn schedule() {
    TASKS.with(|tasks| {
        let woken_at = &tasks.woken_at[SimMachine::current_cpu().index()];
        // Relaxed: only whether it is worth while to look.
        if woken_at.load(Relaxed) == 0 {
            return;
        }
        // AcqRel: as in `wake`.
        let since = woken_at.swap(0, AcqRel);
        let stall = Duration::from_nanos(SimMachine::now().as_nanos().saturating_sub(since));
        let books = tasks.books.get();
        tasks.books.set(Books {
            run: books.run + 1,
            longest_stall: books.longest_stall.max(stall),
            found_late: books.found_late + u64::from(stall > super::TICK / 10),
            ..books
        });
    });
}

impl Books {
    /// Law L2 for reschedules: losing one costs a tick, never a task.
    pub(super) fn lost_no_task(&self) -> bool {
        self.run == self.woken && self.longest_stall <= super::TICK + super::TICK_LATENESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_never_ran_or_ran_too_late_is_lost() {
        let books = Books { woken: 3, run: 3, longest_stall: super::super::TICK, ..Books::default() };
        assert!(books.lost_no_task());
        assert!(!Books { run: 2, ..books }.lost_no_task());
        assert!(!Books { longest_stall: 2 * super::super::TICK, ..books }.lost_no_task());
    }
}
